"""Which configurations name the same environment."""

from raylite._wire.environments import inherit
from raylite._wire.hot import JobConfig

JOB = JobConfig("space", {"A": "job"}, (b"/path",))


def test_a_task_without_variables_of_its_own_has_those_above_it() -> None:
    assert inherit(JOB, {}) is JOB
    assert inherit(JOB, {"A": "job"}) is JOB
    child = inherit(JOB, {"B": "b"})
    assert inherit(child, {}) is child


def test_ones_own_variables_win_and_the_others_are_inherited() -> None:
    child = inherit(inherit(JOB, {"A": "a", "B": "b"}), {"B": "c"})
    assert child.env_vars == {"A": "a", "B": "c"}
    assert (child.namespace, child.sys_path) == ("space", (b"/path",))


def test_environments_are_the_same_however_they_came_about() -> None:
    one = inherit(inherit(JOB, {"B": "b"}), {"A": "a"})
    other = inherit(JOB, {"A": "a", "B": "b"})
    assert one.environment == other.environment != b""
    assert inherit(JOB, {"A": "a"}).environment not in (b"", one.environment)
