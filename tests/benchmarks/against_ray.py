"""raylite and Ray side by side: the same cases on both in turn, and a table with their ratios.

    python tests/benchmarks/against_ray.py                 # all cases, best of 3 runs each
    python tests/benchmarks/against_ray.py --case tasks_sync --runs 5

Each side is installed by pip in a virtual environment of its own (`--cache` says where), as users
have it; later runs reuse Ray's, and install this tree anew. Sides alternate and the best run of each counts: on a shared machine absolute figures
drift, ratios much less. The exit status is 1 if a ratio misses its target.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

RAY = "2.60.0"
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TIMEOUT = 300.0


@dataclass(frozen=True, slots=True)
class Row:
    """One case: what it is called in the table, its unit, and how many times faster to be."""

    case: str
    label: str
    unit: str
    target: float
    lower_is_better: bool = False

    def best(self, figures: list[float]) -> float:
        return min(figures) if self.lower_is_better else max(figures)

    def ratio(self, ours: float, theirs: float) -> float:
        return theirs / ours if self.lower_is_better else ours / theirs


ROWS = (
    Row("import_seconds", "import", "s", 4, lower_is_better=True),
    Row("first_result", "`init()` until the first task's result", "s", 10, lower_is_better=True),
    Row("idle_memory", "idle memory, 4 CPUs, driver included", "MB", 5, lower_is_better=True),
    Row("shutdown_seconds", "shutdown", "s", 8, lower_is_better=True),
    Row("tasks_sync", "tasks, synchronous", "/s", 5),
    Row("tasks_1000", "tasks, 1,000 in flight", "/s", 12),
    Row("tasks_10000", "10,000 tasks, one get", "/s", 12),
    Row("aio_1000", "tasks, 1,000 awaited by one loop", "/s", 12),
    Row("map_10000", "`map` over 10,000 (Ray: a list of tasks)", "/s", 12),
    Row("stream_10000", "10,000 items of a generator task", "/s", 5),
    Row("wait_1000", "`wait` loop over 1,000", "/s", 8),
    Row("fan_out", "recursive fan-out, every task blocks", "/s", 5),
    Row("put_small", "`put` of a small value", "/s", 40),
    Row("get_small", "`get` of a small value", "/s", 20),
    Row("put_400mb", "`put` of 400 MB arrays", "GB/s", 3),
    Row("shared_argument", "10 MB argument shared by 50 tasks", "/s", 8),
)


def environment(home: Path, *packages: str) -> Path:
    """Return the interpreter of an environment that has these packages, making it the first time."""
    python, ready = home / "bin" / "python", home / "ready"
    if not ready.exists():
        print(f"making an environment in {home} ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        install(python, *packages)
        ready.touch()
    return python


def install(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", *arguments]
    subprocess.run(command, check=True)


def ray_python(cache: Path) -> Path:
    home = cache / f"ray-{RAY}-py{platform.python_version()}"
    return environment(home, f"ray[default]=={RAY}", "numpy")


def raylite_python(cache: Path) -> Path:
    python = environment(cache / f"raylite-py{platform.python_version()}", str(ROOT), "numpy")
    install(python, "--force-reinstall", "--no-deps", str(ROOT))
    return python


def measure(python: Path, module: str, case: str) -> float | None:
    """Run one case in a process of its own; None, with its last words, if it failed."""
    command = [str(python), str(HERE / "cases.py"), "--module", module, "--case", case]
    environment = os.environ | {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        print(f"{module} {case}: no result in {TIMEOUT:.0f} s", file=sys.stderr)
        return None
    for line in reversed(done.stdout.splitlines()):
        if line.startswith('{"case"'):
            return float(json.loads(line)["figure"])
    words = "\n".join(done.stderr.splitlines()[-15:])
    print(f"{module} {case}: failed with status {done.returncode}\n{words}", file=sys.stderr)
    return None


def shown(figure: float | None) -> str:
    if figure is None:
        return "failed"
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


def table_line(row: Row, ours: list[float], theirs: list[float]) -> tuple[str, bool]:
    """Return the row of the table, and whether its target is met."""
    our_best = row.best(ours) if ours else None
    their_best = row.best(theirs) if theirs else None
    met, ratio = False, "-"
    if our_best is not None and their_best is not None:
        times = row.ratio(our_best, their_best)
        met, ratio = times >= row.target, f"{times:.1f}"
    cells = [row.label, f"{shown(their_best)} {row.unit}", f"{shown(our_best)} {row.unit}"]
    cells += [ratio, f"{row.target:g}", "pass" if met else "**fail**"]
    return f"| {' | '.join(cells)} |", met


def main() -> int:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raylite"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [row.case for row in ROWS]
    parser.add_argument("--case", action="append", choices=names, help="only this; may be repeated")
    parser.add_argument("--runs", type=int, default=3, help="runs a side, the best counts")
    parser.add_argument("--ray-python", type=Path, help="an interpreter that has Ray already")
    parser.add_argument("--raylite-python", type=Path, help="the same, with raylite")
    parser.add_argument("--cache", type=Path, default=cache, help="where to keep environments")
    parser.add_argument("--output", type=Path, help="write the table to this file, too")
    options = parser.parse_args()

    theirs_python = options.ray_python or ray_python(options.cache)
    our_python = options.raylite_python or raylite_python(options.cache)
    rows = [row for row in ROWS if not options.case or row.case in options.case]
    lines = [f"| what | Ray {RAY} | raylite | ratio | target | |", "|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    all_met = True
    for row in rows:
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(options.runs):
            for figures, python, module in (
                (theirs, theirs_python, "ray"),
                (ours, our_python, "raylite"),
            ):
                figure = measure(python, module, row.case)
                figures += [figure] if figure is not None else []
        line, met = table_line(row, ours, theirs)
        all_met &= met
        lines.append(line)
        print(line, flush=True)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")
    return 0 if all_met else 1


if __name__ == "__main__":
    raise SystemExit(main())
