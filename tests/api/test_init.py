"""Beginning and end of a session, and what a cluster says of itself."""

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import raylite as ray
from raylite._runtime import beginnings, context
from raylite.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    RayError,
    RaySystemError,
    SessionEndedError,
)
from tests.api.drivers import PREAMBLE, drive, drive_well, eventually
from tests.programs import ROOT

pytestmark = pytest.mark.process


@pytest.fixture(autouse=True)
def no_session_is_left() -> Iterator[None]:
    yield
    ray.shutdown()


@ray.remote
def double(n: int) -> int:
    return 2 * n


@ray.remote
def pid() -> int:
    return os.getpid()


# --- From init to shutdown ---


def test_a_session_lasts_from_init_to_shutdown() -> None:
    states = [ray.is_initialized()]
    ray.init(num_cpus=1)
    states += [ray.is_initialized(), ray.get(double.remote(1)) == 2]
    ray.shutdown()
    states += [ray.is_initialized()]
    ray.shutdown()
    assert states == [False, True, True, False]


def test_init_after_init_is_refused_unless_asked_for() -> None:
    first = ray.init(num_cpus=1)
    with pytest.raises(RuntimeError, match=r"Maybe you called raylite\.init twice by accident"):
        ray.init()
    again = ray.init(num_cpus=7, ignore_reinit_error=True)
    assert again.address_info == first.address_info
    assert ray.cluster_resources()["CPU"] == 1


def test_unknown_keywords_are_refused_by_name() -> None:
    with pytest.raises(RuntimeError, match="num_cpu, speed"):
        ray.init(num_cpu=1, speed=2)
    assert not ray.is_initialized()


def test_rays_other_keywords_are_accepted() -> None:
    ray.init(num_cpus=1, include_dashboard=False, configure_logging=True, dashboard_port=8265)
    assert ray.is_initialized()


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:6379", "ray://head:10001", "/tmp/nothing"])
def test_an_address_of_no_cluster_is_refused_with_what_to_do(address: str) -> None:
    with pytest.raises(ConnectionError, match=r"raylite start|local|session directory"):
        ray.init(address)
    assert not ray.is_initialized()


@pytest.mark.parametrize("address", ["6379", "head", "head:port", "head:0", "a:b:6379", ":6379"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        ray.init(address)


def test_the_address_local_starts_a_cluster() -> None:
    assert ray.init("local", num_cpus=1)["address"]


@pytest.mark.parametrize("namespace", ["", 1])
def test_an_impossible_namespace_is_refused(namespace: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="namespace"):
        ray.init(namespace=namespace)


@pytest.mark.parametrize(
    "options",
    [
        {"num_cpus": -1},
        {"num_cpus": "four"},
        {"num_gpus": -1},
        {"resources": {"a": -1}},
        {"resources": {"CPU": 1}},
        {"resources": ["a"]},
        {"object_store_memory": -5},
        {"object_store_memory": "much"},
        {"labels": "zone"},
    ],
    ids=str,
)
def test_impossible_amounts_are_refused_before_anything_starts(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(options)).removesuffix("s")):
        ray.init(**options)
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"address": 5}, "The keyword 'address' must be a string or None, not 5"),
        ({"address": b"auto"}, "The keyword 'address' must be a string or None, not b'auto'"),
        ({"num_cpus": "2"}, "The keyword 'num_cpus' must be a number or None, not '2'"),
        ({"resources": [1]}, "The keyword 'resources' must be a dictionary or None, not [1]"),
        ({"labels": "a=b"}, "The keyword 'labels' must be a dictionary or None, not 'a=b'"),
        ({"runtime_env": "x"}, "The keyword 'runtime_env' must be a dictionary or None, not 'x'"),
        ({"namespace": 1}, "The keyword 'namespace' must be a string or None, not 1"),
        ({"_temp_dir": 5}, "The keyword '_temp_dir' must be a string or a path or None, not 5"),
        ({"_system_config": 5}, "The keyword '_system_config' must be a dictionary or None, not 5"),
        ({"log_to_driver": "no"}, "The keyword 'log_to_driver' must be True or False, not 'no'"),
        (
            {"ignore_reinit_error": "x"},
            "The keyword 'ignore_reinit_error' must be True or False, not 'x'",
        ),
        (
            {"logging_level": 1.5},
            "The keyword 'logging_level' must be a number or a string, not 1.5",
        ),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_is_refused_in_a_sentence(
    options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(TypeError) as caught:
        ray.init(**options)
    assert str(caught.value) == reason
    assert not ray.is_initialized()


def test_a_logging_level_that_is_none_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"^There is no logging level 'loud': give .* INFO"):
        ray.init(logging_level="loud")


def test_a_temporary_directory_that_cannot_be_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with TemporaryDirectory(dir="/tmp") as folder:  # short enough for sockets
        Path(folder, "file").touch()
        cannot = f"no session can be made in the temporary directory {folder}"
        for name, reason in (("file", "/file: it is a file; "), ("file/x", "/file/x: Not a dir")):
            with pytest.raises(OSError, match="another temporary directory with") as caught:
                ray.init("local", _temp_dir=Path(folder, name))
            assert str(caught.value).startswith(cannot + reason)
    with pytest.raises(
        ValueError, match=r"directory 'x/y' is a relative path: give the whole path"
    ):
        ray.init("local", _temp_dir="x/y")
    monkeypatch.setenv("RAYLITE_TMPDIR", "./here")
    with pytest.raises(
        ValueError, match=r"RAYLITE_TMPDIR=\./here is a relative path: give the whole"
    ):
        ray.init()
    assert not ray.is_initialized()


@pytest.mark.parametrize("size", [0, 10, 75 * 1024 * 1024 - 1])
def test_a_store_too_small_to_work_is_refused(size: int) -> None:
    message = (
        f"^Attempting to cap object store memory usage at {size} bytes, "
        r"but the minimum allowed is 78643200 bytes\.$"
    )
    with pytest.raises(ValueError, match=message):
        ray.init(object_store_memory=size)
    assert not ray.is_initialized()


def test_a_store_that_the_machine_has_no_memory_for_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^object_store_memory is 10{15} bytes, .* ask for less$"):
        ray.init(object_store_memory=10**15)
    assert not ray.is_initialized()


def test_what_init_returns_is_a_mapping_and_a_context_manager() -> None:
    with ray.init(num_cpus=1) as context:
        assert ray.is_initialized()
        assert "session_dir" in context
        assert Path(context["session_dir"]).is_dir()
        assert context.get("nothing") is None
        assert context.get("nothing", 1) == 1
        assert context["node_id"] == ray.get_runtime_context().get_node_id()
        assert dict(context) == context.address_info
        with pytest.raises(KeyError):
            context["nothing"]
        assert (context.ray_version, context.dashboard_url) == (ray.__version__, "")
    assert not ray.is_initialized()


def test_disconnect_ends_the_session() -> None:
    ray.init(num_cpus=1).disconnect()
    assert not ray.is_initialized()


def test_the_session_directory_is_private_and_its_sockets_go_with_the_session() -> None:
    with TemporaryDirectory() as folder:  # whose name, unlike tmp_path's, is short enough
        context = ray.init(num_cpus=1, _temp_dir=folder)
        session = Path(context["session_dir"])
        assert session.is_relative_to(folder)
        assert f"Check cluster logs (`{session}/logs`)" in str(ObjectLostError("ab", None, ""))
        assert (session / "sockets").stat().st_mode & 0o777 == 0o700
        ray.shutdown()
        assert not (session / "sockets").exists()


def test_sessions_one_after_another_leave_nothing_and_know_the_same_functions() -> None:
    workers = set()
    for n in range(3):
        ray.init(num_cpus=1)
        assert ray.get(double.remote(n)) == 2 * n
        workers.add(ray.get(pid.remote()))
        ray.shutdown()
    assert len(workers) == 3
    assert eventually(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


async def value_of(ref: ray.ObjectRef[int]) -> int:
    return await ref


def test_references_of_an_earlier_session_are_refused() -> None:
    ray.init(num_cpus=1)
    refs = [ray.put(1), double.remote(1)]
    ray.get(refs)
    ray.shutdown()
    ray.init(num_cpus=1)
    for ref in refs:
        uses: list[Callable[[], object]] = [
            lambda: ray.get(ref),  # noqa: B023 - called in this turn of the loop
            lambda: ray.get([ref]),  # noqa: B023
            lambda: ray.wait([ref]),  # noqa: B023
            lambda: ref.future().result(10.0),  # noqa: B023
            lambda: asyncio.run(value_of(ref)),  # noqa: B023
            lambda: asyncio.run(asyncio.wait_for(ref.as_future(), 10.0)),  # noqa: B023
            lambda: double.remote(ref),  # noqa: B023
            lambda: double.remote([ref]),  # type: ignore[call-overload]  # noqa: B023
        ]
        for use in uses:
            with pytest.raises(ValueError, match=r"Ray object\(s\) whose owner is unknown"):
                use()
    ready, rest = ray.wait([ray.put(2), refs[0]])
    assert (len(ready), rest) == (1, refs[:1])


def test_tasks_under_way_do_not_hold_shutdown_up_and_who_waits_for_them_is_told() -> None:
    @ray.remote
    def forever() -> None:
        threading.Event().wait()

    ray.init(num_cpus=2)
    refs = [forever.remote() for _ in range(4)]
    assert ray.wait(refs, timeout=0.1)[0] == []
    futures = [ref.future() for ref in refs]
    ray.shutdown()
    assert not ray.is_initialized()
    for future in futures:
        with pytest.raises(SessionEndedError, match=r"ended its session, by shutdown\(\)"):
            future.result()


def at_once(count: int, work: Callable[[int], object]) -> list[object]:
    """Return what each of these threads returned or raised, all of which began together."""
    barrier = threading.Barrier(count)
    outcomes: list[object] = [None] * count

    def run(number: int) -> None:
        barrier.wait()
        try:
            outcomes[number] = work(number)
        except BaseException as error:
            outcomes[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_threads_that_use_ray_first_at_once_share_one_session() -> None:
    assert at_once(6, lambda n: ray.get(double.remote(n))) == [0, 2, 4, 6, 8, 10]
    assert ray.get(double.remote(6)) == 12


def test_threads_that_all_init_share_one_session_if_they_ask_for_it() -> None:
    def init(number: int) -> object:
        return ray.init(num_cpus=1, ignore_reinit_error=True)["node_id"]

    assert len(set(at_once(4, init))) == 1


def test_of_threads_that_all_init_one_succeeds() -> None:
    outcomes = at_once(4, lambda number: ray.init(num_cpus=1))
    refused = [each for each in outcomes if isinstance(each, RuntimeError)]
    assert len(refused) == 3, outcomes
    assert ray.get(double.remote(1)) == 2


def test_a_shutdown_while_others_begin_ends_their_session_or_comes_before_it() -> None:
    def use(number: int) -> object:
        if number:
            return ray.get(double.remote(number), timeout=20)
        ray.shutdown()
        return 0

    for _ in range(3):
        for number, outcome in enumerate(at_once(3, use)):
            is_ended = isinstance(outcome, (RayError, ValueError))  # the second: its reference's
            is_ended &= not isinstance(outcome, GetTimeoutError)
            assert outcome == 2 * number or is_ended, outcome
    assert ray.get(double.remote(6)) == 12


def test_a_callback_cannot_shut_down_what_runs_it() -> None:
    outcomes = SimpleQueue[Exception]()

    def end() -> None:
        try:
            ray.shutdown()
        except RuntimeError as error:
            outcomes.put(error)

    ray.init(num_cpus=1)
    place = context.current()
    assert place is not None
    place.core.loop.call_soon_threadsafe(end)
    assert "thread of your own" in str(outcomes.get(timeout=20))
    assert ray.get(double.remote(1)) == 2


def test_ctrl_c_ends_the_wait_for_another_threads_beginning() -> None:
    begun, over = threading.Event(), threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def begin() -> None:
        with beginnings.alone():
            begun.set()
            signal.pthread_kill(main, signal.SIGINT)
            over.wait()

    thread = threading.Thread(target=begin)
    with pytest.raises(KeyboardInterrupt):
        thread.start()
        begun.wait()
        double.remote(1)
    assert not ray.is_initialized()
    over.set()
    thread.join()
    assert ray.get(double.remote(1)) == 2


def test_a_thread_may_start_the_session_for_all() -> None:
    thread = threading.Thread(target=ray.init, kwargs={"num_cpus": 1})
    thread.start()
    thread.join()
    assert ray.get(double.remote(4)) == 8


def test_a_forked_child_has_no_session_and_may_start_its_own() -> None:
    ray.init(num_cpus=1)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        child = os.fork()
    if child == 0:
        code = 1
        try:
            os.closerange(3, 4096)  # as who becomes a daemon does
            before = ray.is_initialized()
            with ray.init(num_cpus=1):
                code = 0 if not before and ray.get(double.remote(3)) == 6 else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert ray.get(double.remote(5)) == 10


def test_a_killed_driver_leaves_no_process_behind(tmp_path: Path) -> None:
    done = drive(f"""
    ray.init(num_cpus=2)
    @ray.remote
    def pids(): return [os.getpid(), os.getppid()]
    open({str(tmp_path / "pids")!r}, "w").write(" ".join(map(str, ray.get(pids.remote()))))
    os.kill(os.getpid(), 9)
    """)
    assert done.returncode == -signal.SIGKILL
    pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
    assert eventually(lambda: not any(Path(f"/proc/{each}").exists() for each in pids))


def test_a_program_that_just_ends_says_nothing_and_leaves_nothing() -> None:
    done = drive("""
    import threading
    @ray.remote
    def f(seconds):
        time.sleep(seconds)
        return 1
    ray.init(num_cpus=1)
    print(ray.get(f.remote(0)))
    ref = f.remote(60)
    threading.Thread(target=ray.get, args=(ref,), daemon=True).start()  # it never comes back
    while not ref._entry.waiters:
        time.sleep(0.001)
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


@pytest.mark.parametrize(
    ("closed", "shown"),
    [("<&- >&- 2>&-", ""), (">&-", "(say pid=1) hello\n"), ("2>&-", ""), ("<&-", "")],
)
def test_a_program_without_standard_streams_works_and_ends_in_order(
    closed: str, shown: str, tmp_path: Path
) -> None:
    script = """
    @ray.remote
    def say():
        print("hello")
        return "got"
    ray.init(num_cpus=1)
    report = open(sys.argv[1], "w")
    report.write(ray.get(say.remote()))
    ray.shutdown()
    report.write(" and ended")
    """
    program = [sys.executable, "-c", PREAMBLE + textwrap.dedent(script), str(tmp_path / "report")]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, re.sub(r"\d+", "1", done.stderr)) == (0, shown)
    assert (tmp_path / "report").read_text() == "got and ended"


def test_a_program_that_fails_shows_its_own_traceback() -> None:
    done = drive("""
    @ray.remote
    def f(): return 1 / 0
    ray.init(num_cpus=1)
    ray.get(f.remote())
    """)
    assert done.returncode == 1
    assert "raylite.exceptions.RayTaskError(ZeroDivisionError): raylite::f() (pid=" in done.stderr
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


# --- Starting by itself ---


@pytest.mark.parametrize(
    "use",
    [
        lambda: double.remote(1),
        lambda: ray.put(1),
        lambda: ray.get([]),
        lambda: ray.wait([]),
        lambda: ray.get_runtime_context(),
    ],
    ids=["remote", "put", "get", "wait", "get_runtime_context"],
)
def test_the_first_use_starts_a_cluster(use: Callable[[], object]) -> None:
    use()
    assert ray.is_initialized()
    assert ray.get(double.remote(1)) == 2


def test_without_auto_init_every_use_says_that_ray_was_not_started() -> None:
    out = drive_well(
        """
    @ray.remote
    def f(n): return 1
    uses = [
        lambda: f.remote(), lambda: f.remote(1), lambda: ray.put(1), lambda: ray.get([]), lambda: ray.get(1),
        lambda: ray.wait([]), lambda: ray.wait(1), lambda: ray.nodes(), lambda: ray.cluster_resources(),
        lambda: ray.available_resources(), lambda: ray.get_runtime_context(),
    ]
    def refused():
        count = 0
        for use in uses:
            try:
                use()
            except ray.exceptions.RaySystemError as error:
                count += "Ray has not been started yet." in str(error)
        return count == len(uses)
    print(refused(), ray.is_initialized())
    ray.init(num_cpus=1)
    print(ray.get(f.remote(1)))
    ray.shutdown()
    print(refused())
    """,
        {"RAY_ENABLE_AUTO_CONNECT": "0"},
    )
    assert out == "True False\n1\nTrue\n"


def test_what_describes_the_cluster_does_not_start_one() -> None:
    for describe in (ray.nodes, ray.cluster_resources, ray.available_resources):
        with pytest.raises(RaySystemError, match="Ray has not been started yet"):
            describe()
    assert not ray.is_initialized()


# --- What the cluster is made of ---


@ray.remote
def labels() -> dict[str, str]:
    return ray.get_runtime_context().get_node_labels()


def test_the_cluster_has_what_init_was_told() -> None:
    context = ray.init(
        num_cpus=3,
        num_gpus=2,
        resources={"oven": 2, "sugar": 0.5},
        object_store_memory=100_000_000,
        _memory=1_000_000_000,
        labels={"zone": "kitchen"},
    )
    total = ray.cluster_resources()
    expected = {
        "CPU": 3,
        "GPU": 2,
        "oven": 2,
        "sugar": 0.5,
        "memory": 1e9,
        "object_store_memory": 1e8,
    }
    assert {name: total[name] for name in expected} == expected
    assert total["node:__internal_head__"] == 1
    assert eventually(lambda: ray.available_resources() == total)
    [node] = ray.nodes()
    assert node["Alive"]
    assert node["Resources"] == total
    assert node["Labels"] == {"zone": "kitchen", "ray.io/node-id": node["NodeID"]}
    assert ray.get(labels.remote()) == labels._function() == node["Labels"]
    here = ray.get_runtime_context()
    assert f"{here.get_temp_dir()}/{here.get_session_name()}" == context["session_dir"]
    assert node["NodeID"] == ray.get_runtime_context().get_node_id()


def test_a_node_is_described_in_rays_form() -> None:
    with ray.init(num_cpus=1) as here:
        [node] = ray.nodes()
    assert {name: type(value) for name, value in node.items()} == {
        "NodeID": str, "Alive": bool, "alive": bool, "NodeManagerAddress": str,
        "NodeManagerHostname": str, "NodeManagerPort": int, "ObjectManagerPort": int,
        "ObjectStoreSocketName": str, "RayletSocketName": str, "MetricsExportPort": int,
        "NodeName": str, "RuntimeEnvAgentPort": int, "DeathReason": int,
        "MetricsAgentPort": int, "DashboardAgentListenPort": int,
        "DeathReasonMessage": str, "Resources": dict, "Labels": dict,
        "State": str,  # which Ray has not
    }  # fmt: skip
    assert node["NodeManagerAddress"] == node["NodeName"] == "127.0.0.1"
    assert node["RayletSocketName"] == here["raylet_socket_name"]
    assert (node["DeathReason"], node["DeathReasonMessage"]) == (0, "")
    assert node["State"] == "ALIVE"


def test_by_default_the_cluster_has_the_cpus_of_this_process() -> None:
    ray.init()
    assert ray.cluster_resources()["CPU"] == len(os.sched_getaffinity(0))


def test_what_tasks_take_is_missing_from_what_is_available(tmp_path: Path) -> None:
    @ray.remote
    def hold(path: Path) -> None:
        while not path.exists():
            threading.Event().wait(0.005)

    ray.init(num_cpus=3, resources={"oven": 1})
    whole = ray.available_resources()
    refs = [
        hold.options(num_cpus=1.5, resources={"oven": 0.25}).remote(tmp_path / "go"),
        hold.options(num_cpus=0, resources={"oven": 0.75}).remote(tmp_path / "go"),
    ]
    assert eventually(lambda: "oven" not in ray.available_resources())
    assert ray.available_resources()["CPU"] == 1.5
    (tmp_path / "go").touch()
    ray.get(refs)
    assert eventually(lambda: ray.available_resources() == whole)


def test_a_resource_with_nothing_left_is_absent(tmp_path: Path) -> None:
    @ray.remote
    def hold(path: Path) -> None:
        while not path.exists():
            threading.Event().wait(0.005)

    ray.init(num_cpus=1)
    ref = hold.remote(tmp_path / "go")
    assert eventually(lambda: "CPU" not in ray.available_resources())
    assert ray.cluster_resources()["CPU"] == 1
    (tmp_path / "go").touch()
    ray.get(ref)


def test_fractions_of_a_resource_are_shared_exactly(tmp_path: Path) -> None:
    @ray.remote(num_cpus=0, resources={"oven": 0.1})
    def baking(folder: Path) -> int:
        mark = folder / str(os.getpid())
        mark.touch()
        count = len(list(folder.iterdir()))
        threading.Event().wait(0.01)
        mark.unlink()
        return count

    ray.init(num_cpus=1, resources={"oven": 0.3})
    counts = ray.get([baking.remote(tmp_path) for _ in range(12)])
    assert max(counts) <= 3
    assert eventually(lambda: ray.available_resources().get("oven") == 0.3)


@pytest.mark.parametrize("options", [{"num_cpus": 5}, {"resources": {"oven": 1}}, {"num_gpus": 1}])
def test_what_no_node_can_give_is_waited_for_with_a_warning(
    caplog: pytest.LogCaptureFixture, options: dict[str, Any]
) -> None:
    ray.init(num_cpus=1)
    with caplog.at_level(logging.WARNING, "raylite"):
        ref = double.options(**options).remote(1)
        with pytest.raises(GetTimeoutError):
            ray.get(ref, timeout=0.1)
        assert eventually(lambda: bool(caplog.records))
    assert {"num_cpus": "CPU", "resources": "oven", "num_gpus": "GPU"}[
        next(iter(options))
    ] in caplog.text
    assert ray.get(double.remote(3)) == 6, "others run meanwhile"


def test_a_namespace_is_told_to_driver_and_tasks() -> None:
    @ray.remote
    def namespace() -> str:
        return ray.get_runtime_context().namespace

    ray.init(num_cpus=1, namespace="mine")
    assert ray.get_runtime_context().namespace == ray.get(namespace.remote()) == "mine"


@pytest.mark.parametrize("variable", ["RAYLITE_NAMESPACE", "RAY_NAMESPACE"])
def test_the_environment_may_name_the_namespace(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, " ")
    with pytest.raises(ValueError, match=rf'^{variable}: " " is not a valid namespace'):
        ray.init(num_cpus=1)
    monkeypatch.setenv(variable, "theirs")
    with ray.init(num_cpus=1):
        assert ray.get_runtime_context().namespace == "theirs"
    with ray.init(num_cpus=1, namespace="mine"):
        assert ray.get_runtime_context().namespace == "mine"


def test_each_session_without_a_namespace_gets_one_of_its_own() -> None:
    namespaces = set()
    for _ in range(2):
        with ray.init(num_cpus=1):
            namespaces.add(ray.get_runtime_context().namespace)
    assert len(namespaces) == 2
    assert "" not in namespaces


def test_environment_variables_of_the_job_reach_its_workers() -> None:
    @ray.remote
    def variable() -> str | None:
        return os.environ.get("OVEN")

    ray.init(num_cpus=1, runtime_env={"env_vars": {"OVEN": "hot"}})
    assert ray.get(variable.remote()) == "hot"
    assert "OVEN" not in os.environ


@pytest.mark.parametrize(
    ("runtime_env", "error"),
    [
        ({"pip": ["x"]}, ValueError),
        ({"env_vars": {"A": 1}}, TypeError),
        ({"env_vars": ["A"]}, TypeError),
        ("env", TypeError),
    ],
)
def test_a_runtime_environment_that_cannot_be_is_refused(runtime_env: Any, error: Any) -> None:
    with pytest.raises(error, match="env"):
        ray.init(runtime_env=runtime_env)
    assert not ray.is_initialized()
