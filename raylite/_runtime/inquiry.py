"""Asking a cluster's GCS from outside: by commands, and before a node joins."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from raylite._kernel.link import Link, LinkConfig
from raylite._kernel.scope import Scope
from raylite._kernel.threads import LoopThread, result_of
from raylite._protocol import raylet
from raylite._protocol.gcs import Certificates, Nodes, Tokens, Views
from raylite._runtime.launch import NodeProcess
from raylite._runtime.networks import Keys, network_for, read_keys
from raylite._runtime.node import NodeConfig
from raylite._types.address import host_of, is_loopback
from raylite._wire import hot
from raylite._wire.messages import gcs as msg, raylet as raylet_msg
from raylite.exceptions import AuthenticationError, RayError, RaySystemError, reason_of

T = TypeVar("T")

PATIENCE = 5.0
_START = 60.0


def list_nodes(gcs: str, keys: Keys, patience: float = PATIENCE) -> list[msg.Node]:
    """Return the rows of a cluster's nodes, those that have died included.

    Args:
        gcs: The address to dial, see `addresses.resolve`.
        keys: What lets this process in, see `networks.way_in`.
        patience: Seconds that the GCS has for an answer.

    Raises:
        ConnectionError: No GCS answers there.
        AuthenticationError: It does not let this process in, or is another than the one meant.
    """

    async def ask(link: Link) -> list[msg.Node]:
        return list((await Nodes(link).list(msg.ListNodes())).nodes)

    return run(_asked(gcs, keys, ask, patience))


def overview(gcs: str, keys: Keys, patience: float = PATIENCE) -> tuple[list[msg.Node], hot.Demand]:
    """Return what `list_nodes` does, and what waits for a place; see there."""

    async def ask(link: Link) -> tuple[list[msg.Node], hot.Demand]:
        nodes = (await Nodes(link).list(msg.ListNodes())).nodes
        return list(nodes), await Views(link).demand(hot.AskDemand())

    return run(_asked(gcs, keys, ask, patience))


def have_signed(gcs: str, keys: Keys, request: str, patience: float = PATIENCE) -> str:
    """Return the certificate that a head signs for a node; see `list_nodes`."""

    async def ask(link: Link) -> str:
        asked = msg.CertificateRequest(request=request)
        return (await Certificates(link).sign(asked)).certificate

    return run(_asked(gcs, keys, ask, patience))


def issued(gcs: str, keys: Keys, patience: float = PATIENCE) -> msg.TokenList:
    """Return the tokens of nodes that were issued on the head, sealed; see `list_nodes`."""

    async def ask(link: Link) -> msg.TokenList:
        async for known in Tokens(link).watch(msg.WatchTokens()):
            return known
        raise ConnectionError("the GCS ended while it was asked")

    return run(_asked(gcs, keys, ask, patience))


def wait_alive(gcs: str, keys: Keys, expected: set[str], timeout: float) -> set[str]:
    """Wait until the living nodes of a cluster are those expected; return those that are.

    Args:
        gcs: The address to dial.
        keys: What lets this process in.
        expected: Their ids, in hexadecimal.
        timeout: Seconds after which to return all the same.

    Raises:
        ConnectionError: The GCS does not answer.
    """
    alive = set[str]()

    async def watch(link: Link) -> None:
        async for event in Nodes(link).watch(msg.WatchNodes()):
            for row in event.nodes:
                change = alive.add if row.alive else alive.discard
                change(row.node_id.hex())
            if alive == expected:
                return

    async def ask(link: Link) -> set[str]:
        await Nodes(link).list(msg.ListNodes())  # or a GCS that is not there would be waited for
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await watch(link)
        return alive

    return run(_asked(gcs, keys, ask, PATIENCE, timeout + PATIENCE))


def wait_registered(node: NodeProcess) -> msg.Node:
    """Block until a ready node is a member of its cluster; return its row.

    Raises:
        RaySystemError: The node has failed.
        ConnectionError: The GCS did not answer in time.
    """

    async def ask(link: Link) -> msg.Node:
        loop = asyncio.get_running_loop()
        failed: asyncio.Future[str] = loop.create_future()
        loop.add_reader(node.fileno(), _note_failure, node, failed)
        scope = Scope("wait for a node")
        waiting: asyncio.Task[msg.Node] = scope.start(_row_of(link, node))
        waited: list[asyncio.Future[str] | asyncio.Future[msg.Node]] = [failed, waiting]
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                raise RaySystemError(failed.result())
            return waiting.result()
        finally:
            loop.remove_reader(node.fileno())
            await scope.close()

    config = node.config
    keys = read_keys(config.token_file, config.tls)
    return run(_asked(config.gcs_url, keys, ask, _START))


async def _row_of(link: Link, node: NodeProcess) -> msg.Node:
    async for event in Nodes(link).watch(msg.WatchNodes()):
        for row in event.nodes:
            if row.alive and row.pid == node.raylet_pid and row.ip == node.config.ip:
                return row
    raise ConnectionError("the GCS ended while the node was joining")


def _note_failure(node: NodeProcess, failed: "asyncio.Future[str]") -> None:
    reason = node.failure()
    if reason is not None and not failed.done():
        failed.set_result(reason)


def wait_acquainted(nodes: Sequence[NodeConfig], patience: float = _START) -> None:
    """Wait until the raylets of nodes on this machine know one another, and so can share their tasks.

    Raises:
        ConnectionError: One of them does not answer, or does not hear of another.
    """
    known = raylet_msg.GetResources([bytes.fromhex(node.node_id) for node in nodes])

    async def ask(link: Link) -> None:
        await raylet.Leases(link).resources(known)

    async def ask_all() -> None:
        scope, asking = Scope("ask raylets"), list[asyncio.Task[None]]()
        for node in nodes:
            keys = read_keys(node.token_file, node.tls)
            asking.append(scope.start(_asked(f"unix:{node.raylet_address}", keys, ask, patience)))
        try:
            await asyncio.wait(asking, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            await scope.close()  # raises what one of them has ended with

    run(ask_all())


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a loop of its own, also where a loop runs already."""
    thread = LoopThread("raylite-inquiry")
    try:
        return result_of(thread.submit(work))
    finally:
        thread.stop()


async def _asked(
    gcs: str,
    keys: Keys,
    ask: Callable[[Link], Awaitable[T]],
    patience: float,
    limit: float | None = None,
) -> T:
    network = network_for(keys, LinkConfig(session_timeout=patience))
    link, where = network.connect(gcs), gcs.removeprefix("tcp:")
    try:
        async with asyncio.timeout(limit or patience):
            return await ask(link)
    except RaySystemError:
        raise
    except AuthenticationError as error:
        told = str(error)
        for name in (gcs, "the peer"):
            if told.startswith(f"{name} "):
                told = f"the cluster at {where}{told.removeprefix(name)}"
        raise type(error)(told) from error
    except (RayError, TimeoutError) as error:
        reason = reason_of(error) or f"it said nothing for {patience:g} s ({link.last_failure})"
        told = f"no cluster answers at {where}: {reason}. Is its head running, and is this its address?"
        if keys.tls is None and not is_loopback(host_of(gcs)):
            told += " If it encrypts, give --ca-fingerprint as well, as its head has printed it."
        raise ConnectionError(told) from error
    finally:
        await network.close()
