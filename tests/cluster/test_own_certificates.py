"""A cluster whose nodes have certificates of their user's CA, and not of the cluster's."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from raylite._kernel.certificates import Authority, new_authority
from raylite._runtime import records
from tests.cluster.started import raylite
from tests.cluster.watching import Driver

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

SMALL = ("--num-cpus=1", "--object-store-memory=80000000")

PROGRAM = """
ray.init()

@ray.remote(resources={"far": 1})
def far(data):
    return f"far {len(data)}"

say(ray.get(far.remote(ray.put(bytes(300_000)))))
"""


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with TemporaryDirectory(prefix="rl-") as name:
        monkeypatch.setenv("RAYLITE_TMPDIR", name)
        yield Path(name)
        for place in (name, f"{name}/b"):
            raylite("stop", "--force", f"--temp-dir={place}")


def made(folder: Path, authority: Authority, name: str, lifetime: float = 1e6) -> list[str]:
    """Return the options that name a node's files."""
    paths = [f"{folder}/{name}.{end}" for end in ("crt", "key", "ca")]
    authority.issue(["127.0.0.1"], lifetime=lifetime).save(paths[0], paths[1])
    Path(paths[2]).write_text(authority.certificate)
    options = ("--tls-server-cert", "--tls-server-key", "--tls-ca-cert")
    return [f"{option}={path}" for option, path in zip(options, paths, strict=True)]


def test_nodes_drivers_and_commands_speak_with_certificates_of_ones_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = new_authority(), new_authority()
    heads = made(folder, ours, "head")
    done = raylite("start", "--head", "--port=0", *SMALL, *heads)
    assert done.returncode == 0, done.stderr
    assert "--tls-server-cert=CERT --tls-server-key=KEY --tls-ca-cert=CA" in done.stdout
    [head] = records.living()
    os.unlink(f"{folder}/head.key")  # it has a copy
    joining = (f"--address={head.cluster}", f"--token-file={head.token_file}")

    (folder / "b").mkdir()
    elsewhere = f"--temp-dir={folder}/b"  # as on another machine: nothing is found there
    for words, reason in [
        (made(folder, theirs, "stranger"), "no TLS 1.3 certificate of this cluster to trust"),
        (made(folder, ours, "old", -1), "certificate has expired"),
    ]:
        done = raylite("start", *joining, elsewhere, *SMALL, *words)
        assert (done.returncode, done.stdout) == (1, "")
        assert reason in done.stderr
        assert done.stderr.count("\n") == 1
        assert records.living(f"{folder}/b") == []
        assert not list(folder.glob("b/*/*/tls"))

    nodes = made(folder, ours, "node")
    done = raylite("start", *joining, elsewhere, *SMALL, '--resources={"far": 1}', *nodes)
    assert done.returncode == 0, done.stderr
    done = raylite("start", f"--address={head.cluster}", *SMALL)  # finds all by itself
    assert done.returncode == 0, done.stderr
    with Driver(PROGRAM) as driver:
        assert driver.hear() == "far 300000"
        assert driver.end()[0] == 0

    asking = ("--temp-dir=/nowhere", *joining)
    for option, variable in zip(nodes, ("SERVER_CERT", "SERVER_KEY", "CA_CERT"), strict=True):
        monkeypatch.setenv(f"RAY_TLS_{variable}", option.partition("=")[2])
    assert raylite("health-check", *asking).returncode == 0
    done = raylite("status", *asking)
    assert done.stdout.count(" node_") == 3, done.stderr
