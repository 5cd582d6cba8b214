"""The Explain service: why an object is not there yet, as its owner and that one's raylet know it."""

import asyncio

from msgspec.structs import replace

from raylite._kernel.network import Network
from raylite._kernel.seams import now
from raylite._kernel.service import Service, handles
from raylite._machines.shortage import amounts
from raylite._machines.submitter import Submitter
from raylite._protocol import raylet, worker
from raylite._services.worker.locations import LocationService
from raylite._services.worker.objects import Entry
from raylite._services.worker.owned import OwnedTask
from raylite._services.worker.owner import OwnerService
from raylite._services.worker.submit import SubmitService
from raylite._types.address import shown
from raylite._types.ids import ObjectID, TaskID
from raylite._types.keys import LeaseID, TaskKey, WorkerKey
from raylite._wire import hot
from raylite._wire.hot import Explanation, Form, TaskState
from raylite._wire.stories import story
from raylite.exceptions import RayError

PATIENCE = 2.0  # seconds for all answers; what nobody answers is an explanation, too
_WAY = 0.5  # seconds more for the owner of a borrowed object, who asks others in turn
TASK = 24  # bytes of a task's id: what the ids of its objects begin with
_DEPTH = 3  # arguments of arguments of ... that are explained
_SHOWN = 3  # arguments of a task that are


class ExplainService(Service, serves=(worker.Explain,)):
    """Puts together what is known of a task from those who know it. It changes nothing."""

    def __init__(
        self,
        network: Network,
        owner: OwnerService,
        submit: SubmitService,
        submitter: Submitter,
        locations: LocationService,
    ) -> None:
        self._network = network
        self._owner = owner
        self._submit = submit
        self._submitter = submitter
        self._locations = locations

    @handles(worker.Explain.explain)
    async def explain(self, request: hot.Fetch) -> Explanation:
        entry = self._owner.find(request.id)
        if entry is None:
            return Explanation(TaskState.UNKNOWN, "its owner does not know it any more")
        return await self.of(entry)

    async def of(
        self, entry: Entry, depth: int = _DEPTH, until: float | None = None
    ) -> Explanation:
        """Explain an object of this process, or one that it borrows."""
        until = now() + PATIENCE if until is None else until
        if entry.value is not None:
            return self._ended(entry)
        if entry.owner:
            return await self._ask(entry, until)
        task = self._submit.find(TaskKey(entry.id[:TASK]))
        if task is None:
            return Explanation(TaskState.UNKNOWN, "no task of this process makes it")
        return await self._of_task(task, depth, until)

    def _ended(self, entry: Entry) -> Explanation:
        value, id = entry.value, entry.id[:TASK].hex()
        assert value is not None
        if value.form == Form.ERROR:
            text = f"its task has failed, or it was lost. Reading it raises\n{story(value.data)[1]}"
            return Explanation(TaskState.FAILED, text, task=id)
        if value.form == Form.INLINE:
            return Explanation(TaskState.FINISHED, f"it is here: {len(value.data)} bytes", task=id)
        where = "this node" if value.node == self._locations.node else f"node {value.node.hex()}"
        text = f"it is in the memory of {where}: {value.size} bytes"
        return Explanation(TaskState.FINISHED, text, task=id, node=value.node)

    async def _ask(self, entry: Entry, until: float) -> Explanation:
        """Ask the owner of a borrowed object."""
        owner = worker.Explain(self._network.connect(entry.owner))
        try:
            async with asyncio.timeout_at(until + _WAY):
                return await owner.explain(hot.Fetch(entry.id))
        except TimeoutError:
            text = f"its owner, {shown(entry.owner)}, does not answer"
        except RayError as error:
            text = f"its owner, {shown(entry.owner)}, cannot be asked: {error}"
        return Explanation(TaskState.UNKNOWN, text)

    async def _of_task(self, task: OwnedTask, depth: int, until: float) -> Explanation:
        found = await self._standing(task, depth, until)
        name = self._submit.name(task)
        which = f", attempt {task.attempt + 1}," if task.attempt else ""
        return replace(
            found,
            text=f"{name} ({TaskID(task.id).hex()}){which} {found.text}",
            name=name,
            task=task.id.hex(),
            attempt=task.attempt,
        )

    async def _standing(self, task: OwnedTask, depth: int, until: float) -> Explanation:
        if task.missing:
            missing = [(place, entry) for place, entry in task.inputs if entry.value is None]
            told = ", ".join(
                [await self._argument(*each, depth, until) for each in missing[:_SHOWN]]
            )
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            ids = tuple(entry.id for _, entry in missing)
            text = f"waits for {told}{more}"
            return Explanation(TaskState.PENDING_ARGS_AVAIL, text, waits_for=ids)
        if (delay := self._submit.delays.left(task.id)) is not None:
            text = f"is tried again in {delay:.1f} s"
            return Explanation(TaskState.PENDING_RETRY, text, seconds=delay)
        standing = self._submitter.standing(task)
        if standing is None:
            return Explanation(TaskState.UNKNOWN, "has just ended, or is being ended")
        if standing.worker is not None:
            return self._sent(task, standing.worker, standing.ahead)
        needs = amounts(task.key.demand)
        text = f"waits for a worker with {needs}" if needs else "waits for a worker"
        if standing.ahead:
            text += f", behind {standing.ahead} tasks of the same needs"
        if standing.workers:
            text += f", which {standing.workers} workers work off"
        asked, seconds = await self._lease(standing.leases, until)
        return Explanation(
            TaskState.PENDING_NODE_ASSIGNMENT, f"{text}; {asked}",
            ahead=standing.ahead, seconds=seconds,
        )  # fmt: skip

    def _sent(self, task: OwnedTask, key: WorkerKey, ahead: int) -> Explanation:
        lent = self._submit.lent(key)
        assert lent is not None
        where = f"worker {key.hex()} (pid {lent.pid}, node {lent.node.hex()})"
        state = TaskState.SUBMITTED_TO_WORKER
        if self._submit.is_cancelled(task.id):
            text = f"is cancelled, and has not ended yet in {where}"
        elif ahead and not task.key.slots:  # such run one after another
            text = f"was sent to {where}, which was sent {ahead} tasks before it"
        else:
            state, text = TaskState.RUNNING, f"runs, or is about to, in {where}"
        return Explanation(state, text, ahead=ahead, node=lent.node, pid=lent.pid)

    async def _argument(self, place: int | str, entry: Entry, depth: int, until: float) -> str:
        which = f"argument {place!r}, object {ObjectID(entry.id).hex()}"
        if not depth:
            return which
        return f"{which}: [{(await self.of(entry, depth - 1, until)).text}]"

    async def _lease(self, leases: tuple[LeaseID, ...], until: float) -> tuple[str, float]:
        """Ask the raylet that was asked for a worker what it waits for."""
        if not leases:
            return "no lease is asked for: the workers it has are to do", 0.0
        home = self._submit.lessors.home(leases[0])
        if home is None or home.is_ended:
            return "the raylet that was asked is gone, and another is being asked", 0.0
        which = shown(home.peer)
        try:
            async with asyncio.timeout_at(until):
                standing = await raylet.Leases(home).explain(leases[0])
        except TimeoutError:
            return f"{which} was asked, and does not answer", 0.0
        except RayError as error:
            return f"{which} cannot be asked: {error}", 0.0
        since = f"{which} was asked {standing.seconds:.1f} s ago"
        return f"{since}: {standing.text}", standing.seconds
