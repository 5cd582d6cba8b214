"""Strategies: label conditions, and nodes as people name them."""

import pytest

from raylite._types.resources import Resources
from raylite._types.strategies import (
    DoesNotExist,
    Exists,
    In,
    LabelOperator,
    Labels,
    NodeAffinity,
    NodeKey,
    NodeView,
    NotIn,
    Placement,
)


@pytest.mark.parametrize(
    ("operator", "accepted"),
    [
        (In(("a", "b")), {"a", "b"}),
        (NotIn(("a",)), {"b", "c", None}),
        (Exists(), {"a", "b", "c"}),
        (DoesNotExist(), {None}),
    ],
)
def test_an_operator_accepts(operator: LabelOperator, accepted: set[str | None]) -> None:
    assert {value for value in ("a", "b", "c", None) if operator.accepts(value)} == accepted


@pytest.mark.parametrize(
    ("text", "operator"),
    [
        ("a", In(("a",))),
        ("!a", NotIn(("a",))),
        ("in(a, b)", In(("a", "b"))),
        ("!in(a,b)", NotIn(("a", "b"))),
        ("", In(("",))),
        ("inner", In(("inner",))),
    ],
)
def test_a_selector_is_parsed(text: str, operator: LabelOperator) -> None:
    assert Labels.parse({"zone": text}) == Labels((("zone", operator),))


def test_every_condition_must_hold() -> None:
    labels = Labels.of({"zone": In(("x",)), "spot": DoesNotExist()})
    assert labels.match({"zone": "x"})
    assert not labels.match({"zone": "x", "spot": "yes"})
    assert not labels.match({})
    assert Labels().match({})
    assert not Labels()


def test_conditions_are_shown_as_they_are_written() -> None:
    selector = {"b": "!in(x,y)", "a": "v"}
    assert str(Labels.parse(selector)) == "a: v, b: !in(x,y)"
    assert str(Labels.of({"a": Exists(), "b": DoesNotExist()})) == "a: exists, b: does not exist"


def test_equal_wishes_are_one_placement() -> None:
    wishes = [
        Placement(Resources.of(CPU=1), NodeAffinity(NodeKey(b"n")), Labels.parse(selector))
        for selector in ({"a": "1", "b": "2"}, {"b": "2", "a": "1"})
    ]
    assert len(set(wishes)) == 1


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("10.0.0.7:4321", "10.0.0.7"),
        ("tcp:10.0.0.7:4321", "10.0.0.7"),
        ("tcp:[fd00::7]:80", "fd00::7"),
        ("tcp:10.0.0.7:4321;a0ff=unix:/tmp/s/raylet.sock", "10.0.0.7"),
        ("unix:/tmp/s/raylet.sock", "this machine"),
        ("raylet", "raylet"),
    ],
)
def test_a_host_is_what_people_call_an_address(address: str, host: str) -> None:
    nothing = Resources()
    assert NodeView(NodeKey(b"n"), 1, address, nothing, nothing).host == host
