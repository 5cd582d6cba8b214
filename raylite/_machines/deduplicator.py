"""Deduplicator: like lines of several processes are shown once, and then counted.

A hundred workers that start print the same warning a hundred times. The first is shown at once; what
others say alike within the window is counted, and told when the window is over: by the line itself
if it was one, by ``[repeated 3x across cluster]`` behind the latest if they were more.

As Ray has it: lines are alike if they differ in words with digits only, and what one process
alone repeats is never held back.
"""

import re
from collections.abc import Iterator
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

WINDOW: Final = 5.0
PATTERNS: Final = 10_000  # kept at a time; beyond, the oldest is told early
LONGEST: Final = 1_000  # characters of a line that may be held back: what is longer is no message

_has_digit = re.compile(r"\d").search

_HINT: Final = (
    " (like lines of several processes are shown once; RAYLITE_DEDUP_LOGS=0 shows them all)"
)


class Printed(Struct, frozen=True):
    """Lines that one process printed."""

    ip: str
    pid: int
    #: What it was running.
    name: str
    is_stderr: bool
    lines: tuple[str, ...]


class _Pattern(Struct):
    since: float
    source: tuple[str, int]
    #: Others than `source` have printed it as well.
    is_shared: bool = False
    #: Not shown since, and the latest of them.
    count: int = 0
    latest: Printed | None = None


_Key = tuple[bool, str]


class Deduplicator:
    """What of many processes' output is shown now, and what of it later.

    Args:
        window: Seconds in which like lines are gathered.
        allow: Lines in which this is found are always shown.
        skip: Lines in which this is found, and not the other, are never shown.
    """

    def __init__(
        self,
        window: float = WINDOW,
        allow: "re.Pattern[str] | None" = None,
        skip: "re.Pattern[str] | None" = None,
    ) -> None:
        self._window, self._allow, self._skip = window, allow, skip
        # By the time at which their window began, and so in that order.
        self._patterns: dict[_Key, _Pattern] = {}
        self._has_hinted = False

    def printed(self, printed: Printed, now: float) -> list[Printed]:
        """Return what is to be shown, now that this has come."""
        shown = self.expire(now)
        lines = tuple(line for line in printed.lines if self._is_shown(printed, line, now))
        if lines:
            shown.append(replace(printed, lines=lines))
        while len(self._patterns) > PATTERNS:
            shown += self._tell(next(iter(self._patterns)), now)
        return shown

    def expire(self, now: float) -> list[Printed]:
        """Return what was held back for its whole window."""
        shown: list[Printed] = []
        while (at := self.next_wakeup()) is not None and at <= now:
            shown += self._tell(next(iter(self._patterns)), now)
        return shown

    def next_wakeup(self) -> float | None:
        """When to call `expire`."""
        pattern = next(iter(self._patterns.values()), None)
        return pattern.since + self._window if pattern is not None else None

    def flush(self) -> list[Printed]:
        """Return all that is held back, and begin anew."""
        patterns, self._patterns = self._patterns, {}
        return [printed for pattern in patterns.values() for printed in self._held(pattern)]

    def check(self) -> None:
        """Assert what holds between calls."""
        assert len(self._patterns) <= PATTERNS
        begun = [pattern.since for pattern in self._patterns.values()]
        assert begun == sorted(begun)
        for (_, text), pattern in self._patterns.items():
            assert 0 < len(text) <= LONGEST
            assert (pattern.latest is None) == (pattern.count == 0)
            assert pattern.is_shared or not pattern.count, "a process's own repetition is held back"

    def _is_shown(self, printed: Printed, line: str, now: float) -> bool:
        if self._allow is not None and self._allow.search(line):
            return True
        if self._skip is not None and self._skip.search(line):
            return False
        if len(line) > LONGEST:
            return True
        text = " ".join(word for word in line.split() if not _has_digit(word))
        if not text:
            return True
        source = printed.ip, printed.pid
        pattern = self._patterns.get((printed.is_stderr, text))
        if pattern is None:
            self._patterns[printed.is_stderr, text] = _Pattern(now, source)
            return True
        pattern.is_shared = pattern.is_shared or source != pattern.source
        if not pattern.is_shared:
            return True
        pattern.count += 1
        pattern.latest = replace(printed, lines=(line,))
        return False

    def _tell(self, key: _Key, now: float) -> Iterator[Printed]:
        """End a pattern's window; one that was fruitful has another."""
        pattern = self._patterns.pop(key)
        yield from self._held(pattern)
        if pattern.count > 1 and len(self._patterns) < PATTERNS:
            self._patterns[key] = _Pattern(now, pattern.source, pattern.is_shared)

    def _held(self, pattern: _Pattern) -> Iterator[Printed]:
        if pattern.latest is None:
            return
        (line,) = pattern.latest.lines
        if pattern.count > 1:
            line += f" [repeated {pattern.count}x across cluster]"
            if not self._has_hinted:
                self._has_hinted, line = True, line + _HINT
        yield replace(pattern.latest, lines=(line,))
