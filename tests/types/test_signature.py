"""Signature: a call is refused exactly when calling the function would be."""

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from raylite._types.signature import Signature


def nothing() -> None: ...
def one(a: int, b: int = 2) -> None: ...
def named(a: int, b: int, *, c: int, d: int = 4) -> None: ...
def only_positional(a: int, b: int = 2, /, c: int = 3) -> None: ...
def open_end(a: int, *rest: int, c: int = 3) -> None: ...
def open_keywords(a: int, /, b: int = 2, **rest: int) -> None: ...
def open_both(*args: int, **kwargs: int) -> None: ...
def needs_a_keyword(*args: int, c: int) -> None: ...
def positional_only_needed(a: int, /, **rest: int) -> None: ...


FUNCTIONS = [
    nothing,
    one,
    named,
    only_positional,
    open_end,
    open_keywords,
    open_both,
    needs_a_keyword,
    positional_only_needed,
]


def refusal(call: Callable[..., object], *args: Any, **kwargs: Any) -> str | None:
    try:
        call(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return None


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_a_call_is_refused_exactly_as_inspect_and_the_call_itself_would(
    function: Callable[..., None],
) -> None:
    signature, told = Signature.of(function), inspect.signature(function)
    for count, *given in itertools.product(range(6), *[(False, True)] * 5):
        names = list(itertools.compress("abcde", given))
        args, kwargs = (0,) * count, dict.fromkeys(names, 0)
        refused = refusal(told.bind, *args, **kwargs)
        assert refusal(signature.bind, args, kwargs) == refused
        assert (refusal(function, *args, **kwargs) is None) == (refused is None)


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((), {}, "missing a required argument: 'a'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"a": 1}, "multiple values for argument 'a'"),
        ((1,), {"zz": 1}, "got an unexpected keyword argument 'zz'"),
    ],
)
def test_the_refusal_says_why(args: tuple[int, ...], kwargs: dict[str, int], text: str) -> None:
    with pytest.raises(TypeError, match=text):
        Signature.of(one).bind(args, kwargs)


class Thing:
    def method(self, a: int, b: int = 2) -> None: ...
    def open(*args: Any) -> None: ...
    def none() -> None: ...  # type: ignore[misc]
    def keywords(**kwargs: Any) -> None: ...


def test_a_method_is_called_without_its_self() -> None:
    signature = Signature.of(Thing.method, ignore_first=True)
    signature.bind((1,), {"b": 2})
    with pytest.raises(TypeError, match="missing a required argument: 'a'"):
        signature.bind((), {})
    with pytest.raises(TypeError, match="too many positional arguments"):
        signature.bind((1, 2, 3), {})


def test_a_method_may_take_its_self_among_others() -> None:
    Signature.of(Thing.open, ignore_first=True).bind((1, 2, 3), {})


@pytest.mark.parametrize("method", [Thing.none, Thing.keywords])
def test_a_method_without_self_is_a_value_error(method: Callable[..., None]) -> None:
    name = method.__name__
    text = f"^Methods must take a 'self' argument, but the method '{name}' does not have one.$"
    with pytest.raises(ValueError, match=text):
        Signature.of(method, ignore_first=True)


def test_a_builtin_that_does_not_tell_takes_anything() -> None:
    with pytest.raises(ValueError):
        inspect.signature(max)
    Signature.of(max).bind((1, 2), {"key": None})
    Signature.of(max).bind((), {})
