"""What watchers are told of a table: all its rows, then those that change, each encoded once."""

from collections.abc import Callable
from typing import Generic, TypeVar

from raylite._kernel.bulletin import Bulletin
from raylite._services.gcs.table import Change, Row, Table

LONGEST = 1.0  # seconds that a change may wait, however many watch and whatever was said before

R = TypeVar("R", bound=Row)


class TableNews(Bulletin, Generic[R]):
    """The bulletin of a table.

    A message is its rows' messages one after another: that is what protobuf makes of a repeated
    field.

    Args:
        table: The table, not loaded yet.
        encode: Makes the message that says one row.
        first: Makes what the first message begins with.
        is_told: Which rows are told of.
    """

    def __init__(
        self,
        table: Table[R],
        encode: Callable[[R], bytes],
        first: Callable[[], bytes],
        is_told: Callable[[R], bool] = lambda row: True,
    ) -> None:
        super().__init__(self._all, self._changes, LONGEST)
        self._encode = encode
        self._is_told = is_told
        self._first = first
        self._rows: dict[bytes, bytes] = {}
        self._changed: list[bytes] = []
        table.on_change.append(self._apply)

    def say(self, message: bytes) -> None:
        """Tell something that no row says. Whoever comes later hears it by what `first` makes."""
        self._changed.append(message)
        self.changed()

    def _apply(self, change: Change[R]) -> None:
        if change.row is None or not self._is_told(change.row):
            self._rows.pop(change.key, None)
            return
        row = self._rows[change.key] = self._encode(change.row)
        self._changed.append(row)
        self.changed()

    def _all(self) -> bytes:
        return b"".join([self._first(), *self._rows.values()])

    def _changes(self) -> bytes:
        changed, self._changed = self._changed, []
        return b"".join(changed)
