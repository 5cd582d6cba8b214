"""`raylite.cluster_utils.Cluster`: nodes that are processes, with Ray's interface."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import raylite as ray
from raylite._runtime import records
from raylite._runtime.stopping import stop_nodes
from raylite.cluster_utils import Cluster, Node
from raylite.exceptions import RaySystemError
from raylite.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.cluster.watching import SOON, Driver, Watch, eventually, tree

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]

SMALL: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80_000_000}
KILLED_FREES = 3 * 2.0  # the promise is 2 s; two cores that other tests load may need longer


@ray.remote(num_cpus=0)
def where() -> str:
    return ray.get_runtime_context().get_node_id()


@pytest.fixture(autouse=True)
def temp_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place of its own for each test's clusters, where nothing but they may be, nor stay."""
    with TemporaryDirectory(prefix="rl-") as folder:
        monkeypatch.setenv("RAYLITE_TMPDIR", folder)
        yield Path(folder)
        stop_nodes(force=True)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    arguments = {**SMALL, "_system_config": {"task_oom_retries": 2, "gcs_storage": "redis"}}
    with Cluster(initialize_head=True, connect=True, head_node_args=arguments) as cluster:
        yield cluster


def on(node: Node) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node.node_id, soft=False)


def left(folder: Path) -> dict[str, str]:
    """What sessions have left besides their logs: the files with what is in them."""
    files = (path for path in folder.rglob("*") if path.is_file() and "logs" not in path.parts)
    return {path.name: path.read_text() for path in files}


def test_nodes_join_run_tasks_and_leave(cluster: Cluster, temp_dir: Path) -> None:
    head = cluster.head_node
    assert head is not None
    node = cluster.add_node(**SMALL, resources={"disk": 1}, labels={"zone": "b"}, dashboard_port=1)
    assert cluster.list_all_nodes() == [head, node]
    assert cluster.worker_nodes == {node}
    assert (head.is_head(), node.is_head()) == (True, False)
    assert cluster.address == cluster.gcs_address == head.address == node.gcs_address
    assert ray.cluster_resources()["CPU"] == 2
    assert ray.get_runtime_context().get_node_id() == head.node_id
    assert ray.get(where.options(resources={"disk": 1}).remote()) == node.node_id
    assert ray.get(where.options(label_selector={"zone": "b"}).remote()) == node.node_id
    assert Path(node.get_session_dir_path()).is_dir()
    assert node.process.config.system == {"task_oom_retries": 2}  # the head's are the cluster's
    assert node.address_info["node_id"] == node.node_id

    with pytest.raises(ValueError, match="this process is attached to"):
        cluster.remove_node(head)
    cluster.remove_node(node)
    cluster.wait_for_nodes(SOON)
    assert {row["NodeID"] for row in ray.nodes() if row["Alive"]} == {head.node_id}
    with pytest.raises(ValueError, match="is not a node of this cluster"):
        cluster.remove_node(node)

    cluster.shutdown()
    cluster.shutdown()
    assert not ray.is_initialized()
    assert left(temp_dir) == {}


def test_a_driver_that_is_given_the_address_is_attached_to_the_head() -> None:
    with Cluster(initialize_head=True, head_node_args=SMALL) as cluster:
        first, second = cluster.add_node(wait=False, **SMALL), cluster.add_node(wait=False, **SMALL)
        cluster.wait_for_nodes(60)
        assert cluster.list_all_nodes() == [cluster.head_node, first, second]
        for address in (cluster.address, "auto"):
            with ray.init(address=address) as context:
                assert [context["node_id"]] == [cluster.list_all_nodes()[0].node_id]
                assert len(ray.nodes()) == 3


def test_a_program_that_calls_init_finds_the_cluster_by_its_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Cluster(initialize_head=True, head_node_args=SMALL) as cluster:
        monkeypatch.setenv("RAYLITE_ADDRESS", cluster.address)
        with ray.init() as context:
            assert context["address"] == cluster.address


def test_a_node_whose_power_is_cut_is_known_to_be_dead_soon(cluster: Cluster) -> None:
    cut, killed = cluster.add_node(**SMALL), cluster.add_node(**SMALL)
    assert ray.get(where.options(scheduling_strategy=on(killed)).remote()) == killed.node_id
    cluster.remove_node(cut, allow_graceful=False)
    killed.kill_raylet()
    assert not killed.any_processes_alive()
    assert not cluster.remaining_processes_alive()
    with pytest.raises(RuntimeError, match="no raylet that lives"):
        killed.kill_raylet()
    killed.kill_raylet(check_alive=False)
    cluster.remove_node(killed)
    cluster.wait_for_nodes(KILLED_FREES)
    assert cluster.remaining_processes_alive()


def test_a_killed_gcs_comes_back_with_its_tables(cluster: Cluster) -> None:
    head = cluster.head_node
    assert head is not None
    node = cluster.add_node(**SMALL)
    for _ in range(2):
        head.kill_gcs_server()
        head.start_gcs_server()
    cluster.wait_for_nodes(SOON)
    assert ray.get(where.options(scheduling_strategy=on(node)).remote()) == node.node_id
    with pytest.raises(RuntimeError, match="no GCS that lives"):
        node.kill_gcs_server()


def test_a_node_that_is_missed_is_named(cluster: Cluster) -> None:
    node = cluster.add_node(**SMALL)
    node.kill_all_processes()
    with pytest.raises(
        TimeoutError, match=f"1 nodes instead of 2: missing Node.{node.node_id[:8]}"
    ):
        cluster.add_node(**SMALL)  # by when the other is known to be dead
        cluster.remove_node(cluster.list_all_nodes()[-1])
        assert eventually(lambda: sum(row["Alive"] for row in ray.nodes()) == 1)
        cluster.wait_for_nodes(0.1)


def test_a_node_that_was_killed_is_not_waited_for(cluster: Cluster) -> None:
    node = cluster.add_node(**SMALL)
    node.kill_raylet()
    with pytest.raises(TimeoutError, match=f"missing Node.{node.node_id[:8]}.*`remove_node`"):
        cluster.wait_for_nodes(3600)
    cluster.remove_node(node)
    cluster.wait_for_nodes(KILLED_FREES)


@pytest.mark.parametrize(
    ("given", "error", "reason"),
    [
        ({"cpus": 1}, TypeError, "a node has no argument cpus"),
        ({"num_cpus": -1}, ValueError, "num_cpus"),
        ({"port": 99_999}, ValueError, "port is 0, .* or from 1024 to 65535, not 99999"),
        ({"worker_port_list": "10002,x"}, ValueError, "worker_port_list is 0, .* not 'x'"),
        ({"min_worker_port": 10_003, "max_worker_port": 10_002}, ValueError, "exchange them"),
        ({"node_ip_address": "192.0.2.1"}, RaySystemError, "not an address of this machine"),
        ({"temp_dir": "/" + "long/" * 30}, OSError, "shorter temporary directory"),
    ],
)
def test_what_a_node_cannot_be_is_refused_and_nothing_is_left(
    given: dict[str, object], error: type[Exception], reason: str, temp_dir: Path
) -> None:
    with pytest.raises(error, match=reason):
        Cluster(initialize_head=True, head_node_args=given)
    assert left(temp_dir) == {}


def test_a_port_that_is_taken_is_named(temp_dir: Path) -> None:
    with Cluster(initialize_head=True, head_node_args=SMALL) as cluster:
        port = int(cluster.address.rpartition(":")[2])
        with pytest.raises(ConnectionError, match="a cluster runs at"):
            Cluster(initialize_head=True, head_node_args={"port": port})
        with pytest.raises(RaySystemError, match="is in use"):
            cluster.add_node(node_manager_port=port)
        assert len(cluster.list_all_nodes()) == 1
    assert left(temp_dir) == {}


def test_a_cluster_without_a_head_says_so() -> None:
    with pytest.raises(RuntimeError, match="initialize_head=True"):
        Cluster(connect=True)
    cluster = Cluster()
    for use in (cluster.connect, cluster.wait_for_nodes, lambda: cluster.address):
        with pytest.raises(RuntimeError, match="has no head"):
            use()
    cluster.shutdown()


def test_it_works_on_the_thread_of_a_running_loop() -> None:
    async def use() -> str:
        with Cluster(initialize_head=True, head_node_args=SMALL) as cluster:
            cluster.wait_for_nodes(SOON)
            cluster.connect()
            node: str = await where.remote()
            return node

    assert len(asyncio.run(use())) == 56


# -- Who ends with whom

PROGRAM = """
from raylite.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)

@ray.remote(scheduling_strategy="SPREAD")
def rest():
    print("resting", flush=True)
    time.sleep(1000)

refs = [rest.remote() for _ in range(2)]
say("up")
"""


def test_nothing_is_left_when_the_test_process_is_killed() -> None:
    with Driver(PROGRAM + "hear()") as driver:
        assert driver.hear() == "up"
        driver.watch_tree()
        driver.watch.signal(signal.SIGKILL, driver.pid)
        assert driver.watch.left_after(KILLED_FREES) == []


@pytest.mark.parametrize(
    ("rest", "code"),
    [("ray.get(refs)", -signal.SIGINT), ("hear(); 1 / 0", 1), ("hear()", 0)],
    ids=["ctrl-c", "exception", "end"],
)
def test_nothing_is_left_when_the_program_ends(rest: str, code: int, temp_dir: Path) -> None:
    with Driver(PROGRAM + rest) as driver:
        assert driver.hear() == "up"
        driver.watch_tree()
        if code < 0:
            driver.press_ctrl_c()
        else:
            driver.say("go on")
        assert driver.watch.left_after(SOON) == []
        assert driver.end()[0] == code
    assert left(temp_dir) == {}


def test_ctrl_c_while_a_node_starts_leaves_nothing(temp_dir: Path) -> None:
    program = """
    from raylite.cluster_utils import Cluster
    say("begin")
    Cluster(initialize_head=True)
    """
    with Driver(program) as driver:
        assert driver.hear() == "begin"
        assert eventually(lambda: len(tree(driver.pid)) > 0)
        driver.watch_tree()
        driver.press_ctrl_c()
        assert driver.watch.left_after(SOON) == []
        assert driver.end()[0] == -signal.SIGINT
    assert left(temp_dir) == {}


def test_a_cluster_that_is_to_outlive_its_program_does() -> None:
    program = """
    from raylite.cluster_utils import Cluster
    cluster = Cluster(True, head_node_args={"num_cpus": 1}, shutdown_at_exit=False)
    say(cluster.address)
    """
    with Driver(program) as driver:
        address = driver.hear()
        assert driver.end() == (0, "")
        (node,) = records.living()
        with Watch(node.pid) as watch:
            with ray.init(address=address):
                assert ray.get(where.remote())
            assert stop_nodes().nodes == 1
            assert watch.left_after(SOON) == []
