"""Devices: which GPUs a lease has, and when an amount that is there fits on none of them."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raylite._machines.devices import Devices
from raylite._machines.leases import Grant, Leases, Request
from raylite._types.accelerators import Shares, identities
from raylite._types.keys import HolderKey, LeaseID
from raylite._types.resources import UNIT, Resources

HALF = UNIT // 2


def gpus(amount: float) -> Resources:
    return Resources.of(GPU=amount)


def numbers(shares: Shares, name: str = "GPU") -> list[int]:
    return [device for device, _ in dict(shares)[name]]


def test_whole_demands_have_devices_of_their_own() -> None:
    devices = Devices(gpus(4))
    assert numbers(devices.take(gpus(1))) == [0]
    assert numbers(devices.take(gpus(2))) == [1, 2]
    assert devices.lacking(gpus(2)) == ("GPU",)
    assert numbers(devices.take(gpus(1))) == [3]


def test_fractions_share_the_fullest_device_that_has_room() -> None:
    devices = Devices(gpus(3))
    one = devices.take(gpus(0.5))
    assert devices.take(gpus(0.5)) == one == (("GPU", ((0, HALF),)),)
    assert numbers(devices.take(gpus(0.6))) == [1]
    assert numbers(devices.take(gpus(0.3))) == [1]
    assert numbers(devices.take(gpus(0.3))) == [2]
    assert numbers(devices.take(gpus(0.7))) == [2]


def test_what_is_left_of_several_devices_is_not_enough_for_one_demand() -> None:
    devices = Devices(gpus(2))
    first, second = devices.take(gpus(0.6)), devices.take(gpus(0.6))
    assert numbers(first) != numbers(second)
    assert devices.lacking(gpus(0.6)) == ("GPU",)  # though 0.8 are free
    assert devices.lacking(gpus(0.4)) == ()
    devices.give_back(first)
    assert devices.take(gpus(1)) == (("GPU", ((0, UNIT),)),)


def test_other_accelerators_are_told_apart_too_and_plain_resources_are_not() -> None:
    devices = Devices(Resources.of(CPU=4, TPU=2, oven=3, GPU=1))
    shares = devices.take(Resources.of(CPU=1, TPU=1, oven=1, GPU=0.25))
    assert shares == (("GPU", ((0, UNIT // 4),)), ("TPU", ((0, UNIT),)))
    assert devices.take(Resources.of(CPU=1, oven=1)) == ()


def test_a_node_without_devices_has_none() -> None:
    devices = Devices(Resources.of(CPU=4, oven=3))
    assert not devices.are_any
    assert devices.lacking(gpus(1)) == ()  # the amount says that
    devices.check([], Resources.of(CPU=4))


def test_a_node_may_grow_and_shrink_under_its_loans() -> None:
    devices = Devices(gpus(1))
    one = devices.take(gpus(1))
    devices.resize(gpus(2))
    two = devices.take(gpus(1))
    assert numbers(two) == [1]
    devices.resize(gpus(1))
    assert devices.lacking(gpus(0.5)) == ("GPU",)
    devices.check([one, two], Resources.from_units({"GPU": -UNIT}, signed=True))
    devices.give_back(one)
    assert numbers(devices.take(gpus(1))) == [0]
    devices.give_back(two)
    devices.check([one], Resources())


def test_pinned_devices_are_out_of_reach() -> None:
    devices = Devices(gpus(2))
    for _ in range(2):
        devices.pin(devices.take(gpus(0.6)))
    assert not devices.are_in_reach(gpus(0.6))
    assert devices.are_in_reach(gpus(0.4))


def test_a_demand_that_fits_no_device_waits_and_holds_back_no_cpu_task() -> None:
    leases, holder = Leases(Resources.of(CPU=4, GPU=2)), HolderKey(b"driver")
    names = [LeaseID(b"%d" % n) for n in range(4)]

    def ask(number: int, **demand: float) -> int:
        effects = leases.request(Request(names[number], holder, Resources.of(**demand)))
        leases.check()
        return sum(isinstance(effect, Grant) for effect in effects)

    assert ask(0, GPU=0.6) == ask(1, GPU=0.6) == 1
    assert ask(2, CPU=1, GPU=0.6) == 0
    assert ask(3, CPU=1) == 1
    assert [numbers(leases.devices(name)) for name in names[:2]] == [[0], [1]]
    assert leases.devices(names[2]) == leases.devices(names[3]) == ()
    granted = leases.release(names[1])
    assert [effect.lease for effect in granted if isinstance(effect, Grant)] == [names[2]]
    assert numbers(leases.devices(names[2])) == [1]
    leases.check()


def test_what_never_comes_back_holds_back_nobody() -> None:
    leases, holder = Leases(gpus(2)), HolderKey(b"driver")
    for number in range(2):
        name = LeaseID(b"a%d" % number)
        leases.request(Request(name, holder, gpus(0.6), lasting=True))
    leases.request(Request(LeaseID(b"large"), holder, gpus(0.6), depth=1))
    effects = leases.request(Request(LeaseID(b"small"), holder, gpus(0.4)))
    assert [effect.lease for effect in effects if isinstance(effect, Grant)] == [b"small"]
    leases.check()


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, [0, 2]),
        ("4,5,6", ["4", "6"]),
        ("GPU-a,GPU-b", ["GPU-a", "GPU-b"]),  # a task's own; fewer than the node has
        ("", []),
    ],
)
def test_devices_have_the_names_that_the_node_was_told(
    visible: str | None, names: list[int] | list[str]
) -> None:
    assert identities([2, 0], visible) == names


AMOUNTS = [0.1, 0.25, 0.3, 0.5, 0.6, 0.9, 1, 2, 3]


class DevicesModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.devices = Devices(gpus(3))
        self.loans: list[Shares] = []

    @rule(amount=st.sampled_from(AMOUNTS))
    def take(self, amount: float) -> None:
        if self.devices.lacking(gpus(amount)):
            used = [0] * 3
            for shares in self.loans:
                for device, share in dict(shares)["GPU"]:
                    used[device] += share
            whole, rest = divmod(gpus(amount).units("GPU"), UNIT)
            rooms = sorted(UNIT - each for each in used)
            taken = rooms[: len(rooms) - whole] if whole else rooms
            assert rooms.count(UNIT) < whole or (rest and max(taken, default=0) < rest)
            return
        shares = self.devices.take(gpus(amount))
        assert sum(share for _, share in dict(shares)["GPU"]) == gpus(amount).units("GPU")
        assert len(set(numbers(shares))) == len(numbers(shares))
        self.loans.append(shares)

    @precondition(lambda self: self.loans)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        self.devices.give_back(self.loans.pop(data.draw(st.integers(0, len(self.loans) - 1))))

    @invariant()
    def the_books_agree(self) -> None:
        lent = sum(share for each in self.loans for _, share in dict(each)["GPU"])
        self.devices.check(self.loans, Resources.from_units({"GPU": 3 * UNIT - lent}))


TestDevicesModel = DevicesModel.TestCase
