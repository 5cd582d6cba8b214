"""A service: state behind a mailbox, one handler a route.

A ``def`` handler is atomic: nothing else of this service runs meanwhile. An ``async def`` handler
is a conversation: it runs as a task of the service and re-reads state after every ``await``.

A `RayError` that a handler raises travels to the caller and the service lives. Anything else is
a bug: the caller gets a `RemoteHandlerError`, and the service ends with the original exception.
Whoever else waited for an answer then gets an `UnavailableError`.
"""

import asyncio
import inspect
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple, TypeVar, overload

from raylite._kernel import interface
from raylite._kernel.codec import Encoded
from raylite._kernel.deadlines import cancel_scope
from raylite._kernel.interface import Interface, Route
from raylite._kernel.link import Link, Message
from raylite._kernel.mailbox import Mailbox
from raylite._kernel.meter import Meter, Statistics
from raylite._kernel.packet import Kind
from raylite._kernel.scope import Scope
from raylite._kernel.seams import now
from raylite.exceptions import (
    DeadlineExceededError,
    ProtocolError,
    RayError,
    RemoteHandlerError,
    UnavailableError,
)

logger = logging.getLogger(__name__)

S = TypeVar("S")
Q = TypeVar("Q")
R = TypeVar("R")


class _Handler(NamedTuple):
    name: str
    method: Callable[..., Any]
    route: Route
    is_async: bool


@overload
def handles(
    route: interface.call[Q, R],
) -> Callable[[Callable[[S, Q], R | Awaitable[R]]], Callable[[S, Q], R | Awaitable[R]]]: ...
@overload
def handles(
    route: interface.post[Q],
) -> Callable[[Callable[[S, Q], Awaitable[None] | None]], Callable[[S, Q], Any]]: ...
@overload
def handles(
    route: interface.feed[Q, R],
) -> Callable[
    [Callable[[S, Q], AsyncIterator[R | Encoded]]], Callable[[S, Q], AsyncIterator[R | Encoded]]
]: ...
@overload
def handles(
    route: interface.batch[Q],
) -> Callable[[Callable[[S, list[Q]], None]], Callable[[S, list[Q]], None]]: ...
def handles(route: Route) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark the method of a service that answers a route."""

    def mark(method: Callable[..., Any]) -> Callable[..., Any]:
        method.__dict__["_handles"] = route
        return method

    return mark


def every(*, seconds: float) -> Callable[[Callable[[S], Any]], Callable[[S], Any]]:
    """Mark a method of a service that runs again and again, `seconds` after it last ended."""

    def mark(method: Callable[[S], Any]) -> Callable[[S], Any]:
        method.__dict__["_every"] = seconds
        return method

    return mark


class Service:
    """State behind a mailbox. Subclass with ``serves=(Interface, ...)`` and a handler a route."""

    _handlers: ClassVar[dict[int, _Handler]] = {}
    _periodic: ClassVar[dict[str, float]] = {}

    #: The link that the message being handled came on. Read it before the first ``await``.
    caller: Link

    __is_draining = False

    def __init_subclass__(cls, serves: tuple[type[Interface], ...] = ()) -> None:
        handlers = {
            number: _handler(cls, handler.name, handler.route)
            for number, handler in cls._handlers.items()
        }
        periodic = dict(cls._periodic)
        for name, method in vars(cls).items():
            if (route := getattr(method, "_handles", None)) is not None:
                known = handlers.get(route.number)
                if known is not None and known.name != name:
                    raise TypeError(f"{cls.__name__} has two handlers for {route.name}")
                handlers[route.number] = _handler(cls, name, route)
            if (seconds := getattr(method, "_every", None)) is not None:
                periodic[name] = seconds
        for served in serves:
            for route in served.routes.values():
                if route.number not in handlers:
                    raise TypeError(f"{cls.__name__} serves {route.name} but has no handler for it")
        cls._handlers, cls._periodic = handlers, periodic

    # These are made at first use, because a service has no base `__init__` to call. What is no
    # subclass's business has two underscores, so that every other name is a subclass's to take.

    @cached_property
    def mailbox(self) -> Mailbox[Message]:
        """Where links put what arrives."""
        return Mailbox(self._dispatch)

    @cached_property
    def scope(self) -> Scope:
        """The owner of this service's tasks."""
        return Scope(type(self).__name__)

    @cached_property
    def meter(self) -> Meter:
        """Counts of what was handled."""
        return Meter()

    @cached_property
    def __conversations(self) -> "dict[asyncio.Task[Any], None]":
        return {}

    def statistics(self) -> Statistics:
        """Return counts of what was handled, and what waits."""
        return self.meter.statistics(waiting=len(self.mailbox))

    @classmethod
    def routes(cls) -> list[Route]:
        """Return the routes that this service answers."""
        return [handler.route for handler in cls._handlers.values()]

    async def run(self) -> None:
        """Serve until cancelled or until a handler's bug ends the service with its exception."""
        try:
            await self.started()
            for name, seconds in self._periodic.items():
                self.scope.start(self.__repeat(getattr(self, name), seconds), name)
            self.mailbox.open()
            await self.scope.join()
        finally:
            self.__close_mailbox()
            try:
                await self.scope.close()
            finally:
                await self.stopped()

    async def started(self) -> None:
        """Hook: runs before the first message is handled."""

    async def stopped(self) -> None:
        """Hook: runs when the service has ended, however it ended."""

    def spawn(self, work: Coroutine[Any, Any, Any], name: str = "") -> "asyncio.Task[Any]":
        """Run a task that this service owns; its crash is the service's."""
        return self.scope.start(work, name)

    async def drain(self) -> None:
        """Refuse new calls and feeds, and wait until those already begun have ended."""
        self.__is_draining = True
        while self.__conversations or (self.mailbox.is_open and len(self.mailbox)):
            if self.__conversations:
                await asyncio.wait(list(self.__conversations))
            else:
                await asyncio.sleep(0)  # the mailbox is handled in slices, one a tick

    def __conversation_ended(self, link: Link, call: int, task: "asyncio.Task[Any]") -> None:
        self.__conversations.pop(task, None)
        if call and link.serves(call):
            link.fail(call, _has_ended(self))  # cancelled, and not by its caller

    async def __repeat(self, method: Callable[[], Any], seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            result = method()
            if result is not None:
                await result

    def __close_mailbox(self) -> None:
        for message in self.mailbox.close():
            if message.call:
                message.link.fail(message.call, _has_ended(self))

    def _dispatch(self, message: Message) -> None:
        link, number, call, body, deadline = message
        handler = self._handlers[number]
        route = handler.route
        if call:
            if not link.serves(call):
                return  # cancelled while it waited in the mailbox, or the link has ended
            if deadline < math.inf and deadline <= now():
                link.fail(call, DeadlineExceededError(f"{route.name} was asked too late to begin"))
                return
            if self.__is_draining:
                link.fail(call, UnavailableError(f"{type(self).__name__} is stopping"))
                return
        try:
            request = route.request.decode(body)
        except ProtocolError as error:
            if call:
                link.fail(call, error)
            else:
                link.malformed(error)
            return
        self.meter.count(route.name)
        if handler.is_async:
            task = self.scope.start(self.__converse(handler, link, call, request, deadline))
            self.__conversations[task] = None
            task.add_done_callback(partial(self.__conversation_ended, link, call))
            if call:
                link.serving(call, task)
            return
        self.caller = link
        try:
            result = handler.method(self, request)
            if call:
                link.reply(call, route.encode_reply(result))
        except RayError as error:
            _report(link, route, call, error)
        except Exception as error:
            _report(link, route, call, _bug(route, error))
            self.scope.crash(error)
            self.__close_mailbox()

    async def __converse(
        self, handler: _Handler, link: Link, call: int, request: Any, deadline: float
    ) -> None:
        """Answer one message in a task, within the deadline that its caller sent along."""
        route = handler.route
        answer = self.__stream if route.kind is Kind.FEED else self.__answer
        try:
            if deadline == math.inf:
                await answer(handler, link, call, request)
            else:
                with cancel_scope(deadline) as scope:
                    await answer(handler, link, call, request)
                if scope.cancelled_caught:
                    link.fail(call, DeadlineExceededError(f"{route.name} did not end in time"))
        except RayError as error:
            _report(link, route, call, error)
        except Exception as error:
            _report(link, route, call, _bug(route, error))
            raise

    async def __answer(self, handler: _Handler, link: Link, call: int, request: Any) -> None:
        self.caller = link
        result = await handler.method(self, request)
        if call:
            link.reply(call, handler.route.encode_reply(result))

    async def __stream(self, handler: _Handler, link: Link, call: int, request: Any) -> None:
        encode = handler.route.encode_reply
        self.caller = link
        items = handler.method(self, request)
        try:
            async for item in items:
                await link.item(call, item.body if type(item) is Encoded else encode(item))
        finally:
            await items.aclose()
        link.end(call)


def _handler(cls: type[Service], name: str, route: Route) -> _Handler:
    """Describe the method `name` of a class, having checked that it can answer the route."""
    method = getattr(cls, name)
    is_stream = inspect.isasyncgenfunction(method)
    is_async = is_stream or inspect.iscoroutinefunction(method)
    if is_stream != (route.kind is Kind.FEED):
        raise TypeError(
            f"{cls.__name__}.{name} answers {route.name}, a {type(route).__name__}: "
            + ("only a feed's handler yields" if is_stream else "a feed's handler yields its items")
        )
    if is_async and route.kind is Kind.BATCH:
        raise TypeError(f"{cls.__name__}.{name} answers a batch and must be a plain `def`")
    return _Handler(name, method, route, is_async)


def _bug(route: Route, error: Exception) -> RemoteHandlerError:
    return RemoteHandlerError(f"{route.name} crashed: {type(error).__name__}: {error}")


def _has_ended(service: Service) -> UnavailableError:
    return UnavailableError(f"{type(service).__name__} ended before it answered")


def _report(link: Link, route: Route, call: int, error: RayError) -> None:
    """Tell the caller what went wrong; a message that has no caller leaves a line in the log."""
    if call:
        link.fail(call, error)
    elif not isinstance(error, RemoteHandlerError):  # a bug will be raised
        logger.warning("%s from %s failed: %s", route.name, link.peer, error)
