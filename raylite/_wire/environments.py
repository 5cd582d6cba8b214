"""Environments: which tasks may share a worker, by the variables that their processes start with."""

import hashlib

import msgspec

from raylite._wire.hot import JobConfig

_DIGEST = 16  # bytes


def inherit(parent: JobConfig, variables: dict[str, str]) -> JobConfig:
    """Return the configuration of tasks with variables of their own, started under `parent`'s.

    Theirs win, the others are inherited. What comes of it has a name, `JobConfig.environment`: two
    tasks of a job have the same one if they have the same variables, whatever way they got them.
    """
    merged = {**parent.env_vars, **variables}
    if merged == parent.env_vars:
        return parent
    encoded = msgspec.msgpack.encode(sorted(merged.items()))
    name = hashlib.blake2b(encoded, digest_size=_DIGEST).digest()
    return msgspec.structs.replace(parent, env_vars=merged, environment=name)
