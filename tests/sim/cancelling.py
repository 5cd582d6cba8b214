"""Programs that cancel what they have submitted, at any moment of its life."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from raylite._services.worker.objects import ObjectRef
from raylite._types.cancellation import CancelOutcome
from tests.sim.programs import Program
from tests.sim.scripts import Expected


class CancellingProgram(Program):
    """A program half of whose actions are to cancel something; every outcome has to be told."""

    async def run(self) -> None:
        self._told: list[asyncio.Future[None]] = []
        self._asked: set[bytes] = set()
        await super().run()
        await asyncio.gather(*self._told)

    def _actions(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        return *super()._actions(), *[self._cancel] * 10

    async def _cancel(self) -> None:
        """Submit some, and cancel some of those that are held, perhaps more than once."""
        draw = self._draw
        for _ in range(draw.randint(0, 3)):
            self._call(self._script(2), self._inputs(1))
        for _ in range(draw.randint(1, 3)):
            if self._chance(0.7):
                await asyncio.sleep(draw.choice((0.003, 0.03, 0.3)) * draw.random())
            held = [
                each for each in self._held if not (each[1].script.awaits or each[1].script.sets)
            ]
            for ref, expected in draw.sample(held, min(len(held), 2)):
                self._told.append(self._ask(ref, expected))
            if self._told and self._chance(0.3):
                await self._told[-1]

    def _ask(self, ref: ObjectRef[Any], expected: Expected) -> "asyncio.Future[None]":
        force, recursive = self._chance(0.3), self._chance(0.7)
        self._ledger.cancel(expected.script, recursive=recursive or force)
        task = bytes(ref._entry.id[:24])
        is_first = task not in self._asked
        self._asked.add(task)
        heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def hear(outcome: CancelOutcome) -> None:
            if is_first:
                self._ledger.came_of(task, outcome)
            heard.set_result(None)

        asked = self.driver.core.cancel(ref._entry, force=force, recursive=recursive)
        asked.add_done_callback(lambda asked: hear(asked.result()))
        return heard
