"""Values to bytes and back."""

import copyreg
import fractions
import pickle
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from types import ModuleType
from typing import Any

import cloudpickle
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from raylite._wire.pickling import (
    ALIGNMENT,
    Pickled,
    clear_serializers,
    deregister_serializer,
    describe_unpicklable,
    dumps,
    dumps_function,
    loads,
    loads_function,
    note_contained,
    register_serializer,
)


def round_trip(value: Any) -> Any:
    return loads(dumps(value).to_bytes())


class Ref:
    """As a reference does it: noted, and pickled by its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        if not note_contained(self):
            raise RuntimeError("out of band")
        return Ref, (self.name,)


class Raises:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        raise self.error


class Locked:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.size = 3


class FailsToLoad:
    def __reduce__(self) -> tuple[Any, ...]:
        return _fail_to_load, ()


def _fail_to_load() -> None:
    raise KeyError("from the user's own code")


atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary()
    | st.fractions()
    | st.datetimes()
)
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.builds(OrderedDict, st.dictionaries(st.text(), inner))
        | st.frozensets(st.integers() | st.text())
        | st.binary().map(bytearray)
    ),
)


@given(values)
def test_values_come_back_equal_and_of_the_same_type(value: Any) -> None:
    pickled = dumps(value)
    blob = pickled.to_bytes()
    assert len(blob) == pickled.size
    for loaded in (loads(blob), loads(memoryview(blob + b"what follows is ignored"))):
        assert loaded == value
        assert type(loaded) is type(value)


@given(
    hnp.arrays(
        dtype=hnp.scalar_dtypes(),
        shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40),
    ),
    st.sampled_from(["C", "F", "strided"]),
)
def test_arrays_come_back_equal_and_of_the_same_order(array: Any, order: str) -> None:
    if order == "strided":
        array = array[..., ::2] if array.ndim else array
    else:
        array = np.asarray(array, order=order)  # type: ignore[call-overload]
    loaded = round_trip({"array": array})["array"]
    np.testing.assert_array_equal(loaded, array)
    plain = pickle.loads(pickle.dumps(array, 5))  # numpy forgets the byte order of some dates
    assert (loaded.dtype, loaded.shape) == (plain.dtype, array.shape)
    if order != "strided" and array.size:
        assert loaded.flags.f_contiguous == array.flags.f_contiguous


@given(st.lists(st.integers(0, 300), max_size=20))
def test_the_size_and_the_layout_agree_and_buffers_are_aligned(lengths: list[int]) -> None:
    pickled = dumps([np.full(length, 7, np.uint8) for length in lengths])
    blob = pickled.to_bytes()
    assert pickled.size == len(blob) == sum(len(piece) for piece in pickled.layout())
    loaded = loads(blob)
    start = np.frombuffer(blob, np.uint8).ctypes.data
    assert [len(array) for array in loaded] == lengths
    assert all((a.ctypes.data - start) % ALIGNMENT == 0 for a in loaded if len(a))


def test_large_buffers_begin_in_the_middle_of_a_page() -> None:
    arrays = [np.full(length, 7, np.uint8) for length in (3, 1 << 20, 5, (2 << 20) + 3, 1 << 20)]
    blob = dumps(arrays).to_bytes()
    start = np.frombuffer(blob, np.uint8).ctypes.data
    loaded = loads(blob)
    places = [(array.ctypes.data - start) % 4096 for array in loaded]
    assert [places[1], places[3], places[4]] == [2048] * 3  # see `_padding`
    assert all(np.array_equal(one, other) for one, other in zip(arrays, loaded, strict=True))


@pytest.mark.parametrize("length", [3, 1_000_000])
def test_arrays_are_neither_copied_nor_writable(length: int) -> None:
    array = np.arange(length)
    pickled = dumps(array)
    assert np.shares_memory(np.frombuffer(pickled.buffers[0], np.int64), array)
    blob = pickled.to_bytes()
    loaded = loads(blob)
    assert np.shares_memory(loaded, np.frombuffer(blob, np.uint8))
    assert not loaded.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        loaded[0] = 1


def test_arrays_cannot_be_written_to_through_a_writable_blob() -> None:
    blob = memoryview(bytearray(dumps(np.arange(5)).to_bytes()))
    assert not loads(blob).flags.writeable


def test_arrays_of_objects_come_back() -> None:
    array = np.array([1, "two", None, [3]], dtype=object)
    assert list(round_trip(array)) == list(array)


def test_an_array_used_twice_comes_back_as_one() -> None:
    array = np.arange(100)
    first, second = round_trip([array, array])
    assert first is second


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("size", [0, 10, 16 << 10, 1 << 20])
def test_bytes_of_any_size_keep_their_type(kind: type, size: int) -> None:
    value = kind(b"x" * size)
    loaded = round_trip(value)
    assert type(loaded) is kind
    assert loaded == value


def test_large_bytes_are_not_copied_into_a_pickle() -> None:
    value = bytes(1 << 20)
    pickled = dumps(value)
    assert isinstance(pickled.data, memoryview)
    assert pickled.data.obj is value
    assert pickled.size == len(value) + 16


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_memoryviews_come_back_as_bytes(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    assert round_trip(memoryview(data)) == data
    assert round_trip(memoryview(data)[::2]) == data[::2]
    assert round_trip(np.arange(size).data) == np.arange(size).tobytes()
    assert round_trip([memoryview(data)]) == [data]


class Bytes(bytes):
    pass


def test_a_subclass_of_bytes_stays_one() -> None:
    loaded = round_trip(Bytes(1 << 20))
    assert type(loaded) is Bytes


@pytest.mark.parametrize(
    "value", [None, 5, "text", (1, "a"), [[1], {"k": (2.5, b"b")}], ((1,), {})]
)
def test_small_builtin_values_are_a_plain_pickle_and_nothing_else(value: object) -> None:
    assert dumps(value).layout() == [pickle.dumps(value, 5)]


def test_lambdas_and_local_functions_travel_by_value() -> None:
    factor = 3

    def times(number: int) -> int:
        return number * factor

    by_name = {"times": times, "add": lambda a, b: a + b}
    loaded = round_trip(by_name)
    assert loaded["times"](5) == 15
    assert loaded["add"](1, 2) == 3


def test_instances_of_local_classes_travel_with_their_class() -> None:
    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

        def doubled(self) -> int:
            return 2 * self.x

    points = round_trip([Point(2), Point(3)])
    assert [point.doubled() for point in points] == [4, 6]
    assert round_trip(Point(2).doubled)() == 4


def in_main(source: str, name: str) -> Any:
    """Define something as a script does: in a module called __main__, which workers lack."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(source, namespace)
    return namespace[name]


def test_what_a_script_defines_travels_by_value() -> None:
    point = in_main("class Point:\n    def __init__(self, x): self.x = x", "Point")
    blob = dumps({"point": point(4), "array": np.arange(1000)}).to_bytes()
    assert b"__main__" in blob
    assert loads(blob)["point"].x == 4
    assert round_trip(in_main("def double(x): return 2 * x", "double"))(4) == 8


def test_what_can_be_imported_travels_by_name() -> None:
    blob = dumps([Fraction, OrderedDict, pytest.raises, Fraction(1, 2)]).to_bytes()
    assert len(blob) < 200
    assert loads(blob)[:3] == [Fraction, OrderedDict, pytest.raises]


def test_modules_registered_by_value_travel_by_value() -> None:
    by_name = dumps(Fraction).size
    cloudpickle.register_pickle_by_value(fractions)
    try:
        by_value = dumps(Fraction).size
    finally:
        cloudpickle.unregister_pickle_by_value(fractions)
    assert by_value > 10 * by_name
    assert dumps(Fraction).size == by_name


def test_arrays_beside_a_lambda_are_still_not_copied() -> None:
    array = np.arange(1000)
    pickled = dumps((lambda: 1, array))
    assert len(pickled.buffers) == 1
    assert np.shares_memory(np.frombuffer(pickled.buffers[0], np.int64), array)


def test_a_module_is_pickled_by_name() -> None:
    assert round_trip([pickle])[0] is pickle
    assert isinstance(round_trip(pickle), ModuleType)


def test_references_in_a_value_are_collected_once_each() -> None:
    first, second = Ref("a"), Ref("b")
    pickled = dumps([first, {"x": (second, first)}])
    assert pickled.contained == (first, second)
    assert [ref.name for ref in loads(pickled.to_bytes())[:1]] == ["a"]


def test_references_are_collected_once_when_cloudpickle_starts_over() -> None:
    ref = Ref("a")
    pickled = dumps([ref, np.arange(9), lambda: 1])
    assert pickled.contained == (ref,)
    assert len(pickled.buffers) == 1


def test_a_reference_pickled_out_of_band_is_told_so() -> None:
    with pytest.raises(RuntimeError, match="out of band"):
        pickle.dumps(Ref("a"))
    dumps([Ref("b")])
    assert not note_contained(Ref("c")), "nothing is collecting any more"


def test_a_failed_dumps_stops_collecting() -> None:
    with pytest.raises(ZeroDivisionError):
        dumps([Ref("a"), Raises(ZeroDivisionError())])
    assert not note_contained(Ref("b"))


def test_another_thread_collects_for_itself() -> None:
    noted: list[bool] = []

    class Elsewhere:
        def __reduce__(self) -> tuple[Any, ...]:
            thread = threading.Thread(target=lambda: noted.append(note_contained(self)))
            thread.start()
            thread.join()
            return dict, ()

    assert dumps(Elsewhere()).contained == ()
    assert noted == [False]


def test_dumps_within_dumps_collects_its_own_references() -> None:
    inner: list[Pickled] = []

    class Nesting:
        def __reduce__(self) -> tuple[Any, ...]:
            inner[:] = [dumps([Ref("inner")])]
            return loads, (inner[0].to_bytes(),)

    pickled = dumps([Ref("before"), Nesting(), Ref("after")])
    assert [ref.name for ref in pickled.contained] == ["before", "after"]  # type: ignore[attr-defined]
    assert [ref.name for ref in inner[0].contained] == ["inner"]  # type: ignore[attr-defined]
    assert [type(part) for part in loads(pickled.to_bytes())] == [Ref, list, Ref]


def test_functions_travel_with_what_they_capture() -> None:
    ref, factor = Ref("captured"), 3

    def times(number: int) -> tuple[int, str]:
        return number * factor, ref.name

    contained: list[object] = []
    blob = dumps_function(times, contained)
    assert contained == [ref]
    assert loads_function(blob)(5) == (15, "captured")
    assert not note_contained(ref)


def test_references_in_a_function_count_for_the_value_being_pickled() -> None:
    ref = Ref("captured")

    class Remote:
        def __reduce__(self) -> tuple[Any, ...]:
            return loads_function, (dumps_function(lambda: ref.name),)

    pickled = dumps(Remote())
    assert pickled.contained == (ref,)
    assert loads(pickled.to_bytes())() == "captured"


def test_a_function_that_cannot_be_pickled_is_a_type_error() -> None:
    lock = threading.Lock()
    with pytest.raises(TypeError, match="lock"):
        dumps_function(lambda: lock)
    with pytest.raises(TypeError, match="not a member"):
        dumps_function(_captures(Raises(pickle.PicklingError("not a member"))))


def _captures(value: object) -> Callable[[], object]:
    return lambda: value


def test_what_cannot_be_pickled_is_a_type_error() -> None:
    for value in (
        threading.Lock(),
        [Locked()],
        (n for n in "ab"),
        Raises(pickle.PicklingError("x")),
    ):
        with pytest.raises(TypeError):
            dumps(value)


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), ValueError("mine"), OSError("mine")])
def test_what_a_reduce_raises_comes_through(error: Exception) -> None:
    with pytest.raises(type(error), match="mine") as caught:
        dumps([Raises(error)])
    assert caught.value is error


def test_a_value_nested_too_deeply_is_a_type_error() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    try:
        with pytest.raises(TypeError, match="deep"):
            dumps(value)
    finally:
        while value:  # taking it apart by recursion would be as deep
            value = value.pop()


def test_the_report_names_the_member_that_cannot_be_pickled() -> None:
    report = describe_unpicklable({"good": 1, "bad": Locked()})
    assert report.splitlines() == [
        "value: dict: cannot pickle '_thread.lock' object",
        "  value['bad']: Locked: cannot pickle '_thread.lock' object",
        "    value['bad'].lock: lock: cannot pickle '_thread.lock' object",
    ]


def test_the_report_names_what_a_function_captured() -> None:
    lock = threading.Lock()

    def locked(_: object = lock) -> object:
        return lock, THE_LOCK

    report = describe_unpicklable(locked, "the function")
    assert "the function: captured lock: lock" in report
    assert "the function: global THE_LOCK: lock" in describe_unpicklable(
        lambda: THE_LOCK, "the function"
    )
    assert "the function: default 0: lock" in describe_unpicklable(
        in_main("def f(lock): return lambda x=lock: x", "f")(lock), "the function"
    )


THE_LOCK = threading.Lock()


def test_the_report_survives_cycles_many_culprits_and_cells_not_yet_assigned() -> None:
    cycle: list[Any] = [threading.Lock() for _ in range(100)]
    cycle.append(cycle)
    assert len(describe_unpicklable(cycle).splitlines()) == 6

    def unassigned() -> object:
        return later, THE_LOCK

    assert "THE_LOCK" in describe_unpicklable(unassigned)
    later = 1
    assert unassigned()


def test_the_report_on_a_good_value_says_so() -> None:
    assert describe_unpicklable(5) == "value: can be pickled"


class Connection:
    """Something that cannot be pickled without help."""

    def __init__(self, address: str) -> None:
        self.address, self.lock = address, threading.Lock()


def test_a_registered_serializer_makes_a_class_picklable_until_it_is_deregistered() -> None:
    register_serializer(
        Connection, serializer=lambda c: c.address, deserializer=lambda a: Connection(a)
    )
    try:
        assert round_trip(Connection("here")).address == "here"
        assert round_trip([Connection("there"), np.arange(3)])[0].address == "there"
    finally:
        deregister_serializer(Connection)
    deregister_serializer(Connection)
    with pytest.raises(TypeError):
        dumps(Connection("here"))


def test_clearing_forgets_all_serializers() -> None:
    register_serializer(Connection, serializer=repr, deserializer=str)
    assert isinstance(round_trip(Connection("a")), str)
    clear_serializers()
    with pytest.raises(TypeError):
        dumps(Connection("here"))


def test_reducers_registered_with_copyreg_are_used() -> None:
    copyreg.pickle(Connection, lambda c: (Connection, (c.address,)))
    try:
        assert round_trip(Connection("here")).address == "here"
    finally:
        del copyreg.dispatch_table[Connection]


BLOBS = {
    "plain": dumps(list(range(300))).to_bytes(),
    "framed": dumps([np.arange(100), np.arange(5)]).to_bytes(),
    "bytes": dumps(bytes(20_000)).to_bytes(),
    "bytearray": dumps(bytearray(20_000)).to_bytes(),
}


@pytest.mark.parametrize("kind", BLOBS)
def test_a_truncated_blob_is_refused(kind: str) -> None:
    blob = BLOBS[kind]
    for size in {0, 1, 2, 8, 15, 16, 17, 40, 100, len(blob) // 2, len(blob) - 1}:
        with pytest.raises((ValueError, pickle.UnpicklingError)):
            loads(blob[:size])


@pytest.mark.parametrize(
    "blob",
    [
        b"\x07" + bytes(40),
        b"\x02\0\0\0\1\0\0\0" + bytes(40),
        b"\x01\0\0\0" + b"\xff" * 12 + bytes(100),
        b"\x01\0\0\0\1\0\0\0\1\0\0\0\0\0\0\0" + b"\xff" * 8 + b".",
        b"\x80\x05garbage",
        b"\x80\x05\x97.",
        b"\x80\x09N.",
        b"\x80",
        BLOBS["framed"].replace(b"\x97", b"\x98"),
    ],
)
def test_a_damaged_blob_is_refused(blob: bytes) -> None:
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        loads(blob)


def test_what_loading_raises_in_the_users_code_comes_through() -> None:
    blob = dumps(FailsToLoad()).to_bytes()
    with pytest.raises(KeyError, match="own code"):
        loads(blob)


def test_a_loaded_array_keeps_its_blob_alive_and_nothing_else_does() -> None:
    blob = np.frombuffer(dumps(np.arange(100)).to_bytes(), np.uint8).copy()
    gone = weakref.ref(blob)
    loaded = loads(blob.data)
    del blob
    assert gone() is not None
    assert loaded[99] == 99
    del loaded
    assert gone() is None
