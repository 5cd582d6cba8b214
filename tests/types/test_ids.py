"""Ids: what is in them, and how they compare, print and travel."""

import pickle
from collections.abc import Callable

import cloudpickle
import pytest
from hypothesis import given, strategies as st

from raylite._types.ids import (
    ActorClassID,
    ActorID,
    BaseID,
    ClusterID,
    FunctionID,
    JobID,
    NodeID,
    ObjectID,
    PlacementGroupID,
    TaskID,
    UniqueID,
    WorkerID,
)

SIZES: dict[type[BaseID], int] = {
    JobID: 4,
    ActorID: 16,
    TaskID: 24,
    ObjectID: 28,
    PlacementGroupID: 18,
    UniqueID: 28,
    NodeID: 28,
    WorkerID: 28,
    FunctionID: 28,
    ActorClassID: 28,
    ClusterID: 28,
}
every_class = pytest.mark.parametrize("cls", SIZES, ids=lambda cls: cls.__name__)


def ones(count: int) -> bytes:
    """A stand-in for a random source."""
    return b"\x01" * count


@every_class
def test_each_id_has_its_size(cls: type[BaseID]) -> None:
    assert cls.size() == SIZES[cls]
    assert len(cls.from_random().binary()) == SIZES[cls]


@every_class
def test_nil_is_all_ones(cls: type[BaseID]) -> None:
    assert cls.nil().binary() == b"\xff" * cls.size()
    assert cls.nil().is_nil()
    assert not cls.from_random(ones).is_nil()


@every_class
def test_a_wrong_length_is_a_value_error(cls: type[BaseID]) -> None:
    with pytest.raises(ValueError, match=f"^ID string needs to have length {cls.size()}, got 2$"):
        cls(b"ab")


@every_class
def test_only_bytes_make_an_id(cls: type[BaseID]) -> None:
    with pytest.raises(TypeError, match=r"^Unsupported type: <class 'str'>, expected bytes$"):
        cls("a" * cls.size())  # type: ignore[arg-type]


@every_class
def test_hex_goes_there_and_back(cls: type[BaseID]) -> None:
    some = cls.from_random()
    assert cls.from_hex(some.hex()) == some
    assert cls.from_hex(some.hex().encode()) == some
    assert cls.from_binary(some.binary()) == some


@pytest.mark.parametrize("text", ["ab", "zz" * 4, ""])
def test_hex_of_something_else_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        JobID.from_hex(text)


@every_class
@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps], ids=["pickle", "cloudpickle"])
def test_ids_are_pickled(cls: type[BaseID], dumps: Callable[[object], bytes]) -> None:
    some = cls.from_random()
    copy = pickle.loads(dumps(some))
    assert copy == some
    assert type(copy) is cls


@every_class
def test_repr_names_the_class_and_the_digits(cls: type[BaseID]) -> None:
    assert repr(cls.from_random(ones)) == f"{cls.__name__}({'01' * cls.size()})"
    assert str(cls.from_random(ones)) == repr(cls.from_random(ones))


def test_the_random_source_can_be_given() -> None:
    assert NodeID.from_random(ones) == NodeID.from_random(ones)
    assert NodeID.from_random() != NodeID.from_random()


def test_ids_of_two_classes_are_never_equal() -> None:
    assert NodeID.nil() != WorkerID.nil()
    assert NodeID.nil() != UniqueID.nil()
    assert NodeID.nil() != b"\xff" * 28
    assert len({NodeID.nil(), NodeID.nil(), WorkerID.nil()}) == 2


@given(st.binary(min_size=4, max_size=4), st.binary(min_size=4, max_size=4))
def test_ids_are_ordered_as_their_bytes(left: bytes, right: bytes) -> None:
    one, other = JobID(left), JobID(right)
    assert (one < other, one <= other) == (left < right, left <= right)
    assert (one > other, one >= other) == (left > right, left >= right)
    assert (one == other) == (left == right)
    assert (hash(one) == hash(other)) or one != other


@pytest.mark.parametrize("operator", ["__lt__", "__le__", "__gt__", "__ge__"])
def test_ids_of_two_classes_have_no_order(operator: str) -> None:
    assert getattr(NodeID.nil(), operator)(WorkerID.nil()) is NotImplemented


def test_job_ids_are_little_endian_numbers() -> None:
    assert JobID.from_int(258).binary() == b"\x02\x01\x00\x00"
    assert JobID.from_int(258).int() == 258


@pytest.mark.parametrize("number", [-1, 2**32])
def test_a_job_number_out_of_range_is_a_value_error(number: int) -> None:
    with pytest.raises(ValueError, match=rf"2\*\*32 - 1, not {number}"):
        JobID.from_int(number)


def test_smaller_ids_are_parts_of_larger_ones() -> None:
    job = JobID.from_int(7)
    actor = ActorID.of(job, ones)
    task = TaskID.for_actor_task(actor, ones)
    object_id = ObjectID.of(task, 3)
    assert actor.binary() == b"\x01" * 12 + b"\x07\x00\x00\x00"
    assert actor.job_id == task.job_id() == object_id.job_id() == job
    assert task.actor_id() == actor
    assert object_id.task_id() == task
    assert object_id.index() == 3
    assert object_id.binary()[24:] == b"\x03\x00\x00\x00"


def test_a_task_outside_actors_holds_its_job() -> None:
    job = JobID.from_int(7)
    task = TaskID.for_normal_task(job, ones)
    assert task.hex() == "01" * 8 + "ff" * 12 + "07000000"
    assert TaskID.for_driver_task(job).hex() == "ff" * 20 + "07000000"


def test_an_actors_constructor_is_a_task_of_the_actor() -> None:
    actor = ActorID.of(JobID.from_int(7))
    assert TaskID.for_actor_creation_task(actor).binary() == b"\xff" * 8 + actor.binary()


def test_a_placement_group_holds_its_job() -> None:
    assert PlacementGroupID.of(JobID.from_int(7), ones).hex() == "01" * 14 + "07000000"
