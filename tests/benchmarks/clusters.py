"""How soon a test's cluster of two nodes is up: best and median of several programs.

    python tests/benchmarks/clusters.py --runs 10

Each program is a new interpreter, so its first cluster has everything to load; then it starts two
more. What is measured is what a test waits for: `LocalCluster(nodes=[2, 2])` until its block begins.
"""

import argparse
import statistics
import subprocess
import sys

PROGRAM = """
import sys, time
from contextlib import nullcontext
from raylite.testing import LocalCluster, Nursery

with Nursery() if sys.argv[1] == "nursery" else nullcontext():
    for _ in range(3):
        began = time.perf_counter()
        workers = "threads" if sys.argv[1] == "threads" else "processes"
        with LocalCluster(nodes=[2, 2], workers=workers):
            print(time.perf_counter() - began)
"""
KINDS = ("threads", "processes", "nursery")


def run(kind: str) -> list[float]:
    """Return the seconds that the first, the second and the third cluster of a program took."""
    command = [sys.executable, "-c", PROGRAM, kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return [float(line) for line in done.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10, help="programs of each kind")
    runs = parser.parse_args().runs
    found: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for _ in range(runs):  # in turn: a noisy hour is noisy for all
        for kind in KINDS:
            found[kind].append(run(kind))
    for kind, rows in found.items():
        first, later = [row[0] for row in rows], [each for row in rows for each in row[1:]]
        for name, seconds in (("first", first), ("later", later)):
            best, median = min(seconds), statistics.median(seconds)
            print(f"{kind:10} {name}   best {best:.3f} s   median {median:.3f} s")


if __name__ == "__main__":
    main()
