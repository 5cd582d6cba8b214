"""A mailbox: two lanes, slices, and a high-water mark."""

import asyncio

import pytest

from raylite._kernel.mailbox import HIGH_WATER, SLICE, Mailbox

pytestmark = pytest.mark.asyncio


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_messages_wait_until_the_mailbox_is_opened() -> None:
    handled: list[int] = []
    mailbox = Mailbox(handled.append)
    mailbox.put(1, 10, bulk=False)
    await settle()
    assert (handled, len(mailbox), mailbox.is_open) == ([], 1, False)
    mailbox.open()
    await settle()
    assert (handled, len(mailbox), mailbox.is_open) == ([1], 0, True)


async def test_control_is_handled_before_bulk_and_each_in_order() -> None:
    handled: list[int] = []
    mailbox = Mailbox(handled.append)
    for number in range(6):
        mailbox.put(number, 1, bulk=number % 2 == 0)
    mailbox.open()
    await settle()
    assert handled == [1, 3, 5, 0, 2, 4]


async def test_control_that_comes_while_bulk_is_handled_is_next() -> None:
    handled: list[str] = []

    def handle(message: str) -> None:
        handled.append(message)
        if message == "bulk 0":
            mailbox.put("control", 1, bulk=False)

    mailbox = Mailbox(handle)
    for number in range(3):
        mailbox.put(f"bulk {number}", 1, bulk=True)
    mailbox.open()
    await settle()
    assert handled == ["bulk 0", "control", "bulk 1", "bulk 2"]


async def test_a_flood_lets_the_loop_turn_between_slices() -> None:
    handled: list[int] = []
    turns: list[int] = []
    mailbox = Mailbox(handled.append)
    for number in range(3 * SLICE):
        mailbox.put(number, 1, bulk=True)
    mailbox.open()
    for _ in range(4):
        await asyncio.sleep(0)
        turns.append(len(handled))
    assert turns == [SLICE, 2 * SLICE, 3 * SLICE, 3 * SLICE]


async def test_what_waits_is_handled_at_once_when_asked() -> None:
    handled: list[int] = []

    def handle(message: int) -> None:
        mailbox.drain()  # from within: a handler is not interrupted by the next
        handled.append(message)

    mailbox = Mailbox(handle)
    mailbox.put(1, 1, bulk=False)
    mailbox.drain()
    assert handled == []  # not open
    mailbox.open()
    mailbox.put(2, 1, bulk=False)
    mailbox.drain()
    assert handled == [1, 2]
    await settle()


async def test_a_full_mailbox_says_when_it_has_room_again() -> None:
    heard: list[int] = []
    mailbox = Mailbox[int](lambda message: None)
    for number in range(5):
        mailbox.put(number, HIGH_WATER // 4, bulk=True)
    assert mailbox.full
    mailbox.on_room(lambda: heard.append(len(mailbox)))
    mailbox.open()
    await settle()
    mailbox.put(1, 1, bulk=True)
    await settle()
    assert heard == [0], "called back once only"


async def test_many_small_messages_fill_a_mailbox_too() -> None:
    mailbox = Mailbox[int](lambda message: None)
    count = 0
    while not mailbox.full:
        mailbox.put(count, 0, bulk=True)
        count += 1
    assert count <= HIGH_WATER // 50


async def test_a_closed_mailbox_returns_what_it_held_and_takes_no_more() -> None:
    handled: list[int] = []
    heard: list[str] = []
    mailbox = Mailbox(handled.append)
    mailbox.put(1, HIGH_WATER * 2, bulk=True)
    mailbox.put(2, 1, bulk=False)
    mailbox.on_room(lambda: heard.append("room"))
    mailbox.open()
    assert mailbox.close() == [2, 1]
    mailbox.put(3, 1, bulk=False)
    await settle()
    assert (handled, len(mailbox), heard) == ([], 0, ["room"])
    assert not mailbox.is_open


async def test_a_handler_that_raises_does_not_stop_the_rest(lost_exceptions: list[str]) -> None:
    handled: list[int] = []

    def handle(message: int) -> None:
        if message == 1:
            raise ZeroDivisionError
        handled.append(message)

    mailbox = Mailbox(handle)
    for number in (1, 2):
        mailbox.put(number, 1, bulk=False)
    mailbox.open()
    await settle()
    assert handled == [2]
    assert "ZeroDivisionError" in lost_exceptions[0]
    lost_exceptions.clear()
