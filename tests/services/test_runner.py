"""What a worker's task thread does between tasks."""

from types import SimpleNamespace
from typing import Any

from raylite._services.worker.runner import Runner
from raylite._wire.hot import JobConfig


def test_a_worker_is_set_up_once_for_a_job_whoever_asks() -> None:
    seen: list[JobConfig] = []
    executor: Any = SimpleNamespace(interrupts=SimpleNamespace(asked=()), holding=None)
    values: Any = SimpleNamespace(awaited=None)

    def ignore(*_: object) -> None:
        pass

    runner = Runner(executor, values, ignore, ignore, ignore, "127.0.0.1", on_config=seen.append)
    for variables in ({"A": "1"}, {"A": "1"}, {"A": "2"}):
        config = JobConfig("mine", variables, (b"/modules",))
        runner._adopt(config)
        assert runner._config is config  # so that the next task of its sender sees that at once
    assert [each.env_vars for each in seen] == [{"A": "1"}, {"A": "2"}]
