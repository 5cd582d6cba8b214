"""Resources are exact, compare by value, and refuse what Ray refuses."""

import os
import pickle
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given, strategies as st

from raylite._types.resources import UNIT, Resources, amount_text

NAMES = ("CPU", "GPU", "memory", "slot")
amounts = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 5 * UNIT)).map(
    Resources.from_units
)


def test_ten_tenths_make_one() -> None:
    tenth = Resources.of(CPU=0.1)
    assert sum([tenth] * 10, Resources()) == Resources.of(CPU=1)


def test_a_resource_at_zero_is_absent() -> None:
    left = Resources.of(CPU=1, GPU=0.5) - Resources.of(CPU=1)
    assert left.to_floats() == {"GPU": 0.5}
    assert left == Resources.of(GPU=0.5, CPU=0)
    assert list(left) == ["GPU"]
    assert "CPU" not in left


def test_adding_to_a_debt_of_the_same_size_leaves_nothing() -> None:
    assert not (Resources() - Resources.of(CPU=1)) + Resources.of(CPU=1)


def test_what_is_available_can_be_negative() -> None:
    available = Resources.of(GPU=1) - Resources.of(CPU=1)
    assert available.to_floats() == {"GPU": 1.0, "CPU": -1.0}
    assert available.left() == {"GPU": 1.0}  # as users see it


def test_a_demand_fits_when_nothing_it_needs_is_short() -> None:
    free = Resources.of(CPU=2, slot=1) - Resources.of(memory=10)
    assert Resources.of(CPU=2).fits(free)
    assert Resources().fits(free)
    assert not Resources.of(CPU=3).fits(free)
    assert Resources.of(CPU=3, GPU=1, slot=1).lacking(free) == ("CPU", "GPU")


def test_one_resource_can_be_taken_out() -> None:
    demand = Resources.of(CPU=1, GPU=2)
    assert demand.without("CPU") == Resources.of(GPU=2)
    assert demand.only("CPU") == Resources.of(CPU=1)
    assert demand.without("slot") is demand
    assert demand.only("slot") == Resources()
    assert demand.uses({"GPU", "slot"})
    assert not demand.uses({"slot"})


def test_bytes_are_rounded_down_to_whole_ones() -> None:
    demand = Resources.of(memory=1000.9, object_store_memory=0.5)
    assert demand.to_floats() == {"memory": 1000.0}


@pytest.mark.parametrize("amount", [0.1 + 0.2, 0.57, 0.0001, 1 / 8, 12345.6789, 3])
def test_amounts_of_four_decimals_are_exact(amount: float) -> None:
    assert Resources.of(CPU=amount).to_floats() == {"CPU": round(amount, 4)}


@pytest.mark.parametrize("amount", [1 / 3, 0.00005, 1e-12, 1.00001, 0.00009999])
def test_finer_amounts_are_refused(amount: float) -> None:
    with pytest.raises(
        ValueError,
        match=r"^The precision of the fractional quantity of resource num_gpus cannot go beyond 0.0001$",
    ):
        Resources.of(GPU=amount)


def test_finer_amounts_can_be_rounded_down_unless_nothing_is_left() -> None:
    third = Resources.from_mapping({"GPU": 1 / 3}, exact=False)
    assert third.to_units() == {"GPU": 3333}
    assert (third + third + third).fits(Resources.of(GPU=1))
    with pytest.raises(ValueError, match=r"cannot go beyond 0\.0001"):
        Resources.from_mapping({"GPU": 0.00005}, exact=False)


@pytest.mark.parametrize(
    ("name", "amount", "message"),
    [
        ("CPU", -1, "The quantity of resource num_cpus cannot be negative"),
        ("slot", -0.5, "The quantity of resource slot cannot be negative"),
        ("memory", -5, "The quantity of resource memory cannot be negative"),
        ("slot", float("inf"), "The quantity of resource slot must be a finite number"),
        ("memory", float("nan"), "The quantity of resource memory must be a finite number"),
        ("slot", 10**18, "The quantity of resource slot is too large"),
    ],
)
def test_impossible_amounts_are_refused(name: str, amount: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Resources.from_mapping({name: amount})


def test_negative_units_are_refused_unless_expected() -> None:
    with pytest.raises(ValueError, match="resource CPU cannot be negative"):
        Resources.from_units({"CPU": -1})

    assert Resources.from_units({"CPU": -1, "GPU": 0}, signed=True).to_units() == {"CPU": -1}


def test_the_order_of_names_does_not_matter() -> None:
    one, other = Resources.of(CPU=1, GPU=2), Resources.of(GPU=2, CPU=1)
    assert one == other
    assert hash(one) == hash(other)
    assert {one: "shape"}[other] == "shape"
    assert one != {"CPU": 1, "GPU": 2}


def test_a_pickle_leaves_the_hash_behind() -> None:
    demand = Resources.of(CPU=1)
    hash(demand)
    program = (
        "import pickle, sys; d = pickle.load(sys.stdin.buffer); assert {d} == {type(d).of(CPU=1)}"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(demand), env=environment, check=True
    )


def test_it_reads_as_people_write_it() -> None:
    assert repr(Resources.of(CPU=1, GPU=0.5)) == "Resources(CPU=1, GPU=0.5)"
    assert amount_text(15_000) == "1.5"
    assert Resources.of(CPU=1.5).units("CPU") == 15_000


@given(amounts, amounts)
def test_addition_and_subtraction_are_inverse(one: Resources, other: Resources) -> None:
    assert one + other - other == one
    assert one.fits(one + other)
    assert one.fits(other) == (not one.lacking(other))
    assert one.only("CPU") + one.without("CPU") == one


@given(amounts)
def test_messages_carry_it_unchanged(resources: Resources) -> None:
    packed = msgspec.msgpack.encode(resources.to_units())
    unpacked = Resources.from_units(msgspec.msgpack.decode(packed, type=dict[str, int]))
    assert unpacked == resources == pickle.loads(pickle.dumps(resources))
    assert hash(unpacked) == hash(resources)


def test_amounts_are_equal_or_not_and_never_both() -> None:
    one, same, other = Resources.of(CPU=1, GPU=2), Resources.of(GPU=2, CPU=1), Resources.of(CPU=2)
    assert one == same
    assert not one != same  # noqa: SIM202 # it is the operator that is tested
    assert one != other
    assert not one == other  # noqa: SIM201
