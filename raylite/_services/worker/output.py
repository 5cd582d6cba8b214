"""The Output service: what a job's workers print, wherever they are, as its driver shows it."""

from collections.abc import Sequence
from typing import Protocol

from raylite._kernel.alarm import Alarm
from raylite._kernel.link import Link
from raylite._kernel.seams import now
from raylite._kernel.service import Service, handles
from raylite._machines.deduplicator import Deduplicator, Printed
from raylite._protocol import worker
from raylite._wire import hot


class Screen(Protocol):
    """Where output is shown, in the order of the calls."""

    async def show(self, printed: Sequence[Printed]) -> None:
        """Return when there is room for more."""
        ...


class OutputService(Service, serves=(worker.Output,)):
    """Shows what raylets bring, like lines of several processes once.

    A raylet is answered when its lines are on the screen, so it brings no more than that takes.

    Args:
        screen: None wants nothing shown, and has raylets bring nothing.
        deduplicator: None shows every line.
    """

    def __init__(self, screen: Screen | None, deduplicator: Deduplicator | None) -> None:
        self._screen, self._deduplicator = screen, deduplicator
        self._alarm = Alarm(self._expire)
        self.raylets: dict[Link, None] = {}  # those that have brought something

    @handles(worker.Output.show)
    async def show(self, output: hot.Output) -> hot.Shown:
        if self._screen is None:
            return hot.Shown(wants_more=False)
        if self.caller not in self.raylets:
            self.raylets[self.caller] = None
            self.caller.on_end(lambda link: self.raylets.pop(link, None))
        shown: list[Printed] = []
        for each in output.printed:
            if each.dropped:
                shown.append(_dropped(output.ip, each.dropped))
                continue
            printed = Printed(output.ip, each.pid, each.name, each.is_stderr, each.lines)
            if self._deduplicator is None:
                shown.append(printed)
            else:
                shown += self._deduplicator.printed(printed, now())
        self._set_alarm()
        await self._screen.show(shown)
        return hot.Shown(wants_more=True)

    async def flush(self) -> None:
        """Show what is held back."""
        self._alarm.cancel()
        if self._screen is not None and self._deduplicator is not None:
            await self._screen.show(self._deduplicator.flush())

    async def stopped(self) -> None:
        await self.flush()

    def _set_alarm(self) -> None:
        if self._deduplicator is not None:
            self._alarm.set(self._deduplicator.next_wakeup())

    def _expire(self) -> None:
        if self._screen is not None and self._deduplicator is not None and not self.scope.is_closed:
            if shown := self._deduplicator.expire(now()):
                self.spawn(self._screen.show(shown), "show what was held back")
            self._set_alarm()


def _dropped(ip: str, lines: int) -> Printed:
    text = (
        f"{lines} lines of output are left out here, for they came faster than this program takes "
        "them; they are in the log files of that node's session"
    )
    return Printed(ip, 0, "raylet", True, (text,))
