"""`raylite start` and its neighbours as typed: what they refuse, and what their help says."""

import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner

from raylite._runtime.node import NodeConfig
from raylite._runtime.starting import Started
from raylite._wire import hot
from raylite._wire.messages import gcs as msg
from raylite.cli import main
from raylite.cli.labels import in_file
from raylite.cli.start import _describe as describe_start
from raylite.cli.status import describe

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("health-check", "microbenchmark", "start", "status", "stop", "token")


def refused(*words: str) -> str:
    """Run `raylite start`, which must refuse; return what it says in one line."""
    result = CliRunner().invoke(main, ["start", *words])
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit)
    return " ".join(result.output.split())


def test_an_empty_id_does_not_revoke_the_clusters_own_token() -> None:
    result = CliRunner().invoke(main, ["token", "revoke", "--id="])
    assert result.exit_code == 2
    assert "Invalid value for '--id': no token has an empty id" in result.output


def test_a_temporary_directory_that_leads_nowhere_is_said_to() -> None:
    with TemporaryDirectory(prefix="rl-") as folder:
        os.symlink(f"{folder}/nowhere", f"{folder}/l")
        told = refused("--head", "--port=0", f"--temp-dir={folder}/l")
        assert f"No such file or directory ({folder}/nowhere)" in told


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_begins_with_its_line_in_the_groups(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert f"raylite {command} [OPTIONS]" in result.output or "Usage:" in result.output
    assert command in CliRunner().invoke(main, ["--help"]).output


def test_the_groups_help_imports_no_command_and_little_else() -> None:
    script = (
        "import sys; from click.testing import CliRunner; from raylite.cli.group import main\n"
        "assert 'stop' in CliRunner().invoke(main, ['--help']).output\n"
        "heavy = {'asyncio', 'uvloop', 'grpclib', 'msgspec', 'raylite._runtime'}\n"
        "print(sorted((heavy | {'raylite.cli.start', 'raylite.cli.stop'}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_node_is_a_head_or_joins_one() -> None:
    assert "either --head or --address" in refused()
    assert "either --head or --address" in refused("--head", "--address=127.0.0.1:6379")


@pytest.mark.parametrize("words", [["--port=7000"], ["--storage=x.db"], ["--system-config={}"]])
def test_what_heads_decide_is_refused_of_others(words: list[str]) -> None:
    assert "is for heads" in refused("--address=127.0.0.1:6379", *words)


@pytest.mark.parametrize("port", ["1", "1023", "65536", "-1", "http"])
@pytest.mark.parametrize("option", ["--port", "--node-manager-port", "--min-worker-port"])
def test_a_port_is_0_or_one_that_a_program_may_have(option: str, port: str) -> None:
    assert f"{port!r} is not possible: a port is 0" in refused("--head", f"{option}={port}")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--port=7000", "--node-manager-port=7000"], "both 7000"),
        (["--port=7000", "--min-worker-port=6500", "--max-worker-port=7500"], "workers' ports"),
        (["--port=7000", "--worker-port-list=7005,7000"], "workers' ports, 7000, 7005: choose"),
        (["--port=7000", "--worker-port-list=7000"], "workers' ports, 7000: choose"),
        (["--port=11000", "--max-worker-port=12000"], "workers' ports, 10002 to 12000: choose"),
        (["--port=19999", "--min-worker-port=15000"], "workers' ports, 15000 to 19999: choose"),
        (["--port=65535", "--min-worker-port=20000"], "workers' ports, 20000 to 65535: choose"),
        (["--max-worker-port=9000"], "give the first port, which is 10002 otherwise"),
        (["--min-worker-port=3000", "--max-worker-port=2000"], "exchange them"),
        (["--worker-port-list=3000", "--max-worker-port=4000"], "exclude one another"),
        (["--worker-port-list=3000,x"], "'x' is not possible"),
    ],
    ids=str,
)
def test_ports_that_clash_are_refused_by_name(words: list[str], reason: str) -> None:
    said = refused("--head", *words)
    assert reason in said
    assert "port" in said


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--resources={a: 1}"], "--resources is not JSON"),
        (["--resources=[1]"], "--resources must be a JSON object"),
        (['--resources={"CPU": 1}'], "num_cpus"),
        (['--resources={"a": -1}'], "cannot be negative"),
        (
            ['--resources={"memory": 1}'],
            "'memory' cannot be among the resources: say it with --mem",
        ),
        (['--resources={"node:__internal_head__": 1}'], "the head's own, so choose another name"),
        (["--num-cpus=-1"], "cannot be negative"),
        (["--num-cpus=many"], "--num-cpus"),
        (['--resources={"a": 1.23456789}'], "resource a cannot go beyond 0.0001"),
        (['--resources={"a": true}'], "resource a must be a number, not True"),
        (['--resources={"a": 1e300}'], "resource a is too large"),
        (['--resources={"": 1}'], "must be printable and not blank, not ''"),
        (['--resources={"a\\nb": 1}'], "must be printable and not blank, not 'a\\nb'"),
        (["--num-cpus=1.00001"], "resource num_cpus cannot go beyond 0.0001"),
        (["--num-cpus=1e300"], "resource num_cpus is too large"),
        (["--num-gpus=nan"], "resource num_gpus must be a finite number"),
        (["--memory=1e300"], "resource memory is too large"),
        (["--token-file=x"], "--token-file is to join a cluster"),
        (["--labels=zone"], "'zone' has no value"),
        (["--labels==a"], "'=a' has no key"),
        (["--bind=localhost"], "--bind=localhost is no IP address"),
        (["--node-ip-address=localhost"], "--node-ip-address=localhost is no IP address"),
        (["--storage=/none/x.db"], "the storage /none/x.db cannot be made: /none is no directory"),
        (["--labels=ray.io/zone=a"], "ray.io/zone cannot be set"),
        (["--labels=zone=a b"], "Invalid label value `a b` of zone"),
        (["--object-store-memory=0"], "--object-store-memory"),
        (['--system-config={"a": 1}'], "no setting 'a' in the system config. There are infeasible"),
        (["--system-config=no"], "--system-config is not JSON"),
        (
            ['--system-config={"task_oom_retries": "x"}'],
            "task_oom_retries of the system config must",
        ),
        (["--temp-dir=here"], "directory 'here' is a relative path: give the whole path"),
        (["--temp-dir=/tmp/\udcff"], "'/tmp/\\udcff' is not UTF-8 (byte 0xff): choose another"),
        (["--temp-dir=/etc/hostname"], "in the temporary directory /etc/hostname: it is a file"),
        (["--temp-dir=/proc/no"], "in the temporary directory /proc/no: No such file or directory"),
    ],
    ids=str,
)
def test_what_a_node_cannot_offer_is_refused_before_anything_starts(
    words: list[str], reason: str
) -> None:
    assert reason in refused("--head", "--port=0", *words)


def started(ip: str, cpus: float, *, head: bool = True) -> Started:
    """A node as `start_node` returns it, that was never started."""
    config = NodeConfig(cpus, 0, ip=ip, cluster=f"{ip}:6379", token_file="/x/token", head=head)
    node: Any = SimpleNamespace(config=config)
    row = msg.Node(node_id=b"\1" * 28, ip=ip, head=head, resources={"CPU": cpus} if cpus else {})
    return Started(node, row)


@pytest.mark.parametrize("ip", ["127.0.0.1", "127.0.0.2", "::1"])
def test_who_started_a_head_for_this_machine_alone_is_told_so(ip: str) -> None:
    told = describe_start(started(ip, 1), "")
    assert f"raylite start --address={ip}:6379\n" in told
    assert f"Only this machine reaches {ip}:6379" in told
    assert "--token-file" not in told


def test_the_commands_that_a_start_names_work_where_it_was_told_to_make_its_session() -> None:
    told = describe_start(started("127.0.0.1", 0), "/my sessions")
    assert "with no CPU." in told
    assert "raylite start --address=127.0.0.1:6379 --temp-dir='/my sessions'\n" in told
    assert "ray.init(_temp_dir='/my sessions')\n" in told
    assert "raylite status --temp-dir='/my sessions'\n" in told
    assert "raylite stop --temp-dir='/my sessions'\n" in told
    elsewhere = describe_start(started("10.0.0.7", 2), "")
    assert "with 2 CPU." in elsewhere
    assert "raylite start --address=10.0.0.7:6379 --token-file=FILE\n" in elsewhere
    assert "ray.init()\n" in elsewhere
    assert "Only this machine" not in elsewhere


def test_a_full_disk_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs("/tmp")

    def full(_: str) -> SimpleNamespace:
        return SimpleNamespace(
            f_frsize=real.f_frsize, f_blocks=real.f_blocks, f_bfree=1, f_bavail=1
        )

    monkeypatch.setattr(os, "statvfs", full)
    with TemporaryDirectory() as place:
        said = refused("--head", "--port=0", f"--temp-dir={place}")
        assert f"temporary directory {place} is full ({real.f_frsize} bytes are free): make" in said
        assert list(Path(place, "raylite").iterdir()) == []


def test_a_node_that_is_to_join_what_runs_here_is_refused_when_nothing_does() -> None:
    assert "no cluster runs on this machine" in refused("--address=auto")


@pytest.mark.parametrize("command", ["status", "health-check"])
def test_without_a_cluster_a_question_says_how_to_have_one(command: str) -> None:
    result = CliRunner().invoke(main, [command])
    assert result.exit_code == 1
    assert result.output.startswith("Error: no cluster runs on this machine")
    assert "raylite start --head" in result.output


def test_stop_without_a_cluster_is_no_error() -> None:
    result = CliRunner().invoke(main, ["stop"])
    assert (result.exit_code, result.output) == (
        0,
        "No node of yours was running on this machine.\n",
    )


def test_status_shows_nodes_failures_and_what_is_in_use() -> None:
    gib = 1024.0**3
    rows = [
        msg.Node(
            node_id=b"\1" * 28, hostname="one", ip="10.0.0.1", alive=True, head=True,
            resources={"CPU": 4, "memory": 2 * gib, "node:10.0.0.1": 1},
            available={"CPU": 1.5, "memory": gib},
        ),
        msg.Node(node_id=b"\2" * 28, hostname="two", ip="10.0.0.2", alive=True,
                 resources={"CPU": 2}, available={"CPU": 2}),
        msg.Node(node_id=b"\3" * 28, ip="10.0.0.3", ended_at=60.0, death_reason="it was silent"),
    ]  # fmt: skip
    demand = hot.Demand((({"CPU": 10_000}, 5),), (({"GPU": 40_000, "CPU": 5_000}, 2),))
    lines = list(describe(rows, demand, datetime(2026, 1, 2, 3, 4, 5)))
    assert lines[0] == "======== Cluster status: 2026-01-02 03:04:05 ========"
    assert " 1 node_010101010101 (head, one, 10.0.0.1)" in lines
    assert " 1 node_020202020202 (two, 10.0.0.2)" in lines
    assert any(line.startswith(" node_030303030303 (10.0.0.3) at ") for line in lines)
    assert " 2.5/6.0 CPU" in lines
    assert " 1.00GiB/2.00GiB memory" in lines
    assert not any("node:" in line for line in lines)
    assert lines[lines.index("Pending Demands:") + 1 :] == [
        " {'CPU': 1.0}: 5+ pending tasks/actors",
        " {'GPU': 4.0, 'CPU': 0.5}: 2+ pending tasks/actors, infeasible: no node can run them",
    ]


def test_status_says_that_nothing_waits() -> None:
    lines = list(describe([], hot.Demand((), ()), datetime(2026, 1, 2, 3, 4, 5)))
    assert lines[-2:] == ["Pending Demands:", " (no resource demands)"]


# Those of Ray 2.60 that are not raylite's, too.
RAYS = {
    "start": {
        "--autoscaling-config", "--cgroup-path", "--dashboard-agent-grpc-port", "--dashboard-host",
        "--dashboard-agent-listen-port", "--dashboard-port", "--disable-usage-stats",
        "--enable-object-reconstruction", "--enable-resource-isolation", "--include-dashboard",
        "--include-log-monitor", "--labels-file", "--log-color", "--log-style",
        "--metrics-export-port", "--no-monitor", "--no-redirect-output", "--node-name",
        "--object-manager-port", "--object-spilling-directory", "--plasma-directory",
        "--proxy-server-url", "--ray-client-server-port", "--ray-debugger-external",
        "--redis-password", "--redis-shard-ports", "--redis-username", "--runtime-env-agent-port",
        "--system-reserved-cpu", "--system-reserved-memory", "--tracing-startup-hook", "--verbose",
    },
    "stop": {"--force", "--grace-period", "--log-color", "--log-style", "--verbose"},
    "status": {"--address", "--verbose"},
}  # fmt: skip


@pytest.mark.parametrize("command", RAYS)
def test_rays_options_are_taken(command: str) -> None:
    known = main.get_command(click.Context(main), command)
    assert known is not None
    assert {option for each in known.params for option in each.opts} >= RAYS[command]


def test_labels_of_a_file_are_those_of_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "labels.yaml"
    file.write_text(
        "---\n# ours\nzone: a  # the first\n\nexample.com/rack: '7'\n\"disk\": ssd\nempty:\n"
    )
    assert in_file(str(file)) == {
        "zone": "a", "example.com/rack": "7", "disk": "ssd", "empty": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("zone: a\n- b", "line 2, '- b', is no label; write key: value"),
        ("zone:\n  inner: a", "line 2, ' inner: a', is no label; write key: value"),
        ("zone: a b", "Invalid label value `a b` of zone"),
        ("zone: '!a'", "Invalid label value `!a` of zone"),
    ],
)
def test_a_file_that_holds_no_labels_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "labels.yaml"
    file.write_text(text)
    assert reason in refused("--head", "--port=0", f"--labels-file={file}")


def test_a_file_of_labels_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    said = refused("--head", "--port=0", f"--labels-file={tmp_path}/none")
    assert "cannot be read: No such file or directory; name a file of lines like zone: a" in said
