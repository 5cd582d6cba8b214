"""A cluster that `raylite start` began: how it stands, how it ends, and what is left after a crash."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import uvloop

from raylite._kernel import processes
from raylite._kernel.tls import fetch_authority
from raylite._kernel.token import create_token
from raylite._runtime import credentials, folders, lost, node, records
from raylite._runtime.records import NodeRecord
from raylite._runtime.stopping import Stopped, stop_nodes
from raylite._services.gcs.storage.sqlite import SqliteStorage
from tests.cluster.started import PROGRAM, begin, component, epoch, nodes, raylite, start
from tests.cluster.watching import SOON, Driver, Watch, eventually, title, titled, tree
from tests.programs import ROOT, Program

FINGERPRINT = f"sha256:{0:064}"
ANYWHERE = ("--bind=0.0.0.0", "--node-ip-address=127.0.0.1")  # reached here, but listening there

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def temp_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place of its own for each test's clusters, which end with it."""
    with TemporaryDirectory(prefix="rl-") as folder:
        monkeypatch.setenv("RAYLITE_TMPDIR", folder)
        yield Path(folder)
        raylite("stop", "--force")
        assert records.living() == []


def watch(*found: NodeRecord) -> Watch:
    return Watch(*(pid for node in found for pid in (node.pid, *tree(node.pid))))


def left(*watched: Watch) -> list[str]:
    """Wait for the end of processes; describe those that live."""
    lines = [line for each in watched for line in each.left_after(SOON)]
    for each in watched:
        each.close()
    return lines


# -- It stands


def test_a_head_outlives_the_command_that_started_it_and_says_how_to_go_on() -> None:
    done = raylite("start", "--head", "--port=0", "--num-cpus=1")
    (head,) = records.living()
    assert done.returncode == 0
    assert f"raylite start --address={head.cluster}\n" in done.stdout
    assert "ray.init()" in done.stdout
    assert "raylite stop" in done.stdout
    assert title(head.pid) == "raylite: node"
    assert os.getsid(head.pid) == head.pid
    assert Path(head.session_dir).parent.joinpath(node.LATEST).resolve() == Path(head.session_dir)


def test_a_node_joins_by_the_heads_address_and_by_its_session() -> None:
    head = start("--head", "--port=0")
    others = [start(f"--address={head.cluster}"), start(f"--address={head.session_dir}")]
    rows = nodes(head)
    assert [row.head for row in rows] == [True, False, False]
    assert {row.pid for row in rows} == {component(each, "raylet") for each in (head, *others)}
    assert {each.cluster for each in others} == {head.cluster}


def test_status_and_health_check_know_the_cluster() -> None:
    assert raylite("health-check").returncode == 1
    head = start("--head", "--port=0", "--labels=zone=kitchen", '--resources={"oven": 2}')
    start("--address=auto")
    assert raylite("health-check").returncode == 0
    assert raylite("health-check", f"--address={head.cluster}").returncode == 0
    shown = raylite("status").stdout
    assert "(head, " in shown
    assert " 0.0/4.0 CPU\n" in shown
    assert " 0.0/2.0 oven\n" in shown
    assert " 0B/152.6MiB object_store_memory\n" in shown
    assert nodes(head)[0].labels["zone"] == "kitchen"


def test_status_shows_what_waits_and_what_can_never_run() -> None:
    start("--head", "--port=0")
    program = """
    ray.init("auto")
    @ray.remote
    def hold():
        threading.Event().wait()
    refs = [hold.remote() for _ in range(12)] + [hold.options(num_gpus=2).remote()]
    say("submitted")
    hear()
    """
    waiting = " {'CPU': 1.0}: 10+ pending tasks/actors\n"
    stuck = " {'CPU': 1.0, 'GPU': 2.0}: 1+ pending tasks/actors, infeasible: no node can run them\n"
    with Driver(program) as driver:
        assert driver.hear() == "submitted"
        assert eventually(lambda: waiting + stuck in raylite("status").stdout)
    assert eventually(lambda: " (no resource demands)\n" in raylite("status").stdout)


def test_a_second_head_at_the_same_port_is_refused_and_leaves_nothing() -> None:
    head = start("--head", "--port=0")
    port = head.cluster.rpartition(":")[2]
    done = raylite("start", "--head", f"--port={port}")
    assert done.returncode == 1
    assert f"raylite start --address={head.cluster}" in done.stderr
    done = raylite(
        "start", "--head", f"--port={port}", "--temp-dir", os.environ["RAYLITE_TMPDIR"] + "/b"
    )
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1 is in use" in done.stderr
    assert "--port" in done.stderr
    assert records.living() == [head]


def test_who_does_not_have_the_clusters_token_is_refused_and_leaves_nothing(
    temp_dir: Path,
) -> None:
    head = start("--head", "--port=0")
    elsewhere = temp_dir / "e"
    elsewhere.mkdir(0o700)
    other, junk = elsewhere / "other", elsewhere / "junk"
    create_token(str(other))
    junk.write_text("rl1.junk")
    junk.chmod(0o600)
    refused = f"the cluster at {head.cluster} refuses this process"
    for command, words, reason in (
        ("start", [], f"{refused}: it asks for the cluster's token, and this process has none"),
        ("start", [f"--token-file={other}"], f"{refused}: it has another token"),
        ("status", [f"--token-file={other}"], f"{refused}: it has another token"),
        ("start", [f"--token-file={junk}"], f"{junk} cannot be read: this is no token"),
        ("start", [f"--token-file={elsewhere}/no"], f"{elsewhere}/no does not exist: copy it"),
    ):
        done = raylite(command, f"--address={head.cluster}", f"--temp-dir={elsewhere}", *words)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"Error: {reason}")
    assert not list(elsewhere.glob("*/*/sockets"))
    assert len(nodes(head)) == 1


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--address=127.0.0.1:1"], "Is its head running"),
        (["--address=nonsense"], "HOST:PORT"),
        (["--address=/nowhere/session"], "no running cluster"),
        (["--head", "--port=0", "--storage=nonsense"], "is not a storage"),
        (
            ["--head", "--port=0", "--storage=/nowhere/gcs.db"],
            "/nowhere is no directory, so make it first",
        ),
        (["--address=192.0.2.7:6379"], "Add --ca-fingerprint"),
        (["--address=127.0.0.1:1", "--node-ip-address=192.0.2.7"], "makes it encrypt"),
        (["--head", "--port=0", f"--ca-fingerprint={FINGERPRINT}"], "leave --ca-fingerprint out"),
        (
            ["--head", "--port=0", "--node-ip-address=192.0.2.7"],
            "is not an address of this machine",
        ),
        (["--head", "--port=0", "--node-ip-address=a.name"], "is no IP address"),
        (["--head", "--port=0", "--bind=0.0.0.0"], "where others reach this node"),
        (["--head", "--port=0", "--node-ip-address=::"], "where others reach this node"),
        (["--head", "--port=0", "--bind=::", "--node-ip-address=127.0.0.1"], "both of IPv4"),
        (
            ["--head", "--port=0", *ANYWHERE, "--insecure-plaintext"],
            "set RAYLITE_INSECURE_PLAINTEXT=1 as well",
        ),
        (
            ["--head", "--port=0", "--bind=0::0", "--node-ip-address=::1", "--insecure-plaintext"],
            "set RAYLITE_INSECURE_PLAINTEXT=1 as well",
        ),
    ],
    ids=str,
)
def test_what_cannot_start_says_why_and_leaves_nothing(words: list[str], hint: str) -> None:
    done = raylite("start", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert hint in done.stderr
    assert "Traceback" not in done.stderr
    assert records.living() == []
    assert not list(Path(os.environ["RAYLITE_TMPDIR"]).glob("*/*/sockets"))


def test_a_head_that_cannot_make_certificates_says_what_to_install() -> None:
    code = f"import sys; sys.modules['cryptography'] = None; {PROGRAM}"
    words = ["start", "--head", "--port=0", "--node-ip-address=192.0.2.7"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True, text=True, check=False, timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "run pip install 'raylite[tls]'" in done.stderr
    assert not list(Path(os.environ["RAYLITE_TMPDIR"]).glob("*/session_2*"))


def test_plain_text_on_every_network_is_spoken_when_it_was_said_twice_and_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAYLITE_INSECURE_PLAINTEXT", "1")
    done = raylite("start", "--head", "--port=0", "--num-cpus=1", *ANYWHERE, "--insecure-plaintext")
    assert done.returncode == 0
    assert "WARNING: nothing that this node says to others is encrypted." in done.stderr
    assert "--ca-fingerprint" not in done.stdout
    (head,) = records.living()
    assert (head.tls, Path(head.session_dir, "tls").exists()) == ("", False)


def test_a_head_that_listens_on_every_network_encrypts() -> None:
    head = start("--head", "--port=0", *ANYWHERE)
    assert {path.name for path in Path(head.tls).iterdir()} == {
        "ca.key", "ca.pem", "node.key", "node.pem",
    }  # fmt: skip
    start(f"--address={head.cluster}")
    other = start(f"--address={head.session_dir}")
    assert {path.name for path in Path(other.tls).iterdir()} == {"ca.pem", "node.key", "node.pem"}
    assert [row.alive for row in nodes(head)] == [True] * 3
    port = int(head.cluster.rpartition(":")[2])
    contact = fetch_authority("127.0.0.1", port, credentials.pin(other.tls))
    assert contact.authority == credentials.authority(head.tls)
    read = f"{Path(head.session_dir).parent}/read"
    assert raylite("token", "issue", read).returncode == 0
    outside = f"--address={head.cluster}", f"--token-file={read}", "--temp-dir=/nowhere"
    done = raylite("status", *outside, f"--ca-fingerprint={credentials.pin(other.tls)}")
    assert done.stdout.count(" node_") == 3, done.stderr
    done = raylite("health-check", *outside, f"--ca-fingerprint={FINGERPRINT}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "it is of another cluster" in done.stderr
    assert raylite("stop").stdout == "Stopped 3 nodes.\n"
    assert not Path(head.session_dir).exists()


def test_a_command_that_is_killed_while_it_starts_a_node_leaves_nothing(temp_dir: Path) -> None:
    with begin("start", "--head", "--port=0") as command:
        assert eventually(lambda: bool(list(temp_dir.glob("raylite/*/logs/node.log"))))
        pids = tree(command.pid)
        watched = Watch(*pids)
        command.kill()
    assert left(watched) == []
    assert eventually(lambda: records.living() == [])


def await_start(command: Program) -> None:
    """Wait until a command in the foreground says that its node has joined."""
    assert command.stdout is not None
    assert "head of a new cluster" in command.stdout.readline()


def test_a_node_that_was_started_in_the_foreground_ends_with_its_command() -> None:
    with begin("start", "--head", "--port=0", "--block") as command:
        await_start(command)
        watched = watch(*records.living())
        command.terminate()
        assert command.wait(SOON) == 0
    assert left(watched) == []


def test_a_command_in_the_foreground_says_which_process_died() -> None:
    with begin("start", "--head", "--port=0", "--block") as command:
        await_start(command)
        (head,) = records.living()
        watched = watch(head)
        os.kill(pid := component(head, "raylet"), signal.SIGKILL)
        _, errors = command.communicate(timeout=SOON)
    assert command.returncode == 1
    assert f"the node's raylet process (pid {pid}) ended: killed by SIGKILL" in errors
    assert left(watched) == []


def test_a_command_in_the_foreground_ends_well_when_its_node_is_stopped() -> None:
    with begin("start", "--head", "--port=0", "--block") as command:
        await_start(command)  # a node that is stopped before has failed to start
        assert raylite("stop").stdout == "Stopped 1 node.\n"
        assert command.wait(SOON) == 0


# -- Its GCS


def test_a_gcs_that_is_killed_comes_back_with_its_tables() -> None:
    head = start("--head", "--port=0")
    other = start(f"--address={head.cluster}")
    before, first = nodes(head), epoch(head)
    watched = Watch(gcs := component(head, "gcs"))
    os.kill(gcs, signal.SIGKILL)
    assert left(watched) == []
    after = nodes(head)
    assert {row.node_id for row in after} == {row.node_id for row in before}
    assert all(row.alive for row in after)
    assert epoch(head) == first + 1
    assert component(head, "gcs") != gcs
    # It goes on hearing of its nodes: the end of one is noted.
    os.kill(component(other, "raylet"), signal.SIGKILL)
    assert eventually(
        lambda: {row.head: row.alive for row in nodes(head)} == {True: True, False: False}
    )


def test_a_gcs_that_ends_again_and_again_ends_its_node() -> None:
    head = start("--head", "--port=0")
    watched = watch(head)
    for _ in range(6):
        (gcs,) = titled("raylite: gcs", head.pid)
        os.kill(gcs, signal.SIGKILL)
        assert eventually(lambda: not head.is_living or has_another_gcs(head, gcs))  # noqa: B023
    assert left(watched) == []
    assert raylite("health-check").returncode == 1


def test_a_gcs_that_is_killed_while_its_disk_is_full_waits_and_its_node_goes_on() -> None:
    head = start("--head", "--port=0")
    log = Path(head.session_dir) / "logs" / "gcs.log"
    before, first = nodes(head), epoch(head)
    gcs = component(head, "gcs")
    # The kernel lets nothing that the fork server begins from now on make a file longer than this.
    _, limit = resource.prlimit(head.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(head.pid, resource.RLIMIT_FSIZE, (4096, limit))
    os.kill(gcs, signal.SIGKILL)
    assert eventually(lambda: log.read_text().count("the GCS waits for its tables") == 3)
    waiting = component(head, "gcs")
    resource.prlimit(waiting, resource.RLIMIT_FSIZE, (limit, limit))
    assert epoch(head) == first + 1
    assert [row.node_id for row in nodes(head) if row.alive] == [row.node_id for row in before]
    assert component(head, "gcs") == waiting != gcs


def has_another_gcs(head: NodeRecord, gcs: int) -> bool:
    return [pid for pid in titled("raylite: gcs", head.pid) if pid != gcs] != []


def test_damage_to_the_tables_is_told_where_the_head_is_started(temp_dir: Path) -> None:
    path = temp_dir / "tables.db"

    async def fill() -> None:
        storage = await SqliteStorage.open(path)
        for number in range(100):
            await storage.put("t", b"key %02d" % number, bytes(100))
        await storage.close()

    uvloop.run(fill())
    sound = path.read_bytes()
    astray = sound.index(b"tkey 20")
    path.write_bytes(sound[:astray] + b"u" + sound[astray + 1 :])
    done = raylite("start", "--head", "--port=0", "--num-cpus=1", f"--storage={path}")
    assert done.returncode == 0
    assert f"WARNING: {path} was damaged" in done.stderr
    assert f"is kept as {path}.damaged" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_storage_that_was_named_keeps_the_tables_for_the_next_cluster(temp_dir: Path) -> None:
    storage = f"--storage={temp_dir}/tables.db"
    first = nodes(start("--head", "--port=0", storage))
    assert raylite("stop").returncode == 0
    head = start("--head", "--port=0", storage)
    rows = {row.node_id: row for row in nodes(head)}
    assert len(rows) == 2
    assert eventually(lambda: not {r.node_id: r.alive for r in nodes(head)}[first[0].node_id])


# -- It ends


def test_stop_ends_every_node_and_says_how_many_and_again_that_there_is_none() -> None:
    head = start("--head", "--port=0")
    other = start(f"--address={head.cluster}")
    watched = watch(head, other)
    done = raylite("stop")
    assert (done.returncode, done.stdout) == (0, "Stopped 2 nodes.\n")
    assert left(watched) == []
    assert not Path(head.session_dir).exists()
    assert raylite("stop").stdout == "No node of yours was running on this machine.\n"


def test_stop_by_force_kills_what_does_not_hear() -> None:
    head = start("--head", "--port=0")
    watched = watch(head)
    os.kill(head.pid, signal.SIGSTOP)
    done = raylite("stop", "--force")
    assert (done.returncode, done.stdout) == (0, "Stopped 1 node, 1 of them by force.\n")
    assert left(watched) == []
    assert not Path(head.session_dir, "sockets").exists()


def test_a_node_that_does_not_end_in_its_grace_is_killed() -> None:
    head = start("--head", "--port=0")
    watched = watch(head)
    os.kill(component(head, "raylet"), signal.SIGSTOP)
    done = raylite("stop", "--grace-period=0.2")
    assert done.returncode == 0
    assert left(watched) == []


def test_a_node_that_stands_still_as_a_whole_has_its_grace_and_no_more() -> None:
    head = start("--head", "--port=0")
    watched = watch(head)
    os.kill(head.pid, signal.SIGSTOP)
    assert stop_nodes(grace=0.2, patience=3600) == Stopped(1, 1, 0)
    assert left(watched) == []


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1"])
def test_a_grace_is_a_number_of_seconds(seconds: str) -> None:
    done = raylite("stop", f"--grace-period={seconds}")
    assert done.returncode == 2
    assert "--grace-period" in done.stderr


@pytest.mark.parametrize("words", [(), ("--force",)], ids=["in order", "by force"])
def test_stop_ends_a_node_whose_session_somebody_has_removed(words: tuple[str, ...]) -> None:
    head = start("--head", "--port=0")
    watched = watch(head)
    shutil.rmtree(Path(head.session_dir).parent)
    done = raylite("stop", *words)
    by_force = ", 1 of them by force" if words else ""
    assert (done.returncode, done.stdout) == (0, f"Stopped 1 node{by_force}.\n")
    assert left(watched) == []
    start("--head", f"--port={head.cluster.rpartition(':')[2]}")


def test_stop_leaves_a_programs_own_cluster_whose_session_was_removed() -> None:
    with Driver("ctx = ray.init('local', num_cpus=1)\nsay(ctx['session_dir'])\nhear()\n") as driver:
        shutil.rmtree(Path(driver.hear()).parent)
        assert lost.find() == []
        assert raylite("stop").stdout == "No node of yours was running on this machine.\n"
        driver.say("done")
        assert driver.end()[0] == 0


def test_when_a_nodes_raylet_dies_the_node_ends_and_the_cluster_goes_on() -> None:
    head = start("--head", "--port=0")
    other = start(f"--address={head.cluster}")
    watched = watch(other)
    os.kill(component(other, "raylet"), signal.SIGKILL)
    assert left(watched) == []
    assert eventually(lambda: [row.alive for row in nodes(head)] == [True, False])
    assert records.living() == [head]


# -- After a crash


def test_the_traces_of_a_node_that_was_killed_are_no_cluster_and_are_cleared_up() -> None:
    head = start("--head", "--port=0")
    watched = watch(head)
    os.kill(head.pid, signal.SIGKILL)
    assert left(watched) == []
    assert records.read(Path(head.session_dir)) == head  # it could not remove its record
    assert raylite("health-check").returncode == 1
    done = raylite("stop")
    assert done.stdout.endswith("Cleared up after 1 node that had crashed.\n")
    assert not Path(head.session_dir, "sockets").exists()
    start("--head", f"--port={head.cluster.rpartition(':')[2]}")


def test_a_session_that_was_half_made_is_cleared_up_by_the_next_start() -> None:
    with subprocess.Popen(["true"]) as dead:
        pass
    session = folders.make_session_dir()
    half = session.rename(session.parent / f"session_2026-01-01_00-00-00_000000_{dead.pid}")
    start("--head", "--port=0")
    assert not half.exists()


def test_a_node_whose_process_cannot_be_seen_is_left_alone_while_its_door_is_open() -> None:
    head = start("--head", "--port=0")
    path = Path(head.session_dir, "node.json")
    record = path.read_text()
    path.write_text(record.replace(head.birth, "another boot:1"))  # so it looks from a container
    assert records.tidy() == 0
    assert Path(head.session_dir, "sockets").exists()
    path.write_text(record)


def test_a_record_is_not_believed_of_another_process_with_the_pid() -> None:
    head = start("--head", "--port=0")
    path = Path(head.session_dir, "node.json")
    own = processes.birth(os.getpid())
    path.write_text(path.read_text().replace(f'"pid":{head.pid}', f'"pid":{os.getpid()}'))
    assert own not in path.read_text()
    assert records.living() == []
    path.write_text(path.read_text().replace(f'"pid":{os.getpid()}', f'"pid":{head.pid}'))
    assert records.living() == [head]
