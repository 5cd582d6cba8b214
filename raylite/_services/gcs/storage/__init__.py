"""Where the cluster's tables are kept: in memory, in a SQLite file, or in Redis."""

from raylite._services.gcs.storage.interface import (
    Storage,
    StorageError,
    StorageTakenError,
    StorageUnusableError,
    Write,
)
from raylite._services.gcs.storage.memory import MemoryStorage
from raylite._services.gcs.storage.url import (
    check_storage,
    open_storage,
    vacate_storage,
    wait_for_storage,
)

__all__ = [
    "MemoryStorage",
    "Storage",
    "StorageError",
    "StorageTakenError",
    "StorageUnusableError",
    "Write",
    "check_storage",
    "open_storage",
    "vacate_storage",
    "wait_for_storage",
]
