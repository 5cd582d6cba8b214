"""The hosts of a simulation: by whose clock they run, and whether they stand still.

A host is a process, and belongs to a machine, see `raylite.testing.sim`.
"""

import asyncio
import random
from collections.abc import Callable
from contextvars import Token
from functools import lru_cache, partial

from raylite.testing.loop import PROCESS, Clock, Process, SimLoop


@lru_cache(4096)
def machine_of(host: str) -> str:
    """Return the machine that a host runs on; also of an address, which begins with its host."""
    return host.partition("/")[0].partition(".")[0]


class Hosts:
    """Whose callbacks run, by which clock, and whose do not.

    Args:
        seed: Decides every stream of randomness.
    """

    def __init__(self, seed: int) -> None:
        self.clocks: dict[str, Clock] = {}  # of machines whose clock is not the world's
        self._seed = seed
        self._processes: dict[str, Process | None] = {}  # by host
        self._frozen: dict[str, list[Callable[[], object]]] = {}  # what waits until they go on
        self._paused: dict[str, float] = {}  # machines, and since when

    def random(self, name: str) -> random.Random:
        """The stream of randomness with this name; the same for the same seed."""
        return random.Random(f"{self._seed}/{name}")

    def at(self, host: str) -> "_At":
        """Do something as a host does: by the clock of its machine, and while it does not stand still."""
        return _At(self.process(host))

    def process(self, host: str) -> Process | None:
        """The process that a host's callbacks belong to; none between all machines."""
        try:
            return self._processes[host]
        except KeyError:
            process = Process(self.clocks.get(machine_of(host))) if host else None
            self._processes[host] = process
            if self._paused:
                self._stop(host)
            return process

    def freeze(self, host: str) -> None:
        """Let a host stand still, as SIGSTOP does.

        None of its callbacks runs. Its machine goes on: connections to it are taken, and what it is sent
        is kept. To freeze it twice is to freeze it once.
        """
        process = self.process(host)
        if host not in self._frozen and process is not None:
            self._frozen[host] = []
            _running_loop().freeze(process)

    def thaw(self, host: str) -> None:
        """Let a host go on: all that came meanwhile is there at once, and its timers are late.

        One whose machine is paused goes on with that.
        """
        if self.is_paused(host):
            return
        waiting, process = self._frozen.pop(host, None), self.process(host)
        if waiting is not None and process is not None:
            loop = _running_loop()
            timers_first = self.random(f"thaw {host} {loop.moment}").random() < 0.5
            loop.thaw(process, timers_first=timers_first)
            for action in waiting:
                action()

    def pause(self, *machines: str) -> None:
        """Let machines stand still with all that runs there, as virtual ones do.

        Nothing answers for them, and what they are sent is sent again when they go on. Nothing there may be
        killed meanwhile but by `World.power_off`.

        Args:
            machines: Parts of one: they have one clock.
        """
        self._paused |= dict.fromkeys(machines, _running_loop().moment)
        for host in list(self._processes):
            self._stop(host)

    def resume(self, *machines: str, is_clock_stopped: bool = False) -> None:
        """Let machines that are paused go on.

        Args:
            machines: As `pause` was given them.
            is_clock_stopped: Their clock stood as well; else it jumps, and their timers are late.
        """
        since = [self._paused.pop(machine) for machine in machines if machine in self._paused]
        hosts = [host for host in self._frozen if machine_of(host) in machines]
        if since and is_clock_stopped:
            loop = _running_loop()
            seconds = loop.moment - since[0]
            self.clocks[machines[0]].stood(seconds)
            loop.postpone([each for host in hosts if (each := self.process(host))], seconds)
        if since:
            self.random(f"resume {machines} {since}").shuffle(hosts)
            for host in hosts:
                self.thaw(host)

    def is_paused(self, host: str) -> bool:
        """Whether a host's machine stands still as a whole."""
        return bool(self._paused) and machine_of(host) in self._paused

    def _stop(self, host: str) -> None:
        if host and self.is_paused(host):
            self.freeze(host)

    @property
    def frozen(self) -> list[str]:
        """The hosts that stand still."""
        return list(self._frozen)

    def is_frozen(self, host: str) -> bool:
        """Whether a host stands still."""
        return host in self._frozen

    def when_it_goes_on(self, host: str, action: Callable[[], object]) -> None:
        """Do something as soon as a host that stands still is thawed, or killed."""
        self._frozen[host].append(action)

    async def wait_thawed(self, host: str) -> None:
        """Wait until a host does not stand still."""
        while host in self._frozen:
            thawed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.when_it_goes_on(host, partial(_resolve, thawed))
            await thawed


class _At:
    """A block of somebody's doing. Every packet enters several, so it is no generator."""

    __slots__ = ("_process", "_token")

    def __init__(self, process: Process | None) -> None:
        self._process = process

    def __enter__(self) -> None:
        self._token: Token[Process | None] = PROCESS.set(self._process)

    def __exit__(self, *_: object) -> None:
        PROCESS.reset(self._token)


def _running_loop() -> SimLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimLoop), "only a simulated loop can let a process stand still"
    return loop


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
