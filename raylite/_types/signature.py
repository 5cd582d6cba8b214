"""Signature: whether the arguments of a call fit a function, checked where the call is written.

A remote call that cannot work should fail in the caller's line, not in a worker later. The check
runs on every call, so all that can be known beforehand is: how many positional arguments there may
be, and for each number of them, which keywords may and must follow. `inspect` is asked only for the
words of a refusal.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any, Self

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


class Signature:
    """The arguments that a function takes."""

    __slots__ = ("_fewest", "_keywords", "_most", "_signature", "_unread")

    def __init__(self, signature: inspect.Signature) -> None:
        self._read(signature)

    def _read(self, signature: inspect.Signature) -> None:
        parameters = list(signature.parameters.values())
        positional = [parameter for parameter in parameters if parameter.kind in _POSITIONAL]
        named = [parameter for parameter in parameters if parameter.kind == Parameter.KEYWORD_ONLY]
        kinds = {parameter.kind for parameter in parameters}
        open_end = Parameter.VAR_POSITIONAL in kinds
        self._signature = signature
        self._unread: Callable[..., Any] | None = None
        self._keywords = [
            _Keywords(
                positional[:count], positional[count:] + named, Parameter.VAR_KEYWORD in kinds
            )
            for count in range(len(positional) + 1)
        ]
        # Without keywords, any number of arguments in this range will do.
        needed = [count for count, rest in enumerate(self._keywords) if not rest.required]
        self._fewest = needed[0] if needed else sys.maxsize
        self._most = sys.maxsize if open_end else len(positional)

    @classmethod
    def of(cls, function: Callable[..., Any], *, ignore_first: bool = False) -> Self:
        """The signature of a function; of a method without its ``self``, if `ignore_first`.

        Builtins that do not tell their arguments take any.
        """
        try:
            signature = inspect.signature(function)
        except ValueError:
            return cls(inspect.signature(_anything))
        if not ignore_first:
            return cls(signature)
        parameters = list(signature.parameters.values())
        if not parameters or parameters[0].kind in (Parameter.KEYWORD_ONLY, Parameter.VAR_KEYWORD):
            name = getattr(function, "__name__", function)
            raise ValueError(
                f"Methods must take a 'self' argument, but the method '{name}' does not have one."
            )
        rest = parameters[parameters[0].kind != Parameter.VAR_POSITIONAL :]
        return cls(signature.replace(parameters=rest))

    @classmethod
    def later(cls, function: Callable[..., Any]) -> Self:
        """The signature of a function that is being unpickled: it is looked at in the first call.

        A function that calls itself is unpickled around what it calls, which is there before the
        function has its defaults.
        """
        signature = cls(inspect.Signature())
        signature._unread = function
        signature._fewest = sys.maxsize  # no call takes the short way before it is read
        return signature

    def bind(self, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
        """Return if the arguments fit.

        Raises:
            TypeError: They do not; the text is that of `inspect.Signature.bind`.
        """
        if not kwargs and self._fewest <= len(args) <= self._most:
            return
        if self._unread is not None:
            self._read(self.of(self._unread)._signature)
            self.bind(args, kwargs)
            return
        if len(args) <= self._most:
            rest = self._keywords[min(len(args), len(self._keywords) - 1)]
            if rest.required <= kwargs.keys() and rest.admit(kwargs):
                return
        self._signature.bind(*args, **kwargs)


class _Keywords:
    """What may and must be given by keyword after some number of positional arguments."""

    __slots__ = ("_known", "_taken", "required")

    def __init__(self, given: list[Parameter], left: list[Parameter], takes_any: bool) -> None:
        #: Names without which the call is refused. A positional-only one is beyond any keyword.
        self.required = {
            f"/{parameter.name}" if parameter.kind == Parameter.POSITIONAL_ONLY else parameter.name
            for parameter in left
            if parameter.default is Parameter.empty
        }
        self._known = None if takes_any else _by_keyword(left)
        self._taken = _by_keyword(given)

    def admit(self, kwargs: Mapping[str, object]) -> bool:
        """Whether each keyword is one that the function takes and that is not already given."""
        if self._known is None:
            return self._taken.isdisjoint(kwargs)
        return kwargs.keys() <= self._known


def _by_keyword(parameters: list[Parameter]) -> set[str]:
    return {each.name for each in parameters if each.kind != Parameter.POSITIONAL_ONLY}


def _anything(*args: object, **kwargs: object) -> None:
    """It stands for builtins that do not tell their arguments."""


def yields(function: Callable[..., object]) -> bool:
    """Return whether calling it makes a generator, of one kind or the other."""
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def is_async(function: Callable[..., object]) -> bool:
    """Return whether it is an ``async def``."""
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
