"""What the processes of a node run that may be cut off: production's roles, on such a network.

Not in `cuts`, which a test's own process loads: what the GCS and the raylet are made of is not for that one.
"""

from functools import partial

from raylite._runtime import roles
from raylite._runtime.later import Later, Roles
from raylite.testing.cuts import network_of

ROLES: Roles = {
    "gcs": partial(roles.gcs, network_of=network_of),
    "raylet": partial(roles.raylet, network_of=network_of),
    "worker": Later(roles.WORKER, network_of=network_of),
}
