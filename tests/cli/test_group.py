"""The `raylite` command as typed."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from raylite._version import __version__
from raylite.cli import main

ROOT = Path(__file__).resolve().parents[2]


def test_it_says_its_version() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert (result.exit_code, result.output) == (0, f"raylite, version {__version__}\n")


def test_its_help_lists_the_subcommands() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert "microbenchmark" in result.output


def test_an_unknown_subcommand_is_a_usage_error() -> None:
    result = CliRunner().invoke(main, ["frobnicate"])
    assert result.exit_code == 2
    assert "No such command 'frobnicate'" in result.output


def test_a_subcommand_is_imported_only_when_it_is_used() -> None:
    script = "import sys, raylite.cli.group; sys.exit('raylite.cli.microbenchmark' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


@pytest.mark.process
def test_the_microbenchmark_prints_a_line_in_the_form_of_rays() -> None:
    arguments = ["microbenchmark", "--only", "tasks sync", "--seconds", "0.05", "--num-cpus", "1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("single client tasks sync per second ")
    assert " +- " in result.output
