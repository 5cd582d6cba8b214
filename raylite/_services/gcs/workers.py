"""The Worker service: the processes that run tasks, as their raylets tell of them."""

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import TypeGuard

from raylite._kernel.codec import Encoded
from raylite._kernel.seams import wall
from raylite._kernel.service import Service, every, handles
from raylite._protocol import gcs
from raylite._services.gcs.epoch import Epoch
from raylite._services.gcs.news import TableNews
from raylite._services.gcs.nodes import NodeService
from raylite._services.gcs.storage import Storage, StorageError
from raylite._services.gcs.table import Change, Table
from raylite._wire.messages import gcs as msg

logger = logging.getLogger(__name__)


class WorkerService(Service, serves=(gcs.Workers,)):
    """Keeps the worker table: what a member's raylet reports, and that workers die with their node.

    A report that the storage did not take is lost, as one is that a restart of the GCS overtook.
    A complete one makes up for both: in the first case the raylet is asked for it.
    """

    def __init__(self, storage: Storage, epoch: Epoch, nodes: NodeService) -> None:
        self._epoch = epoch
        self._nodes = nodes
        self._table = Table(storage, "workers", msg.Worker.parse, lambda row: not row.alive)
        self._news = TableNews(
            self._table,
            lambda row: bytes(msg.WorkerEvent([row])),
            lambda: bytes(msg.WorkerEvent(epoch=epoch.message)),
            lambda row: not row.alive,
        )
        # By node: those that live, and some that do not yet, or no more; their rows tell.
        self._listed: dict[bytes, dict[bytes, None]] = {}
        self._table.on_change.append(self._list)

    async def started(self) -> None:
        await self._epoch.begin()
        await self._nodes.loaded.wait()
        await self._table.load()
        self.spawn(self._news.run(), "tell of workers")

    @handles(gcs.Workers.report)
    async def report(self, report: msg.ReportWorkers) -> None:
        if not self._nodes.membership.is_member(report.node_id, report.incarnation):
            return  # it will be asked to register, and reports again then
        rows = [self._reported(report.node_id, worker) for worker in report.workers]
        if report.complete:
            reported = {row.worker_id for row in rows}
            rows += [
                _dead(row, "its raylet knows of it no more")
                for row in self._living(report.node_id)
                if row.worker_id not in reported
            ]
        try:
            await self._write([row for row in rows if row != self._table.latest(row.worker_id)])
        except StorageError as error:
            logger.warning("a report of %d workers is not in the table: %s", len(rows), error)
            self._nodes.ask_to_register(report.node_id)

    @handles(gcs.Workers.list)
    def list_workers(self, request: msg.ListWorkers) -> msg.WorkerList:
        return msg.WorkerList([*self._table.rows.values()], self._epoch.message)

    @handles(gcs.Workers.ended)
    def ended(self, request: msg.AskEnded) -> msg.WorkerList:
        known = (self._table.rows.get(worker_id) for worker_id in request.ids)
        ended = [row for row in known if row is not None and not row.alive]
        return msg.WorkerList(ended, self._epoch.message)

    @handles(gcs.Workers.watch)
    async def watch(self, request: msg.WatchWorkers) -> AsyncIterator[Encoded]:
        async with aclosing(self._news.messages()) as messages:
            async for message in messages:
                yield message

    @every(seconds=1.0)
    async def sweep(self) -> None:
        members = set(self._nodes.membership.alive())
        gone = [
            node_id
            for node_id in self._listed
            if node_id not in members and not self._nodes.is_lost(node_id)
        ]
        dead = [_dead(row, "its node died") for each in gone for row in self._living(each)]
        try:
            await self._write(dead)
        except StorageError as error:
            logger.warning("%d dead workers are not in the table yet: %s", len(dead), error)

    async def _write(self, rows: list[msg.Worker]) -> None:
        if rows:
            changes = [Change(row.worker_id, row) for row in rows]
            for change in changes:
                self._list(change)
            await self._table.write(changes)

    def _living(self, node_id: bytes) -> list[msg.Worker]:
        """Return the workers of a node, as they are once all that was submitted is durable."""
        living: list[msg.Worker] = []
        for worker_id in list(self._listed.get(node_id, ())):
            row = self._table.latest(worker_id)
            if _lives(row, node_id):
                living.append(row)
            elif not _lives(self._table.rows.get(worker_id), node_id):
                self._strike(node_id, worker_id)  # its row was not taken, or it is another node's
        return living

    def _list(self, change: Change[msg.Worker]) -> None:
        """List a worker as soon as its row is submitted, and until its end is durable."""
        row = change.row
        if row is None:
            return  # it ended long ago
        if row.alive:
            self._listed.setdefault(row.node_id, {})[row.worker_id] = None
        elif row is self._table.rows.get(row.worker_id):
            self._strike(row.node_id, row.worker_id)

    def _strike(self, node_id: bytes, worker_id: bytes) -> None:
        listed = self._listed.get(node_id, {})
        listed.pop(worker_id, None)
        if not listed:
            self._listed.pop(node_id, None)

    def _reported(self, node_id: bytes, worker: msg.Worker) -> msg.Worker:
        """Return the row that a report makes of a worker: the times are the table's own."""
        row = replace(worker, node_id=node_id, started_at=wall(), ended_at=0.0)
        known = self._table.latest(worker.worker_id)
        if known is not None:
            row = replace(row, started_at=known.started_at, ended_at=known.ended_at)
        if row.alive:
            return replace(row, ended_at=0.0)
        return replace(row, ended_at=row.ended_at or wall())


def _lives(row: msg.Worker | None, node_id: bytes) -> TypeGuard[msg.Worker]:
    return row is not None and row.alive and row.node_id == node_id


def _dead(row: msg.Worker, cause: str) -> msg.Worker:
    return replace(row, alive=False, exit_cause=cause, ended_at=wall())
