"""Drivers' programs: what they submit, and what they make of the results."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from raylite._services.worker.objects import ObjectRef
from raylite.exceptions import LocalRayletDiedError
from raylite.testing.node import SimDriver
from tests.sim.bodies import body_of
from tests.sim.ledger import Ledger
from tests.sim.scripts import Answer, Block, Expected, Script

EVERY = 5  # of so many tasks, one has a timeout
TIMEOUTS = (0.0, 0.004, 0.02, 0.1, 0.5)  # seconds


class Plan(Protocol):
    """What a program has to know of its seed."""

    seed: int
    cpus: int
    faults: list[str]


class Program:
    """One driver's program: what it submits and what it makes of the results."""

    def __init__(self, plan: Plan, number: int, driver: SimDriver, ledger: Ledger) -> None:
        self.driver = driver
        self._ledger = ledger
        self._draw = random.Random(f"program {number} of {plan.seed}")
        self._plan = plan
        self._labels = number * 1000
        self._held: list[tuple[ObjectRef[Any], Expected]] = []
        self._read: list[tuple[ObjectRef[Any], Expected]] = []  # to be read again
        self.seconds = 0.0
        self.is_done = False
        self._is_flag_used = number > 0 or plan.cpus < 2

    async def run(self) -> None:
        draw = self._draw
        for _ in range(draw.randint(2, 5)):
            await draw.choice(self._actions())()
        while self._held:
            await self._check(*self._held.pop(draw.randrange(len(self._held))))
            if self._read:
                await self._check_put(*self._read.pop(0), again=False)
        self._read.clear()
        self.is_done = True

    def _actions(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        return (
            self._submit, self._submit, self._submit, self._fan, self._put, self._get,
            self._drop, self._rest, self._outlive, self._wait_for_later,
        )  # fmt: skip

    async def _submit(self) -> None:
        self._call(self._script(2), self._inputs(2))

    async def _fan(self) -> None:
        """Many short tasks, all given the same, and one that is given all of theirs."""
        shared = self._inputs(1)
        seconds = self._draw.choice((0.0, 0.001, 0.02))
        fan = [
            self._call(Script(self._label(), seconds, large=self._chance(0.1)), shared)
            for _ in range(self._draw.randint(2, 6))
        ]
        if self._chance(0.5):
            self._call(Script(self._label(), retries=5), fan)

    async def _put(self) -> None:
        script = Script(self._label(), large=self._chance(0.5))
        expected = Expected(script)
        block = Block.of(expected.digest) if script.large else None
        answer = Answer(script.label, expected.digest, (), block)
        try:
            self._held.append((await self.driver.put(answer), expected))
        except LocalRayletDiedError as error:
            self._ledger.judge(expected, error, self.driver.node.name)

    async def _get(self) -> None:
        if self._held:
            await self._check(*self._draw.choice(self._held))

    async def _drop(self) -> None:
        if self._held:
            self._held.pop(self._draw.randrange(len(self._held)))

    async def _rest(self) -> None:
        await asyncio.sleep(self._draw.choice((0.001, 0.05, 0.05, 0.3, 1.2)))

    async def _outlive(self) -> None:
        """Read what a worker owns, have its room taken by others, and read it again."""
        for _ in range(2):
            self._call(Script(self._label(), puts=True), [])
            await self._check(*self._held.pop())
        await asyncio.sleep(0.1)
        self._call(Script(self._label(), large=True), [])
        await self._check(*self._held[-1])
        while self._read:
            await self._check_put(*self._read.pop(), again=False)

    async def _wait_for_later(self) -> None:
        """A task that holds its worker until a later one has run; only one at a time."""
        if self._is_flag_used:
            return
        self._is_flag_used = True
        for _ in range(2):
            self._call(Script(self._label(), 0.0001), [])
        await self._check(*self._held[-1])
        self._call(Script(self._label(), awaits="flag", retries=50), [])
        for _ in range(3):
            self._call(Script(self._label(), 0.0001, sets="flag", retries=50), [])

    def _call(
        self, script: Script, inputs: list[tuple[ObjectRef[Any], Expected]]
    ) -> tuple[ObjectRef[Any], Expected]:
        given: list[Any] = [ref for ref, _ in inputs]
        if given and self._chance(0.3):
            given = [given]  # inside a list they arrive as references
        expected = Expected(script, tuple(each for _, each in inputs))
        ref = self.driver.submit(body_of(script), script, *given, **script.options())
        self._held.append((ref, expected))
        return self._held[-1]

    async def _check(self, ref: ObjectRef[Any], expected: Expected) -> None:
        try:
            (answer,) = await self.driver.get([ref])
        except Exception as error:
            self._ledger.judge(expected, error, self.driver.node.name)
            error.__traceback__ = None
            return
        if (answer.label, answer.digest) != (expected.script.label, expected.digest):
            self._ledger.wrong(f"{expected.script.label} gave {answer}, not {expected.digest}")
        if answer.block is not None:
            answer.block.check()
        children = expected.script.children if expected.script.manner == "return" else ()
        for inner, child in zip(answer.refs, children, strict=False):
            await self._check(inner, Expected(child, (), expected))
        if expected.script.puts:
            await self._check_put(answer.refs[-1], expected)

    async def _check_put(
        self, ref: ObjectRef[Any], expected: Expected, *, again: bool = True
    ) -> None:
        try:
            (stored,) = await self.driver.get([ref])
        except Exception as error:
            self._ledger.judge(expected, error, self.driver.node.name)
            error.__traceback__ = None
            return
        if stored.digest != expected.script.label:
            self._ledger.wrong(f"what {expected.script.label} put has become {stored}")
        stored.block.check()
        if again and len(self._read) < 10:
            self._read.append((ref, expected))

    # ---- drawing -------------------------------------------------------------------------

    def _script(self, depth: int) -> Script:
        draw = self._draw
        is_faulty = "bodies" in self._plan.faults
        count = draw.choice((0, 1, 2, 3)) if depth and self._chance(0.4) else 0
        children = tuple(self._script(depth - 1) for _ in range(count))
        seconds = draw.choice((0.0, 0.0, 0.001, 0.01, 0.1, 0.4))
        self.seconds += seconds
        label = self._label()
        return Script(
            label,
            seconds,
            large=self._chance(0.2),
            puts=self._chance(0.2),
            children=children,
            manner=draw.choice(("get", "get", "chain", "return", "drop")),
            crashes=draw.choice((1, 2)) if is_faulty and self._chance(0.1) else 0,
            raises=is_faulty and self._chance(0.08),
            retries=draw.choice((0, 1, 3, 3)),
            keeps=self._chance(0.2),
            recalls=self._chance(0.2),
            timeout=TIMEOUTS[label // EVERY % len(TIMEOUTS)] if label % EVERY == 3 else None,
        )

    def _inputs(self, most: int) -> list[tuple[ObjectRef[Any], Expected]]:
        count = min(len(self._held), self._draw.randint(0, most))
        return self._draw.sample(self._held, count)

    def _label(self) -> int:
        self._labels += 1
        return self._labels

    def _chance(self, likely: float) -> bool:
        return self._draw.random() < likely
