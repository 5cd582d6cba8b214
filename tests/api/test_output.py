"""What tasks print, as it reaches the driver."""

import os
import re
import sys
from typing import Any

import pytest

import raylite as ray
from raylite.exceptions import WorkerCrashedError
from tests.api.drivers import drive

pytestmark = pytest.mark.process

Capture = pytest.CaptureFixture[str]


@ray.remote
def say(*lines: str) -> int:
    for line in lines:
        print(line)
    return os.getpid()


@ray.remote
def complain(*lines: str) -> int:
    for line in lines:
        print(line, file=sys.stderr)
    return os.getpid()


@ray.remote
def pid() -> int:
    return os.getpid()


def shown(capture: Capture, *calls: tuple[Any, ...], **options: Any) -> tuple[list[Any], str, str]:
    """Run tasks in a session of their own; return what they returned and all that was printed."""
    with ray.init(num_cpus=1, **options):
        results = ray.get([function.remote(*args) for function, *args in calls])
    out, err = capture.readouterr()
    return results, out, err


def test_what_a_task_prints_is_shown_with_its_name_and_process(capsys: Capture) -> None:
    (pid,), out, err = shown(capsys, (say, "one", "two"))
    assert (out, err) == (f"(say pid={pid}) one\n(say pid={pid}) two\n", "")


def test_what_a_task_prints_to_stderr_is_shown_there(capsys: Capture) -> None:
    (pid,), out, err = shown(capsys, (complain, "help"))
    assert (out, err) == ("", f"(complain pid={pid}) help\n")


def test_the_text_of_a_system_exit_is_shown_once(capsys: Capture) -> None:
    @ray.remote(max_retries=0)
    def leave() -> None:
        sys.exit("no more")

    with ray.init(num_cpus=1), pytest.raises(WorkerCrashedError, match="exit code 1"):
        ray.get(leave.remote())
    assert re.sub(r"\d+", "7", capsys.readouterr().err) == "(leave pid=7) no more\n"


def test_each_line_has_the_name_of_the_task_that_printed_it(capsys: Capture) -> None:
    calls = [(say, "a"), (say.options(name="special"), "b"), (say, "c")]
    (pid, *_), out, _ = shown(capsys, *calls)
    lines = out.splitlines()
    assert lines == [f"(say pid={pid}) a", f"(special pid={pid}) b", f"(say pid={pid}) c"]


def test_a_name_may_be_any_text_and_lines_still_have_it(capsys: Capture) -> None:
    names = ["a\nb", "a\0b", "\x01raylite:task:x", "x" * 10_000]
    (pid, *_), out, err = shown(
        capsys, *[(say.options(name=name), "a") for name in names], (say, "b")
    )
    prefixes = ["a?b", "a?b", "?raylite:task:x", "x" * 200 + "...", "say"]
    assert [line.partition(" pid=")[0] for line in out.splitlines()] == [f"({p}" for p in prefixes]
    assert all(f"pid={pid})" in line for line in out.splitlines())
    assert err == ""


def test_nothing_is_shown_when_the_driver_does_not_want_it(capsys: Capture) -> None:
    _, out, err = shown(capsys, (say, "one"), (complain, "two"), log_to_driver=False)
    assert (out, err) == ("", "")


def test_an_unfinished_last_line_is_shown(capsys: Capture) -> None:
    @ray.remote
    def mutter() -> None:
        sys.stdout.write("no end")
        sys.stderr.write("none either")

    _, out, err = shown(capsys, (mutter,))
    assert re.fullmatch(r"\(mutter pid=\d+\) no end\n", out)
    assert re.fullmatch(r"\(mutter pid=\d+\) none either\n", err)


def test_an_unfinished_line_is_not_mixed_with_the_next_tasks(capsys: Capture) -> None:
    @ray.remote
    def mutter() -> None:
        sys.stdout.write("no end")

    _, out, _ = shown(capsys, (mutter,), (say, "next"))
    assert re.fullmatch(r"\(mutter pid=\d+\) no end\n\(say pid=\d+\) next\n", out)


def test_the_last_words_of_a_crashing_task_are_shown(capsys: Capture) -> None:
    @ray.remote(max_retries=0)
    def crash() -> None:
        os.write(1, b"about to crash\nany moment")
        os._exit(1)

    with ray.init(num_cpus=1), pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(crash.remote())
    out, _ = capsys.readouterr()
    assert [line.partition(") ")[2] for line in out.splitlines()] == [
        "about to crash",
        "any moment",
    ]


def test_bytes_that_are_no_text_are_shown_as_well_as_can_be(capsys: Capture) -> None:
    @ray.remote
    def babble() -> None:
        os.write(1, b"\xff\xfe caf\xc3\xa9 \x00\x1b[1m\n\n\rend\n")

    _, out, _ = shown(capsys, (babble,))
    lines = [line.partition(") ")[2] for line in out.split("\n")]
    assert lines == ["\ufffd\ufffd café \x00\x1b[1m", "", "\rend", ""]


def test_a_flood_of_output_comes_through_whole_and_in_order() -> None:
    done = drive("""
    ray.init(num_cpus=1)
    @ray.remote
    def flood():
        for n in range(100_000):
            print(n, "x" * 93)
    ray.get(flood.remote())
    """)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    numbers = [int(line.split()[2]) for line in lines]
    assert numbers == list(range(100_000))


def test_one_endless_line_is_cut_and_does_no_harm() -> None:
    done = drive("""
    ray.init(num_cpus=1)
    @ray.remote
    def flood():
        sys.stdout.write("x" * 10_000_000)
    ray.get(flood.remote())
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("x") == 10_000_000


def test_a_flood_does_not_keep_the_driver_from_its_work() -> None:
    done = drive("""
    ray.init(num_cpus=2)
    @ray.remote
    def flood():
        while True:
            print("x" * 99)
    @ray.remote
    def quick(n): return n
    ref = flood.remote()
    assert [ray.get(quick.remote(n), timeout=20) for n in range(50)] == list(range(50))
    ray.shutdown()
    print("done", file=sys.stderr)
    """)
    assert (done.returncode, done.stderr) == (0, "done\n")


def test_a_task_without_output_streams_still_returns(capsys: Capture) -> None:
    @ray.remote
    def close() -> str:
        os.close(1)
        os.close(2)
        return "closed"

    with ray.init(num_cpus=1):
        assert ray.get([close.remote(), pid.remote()])[0] == "closed"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_task_that_closes_a_stream_closes_it_for_no_other(capsys: Capture, stream: str) -> None:
    @ray.remote
    def close() -> int:
        getattr(sys, stream).close()
        return os.getpid()

    @ray.remote(max_retries=0)
    def speak() -> int:
        print("après", file=getattr(sys, stream))
        return os.getpid()

    with ray.init(num_cpus=1):
        pids = ray.get([close.remote(), speak.remote(), speak.remote()])
    assert len(set(pids)) == 1
    line = f"(speak pid={pids[0]}) après\n"
    assert getattr(capsys.readouterr(), stream[3:]) == 2 * line


def test_a_task_may_remove_a_stream() -> None:
    @ray.remote(max_retries=0)
    def remove() -> int:
        sys.stdout = None
        return os.getpid()

    with ray.init(num_cpus=1):
        [before, after] = ray.get([remove.remote(), pid.options(max_retries=0).remote()])
    assert before == after


def test_a_program_without_stdout_shows_on_stderr_what_its_tasks_print() -> None:
    done = drive("""
    sys.stdout = None
    @ray.remote
    def say(): print("heard")
    with ray.init(num_cpus=1): ray.get(say.remote())
    sys.stderr = None
    with ray.init(num_cpus=1): ray.get(say.remote())
    """)
    assert re.sub(r"\d+", "1", done.stderr) == "(say pid=1) heard\n"
    assert done.returncode == 0


def test_what_the_program_has_as_its_stdout_may_raise_anything() -> None:
    done = drive("""
    class Broken:
        def __init__(self, stream): self.stream = stream
        def write(self, text):
            if "first" in text: raise KeyError(text)
            self.stream.write(text)
        def flush(self): self.stream.flush()
    @ray.remote
    def say(text): print(text)
    sys.stdout = Broken(sys.stdout)
    for text in "first", "second":
        with ray.init(num_cpus=1): ray.get(say.remote(text))
    """)
    assert (re.sub(r"\d+", "1", done.stdout), done.stderr) == ("(say pid=1) second\n", "")


def test_a_program_may_close_its_own_output() -> None:
    done = drive("""
    ray.init(num_cpus=1)
    @ray.remote
    def say(): print("nobody listens")
    sys.stdout.close()
    ray.get(say.remote())
    ray.shutdown()
    print("done", file=sys.stderr)
    """)
    assert done.stderr == "done\n"
