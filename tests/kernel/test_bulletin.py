"""A bulletin: all are told the same at the same moments, and what was said makes the pause."""

import asyncio

from raylite._kernel.bulletin import EGRESS, GATHER, Bulletin
from raylite._kernel.codec import Encoded
from raylite._kernel.seams import now
from raylite.testing.loop import SimLoop

LONGEST = 1.0


class Numbers(Bulletin):
    """Tells numbers, as text; counts how often it had to say something."""

    def __init__(self) -> None:
        super().__init__(self._all, self._changes, LONGEST)
        self.all: list[str] = []
        self.new: list[str] = []
        self.made = 0

    def add(self, number: int) -> None:
        self.all.append(str(number))
        self.new.append(str(number))
        self.changed()

    def _all(self) -> bytes:
        return " ".join(self.all).encode()

    def _changes(self) -> bytes:
        self.made += 1
        new, self.new = self.new, []
        return " ".join(new).encode()


def test_what_changes_in_a_pause_makes_one_message_for_all() -> None:
    async def main() -> None:
        numbers = Numbers()
        numbers.add(1)
        running = asyncio.ensure_future(numbers.run())
        await asyncio.sleep(1)
        heard: list[list[tuple[float, Encoded]]] = [[], [], []]
        began = now()

        async def listen(to: list[tuple[float, Encoded]]) -> None:
            async for message in numbers.messages():
                to += [(now() - began, message)]

        listening = [asyncio.ensure_future(listen(to)) for to in heard]
        await asyncio.sleep(0.001)
        for number in (2, 3, 4):
            numbers.add(number)
            await asyncio.sleep(0.001)
        late: list[tuple[float, Encoded]] = []
        listening.append(asyncio.ensure_future(listen(late)))
        await asyncio.sleep(1)
        assert [message.body for _, message in heard[0]] == [b"1", b"2", b"3 4"]
        assert [round(moment, 3) for moment, _ in heard[0]] == [0.0, 0.001, 0.011]
        for other in heard[1:]:
            assert other == heard[0]
            pairs = zip(other, heard[0], strict=True)
            assert all(mine[1] is theirs[1] for mine, theirs in pairs)  # not a copy
        assert [(round(moment, 3), message.body) for moment, message in late] == [
            (0.011, b"1 2 3 4")  # nothing twice: not before the message that the others get
        ]
        assert numbers.made == 3
        for task in [running, *listening]:
            task.cancel()

    SimLoop().run(main())


def test_a_change_that_says_nothing_is_told_to_nobody() -> None:
    async def main() -> None:
        numbers = Numbers()
        running = asyncio.ensure_future(numbers.run())

        messages = numbers.messages()
        assert (await anext(messages)).body == b""
        waiting = asyncio.ensure_future(anext(messages))
        numbers.changed()
        await asyncio.sleep(1)
        assert not waiting.done()
        numbers.add(7)
        assert (await waiting).body == b"7"
        await messages.aclose()
        running.cancel()

    SimLoop().run(main())


def test_the_pause_grows_with_what_is_said_up_to_the_longest() -> None:
    async def main() -> None:
        numbers = Numbers()
        assert numbers.pause(100) == GATHER
        assert numbers.pause(10_000_000) == 10_000_000 / EGRESS
        assert numbers.pause(10_000_000_000) == LONGEST

    SimLoop().run(main())
