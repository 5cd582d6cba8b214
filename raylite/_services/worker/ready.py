"""Which of some objects are there: what a `wait` looks at before and after it waits."""

from collections.abc import Callable, Container, Sequence

from raylite._services.worker.objects import Entry, W, Waitable


def never(entry: Entry) -> bool:
    """Say that an object lies on no other node, or that it is all the same if it does."""
    return False


def has_ready(refs: Sequence[Waitable], count: int, away: Callable[[Entry], bool]) -> bool:
    """Whether so many objects are there."""
    for ref in refs:
        if (value := ref._entry.value) is not None and not (value.node and away(ref._entry)):
            count -= 1
            if not count:
                return True
    return False


def split(
    refs: list[W],
    count: int,
    here: Container[Entry],
    away: Callable[[Entry], bool],
) -> tuple[list[W], list[W]]:
    """Split references into the first `count` of which the objects are there, and the rest.

    Those that were `away` and came are `here`.
    """
    ready: list[W] = []
    for position, ref in enumerate(refs):
        entry = ref._entry
        value = entry.value
        if value is not None and (not value.node or entry in here or not away(entry)):
            ready.append(ref)
            end = position + 1
            if len(ready) == count:
                break
    if not ready:
        return ready, list(refs)
    if len(ready) == end:  # they come first, as they do in a loop of waits
        return ready, refs[end:]
    chosen = set(ready)
    return ready, [ref for ref in refs if ref not in chosen]
