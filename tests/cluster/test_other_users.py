"""What other users of the machine, and whoever reads along, get of a cluster: nothing.

Needs root, to be another user; as anybody else the tests that do are skipped.
"""

import os
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from raylite._kernel.token import create_token, read_token
from raylite._runtime import records
from raylite._runtime.records import NodeRecord
from tests.cluster.started import component, nodes, raylite, start
from tests.cluster.watching import SOON, Driver, Watch, eventually, tree, workers

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

NOBODY = 65534
ANYWHERE = ("--bind=0.0.0.0", "--node-ip-address=127.0.0.1")  # so that nodes encrypt

PROGRAM = """
ray.init()

@ray.remote
def shout(data):
    print("shout", file=sys.stderr)
    os.system("true")
    mask = os.umask(0)
    os.umask(mask)
    return mask, len(data)

say(*ray.get(shout.remote(ray.put(bytes(300_000)))))
hear()
"""


@pytest.fixture(autouse=True)
def temp_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place of its own for each test's clusters, open to all as the system's is."""
    with TemporaryDirectory(prefix="rl-") as folder:
        os.chmod(folder, 0o777)
        monkeypatch.setenv("RAYLITE_TMPDIR", folder)
        yield Path(folder)
        raylite("stop", "--force")


def processes_of(*members: NodeRecord) -> list[int]:
    return [pid for node in members for pid in (node.pid, *tree(node.pid))]


# -- Files


@pytest.mark.parametrize("umask", [0o000, 0o077], ids=oct)
def test_whatever_the_umask_all_files_are_their_users_only(umask: int, temp_dir: Path) -> None:
    before = os.umask(umask)
    try:
        head = start("--head", "--port=0", *ANYWHERE)
        member = start(f"--address={head.cluster}")
        with Driver(PROGRAM) as driver:
            assert driver.hear() == f"{umask} 300000"  # that of users' tasks is their own
            wrong, seen = [], set[str]()
            for path in Path(temp_dir, "raylite").rglob("*"):
                mode = path.lstat().st_mode
                expected = 0o700 if stat.S_ISDIR(mode) else 0o600
                seen.add(path.name)
                if not stat.S_ISLNK(mode) and stat.S_IMODE(mode) != expected:
                    wrong.append(f"{stat.filemode(mode)} {path}")
            assert wrong == []
            assert {"token", "node.key", "ca.key", "gcs.db", "node.json", "raylet.sock"} <= seen
            assert stat.S_IMODE(Path(member.session_dir).parent.stat().st_mode) == 0o700
            driver.say("done")
            assert driver.end()[0] == 0
    finally:
        os.umask(before)


INTRUDER = """
import os, socket, sys
paths, pids = eval(sys.stdin.readline()), eval(sys.stdin.readline())
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
def attempt(what, deed, *args):
    try:
        got = deed(*args)
    except OSError:
        return
    print(what, args, got)
def talk(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        return "connected"
for path in paths:
    attempt("read", os.open, path, os.O_RDONLY)
    attempt("write", os.open, path, os.O_WRONLY)
    attempt("listed", os.listdir, path)
    attempt("removed", os.unlink, path)
    attempt("made", os.mkdir, path + ".made")
    attempt("talked", talk, path)
for pid in pids:
    attempt("signal", os.kill, pid, 0)
    for name in ("environ", "mem", "maps", "fd"):
        attempt("read", os.open, f"/proc/{pid}/{name}", os.O_RDONLY)
        attempt("listed", os.listdir, f"/proc/{pid}/{name}") if name == "fd" else None
    for number in range(64):
        attempt("opened", os.open, f"/proc/{pid}/fd/{number}", os.O_RDONLY)
print("tried")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("is_open", [False, True], ids=["as made", "directories opened"])
def test_another_user_can_read_nothing_and_talk_to_nobody(is_open: bool, temp_dir: Path) -> None:
    head = start("--head", "--port=0", *ANYWHERE)
    with Driver(PROGRAM) as driver:
        assert driver.hear().endswith("300000")
        paths = [path for path in Path(temp_dir, "raylite").rglob("*") if not path.is_symlink()]
        if is_open:  # a mistake of the user's: what is in them is closed all the same
            for path in (Path(temp_dir, "raylite"), *paths):
                if path.is_dir():
                    path.chmod(0o711)
        pids = [*processes_of(head), driver.pid]
        names = [str(path) for path in paths]
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", INTRUDER], check=False, capture_output=True,
            text=True, input=f"{names!r}\n{pids!r}\n", timeout=60,
        )  # fmt: skip
        assert done.stdout == "tried\n", done.stdout + done.stderr
        assert len([path for path in paths if path.is_socket()]) >= 4
        driver.say("done")
        assert driver.end()[0] == 0


# -- Places where somebody listens


LISTEN = "0A"
UNIX_LISTENS = 0x10000


def listening(pids: list[int]) -> tuple[list[str], list[str]]:
    """The TCP and UDP addresses, and the unix sockets' paths, at which processes can be reached."""
    held = set[str]()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                held |= set(re.findall(r"^socket:\[(\d+)\]$", os.readlink(link)))
    inet, unix = [], []
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = row.split()[:10]
            if inode in held and (state == LISTEN or name.startswith("udp")):
                inet.append(f"{name} {readable(local)}")
    for row in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = row.split()
        if fields[6] in held and int(fields[3], 16) & UNIX_LISTENS:
            unix.append(fields[7])
    return inet, unix


def readable(local: str) -> str:
    """The kernel's form of an address, in words of the machine's byte order, as usual."""
    words = bytes.fromhex(local.partition(":")[0])
    swapped = b"".join(word[::-1] for word in struct.unpack("4s" * (len(words) // 4), words))
    if len(words) == 4 and sys.byteorder == "little":
        return socket.inet_ntop(socket.AF_INET, swapped)
    return socket.inet_ntop(socket.AF_INET6, swapped) if len(words) == 16 else local


def test_a_cluster_of_this_machine_listens_on_the_loopback_and_in_its_own_directory() -> None:
    head = start("--head", "--port=0")
    member = start(f"--address={head.cluster}")
    with Driver(PROGRAM) as driver:
        driver.hear()
        inet, unix = listening([*processes_of(head, member), driver.pid])
        assert inet == ["tcp 127.0.0.1"] * 2  # one a node
        folders = tuple(f"{node.session_dir}/sockets/" for node in (head, member))
        assert [path for path in unix if not path.startswith(folders)] == []
        assert len(unix) >= 6
        driver.say("done")
        assert driver.end()[0] == 0


def test_a_programs_own_cluster_listens_on_no_port() -> None:
    with Driver(PROGRAM) as driver:
        driver.hear()
        inet, unix = listening([driver.pid, *tree(driver.pid)])
        assert inet == []
        assert len(unix) >= 4
        assert len({Path(path).parent for path in unix}) == 1
        driver.say("done")
        assert driver.end()[0] == 0


# -- What is written and shown


def test_no_secret_is_in_logs_command_lines_environments_or_messages(temp_dir: Path) -> None:
    head = start("--head", "--port=0", *ANYWHERE)
    create_token(other := f"{temp_dir}/elsewhere/token")
    said = [raylite("start", f"--address={head.cluster}", f"--token-file={other}")]
    assert said[0].returncode == 1
    member = start(f"--address={head.cluster}", f"--token-file={head.token_file}")
    with Driver(PROGRAM) as driver:
        driver.hear()
        watched = Watch(gcs := component(head, "gcs"))
        os.kill(gcs, signal.SIGKILL)
        assert watched.left_after(SOON) == []
        watched.close()
        assert eventually(lambda: len(nodes(head)) == 2)
        said += [raylite("status"), raylite("health-check"), raylite("start", "--head", "--port=1")]
        shown = {f"command {number}": f"{each.stdout}{each.stderr}".encode()
                 for number, each in enumerate(said)}  # fmt: skip
        for process in Path("/proc").iterdir():
            for name in ("cmdline", "environ"):
                with suppress(OSError):
                    shown[f"{process}/{name}"] = (process / name).read_bytes()
        assert f"/proc/{head.pid}/cmdline" in shown
        assert any(f"/proc/{pid}/environ" in shown for pid in workers(head.pid))
        own = {*head_secrets(head, member), Path(other)}
        for path in temp_dir.rglob("*"):
            if path.is_file() and path not in own:
                shown[str(path)] = path.read_bytes()
        assert any(name.endswith("gcs.db") for name in shown)
        driver.say("done")
        code, errors = driver.end()
        assert code == 0
        shown["the driver"] = errors.encode()
    secrets = [form for path in own for form in forms(path)]
    assert len(secrets) == 4 * 3 + 3
    assert [name for name, text in shown.items() if any(each in text for each in secrets)] == []


def head_secrets(*members: NodeRecord) -> list[Path]:
    """The files in which secrets are."""
    return [
        path for node in members for path in (Path(node.token_file), *Path(node.tls).glob("*.key"))
    ]


def forms(path: Path) -> list[bytes]:
    """What would betray the secret in a file, however it was written down."""
    if path.suffix == ".key":
        return [path.read_bytes().splitlines()[1]]
    secret = read_token(str(path)).secret
    return [path.read_bytes().split(b".")[3], secret, secret.hex().encode(), repr(secret).encode()]


def test_the_search_for_secrets_finds_them(temp_dir: Path) -> None:
    create_token(path := f"{temp_dir}/own/token")
    token = read_token(path)
    for text in (token.reveal(), token.secret.hex(), repr(token.secret)):
        assert any(form in text.encode() for form in forms(Path(path)))
    assert records.living() == []
