"""The examples, run as a user would run them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api.drivers import drive

ROOT = Path(__file__).resolve().parents[2]
PARTS = {"service.py"}  # what another example runs
EXAMPLES = sorted(each for each in (ROOT / "examples").glob("*.py") if each.name not in PARTS)
SAYS = {
    "access_logs.py": r"71904 requests .*96 broken lines",
    "crawler.py": r"511 pages say 'page' 25550 times\nup to \d\d+ requests were open",
    "monte_carlo.py": r"\[#{40}\]  64/64  6\.477 \+- 0\.078",
    "service_in_use.py": "there are 78498 primes.*8 requests were answered.*a client has gone.*raylite stop",
    "streaming_pipeline.py": r"783849 measurements, mean 20\.002",
    "two_nodes.py": "2 nodes\n.* tasks on node .* read 5000000 bytes.*Stopped 2 nodes",
}
"""What an example says, by which one knows that it has done what it shows."""

AS_FILE = """
__file__ = sys.argv[0] = {path!r}
sys.path[0] = os.path.dirname(__file__)
with open(__file__) as example:
    code = compile(example.read(), __file__, "exec")
exec(code)
"""


@pytest.mark.process
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs_to_its_end_and_complains_about_nothing(example: Path) -> None:
    is_suite = example.name.startswith("test_")
    if is_suite or example.name == "quickstart.py":
        how = ["-m", "pytest", "-q", "-n", "0"] if is_suite else []
        command = [sys.executable, "-W", "error", *how, str(example)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=50, check=False
        )
    else:
        done = drive(AS_FILE.format(path=str(example)), timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(SAYS.get(example.name, r"\S"), done.stdout, re.DOTALL)


@pytest.mark.process
def test_the_first_programs_of_the_readme_and_of_the_page_on_coroutines_run() -> None:
    readme, page = ((ROOT / name).read_text() for name in ("README.md", "docs/aio.md"))
    one, other = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[:2]
    awaited = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    end = "ray.shutdown()\n"
    done = drive(one + end + other + awaited, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.splitlines()
    assert said[0] == "[0, 1, 4, 9]"
    assert sorted(said[1:5]) == ["0", "1", "4", "9"]
    assert said[5:7] == ["49", "[0, 1, 4, 9]"]
    assert sorted(said[7:]) == ["0", "1", "4", "9"]
