"""Views of nodes as they travel: what machines say of them, and what messages carry."""

from raylite._machines.views import Load, Profile, ViewDelta
from raylite._types.resources import Resources
from raylite._types.strategies import NodeKey, Shapes
from raylite._wire import hot


def encode(delta: ViewDelta) -> hot.ViewDelta:
    profile, load = delta.profile, delta.load
    return hot.ViewDelta(
        delta.node,
        delta.incarnation,
        delta.base,
        delta.version,
        None
        if profile is None
        else hot.Profile(
            profile.address, profile.total.to_units(), dict(profile.labels), profile.draining
        ),
        None
        if load is None
        else hot.Load(
            load.available.to_units(),
            load.backlog,
            encode_shapes(load.pending),
            encode_shapes(load.infeasible),
        ),
    )


def decode(delta: hot.ViewDelta) -> ViewDelta:
    profile, load = delta.profile, delta.load
    return ViewDelta(
        NodeKey(delta.node),
        delta.incarnation,
        delta.base,
        delta.version,
        None
        if profile is None
        else Profile(
            profile.address, Resources.from_units(profile.total), profile.labels, profile.draining
        ),
        None
        if load is None
        else Load(
            Resources(load.available),
            load.backlog,
            decode_shapes(load.pending),
            decode_shapes(load.infeasible),
        ),
    )


def encode_shapes(shapes: Shapes) -> hot.Shapes:
    return tuple((demand.to_units(), count) for demand, count in shapes)


def decode_shapes(shapes: hot.Shapes) -> Shapes:
    return tuple((Resources(units), count) for units, count in shapes)
