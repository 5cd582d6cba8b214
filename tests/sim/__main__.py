"""Run seeds of the simulated workload: ``python -m tests.sim 1234``, or ``100-200`` for many."""

import sys
import time
import traceback

from tests.sim.workload import Plan, quiet_collector, simulate

SHOWN, LINES = 1, 3  # failures shown with tracebacks, and how much of these


def main(arguments: list[str]) -> int:
    """Run the seeds; one alone is shown with its plan, its faults and its ledger."""
    seeds: list[int] = []
    for text in arguments:
        first, _, last = text.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    failed: list[int] = []
    began = time.process_time()
    with quiet_collector():
        for seed in seeds:
            try:
                outcome = simulate(seed)
                if simulate(seed).trace != outcome.trace:
                    raise AssertionError(f"seed {seed} ran in two ways")
            except Exception as error:
                failed.append(seed)
                if len(failed) <= SHOWN:
                    print(f"---- {Plan.of(seed)}")
                    traceback.print_exception(error, limit=-LINES)
                else:
                    print(f"---- {seed}: {error!r}"[:150])
            else:
                if len(seeds) == 1:
                    print(Plan.of(seed))
                    print(*outcome.faults, sep="\n")
                    for attempt in outcome.ledger.attempts:
                        print(attempt)
                    print(outcome.trace)
    print(
        f"{len(seeds)} seeds, {len(failed)} failed: {failed}, {time.process_time() - began:.1f} s of CPU"
    )
    return bool(failed)


sys.exit(main(sys.argv[1:]))
