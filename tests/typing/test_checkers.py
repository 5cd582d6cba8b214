"""Types as users' checkers see them, in both directions: what they take, and what they refuse."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.typing, pytest.mark.timeout(300)]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = ("accepted.py", "refused.py")
PLACE = re.compile(r"(\w+\.py):(\d+): error: ")


def expected() -> set[tuple[str, int]]:
    """The lines that say that they are to be refused."""
    return {
        (name, number)
        for name in FILES
        for number, line in enumerate((HERE / name).read_text().splitlines(), 1)
        if line.endswith("  # refused")
    }


def run(*command: str) -> str:
    """What a checker prints; that it finds errors is no error."""
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True
    ).stdout


def paths(names: Sequence[str] = FILES) -> list[str]:
    return [str((HERE / name).relative_to(ROOT)) for name in names]


def test_mypy_finds_what_is_wrong_and_nothing_else() -> None:
    output = run("mypy", "--strict", *paths())
    found = {(name, int(line)) for name, line in PLACE.findall(output)}
    assert found == expected(), output


def test_pyright_finds_what_is_wrong_and_nothing_else() -> None:
    report: dict[str, Any] = json.loads(run("pyright", "--outputjson", *paths()))
    found = {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1)
        for each in report["generalDiagnostics"]
    }
    assert found == expected(), report


def test_every_type_that_a_user_can_reach_is_known() -> None:
    report = json.loads(
        run("pyright", "--verifytypes", "raylite", "--ignoreexternal", "--outputjson")
    )["typeCompleteness"]
    unknown = [
        f"{each['name']}: {diagnostic['message']}"
        for each in report["symbols"]
        for diagnostic in each["diagnostics"]
        if not each["isTypeKnown"] or each["isTypeAmbiguous"]
    ]
    assert report["completenessScore"] == 1.0, "\n".join(unknown)
