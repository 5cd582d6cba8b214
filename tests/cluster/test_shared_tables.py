"""Heads on the tables of one Redis: one of them works, and the next has to wait for its end."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from raylite._runtime import records
from tests.cluster.started import component, epoch, raylite, start
from tests.cluster.watching import SOON, Watch, eventually
from tests.services.storages import RedisServer

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


@pytest.fixture
def redis_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    with TemporaryDirectory(prefix="rl-") as folder:
        monkeypatch.setenv("RAYLITE_TMPDIR", folder)
        server = RedisServer(Path(folder))
        server.start()
        yield server
        raylite("stop", "--force")
        server.stop()


def test_a_head_is_refused_the_tables_of_a_living_one_and_has_those_of_one_that_was_stopped(
    redis_server: RedisServer,
) -> None:
    shared = ("--head", "--port=0", f"--storage=redis://127.0.0.1:{redis_server.port}/0?cluster=c")
    head = start(*shared)
    first = epoch(head)

    done = raylite("start", *shared)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(
        f"Error: the tables of cluster 'c' are in use by the head {head.cluster} on "
        f"{os.uname().nodename} (node "
    )
    assert "waiting up to 10 s" in done.stderr
    assert records.living() == [head]

    watched = Watch(gcs := component(head, "gcs"))
    os.kill(gcs, signal.SIGKILL)  # another on the same node takes its place, and does not wait
    assert watched.left_after(SOON) == []
    watched.close()
    assert eventually(lambda: epoch(head) == first + 1)

    assert raylite("stop").returncode == 0
    done = raylite("start", *shared)
    assert (done.returncode, done.stderr) == (0, "")
    [head] = records.living()
    assert epoch(head) == first + 2
