"""A cluster's token is changed while it works, machine by machine."""

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import uvloop

from raylite._kernel.grpc import GrpcNetwork
from raylite._kernel.keyring import Keyring
from raylite._kernel.pairing import pair
from raylite._kernel.token import issued_beside, read_issued, read_tokens
from raylite._runtime import records
from raylite.exceptions import AuthenticationError
from tests.cluster.started import component, nodes, raylite, start
from tests.cluster.watching import SOON, Driver, Watch, eventually

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

PROGRAM = """
ray.init()

@ray.remote
def near():
    return "near"

@ray.remote(resources={"far": 1})
def far(data):
    return f"far {len(data)}"

while hear():
    say(*ray.get([near.remote(), far.remote(ray.put(bytes(300_000)))]))
"""


@pytest.fixture(autouse=True)
def temp_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with TemporaryDirectory(prefix="rl-") as folder:
        monkeypatch.setenv("RAYLITE_TMPDIR", folder)
        yield Path(folder)
        for place in (folder, f"{folder}/b", f"{folder}/c"):
            raylite("stop", "--force", f"--temp-dir={place}")


def test_a_token_is_replaced_under_a_running_program(temp_dir: Path) -> None:
    head = start("--head", "--port=0")
    (temp_dir / "b").mkdir()
    elsewhere = f"--temp-dir={temp_dir}/b"  # as on another machine: nothing is found there
    joined = raylite(
        "start", f"--address={head.cluster}", f"--token-file={head.token_file}", elsewhere,
        "--num-cpus=1", "--object-store-memory=80000000", '--resources={"far": 1}',
    )  # fmt: skip
    assert joined.returncode == 0, joined.stderr
    [member] = records.living(f"{temp_dir}/b")
    [old] = read_tokens(head.token_file)
    shutil.copy(head.token_file, stolen := f"{temp_dir}/raylite/stolen")
    with Driver(PROGRAM) as driver:
        driver.say("go")
        assert driver.hear() == "near far 300000"

        assert raylite("token", "revoke").returncode == 1
        done = raylite("token", "rotate")
        assert done.returncode == 0, done.stderr
        new, also = read_tokens(head.token_file)
        assert (also, new.id in done.stdout, old.id in done.stdout) == (old, True, True)
        assert raylite("token", "rotate").returncode == 1  # one at a time
        restart_gcs(head)
        driver.say("go")
        assert driver.hear() == "near far 300000"  # one machine knows both, the other the old one

        done = raylite("token", "rotate", f"--token-file={stolen}", elsewhere)
        assert done.returncode == 1
        assert "does not hold a new token beside" in done.stderr
        done = raylite("token", "rotate", f"--token-file={head.token_file}", elsewhere)
        assert done.returncode == 0, done.stderr
        assert read_tokens(member.token_file) == (new, old)

        assert raylite("token", "revoke").returncode == 0
        restart_gcs(head)
        driver.say("go")
        assert driver.hear() == "near far 300000"  # one knows the new one, the other both
        assert raylite("token", "revoke", elsewhere).returncode == 0
        assert [read_tokens(each.token_file) for each in (head, member)] == [(new,)] * 2
        restart_gcs(head)
        driver.say("go")
        assert driver.hear() == "near far 300000"
        assert [row.alive for row in nodes(head)] == [True, True]
        driver.say("")
        assert driver.end()[0] == 0

    done = raylite("status", f"--address={head.cluster}", f"--token-file={stolen}")
    assert done.returncode == 1
    assert "it has another token" in done.stderr
    for secret in (old, new):
        assert secret.reveal().split(".")[3] not in f"{done.stdout}{done.stderr}"


def restart_gcs(head: records.NodeRecord) -> None:
    """Have all that is connected to the GCS connect anew."""
    watched = Watch(gcs := component(head, "gcs"))
    os.kill(gcs, signal.SIGKILL)
    assert watched.left_after(SOON) == []
    watched.close()
    assert eventually(lambda: len(nodes(head)) == 2)


def test_a_node_of_another_cluster_takes_no_token(temp_dir: Path) -> None:
    head = start("--head", "--port=0")
    (temp_dir / "b").mkdir()
    other = raylite("start", "--head", "--port=0", f"--temp-dir={temp_dir}/b")
    assert other.returncode == 0, other.stderr
    assert raylite("token", "rotate").returncode == 0
    done = raylite("token", "rotate", f"--token-file={head.token_file}", f"--temp-dir={temp_dir}/b")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1


def test_without_a_node_there_is_no_token_to_change() -> None:
    for word in ("rotate", "revoke"):
        done = raylite("token", word)
        assert (done.returncode, done.stdout) == (1, "")
        assert "no node of that cluster runs on this machine" in done.stderr


def test_a_token_that_is_issued_allows_what_its_scope_says_until_it_is_revoked(
    temp_dir: Path,
) -> None:
    head = start("--head", "--port=0")
    [own] = read_tokens(head.token_file)
    read = f"{temp_dir}/read"
    done = raylite("token", "issue", read)
    assert done.returncode == 0, done.stderr
    [token] = read_tokens(read)
    assert (token.scope, token.id in done.stdout) == ("read", True)
    assert read_tokens(head.token_file) == (own,)  # for copies of it are made
    assert read_issued(head.token_file) == (token,)
    assert raylite("token", "issue", read).returncode == 1  # the file is there

    elsewhere = f"--temp-dir={temp_dir}/b"
    (temp_dir / "b").mkdir()
    asked = ("status", f"--address={head.cluster}", f"--token-file={read}")
    done = raylite(*asked)
    assert done.returncode == 0, done.stderr
    done = raylite("start", f"--address={head.cluster}", f"--token-file={read}", elsewhere)
    assert done.returncode == 1
    assert "of the scope 'read', does not let you ask this" in done.stderr
    assert raylite("token", "rotate").returncode == 0  # which leaves it as it is
    assert token not in read_tokens(head.token_file)
    assert read_issued(head.token_file) == (token,)

    assert raylite("token", "revoke", "--id=12345678").returncode == 1
    done = raylite("token", "revoke", f"--id={token.id}")
    assert done.returncode == 0, done.stderr
    assert read_issued(head.token_file) == ()
    done = raylite(*asked)
    assert (done.returncode, "it has another token" in done.stderr) == (1, True), done.stderr

    assert raylite("token", "issue", f"{temp_dir}/another").returncode == 0
    assert os.path.exists(issued_beside(head.token_file))
    assert raylite("stop").returncode == 0
    assert not os.path.exists(issued_beside(head.token_file))


MIXED = """
ray.init()

@ray.remote
def made(size):
    return bytes(size)

@ray.remote
def measured(data):
    return len(data)

def through(first, second):
    data = made.options(resources={first: 1}).remote(300_000)
    return ray.get(measured.options(resources={second: 1}).remote(data))

while pair := hear():
    say(through(*pair.split()))
"""


def test_nodes_know_one_another_whichever_token_they_have_joined_with(
    temp_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = start("--head", "--port=0")
    lesser, other = f"{temp_dir}/lesser", f"{temp_dir}/other"

    def join(place: str, token_file: str, resources: str) -> records.NodeRecord:
        (temp_dir / place).mkdir()
        done = raylite(
            "start", f"--address={head.cluster}", f"--token-file={token_file}", "--num-cpus=1",
            f"--temp-dir={temp_dir}/{place}", "--object-store-memory=80000000",
            f"--resources={resources}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return records.living(f"{temp_dir}/{place}")[0]

    assert raylite("token", "issue", lesser, "--scope=node").returncode == 0
    [token] = read_tokens(lesser)
    member = join("b", head.token_file, "{}")
    assert read_issued(member.token_file) == (token,)  # from its first moment
    joined = join("c", lesser, '{"c": 1}')
    assert read_tokens(joined.token_file) == (token,)  # and not the cluster's own
    assert raylite("token", "issue", other, "--scope=node").returncode == 0
    [second] = read_tokens(other)
    last = join("d", other, '{"d": 1}')
    shared = pair(token, second)
    assert read_issued(last.token_file) == read_issued(joined.token_file) == (shared,)

    monkeypatch.setenv("RAYLITE_TMPDIR", f"{temp_dir}/b")
    with Driver(MIXED) as driver:
        for two in ("c d", "d c"):
            driver.say(two)
            assert driver.hear() == "300000"
        done = raylite("token", "issue", f"{temp_dir}/no")
        assert (done.returncode, "runs on another machine" in done.stderr) == (1, True)

        monkeypatch.setenv("RAYLITE_TMPDIR", str(temp_dir))
        [raylet] = [row.address for row in nodes(head) if "c" in row.resources]
        uvloop.run(revoked_under(raylet, Keyring(second, shared), second.id))
        assert eventually(lambda: read_issued(member.token_file) == (token,))
        assert read_issued(joined.token_file) == ()
        driver.say("c c")
        assert driver.hear() == "300000"
        driver.say("")
        assert driver.end()[0] == 0
    done = raylite("token", "revoke", f"--id={token.id}")
    assert done.returncode == 0, done.stderr
    assert eventually(lambda: read_issued(member.token_file) == ())


async def revoked_under(raylet: str, keyring: Keyring, id: str) -> None:
    """See a node's token revoked while that node has a wire to another's raylet, which is cut."""
    network = GrpcNetwork(token=keyring)
    link = network.connect(raylet)
    ended = asyncio.Event()
    link.on_end(lambda link: ended.set())
    await link.wait_received()  # it is open
    assert not link.is_ended
    done = await asyncio.to_thread(raylite, "token", "revoke", f"--id={id}")
    assert done.returncode == 0, done.stderr
    await asyncio.wait_for(ended.wait(), SOON)
    assert isinstance(link.error, AuthenticationError)
    await network.close()
