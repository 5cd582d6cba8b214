"""Log files: they grow to a size, are rotated, and cost nobody anything when the disk is full."""

import asyncio
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from raylite._runtime import folders, settings
from raylite._runtime.logfiles import WorkerLogs, rotate
from raylite._runtime.node import Rotation
from raylite._services.raylet.logs import Chunk

OUT, ERR = (1, False), (1, True)


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """Not `tmp_path`: the paths of sockets would be too long."""
    with TemporaryDirectory(prefix="rl-") as folder:
        yield Path(folder)


def written(directory: Path, *chunks: Chunk, rotation: Rotation | None = None) -> dict[str, bytes]:
    """Write chunks one by one; return the files."""

    async def write() -> None:
        logs = WorkerLogs(directory, rotation or Rotation())
        for chunk in chunks:
            await logs.write([chunk])
        await logs.close()

    asyncio.run(write())
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_file_is_made_with_the_first_bytes_and_closed_to_other_users(tmp_path: Path) -> None:
    chunks = Chunk(OUT, "a.out", b"one\n"), Chunk(ERR, "a.err", b"", is_last=True)
    assert written(tmp_path, *chunks, Chunk(OUT, "a.out", b"two\n")) == {"a.out": b"one\ntwo\n"}
    assert (tmp_path / "a.out").stat().st_mode & 0o777 == 0o600


def test_a_file_follows_its_name(tmp_path: Path) -> None:
    chunks = Chunk(OUT, "early", b"one\n"), Chunk(OUT, "late", b"two\n", is_last=True)
    assert written(tmp_path, *chunks) == {"late": b"one\ntwo\n"}


def test_a_large_file_makes_way_and_the_oldest_goes(tmp_path: Path) -> None:
    chunks = [Chunk(OUT, "a", b"%d" % n * 6) for n in range(8)]
    assert written(tmp_path, *chunks, rotation=Rotation(12, 2)) == {
        "a": b"666666777777", "a.1": b"444444555555", "a.2": b"222222333333",
    }  # fmt: skip


def test_without_backups_a_file_begins_anew(tmp_path: Path) -> None:
    chunks = [Chunk(OUT, "a", b"%d" % n * 6) for n in range(3)]
    assert written(tmp_path, *chunks, rotation=Rotation(12, 0)) == {"a": b"222222"}


def test_rotating_what_is_not_there_does_nothing(tmp_path: Path) -> None:
    rotate(tmp_path / "none", 3)
    assert list(tmp_path.iterdir()) == []


def test_what_a_full_disk_does_not_take_is_lost_and_counted(tmp_path: Path) -> None:
    async def write() -> None:
        logs = WorkerLogs(tmp_path, Rotation())
        await logs.write([Chunk(OUT, "a", b"one\n")])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4, hard))  # Python ignores SIGXFSZ: EFBIG
        try:
            await logs.write([Chunk(OUT, "a", b"two\n"), Chunk(OUT, "a", b"three\n")])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await logs.write([Chunk(OUT, "a", b"four\n", is_last=True)])
        await logs.close()

    asyncio.run(write())
    text = (tmp_path / "a").read_bytes()
    assert text == b"one\n[10 bytes could not be written here]\nfour\n"


def test_a_directory_that_has_gone_does_no_harm(tmp_path: Path) -> None:
    async def write() -> None:
        logs = WorkerLogs(tmp_path / "gone", Rotation())
        await logs.write([Chunk(OUT, "a", b"one\n"), Chunk(OUT, "b", b"two\n", is_last=True)])
        await logs.close()

    asyncio.run(write())


def test_a_components_log_and_what_else_it_prints_are_rotated_as_one(tmp_path: Path) -> None:
    program = """
import logging, os, sys
from pathlib import Path
from raylite._runtime.logfiles import ComponentLog
from raylite._runtime.node import Rotation
log = logging.getLogger("raylite.x")
logging.getLogger().addHandler(ComponentLog(Path(sys.argv[1]), Rotation(4096, 1)))
for number in range(100):
    log.warning("number %d %s", number, "x" * 50)
os.write(1, b"the end\\n")
"""
    path = tmp_path / "raylet.log"
    with path.open("ab") as log:
        command = [sys.executable, "-c", program, str(path)]
        subprocess.run(command, stdout=log, stderr=log, check=True, timeout=60)
    now, before = path.read_text(), (tmp_path / "raylet.log.1").read_text()
    assert sorted(os.listdir(tmp_path)) == ["raylet.log", "raylet.log.1"]
    assert len(before) <= 4096
    assert "WARNING raylite.x: number 99 " in now
    assert now.endswith("the end\n")


def test_the_settings_have_rays_names_or_raylites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ROTATION_MAX_BYTES", "1e6")
    monkeypatch.setenv("RAY_ROTATION_BACKUP_COUNT", "7")
    monkeypatch.setenv("RAYLITE_ROTATION_BACKUP_COUNT", "3")
    assert settings.rotation() == Rotation(1_000_000, 3)
    assert settings.deduplicator() is not None
    monkeypatch.setenv("RAY_DEDUP_LOGS", "0")
    assert settings.deduplicator() is None


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("RAY_ROTATION_MAX_BYTES", "many", "must be a number, 4096 or more, not 'many'"),
        ("RAYLITE_ROTATION_BACKUP_COUNT", "-1", "must be a number, 0 or more, not '-1'"),
        ("RAYLITE_DEDUP_LOGS_AGG_WINDOW_S", "nan", "must be a number, 0 or more, not 'nan'"),
        ("RAY_DEDUP_LOGS_SKIP_REGEX", "(", "is no regular expression: "),
    ],
)
def test_a_bad_setting_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, complaint: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=variable) as error:
        settings.rotation()
        settings.deduplicator()
    assert complaint in str(error.value)


def test_of_sessions_that_have_ended_the_latest_keep_their_logs(short_dir: Path) -> None:
    folder = str(short_dir)
    living = folders.make_session_dir(folder)
    ended = []
    for number in range(25):
        session = living.parent / f"session_2001-01-01_{number:02}_1"
        (session / "logs").mkdir(parents=True)
        (session / "logs" / "worker.out").write_text("hello")
        ended.append(session)
    latest = folders.make_session_dir(folder)
    assert sorted(folders.sessions(folder)) == sorted([*ended[5:], living, latest])


def test_of_sessions_whose_maker_was_killed_while_they_began_the_latest_stay(
    short_dir: Path,
) -> None:
    folder = str(short_dir)
    living = folders.make_session_dir(folder)
    dead = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True)
    killed = []
    for number in range(25):
        session = living.parent / f"session_2001-01-01_{number:02}_{int(dead.stdout)}"
        for each in ("logs", "sockets"):
            (session / each).mkdir(parents=True)
        killed.append(session)
    (killed[0] / "node.json").write_text("{}")  # what it names may have to be ended first
    of_a_container = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with of_a_container:
        of_a_container.bind(str(killed[1] / "sockets" / "node.sock"))
        of_a_container.listen()
        latest = folders.make_session_dir(folder)
    kept = [*killed[:2], *killed[5:], living, latest]
    assert sorted(folders.sessions(folder)) == sorted(kept)
