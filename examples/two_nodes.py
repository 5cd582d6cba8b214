"""A cluster of two nodes on this machine: started by the command, shared by programs, stopped again."""

import os
import subprocess
import sys
from collections import Counter
from tempfile import TemporaryDirectory

import raylite as ray


def command(*words: str) -> str:
    """Run `raylite`, as one would in a terminal, and show it."""
    print("$ raylite", *words)
    program = [sys.executable, "-c", "from raylite.cli import main; main()", *words]
    return subprocess.run(program, check=True, text=True, stdout=subprocess.PIPE).stdout


@ray.remote
def where(block: bytes) -> tuple[str, int]:
    return ray.get_runtime_context().get_node_id(), len(block)


def main() -> None:
    command("start", "--head", "--port=0", "--num-cpus=1")
    try:
        ray.init()  # finds the cluster that was started on this machine
        session = ray.get_runtime_context().gcs_address.removeprefix("unix:")
        command("start", f"--address={session}", "--num-cpus=1", '--resources={"far": 1}')
        print(f"{len(ray.nodes())} nodes")

        block = ray.put(bytes(5_000_000))  # read on both nodes, copied once to the other
        spread = where.options(scheduling_strategy="SPREAD")
        found = Counter(ray.get([spread.remote(block) for _ in range(6)]))
        for (node, size), times in found.items():
            print(f"{times} tasks on node {node[:8]} read {size} bytes")

        node, _ = ray.get(where.options(resources={"far": 1}).remote(block))
        print(f"the task that needs 'far' ran on node {node[:8]}")
        print(command("status"))
        ray.shutdown()  # leaves the cluster as it is
    finally:
        print(command("stop"))


if __name__ == "__main__":
    with TemporaryDirectory(prefix="rl") as folder:  # apart from other clusters of this machine
        os.environ["RAYLITE_TMPDIR"] = folder
        main()
