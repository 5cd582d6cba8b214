"""The Owner service: the objects of this process, and what other processes hold of them."""

import asyncio
import weakref
from collections.abc import Callable, Iterable
from itertools import count
from typing import Protocol

from raylite._kernel.link import Link
from raylite._kernel.network import Network
from raylite._kernel.service import Service, every, handles
from raylite._machines.refs import Effect, Free, GiveUp, Refs
from raylite._protocol import worker
from raylite._services.worker.fates import Fates
from raylite._services.worker.holdings import Holdings
from raylite._services.worker.locations import LocationService
from raylite._services.worker.objects import Entry, Keeper
from raylite._services.worker.unhandled import UnhandledErrors
from raylite._types.ids import ObjectID
from raylite._types.keys import ObjectKey
from raylite._types.marks import mark_of
from raylite._wire import hot, pickling
from raylite._wire.hot import Contained, Form, Value
from raylite.exceptions import (
    LinkClosedError,
    ObjectLostError,
    OwnerDiedError,
    PeerLostError,
    RayError,
    to_raise,
)

ID = 28  # bytes of an object's id: what its name in an arena begins with
_DEAD_KEPT = 10_000  # addresses of ended processes, against messages that name them late
_BORROWS_KEPT = 10_000  # that were told; one that comes twice after as many others counts twice


class Canceller(Protocol):
    """Cancels what this process owns: see `Canceller` of the module `cancel`."""

    async def serve(self, request: hot.CancelTask) -> hot.Cancelled: ...


class OwnerService(Service, serves=(worker.Owner, worker.Borrower)):
    """Keeps every entry of this process. `Refs` decides how long; this class carries it out."""

    def __init__(self, network: Network, locations: LocationService, raylet_link: Link) -> None:
        self._network = network
        self._locations = locations
        self._fates = Fates(raylet_link, self.spawn)
        self._holdings = Holdings(network, self.scope, self._is_dead)
        self._borrows: dict[tuple[str, int], None] = {}  # by who told it, and the number
        self._borrow_numbers = count(1)
        locations.on_lost = self._lost
        self.refs: Refs = Refs()
        self.canceller: Canceller
        self.errors: UnhandledErrors = UnhandledErrors()
        self._handed: dict[bytes, tuple[Entry, ...]] = {}
        self._dead: dict[str, None] = {}
        self.hear_drops: Callable[[], None] = _nothing  # what threads let go of
        self.alarm: Callable[[object], object] = _ignore  # have that called, from any thread
        self.on_viewless: Callable[[], None] = _nothing
        self.on_released: Callable[[], None] = _nothing  # others may need this process no more

    # ---- entries -------------------------------------------------------------------------

    def find(self, id: bytes) -> Entry | None:
        entry = self.refs.table.get(ObjectKey(id))
        assert entry is None or isinstance(entry, Entry)
        return entry

    def complete(self, entry: Entry, value: Value) -> None:
        """An object has its value: wake who waits for it."""
        if entry.value is not None:
            return
        entry.value = value
        if value.form or value.contained or entry.owner:
            if value.form == Form.ERROR and not entry.owner:
                self.errors.failed(entry.id)
            if entry.matters_elsewhere:
                self.stored(entry)
        waiters, entry.waiters = entry.waiters, None
        if waiters:
            for waiter in waiters:
                waiter.ready(entry)

    def stored(self, entry: Entry) -> None:
        """Keep the books of a value that is more than this process's small memory."""
        self.expect_drop(entry)
        value = entry.value
        if value is not None and value.form == Form.ARENA and not entry.owner:
            self._locations.stored(ObjectKey(value.key or entry.id), value)

    def expect_drop(self, entry: Entry) -> None:
        """Hear of it at once when this process's reference dies, if that matters to others."""
        if not entry.matters_elsewhere:
            return
        ref = entry.known_ref
        if ref is not None:
            entry.alert = weakref.ref(ref, self.alarm)
        elif entry.ref is not None:  # it has died already
            self.alarm(None)

    def expect_no_drop(self) -> None:
        """Be deaf to what dies from now on. Any thread may say so."""
        self.alarm = _ignore
        for reference in list(self.refs.table.values()):
            assert isinstance(reference, Entry)
            reference.alert = None

    @every(seconds=1.0)
    def sweep(self) -> None:
        """Let go of what died without an alert: small values of this process alone."""
        self.hear_drops()

    def fail(self, entry: Entry, error: RayError) -> None:
        """An object will not have a value: reading it raises."""
        self.complete(entry, error_value(error))

    def entry_for(self, keeper: Keeper, contained: Contained) -> Entry:
        """Return the entry of an object known by its reference, beginning to borrow it if new.

        The caller must let something hold it before control returns to the loop.
        """
        entry = self.find(contained.id)
        if entry is None:
            owner = "" if contained.owner == keeper.address else contained.owner
            entry = Entry(ObjectKey(contained.id), keeper, owner)
            self.refs.add(entry)
            if not owner:
                entry.value = error_value(ObjectLostError(contained.id.hex(), None, ""))
            elif owner in self._dead:
                self.fail(entry, OwnerDiedError(contained.id.hex(), None, ""))
        return entry

    def need(self, entry: Entry) -> None:
        """Somebody waits for a borrowed object: ask its owner, once."""
        if entry.owner and entry.value is None and not entry.is_pulled:
            entry.is_pulled = True
            self.spawn(self._pull(entry))

    async def hold_contained(self, outer: Entry, contained: Iterable[Contained]) -> None:
        """Let an object hold what its value contains, telling the owners before returning."""
        inner = tuple(self.entry_for(outer.keeper, each) for each in contained)
        self.perform(self.refs.contains(outer, inner))
        if outer.is_held:
            await self.register(inner)

    async def register(self, entries: Iterable[Entry]) -> None:
        """Make sure that the owners of these know that this process borrows them."""
        by_owner: dict[str, list[Entry]] = {}
        for entry in entries:
            if entry.owner and not entry.is_registered:
                entry.is_registered = True
                by_owner.setdefault(entry.owner, []).append(entry)
        for owner, borrowed in by_owner.items():
            await self.lend(owner, self._network.address, [entry.id for entry in borrowed])

    async def lend(self, owner: str, borrower: str, ids: list[ObjectKey]) -> None:
        """Tell an owner that a process holds its objects; returns when it knows, or is dead."""
        borrow = hot.Borrow(borrower, tuple(ids), next(self._borrow_numbers))
        while owner not in self._dead:
            try:
                await worker.Owner(self._network.connect(owner)).borrow(borrow)
            except PeerLostError as error:
                if await self._is_dead(owner, error):
                    break
            except LinkClosedError:  # this process is ending
                break
            else:
                return
        self.owner_died(owner)

    def hand_over(self, task: bytes, entries: tuple[Entry, ...]) -> None:
        """Keep holding what a result contains until its receiver says it holds them itself."""
        self._handed[task] = entries

    @property
    def is_needed(self) -> bool:
        """Whether other processes hold objects of this one, or are about to."""
        return bool(self._handed) or any(each.borrowers for each in self.refs.table.values())

    # ---- what others say -----------------------------------------------------------------

    @handles(worker.Owner.fetch)
    async def fetch(self, request: hot.Fetch) -> Value:
        entry = self.find(request.id)
        if entry is None:
            lost = ObjectLostError(request.id.hex(), None, "")
            return Value(Form.ERROR, pickling.dumps(lost).to_bytes())
        if entry.value is None:
            waiter = _Arrival()
            self.watch(entry, waiter)
            await waiter.arrived
        assert entry.value is not None
        if entry.is_error:
            self.errors.read(entry.id)  # as far as this process can know
        return entry.value

    @handles(worker.Owner.borrow)
    def borrow(self, request: hot.Borrow) -> None:
        """A process holds objects of ours; not if it is dead already, and this is late news."""
        if request.borrower in self._dead:
            return
        if request.number:  # told on a link, and perhaps on another before: it brought no answer
            told = self.caller.peer, request.number
            if told in self._borrows:
                return
            self._borrows[told] = None
            if len(self._borrows) > _BORROWS_KEPT:
                del self._borrows[next(iter(self._borrows))]
        for id in request.ids:
            self.perform(self.refs.borrowed(ObjectKey(id), request.borrower))

    @handles(worker.Owner.cancel)
    async def cancel(self, request: hot.CancelTask) -> hot.Cancelled:
        return await self.canceller.serve(request)

    @handles(worker.Owner.give_up)
    def give_up(self, lists: list[hot.Borrow]) -> None:
        for borrow in lists:
            for id in borrow.ids:
                self.perform(self.refs.gave_up(ObjectKey(id), borrow.borrower))
        self.on_released()

    @handles(worker.Owner.review)
    async def review(self, borrower: str) -> None:
        link = self.caller
        try:
            await link.wait_room()
            number, ids = self.refs.review(borrower)
            worker.Borrower(link).lent(hot.Lent(number, tuple(ids)))
        except RayError:  # it has ended: if the borrower lives, it asks again
            pass

    @handles(worker.Owner.unheld)
    def unheld(self, unheld: hot.Unheld) -> None:
        ids = map(ObjectKey, unheld.ids)
        self.perform(self.refs.unheld(unheld.borrower, unheld.number, ids))
        self.on_released()

    @handles(worker.Borrower.lent)
    async def lent(self, lent: hot.Lent) -> None:
        """Say which of these this process does not hold. What it is about to let go, it gives up later."""
        link = self.caller
        try:
            await link.wait_room()
            ids = tuple(id for id in lent.ids if ObjectKey(id) not in self.refs.table)
            worker.Owner(link).unheld(hot.Unheld(self._network.address, lent.number, ids))
        except RayError:
            pass

    @handles(worker.Owner.received)
    def received(self, tasks: list[bytes]) -> None:
        for task in tasks:
            for entry in self._handed.pop(task, ()):
                self.perform(self.refs.dropped_submitted(entry))
        self.on_released()

    def process_died(self, address: str) -> None:
        """Another process is gone: it borrows nothing, and what it owned is lost."""
        if address and address not in self._dead:
            self._dead[address] = None
            if len(self._dead) > _DEAD_KEPT:
                del self._dead[next(iter(self._dead))]
            self.perform(self.refs.borrower_died(address))
            self.owner_died(address)
            self.on_released()

    def known_at(self, mark: str) -> list[str]:
        """The processes of a node that own what is borrowed here, or borrow what is owned here."""
        known: dict[str, None] = {}
        for reference in self.refs.table.values():
            for address in (reference.owner, *(reference.borrowers or ())):
                if address and mark_of(address) == mark:
                    known[address] = None
        return list(known)

    def borrowed_from(self, owner: str) -> list[Entry]:
        """What this process borrows from one owner."""
        return [each for each in self.refs.owned_by(owner) if isinstance(each, Entry)]

    def owner_died(self, owner: str) -> None:
        """What it owned is lost: what nobody knows yet, and what lies in the arena, for it is freed."""
        for reference in self.borrowed_from(owner):
            error = OwnerDiedError(reference.id.hex(), None, "")
            if reference.is_in_arena:
                reference.value = error_value(error)
            else:
                self.fail(reference, error)

    async def stopped(self) -> None:
        self.errors.close()

    # ---- inside --------------------------------------------------------------------------

    def watch(self, entry: Entry, waiter: "_Arrival") -> None:
        if entry.waiters is None:
            entry.waiters = []
        entry.waiters.append(waiter)
        self.need(entry)

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Free(entry):
                    assert isinstance(entry, Entry)
                    value = entry.value
                    if value is None or value.form == Form.INLINE:
                        continue
                    if value.form == Form.ARENA:
                        self._locations.freed(ObjectKey(value.key or entry.id))
                    else:
                        self.errors.dropped(entry.id, value)
                case GiveUp(entry):
                    assert isinstance(entry, Entry)
                    self._give_up(entry)

    def unwanted(self, entry: Entry, value: Value) -> None:
        """A task's result came for an object that nobody refers to any more."""
        if entry.value is None:  # or it had an error before its task ended: its time was over
            self.errors.abandoned(entry.id, value)
        self.free_value(entry.id, value)

    def free_value(self, id: bytes, value: Value) -> None:
        """A value came for an object that nobody refers to any more."""
        if value.form == Form.ARENA:
            self._locations.drop(ObjectKey(value.key or id), value.node)

    def _lost(self, key: ObjectKey) -> None:
        """Every copy of an object's value is gone, with the nodes that had them."""
        entry = self.find(key[:ID])
        if entry is not None and entry.is_in_arena:
            assert entry.value is not None
            if (entry.value.key or entry.id) == key:
                entry.value = error_value(ObjectLostError(entry.id.hex(), None, ""))

    def _give_up(self, entry: Entry) -> None:
        if entry.is_registered and entry.owner not in self._dead:
            link = self._network.connect(entry.owner)
            if not link.is_ended:
                self._holdings.told(link)
                worker.Owner(link).give_up(hot.Borrow(self._network.address, (entry.id,)))

    async def _pull(self, entry: Entry) -> None:
        """Get a borrowed object's value from its owner, however long that cannot be reached."""
        while entry.value is None and entry.is_held:
            try:
                owner = worker.Owner(self._network.connect(entry.owner))
                value = await owner.fetch(hot.Fetch(entry.id))
                await self.hold_contained(entry, value.contained)
            except PeerLostError as error:
                if await self._is_dead(entry.owner, error):
                    self.fail(entry, OwnerDiedError(entry.id.hex(), None, ""))
            except RayError as error:
                self.fail(entry, error)
            else:
                self.complete(entry, value)

    async def _is_dead(self, address: str, lost: PeerLostError) -> bool:
        """Say whether a process is dead whose session has ended, or can only not be reached."""
        if lost.confirmed or address in self._dead:
            return True
        if not await self._fates.is_dead(address):
            return False
        self._network.confirm_dead(address, "its raylet or the GCS says so")
        self.process_died(address)
        return True


def _nothing() -> None: ...


def _ignore(alert: object) -> None: ...


def error_of(value: Value, entry: Entry | None = None) -> BaseException:
    """Return what is to be raised for a value that is an error, of an object if that is known."""
    error = pickling.loads(value.data)
    if not isinstance(error, RayError):
        return error  # type: ignore[no-any-return]
    if entry is None:
        return to_raise(error)
    return to_raise(error, entry.known_ref, ObjectID(entry.id).task_id())


def error_value(error: RayError) -> Value:
    return Value(Form.ERROR, pickling.dumps(error).to_bytes())


class _Arrival:
    """Lets a coroutine of the loop wait for a value."""

    def __init__(self) -> None:
        self.arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ready(self, entry: Entry) -> None:
        if not self.arrived.done():
            self.arrived.set_result(None)
