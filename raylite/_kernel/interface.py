"""Interfaces: what a component can be told, as typed Python.

An interface is a class of routes. The same class types the client (``Nodes(link).register(...)``),
the server (``@handles(Nodes.register)``) and every fake of either.

Example:
    >>> class Greeter(Interface):
    ...     greet = call(bytes, bytes)
    >>> Greeter.greet.name
    'Greeter.greet'
"""

import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar, overload

from raylite._kernel.codec import Codec, codec_for, encode_msgpack, is_protobuf
from raylite._kernel.packet import Kind
from raylite.exceptions import ProtocolError

SCOPES = ("read", "node", "admin")
"""What a token lets its holder do, from the least to the most: ask what there is; be a node of the
cluster, or a process of one; run drivers."""

Q = TypeVar("Q")
R = TypeVar("R")


def allows(scope: str, needed: str) -> bool:
    """Whether a token of a scope lets its holder do what needs one."""
    return SCOPES.index(scope) >= SCOPES.index(needed)


class Route:
    """One thing that can be said. `number` is its name on the wire, the same in every process.

    A route is control unless it says ``bulk=True``: control messages are handled before bulk ones.
    Where peers prove tokens, it is for those whose token's scope is `scope` or more.
    """

    kind: ClassVar[Kind]
    name: str
    number: int

    def __init__(self, request: Any, reply: Any, bulk: bool, scope: str = "node") -> None:
        self.request: Codec = codec_for(request)
        self.reply: Codec = codec_for(reply)
        self.bulk = bulk
        self.scope = scope

    def __set_name__(self, owner: type, name: str) -> None:
        self.attribute = name
        self.name = f"{owner.__name__}.{name}"
        digest = hashlib.blake2b(self.name.encode(), digest_size=2).digest()
        self.number = int.from_bytes(digest, "little")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def encode_reply(self, reply: Any) -> bytes:
        """Return a reply's bytes; a ProtocolError says that there are none for it."""
        try:
            return self.reply.encode(reply)
        except Exception as error:
            raise self.unencodable(error) from error

    def unencodable(self, error: Exception) -> ProtocolError:
        """What is raised for a message that no bytes can say, to whoever would send it, and to nobody else."""
        return ProtocolError(
            f"a message of {self.name} cannot be encoded: {type(error).__name__}: {error}"
        )


class call(Route, Generic[Q, R]):
    """One request, one reply."""

    kind = Kind.CALL

    @overload
    def __init__(
        self, request: type[Q], reply: type[R], *, bulk: bool = False, scope: str = "node"
    ) -> None: ...
    @overload
    def __init__(
        self: "call[Q, None]",
        request: type[Q],
        reply: None,
        *,
        bulk: bool = False,
        scope: str = "node",
    ) -> None: ...
    def __init__(
        self, request: Any, reply: Any, *, bulk: bool = False, scope: str = "node"
    ) -> None:
        super().__init__(request, reply, bulk, scope)

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(
        self, instance: "Interface", owner: type
    ) -> Callable[[Q], Coroutine[Any, Any, R]]: ...
    def __get__(self, instance: "Interface | None", owner: type) -> Any:
        return self if instance is None else instance.bind(self, instance.link.call)


class post(Route, Generic[Q]):
    """One message, no reply; sending never blocks."""

    kind = Kind.POST

    def __init__(self, message: type[Q], *, bulk: bool = False) -> None:
        super().__init__(message, None, bulk)

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: "Interface", owner: type) -> Callable[[Q], None]: ...
    def __get__(self, instance: "Interface | None", owner: type) -> Any:
        return self if instance is None else instance.bind(self, instance.link.post)


class feed(Route, Generic[Q, R]):
    """One request, a stream of items, as fast as the reader takes them."""

    kind = Kind.FEED

    def __init__(
        self, request: type[Q], item: type[R], *, bulk: bool = False, scope: str = "node"
    ) -> None:
        super().__init__(request, item, bulk, scope)

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: "Interface", owner: type) -> Callable[[Q], AsyncIterator[R]]: ...
    def __get__(self, instance: "Interface | None", owner: type) -> Any:
        return self if instance is None else instance.bind(self, instance.link.feed)


class batch(Route, Generic[Q]):
    """Like `post`, but what one loop tick sends is handed to the receiver as one list."""

    kind = Kind.BATCH

    def __init__(self, item: type[Q], *, bulk: bool = True) -> None:
        if is_protobuf(item):
            raise TypeError(f"items of a batch are bytes or structures, not {item.__name__}")
        super().__init__(list[item], None, bulk)  # type: ignore[valid-type]
        self.encode_item: Callable[[Any], bytes] = encode_msgpack

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: "Interface", owner: type) -> Callable[[Q], None]: ...
    def __get__(self, instance: "Interface | None", owner: type) -> Any:
        return self if instance is None else instance.bind(self, instance.link.batch)


class Sender(Protocol):
    """What carries a route's messages: a link, or a fake of one."""

    async def call(self, route: Route, request: Any) -> Any: ...
    def post(self, route: Route, message: Any) -> None: ...
    def feed(self, route: Route, request: Any) -> AsyncIterator[Any]: ...
    def batch(self, route: "batch[Any]", item: Any) -> None: ...


class Interface:
    """A component's routes, bound to the link that leads to it."""

    routes: ClassVar[dict[str, Route]]

    def __init_subclass__(cls) -> None:
        own = {name: route for name, route in vars(cls).items() if isinstance(route, Route)}
        cls.routes = {**getattr(cls, "routes", {}), **own}
        for route in cls.routes.values():
            taken = _numbers.setdefault(route.number, route.name)
            if taken != route.name:
                raise TypeError(f"{route.name} and {taken} share a number; rename one of them")

    def __init__(self, link: Sender) -> None:
        self.link = link

    def bind(self, route: Route, send: Callable[..., Any]) -> Callable[..., Any]:
        """Return the sender of a route, made once: the next access finds it on the instance."""
        bound = partial(send, route)
        self.__dict__[route.attribute] = bound
        return bound


_numbers: dict[int, str] = {}
