"""A cluster of real processes for tests, all of them forked from one that has everything imported.

Each node is the process tree that production has. Only the first one's fork server is an interpreter
of its own; it forks those of the other nodes, so that a node is there in a few hundredths of a second.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial

from msgspec.structs import replace

from raylite._kernel.token import create_token
from raylite._runtime import folders, inquiry, interrupts, launch, local
from raylite._runtime.context import Place
from raylite._runtime.interpreter import Interpreter
from raylite._runtime.launch import NodeProcess
from raylite._runtime.local import SessionOptions
from raylite._runtime.node import NodeConfig, clear, own_token
from raylite._runtime.session import Session
from raylite._types.marks import mark_of_node
from raylite.testing import cuts
from raylite.testing.cuts import CUTS, Cuts
from raylite.testing.nodes import LocalNode, NodeSpec


class ProcessCluster:
    """Nodes as process trees, and this process as a driver of the first. Any thread may call it.

    Args:
        specs: What the nodes offer, the first one the head.
        namespace: The namespace of the driver's job.
        interpreter: One that is to be the head's fork server, with the roles of `cutroles`; None to have
            it forked by the present `Nursery`.
    """

    def __init__(
        self, specs: Iterable[NodeSpec], namespace: str, interpreter: Interpreter | None
    ) -> None:
        self._nodes: dict[str, tuple[LocalNode, NodeProcess]] = {}
        self._island = set[str]()  # the nodes that are cut off from the head
        head, *others = specs
        with interrupts.held() as interrupt, ExitStack() as failed:
            session = str(folders.make_session_dir(""))
            failed.callback(clear, NodeConfig(0, 0, session_dir=session))
            self._token = own_token(session)
            create_token(self._token)
            path = f"{session}/sockets/{CUTS}"
            self._cuts = Cuts(path)
            failed.callback(self._cuts.close)
            self._system = {CUTS: path}
            config = replace(self._config(head), session_dir=session, gcs_port=0)
            self._head = launch.start(config, interpreter=interpreter)
            failed.callback(self._head.stop)
            interrupt.hurry(self._head.kill)
            self._head.wait_ready()
            begun = [self._begin(spec, failed) for spec in others]  # while the head joins, too
            network_of = partial(cuts.network_of, cuts=self._cuts)
            self._session = Session(SessionOptions(namespace=namespace), self._head, network_of)
            failed.callback(self._session.close)
            self.place: Place = self._session.place
            self._nodes[config.node_id] = LocalNode(config.node_id, head), self._head
            self._join(begun)
            interrupt.raise_if_interrupted()
            failed.pop_all()

    @property
    def nodes(self) -> list[LocalNode]:
        """The nodes that were neither removed nor killed, the head first."""
        return [handle for handle, _ in self._nodes.values()]

    def add_node(self, spec: NodeSpec) -> LocalNode:
        """Let a node join."""
        with interrupts.held() as interrupt, ExitStack() as failed:
            begun = self._begin(spec, failed)
            self._join([begun])
            failed.pop_all()
            interrupt.raise_if_interrupted()
        return begun[0]

    def remove_node(self, handle: LocalNode) -> None:
        """End a node in order."""
        self._take(handle).stop()

    def kill_node(self, handle: LocalNode) -> None:
        """Kill every process of a node."""
        node = self._take(handle)
        node.kill()
        node.stop()

    def partition(self, handles: Iterable[LocalNode]) -> None:
        """Let nothing pass between these and the others."""
        chosen = {self._node(handle).config.node_id for handle in handles}
        is_ours = self._head.config.node_id in chosen
        self._island = {node_id for node_id in self._nodes if (node_id in chosen) is not is_ours}
        self._cuts.set(mark_of_node(bytes.fromhex(node_id)) for node_id in self._island)

    def heal(self) -> None:
        """Let everything pass again; connections that lost something break within two seconds."""
        self._cuts.set(())
        self._island = set()

    def close(self) -> None:
        """End everything."""
        with interrupts.held() as interrupt, ExitStack() as ending:
            interrupt.hurry(self._head.kill)
            ending.callback(self._cuts.close)
            ending.callback(self._session.close)
            for _, node in list(self._nodes.values())[1:]:
                ending.callback(node.stop)
            self.heal()

    # ---- inside --------------------------------------------------------------------------

    def _begin(self, spec: NodeSpec, failed: ExitStack) -> tuple[LocalNode, NodeProcess]:
        """Have the head's fork server fork another node."""
        node = launch.start(self._member(spec), parent=self._head)
        failed.callback(node.stop)
        return LocalNode(node.config.node_id, spec), node

    def _join(self, begun: Sequence[tuple[LocalNode, NodeProcess]]) -> None:
        """Wait until nodes that were begun and the others can share their tasks."""
        for _, node in begun:
            node.wait_ready()
        members = [
            each
            for id, (_, each) in self._nodes.items()
            if id not in self._island and each.is_running
        ]
        if begun:
            inquiry.wait_acquainted([each.config for each in (*members, *dict(begun).values())])
        self._nodes.update({handle.node_id: (handle, node) for handle, node in begun})

    def _config(self, spec: NodeSpec) -> NodeConfig:
        offered = SessionOptions(
            num_cpus=spec.num_cpus,
            num_gpus=spec.num_gpus,
            resources=spec.resources,
            labels=spec.labels,
            object_store_memory=spec.object_store_memory,
        )
        return replace(
            local.node_config(offered),
            raylet_port=0,
            token_file=self._token,
            system=self._system,
            node_id=os.urandom(28).hex(),
        )

    def _member(self, spec: NodeSpec) -> NodeConfig:
        head = self._head.config
        mark = mark_of_node(bytes.fromhex(head.node_id))
        gcs = f"tcp:{head.cluster};{mark}=unix:{head.gcs_address}"
        return replace(self._config(spec), head=False, gcs=gcs, cluster=head.cluster)

    def _node(self, handle: LocalNode) -> NodeProcess:
        _, node = self._nodes.get(handle.node_id, (None, None))
        if node is None:
            raise ValueError(f"{handle} is not a node of this cluster, or is one no more")
        return node

    def _take(self, handle: LocalNode) -> NodeProcess:
        node = self._node(handle)
        if node is self._head:
            raise ValueError("the first node is this process's own; end the cluster instead")
        del self._nodes[handle.node_id]
        return node
