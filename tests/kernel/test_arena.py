"""The arena's contract, for shared memory and for its stand-in; then what only real memory can do."""

import fcntl
import gc
import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from raylite._kernel.arena import Arena, HeapArena
from raylite.exceptions import ObjectStoreFullError

MB = 1 << 20
CAPACITY = 8 * MB


@pytest.fixture(params=[Arena, HeapArena])
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    kind: type[Arena] = request.param
    arena = kind.create(CAPACITY)
    yield arena
    arena.close()


def look(arena: Arena, offset: int, size: int) -> bytes:
    return bytes(arena.view(offset, size, lambda: None))


def in_child(work: Callable[[], object]) -> int:
    """Run a function in a forked child; return its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_buffers_are_written_one_after_the_other(arena: Arena) -> None:
    arena.reserve(4096, 100)
    views = [memoryview(b"-f-")[1:2], memoryview(b"")]
    assert arena.write(4096, [b"abc", bytearray(b"de"), b"", *views]) == 6
    assert look(arena, 4096, 6) == b"abcdef"


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 65_537, 3 * MB + 5])
def test_bytes_of_any_size_come_back(arena: Arena, size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    arena.reserve(4096, size)
    arena.write(4096, [data, b"end"])
    assert look(arena, 4096, size + 3) == data + b"end"


def test_very_large_buffers_are_copied_whole() -> None:
    size = 64 * MB + 12_345
    arena = Arena.create(size + 4096)
    array = np.arange(size // 8 + 1, dtype=np.int64).view(np.uint8)[:size]
    arena.write(4096, [array.data])
    assert (np.frombuffer(arena.view(4096, size, lambda: None), np.uint8) == array).all()
    arena.close()


def test_arrays_of_any_type_and_order_are_written_as_their_bytes(arena: Arena) -> None:
    array = np.arange(40_000, dtype=np.float64).reshape(200, 200)
    assert arena.write(0, [array.data]) == array.nbytes
    assert look(arena, 0, array.nbytes) == array.tobytes()


@pytest.mark.parametrize("step", [10, 100_000])
def test_buffers_whose_bytes_are_apart_are_refused(arena: Arena, step: int) -> None:
    with pytest.raises(TypeError, match="contiguous"):
        arena.write(0, [memoryview(bytes(2 * step))[::2]])


def test_reserved_bytes_are_zero_and_reserving_again_keeps_what_was_written(arena: Arena) -> None:
    arena.reserve(0, MB)
    assert look(arena, 0, MB) == bytes(MB)
    arena.write(10, [b"kept"])
    arena.reserve(0, 2 * MB)
    arena.warm(5, MB)
    assert look(arena, 10, 4) == b"kept"


@pytest.mark.parametrize(("offset", "size"), [(0, CAPACITY + 1), (CAPACITY, 1), (-1, 1), (1, -1)])
def test_bytes_outside_the_arena_are_refused(arena: Arena, offset: int, size: int) -> None:
    with pytest.raises(ValueError, match="not in an arena"):
        arena.view(offset, size, lambda: None)
    with pytest.raises(ValueError, match="not in an arena"):
        arena.reserve(offset, size)


def test_writing_beyond_the_end_is_refused(arena: Arena) -> None:
    with pytest.raises(ValueError, match="not in an arena"):
        arena.write(CAPACITY - 4, [b"1234", b"5"])
    assert look(arena, CAPACITY - 4, 4) == b"1234"


def test_a_view_shows_later_writes_without_copying(arena: Arena) -> None:
    view = arena.view(0, 3, lambda: None)
    arena.write(0, [b"new"])
    assert bytes(view) == b"new"


def test_a_view_cannot_be_written_to(arena: Arena) -> None:
    view = arena.view(0, 64, lambda: None)
    with pytest.raises(TypeError, match="read-only"):
        view[0] = 1
    array = np.frombuffer(view, np.uint8)
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.setflags(write=True)


def test_arrays_on_extents_are_aligned(arena: Arena) -> None:
    array = np.frombuffer(arena.view(4096 + 64, 640, lambda: None), np.float64)
    assert array.ctypes.data % 64 == 0
    assert array.flags.aligned


def test_a_release_is_told_once_when_the_last_view_has_died(arena: Arena) -> None:
    released: deque[str] = deque()
    view = arena.view(0, 4096, lambda: released.append("a"))
    array = np.frombuffer(view, np.float64)
    part = array[10:20].reshape(2, 5)
    slice_ = view[5:6]
    del view, array, slice_
    assert not released
    del part
    assert list(released) == ["a"]


def test_a_view_in_a_reference_cycle_is_released_by_the_collector(arena: Arena) -> None:
    released: deque[int] = deque()
    cycle: list[object] = [arena.view(0, 10, lambda: released.append(1))]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert list(released) == [1]


def test_two_views_of_the_same_bytes_are_released_apart(arena: Arena) -> None:
    released: deque[int] = deque()
    first = arena.view(0, 10, lambda: released.append(1))
    second = arena.view(0, 10, lambda: released.append(2))
    del first
    assert list(released) == [1]
    second.release()
    assert list(released) == [1, 2]


def test_an_empty_view_is_released_too(arena: Arena) -> None:
    released: deque[int] = deque()
    view = arena.view(CAPACITY, 0, lambda: released.append(1))
    assert len(view) == 0
    del view
    assert list(released) == [1]


def test_a_view_outlives_the_arena(arena: Arena) -> None:
    arena.write(0, [b"still here"])
    released: deque[int] = deque()
    view = arena.view(0, 10, lambda: released.append(1))
    arena.close()
    del arena
    gc.collect()
    assert bytes(view) == b"still here"
    del view
    assert list(released) == [1]


def test_a_closed_arena_says_so_and_may_be_closed_again(arena: Arena) -> None:
    arena.close()
    arena.close()
    with pytest.raises(ValueError, match="closed"):
        arena.write(0, [b"a"])
    with pytest.raises(ValueError, match="closed"):
        arena.view(0, 1, lambda: None)


def test_threads_write_their_own_extents_at_once(arena: Arena) -> None:
    def fill(number: int) -> None:
        arena.write(number * MB, [bytes([number]) * MB])

    threads = [threading.Thread(target=fill, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert look(arena, 0, 4 * MB) == b"".join(bytes([number]) * MB for number in range(4))


@pytest.mark.process
def test_a_forked_child_writes_and_its_parent_reads(arena: Arena) -> None:
    arena.write(0, [b"p" * MB])  # the parent's page tables are not the child's
    view = arena.view(0, MB + 5, lambda: None)
    assert in_child(lambda: arena.write(0, [b"c" * MB, b"small"])) == 0
    assert bytes(view) == b"c" * MB + b"small"


@pytest.mark.process
def test_views_of_the_parent_work_in_a_child(arena: Arena) -> None:
    view = arena.view(0, 5, lambda: None)

    def child() -> None:
        arena.write(0, [b"hello"])
        arena.close()
        assert bytes(view) == b"hello"

    assert in_child(child) == 0
    assert bytes(view) == b"hello"


def test_another_attachment_sees_the_same_bytes() -> None:
    first = Arena.create(MB)
    second = Arena(os.dup(first.fileno()), MB)
    first.write(0, [b"shared"])
    assert look(second, 0, 6) == b"shared"
    first.close()
    assert look(second, 0, 6) == b"shared"
    second.close()


def test_a_descriptor_of_another_size_or_kind_is_refused() -> None:
    arena = Arena.create(MB)
    unsealed = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, MB)
    reading, writing = os.pipe()
    for fd, size in [(arena.fileno(), 2 * MB), (unsealed, MB), (reading, 0)]:
        with pytest.raises(ValueError, match="not an arena"):
            Arena(fd, size)
    for fd in (unsealed, reading, writing):
        os.close(fd)
    arena.close()


def test_nobody_can_change_an_arenas_size() -> None:
    arena = Arena.create(MB)
    for size in (0, 2 * MB):
        with pytest.raises(PermissionError):
            os.ftruncate(arena.fileno(), size)
    assert not os.get_inheritable(arena.fileno())
    arena.close()


def test_an_arena_takes_no_memory_until_it_is_reserved() -> None:
    arena = Arena.create(64 * MB)
    arena.reserve(0, MB)
    assert os.fstat(arena.fileno()).st_blocks * 512 == MB
    arena.close()


def test_a_machine_without_memory_is_an_error_and_not_a_signal() -> None:
    if int(Path("/proc/sys/vm/nr_hugepages").read_text()):
        pytest.skip("needs an empty pool of huge pages, which is the default")
    fd = os.memfd_create("full", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    os.ftruncate(fd, 1 << 21)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    arena = Arena.create(1 << 21)
    os.dup2(fd, arena.fileno(), inheritable=False)
    os.close(fd)
    with pytest.raises(ObjectStoreFullError, match="no memory for 4096 more bytes"):
        arena.reserve(0, 4096)
    arena.close()


def test_closing_gives_descriptor_and_mappings_back() -> None:
    arena = Arena.create(MB)
    fd = arena.fileno()
    gone = weakref.ref(arena)
    arena.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(ValueError, match="closed"):
        arena.fileno()
    del arena
    assert gone() is None


def test_a_heap_arena_has_no_descriptor() -> None:
    arena = HeapArena(mmap.PAGESIZE)
    with pytest.raises(ValueError, match="no descriptor"):
        arena.fileno()
    arena.close()
