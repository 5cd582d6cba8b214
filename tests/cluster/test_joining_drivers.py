"""Drivers on a cluster that was there before them: how they find it, share it, and leave it."""

import os
import signal
import time
from collections.abc import Iterator
from tempfile import TemporaryDirectory

import pytest

from raylite._runtime import records
from raylite._runtime.records import NodeRecord
from raylite._wire.messages import gcs as msg
from tests.api.drivers import drive, drive_well
from tests.cluster.started import component, jobs, nodes, raylite, start, workers
from tests.cluster.watching import Driver, Watch, eventually, titled, tree

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

ADDRESS = "print(ray.init().address_info['address'])"


@pytest.fixture(scope="module")
def head() -> Iterator[NodeRecord]:
    """One cluster for these tests, which leave it as they found it."""
    before = os.environ["RAYLITE_TMPDIR"]
    with TemporaryDirectory(prefix="rl-") as folder:
        os.environ["RAYLITE_TMPDIR"] = folder
        try:
            yield start("--head", "--port=0")
        finally:
            raylite("stop")
            os.environ["RAYLITE_TMPDIR"] = before


# -- They find it


@pytest.mark.parametrize("address", ["", "'auto'", "'{cluster}'", "'{session_dir}'", "'{gcs}'"])
def test_a_driver_finds_the_cluster(head: NodeRecord, address: str) -> None:
    given = address.format(cluster=head.cluster, session_dir=head.session_dir, gcs=head.gcs)
    out = drive_well(f"""
    context = ray.init({given})
    print(context["address"], context["session_dir"], context["node_ip_address"])
    print(len(ray.nodes()), ray.nodes()[0]["NodeID"] == context["node_id"])
    """)
    assert out == f"{head.cluster} {head.session_dir} 127.0.0.1\n1 True\n"


@pytest.mark.parametrize("name", ["RAYLITE_ADDRESS", "RAY_ADDRESS"])
def test_the_environment_may_name_the_cluster(head: NodeRecord, name: str) -> None:
    with TemporaryDirectory() as elsewhere:
        environment = {name: head.session_dir, "RAYLITE_TMPDIR": elsewhere}
        assert drive_well(ADDRESS, environment) == f"{head.cluster}\n"
        assert drive_well("ray.init('auto'); print(len(ray.nodes()))", environment) == "1\n"


def test_raylites_own_variable_comes_before_rays(head: NodeRecord) -> None:
    environment = {"RAYLITE_ADDRESS": head.cluster, "RAY_ADDRESS": "127.0.0.1:1"}
    assert drive_well(ADDRESS, environment) == f"{head.cluster}\n"


def test_local_is_always_a_new_cluster(head: NodeRecord) -> None:
    for script, environment in (
        ("ray.init('local')", {}),
        ("ray.init()", {"RAY_ADDRESS": "local"}),
    ):
        out = drive_well(f"print({script}['session_dir'])", environment)
        assert out.strip() != head.session_dir
    assert records.living() == [head]


def test_the_first_use_joins_the_cluster(head: NodeRecord) -> None:
    out = drive_well("ray.get(ray.put(1)); print(ray.cluster_resources()['CPU'])")
    assert out == "2.0\n"


def test_a_drivers_own_cluster_can_be_joined_by_its_session_too(head: NodeRecord) -> None:
    with Driver("""
    say(ray.init("local", num_cpus=1, namespace="owner")["session_dir"])
    hear()
    """) as owner:
        session = owner.hear()
        out = drive_well(f"ray.init({session!r}); print(ray.cluster_resources()['CPU'])")
        assert out == "1.0\n"
        owner.say("end")
        assert owner.end()[0] == 0


@pytest.mark.parametrize(
    "options", ["num_cpus=1", "num_gpus=1", "resources={'a': 1}", "labels={'a': 'b'}",
                "object_store_memory=10**8", "_system_config={}", "_node_name='n'"]
)  # fmt: skip
def test_what_only_a_new_cluster_can_have_is_refused_with_the_fix(
    head: NodeRecord, options: str
) -> None:
    done = drive(f"ray.init({options})")
    assert "ValueError: When connecting to an existing cluster" in done.stderr
    assert options.partition("=")[0] in done.stderr
    assert 'address="local"' in done.stderr


@pytest.mark.anew
@pytest.mark.parametrize(
    "lie", ["v.__version__ = '9.9'", "platform.python_version = lambda: '2.7.1'"]
)
def test_a_driver_of_another_version_is_refused_with_both(head: NodeRecord, lie: str) -> None:
    done = drive(f"""
    import platform
    import raylite._version as v
    {lie}
    ray.init()
    """)
    assert "RuntimeError: the cluster runs" in done.stderr
    assert "9.9" in done.stderr or "2.7.1" in done.stderr


# -- They share it


TWO = """
@ray.remote
def facts():
    time.sleep(0.2)
    return os.getpid(), ray.get_runtime_context().namespace, os.environ.get("OVEN")

@ray.remote
def nested():
    return ray.get(facts.remote())

ray.init(namespace={name!r}, runtime_env={{"env_vars": {{"OVEN": {name!r}}}}})
say(ray.get_runtime_context().get_job_id())
hear()
for task in (facts, facts, nested):
    say(*ray.get(task.remote()))
hear()
ray.shutdown()
say("left")
hear()
"""


def test_two_drivers_at_once_share_neither_workers_nor_namespaces(head: NodeRecord) -> None:
    with Driver(TWO.format(name="one")) as one, Driver(TWO.format(name="two")) as two:
        drivers = {"one": one, "two": two}
        ids = {name: driver.hear() for name, driver in drivers.items()}
        for driver in drivers.values():
            driver.say("go")
        used = {name: [driver.hear().split() for _ in range(3)] for name, driver in drivers.items()}
        pids = {name: {pid for pid, _, _ in facts} for name, facts in used.items()}
        assert pids["one"].isdisjoint(pids["two"])
        for name, facts in used.items():
            assert {(space, oven) for _, space, oven in facts} == {(name, name)}

        rows = jobs(head)
        for name, driver in drivers.items():
            row = rows[name]
            assert (row.job_id.hex(), row.driver_pid, row.finished) == (
                ids[name],
                driver.pid,
                False,
            )
            assert row.entrypoint
            assert row.node_id == nodes(head)[0].node_id

        one.say("leave")
        assert one.hear() == "left"
        assert jobs(head)["one"].state is msg.JobState.SUCCEEDED
        assert not jobs(head)["two"].finished
        for driver in drivers.values():
            driver.say("end")


def test_large_objects_are_read_from_the_nodes_memory(head: NodeRecord) -> None:
    out = drive_well("""
    import numpy as np
    @ray.remote
    def make(n): return np.arange(n)
    ray.init()
    array = ray.get(make.remote(1_000_000))
    print(int(array[-1]), array.flags.writeable)
    """)
    assert out == "999999 False\n"


def test_workers_find_the_modules_that_the_driver_finds(head: NodeRecord) -> None:
    with TemporaryDirectory() as folder:
        with open(f"{folder}/kitchen.py", "w") as module:
            module.write("def bake(): return 'bread'\n")
        out = drive_well(f"""
        sys.path.append({folder!r})
        import kitchen
        ray.init()
        print(ray.get(ray.remote(kitchen.bake).remote()))
        """)
    assert out == "bread\n"


def test_names_of_files_need_not_be_text(head: NodeRecord) -> None:
    with TemporaryDirectory() as folder:
        place = os.fsencode(folder) + b"/\xff"
        os.mkdir(place)
        with open(place + b"/kitchen.py", "w") as module:
            module.write("def bake(): return 'bread'\n")
        out = drive_well(f"""
        os.chdir({place!r})
        sys.path.insert(0, "")
        sys.argv.append("\\udcff")
        import kitchen
        for address in (None, "local"):
            ray.init(address)
            print(ray.get(ray.remote(kitchen.bake).remote()))
            ray.shutdown()
        """)
    assert out == "bread\nbread\n"


def test_what_a_connected_drivers_tasks_print_reaches_it(head: NodeRecord) -> None:
    out = drive_well("""
    @ray.remote
    def speak(): print("hello")
    ray.init()
    ray.get(speak.remote())
    """)
    assert "hello" in out


# -- They leave it


HOLDING = """
@ray.remote
def hold():
    say(os.getpid())
    time.sleep(1000)

ray.init(namespace={name!r})
refs = [hold.remote() for _ in range(2)]
hear()
"""


def test_a_killed_drivers_leases_and_workers_are_free_within_two_seconds(head: NodeRecord) -> None:
    def busy() -> list[int]:
        return titled("raylite::hold", head.pid)

    with Driver(HOLDING.format(name="killed")) as driver:
        assert eventually(lambda: len(busy()) == 2)
        watched = Watch(*busy())
        os.kill(driver.pid, signal.SIGKILL)
        began = time.monotonic()
        assert watched.left_after(2.0) == []
        watched.close()
    out = drive_well("ray.init(); print(ray.available_resources()['CPU'])")
    assert out == "2.0\n"
    assert eventually(lambda: jobs(head)["killed"].state is msg.JobState.DEAD)
    assert time.monotonic() - began < 10
    assert not [path for path in os.listdir(f"{head.session_dir}/sockets") if path[0] == "d"]


def test_a_cluster_outlives_its_drivers_and_numbers_their_jobs(head: NodeRecord) -> None:
    before = tree(head.pid)[:2]
    ids = [
        drive_well("ray.init(); print(ray.get_runtime_context().get_job_id())") for _ in range(2)
    ]
    first, second = (int.from_bytes(bytes.fromhex(id.strip()), "little") for id in ids)
    assert second == first + 1
    assert set(before) <= set(tree(head.pid))


# -- It goes


def test_tasks_and_drivers_go_on_when_the_gcs_is_killed(head: NodeRecord) -> None:
    with (
        Driver("""
    @ray.remote
    def slow(path):
        while not os.path.exists(path):
            time.sleep(0.01)
        return os.getpid()
    @ray.remote
    def quick(): return 1

    ray.init(namespace="survivor")
    path = hear()
    ref = slow.remote(path)
    ray.get(quick.remote())
    say("runs")
    hear()
    say(ray.get(quick.remote()), len(ray.nodes()))
    open(path, "w").close()
    say(ray.get(ref))
    hear()
    ray.shutdown()
    """) as driver,
        TemporaryDirectory() as folder,
    ):
        driver.say(f"{folder}/go")
        assert driver.hear() == "runs"
        job = jobs(head)["survivor"].job_id
        running = titled("raylite::slow", head.pid)
        os.kill(gcs := component(head, "gcs"), signal.SIGKILL)
        driver.say("go on")
        assert driver.hear() == "1 1"
        assert [int(driver.hear())] == running
        assert component(head, "gcs") != gcs
        assert drive_well("ray.init(); print(len(ray.nodes()))") == "1\n"

        row = jobs(head)["survivor"]
        assert (row.job_id, row.finished) == (job, False)
        assert eventually(lambda: living_workers(head) == set(titled("raylite::", head.pid)))
        driver.say("end")
        assert driver.end() == (0, "")
        assert eventually(lambda: jobs(head)["survivor"].state is msg.JobState.SUCCEEDED)


def living_workers(head: NodeRecord) -> set[int]:
    """The workers that live, by the cluster's table."""
    return {pid for pid, row in workers(head).items() if row.alive}


def test_a_driver_hears_that_its_node_was_stopped() -> None:
    with TemporaryDirectory(prefix="rl-") as folder:
        raylite("start", "--head", "--port=0", f"--temp-dir={folder}")
        with Driver(f"""
        ray.init(_temp_dir={folder!r})
        say("in")
        hear()
        try:
            ray.nodes()
        except ray.exceptions.LocalRayletDiedError as error:
            say(error)
        """) as driver:
            assert driver.hear() == "in"
            assert raylite("stop", f"--temp-dir={folder}").stdout == "Stopped 1 node.\n"
            driver.say("ask")
            assert "local raylet died" in driver.hear()
            code, errors = driver.end()
            assert (code, "the node was stopped" in errors) == (0, True)


def test_programs_of_tasks_that_survive_their_node_are_ended_by_the_next_command() -> None:
    with TemporaryDirectory(prefix="rl-") as folder:
        raylite("start", "--head", "--port=0", f"--temp-dir={folder}")
        (node,) = records.living(folder)
        with Driver(f"""
        import subprocess
        @ray.remote
        def spawn():
            return subprocess.Popen(["sleep", "1000"], start_new_session=True).pid
        ray.init(_temp_dir={folder!r})
        say(ray.get(spawn.remote()))
        hear()
        """) as driver:
            watched = Watch(int(driver.hear()))
            os.kill(node.pid, signal.SIGKILL)
            assert eventually(lambda: not node.is_living)
            assert "after 1 node" in raylite("stop", f"--temp-dir={folder}").stdout
            assert watched.left_after(2.0) == []
            watched.close()
