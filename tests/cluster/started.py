"""Clusters that `raylite start` began: for the tests of what outlives a program."""

import subprocess
from collections.abc import Awaitable, Callable
from typing import TypeVar

import uvloop

from raylite._kernel.grpc import GrpcNetwork
from raylite._kernel.link import Link
from raylite._kernel.token import read_token
from raylite._protocol.gcs import Jobs, Nodes, Workers
from raylite._runtime import records
from raylite._runtime.records import NodeRecord
from raylite._wire.messages import gcs as msg
from tests import programs
from tests.cluster.watching import the_only, titled
from tests.programs import Program

T = TypeVar("T")

PROGRAM = "import sys; sys.argv[0] = 'raylite'; from raylite.cli import main; main()"


def begin(*words: str) -> Program:
    """Begin to run the `raylite` command."""
    return programs.begin(PROGRAM, *words)


def raylite(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run the `raylite` command to its end."""
    with begin(*words) as command:
        out, errors = command.communicate(timeout=60)
    return subprocess.CompletedProcess(words, command.wait(), out, errors)


def start(*words: str) -> NodeRecord:
    """Start a node with little to offer; return its record."""
    before = {record.session_dir for record in records.living()}
    done = raylite("start", "--num-cpus=2", "--object-store-memory=80000000", *words)
    assert done.returncode == 0, done.stderr
    return next(each for each in records.living() if each.session_dir not in before)


def component(node: NodeRecord, role: str) -> int:
    """The pid of a node's GCS or raylet."""
    return the_only(titled(f"raylite: {role}", node.pid))


def ask(node: NodeRecord, question: Callable[[Link], Awaitable[T]]) -> T:
    """Ask the GCS of a cluster."""

    async def asked() -> T:
        network = GrpcNetwork(token=read_token(node.token_file))
        try:
            return await question(network.connect(node.gcs))
        finally:
            await network.close()

    return uvloop.run(asked())


def nodes(node: NodeRecord) -> list[msg.Node]:
    async def question(link: Link) -> list[msg.Node]:
        return list((await Nodes(link).list(msg.ListNodes())).nodes)

    return ask(node, question)


def epoch(node: NodeRecord) -> int:
    async def question(link: Link) -> int:
        found = (await Nodes(link).list(msg.ListNodes())).epoch
        return found.number if found is not None else 0

    return ask(node, question)


def jobs(node: NodeRecord) -> dict[str, msg.Job]:
    """The jobs of a cluster, by namespace."""

    async def question(link: Link) -> dict[str, msg.Job]:
        rows = (await Jobs(link).list(msg.ListJobs())).jobs
        return {row.namespace: row for row in rows}

    return ask(node, question)


def workers(node: NodeRecord) -> dict[int, msg.Worker]:
    """The workers in a cluster's table, by pid."""

    async def question(link: Link) -> dict[int, msg.Worker]:
        rows = (await Workers(link).list(msg.ListWorkers())).workers
        return {row.pid: row for row in rows}

    return ask(node, question)
