"""Views: what each node knows of every node's resources, kept up by deltas.

A raylet publishes its own view (`ViewPublisher`); whoever wants to know them all collects them
(`ResourceViews`). The GCS collects from the raylets and hands on to the raylets, which collect
again: the same deltas, the same machine.

A view has two parts, one that seldom changes and one that changes with every lease. A delta holds
the parts that changed after version `base`, as they are at `version`. It therefore fits on *any*
version from `base` on, so nobody keeps a history, and a delta that skips some versions loses
nothing. One without parts only says which version there is: whoever is behind then asks for all.

Who is a member is not decided here, but by `nodes`. What is said of others is dropped, so a dead
node leaves nothing behind, and late news cannot bring it back.
"""

from collections.abc import Mapping
from types import MappingProxyType

from msgspec import Struct

from raylite._types.resources import Resources
from raylite._types.strategies import NodeKey, NodeView, Shapes

ASK_AGAIN = 1.0  # seconds without an answer; ten times what a view takes to travel


class Profile(Struct, frozen=True):
    """What seldom changes of a node."""

    address: str
    total: Resources
    labels: Mapping[str, str]
    draining: bool


class Load(Struct, frozen=True):
    """What changes with every lease."""

    available: Resources
    backlog: int
    pending: Shapes = ()
    infeasible: Shapes = ()


class ViewDelta(Struct, frozen=True):
    """The parts of a node's view that changed after `base`; all of them if that is 0."""

    node: NodeKey
    incarnation: int
    base: int
    version: int
    profile: Profile | None
    load: Load | None


class Changed(Struct, frozen=True):
    """A node is known, or known better, from now on."""

    view: NodeView


class Gone(Struct, frozen=True):
    """A node whose view was known is no member any more."""

    node: NodeKey


class AskFull(Struct, frozen=True):
    """News of a node was missed: have its whole view sent."""

    node: NodeKey
    incarnation: int


Effect = Changed | Gone | AskFull


class ViewPublisher:
    """One node's own view, and what of it has been sent.

    What was sent counts as received, as it does over a link. Where that may be wrong, in a new
    session for one, `resume` says what the other side has.
    """

    def __init__(self, view: NodeView) -> None:
        self._node, self._incarnation = view.node, view.incarnation
        self._profile, self._load = _parts(view)
        self._version = self._profile_version = self._load_version = 1
        self._sent = 0

    @property
    def version(self) -> int:
        """Which state of the view this is; the first is 1."""
        return self._version

    def update(self, view: NodeView) -> bool:
        """Take on a new state; False if nothing is new."""
        profile, load = _parts(view)
        new = self._version + 1
        if profile != self._profile:
            self._profile, self._profile_version, self._version = profile, new, new

        if load != self._load:
            self._load, self._load_version, self._version = load, new, new

        return self._version == new

    def changes(self) -> ViewDelta | None:
        """What is new since the last call, to be sent now; None if nothing is."""
        if self._sent == self._version:
            return None

        delta, self._sent = self.since(self._sent), self._version
        return delta

    def since(self, version: int) -> ViewDelta:
        """What is new since a version: everything since 0, and no parts since the present one."""
        profile = self._profile if self._profile_version > version else None
        load = self._load if self._load_version > version else None
        base = 0
        if profile is None:
            base = self._profile_version

        if load is None:
            base = max(base, self._load_version)

        return ViewDelta(self._node, self._incarnation, base, self._version, profile, load)

    def resume(self, version: int = 0) -> None:
        """The other side has this version, as far as is known; the next changes build on it."""
        self._sent = max(0, min(version, self._version))

    def check(self) -> None:
        """Assert what holds between calls."""
        assert max(self._profile_version, self._load_version) == self._version
        assert 0 <= self._sent <= self._version


class _Member(Struct):
    incarnation: int
    #: When it joined, or its view was last asked for.
    since: float
    asked: bool = False
    #: What is known, 0 for nothing, and what is known to exist.
    version: int = 0
    latest: int = 0
    profile: Profile | None = None
    load: Load | None = None
    profile_version: int = 0
    load_version: int = 0
    # The table's revision at which each part came.
    profile_revision: int = 0
    load_revision: int = 0


class ResourceViews:
    """The views of all members, as far as they are known here."""

    def __init__(self) -> None:
        self._members: dict[NodeKey, _Member] = {}
        self._views: dict[NodeKey, NodeView] = {}
        # The nodes with a view by the revision of their latest change, and so in that order.
        self._revisions: dict[NodeKey, int] = {}
        self._revision = 0

    @property
    def revision(self) -> int:
        """Grows with every change; see `since`."""
        return self._revision

    def nodes(self) -> Mapping[NodeKey, NodeView]:
        """The views at hand. The mapping is not a copy: it changes with the table."""
        return MappingProxyType(self._views)

    def joined(self, node: NodeKey, incarnation: int, now: float) -> list[Effect]:
        """A node is a member; another incarnation of it is so no longer."""
        known = self._members.get(node)
        if known is not None and known.incarnation == incarnation:
            return []

        effects = self._forget(node)
        self._members[node] = _Member(incarnation, now)
        return effects

    def died(self, node: NodeKey, incarnation: int) -> list[Effect]:
        """An incarnation is no member any more; one that was replaced takes nobody along."""
        known = self._members.get(node)
        return self._forget(node) if known and known.incarnation == incarnation else []

    def apply(self, delta: ViewDelta, now: float) -> list[Effect]:
        """Take in news of a member; what is late, repeated or of nobody known is dropped."""
        member = self._members.get(delta.node)
        if member is None or member.incarnation != delta.incarnation:
            return []

        if delta.version <= member.version:
            return []

        member.latest = max(member.latest, delta.version)
        profile, load = delta.profile or member.profile, delta.load or member.load
        if delta.base > member.version or profile is None or load is None:
            overdue = not member.asked or now - member.since >= ASK_AGAIN
            return [self._ask(delta.node, member, now)] if overdue else []

        self._revision += 1
        member.version = delta.version
        member.asked = False
        member.profile, member.load = profile, load
        if delta.profile is not None:
            member.profile_version, member.profile_revision = delta.version, self._revision

        if delta.load is not None:
            member.load_version, member.load_revision = delta.version, self._revision

        view = _join(delta.node, delta.incarnation, profile, load)
        self._views[delta.node] = view
        self._revisions.pop(delta.node, None)
        self._revisions[delta.node] = self._revision
        return [Changed(view)]

    def overdue(self, now: float) -> list[Effect]:
        """Ask, again if need be, for the views of members that are known to be out of date."""
        return [
            self._ask(node, member, now)
            for node, member in self._members.items()
            if (not member.version or member.version < member.latest)
            and now - member.since >= ASK_AGAIN
        ]

    def since(self, revision: int) -> list[ViewDelta]:
        """What changed in this table after a revision, for one who has what it had then.

        Deaths are not among it: they are told by whoever tells of members.
        """
        deltas: list[ViewDelta] = []
        for node in reversed(self._revisions):
            if self._revisions[node] <= revision:
                break

            deltas.append(self._delta(node, self._members[node], revision))

        deltas.reverse()
        return deltas

    def full(self, node: NodeKey) -> ViewDelta | None:
        """A member's whole view, if it is known."""
        member = self._members.get(node)
        return self._delta(node, member, 0) if member is not None and member.version else None

    def check(self) -> None:
        """Assert what holds between calls."""
        known = {node for node, member in self._members.items() if member.version}
        assert known == self._views.keys() == self._revisions.keys()
        revisions = list(self._revisions.values())
        assert revisions == sorted(set(revisions))
        assert not revisions or revisions[-1] <= self._revision
        for node, view in self._views.items():
            member = self._members[node]
            assert member.profile is not None
            assert member.load is not None
            assert view == _join(node, member.incarnation, member.profile, member.load)
            assert max(member.profile_version, member.load_version) <= member.version
            assert member.version <= member.latest
            newest = max(member.profile_revision, member.load_revision)
            assert newest <= self._revisions[node]

    def _delta(self, node: NodeKey, member: _Member, revision: int) -> ViewDelta:
        """The parts that came after a revision; the others have not changed since `base`."""
        profile = member.profile if member.profile_revision > revision else None
        load = member.load if member.load_revision > revision else None
        base = 0
        if profile is None:
            base = member.profile_version

        if load is None:
            base = max(base, member.load_version)

        return ViewDelta(node, member.incarnation, base, member.version, profile, load)

    def _ask(self, node: NodeKey, member: _Member, now: float) -> AskFull:
        member.asked, member.since = True, now
        return AskFull(node, member.incarnation)

    def _forget(self, node: NodeKey) -> list[Effect]:
        self._members.pop(node, None)
        self._revisions.pop(node, None)
        return [Gone(node)] if self._views.pop(node, None) is not None else []


def _parts(view: NodeView) -> tuple[Profile, Load]:
    profile = Profile(view.address, view.total, view.labels, view.draining)
    return profile, Load(view.available, view.backlog, view.pending, view.infeasible)


def _join(node: NodeKey, incarnation: int, profile: Profile, load: Load) -> NodeView:
    return NodeView(
        node=node,
        incarnation=incarnation,
        address=profile.address,
        total=profile.total,
        available=load.available,
        labels=profile.labels,
        backlog=load.backlog,
        draining=profile.draining,
        pending=load.pending,
        infeasible=load.infeasible,
    )
