"""Admission: whole requests, in order of priority and age, within the budget."""

from raylite._machines.admission import Admission, Admit, Effect, Priority, Suspend
from raylite._types.keys import ObjectKey

A, B, C, D = (ObjectKey(name) for name in (b"a", b"b", b"c", b"d"))
GET, WAIT, ARGUMENT = Priority


def admission(budget: int, **requests: tuple[Priority, list[ObjectKey]]) -> Admission:
    """Return one with these requests, of objects of ten bytes each that are located."""
    made = Admission(budget)
    for name, (priority, objects) in requests.items():
        made.add(name, objects, priority)

    for object_id in dict.fromkeys(each for _, objects in requests.values() for each in objects):
        made.located(object_id, 10)

    return made


def admitted(effects: list[Effect]) -> list[ObjectKey]:
    return [effect.object_id for effect in effects if isinstance(effect, Admit)]


def suspended(effects: list[Effect]) -> list[ObjectKey]:
    return [effect.object_id for effect in effects if isinstance(effect, Suspend)]


def test_requests_are_admitted_in_order_of_priority_then_age() -> None:
    requests = admission(20, one=(ARGUMENT, [A]), two=(ARGUMENT, [B]), three=(GET, [C]))
    assert admitted(requests.advance()) == [C, A]
    requests.done(A)
    assert admitted(requests.advance()) == [B]
    requests.check()


def test_the_objects_of_a_request_are_admitted_together_or_not_at_all() -> None:
    requests = admission(30, one=(ARGUMENT, [A, B]), two=(ARGUMENT, [C, D]))
    assert admitted(requests.advance()) == [A, B]
    assert requests.done(A) == []
    assert admitted(requests.advance()) == [C, D]


def test_a_large_request_is_not_overtaken_by_small_ones() -> None:
    requests = admission(20, one=(ARGUMENT, [A]), two=(ARGUMENT, [B, C]), three=(ARGUMENT, [D]))
    assert admitted(requests.advance()) == [A]
    assert requests.done(A) == ["one"]
    assert admitted(requests.advance()) == [B, C]


def test_one_request_is_admitted_though_it_be_too_large() -> None:
    requests = admission(5, one=(ARGUMENT, [A, B]), two=(ARGUMENT, [C]))
    assert admitted(requests.advance()) == [A, B]
    requests.check()


def test_lower_priorities_give_way_the_youngest_first() -> None:
    requests = admission(20, one=(ARGUMENT, [A]), two=(ARGUMENT, [B]))
    requests.advance()
    requests.add("three", [C], GET)
    requests.located(C, 10)
    effects = requests.advance()
    assert (suspended(effects), admitted(effects)) == ([B], [C])
    requests.check()


def test_nobody_gives_way_if_that_would_not_be_enough() -> None:
    requests = admission(20, one=(GET, [A]), two=(ARGUMENT, [B]))
    requests.advance()
    requests.add("three", [C, D], GET)
    requests.located(C, 10)
    requests.located(D, 10)
    assert requests.advance() == []


def test_equal_priorities_do_not_give_way() -> None:
    requests = admission(10, one=(WAIT, [A]), two=(WAIT, [B]))
    assert admitted(requests.advance()) == [A]
    assert requests.advance() == []


def test_what_another_active_request_needs_is_not_suspended() -> None:
    requests = admission(20, one=(ARGUMENT, [A]), two=(ARGUMENT, [A, B]))
    requests.advance()
    requests.add("three", [B], GET)
    assert requests.advance() == []
    requests.add("four", [C], GET)
    requests.located(C, 10)
    effects = requests.advance()
    assert (suspended(effects), admitted(effects)) == ([A], [C])


def test_an_object_whose_size_is_unknown_holds_nobody_back() -> None:
    requests = admission(20, two=(ARGUMENT, [B]))
    requests.add("one", [A, B], GET)
    assert admitted(requests.advance()) == [B]
    requests.located(A, 10)
    assert admitted(requests.advance()) == [A]


def test_a_request_of_which_an_object_is_nowhere_any_more_waits_again() -> None:
    requests = admission(10, one=(ARGUMENT, [A]), two=(ARGUMENT, [B]))
    requests.advance()
    requests.unlocated(B)
    requests.unlocated(A)  # admitted, so it stays
    requests.done(A)
    assert requests.advance() == []
    requests.located(B, 10)
    assert admitted(requests.advance()) == [B]


def test_removing_a_request_forgets_what_it_alone_needed() -> None:
    requests = admission(20, one=(ARGUMENT, [A, B]), two=(ARGUMENT, [B]))
    requests.advance()
    assert requests.remove("one") == [A]
    assert requests.advance() == []
    assert requests.remove("two") == [B]
    requests.check()


def test_a_smaller_budget_suspends_the_last_and_never_all() -> None:
    requests = admission(20, one=(GET, [A]), two=(ARGUMENT, [B]))
    requests.advance()
    requests.set_budget(5)
    assert requests.advance() == [Suspend(B)]
    requests.set_budget(20)
    assert requests.advance() == [Admit(B)]


def test_an_object_that_turns_out_larger_counts_as_such() -> None:
    requests = admission(20, one=(ARGUMENT, [A]), two=(ARGUMENT, [B]))
    requests.advance()
    requests.located(A, 15)
    assert requests.advance() == [Suspend(B)]
    requests.check()
