"""A real redis-server for the tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.storages import RedisServer


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()
