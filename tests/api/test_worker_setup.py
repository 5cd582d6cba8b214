"""What a worker is set up with before a task of it runs: variables of its environment."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

import raylite as ray

pytestmark = pytest.mark.process


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with ray.init(num_cpus=4, runtime_env={"env_vars": {"JOB": "job", "BOTH": "job"}}):
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
    @ray.remote(**env(OVEN="hot"))
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
