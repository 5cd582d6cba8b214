"""Web servers' logs, compressed: a task for each, begun while the next is being written, and sums."""

import gzip
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import raylite as ray

LINE = re.compile(r'\S+ - - \[[^\]]+\] "\w+ (?P<path>\S+) [^"]*" (?P<status>\d{3}) (?P<ms>\d+)')
PATHS = ["/", "/login", "/search?q=ray", "/static/app.js", "/api/orders", "/api/orders/7"]


def write_logs(folder: Path, files: int, lines: int) -> Iterator[Path]:
    """Write logs as a busy server does, some lines cut off in the middle."""
    for number in range(files):
        source, path = random.Random(number), folder / f"access-{number:03}.log.gz"
        with gzip.open(path, "wt", compresslevel=1) as log:
            for n in range(lines):
                status = source.choices([200, 304, 404, 500], [90, 6, 3, 1])[0]
                ms = int(source.lognormvariate(3, 1)) + (900 if status == 500 else 0)
                address = f"10.0.{source.randrange(256)}.{source.randrange(256)}"
                moment = f"26/Nov/2026:{number:02}:{n * 60 // lines:02}:00 +0000"
                request = f"GET {source.choice(PATHS)} HTTP/1.1"
                line = f'{address} - - [{moment}] "{request}" {status} {ms}'
                log.write(line[: source.randrange(40) if n % 997 == 5 else None] + "\n")
        yield path


@ray.remote
def survey(path: Path) -> tuple[Counter[str], Counter[str], int]:
    """Count answers by status, milliseconds by path, and lines that are none."""
    statuses, milliseconds, broken = Counter[str](), Counter[str](), 0
    with gzip.open(path, "rt") as log:
        for line in log:
            if (found := LINE.match(line)) is None:
                broken += 1
                continue
            statuses[found["status"]] += 1
            milliseconds[found["path"].partition("?")[0]] += int(found["ms"])
    return statuses, milliseconds, broken


if __name__ == "__main__":
    with TemporaryDirectory() as folder, ray.init(num_cpus=2):
        started, broken = time.perf_counter(), 0
        statuses, milliseconds = Counter[str](), Counter[str]()
        for ref in survey.map(write_logs(Path(folder), files=24, lines=3000)):
            one, other, bad = ray.get(ref)
            statuses, milliseconds, broken = statuses + one, milliseconds + other, broken + bad
        print(f"{statuses.total()} requests in {time.perf_counter() - started:.2f} s: {statuses}")
        print(f"{broken} broken lines; most time went into {milliseconds.most_common(2)}")
