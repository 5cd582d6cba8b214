"""What must hold of a simulated cluster; each violation is named, by its number in the list.

V2 attempts, V3 values and V1 errors are the ledger's (`ClusterLedger`); V7, V9, V10, V11, V13 and
V14 are checked here, while it runs and when it has come to rest.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from raylite._services.gcs.storage import Write
from raylite._services.gcs.storage.record import unseal
from raylite._wire.messages import gcs as msg
from raylite.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    RaySystemError,
    WorkerCrashedError,
)
from raylite.testing.hosts import machine_of
from raylite.testing.simcluster import SimCluster
from tests.sim.ledger import Attempt, Ledger, moment
from tests.sim.scripts import Expected, Script, Wrong

HEAD = "n0"  # its machine is the GCS's
UNNOTICED = 8.0  # seconds of a cut after which a node may be taken for dead: ten less two beats
WINDOW = 12.0  # seconds in which several cuts may add up to that
STOOD_STILL = 28.0  # seconds after which a raylet that stands still may be: thirty less two beats
GIVEN_UP = 31.9  # and after which its drivers hear so: 33, less one since its last word
FORGOTTEN = 55.0  # seconds of a cut after which a session may have ended
WAITING = 2_000  # messages in a mailbox


@dataclass(frozen=True, slots=True)
class Cut:
    """Two machines that did not hear each other, or one of them the other."""

    one: str
    other: str
    began: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Freeze:
    """A node whose raylet stood still."""

    node: str
    began: float
    seconds: float


class Losses:
    """Which nodes the cluster may take for dead, or some of it may, and since when."""

    def __init__(self) -> None:
        self.cuts: list[Cut] = []
        self.freezes: list[Freeze] = []  # at most one of a node
        self._lost: dict[str, list[float]] = {}
        self._estranged: dict[str, list[float]] = {}

    def lose(self, node: str, *, is_dead: bool = False) -> None:
        """A node has lost another, or the cluster has lost it for good: it is fenced."""
        self._lost.setdefault(node, []).append(math.inf if is_dead else moment())

    def estrange(self, node: str) -> None:
        """A node and another give one another up, though both live: what one ran for the other ends first."""
        self._estranged.setdefault(node, []).append(moment())

    def is_lost(self, node: str, since: float = 0.0) -> bool:
        lost = self._lost.get(node, []) + self._estranged.get(node, [])
        return any(at >= since for at in lost)

    def is_dead(self, node: str, since: float) -> bool:
        """Whether the others take a node for dead, so that what runs there may run again."""
        return any(at >= since for at in self._lost.get(node, ()))

    def stands_still(self, node: str) -> float:
        """Return for how many seconds a raylet will go on standing still that does so until it is dead."""
        lefts = [
            freeze.began + freeze.seconds - moment()
            for freeze in self.freezes
            if freeze.node == node and freeze.seconds > STOOD_STILL
        ]
        return max([0.0, *lefts])

    def was_given_up(self, node: str) -> bool:
        """Whether a raylet stood still for so long that its drivers wait no more, whatever the GCS says."""
        return any(
            freeze.node == node and min(freeze.seconds, moment() - freeze.began) >= GIVEN_UP
            for freeze in self.freezes
        )

    def was_cut_off(self, node: str) -> bool:
        """Whether a node and the GCS once did not hear each other, though both ran."""
        return any({cut.one, cut.other} == {machine_of(node), HEAD} for cut in self.cuts)

    def was_silent(self, node: str) -> bool:
        """Whether a node was unheard by the GCS for so long that its death may be declared.

        Cuts that follow one another count together: what dials in between may not get through. A raylet
        that stands still counts alike if it is cut off as well, and else has longer.
        """
        now, machine = moment(), machine_of(node)
        cuts = [
            (cut.began, min(now, cut.began + cut.seconds))
            for cut in self.cuts
            if {cut.one, cut.other} == {machine, HEAD}
        ]
        freezes = [
            (freeze.began, min(now, freeze.began + freeze.seconds))
            for freeze in self.freezes
            if freeze.node == node
        ]
        if any(end - began >= STOOD_STILL for began, end in freezes):
            return True
        silences = [*cuts, *freezes]
        return bool(cuts) and any(
            sum(max(0.0, end - max(began, at)) for at, end in silences if at < began + WINDOW)
            >= UNNOTICED
            for began, _ in silences
        )

    def __len__(self) -> int:
        return sum(map(len, [*self._lost.values(), *self._estranged.values()]))


class ClusterLedger(Ledger):
    """A ledger that knows of lost nodes."""

    def __init__(self, cluster: SimCluster, losses: Losses) -> None:
        super().__init__(cluster)
        self.losses = losses
        self._disk = cluster.gcs.disk

    def is_lost(self, attempt: Attempt) -> bool:
        return super().is_lost(attempt) or self.losses.is_lost(
            attempt.worker.partition("/")[0], attempt.began
        )

    def has_ended(self, attempt: Attempt) -> bool:
        """Accept that the others take a node for dead only if it was cut off, and has not heard so.

        One whose raylet stands still has ended its workers before.
        """
        node = attempt.worker.partition("/")[0]
        if super().is_lost(attempt):
            return True
        return self.losses.was_cut_off(node) and self.losses.is_dead(node, attempt.began)

    def detained(self, worker: str) -> float:
        """Where a raylet stands still for so long that its node is dead, bodies go on until it runs again."""
        return self.losses.stands_still(worker.partition("/")[0])

    def is_damaged(self, table: str, key: bytes) -> bool:
        """Whether a record whose key ends so was damaged, at any time."""
        return any(each == table and k.endswith(key) for each, k in self._disk.damaged)

    def is_explained(self, expected: Expected, error: BaseException, node: str) -> bool:
        """Accept what the loss of a node explains: of the driver's own, or of one that was used."""
        if self.losses.is_lost(node) or self.losses.was_given_up(node):
            return isinstance(
                error,
                LocalRayletDiedError
                | NodeDiedError
                | ObjectLostError
                | WorkerCrashedError
                | RaySystemError,
            )
        scripts = list(expected.closure())
        if isinstance(error, WorkerCrashedError | NodeDiedError):
            return any(self._may_be_exhausted(each) for each in scripts)
        if isinstance(error, ObjectLostError):
            return any(self._may_be_lost(each) for each in scripts)
        return False

    def _may_be_exhausted(self, script: Script) -> bool:
        """An attempt may be lost on its way to a worker, and its body never tells of it."""
        attempts = self.of_label.get(script.label, [])
        lost = sum(self.is_lost(attempt) for attempt in attempts)
        return lost + len(self.losses) > script.retries

    def _may_be_lost(self, script: Script) -> bool:
        """What is large is on the node that made it, and on no other for sure."""
        return (script.large or script.puts or script.manner == "return") and any(
            self.is_lost(attempt) for attempt in self.of_label.get(script.label, [])
        )


# A run looks at each table hundreds of times, and most rows are as they were.


@lru_cache(1000)
def _node(key: bytes, record: bytes) -> msg.Node:
    return msg.Node.parse(unseal("nodes", key, record))


@lru_cache(1000)
def _job(key: bytes, record: bytes) -> msg.Job:
    return msg.Job.parse(unseal("jobs", key, record))


@lru_cache(1000)
def _worker(key: bytes, record: bytes) -> msg.Worker:
    return msg.Worker.parse(unseal("workers", key, record))


class Tables:
    """The GCS's tables as its disk has them, and what their changes say."""

    def __init__(self, cluster: SimCluster, losses: Losses) -> None:
        self._cluster = cluster
        self._losses = losses
        self._nodes: dict[tuple[bytes, int], bool] = {}
        self._epoch = 0
        self.deaths: list[str] = []
        cluster.gcs.disk.on_write.append(self._written)

    def nodes(self) -> list[msg.Node]:
        return [_node(*row) for row in self._rows("nodes")]

    def jobs(self) -> list[msg.Job]:
        return [_job(*row) for row in self._rows("jobs")]

    def workers(self) -> list[msg.Worker]:
        return [_worker(*row) for row in self._rows("workers")]

    def _rows(self, table: str) -> Iterable[tuple[bytes, bytes]]:
        disk = self._cluster.gcs.disk
        rows = disk.tables.get(table, {}).items()
        if not disk.damaged:
            return rows
        return [row for row in rows if disk.damaged.get((table, row[0])) != row[1]]

    def _written(self, writes: Sequence[Write]) -> None:
        begun: set[int] = set()  # of one epoch there are two copies
        for write in writes:
            if write.row is None:
                continue
            if write.table == "cluster":
                begun.add(msg.Epoch.parse(unseal(write.table, write.key, write.row)).number)
            elif write.table == "nodes":
                self._told(msg.Node.parse(unseal(write.table, write.key, write.row)))
        for number in begun:
            if number <= self._epoch:
                self._wrong(f"V10: epoch {number} follows epoch {self._epoch}")
            self._epoch = number

    def _told(self, row: msg.Node) -> None:
        key = row.node_id, row.incarnation
        was_alive = self._nodes.get(key)
        self._nodes[key] = row.alive
        name = self.name_of(row.node_id)
        damaged = self._cluster.gcs.disk.damaged
        if row.alive and was_alive is False and ("nodes", row.node_id) not in damaged:
            self._wrong(f"V11: {name} is dead, and the same incarnation is a member again")
        if row.alive or was_alive is False or self._cluster.is_stopping:
            return
        self.deaths.append(name)
        node = self._cluster.nodes.get(name)
        if node is not None:
            if not self._losses.was_silent(name):
                self._wrong(f"V11: {name} is taken for dead, and nothing happened to it")
            self._losses.lose(name, is_dead=True)

    def name_of(self, node_id: bytes) -> str:
        everybody = [*self._cluster.nodes.values(), *self._cluster.gone.values()]
        return next((node.name for node in everybody if node.id == node_id), node_id.hex()[:8])

    def _wrong(self, message: str) -> None:
        self._cluster.fail(Wrong(message))


def check(cluster: SimCluster) -> None:
    """Assert what must hold at every moment: V7 by the machines themselves, and V14."""
    cluster.check()
    if cluster.gcs.is_running:
        _check_queues("gcs", cluster.gcs.host)
    for node in cluster.nodes.values():
        _check_queues(node.name, node.raylet.host)


def _check_queues(name: str, host: object) -> None:
    for service in host._services:  # type: ignore[attr-defined]
        waiting = service.statistics().waiting
        if waiting > WAITING:
            raise Wrong(f"V14: {waiting} messages wait in {type(service).__name__} of {name}")


def unsettled(cluster: SimCluster, tables: Tables, losses: Losses) -> Iterator[str]:
    """What keeps the GCS's tables and the raylets' views from saying what is true."""
    living = sorted(cluster.nodes)
    members = sorted(tables.name_of(row.node_id) for row in tables.nodes() if row.alive)
    if members != living:
        yield f"V10: the members are {members}, and {living} live"
    for node in cluster.nodes.values():
        known = sorted(tables.name_of(key) for key in node.raylet.cluster.nodes())
        if known != living:
            yield f"V10: {node.name} knows of {known}, and {living} live"
    running = sorted(row.driver_address for row in tables.jobs() if not row.finished)
    drivers = sorted(driver.core.network.address for driver in cluster.drivers())
    forgotten = [
        driver.core.network.address
        for driver in cluster.drivers()
        if losses.is_lost(driver.node.name)
    ]
    if [each for each in running if each not in drivers] or [
        each for each in drivers if each not in running and each not in forgotten
    ]:
        yield f"V13: jobs run for {running}, and there are the drivers {drivers}"
    told = sorted(row.address for row in tables.workers() if row.alive)
    workers = sorted(
        member.address for node in cluster.nodes.values() for member in node.raylet.pool.workers()
    )
    if told != workers:
        yield f"V10: the table has the workers {told}, and there are {workers}"
