"""What a worker is set up with before a task runs: variables of its environment, what its lease holds."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raylite as ray

pytestmark = pytest.mark.process


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    resources = {"oven": 2, "accelerator_type:X100": 1}
    variables = {"JOB": "job", "BOTH": "job"}
    with ray.init(num_cpus=4, num_gpus=3, resources=resources, runtime_env={"env_vars": variables}):
        yield


@ray.remote
def variables(*names: str) -> list[str | None]:
    return [os.environ.get(name) for name in names]


@ray.remote
def nested(names: list[str], **options: Any) -> Any:
    here = [os.environ.get(name) for name in names]
    return here, ray.get(variables.options(**options).remote(*names))


@ray.remote
def who() -> int:
    return os.getpid()


def env(**variables: str) -> dict[str, Any]:
    return {"runtime_env": {"env_vars": variables}}


def test_a_task_has_its_variables_and_those_of_its_job() -> None:
    own = variables.options(**env(BOTH="task", TASK="task"))
    assert ray.get(own.remote("JOB", "BOTH", "TASK")) == ["job", "task", "task"]
    assert ray.get(variables.remote("JOB", "BOTH", "TASK")) == ["job", "job", None]


def test_variables_are_inherited_down_the_call_tree() -> None:
    names = ["JOB", "BOTH", "TASK", "CHILD"]
    parent = nested.options(**env(BOTH="task", TASK="task"))
    here = ["job", "task", "task", None]
    assert ray.get(parent.remote(names)) == (here, here)
    below = ["job", "task", "child", "child"]
    assert ray.get(parent.remote(names, **env(TASK="child", CHILD="child"))) == (here, below)


def test_references_are_expanded_where_the_task_runs() -> None:
    (path,) = ray.get(variables.options(**env(PATH="/oven:${PATH}")).remote("PATH"))
    assert path == f"/oven:{os.environ['PATH']}"


def test_subprocesses_and_c_code_see_the_variables() -> None:
    @ray.remote(runtime_env={"env_vars": {"OVEN": "hot"}})
    def look() -> tuple[str, bytes]:
        getenv = ctypes.CDLL(None).getenv
        getenv.restype = ctypes.c_char_p
        return subprocess.check_output(["sh", "-c", "printf $OVEN"], text=True), getenv(b"OVEN")

    assert ray.get(look.remote()) == ("hot", b"hot")


def test_variables_are_set_before_the_function_is_unpickled() -> None:
    class Early:
        def __reduce__(self) -> Any:
            return os.getenv, ("OVEN",)

    captured = Early()
    early = ray.remote(lambda: captured)
    assert ray.get(early.options(**env(OVEN="early")).remote()) == "early"


def test_workers_are_kept_for_their_environment_and_lent_to_no_other() -> None:
    one, two = who.options(**env(N="1")), who.options(**env(N="2"))
    first = ray.get(one.remote())
    assert ray.get(two.remote()) != first
    assert ray.get(who.remote()) != first
    assert ray.get(who.options(**env(N="1")).remote()) == first


# --- What a task holds ---


@ray.remote
def held() -> tuple[dict[str, float], list[Any], str | None, str | None]:
    context = ray.get_runtime_context()
    assert context.get_accelerator_ids()["GPU"] == [str(id) for id in ray.get_gpu_ids()]
    visible, threads = os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ["OMP_NUM_THREADS"]
    return context.get_assigned_resources(), ray.get_gpu_ids(), visible, threads


def test_a_task_knows_what_it_holds() -> None:
    assert ray.get(held.remote()) == ({"CPU": 1}, [], None, "1")
    assert ray.get(held.options(num_cpus=2.5).remote()) == ({"CPU": 2.5}, [], None, "2")
    several = held.options(num_cpus=0, memory=2.7, resources={"oven": 0.5}, accelerator_type="X100")
    amounts = {"memory": 2, "oven": 0.5, "accelerator_type:X100": 0.001}
    assert ray.get(several.remote()) == (amounts, [], None, "1")
    assert ray.get(held.remote()) == ({"CPU": 1}, [], None, "1")


def test_a_number_of_threads_that_the_user_has_set_stays() -> None:
    (_, _, _, threads) = ray.get(held.options(**env(OMP_NUM_THREADS="5"), num_cpus=2).remote())
    assert threads == "5"


def test_a_task_has_gpus_of_its_own_and_sees_no_others() -> None:
    resources, ids, visible, _ = ray.get(held.options(num_gpus=2).remote())
    assert resources == {"CPU": 1, "GPU": 2}
    assert len(set(ids)) == 2
    assert set(ids) <= {0, 1, 2}
    assert visible == ",".join(map(str, ids))


@ray.remote(num_cpus=0)
def meet(mine: str, others: str) -> tuple[list[Any], int]:
    """Return which GPUs this task has, having met another."""
    ends = [os.open(path, os.O_RDWR) for path in (mine, others)]
    os.write(ends[1], b"x")
    os.read(ends[0], 1)
    for end in ends:
        os.close(end)
    return list(ray.get_gpu_ids()), os.getpid()


@pytest.mark.parametrize(("share", "is_shared"), [(0.5, True), (0.6, False), (1, False)])
def test_tasks_share_a_gpu_if_they_want_parts_of_it(
    share: float, is_shared: bool, tmp_path: Path
) -> None:
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    for path in (one, other):
        os.mkfifo(path)
    task = meet.options(num_gpus=share)
    refs = [task.remote(one, other), task.remote(other, one)]
    (first, pid), (second, other_pid) = ray.get(refs)
    assert pid != other_pid
    assert len(first) == len(second) == 1
    assert (first == second) is is_shared


def test_a_process_that_had_a_gpu_runs_nothing_without_one() -> None:
    gpu = ray.get(who.options(num_gpus=0.1).remote())
    assert ray.get(who.remote()) != gpu


def test_a_driver_holds_nothing() -> None:
    assert ray.get_gpu_ids() == []
    context = ray.get_runtime_context()
    assert context.get_accelerator_ids()["GPU"] == []
    with pytest.raises(AssertionError, match="only available when the process is a worker"):
        context.get_assigned_resources()


@pytest.mark.parametrize("amount", [{"num_gpus": 1.5}, {"resources": {"TPU": 2.5}}])
def test_parts_of_several_devices_are_refused_at_the_call(amount: Any) -> None:
    task = held.options(**amount)
    with pytest.raises(ValueError, match=r"PU resource quantities >1 must be whole numbers."):
        task.remote()
