"""Clusters of several nodes on this machine, with Ray's interface: `Cluster`.

Every node is a process tree as `raylite start` makes it, on a port of its own of the loopback. For
tests that need no more than nodes which come and go, `raylite.testing.LocalCluster` is faster.

Example:
    >>> import raylite as ray
    >>> cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})  # doctest: +SKIP
    >>> node = cluster.add_node(num_cpus=2, resources={"disk": 1})  # doctest: +SKIP
    >>> ray.init(address=cluster.address)  # doctest: +SKIP
    >>> cluster.remove_node(node)  # doctest: +SKIP
    >>> cluster.shutdown()  # doctest: +SKIP
"""

import atexit
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from time import monotonic
from typing import Any, Self

from raylite import _init
from raylite._kernel.processes import parent
from raylite._options import validate_init_options
from raylite._runtime import inquiry, interrupts, presence, remains, starting
from raylite._runtime.guest import GuestNode
from raylite._runtime.launch import NodeProcess
from raylite._runtime.local import SessionOptions
from raylite._runtime.networks import read_keys
from raylite._runtime.starting import NodeOptions

_ENDING = 5.0  # seconds for the rest of a node to end whose raylet was killed
_STORE = 150 * 1024 * 1024  # Ray's

# Ray: arguments of nodes that mean nothing here.
_ACCEPTED = {
    "autoscaling_config", "dashboard_agent_listen_port", "dashboard_grpc_port", "dashboard_host",
    "dashboard_port", "enable_object_reconstruction", "external_addresses", "huge_pages",
    "include_dashboard", "include_log_monitor", "metrics_agent_port", "metrics_export_port",
    "no_monitor", "node_name", "num_redis_shards", "object_manager_port", "object_ref_seed",
    "object_spilling_directory", "plasma_directory", "ray_client_server_port", "raylet_ip_address",
    "redirect_output", "redis_address", "redis_max_clients", "redis_max_memory", "redis_password",
    "redis_port", "redis_shard_ports", "runtime_env_agent_port", "tracing_startup_hook", "webui",
}  # fmt: skip


class Node:
    """A node of a `Cluster`, by which a test kills some of it; `Cluster.add_node` returns it.

    Args:
        process: Its process tree.
    """

    def __init__(self, process: NodeProcess) -> None:
        self.process = process
        config = process.config
        self.head: bool = config.head
        self.node_id: str = config.node_id
        """Its id, in hexadecimal."""
        self.unique_id: str = config.node_id

        self.node_ip_address: str = config.ip
        self.raylet_ip_address: str = config.ip
        self.raylet_socket_name: str = config.raylet_address
        self.session_name: str = config.sockets.parent.name

    @property
    def address(self) -> str:
        """The cluster's address, as `raylite.init` takes it."""
        return self.process.config.cluster

    gcs_address = address

    @property
    def address_info(self) -> dict[str, object]:
        """Where it is, under the names that `raylite.init` uses."""
        return {
            "address": self.address,
            "gcs_address": self.address,
            "node_id": self.node_id,
            "node_ip_address": self.node_ip_address,
            "raylet_ip_address": self.node_ip_address,
            "raylet_socket_name": self.raylet_socket_name,
            "session_dir": self.get_session_dir_path(),
        }

    @property
    def is_member(self) -> bool:
        """Whether it has come as far as to answer, and still lives."""
        return self.process.is_running and self.process.raylet_pid > 0

    def get_session_dir_path(self) -> str:
        """Return the session's directory, which goes with the node."""
        return self.process.config.session_dir

    def get_logs_dir_path(self) -> str:
        """Return the directory of its logs."""
        return str(self.process.config.logs)

    def is_head(self) -> bool:
        """Return whether the GCS runs here."""
        return self.head

    def any_processes_alive(self) -> bool:
        """Return whether anything of the node lives."""
        return self.process.is_running

    def remaining_processes_alive(self) -> bool:
        """Return whether it lives, or has ended because a test ended it."""
        return self.process.failure() is None

    def kill_raylet(self, check_alive: bool = True) -> None:
        """Kill the raylet, and wait for the end of the node: its other processes end with it.

        The cluster knows within two seconds.

        Args:
            check_alive: Refuse if it has ended already.

        Raises:
            RuntimeError: It has.
        """
        self._kill("raylet", self.process.raylet_pid, check_alive=check_alive)
        self.process.wait_end(_ENDING)

    def kill_gcs_server(self, check_alive: bool = True) -> None:
        """Kill the GCS. Another takes its place at once, with the tables.

        Ray: none does until `start_gcs_server`. Five times a minute it does; then the head ends.

        Args:
            check_alive: Refuse if it has ended already, or there is none here.

        Raises:
            RuntimeError: It has, or there is none.
        """
        pid = 0
        if self.head and self.any_processes_alive():
            guest = GuestNode(self.get_session_dir_path())
            pid = guest.gcs_pid
            guest.stop()
        self._kill("GCS", pid, check_alive=check_alive)

    def start_gcs_server(self) -> None:
        """Wait until the GCS answers that has taken the place of one that was killed.

        Raises:
            ConnectionError: It does not.
        """
        config = self.process.config
        inquiry.list_nodes(config.gcs_url, read_keys(config.token_file, config.tls))

    def kill_all_processes(
        self, check_alive: bool = True, allow_graceful: bool = False, wait: bool = False
    ) -> None:
        """End the node, and see that nothing of it is left.

        Args:
            check_alive: Refuse if it has ended already.
            allow_graceful: Let it tell the cluster; else it ends as in a power cut.
            wait: Accepted for Ray's sake: the processes are always waited for.

        Raises:
            RuntimeError: It has ended.
        """
        if check_alive and not self.any_processes_alive():
            raise RuntimeError(f"{self} has ended already; check_alive=False does not mind")
        if not allow_graceful:
            self.process.kill()
        self.process.stop()

    def wait_member(self) -> None:
        """Wait until it is a member of the cluster."""
        self.process.wait_ready()
        inquiry.wait_registered(self.process)
        if self.head:
            self.process.accept(outlives=False)  # from now on a GCS that ends is started again

    def _kill(self, what: str, pid: int, *, check_alive: bool) -> None:
        is_ours = pid > 0 and self.any_processes_alive() and parent(pid) == self.process.pid
        if is_ours:
            remains.kill(pid)
        elif check_alive:
            raise RuntimeError(f"{self} has no {what} that lives; check_alive=False does not mind")

    def __repr__(self) -> str:
        return f"Node({self.node_id[:8]}{', head' if self.head else ''})"


class Cluster:
    """Nodes that are processes of this machine, and end with this process at the latest.

    The first node that is added is the head. This process is a driver after `connect`, or after
    ``raylite.init(address=cluster.address)``; it is attached to the head. Blocks, about half a
    second for each node; any thread may call it, that of an event loop too if that may wait. In a
    ``with`` block it is shut down at the end.

    Args:
        initialize_head: Start the head at once.
        connect: And make this process a driver.
        head_node_args: The head's arguments, see `add_node`.
        shutdown_at_exit: End with this process. Otherwise the nodes live on when it ends in order,
            until `raylite stop`; if it is killed they end all the same.

    Raises:
        RuntimeError: `connect` without a head.
    """

    def __init__(
        self,
        initialize_head: bool = False,
        connect: bool = False,
        head_node_args: Mapping[str, Any] | None = None,
        shutdown_at_exit: bool = True,
    ) -> None:
        if connect and not initialize_head:
            raise RuntimeError("Cannot connect to uninitialized cluster: pass initialize_head=True")
        self.head_node: Node | None = None
        self.worker_nodes: set[Node] = set()
        self.connected: bool = False
        self._workers: list[Node] = []  # in the order they were added
        self._at_exit = self.shutdown if shutdown_at_exit else self._let_go
        atexit.register(self._at_exit)
        try:
            if initialize_head:
                self.add_node(**(head_node_args or {}))
            if connect:
                self.connect()
        except BaseException:
            self.shutdown()
            raise

    @property
    def address(self) -> str:
        """The address of the head, as `raylite.init` takes it.

        Raises:
            RuntimeError: There is no head.
        """
        return self._head().address

    gcs_address = address

    def connect(self, namespace: str | None = None) -> None:
        """Make this process a driver of the cluster, as `raylite.init` does.

        Args:
            namespace: The job's; None gives it one of its own.

        Raises:
            RuntimeError: There is no head, or this process is a driver already.
        """
        _init.init(self._head().get_session_dir_path(), namespace=namespace)
        self.connected = True

    def add_node(self, wait: bool = True, **node_args: Any) -> Node:
        """Start a node; the first one is the head.

        Args:
            wait: Return when it can be given tasks. Otherwise it is on its way when this returns,
                and `wait_for_nodes` waits for it. A head is always waited for.
            **node_args: What it offers: `num_cpus` (1), `num_gpus`, `memory`, `resources`, `labels`,
                `object_store_memory` (150 MiB). Where it is: `node_ip_address` (127.0.0.1), `port` (a
                head's, any), `node_manager_port`, `min_worker_port`, `max_worker_port`,
                `worker_port_list`, `temp_dir`. A head's `_system_config` and `storage`, as in
                ``raylite start``. `env_vars` of its workers. Ray's other arguments have no effect.

        Raises:
            TypeError: There is no such argument.
            ValueError: It cannot have this value.
            RaySystemError: The node could not start; the message says why.
        """
        options = _options(node_args, None if self.head_node is None else self.address)
        with interrupts.held() as interrupt:
            node = Node(starting.begin_node(options))
            interrupt.hurry(node.process.kill)
            try:
                if wait or node.head:
                    node.wait_member()
                    members = [each for each in self.list_all_nodes() if each.is_member]
                    inquiry.wait_acquainted([each.process.config for each in (*members, node)])
                interrupt.raise_if_interrupted()
            except BaseException:
                node.process.stop()
                raise
            if node.head:
                self.head_node = node
            else:
                self.worker_nodes.add(node)
                self._workers.append(node)
        return node

    def remove_node(self, node: Node, allow_graceful: bool = True) -> None:
        """End a node, and see that nothing of it is left.

        Without the head the others end too, when they have missed it for a minute.

        Args:
            node: One that was added and not removed yet.
            allow_graceful: Let it tell the cluster, which then knows at once. Otherwise it ends as in a
                power cut, and the cluster knows within two seconds.

        Raises:
            ValueError: It is no node of this cluster; or this process is attached to it.
        """
        if node not in self.list_all_nodes():
            raise ValueError(f"{node} is not a node of this cluster, or is one no more")
        if _is_attached_to(node):  # Ray: leaves the cluster first, then says so
            raise ValueError(
                f"{node} is the one that this process is attached to: call raylite.shutdown() before, "
                "or remove another one"
            )
        self._end(node, allow_graceful=allow_graceful)

    def wait_for_nodes(self, timeout: float = 30) -> None:
        """Wait until the living members of the cluster are those that were added and not removed.

        Args:
            timeout: Seconds.

        Raises:
            TimeoutError: They are not; the message says which is missing, or still there. At once, if one
                that was not removed has ended.
            RaySystemError: One of them could not start.
        """
        deadline = monotonic() + timeout
        head = self._head()
        for node in self.list_all_nodes():
            node.process.wait_ready(max(deadline - monotonic(), 0.0))
        self._refuse_ended()
        expected = {node.node_id for node in self.list_all_nodes()}
        config = head.process.config
        keys = read_keys(config.token_file, config.tls)
        left = max(deadline - monotonic(), 0.0)
        alive = inquiry.wait_alive(config.gcs_url, keys, expected, left)
        if alive != expected:
            missing = [str(node) for node in self.list_all_nodes() if node.node_id not in alive]
            surplus = [f"Node({id[:8]})" for id in alive - expected]
            raise TimeoutError(
                f"after {timeout:g} s the cluster has {len(alive)} nodes instead of {len(expected)}: "
                f"missing {', '.join(missing) or 'none'}, surplus {', '.join(surplus) or 'none'}"
            )
        self._refuse_ended()
        inquiry.wait_acquainted([node.process.config for node in self.list_all_nodes()])

    def _refuse_ended(self) -> None:
        """Wait for no node that ended after it had begun: it comes back no more."""
        nodes = self.list_all_nodes()
        ended = [str(node) for node in nodes if not node.any_processes_alive()]
        if ended:
            raise TimeoutError(
                f"the cluster can have no more than {len(nodes) - len(ended)} nodes instead of {len(nodes)}: "
                f"missing {', '.join(ended)}, which a test has killed, or which has died; "
                "`remove_node` waits for it no longer"
            )

    def list_all_nodes(self) -> list[Node]:
        """Return the nodes that were not removed, the head first, in the order they were added."""
        return [*([] if self.head_node is None else [self.head_node]), *self._workers]

    def remaining_processes_alive(self) -> bool:
        """Return whether every node lives that no test has ended."""
        return all(node.remaining_processes_alive() for node in self.list_all_nodes())

    def shutdown(self) -> None:
        """End all nodes, the head last, and see that nothing of them is left.

        If this process is attached to one of them, it leaves the cluster before. Calling this again
        does nothing.
        """
        atexit.unregister(self._at_exit)
        with interrupts.held() as interrupt, ExitStack() as ending:
            nodes = self.list_all_nodes()
            for node in nodes:
                ending.callback(self._end, node, allow_graceful=True)
            interrupt.hurry(lambda: [*map(_kill, nodes)])
            if any(_is_attached_to(node) for node in nodes):
                ending.callback(_init.shutdown)
            self.connected = False

    def _let_go(self) -> None:
        for node in self.list_all_nodes():
            if node.any_processes_alive():
                node.process.accept(outlives=True)

    def _end(self, node: Node, *, allow_graceful: bool) -> None:
        if node is self.head_node:
            self.head_node = None
        else:
            self.worker_nodes.discard(node)
            self._workers.remove(node)
        node.kill_all_processes(check_alive=False, allow_graceful=allow_graceful)

    def _head(self) -> Node:
        if self.head_node is None:
            raise RuntimeError("this cluster has no head: the first node that is added becomes it")
        return self.head_node

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


def _is_attached_to(node: Node) -> bool:
    here = presence.current()
    return here is not None and here.session_dir == node.get_session_dir_path()


def _kill(node: Node) -> None:
    node.process.kill()


def _options(given: Mapping[str, Any], address: str | None) -> NodeOptions:
    """Return what is to be started: the head if there is no address to join."""
    args = {name: value for name, value in given.items() if name not in _ACCEPTED}
    offered = {
        "num_cpus": args.pop("num_cpus", 1),
        "num_gpus": args.pop("num_gpus", None),
        "memory": args.pop("memory", None),
        "resources": args.pop("resources", None),
        "labels": args.pop("labels", None),
        "object_store_memory": args.pop("object_store_memory", None) or _STORE,
    }
    system = args.pop("_system_config", None)
    named = {"_memory" if name == "memory" else name: value for name, value in offered.items()}
    validate_init_options({**named, "_system_config": system})
    resources = SessionOptions(
        **offered, temp_dir=args.pop("temp_dir", None) or "", system=system or {}
    )
    options = NodeOptions(
        resources,
        address,
        args.pop("node_ip_address", None) or starting.LOOPBACK,
        gcs_port=_port("port", args.pop("port", None)),
        raylet_port=_port("node_manager_port", args.pop("node_manager_port", None)) or None,
        worker_ports=_worker_ports(
            args.pop("min_worker_port", None),
            args.pop("max_worker_port", None),
            args.pop("worker_port_list", None),
        ),
        storage=args.pop("storage", ""),
        env_vars=args.pop("env_vars", None) or {},
    )
    if args:
        raise TypeError(f"a node has no argument {', '.join(sorted(args))}")
    return options


def _worker_ports(
    first: int | None, last: int | None, several: str | Sequence[int] | None
) -> Sequence[int]:
    if several:
        listed = several.split(",") if isinstance(several, str) else several
        return [_port("worker_port_list", port) for port in listed]
    lowest, highest = _port("min_worker_port", first), _port("max_worker_port", last)
    if lowest > highest > 0:
        raise ValueError(f"min_worker_port={first} is above max_worker_port={last}: exchange them")
    return range(lowest, highest + 1) if lowest and highest else ()


def _port(name: str, given: object) -> int:
    """Return a port that a program may listen on, or 0 for any."""
    text = "0" if given is None else str(given).strip()
    if not text.isdecimal() or not (int(text) == 0 or 1024 <= int(text) <= 65535):
        raise ValueError(f"{name} is 0, for any that is free, or from 1024 to 65535, not {given!r}")
    return int(text)
