"""Rules of style that a program can check, so that no reviewer has to.

Formatting, types and import contracts have checkers of their own (ruff, mypy, import-linter; the
`dev` extra installs them), which `.ci/run` runs over the whole tree. What they cannot say is here.
An exception to a rule is a line in a table below, with its reason.
"""

import ast
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import raylite
from raylite._version import __version__

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "raylite"
GENERATED = PACKAGE / "_wire" / "messages"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if not path.is_relative_to(GENERATED))
NAMES = [path.relative_to(ROOT).as_posix() for path in MODULES]

TOP_LEVEL = {"LICENSE", "README.md", "docs", "examples", "pyproject.toml", "raylite", "tests"}

OWNERS = ("raylite/_kernel/", "raylite/testing/")
"""Where tasks, timers, threads, clocks and randomness are made; everyone else gets them from here."""

UNOWNED = {
    "asyncio.create_task",
    "asyncio.ensure_future",
    "asyncio.gather",
    "asyncio.run_coroutine_threadsafe",
    "threading.Thread",
    "threading.Timer",
    "time.sleep",
}
UNOWNED_METHODS = {"call_later", "call_at", "create_task", "run_in_executor"}
SEAMS = {"random", "secrets", "socket", "subprocess", "time", "uuid"}

OUTSIDE_THE_KERNEL = {
    (
        "raylite/_runtime/addresses.py",
        "socket",
    ): "asks what a host's addresses are, before there is a loop",
    ("raylite/_runtime/components.py", "socket"): "asks for the host's name, nothing else",
    ("raylite/_runtime/forkserver.py", "time"): "has no event loop, on purpose: it forks",
    ("raylite/_runtime/forkserver.py", "socket"): "has no event loop, on purpose: it forks",
    ("raylite/_runtime/prenatal.py", "socket"): "has no event loop, on purpose: it forks",
    ("raylite/_runtime/guest.py", "socket"): "receives a descriptor, before there is a loop",
    ("raylite/_runtime/interpreter.py", "socket"): "makes the channel to the fork server",
    ("raylite/_runtime/launch.py", "socket"): "hands listening sockets to the fork server",
    ("raylite/_runtime/launch.py", "time"): "waits for the fork server before there is a loop",
    ("raylite/_runtime/stopping.py", "time"): "waits for others' processes, and has no loop",
    ("raylite/_runtime/listeners.py", "socket"): "binds what the processes of a node inherit",
    ("raylite/_runtime/node.py", "socket"): "adopts sockets that the fork server made",
    ("raylite/_runtime/networks.py", "socket"): "hands bound sockets to the transport",
    ("raylite/_runtime/output.py", "threading"): "prints on a thread, for a terminal can block",
    ("raylite/_services/worker/chunk.py", "time"): "measures user code on a thread of its own",
    ("raylite/_remote.py", "time"): "a deadline is a time of the clock that users look at",
    ("raylite/_services/worker/core.py", "time"): "counts down a timeout on the thread that waits",
    ("raylite/_services/worker/coroutines.py", "time"): "measures user code on a loop of its own",
    (
        "raylite/_services/worker/outcomes.py",
        "time",
    ): "counts down a timeout on the thread that waits",
    ("raylite/_services/worker/runner.py", "time"): "measures user code on a thread of its own",
    ("raylite/_types/ids.py", "secrets"): "ids made by users' code, which has no seeded source",
    ("raylite/_wire/generate.py", "subprocess"): "a developer's tool: runs the proto compiler",
    ("raylite/cli/microbenchmark.py", "time"): "measures",
    ("raylite/runtime_context.py", "time"): "says what is left of a time, on the thread that asks",
    (
        "raylite/util/executor.py",
        "threading",
    ): "runs users' code on a thread of its own, as others do",
    ("raylite/cluster_utils.py", "time"): "counts down a timeout on the thread that waits",
}

INNER_IMPORTS: dict[str, str] = {}
"""Modules that import inside a function, and why."""

LONG_MODULES: dict[str, str] = {
    "raylite/_api.py": "the public functions, mostly their docstrings",
    "raylite/_kernel/grpcwire.py": "one stream: what is written, read, and passed on shares its windows",
    "raylite/_kernel/link.py": "a link's calls, feeds, replay and end share one state",
    "raylite/_kernel/network.py": "a session's opening, from both sides, is one conversation",
    "raylite/_machines/leases.py": "one machine; its ordering rules are explained beside the code",
    "raylite/_machines/memory.py": "one machine: extents, pins and what waits for room",
    "raylite/_machines/pool.py": "one machine: a worker's whole life",
    "raylite/_machines/pulls.py": "one machine: an object's way here, from the wish to the last chunk",
    "raylite/_machines/submitter.py": "one machine: lanes, pipelines and leases decide together",
    "raylite/_options.py": "one table of all keywords",
    "raylite/_remote.py": "a third of it says to type checkers what one method takes",
    "raylite/_runtime/node.py": "all that the processes of a node say to each other, and what of it",
    "raylite/_runtime/forkserver.py": "one process: its children and their ends, its owner and its guests",
    "raylite/_services/worker/core.py": "one facade: all that threads of the program ask, and wait for",
    "raylite/_services/worker/objects.py": "references, entries and all kinds of waiters for them",
    "raylite/_services/worker/execute.py": "one queue of tasks, from the loop's side and the thread's",
    "raylite/_services/worker/runner.py": "one thread: a task from its job to its result, whatever it does",
    "raylite/_services/worker/submit.py": "one service: a task from submission to result",
    "raylite/_wire/hot.py": "one table: everything that travels for a task, an object or a lease",
    "raylite/_wire/pickling.py": "two picklers that must agree on what is plain, importable and large",
    "raylite/testing/node.py": "one simulated node: its processes, their tasks and deaths",
    "raylite/util/executor.py": "a quarter of it says to type checkers what one method takes",
    "raylite/cluster_utils.py": "Ray's module: a cluster and its nodes, mostly what they promise",
    "raylite/exceptions.py": "one tree, every class saying when it is raised",
}
"""Modules of more than 400 lines, and why they are one idea all the same."""

ABOVE_THE_RUNTIME = tuple(
    f"raylite/{name}"
    for name in (
        "__init__",
        "_api",
        "_connect",
        "_init",
        "_remote",
        "aio",
        "cluster_utils",
        "util/",
        "cli/",
        "testing/",
        "dashboard/",
    )
)

PUBLIC_IN_PRIVATE = {
    "raylite/_api.py",
    "raylite/_connect.py",
    "raylite/_init.py",
    "raylite/_remote.py",
}
"""Private modules whose names users call."""

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` for such an expression, else only what follows its last call or index."""
    match node:
        case ast.Name(name):
            return name
        case ast.Attribute(value, name):
            return f"{dotted(value)}.{name}"
        case _:
            return ""


def calls(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the calls in a module by full name, names imported with `from` written out."""
    origins = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            yield node.lineno, origins.get(name, name)


def imports(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield what a module imports: `a.b` for `import a.b` and for `from a import b`."""
    for node in ast.walk(module):
        match node:
            case ast.Import(names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(origin, names, 0):
                yield from ((node.lineno, f"{origin}.{alias.name}") for alias in names)


def public_definitions(module: ast.Module) -> Iterator[Definition]:
    """Yield a module's public classes and functions."""
    for node in module.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node


def outside(owners: tuple[str, ...]) -> Iterator[tuple[str, ast.Module]]:
    """Yield the modules that are not in one of these places, with their trees."""
    return ((name, tree(ROOT / name)) for name in NAMES if not name.startswith(owners))


def test_tasks_timers_and_threads_are_started_by_the_kernel_only() -> None:
    found = [
        f"{name}:{line}: {called}"
        for name, module in outside(OWNERS)
        for line, called in calls(module)
        if (called in UNOWNED or called.rpartition(".")[2] in UNOWNED_METHODS)
        and (name, called.partition(".")[0]) not in OUTSIDE_THE_KERNEL
    ]
    assert found == []


def test_clocks_randomness_and_the_outside_world_are_reached_through_the_kernel() -> None:
    found = [
        f"{name}:{line}: {imported}"
        for name, module in outside(OWNERS)
        for line, imported in imports(module)
        if imported.partition(".")[0] in SEAMS and imported != "random.Random"  # made elsewhere
        if (name, imported.partition(".")[0]) not in OUTSIDE_THE_KERNEL
    ]
    assert found == []


def test_imports_are_at_the_top_of_a_module() -> None:
    inner = [
        f"{name}:{node.lineno}"
        for name, module in outside(tuple(INNER_IMPORTS))
        for function in ast.walk(module)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert inner == []


def test_type_checking_blocks_hide_no_import_cycle() -> None:
    # They are to load nothing, not even what names their types.
    late = {
        "raylite/_init.py",
        "raylite/_runtime/loading.py",
        "raylite/_runtime/nurseries.py",
        "raylite/testing/cluster.py",
    }
    found = {name for name in NAMES if "TYPE_CHECKING" in (ROOT / name).read_text()}
    assert found == late


def test_nothing_below_the_api_imports_the_package_itself() -> None:
    found = [
        f"{name}:{line}"
        for name, module in outside(ABOVE_THE_RUNTIME)
        for line, imported in imports(module)
        if imported == "raylite" or (imported.count(".") == 1 and imported[8:] in public_names())
    ]
    assert found == []


def public_names() -> set[str]:
    """Return the names that the package's own stub lists."""
    path = PACKAGE / "__init__.pyi"
    body = tree(path).body if path.exists() else []
    nodes = (node for node in body if isinstance(node, ast.ImportFrom))
    return {alias.asname or alias.name for node in nodes for alias in node.names}


def test_a_package_init_only_reexports() -> None:
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.For)
    found = [
        f"{name}:{node.lineno}: {ast.unparse(node)[:60]}"
        for name in NAMES
        if name.endswith("__init__.py")
        if name != "raylite/__init__.py"  # loads its names late; see the next test
        for node in tree(ROOT / name).body
        if not isinstance(node, allowed)
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]
    assert found == []


def test_the_stub_lists_what_the_package_loads_late() -> None:
    late = {name for name in dir(raylite) if not name.startswith("_")} | {"__version__"}
    assert public_names() <= late
    assert all(hasattr(raylite, name) for name in public_names())


def test_a_module_begins_by_saying_what_it_is() -> None:
    modules = ((name, tree(ROOT / name)) for name in NAMES)
    assert [n for n, module in modules if module.body and not ast.get_docstring(module)] == []


def test_public_names_are_documented() -> None:
    bare = [
        f"{name}:{node.lineno}: {node.name}"
        for name in NAMES
        for node in public_definitions(tree(ROOT / name))
        if not ast.get_docstring(node) and not speaks_for_itself(name, node)
    ]
    assert bare == []


def speaks_for_itself(name: str, node: Definition) -> bool:
    """Whether a definition needs no docstring: overloads, and in private layers plain records."""
    marks = {dotted(d.func if isinstance(d, ast.Call) else d) for d in node.decorator_list}
    if marks & {"overload", "typing.overload"}:
        return True
    private = name.startswith("raylite/_") and name not in PUBLIC_IN_PRIVATE
    if not isinstance(node, ast.ClassDef):
        return private
    records = {dotted(base).rpartition(".")[2] for base in node.bases} & {"Struct", "Effect"}
    return private and bool(records or marks & {"dataclass", "dataclasses.dataclass"})


def test_a_module_of_more_than_400_lines_has_a_reason() -> None:
    lengths = {name: (ROOT / name).read_text().count("\n") for name in NAMES}
    long = {name: lines for name, lines in lengths.items() if lines > 400}
    assert {name: lines for name, lines in long.items() if name not in LONG_MODULES} == {}


def test_no_note_to_self_is_left_in_a_comment() -> None:
    notes = []
    for name in NAMES:
        with open(ROOT / name, "rb") as source:
            tokens = list(tokenize.tokenize(source.readline))
        comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
        notes += [f"{name}: {c}" for c in comments if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", c)]
    assert notes == []


def test_every_allowance_is_still_needed() -> None:
    used = {
        (name, imported.partition(".")[0])
        for name, module in outside(OWNERS)
        for _, imported in imports(module)
    }
    missing = [name for name in (*LONG_MODULES, *INNER_IMPORTS) if name not in NAMES]
    assert sorted(OUTSIDE_THE_KERNEL.keys() - used) + missing == []


def test_the_top_level_holds_only_what_belongs_there() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("not a git checkout: build products cannot be told from sources")
    top = {line.partition("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL


def test_the_readme_fits_its_150_lines_and_has_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert "python -m pip install . && python examples/quickstart.py" in text
    assert "python -m pip install '.[test]' && python -m pytest" in text


def test_the_changelog_begins_with_what_is_unreleased() -> None:
    text = (ROOT / "docs" / "changelog.md").read_text()
    sections = re.findall(r"^## \[?([^\]\n]+)", text, flags=re.MULTILINE)
    assert sections[0] == "Unreleased"
    assert len(sections) == 1 or sections[1].startswith(__version__)


def test_an_example_has_at_most_60_lines() -> None:
    examples = sorted((ROOT / "examples").glob("*.py"))
    assert examples
    assert [p.name for p in examples if len(p.read_text().splitlines()) > 60] == []


def test_no_test_patches_a_module() -> None:
    patches = {"unittest.mock.patch", "mock.patch", "mocker.patch"}
    paths = (ROOT / "tests").rglob("*.py")
    assert [path.name for path in paths if patches & {n for _, n in calls(tree(path))}] == []
