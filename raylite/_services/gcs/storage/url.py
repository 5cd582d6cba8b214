"""Storages by URL. The modules of those that were not asked for are not imported."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from raylite._services.gcs.storage.interface import (
    Storage,
    StorageError,
    StorageUnusableError,
)
from raylite._services.gcs.storage.memory import MemoryStorage

logger = logging.getLogger(__name__)

T = TypeVar("T")

_REDIS = ("redis://", "rediss://")
_PACKAGE = "raylite._services.gcs.storage"

FIRST_PAUSE, LAST_PAUSE = 0.1, 2.0  # seconds between two attempts to use a storage

ALLOWED = (
    "a storage is `memory`, a file (`sqlite:///var/lib/raylite/gcs.db`, or only its path), "
    "or `redis://host:port/db?cluster=name`"
)


async def open_storage(url: str, node: str = "", place: str = "") -> Storage:
    """Return the storage at a URL, open, for the GCS of a node.

    Clusters that share a Redis are told apart by ``cluster``, which is ``default`` if not given.
    What stands after ``sqlite://`` is the file's path, absolute; its directory must exist.

    Raises:
        ValueError: The URL is none of those allowed.
        StorageError: What is there cannot be opened, or is not a storage of this raylite.
    """
    if url == "memory":
        return MemoryStorage()
    if url.startswith(_REDIS):
        kind, address, cluster = _redis(url)
        opened: Storage = await kind.open(address, cluster, node, place)
        return opened
    path = _path(url)
    storage: Storage = await import_module(f"{_PACKAGE}.sqlite").SqliteStorage.open(path)
    return storage


def check_storage(url: str) -> None:
    """Refuse, before anything starts, what `open_storage` would refuse for its form or its place.

    Raises:
        ValueError: The URL is none of those allowed.
        StorageError: There can be no such file.
    """
    if url == "memory" or url.startswith(_REDIS):
        return
    path = _path(url)
    if path.is_dir():
        raise StorageError(f"the storage {path} is a directory: name a file in it")
    if not path.parent.is_dir():
        raise StorageError(
            f"the storage {path} cannot be made: {path.parent} is no directory, so make it first, or "
            "name another file"
        )


def _path(url: str) -> Path:
    path = url.removeprefix("sqlite://")
    if "://" in path or not path.strip("/.") or not ("/" in path or "." in path):
        raise ValueError(f"{url!r} is not a storage: {ALLOWED}")
    return Path(path)


async def wait_for_storage(attempt: Callable[[], Awaitable[T]]) -> T:
    """Return what `attempt` opens, repeated for as long as the storage cannot be used.

    For a GCS that was there before: the cluster goes on without it until its tables are back.

    Raises:
        StorageError: The storage is there, and cannot be opened all the same.
    """
    pause = FIRST_PAUSE
    while True:
        try:
            return await attempt()
        except StorageUnusableError as error:
            logger.warning("the GCS waits for its tables: %s", error)
        await asyncio.sleep(pause)
        pause = min(pause * 2, LAST_PAUSE)


async def vacate_storage(url: str) -> None:
    """Return when tables that can be reached from several machines are written by nobody.

    A head is refused so before anything of it runs, and waits for a dead one's where people see it.

    Raises:
        ValueError: The URL is none of those allowed.
        StorageError: A living GCS writes them, or they cannot be reached.
    """
    if url.startswith(_REDIS):
        kind, address, cluster = _redis(url)
        await kind.vacate(address, cluster)


def _redis(url: str) -> tuple[Any, str, str]:
    """Return the class of such storages, where Redis is, and the cluster's name there."""
    try:
        parts = urlsplit(url)
        query = parse_qs(parts.query, strict_parsing=bool(parts.query))
        port, database = parts.port, int(parts.path.strip("/") or 0)
        cluster = query.pop("cluster", ["default"])[-1]
        if not parts.hostname or port == 0 or database < 0 or query:
            raise ValueError("not what is allowed")
    except ValueError as error:  # the URL itself may hold a password, and is not repeated
        raise ValueError(f"this redis:// URL is not a storage: {ALLOWED}") from error
    address = parts._replace(path=f"/{database}", query="").geturl()
    try:
        module = import_module(f"{_PACKAGE}.redis")
    except ModuleNotFoundError as error:
        raise StorageError(
            f"redis:// needs {error.name}, which is not installed: pip install 'raylite[redis]'"
        ) from error
    return module.RedisStorage, address, cluster
