"""Graphs of calls that are bound now and made later: Ray's `ray.dag`, executed eagerly.

``f.bind(x)`` is a node: the call ``f.remote(x)``, not yet made. Nodes may be arguments of other
nodes. ``node.execute()`` makes all calls that the node needs, each once, and returns what its own
call does; a node among the arguments becomes the reference to its result.

Example:
    >>> with InputNode() as number:  # doctest: +SKIP
    ...     graph = add.bind(square.bind(number), 1)
    >>> get(graph.execute(3))  # doctest: +SKIP
    10
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeAlias

_SEVERAL = object()
"""The value of an InputNode that stands for several."""


class _Given:
    """What `execute` was given."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs

    @property
    def is_one(self) -> bool:
        return len(self.args) == 1 and not self.kwargs


_Results: TypeAlias = "Mapping[DAGNode, Any]"


class DAGNode:
    """A node of a graph: what `bind` returns, and the nodes of this module."""

    def __init__(self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> None:
        self._bound_args = tuple(args)
        self._bound_kwargs = dict(kwargs or {})

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Make all calls that this node needs, and return what its own call returns.

        Returns at once. Each node makes one call, however many others need it; executing again
        makes all calls again.

        Args:
            *args: What the graph's `InputNode` stands for: one value, or several that
                ``node[0]``, ``node[1]`` are.
            **kwargs: The same by name, for ``node.name``.

        Raises:
            ValueError: The graph has an `InputNode` and nothing was given, or the reverse.
        """
        order = _in_order(self)
        wants = any(isinstance(node, InputNode) for node in order)
        if wants != bool(args or kwargs):
            what = "has an InputNode: give execute() what it stands for"
            without = "has no InputNode: execute() takes nothing"
            raise ValueError(f"the graph {what if wants else without}")
        given = _Given(args, kwargs)
        results: dict[DAGNode, Any] = {}
        for node in order:
            results[node] = node._made(given, results)
        return results[self]

    def get_args(self) -> tuple[Any, ...]:
        """Return the arguments that were bound by position."""
        return self._bound_args

    def get_kwargs(self) -> dict[str, Any]:
        """Return the arguments that were bound by name."""
        return dict(self._bound_kwargs)

    def _made(self, given: _Given, results: _Results) -> Any:
        raise NotImplementedError


class FunctionNode(DAGNode):
    """A call of a remote function. Made by ``f.bind(...)``."""

    def __init__(
        self, call: Callable[..., Any], name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        super().__init__(args, kwargs)
        self._call = call
        self._name = name

    def _made(self, given: _Given, results: _Results) -> Any:
        args = [_placed(each, results) for each in self._bound_args]
        kwargs = {name: _placed(each, results) for name, each in self._bound_kwargs.items()}
        return self._call(*args, **kwargs)

    def __repr__(self) -> str:
        return f"FunctionNode({self._name})"


class InputNode(DAGNode):
    """Stands for what `execute` will be given: ``with InputNode() as it: graph = f.bind(it)``.

    ``it[0]`` and ``it.name`` stand for the arguments of that place and name; if there is only one
    argument, for its item and its attribute (or, of a dictionary, ``it["key"]`` for its item).
    """

    def __init__(self) -> None:
        super().__init__()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def __getitem__(self, key: int | str) -> "InputAttributeNode":
        return InputAttributeNode(self, key, is_item=True)

    def __getattr__(self, name: str) -> "InputAttributeNode":
        if name.startswith("_"):
            raise AttributeError(name)
        return InputAttributeNode(self, name, is_item=False)

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("an InputNode is of no known length: bind its items by their numbers")

    def _made(self, given: _Given, results: _Results) -> Any:
        return given.args[0] if given.is_one else _SEVERAL


class InputAttributeNode(DAGNode):
    """Stands for a part of what `execute` will be given. Made from an `InputNode`."""

    def __init__(self, whole: InputNode, key: int | str, *, is_item: bool) -> None:
        super().__init__((whole,))
        self._key = key
        self._is_item = is_item

    def _made(self, given: _Given, results: _Results) -> Any:
        if given.is_one:
            one = given.args[0]
            return one[self._key] if self._is_item else getattr(one, str(self._key))
        if isinstance(self._key, int):
            return given.args[self._key]
        return given.kwargs[self._key]


class MultiOutputNode(DAGNode):
    """Several nodes as one: `execute` returns the list of their results."""

    def __init__(self, args: Sequence[DAGNode]) -> None:
        super().__init__(args)
        if strange := [each for each in list[Any](args) if not isinstance(each, DAGNode)]:
            raise ValueError(f"a MultiOutputNode is of nodes, and {strange[0]!r} is none")

    def _made(self, given: _Given, results: _Results) -> Any:
        return [_placed(each, results) for each in self._bound_args]


def _in_order(last: DAGNode) -> list[DAGNode]:
    """Return the nodes of a graph, each behind those that it needs; a graph may be deep."""
    order: dict[DAGNode, None] = {}
    waiting = [(last, False)]
    while waiting:
        node, is_ready = waiting.pop()
        if node in order:
            continue
        if is_ready:
            order[node] = None
            continue
        waiting.append((node, True))
        for bound in (*node._bound_args, *node._bound_kwargs.values()):
            waiting += [(each, False) for each in _nodes_in(bound)]
    return list(order)


def _nodes_in(value: Any) -> Iterator[DAGNode]:
    if isinstance(value, DAGNode):
        yield value
    elif type(value) in (list, tuple):
        for each in value:
            yield from _nodes_in(each)
    elif type(value) is dict:
        for each in value.values():
            yield from _nodes_in(each)


def _placed(value: Any, results: _Results) -> Any:
    """Put results in the places of nodes, also in lists, tuples and dictionaries."""
    if isinstance(value, DAGNode):
        result = results[value]
        if result is _SEVERAL:
            raise ValueError("an InputNode is one value, and several were given: bind its parts")
        return result
    if type(value) in (list, tuple):
        return type(value)(_placed(each, results) for each in value)
    if type(value) is dict:
        return {key: _placed(each, results) for key, each in value.items()}
    return value
