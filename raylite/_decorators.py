"""Decorators: what ``remote(num_cpus=2)`` returns, as type checkers know it. None is ever made."""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Never, ParamSpec, Protocol, TypeVar, overload

from raylite._remote import RemoteFunction
from raylite._services.worker.generator import ObjectRefGenerator
from raylite._services.worker.objects import ObjectRef

P = ParamSpec("P")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)


class Decorator(Protocol):
    """Makes a function remote; what its calls return depends on what the function returns.

    The first case is for functions of which that is not known, or that never return: ``Any``, which
    is everything, is also ``Never``.
    """

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[P, Never], /
    ) -> RemoteFunction[Callable[P, Any], ObjectRef[Any]]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[P, Iterator[T] | AsyncIterator[T]], /
    ) -> RemoteFunction[Callable[P, Any], ObjectRefGenerator[T]]: ...
    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, T]], /
    ) -> RemoteFunction[Callable[P, Any], ObjectRef[T]]: ...
    @overload
    def __call__(
        self, function: Callable[P, T], /
    ) -> RemoteFunction[Callable[P, T], ObjectRef[T]]: ...


class DecoratorTo(Protocol[R_co]):
    """Makes a function remote, whose calls return this."""

    def __call__(self, function: Callable[P, T], /) -> RemoteFunction[Callable[P, T], R_co]:
        """Return the remote function."""
        ...
