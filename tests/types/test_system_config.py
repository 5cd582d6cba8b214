"""The system config: what it takes of Ray's and its own, and what it comes to."""

import math
from typing import Any

import pytest

from raylite._types.system_config import (
    Settings,
    effective,
    from_environment,
    read,
    refuse_settings,
    without_effect,
    written,
)

RAYS: dict[Any, Any] = {
    "object_spilling_threshold": 0.9,
    "health_check_initial_delay_ms": 0,
    "preload_python_modules": ["numpy"],
    "gcs_storage": "memory",
    "automatic_object_spilling_enabled": False,
}


def test_what_ray_knows_is_taken_and_what_nobody_knows_is_refused() -> None:
    assert refuse_settings(dict(RAYS) | {"task_oom_retries": 3}) is None
    for name in ("object_spiling_threshold", "RAY_task_oom_retries", "", 5):
        reason = refuse_settings({name: 1})
        assert reason is not None
        assert reason.startswith(f"There is no setting {name!r} in the system config.")


def test_settings_without_an_effect_are_told_from_others() -> None:
    config: dict[str, Any] = {**RAYS, "task_oom_retries": 3, "health_check_period_ms": 500}
    assert without_effect(config) == list(RAYS)
    assert effective(config) == {"task_oom_retries": 3, "health_check_period_ms": 500}


@pytest.mark.parametrize(
    ("config", "error", "reason"),
    [
        ({"health_check_period_ms": "1 s"}, TypeError, "must be an integer, not '1 s'"),
        ({"health_check_period_ms": 0.5}, TypeError, "must be an integer, not 0.5"),
        ({"oom_grace_period_s": True}, TypeError, "must be a number, not True"),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_is_refused_by_name(
    config: dict[object, object], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=f"{next(iter(config))} of the system config {reason}"):
        refuse_settings(config)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"health_check_failure_threshold": 0}, "must be 1 or more and at most 2"),
        ({"health_check_period_ms": -1}, "must be 0 or more and at most 2"),
        ({"task_oom_retries": -2}, "must be -1 or more and at most 2"),
        ({"infeasible_grace_s": 10**400}, "must be at most 2"),
        ({"object_store_full_grace": math.inf}, "must be a finite number, not inf"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_an_impossible_value_is_refused_by_name(config: dict[object, object], reason: str) -> None:
    said = refuse_settings(config)
    assert said is not None
    assert said.startswith(f"The setting {next(iter(config))} of the system config {reason}")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, Settings()),
        ({"infeasible_grace_s": -1}, Settings(infeasible_grace=math.inf)),
        ({"oom_grace_period_s": 3}, Settings(store_grace=3.0)),
        ({"oom_grace_period_s": 3, "object_store_full_grace": 4}, Settings(store_grace=4.0)),
        ({"idle_worker_killing_time_threshold_ms": 250}, Settings(idle_grace=0.25)),
        ({"health_check_failure_threshold": 20}, Settings(silence=40.0)),
        ({"health_check_period_ms": 100}, Settings(silence=5.5)),
        ({"health_check_timeout_ms": 10_000, "health_check_period_ms": 3000}, Settings(silence=60)),
        ({"health_check_failure_threshold": 1, "health_check_period_ms": 1}, Settings(silence=3)),
    ],
    ids=str,
)
def test_what_a_config_comes_to(config: dict[str, Any], expected: Settings) -> None:
    assert Settings.of(config) == expected


def test_the_environment_sets_what_has_an_effect_raylites_name_before_rays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert from_environment() == {}
    monkeypatch.setenv("RAY_task_oom_retries", "7")
    monkeypatch.setenv("RAY_infeasible_grace_s", "2.5")
    monkeypatch.setenv("RAYLITE_infeasible_grace_s", "-1")
    monkeypatch.setenv("RAY_gcs_storage", "redis")  # of Ray's: no concern of this node
    assert from_environment() == {"task_oom_retries": 7, "infeasible_grace_s": -1}


@pytest.mark.parametrize("text", ["many", "1.5", "[1]", "-2", "true", "{"])
def test_an_impossible_value_in_the_environment_is_refused_by_the_variable(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("RAY_task_oom_retries", text)
    with pytest.raises(ValueError, match=r"^RAY_task_oom_retries=.*: The setting task_oom_retries"):
        from_environment()


def test_a_node_that_joins_reads_what_the_head_wrote_and_no_more() -> None:
    assert read(written({**RAYS, "task_oom_retries": 3})) == {"task_oom_retries": 3}
    for text in ("", "[]", "5", "no", '{"task_oom_retries": "x"}', '{"unknown": 1}'):
        assert read(text) == {}
