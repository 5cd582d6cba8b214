"""What every test must leave behind: nothing.

After each test the process is compared with what it was before. A test fails that left behind a
child process, a thread, a file descriptor or a mapping of shared memory, or during which an
exception was lost: unhandled in an event loop, never retrieved from a task, or unraisable.

A fixture of a wider scope than one test (a cluster that many tests share) may hold resources
for as long as it lives, and tests that use it are not charged for what it holds; it is
compared as a whole when it ends. A test with a good reason says so with
`@pytest.mark.leaves("descriptor", reason="grpcio never closes its poller")`; kinds: process,
thread, descriptor, mapping. A test that provokes a lost exception asks for the fixture
`lost_exceptions`, looks at it and clears it.

Clusters of processes that tests start are forked from a nursery, which costs half a second of a core
less than an interpreter for each, and programs from a warm interpreter (see `tests.programs`). Tests
of how nodes and programs start are marked `anew` and have interpreters, as programs do, and so have
the tests of faults.
"""

import gc
import logging
import os
import shutil
import signal
import sys
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from tempfile import mkdtemp
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, settings

from raylite._runtime import nurseries
from raylite.testing import Nursery
from tests import programs

# How fast inputs are made and tried is the machine's business: other tests run beside these.
settings.register_profile("raylite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("raylite")

# The first loop makes a pipe for signals that libuv keeps for as long as the process lives.
uvloop.new_event_loop().close()

STEADY = {"toys"}
"""Wide fixtures that hold the same all the time: what grows while a test uses one is the test's."""

GRACE = 2.0
"""Seconds that a process, thread or connection gets to finish what it has already begun to end."""

# Hundreds of interpreters start here; each would compile all of raylite for itself.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

MARK = "RAYLITE_TESTS"
"""The environment variable by which a process started under these tests is known, orphaned or not."""


def _is_ours(pid: int) -> bool:
    """Whether this process is a child of ours that nobody reaped, or an orphan with our mark."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            parent = int(stat.read().rpartition(b")")[2].split()[1])
        if parent == os.getpid():
            return True
        with open(f"/proc/{pid}/environ", "rb") as environ:  # empty once it has ended
            return f"{MARK}={os.environ[MARK]}".encode() in environ.read().split(b"\0")
    except (OSError, KeyError):
        return False


def _describe(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as command:
            words = command.read().replace(b"\0", b" ").decode().strip()
    except OSError:
        words = "(already gone)"
    return f"process {pid}: {words or '(ended, but nobody waited for it)'}"


def _descriptors() -> dict[str, str]:
    """Open file descriptors and what they are; a reused number is told apart by its target."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue  # the descriptor that listed the directory
    return found


def _mappings() -> Counter[str]:
    """Mappings of shared memory by name. Parsing is for the rare process that has any."""
    with open("/proc/self/maps", "rb") as maps:
        text = maps.read()
    if b"/memfd:" not in text and b"/dev/shm/" not in text:
        return Counter()
    paths = (line.partition(" /")[2] for line in text.decode().splitlines())
    return Counter(f"/{path}" for path in paths if path.startswith(("memfd:", "dev/shm/")))


@dataclass(frozen=True, slots=True)
class Holdings:
    """What this process holds at one moment."""

    processes: frozenset[int]
    threads: frozenset[threading.Thread]
    descriptors: dict[str, str]
    mappings: Counter[str]

    @classmethod
    def now(cls) -> "Holdings":
        processes = frozenset(int(name) for name in os.listdir("/proc") if name.isdigit())
        threads = frozenset(
            thread
            for thread in threading.enumerate()
            if not isinstance(thread, threading._DummyThread)  # a foreign thread that only passed
        )
        return cls(processes, threads, _descriptors(), _mappings())

    def __or__(self, other: "Holdings") -> "Holdings":
        return Holdings(
            self.processes | other.processes,
            self.threads | other.threads,
            self.descriptors | other.descriptors,
            self.mappings | other.mappings,
        )

    def __sub__(self, other: "Holdings") -> "Holdings":
        return Holdings(
            self.processes - other.processes,
            self.threads - other.threads,
            dict(self.descriptors.items() - other.descriptors.items()),
            self.mappings - other.mappings,
        )

    def since(self, before: "Holdings") -> dict[str, list[str]]:
        """What is held now and was not before, by kind."""
        new = self - before
        return {
            "process": [_describe(pid) for pid in new.processes if _is_ours(pid)],
            "thread": [f"thread {thread.name}" for thread in new.threads],
            "descriptor": [f"descriptor {n}: {target}" for n, target in new.descriptors.items()],
            "mapping": [f"mapping of {path}" for path in new.mappings],
        }


def settle(before: Holdings, tolerated: frozenset[str]) -> tuple[list[str], Holdings]:
    """Return what was left behind, and what is held, after waiting out what ends by itself."""
    deadline = time.monotonic() + GRACE
    while True:
        now = Holdings.now()
        found = now.since(before)
        leaks = [leak for kind, some in found.items() if kind not in tolerated for leak in some]
        if not leaks or time.monotonic() > deadline:
            return leaks, now
        time.sleep(0.01)
        gc.collect()


class LostExceptions(logging.Handler):
    """Collects exceptions that reached nobody: both asyncio and uvloop log those of their loops."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        trace = "".join(traceback.format_exception(error)) if error else ""
        self.texts.append(f"{record.getMessage()}\n{trace}".strip())

    def unraisable(self, hooked: "sys.UnraisableHookArgs") -> None:
        trace = "".join(traceback.format_exception(hooked.exc_value))
        place = hooked.err_msg or "Exception ignored in"
        self.texts.append(f"{place} {hooked.object!r}\n{trace}".strip())

    def in_thread(self, hooked: "threading.ExceptHookArgs") -> None:
        name = hooked.thread.name if hooked.thread else "?"
        trace = "".join(traceback.format_exception(hooked.exc_value))
        self.texts.append(f"Exception in thread {name}\n{trace}".strip())


@dataclass(slots=True)
class Watch:
    """One test session's memory: the last comparison, and the wide fixtures that hold resources."""

    lost: LostExceptions = field(default_factory=LostExceptions)
    before: Holdings = field(default_factory=Holdings.now)
    holders: dict[str, Holdings] = field(default_factory=dict)
    excused: bool = False
    """Whether the present test uses a holder, so that growth is the holder's business."""

    since_frozen: int = 0
    """The tests since all that lives was put out of the collector's sight."""

    def accept(self, now: Holdings) -> None:
        """Take what is held now as given: it was reported, is tolerated, or belongs to a holder."""
        if not self.excused:
            new = now - self.before
            self.holders = {name: before | new for name, before in self.holders.items()}
        self.before = now


WATCH = pytest.StashKey[Watch]()
TEMP_DIR = pytest.StashKey[str]()
SOURCES = pytest.StashKey["Sources"]()


class Sources:
    """What clusters and programs of tests are forked from."""

    def __init__(self) -> None:
        self._nursery, self._programs = Nursery(), programs.Warm()
        programs.kept.append(self._programs)

    def hide(self) -> None:
        nurseries.kept.remove(self._nursery)
        programs.kept.remove(self._programs)

    def show(self) -> None:
        nurseries.kept.insert(0, self._nursery)
        programs.kept.append(self._programs)

    def close(self) -> None:
        self._nursery.close()
        programs.kept.remove(self._programs)
        self._programs.close()


def pytest_configure(config: pytest.Config) -> None:
    # A background job of a shell ignores Ctrl-C, and so would every process that a test starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" in os.environ:  # its siblings' processes are not this one's leaks
        os.environ[MARK] = uuid.uuid4().hex
    os.environ.setdefault(MARK, uuid.uuid4().hex)
    # A cluster that the developer has running is not to be joined, nor stopped.
    for name in ("RAYLITE_ADDRESS", "RAY_ADDRESS", "RAY_TMPDIR"):
        os.environ.pop(name, None)
    os.environ["RAYLITE_TMPDIR"] = config.stash[TEMP_DIR] = mkdtemp(prefix="rl-")
    watch = config.stash[WATCH] = Watch()
    logging.getLogger("asyncio").addHandler(watch.lost)


def pytest_report_header(config: pytest.Config) -> str:
    return (
        ""
        if config.option.markexpr != "not fault"
        else "without the tests marked 'fault': -m fault"
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    if SOURCES in config.stash:
        config.stash[SOURCES].close()
    shutil.rmtree(config.stash[TEMP_DIR], ignore_errors=True)
    logging.getLogger("asyncio").removeHandler(config.stash[WATCH].lost)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Put all that was imported out of the collector's sight, so that a full collection is cheap."""
    gc.collect()
    gc.freeze()
    session.config.stash[WATCH].before = Holdings.now()


def _keep_collections_cheap(watch: Watch) -> None:
    """Put away again what pytest and caches have come to hold, which is never garbage.

    Or each test's collection looks through what all tests before it have left there. Not while a
    wide fixture lives: what belongs to it must be found when it is garbage.
    """
    watch.since_frozen += 1
    if watch.since_frozen >= 20 and not watch.holders:
        gc.collect()
        gc.freeze()
        watch.since_frozen = 0


def _provide_sources(item: pytest.Item) -> Sources | None:
    """Have them open for a test that may use them; return those that are hidden from it instead.

    Tests of faults look at all processes that there are: they find none.
    """
    stash, watch = item.config.stash, item.config.stash[WATCH]
    if item.get_closest_marker("fault"):
        if SOURCES in stash:
            stash[SOURCES].close()
            del stash[SOURCES]
            watch.accept(Holdings.now())
    elif item.get_closest_marker("anew"):
        if (sources := stash.get(SOURCES, None)) is not None:
            sources.hide()
        return sources
    elif item.get_closest_marker("process") and SOURCES not in stash:
        stash[SOURCES] = Sources()
        watch.accept(Holdings.now())
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Lost exceptions are looked for until the very end of a test, its fixtures' ends included."""
    watch = item.config.stash[WATCH]
    hooks = sys.unraisablehook, threading.excepthook
    sys.unraisablehook, threading.excepthook = watch.lost.unraisable, watch.lost.in_thread
    watch.excused = False
    _keep_collections_cheap(watch)
    hidden = _provide_sources(item)
    try:
        return (yield)
    finally:
        if hidden is not None:
            hidden.show()
        sys.unraisablehook, threading.excepthook = hooks


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    watch = item.config.stash[WATCH]
    try:
        yield
    except BaseException:
        watch.accept(Holdings.now())  # the test has failed already; the next one is not to blame
        raise
    gc.collect()
    tolerated = frozenset(kind for mark in item.iter_markers("leaves") for kind in mark.args)
    leaks, now = ([], Holdings.now()) if watch.excused else settle(watch.before, tolerated)
    watch.accept(now)
    lost, watch.lost.texts = watch.lost.texts, []
    if lost:
        pytest.fail("an exception was lost:\n" + "\n\n".join(lost), pytrace=False)
    if leaks:
        pytest.fail("the test left behind:\n" + "\n".join(leaks), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Charge what a wide fixture acquires to the fixture, not to the test that came first."""
    if fixturedef.scope == "function":
        return (yield)
    watch, name = request.config.stash[WATCH], f"{fixturedef.baseid}::{fixturedef.argname}"
    unheld = Holdings.now()

    def compare() -> None:
        before = watch.holders.pop(name, None)
        if before is None:
            return
        gc.collect()
        if leaks := settle(before, frozenset())[0]:
            pytest.fail(f"fixture {name} left behind:\n" + "\n".join(leaks), pytrace=False)

    fixturedef.addfinalizer(compare)  # finalizers run last in, first out: after the fixture's own
    result = yield
    if any((held := Holdings.now()).since(unheld).values()):
        if fixturedef.argname in STEADY:
            watch.before |= held - unheld
        else:
            watch.excused = True
        watch.holders[name] = unheld
    return result


@pytest.fixture(autouse=True)
def _excuse_users_of_shared_holders(request: pytest.FixtureRequest) -> None:
    """Let a test off that uses a wide fixture which holds resources (set up earlier)."""
    watch = request.config.stash[WATCH]
    used = {name.rpartition("::")[2] for name in watch.holders} & set(request.fixturenames) - STEADY
    watch.excused = watch.excused or bool(used)


@pytest.fixture
def lost_exceptions(request: pytest.FixtureRequest) -> list[str]:
    """The exceptions lost so far in this test, for a test that provokes some; it clears the list."""
    return request.config.stash[WATCH].lost.texts
