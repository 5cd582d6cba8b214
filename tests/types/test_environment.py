"""Environments: what a runtime_env may be, and what its variables become."""

from typing import Any

import pytest

from raylite._types.environment import expanded, variables_of

REFUSED: list[tuple[Any, type[Exception], str]] = [
    ({"env_vars": ["A"]}, TypeError, r"must be of type Dict\[str, str\], got <class 'list'>"),
    ({"env_vars": {"A": 1}}, TypeError, "but the value 1 is of type <class 'int'>"),
    ({"env_vars": {1: "A"}}, TypeError, "but the key 1 is of type <class 'int'>"),
    ({"env_vars": {"A=B": "1"}}, ValueError, "which no environment can have"),
    ({"env_vars": {"": "1"}}, ValueError, "which no environment can have"),
    ({"env_vars": {"A": "a\0b"}}, ValueError, "which no environment can have"),
    ({"pip": ["x"]}, ValueError, r"runtime_env\['pip'\] is not supported yet: 'env_vars' is"),
    ({"env_var": {}}, ValueError, r"runtime_env\['env_var'\] is unknown: 'env_vars' is"),
    ({"working_dir": "s3://b/x.zip"}, ValueError, r"\['working_dir'\] is not supported yet"),
]


@pytest.mark.parametrize(("runtime_env", "error", "text"), REFUSED)
@pytest.mark.parametrize("of_job", [True, False])
def test_what_cannot_be_had_is_refused(
    runtime_env: Any, error: type[Exception], text: str, of_job: bool
) -> None:
    with pytest.raises(error, match=text):
        variables_of(runtime_env, of_job=of_job)


@pytest.mark.parametrize("field", [{"working_dir": "/code"}, {"py_modules": ["s3://b/x.zip", "m"]}])
def test_a_local_directory_is_a_matter_of_the_job(field: Any) -> None:
    with pytest.raises(ValueError, match=r"is not a valid URI. .* \(i.e., passed to `raylite.init"):
        variables_of(field, of_job=False)
    with pytest.raises(ValueError, match="is not supported yet"):
        variables_of(field, of_job=True)


@pytest.mark.parametrize("nothing", [None, {}, {"env_vars": {}}, {"env_vars": None, "pip": None}])
def test_nothing_asked_for_is_nothing_set(nothing: Any) -> None:
    assert variables_of(nothing, of_job=False) == {}


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        ("/opt/bin:${PATH}", "/opt/bin:/bin"),
        ("$PATH/x", "/bin/x"),
        ("${NEW}-$NEW", "set before-set before"),
        ("${NOT_SET}/x", "/x"),
        ("$NOT_SET ${lower} $", "$NOT_SET ${lower} $"),
        ("${LIST}", "$PATH"),  # what a value says is not read again
        ("${LATER}", ""),
    ],
)
def test_references_stand_for_what_is_set_already(value: str, becomes: str) -> None:
    current = {"PATH": "/bin", "LIST": "$PATH"}
    result = expanded({"NEW": "set before", "X": value, "LATER": "l"}, current)
    assert result == {"NEW": "set before", "X": becomes, "LATER": "l"}


def test_a_variable_may_grow_its_own_value() -> None:
    assert expanded({"PATH": "a:${PATH}"}, {"PATH": "b"}) == {"PATH": "a:b"}
