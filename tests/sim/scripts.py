"""What simulated tasks do and what must come of it, as values that are drawn from a seed."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pickle import PickleBuffer
from typing import Any

from raylite._services.worker.objects import ObjectRef

LARGE = 120 * 1024  # bytes: more than travels inside a message


class Wrong(AssertionError):
    """An invariant does not hold."""


class Planned(Exception):
    """What a task raises because its script says so."""


class Block:
    """Many bytes that follow from a number, read without a copy."""

    def __init__(self, number: int, data: memoryview | bytes) -> None:
        self.number, self.data = number, memoryview(data)

    @classmethod
    def of(cls, number: int) -> "Block":
        return cls(number, number.to_bytes(8, "little") * (LARGE // 8))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return Block, (self.number, PickleBuffer(self.data))

    def check(self) -> None:
        if bytes(self.data) != self.number.to_bytes(8, "little") * (LARGE // 8):
            raise Wrong(f"the bytes of block {self.number} changed under a live view")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a task returns."""

    label: int
    digest: int
    refs: tuple["ObjectRef[Any]", ...] = ()
    block: Block | None = None


@dataclass(frozen=True, slots=True)
class Script:
    """What one task does; `label` is its name in the ledger."""

    label: int
    seconds: float = 0.0
    large: bool = False
    puts: bool = False  # it returns a reference to what it put
    children: tuple["Script", ...] = ()
    manner: str = "get"  # what becomes of children: get, chain, return, drop
    crashes: int = 0  # the attempts that end their worker
    raises: bool = False
    retries: int = 3
    keeps: bool = False  # its worker goes on holding the references that it was given
    recalls: bool = False  # it reads what its worker still holds, and lets it go
    sets: str = ""
    awaits: str = ""
    spread: bool = False
    cpus: float = 1.0
    timeout: float | None = None

    @property
    def overlaps(self) -> bool:
        """Whether it is an `async def` task. The label says so, not a draw: those stay as they are."""
        return self.label // 8 % 3 == 1 and not self.awaits and not self.sets

    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"max_retries": self.retries}
        if self.label % 5 == 0:
            options["max_calls"] = 1 + self.label % 3
        if self.overlaps:
            options["max_concurrency"] = 3
        if self.spread:
            options["scheduling_strategy"] = "SPREAD"
        if self.cpus != 1.0:
            options["num_cpus"] = self.cpus
        if self.timeout is not None:
            options["timeout"] = self.timeout
        return options


@dataclass(frozen=True, slots=True)
class Expected:
    """What a reference stands for: the task's script and what it was given."""

    script: Script
    inputs: tuple["Expected", ...] = ()
    parent: "Expected | None" = None  # whose worker owns it, if no driver does

    @property
    def digest(self) -> int:
        return digest_of(self.script, [each.digest for each in self.inputs])

    def closure(self) -> "Iterator[Script]":
        """All the scripts on which the value depends."""
        yield from scripts_in(self.script)
        for each in self.inputs:
            yield from each.closure()
        if self.parent is not None:
            yield self.parent.script


def scripts_in(script: Script) -> Iterator[Script]:
    """Yield a script and those of all that it starts."""
    yield script
    for child in script.children:
        yield from scripts_in(child)


def digest_of(script: Script, inputs: list[int]) -> int:
    """The digest of a task's answer, as it must be."""
    known: list[int] = []
    for child in script.children:
        if script.manner == "get":
            known.append(digest_of(child, []))
        elif script.manner == "chain":
            known = [digest_of(child, known)]
    return zlib.crc32(repr((script.label, inputs, known)).encode())
