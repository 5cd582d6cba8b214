"""`LocalCluster`: a whole cluster for the length of a ``with`` block, made for tests.

Example:
    >>> import raylite as ray
    >>> @ray.remote
    ... def square(n):
    ...     return n * n
    >>> with LocalCluster(num_cpus=2, workers="threads"):
    ...     ray.get([square.remote(n) for n in range(4)])
    [0, 1, 4, 9]

This module loads little; what a cluster needs is loaded when one starts, while the interpreter that
its processes are to be forked from does the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any, Literal, Self

from raylite._options import validate_init_options
from raylite._runtime import interrupts, nurseries
from raylite._runtime.interpreter import Interpreter, import_path
from raylite._runtime.loading import load
from raylite.testing.nodes import STORE, LocalNode, NodeSpec
from raylite.testing.nursery import ROLES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from raylite.testing.inprocess import InProcessCluster
    from raylite.testing.processes import ProcessCluster

Workers = Literal["processes", "threads"]


class LocalCluster:
    """A cluster of one node or several, and this process as its driver, inside ``with`` or ``async with``.

    Inside the block `raylite.get`, ``.remote()`` and the rest mean this cluster; of nested blocks,
    the innermost. Several may stand side by side: see `use`. When the block ends, nothing is left.

    Args:
        num_cpus: CPUs that tasks may occupy together, on a cluster of one node: 2 if not given. What is
            given for one node and `nodes` exclude one another.
        nodes: Several nodes instead, the first with this process as its driver: each the number of
            its CPUs, or a dictionary with ``num_cpus``, ``num_gpus``, ``resources``, ``labels``,
            ``object_store_memory``.
        workers: ``"processes"`` is what production does: each node is a process tree, and so may be
            killed; up in a third of a second. ``"threads"`` is up in milliseconds, and a debugger
            can step into tasks; but a task cannot be killed, and tasks share the interpreter's
            globals with the test.
        resources: Further resources by name.
        object_store_memory: Bytes for large objects.
        namespace: The namespace of the driver's job.
    """

    def __init__(
        self,
        *,
        num_cpus: float | None = None,
        nodes: Sequence[float | Mapping[str, object]] | None = None,
        workers: Workers = "processes",
        resources: Mapping[str, float] | None = None,
        object_store_memory: int | None = None,
        namespace: str = "test",
    ) -> None:
        if workers not in ("processes", "threads"):
            raise ValueError(f"workers must be 'processes' or 'threads', not {workers!r}")
        only = {
            "num_cpus": num_cpus,
            "resources": resources,
            "object_store_memory": object_store_memory,
        }
        only = {name: value for name, value in only.items() if value is not None}
        if only and nodes is not None:
            raise ValueError(
                f"nodes and {', '.join(only)} exclude one another: say in nodes what each node has, "
                "like {'num_cpus': 1}"
            )
        given: object = nodes
        if given is not None and not isinstance(given, list | tuple):
            raise TypeError(
                f"nodes must be a list with the number of CPUs, or the options, of each, not {nodes!r}"
            )
        self._specs = [
            NodeSpec.of(each) for each in ([{"num_cpus": 2, **only}] if nodes is None else nodes)
        ]
        if not self._specs:
            raise ValueError("a cluster has at least one node")
        validate_init_options({"namespace": namespace})
        self._namespace = namespace
        self._workers = workers
        self._running: ProcessCluster | InProcessCluster | None = None

    def start(self) -> Self:
        """Start the cluster; what ``with`` does."""
        if self._running is not None:
            raise RuntimeError("this LocalCluster is running already")
        if self._workers == "processes":
            self._running = self._start_processes()
        else:
            heavy = load("raylite.testing.inprocess")
            self._running = heavy.InProcessCluster(self._specs, self._namespace)
        return self

    def _start_processes(self) -> ProcessCluster:
        with interrupts.held() as interrupt, ExitStack() as unneeded:
            own: Interpreter | None = None
            if nurseries.current() is None:
                own = Interpreter(import_path(), ROLES)
                unneeded.callback(own.close)
            heavy = load("raylite.testing.processes")
            interrupt.raise_if_interrupted()
            running: ProcessCluster = heavy.ProcessCluster(self._specs, self._namespace, own)
            unneeded.pop_all()
            return running

    def stop(self) -> None:
        """End the cluster; what leaving the block does. Calling it again does nothing."""
        running, self._running = self._running, None
        if running is not None:
            running.close()

    @property
    def nodes(self) -> list[LocalNode]:
        """The nodes that were neither removed nor killed, the first one first."""
        return self._cluster.nodes

    def add_node(
        self,
        *,
        num_cpus: float = 2,
        num_gpus: float = 0,
        resources: Mapping[str, float] | None = None,
        labels: Mapping[str, str] | None = None,
        object_store_memory: int = STORE,
    ) -> LocalNode:
        """Let another node join; it can be given tasks when this returns."""
        given: dict[str, object] = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "resources": resources,
            "labels": labels,
            "object_store_memory": object_store_memory,
        }
        return self._cluster.add_node(NodeSpec.of(given))

    def remove_node(self, node: LocalNode) -> None:
        """End a node in order: the cluster knows at once."""
        self._cluster.remove_node(LocalNode.checked(node))

    def kill_node(self, node: LocalNode) -> None:
        """End a node as a power cut does: nobody is told, connections to it are reset."""
        self._cluster.kill_node(LocalNode.checked(node))

    def partition(self, *nodes: LocalNode) -> None:
        """Let nothing pass between these nodes and all others, silently, until `heal`.

        The GCS and this process are on the first node's side.
        """
        self._cluster.partition([LocalNode.checked(node) for node in nodes])

    def heal(self) -> None:
        """End a partition."""
        self._cluster.heal()

    @property
    def _cluster(self) -> ProcessCluster | InProcessCluster:
        if self._running is None:
            raise RuntimeError("this LocalCluster is not running")
        return self._running

    @contextmanager
    def use(self) -> Iterator[Self]:
        """Make this cluster the one that this thread's calls mean, for a block that does not await."""
        place = self._cluster.place
        with import_module("raylite._runtime.context").at(place):
            yield self

    def _set_aside(self) -> None:
        """Be nobody's cluster until `_taken_up`, as if there were none."""
        import_module("raylite._runtime.context").leave(self._cluster.place)

    @contextmanager
    def _taken_up(self) -> Iterator[Self]:
        """Be the cluster of the whole process for the block, and of no one after it."""
        context = import_module("raylite._runtime.context")
        context.enter(self._cluster.place)
        try:
            with self.use():
                yield self
        finally:
            if self._running is not None:
                self._set_aside()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        try:
            await _shielded().in_thread(self.start)
        except BaseException:
            if self._running is not None:  # who was cancelled hears so when it has started
                await _shielded().in_thread(self.stop)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await _shielded().in_thread(self.stop)


def _shielded() -> Any:
    return import_module("raylite._kernel.shielded")
