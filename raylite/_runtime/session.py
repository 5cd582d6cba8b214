"""The driver's session, from `init` to `shutdown`: attached to a node that is its own, or others' too."""

import asyncio
import atexit
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from raylite._kernel.arena import Arena
from raylite._kernel.grpc import GrpcNetwork
from raylite._kernel.scope import Scope
from raylite._kernel.threads import LoopThread
from raylite._protocol import gcs, raylet
from raylite._runtime import context, interrupts, networks, output, settings
from raylite._runtime.attach import Attachment, attach_driver
from raylite._runtime.context import Place
from raylite._runtime.guest import GuestNode
from raylite._runtime.interpreter import import_path
from raylite._runtime.launch import NodeProcess
from raylite._runtime.local import SessionOptions
from raylite._runtime.networks import NetworkOf
from raylite._services.worker.output import OutputService
from raylite._types.text import sendable
from raylite._wire import hot
from raylite._wire.messages import gcs as gcs_msg, raylet as msg
from raylite.exceptions import (
    PeerLostError,
    RayError,
    RaySystemError,
    SessionEndedError,
    raylet_died,
)

_START_SECONDS = 60.0
_FLUSH_SECONDS = 1.0  # for what workers have printed to be shown before a driver leaves


class Session:
    """This process's place in a cluster. Any thread may use it."""

    def __init__(
        self,
        options: SessionOptions,
        node: NodeProcess | GuestNode,
        network_of: NetworkOf = networks.network_of,
    ) -> None:
        self.pid = os.getpid()
        self._network_of = network_of
        self.node = node
        self._is_over = False
        self.printer: output.Printer | None = None
        with ExitStack() as failed:
            failed.callback(self.node.stop)
            mapped = failed.enter_context(ExitStack())
            self._thread = LoopThread("raylite-core")
            failed.callback(self._thread.stop)
            self.node.wait_ready()
            self.config = config = self.node.config
            self.arena = Arena(os.dup(self.node.arena_fd), config.object_store_memory)
            mapped.callback(self.arena.close)
            self.attachment = self._thread.run(self._start(config.num_cpus, options))
            mapped.pop_all()
            failed.pop_all()
        core = self.attachment.core
        self.place = Place(core, self.attachment.node_id)
        self.place.namespace = options.namespace
        self.place.session_dir = config.session_dir
        self.place.labels = config.labels
        self.place.gcs_address = config.gcs_url
        self.place.cluster = config.cluster or config.gcs_url
        self.place.ip = config.ip
        if self.attachment.driver is not None:
            self.attachment.driver.on_given_up = output.warn
        context.enter(self.place)

    async def _start(self, cpus: float, options: SessionOptions) -> Attachment:
        """Attach, unless the node fails first; from then on, know when it does."""
        loop = asyncio.get_running_loop()
        self._failed: asyncio.Future[str] = loop.create_future()
        loop.add_reader(self.node.fileno(), self._check_node)
        scope = Scope("attach")
        attaching: asyncio.Task[Attachment] = scope.start(self._attach(cpus, options))
        waited: list[asyncio.Future[Attachment] | asyncio.Future[str]] = [attaching, self._failed]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED, timeout=_START_SECONDS)
        if attaching.done():
            return attaching.result()
        attaching.cancel()
        await asyncio.wait([attaching])
        if self._failed.done():
            raise RaySystemError(self._failed.result())
        raise RaySystemError(f"the node did not answer within {_START_SECONDS:g} s")

    def _check_node(self) -> None:
        """The node said something, or is gone: then nothing it had can be had any more."""
        reason = self.node.failure()
        if reason is None:
            if self._is_over:  # the node is being stopped; there is nothing more to hear
                asyncio.get_running_loop().remove_reader(self.node.fileno())
            return
        asyncio.get_running_loop().remove_reader(self.node.fileno())
        if not self._failed.done():
            self._failed.set_result(reason)
        if hasattr(self, "attachment"):
            if not self._is_over:
                output.warn(reason)
            for link in self.attachment.core.network.links:
                link.confirm_dead(reason)

    async def _attach(self, cpus: float, options: SessionOptions) -> Attachment:
        network = self._network_of(self.config)
        try:
            return await self._attach_on(network, cpus, options)
        except BaseException:
            await network.close()  # nobody else would, who was refused before there were services
            raise

    async def _attach_on(
        self, network: GrpcNetwork, cpus: float, options: SessionOptions
    ) -> Attachment:
        id = network.seams.random("driver").randbytes(28)
        path = f"{self.config.sockets}/d{id.hex()[:16]}.sock"
        await networks.listen(network, self.config, path, ports=self.config.worker_ports)
        if options.log_to_driver:
            self.printer = output.Printer(self.config.ip)
        return await attach_driver(
            network,
            f"unix:{self.config.raylet_address}",
            self.config.gcs_url,
            self.arena,
            id,
            cpus=cpus,
            node_id=bytes.fromhex(self.config.node_id),
            entrypoint=" ".join(map(sendable, sys.argv)) or "python",
            config=hot.JobConfig(
                options.namespace,
                dict(options.env_vars),
                import_path(),
            ),
            output=OutputService(self.printer, settings.deduplicator()),
        )

    def close(self) -> None:
        """Leave the cluster; one that this process started ends, and nothing of it is left.

        Calling it again does nothing.
        """
        if self._is_over or os.getpid() != self.pid:
            return
        with interrupts.held() as interrupt:
            self._is_over = True
            interrupt.hurry(self.node.kill)
            try:
                context.leave(self.place)
                self._detach()
            finally:
                self.node.stop()
                self._thread.stop()
                self.arena.close()
                if self.printer is not None:
                    self.printer.close()

    def _detach(self) -> None:
        core = self.place.core
        core.close()
        if self.printer is not None and not core.raylet_link.is_ended:
            try:
                self._thread.run(self.attachment.flush_output(), _FLUSH_SECONDS)
            except (TimeoutError, RayError):
                pass  # the node is busy, or gone; what it has not said is lost
        if isinstance(self.node, GuestNode) and not core.raylet_link.is_ended:
            try:
                self._thread.run(self.attachment.finish(), 1.0)
            except (TimeoutError, RayError):
                pass  # there is no GCS now; the raylet tells the next one that this driver has gone
        try:
            self._thread.run(self.attachment.detach(), 5.0)
        except Exception as error:
            print(f"raylite: the core worker ended with {error!r}", file=sys.stderr)


def resources(place: Place) -> msg.ResourceView:
    """Return what the cluster's nodes have, and what of it is free.

    Of its own node a process hears it now; of the others, as of their last heartbeat.
    """
    _check_node_lives(place)
    leases = raylet.Leases(place.core.raylet_link)
    view = place.core.run(_view, leases)
    total, available = Counter(view.total), Counter(view.available)
    for node in list_nodes(place):
        if node.alive and node.node_id != place.node_id:
            total.update(node.resources)
            available.update(node.available)
    return msg.ResourceView(dict(total), dict(available))


def list_nodes(place: Place) -> list[gcs_msg.Node]:
    """Ask the GCS who is in the cluster."""
    _check_node_lives(place)
    core = place.core

    async def ask() -> list[gcs_msg.Node]:
        nodes = gcs.Nodes(core.network.connect(place.gcs_address))
        return list((await nodes.list(gcs_msg.ListNodes())).nodes)

    try:
        return core.run(ask)
    except PeerLostError as error:
        if not error.confirmed:
            raise
        return core.run(ask)  # the GCS ended, and another has taken its place


async def _view(leases: raylet.Leases) -> msg.ResourceView:
    return await leases.resources(msg.GetResources())


def _check_node_lives(place: Place) -> None:
    if (error := place.core.raylet_link.error) is not None and not place.core.is_closed:
        raise raylet_died(error) from error


_lock = threading.RLock()
_session: Session | None = None


def start(options: SessionOptions, node: NodeProcess | GuestNode) -> Session:
    """Start the process's session on a node, which may be just starting, and take it over."""
    global _session
    with _lock:
        if _session is not None:
            raise RuntimeError("this process has a session")
        _session = Session(options, node)
        return _session


def stop() -> None:
    """End the process's session, if it has one."""
    global _session
    with interrupts.held(), _lock:
        if _session is not None:
            _session.place.core.refuse_to_wait()
        session, _session = _session, None
        if session is not None:
            session.close()


def _stop_at_exit() -> None:
    """Do it without a word about a Ctrl-C: the program has ended, and nothing there could catch it.

    Nor about daemon threads that wait for a value: they end with the program, wherever they are.
    """
    threading.excepthook = partial(_show_unless_ended, threading.excepthook)
    try:
        stop()
    except KeyboardInterrupt:
        stop()  # which does nothing, unless the interrupt came before it had begun


def _show_unless_ended(
    show: Callable[[threading.ExceptHookArgs], object], args: threading.ExceptHookArgs
) -> None:
    if not isinstance(args.exc_value, SessionEndedError):
        show(args)


def get() -> Session | None:
    """Return the process's session."""
    return _session


def _after_fork() -> None:
    global _session, _lock
    _inherited.append(_session)
    _session = None
    _lock = threading.RLock()


_inherited: list[Session | None] = []
"""Its parent's sessions in a forked child: to be left alone, and so never collected."""


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_stop_at_exit)
