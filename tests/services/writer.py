"""A program that writes to a SQLite storage until it is killed, and says what was acknowledged."""

import asyncio
import itertools
import sys
from pathlib import Path

from raylite._services.gcs.storage.sqlite import SqliteStorage


async def main(path: str) -> None:
    storage = await SqliteStorage.open(Path(path))
    numbers = itertools.count()

    async def write() -> None:
        for number in numbers:
            await storage.put("t", b"%d" % number, b"%d " % number * 100)
            print(number, flush=True)

    await asyncio.gather(*[write() for _ in range(8)])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
