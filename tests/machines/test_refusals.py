"""Refusals: a node asks less and less often, tells its user once, and gives up in time."""

from math import inf

from hypothesis import given, strategies as st

from raylite._machines.refusals import LAST_PAUSE, PATIENCE, GiveUp, Refusals, Tell


def asked(refusals: Refusals, seconds: int) -> list[int]:
    """The seconds at which a node that looks each second asks, and is refused, until it gives up."""
    times = []
    for at in range(seconds):
        if refusals.may_ask(at):
            times.append(at)
            effects = refusals.refused(at)
            refusals.check()
            assert effects == ([Tell(refusals._patience)] if at == 0 else []) or at == PATIENCE
            if any(isinstance(effect, GiveUp) for effect in effects):
                break
    return times


def test_a_node_asks_less_and_less_often_and_gives_up_after_a_minute() -> None:
    assert asked(Refusals(), 1000) == [0, 1, 3, 7, 15, 23, 31, 39, 47, 55, 60]


def test_a_node_that_has_nowhere_else_to_go_asks_for_ever() -> None:
    assert len(asked(Refusals(inf), 1000)) == 4 + (1000 - 7) // LAST_PAUSE


def test_who_was_let_in_is_told_anew_and_has_all_its_time() -> None:
    refusals = Refusals()
    asked(refusals, 50)
    refusals.accepted()
    assert refusals.may_ask(51)
    assert refusals.refused(51) == [Tell(PATIENCE)]
    assert refusals.refused(51 + PATIENCE - 1) == []
    assert refusals.refused(51 + PATIENCE) == [GiveUp(PATIENCE)]


@given(st.lists(st.tuples(st.booleans(), st.floats(0.01, 100))))
def test_whenever_it_asks_it_tells_once_and_gives_up_only_when_its_time_is_over(
    steps: list[tuple[bool, float]],
) -> None:
    refusals, at = Refusals(), 0.0
    since: float | None = None
    for is_refused, passes in steps:
        at += passes
        if not refusals.may_ask(at):
            assert since is not None
            continue
        if not is_refused:
            refusals.accepted()
            since = None
            continue
        effects = refusals.refused(at)
        if since is None:
            since = at
            assert effects == [Tell(PATIENCE)]
        elif at - since >= PATIENCE:
            assert effects == [GiveUp(at - since)]
            return
        else:
            assert effects == []
        refusals.check()
