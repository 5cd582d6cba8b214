"""Run seeds of the simulated workloads: ``python -m tests.sim 1234``, or ``100-200`` for many.

With ``--nodes``, of the one with many nodes; with ``--cancel``, of the one that cancels tasks; with
``--standstills``, of the healthy cluster that has too much to do.
"""

import sys
import time
import traceback
from functools import partial

from tests.sim import cluster, standstills, workload
from tests.sim.cancelling import CancellingProgram
from tests.sim.workload import quiet_collector

SHOWN, LINES = 1, 3  # failures shown with tracebacks, and how much of these


def main(arguments: list[str]) -> int:
    """Run the seeds; one alone is shown with its plan, its faults and its ledger."""
    module = cluster if "--nodes" in arguments else workload
    if "--standstills" in arguments:
        module = standstills
    simulate = module.simulate
    if "--cancel" in arguments:
        simulate = partial(workload.simulate, program=CancellingProgram)
    once = "--once" in arguments
    seeds: list[int] = []
    for text in arguments:
        if not text.startswith("--"):
            first, _, last = text.partition("-")
            seeds += range(int(first), int(last or first) + 1)
    failed: list[int] = []
    began = time.process_time()
    with quiet_collector():
        for seed in seeds:
            try:
                outcome = simulate(seed)
                if not once and simulate(seed).trace != outcome.trace:
                    raise AssertionError(f"seed {seed} ran in two ways")
            except Exception as error:
                failed.append(seed)
                if len(failed) <= SHOWN:
                    print(f"---- {module.Plan.of(seed)}")
                    traceback.print_exception(error, limit=-LINES)
                else:
                    print(f"---- {seed}: {error!r}"[:300])
            else:
                if len(seeds) == 1:
                    print(module.Plan.of(seed))
                    print(*outcome.faults, sep="\n")
                    for attempt in outcome.ledger.attempts:
                        print(attempt)
                    print(outcome.trace, outcome.seconds)
    print(
        f"{len(seeds)} seeds, {len(failed)} failed: {failed}, {time.process_time() - began:.1f} s of CPU"
    )
    return bool(failed)


sys.exit(main(sys.argv[1:]))
