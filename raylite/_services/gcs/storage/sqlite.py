"""Tables in a SQLite file: the storage of a cluster that outlives its head's process.

Write-ahead log with ``synchronous=FULL``: a commit returns after its fsync, so what is acknowledged
survives a loss of power too. One connection on one thread, which locks the file for as long as it
is open: a second GCS on the same file fails instead of writing beside the first.
"""

import asyncio
import logging
import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

from raylite._kernel.threads import LoopThread
from raylite._services.gcs.storage.group import GroupCommit
from raylite._services.gcs.storage.interface import (
    Storage,
    StorageError,
    StorageUnusableError,
    Write,
)
from raylite._services.gcs.storage.pages import Pages
from raylite._services.gcs.storage.record import is_sound
from raylite._services.gcs.storage.wal import examine, length

logger = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

APPLICATION = 0x7261796C  # "rayl", in the file's header
FORMAT = 1  # of the file, in its header; what a record looks like is the record's business

_PUT = "INSERT OR REPLACE INTO record VALUES (?, ?, ?)"
_DELETE = "DELETE FROM record WHERE place = ? AND key = ?"
_READ = "SELECT CAST(key AS BLOB), CAST(value AS BLOB) FROM record WHERE place = ?"
_READ_ALL = "SELECT CAST(place AS BLOB), CAST(key AS BLOB), CAST(value AS BLOB) FROM record"
_SCHEMA = """
CREATE TABLE record (place BLOB, key BLOB, value BLOB NOT NULL, PRIMARY KEY (place, key))
WITHOUT ROWID
"""

ToThread = Callable[..., Awaitable[Any]]  # as in `Seams`; here in order, and on one thread


class SqliteStorage(Storage):
    """Tables in a file. Make it with `open`.

    Writes that gather while a commit waits for the disk share the next one.
    """

    def __init__(self, path: Path, run: ToThread, thread: LoopThread | None) -> None:
        self._file = _File(path)
        self._run = run
        self._thread = thread
        self._group = GroupCommit(lambda writes: self._run(self._file.commit, writes))

    @classmethod
    async def open(cls, path: Path, to_thread: ToThread | None = None) -> "SqliteStorage":
        """Open a file, or make it.

        Args:
            path: Where it is; its directory must exist.
            to_thread: Runs what blocks, instead of a thread of the storage's own.

        Raises:
            StorageError: It is no SQLite file, not one of raylite's, from a newer version,
                in use by another process, or cannot be read or written.
        """
        if to_thread is not None:
            storage = cls(path, to_thread, None)
        else:
            thread = LoopThread("raylite-storage", asyncio.new_event_loop)
            storage = cls(path, _On(thread), thread)
        try:
            await storage._run(storage._file.open)
        except BaseException:
            await storage.close()
            raise
        return storage

    @property
    def commits(self) -> int:
        """Transactions since it was opened."""
        return self._group.commits

    async def close(self) -> None:
        await self._group.close()
        await self._run(self._file.close)
        if self._thread is not None:
            self._thread.stop()

    def _commit(self, records: Sequence[Write]) -> "asyncio.Future[None]":
        return self._group.submit(records)

    async def _read(self, table: str) -> list[tuple[bytes, bytes]]:
        records: list[tuple[bytes, bytes]] = await self._run(self._file.read, table)
        return records


class _On:
    """Makes calls on a thread, in order."""

    def __init__(self, thread: LoopThread) -> None:
        self._thread = thread

    async def __call__(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        async def call() -> T:
            return function(*args)

        return await asyncio.wrap_future(self._thread.submit(call()))


class _File:
    """The connection. Everything here blocks, and runs on one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._open = ExitStack()  # to close any descriptor of the file would be to give up its lock

    def open(self) -> None:
        with self._explained():
            if not self._path.exists():
                with suppress(OSError):  # SQLite says it better
                    self._path.touch(0o600)
            self._connection = sqlite3.connect(self._path, timeout=1.0, isolation_level=None)
            self._connection.text_factory = bytes
            self._pragma("locking_mode = EXCLUSIVE")
            self._pragma("cell_size_check = ON")
            self._pragma("schema_version")  # the first to read has the file, and reads the log
            hidden = self._hidden()
            is_new = self._check_origin(self._connection)
            self._pragma("journal_mode = WAL")
            self._pragma("synchronous = FULL")
            self._prepare(is_new)
            if hidden is not None:
                self._replace(hidden)
            self._mend()

    def commit(self, writes: Sequence[Write]) -> None:
        connection = self._opened()
        with self._explained():
            connection.execute("BEGIN IMMEDIATE")
            try:
                for write in writes:
                    place = write.table.encode()
                    if write.row is None:
                        connection.execute(_DELETE, (place, write.key))
                    else:
                        connection.execute(_PUT, (place, write.key, write.row))
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def read(self, table: str) -> list[tuple[bytes, bytes]]:
        connection = self._opened()
        with self._explained():
            rows = connection.execute(_READ, (table.encode(),)).fetchall()
        return [(key, value or b"") for key, value in rows]

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._open.close()

    def _check_origin(self, connection: sqlite3.Connection) -> bool:
        """Whether the file is new; a StorageError if it is somebody else's."""
        application = _pragma(connection, "application_id")
        format = _pragma(connection, "user_version")
        if application == APPLICATION and format <= FORMAT:
            return False
        if application == APPLICATION:
            raise StorageError(
                f"{self._path} is in format {format}, and this raylite reads up to {FORMAT}: "
                "start the raylite that wrote it, or a newer one"
            )
        if application or _pragma(connection, "schema_version"):
            raise StorageError(f"{self._path} is a SQLite file of another program; name another")
        return True

    def _prepare(self, is_new: bool) -> None:
        """Make the table in one transaction, header included; take the lock either way."""
        connection = self._opened()
        connection.execute("BEGIN IMMEDIATE")
        if is_new:
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
        connection.execute("COMMIT")

    def _mend(self) -> None:
        """Write all records anew if the tree that leads to them is damaged.

        Searches in such a tree go astray, and records would seem never to have been. Those that
        are damaged themselves are written too: whoever loads them puts them into quarantine.
        """
        connection = self._opened()
        finding = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if finding == b"ok":
            return
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        aside = self._copy()
        try:
            records, is_readable = _read_all(connection), True
        except sqlite3.DatabaseError:
            records, is_readable = self._salvage(aside), False
        self._tell_of_damage(finding.decode(errors="replace"), len(records), aside)
        if is_readable:
            self._replace(records)
        else:
            self._supplant(records)
        connection.execute("VACUUM")  # of pages that belong to nothing

    def _salvage(self, aside: Path) -> list[list[bytes]]:
        """Return the records that can be read where SQLite ends at the first damage."""
        query = "SELECT rootpage FROM sqlite_schema WHERE name = 'record'"
        [root] = self._opened().execute(query).fetchone()
        pages = Pages(aside.read_bytes(), self._pragma("page_size"), lambda each: is_sound(*each))
        return list(pages.records(root))

    def _supplant(self, records: list[list[bytes]]) -> None:
        """Put a new table in the place of one that cannot be emptied: SQLite does not find what is in it."""
        connection, new = self._opened(), _SCHEMA.replace("record", "supplanting", 1)
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(new)
        connection.executemany("INSERT OR REPLACE INTO supplanting VALUES (?, ?, ?)", records)
        connection.execute("DELETE FROM sqlite_schema WHERE name = 'record'")
        rename = (
            "UPDATE sqlite_schema SET name = 'record', tbl_name = 'record', sql = ? WHERE name = ?"
        )
        connection.execute(rename, (_SCHEMA.strip(), "supplanting"))
        connection.execute("COMMIT")
        connection.execute("PRAGMA writable_schema = RESET")

    def _hidden(self) -> list[list[bytes]] | None:
        """Return all records if damage in the log hides some from SQLite, which has read it by now."""
        log = Path(f"{self._path}-wal")
        found, size = log.read_bytes() if log.exists() else b"", self._pragma("page_size")
        if not found:
            return None
        _, read, _ = self._opened().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if read == length(found, size) > 0:
            return None
        examined = examine(found, size)
        if examined.is_torn:
            logger.warning(
                "%s ends in a commit that is torn, which nobody was told of, or damaged: it is left out", log
            )  # fmt: skip
        if not examined.hides:
            return None
        aside = self._copy()
        Path(f"{aside}-wal").write_bytes(examined.readable)
        with closing(sqlite3.connect(aside, isolation_level=None)) as connection:
            connection.text_factory = bytes
            self._check_origin(connection)
            records = _read_all(connection)
        self._tell_of_damage("in its log", len(records), aside)
        return records

    def _copy(self) -> Path:
        """Copy the file as it is."""
        aside = Path(f"{self._path}.damaged")
        with open(aside, "wb") as copy:
            whole = open(self._path, "rb")  # noqa: SIM115
            shutil.copyfileobj(self._open.enter_context(whole), copy)
        return aside

    def _replace(self, records: list[list[bytes]]) -> None:
        records.sort(key=lambda record: is_sound(*record))  # of two under one key the last stays
        connection = self._opened()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM record")
        connection.executemany(_PUT, records)
        connection.execute("COMMIT")

    def _tell_of_damage(self, finding: str, count: int, aside: Path) -> None:
        logger.error(
            "%s was damaged (%s): %d records could be read and were written anew; "
            "the damaged file is kept as %s",
            *(self._path, finding, count, aside),
        )

    def _pragma(self, words: str) -> int:
        return _pragma(self._opened(), words)

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StorageError(f"{self._path} is closed")
        return self._connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says more precisely
            reason = _REASONS.get(code, f"failed: {error}")
            kind = StorageUnusableError if code in _PASSING else StorageError
            raise kind(f"{self._path} {reason}") from error


def _pragma(connection: sqlite3.Connection, words: str) -> int:
    row = connection.execute(f"PRAGMA {words}").fetchone()
    return row[0] if row is not None and isinstance(row[0], int) else 0


def _read_all(connection: sqlite3.Connection) -> list[list[bytes]]:
    cells = connection.execute(_READ_ALL).fetchall()
    return [[cell or b"" for cell in record] for record in cells]


_REASONS = {
    sqlite3.SQLITE_NOTADB: "is not a SQLite file: name another, or move it away",
    sqlite3.SQLITE_CORRUPT: "is damaged beyond single records: put back a copy, or move it away",
    sqlite3.SQLITE_BUSY: "is in use by another process: a cluster has one GCS",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: is its directory there, and writable?",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full",
    sqlite3.SQLITE_READONLY: "cannot be written: it is read-only",
}
_PASSING = {
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
}
