"""Documentation that shows code is run: the pages, and the docstrings of the modules behind them."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ["kernel.md", "machines.md"]
MODULES = ["raylite._kernel.interface"]


def blocks(page: Path) -> str:
    """The code of a page, everything else blanked so that lines keep their numbers."""
    lines, is_code = [], False
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            is_code = line == "```pycon"
            lines.append("")
        else:
            lines.append(line if is_code else "")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_shows_is_what_happens(name: str) -> None:
    page = DOCS / name
    names = {"__name__": "page"}
    test = doctest.DocTestParser().get_doctest(blocks(page), names, name, str(page), 0)
    output: list[str] = []
    result = doctest.DocTestRunner().run(test, out=output.append)
    assert result.failed == 0, "".join(output)
    assert result.attempted > 0


@pytest.mark.parametrize("name", PAGES)
def test_every_code_block_of_a_page_is_run(name: str) -> None:
    fences = re.findall(r"^```(.+)$", (DOCS / name).read_text(), re.MULTILINE)
    assert set(fences) == {"pycon"}


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert (result.failed, result.attempted > 0) == (0, True)


def test_the_tests_that_a_page_names_exist() -> None:
    text = (DOCS / "testing.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 50
    for path, name in named:
        source = (DOCS.parent / path).read_text()
        assert not name or f"def {name}(" in source, f"{path} has no {name}"
