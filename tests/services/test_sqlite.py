"""The SQLite storage: crashes, damage, other files, and how many commits it makes."""

import asyncio
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from raylite._services.gcs.storage import StorageError, Write
from raylite._services.gcs.storage.sqlite import SqliteStorage

pytestmark = pytest.mark.asyncio

WRITER = Path(__file__).with_name("writer.py")
ROWS = {b"key %02d" % n: b"<row %02d>" % n * 20 for n in range(40)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gcs.db"


async def fill(path: Path) -> None:
    storage = await SqliteStorage.open(path)
    await storage.batch([Write("t", key, row) for key, row in ROWS.items()])
    await storage.close()


async def load(path: Path) -> tuple[dict[bytes, bytes], int]:
    """Return what a file's table still says, and how many of its records are quarantined."""
    storage = await SqliteStorage.open(path)
    try:
        return await storage.load("t"), storage.quarantined
    finally:
        await storage.close()


# ---- crashes -----------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.fault
@pytest.mark.parametrize("acknowledged", [1, 40, 333])
async def test_what_was_acknowledged_survives_sigkill(path: Path, acknowledged: int) -> None:
    command = [sys.executable, str(WRITER), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        numbers = [int(process.stdout.readline()) for _ in range(acknowledged)]
        process.kill()
        numbers += [int(line) for line in process.stdout if line.endswith("\n")]
    rows, quarantined = await load(path)
    assert quarantined == 0
    for number in numbers:
        assert rows[b"%d" % number] == b"%d " % number * 100


async def test_a_log_torn_anywhere_loses_only_its_last_commit(path: Path, tmp_path: Path) -> None:
    storage = await SqliteStorage.open(path)
    await storage.put("t", b"first", b"1" * 200)
    before = Path(f"{path}-wal").stat().st_size
    await storage.put("t", b"second", b"2" * 200)
    torn = tmp_path / "torn.db"
    log = Path(f"{path}-wal").read_bytes()
    main = path.read_bytes()
    await storage.close()
    for length in range(before, len(log), 97):
        torn.write_bytes(main)
        Path(f"{torn}-wal").write_bytes(log[:length])
        assert await load(torn) == ({b"first": b"1" * 200}, 0)
    Path(f"{torn}-wal").write_bytes(log)
    torn.write_bytes(main)
    assert len((await load(torn))[0]) == 2


async def test_a_commit_waits_for_the_disk(path: Path) -> None:
    storage = await SqliteStorage.open(path)
    assert await storage._run(storage._file._pragma, "synchronous") == 2  # FULL
    await storage.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


# ---- damage ------------------------------------------------------------------------------


async def test_a_bit_flipped_in_any_byte_of_a_row_on_disk_is_found(path: Path) -> None:
    await fill(path)
    sound = path.read_bytes()
    start = sound.index(ROWS[b"key 07"])
    for offset in range(start, start + len(ROWS[b"key 07"]), 7):
        path.write_bytes(sound[:offset] + bytes([sound[offset] ^ 4]) + sound[offset + 1 :])
        assert await load(path) == ({k: r for k, r in ROWS.items() if k != b"key 07"}, 1)


async def test_a_bit_flipped_anywhere_is_found_and_never_gives_a_wrong_row(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await fill(path)
    sound = path.read_bytes()
    chance = random.Random(1)
    for _ in range(300):
        offset, bit = chance.randrange(len(sound)), 1 << chance.randrange(8)
        path.write_bytes(sound[:offset] + bytes([sound[offset] ^ bit]) + sound[offset + 1 :])
        caplog.clear()
        try:
            rows, _ = await load(path)
        except StorageError:
            continue
        assert rows.items() <= ROWS.items()
        assert rows == ROWS or "damaged" in caplog.text or "quarantined" in caplog.text


async def test_a_damaged_tree_is_mended_and_the_file_kept_as_it_was(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await fill(path)
    sound = path.read_bytes()
    astray = sound.index(b"tkey 20")  # where a record begins: the table's name, then the key
    damaged = sound[:astray] + b"u" + sound[astray + 1 :]
    path.write_bytes(damaged)
    assert (await load(path))[0] == {k: r for k, r in ROWS.items() if k != b"key 20"}
    assert "was damaged" in caplog.text
    assert Path(f"{path}.damaged").read_bytes()[100:] == damaged[100:]  # what follows the header
    caplog.clear()
    assert len((await load(path))[0]) == 39
    assert not caplog.records


FRAME = 24 + 4096
FLIPS = {
    **{f"byte {offset} of the log": offset for offset in (1, 6, 10, 13, 18, 25)},
    **{f"byte {offset} of a frame": 32 + 3 * FRAME + offset for offset in (2, 6, 9, 14, 17, 23)},
    **{f"byte {offset} of a page": 32 + 3 * FRAME + 24 + offset for offset in (0, 9, 2000, 4090)},
    "the first page": 32 + 24 + 2000,
    "the last page but one": 32 + 18 * FRAME + 24 + 4000,
}


@pytest.mark.parametrize("offset", FLIPS.values(), ids=FLIPS.keys())
async def test_a_bit_flipped_in_the_log_hides_no_later_commit(
    path: Path, caplog: pytest.LogCaptureFixture, offset: int
) -> None:
    storage = await SqliteStorage.open(path)
    for key, row in list(ROWS.items())[:19]:
        await storage.put("t", key, row)
    log, main = Path(f"{path}-wal").read_bytes(), path.read_bytes()
    await storage.close()
    expected = dict(list(ROWS.items())[:19])
    for bit in (1, 128):
        flipped = log[:offset] + bytes([log[offset] ^ bit]) + log[offset + 1 :]
        path.write_bytes(main)
        Path(f"{path}-wal").write_bytes(flipped)
        caplog.clear()
        assert await load(path) == (expected, 0)
        assert "was damaged (in its log): 19 records could be read" in caplog.text
        caplog.clear()
        assert await load(path) == (expected, 0)
        assert not caplog.records


async def test_damage_to_the_last_commit_of_the_log_is_told_and_loses_only_that(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It looks like a write that a loss of power has torn, which nobody was told of."""
    storage = await SqliteStorage.open(path)
    for key, row in ROWS.items():
        await storage.put("t", key, row)
    begin = Path(f"{path}-wal").stat().st_size
    await storage.batch([Write("t", b"%d" % n, bytes(1000)) for n in range(50)])
    log, main = Path(f"{path}-wal").read_bytes(), path.read_bytes()
    await storage.close()
    assert len(log) - begin > 5 * FRAME
    for offset in (begin + 24 + 100, begin + 3 * FRAME + 24 + 100, len(log) - 100):
        path.write_bytes(main)
        Path(f"{path}-wal").write_bytes(log[:offset] + b"\xff" + log[offset + 1 :])
        caplog.clear()
        assert await load(path) == (ROWS, 0)
        assert "ends in a commit that is torn" in caplog.text
        assert not Path(f"{path}.damaged").exists()


async def test_where_sqlite_gives_up_only_what_the_damage_is_in_is_lost(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A bit in the head of each page, and in the places of its first cells."""
    many = {b"%04d" % n: b"row %d " % n * 20 for n in range(300)}
    many[b"long"] = bytes(range(250)) * 50  # over several pages
    storage = await SqliteStorage.open(path)
    await storage.batch([Write("t", key, row) for key, row in many.items()])
    await storage.close()
    sound = path.read_bytes()
    for page in range(4096, len(sound), 4096):
        for offset in (page, page + 3, page + 9):
            path.write_bytes(sound[:offset] + bytes([sound[offset] ^ 8]) + sound[offset + 1 :])
            caplog.clear()
            rows, _ = await load(path)
            assert rows.items() <= many.items()
            assert len(rows) >= len(many) - 40  # what one page has
            assert rows == many or "damaged" in caplog.text or "quarantined" in caplog.text
            caplog.clear()
            assert (await load(path))[0] == rows
            assert not caplog.records
    storage = await SqliteStorage.open(path)
    await storage.put("t", b"new", b"row")
    assert (await storage.load("t"))[b"new"] == b"row"
    await storage.close()


@pytest.mark.process
async def test_a_file_that_was_mended_is_locked_as_any_other(path: Path) -> None:
    await fill(path)
    sound = path.read_bytes()
    path.write_bytes(sound.replace(b"tkey 20", b"ukey 20", 1))
    storage = await SqliteStorage.open(path)
    assert Path(f"{path}.damaged").exists()
    program = "import sqlite3, sys; sqlite3.connect(sys.argv[1], 0).execute('SELECT * FROM record')"
    other = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert "database is locked" in other.stderr
    await storage.close()


# ---- other files -------------------------------------------------------------------------


async def test_a_file_that_is_not_sqlite_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"my thesis, the only copy " * 100)
    with pytest.raises(StorageError, match="is not a SQLite file"):
        await SqliteStorage.open(path)
    assert path.read_bytes() == b"my thesis, the only copy " * 100


async def test_another_programs_sqlite_file_is_refused_and_left_alone(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE recipes (text)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match="of another program"):
        await SqliteStorage.open(path)
    assert path.read_bytes() == before


async def test_a_file_of_a_newer_format_is_refused(path: Path) -> None:
    await fill(path)
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version = 7")
    newer.close()
    with pytest.raises(StorageError, match="is in format 7, and this raylite reads up to 1"):
        await SqliteStorage.open(path)


async def test_a_file_in_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is its directory there"):
        await SqliteStorage.open(tmp_path / "no" / "gcs.db")


async def test_a_file_that_is_in_use_is_refused(path: Path) -> None:
    storage = await SqliteStorage.open(path)
    with pytest.raises(StorageError, match="in use by another process"):
        await SqliteStorage.open(path)
    await storage.put("t", b"k", b"v")
    await storage.close()
    assert (await load(path))[0] == {b"k": b"v"}


# ---- commits -----------------------------------------------------------------------------


async def test_writes_that_gather_during_a_commit_share_the_next(path: Path) -> None:
    storage = await SqliteStorage.open(path)
    await asyncio.gather(*[storage.put("t", b"%d" % n, b"v") for n in range(1000)])
    assert storage.commits <= 2
    assert len(await storage.load("t")) == 1000
    await storage.close()


async def test_writers_that_each_wait_share_commits_with_one_another(path: Path) -> None:
    storage = await SqliteStorage.open(path)

    async def write(writer: int) -> None:
        for n in range(10):
            await storage.put("t", b"%d/%d" % (writer, n), b"v")

    await asyncio.gather(*[write(writer) for writer in range(100)])
    assert storage.commits <= 30
    await storage.close()


async def test_a_full_disk_fails_the_write_and_not_the_storage(path: Path) -> None:
    storage = await SqliteStorage.open(path)
    await storage._run(storage._file._pragma, "max_page_count = 20")
    with pytest.raises(StorageError, match="the disk is full"):
        await storage.put("t", b"big", bytes(1_000_000))
    await storage.put("t", b"small", b"v")
    assert await storage.load("t") == {b"small": b"v"}
    await storage.close()
