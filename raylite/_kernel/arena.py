"""The arena: one run of shared memory that every process of a node maps.

It is a memfd, so it has no name, needs no clean-up and is gone with the last process that has it.
Who may use which bytes is decided elsewhere (`_machines/memory.py`); this module moves bytes in,
and shows them without copying.

How bytes get in was measured (400 MB from a numpy array; 2 cores, Linux 6.18, GB/s):

    pwrite or pwritev, recycled pages                               4.2 (and one writer at a time)
    memmove into a mapping, this process's first use of the pages   1.9
    the same after MADV_POPULATE_WRITE, which itself runs at 6.5    8.0
    the same, two threads                                          11-15
    pages nobody has used yet: reserve 4.7, then populate 2.5, then as above

so large buffers are copied by memmove, which ctypes calls without the GIL; page-table entries are
made in bulk before, once per process and page; and very large buffers are copied by two threads.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Self

from raylite.exceptions import ObjectStoreFullError

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_RESERVE_STEP = 64 << 20  # a signal undoes the whole call it interrupts
_MEMMOVE_FROM = 64 << 10  # below, the call costs more than holding the GIL
_TWO_THREADS_FROM = 64 << 20
_BLOCK = 64 << 10  # the grain of what is remembered as populated
_MADV_POPULATE_WRITE = 23  # Linux 5.14
_FULL = (errno.ENOSPC, errno.ENOMEM, errno.EFAULT)  # EFAULT: touching the page would be a SIGBUS

_libc = ctypes.CDLL(None, use_errno=True)
_madvise = _libc.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class _PyBuffer(ctypes.Structure):
    """CPython's `Py_buffer`: the only way to the address of a read-only buffer."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def _address(buffer: mmap.mmap | memoryview) -> int:
    """Where a contiguous buffer's bytes are; valid while the caller keeps the buffer."""
    info = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(buffer), ctypes.byref(info), 0)
    address: int = info.buf
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(info))
    return address


@dataclass(slots=True)
class _Mapping:
    """One process's mappings. They end with the last reference to this: an arena's or a view's."""

    writable: mmap.mmap
    readable: mmap.mmap
    capacity: int
    into: memoryview = field(init=False)
    base: int = field(init=False)
    read_base: int = field(init=False)
    exporter: type[ctypes.Array[ctypes.c_char]] = field(init=False)
    populated: bytearray = field(init=False)
    populated_by: int = field(init=False)

    def __post_init__(self) -> None:
        self.into = memoryview(self.writable)
        self.base = _address(self.writable)
        self.read_base = _address(self.readable)
        self.exporter = ctypes.c_char * self.capacity
        self._forget_populated()

    def populate(self, start: int, end: int) -> None:
        """Make the page-table entries of the whole blocks in a range, where this is yet to do."""
        if self.populated_by != os.getpid():
            self._forget_populated()  # a fork copies no page-table entries of shared memory
        block, last = -(-start // _BLOCK), end // _BLOCK
        while (block := self.populated.find(0, block, last)) >= 0:
            until = self.populated.find(1, block, last)
            until = last if until < 0 else until
            self.populate_exactly(block * _BLOCK, until * _BLOCK)
            self.populated[block:until] = b"\1" * (until - block)

    def populate_exactly(self, start: int, end: int) -> None:
        """Touch every page in a range. An old kernel cannot; writing will do it, slowly."""
        if _madvise(self.base + start, end - start, _MADV_POPULATE_WRITE) != 0:
            if (number := ctypes.get_errno()) in _FULL:
                raise _full(end - start, number)

    def copy(self, start: int, source: memoryview) -> None:
        """Copy bytes in, without the GIL."""
        self.populate(start, start + len(source))
        ctypes.memmove(self.base + start, _address(source), len(source))

    def _forget_populated(self) -> None:
        self.populated = bytearray(-(-self.capacity // _BLOCK))
        self.populated_by = os.getpid()


_Pins = dict[int, tuple[weakref.ref[ctypes.Array[ctypes.c_char]], _Mapping]]
_PINS: _Pins = {}
"""Every live view's root and the mapping under it: nothing is unmapped while something looks at it."""


class Arena:
    """Shared memory as one process sees it: `write` copies in, `view` looks without copying.

    Threads may use it at once, on different extents. A forked child may go on using it.

    Args:
        fd: The arena's descriptor, inherited or received; the arena closes it.
        capacity: Its size in bytes.

    Raises:
        ValueError: The descriptor is not an arena of this size.
    """

    def __init__(self, fd: int, capacity: int) -> None:
        if os.fstat(fd).st_size != capacity or not _is_sealed(fd):
            raise ValueError(f"descriptor {fd} is not an arena of {capacity} bytes")
        self._fd, self._capacity = fd, capacity
        readable = mmap.mmap(fd, capacity, prot=mmap.PROT_READ)
        self._mapping: _Mapping | None = _Mapping(mmap.mmap(fd, capacity), readable, capacity)

    @classmethod
    def create(cls, capacity: int) -> Self:
        """Make a new arena. Its pages take no memory until they are reserved.

        Nobody can change its size any more, so no mapped page can disappear (SIGBUS).
        """
        fd = os.memfd_create("raylite", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, capacity)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            return cls(fd, capacity)
        except BaseException:
            os.close(fd)
            raise

    @property
    def capacity(self) -> int:
        """Its size in bytes."""
        return self._capacity

    def fileno(self) -> int:
        """The descriptor to hand to another process; it is closed on exec."""
        self._live()
        return self._fd

    def reserve(self, offset: int, size: int) -> None:
        """Make sure that these bytes have memory behind them; takes a while, so use a thread.

        Writing to bytes that were never reserved can kill the process (SIGBUS) when the machine
        is out of memory. What was reserved stays reserved; reserving it again is cheap.

        Raises:
            ObjectStoreFullError: The machine has no memory for them.
        """
        self._check(offset, size)
        for start in range(offset, offset + size, _RESERVE_STEP):
            length = min(_RESERVE_STEP, offset + size - start)
            try:
                os.posix_fallocate(self._fd, start, length)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                raise _full(size, error.errno) from error

    def warm(self, offset: int, size: int) -> None:
        """Reserve, and clear the pages too: the first writer then finds them ready.

        Raises:
            ObjectStoreFullError: The machine has no memory for them.
        """
        self.reserve(offset, size)
        self._live().populate_exactly(offset - offset % mmap.PAGESIZE, offset + size)

    def write(self, offset: int, buffers: Iterable[bytes | bytearray | memoryview]) -> int:
        """Copy buffers in, one after the other; return how many bytes that was.

        The GIL is released while large buffers are copied. Interrupted (KeyboardInterrupt), it
        has stopped writing when it raises.

        Raises:
            ValueError: They reach beyond the arena's end. What fitted has been written.
        """
        mapping, position = self._live(), offset
        for buffer in buffers:
            source = buffer if isinstance(buffer, memoryview) else memoryview(buffer)
            size = source.nbytes
            self._check(position, size)
            if not size:
                continue
            if source.ndim != 1 or source.format != "B" or not source.c_contiguous:
                source = source.cast("B")  # TypeError if the bytes do not lie together
            if size < _MEMMOVE_FROM:
                mapping.into[position : position + size] = source
            elif size < _TWO_THREADS_FROM:
                mapping.copy(position, source)
            else:
                _copy_by_two(mapping, position, source)
            position += size
        return position - offset

    def view(self, offset: int, size: int, on_release: Callable[[], object]) -> memoryview:
        """Look at bytes without copying them. Writing to the view raises TypeError.

        Args:
            offset: Where they begin.
            size: How many there are.
            on_release: Called once, when the last thing that looks at these bytes has died: the
                view, its slices, arrays made from it. That may be in any thread, inside the
                garbage collector or at interpreter exit, so it must do next to nothing:
                ``deque.append`` is right; a lock, a log line or an await is wrong. A forked
                child inherits the parent's views and calls its own copy of this.
        """
        self._check(offset, size)
        mapping = self._live()
        # A ctypes array can be weakly referenced, unlike a memoryview, and every buffer made from
        # it keeps it alive. It spans the arena because a new array type costs 11 us.
        root = mapping.exporter.from_address(mapping.read_base)

        def released(pin: object, pins: _Pins = _PINS) -> None:
            pins.pop(id(pin), None)
            on_release()

        pin = weakref.ref(root, released)
        _PINS[id(pin)] = (pin, mapping)
        return memoryview(root).cast("B")[offset : offset + size].toreadonly()

    def slot(self, offset: int, size: int) -> memoryview:
        """Return these bytes for writing in place: a few that processes share, not an object."""
        self._check(offset, size)
        return self._live().into[offset : offset + size]

    def close(self) -> None:
        """Let go of the memory; views that are still alive keep it mapped. May be repeated."""
        if self._mapping is not None:
            self._mapping = None
            if self._fd >= 0:
                os.close(self._fd)

    def _live(self) -> _Mapping:
        if self._mapping is None:
            raise ValueError("this arena was closed")
        return self._mapping

    def _check(self, offset: int, size: int) -> None:
        self._live()
        if offset < 0 or size < 0 or offset + size > self._capacity:
            raise ValueError(
                f"bytes {offset} to {offset + size} are not in an arena of {self._capacity}"
            )


class HeapArena(Arena):
    """An arena without a descriptor, for threads of one process and for simulation."""

    def __init__(self, capacity: int) -> None:
        self._fd, self._capacity = -1, capacity
        memory = mmap.mmap(-1, capacity)
        self._mapping = _Mapping(memory, memory, capacity)

    @classmethod
    def create(cls, capacity: int) -> Self:
        """Make a new one."""
        return cls(capacity)

    def fileno(self) -> int:
        """There is none: a `ValueError`, as for a closed file."""
        raise ValueError("a HeapArena has no descriptor; it cannot be handed to another process")

    def reserve(self, offset: int, size: int) -> None:
        """Check the range; anonymous memory is the machine's business."""
        self._check(offset, size)


def _copy_by_two(mapping: _Mapping, start: int, source: memoryview) -> None:
    """Copy halves in two threads: one core cannot fill the memory's bandwidth."""
    middle = len(source) // 2 // _BLOCK * _BLOCK
    failures: list[Exception] = []
    wanted = True

    def copy_rest() -> None:
        try:
            if wanted:
                mapping.copy(start + middle, source[middle:])
        except Exception as error:
            failures.append(error)

    helper = threading.Thread(target=copy_rest, name="raylite-copy", daemon=True)
    interrupt: BaseException | None = None
    try:
        try:
            helper.start()
        except RuntimeError:  # no more threads, or the interpreter is ending
            copy_rest()
        mapping.copy(start, source[:middle])
    except BaseException:
        wanted = False  # for a helper that is only just starting, and not yet alive
        raise
    finally:
        # Whoever interrupts us frees the extent: nobody may be writing to it any more.
        while helper.is_alive():
            try:
                helper.join()
            except BaseException as error:
                interrupt = error
    if interrupt is not None:
        raise interrupt
    for failure in failures:
        raise failure


def _is_sealed(fd: int) -> bool:
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:
        return False


def _full(size: int, number: int) -> ObjectStoreFullError:
    return ObjectStoreFullError(
        f"the machine has no memory for {size} more bytes of objects ({os.strerror(number)}); "
        "free memory, or start the node with a smaller object store"
    )
