"""What this machine has: the defaults of a node's resources."""

import os
from pathlib import Path

_STORE_SHARE = 0.3
_STORE_LEAST = 75 * 1024 * 1024
_STORE_MOST = 200 * 10**9  # Ray's bounds


def default_cpus() -> int:
    """Return the CPUs this process may use: its affinity, or less if a cgroup says so."""
    count = len(os.sched_getaffinity(0))
    quota = _cgroup_cpus()
    return max(1, min(count, quota) if quota is not None else count)


def default_object_store() -> int:
    """Return the bytes of an object store that suits this machine's memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup_memory()
    if limit is not None:
        total = min(total, limit)
    return int(min(max(total * _STORE_SHARE, _STORE_LEAST), _STORE_MOST))


def _cgroup_cpus() -> int | None:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        return None


def _cgroup_memory() -> int | None:
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        return None if text == "max" else int(text)
    except (OSError, ValueError):
        return None
