"""What this machine has: the defaults of a node's resources."""

import os
from pathlib import Path

from raylite._types.accelerators import VISIBLE, listed

_STORE_SHARE = 0.3
_STORE_LEAST = 75 * 1024 * 1024
_STORE_MOST = 200 * 10**9  # Ray's bounds


def default_cpus() -> int:
    """Return the CPUs this process may use: its affinity, or less if a cgroup says so."""
    count = len(os.sched_getaffinity(0))
    quota = _cgroup_cpus()
    return max(1, min(count, quota) if quota is not None else count)


def total_memory() -> int:
    """Return the bytes of memory that this machine, or its cgroup, has."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup_memory()
    return total if limit is None else min(total, limit)


def default_object_store() -> int:
    """Return the bytes of an object store that suits this machine's memory."""
    return int(min(max(total_memory() * _STORE_SHARE, _STORE_LEAST), _STORE_MOST))


def default_memory(store: int) -> int:
    """Return the bytes that are available now for what tasks say they need, beside an object store."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    limit = _cgroup_memory()
    if limit is not None:
        available = min(available, limit)
    return max(available - store, 0)


def default_gpus(driver: Path = Path("/proc/driver/nvidia/gpus")) -> tuple[int, str]:
    """Return how many GPUs there are for this process to see, and of what type: ``(4, "A100")``.

    Args:
        driver: Where NVIDIA's driver lists them; there are none without it.
    """
    try:
        found = sorted(driver.iterdir())
        models = [_model((each / "information").read_text()) for each in found]
    except OSError:
        return 0, ""
    visible = listed(os.environ.get(VISIBLE["GPU"]))
    count = len(found) if visible is None else min(len(found), len(visible))
    return count, models[0] if count else ""


def _model(information: str) -> str:
    """Return what Ray calls a GPU: ``A100`` for an ``NVIDIA A100-SXM4-40GB``."""
    name = next((line[6:] for line in information.splitlines() if line.startswith("Model:")), "")
    words = name.split()
    if words and words[0] in ("NVIDIA", "Tesla"):
        del words[0]
    for position, word in enumerate(words):
        if any(letter.isdigit() for letter in word):
            return "-".join([*words[:position], word.partition("-")[0]])
    return "-".join(words)


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
