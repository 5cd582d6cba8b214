"""`BlockedThread`: how a thread that waits for values is woken."""

from typing import Any

from raylite._services.worker.objects import BlockedThread


class Value:
    def __init__(self, *, is_error: bool = False) -> None:
        self.is_error = is_error


def test_a_task_has_its_cpu_back_before_it_goes_on_and_once() -> None:
    waiter = BlockedThread(2, raises=True)
    seen: list[bool] = []
    waiter.on_woken = lambda: seen.append(waiter.lock.locked())
    value: Any = Value()
    waiter.ready(value)
    assert not seen
    assert not waiter.is_woken
    waiter.ready(value)
    assert seen == [True]  # still asleep
    assert waiter.lock.acquire(blocking=False)
    waiter.ready(Value(is_error=True))  # type: ignore[arg-type]
    assert seen == [True]
    assert waiter.lock.locked()


def test_the_first_error_wakes_and_others_do_not_again() -> None:
    waiter = BlockedThread(3, raises=True)
    seen: list[None] = []
    waiter.on_woken = lambda: seen.append(None)
    for _ in range(2):
        waiter.ready(Value(is_error=True))  # type: ignore[arg-type]
    assert waiter.is_woken
    assert seen == [None]


def test_who_gives_up_was_not_woken_by_a_value() -> None:
    waiter = BlockedThread(1, raises=False)
    waiter.give_up()
    assert not waiter.is_woken
    assert waiter.lock.acquire(blocking=False)
