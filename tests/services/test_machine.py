"""What a machine has: what a node offers of it if it is not told."""

import os
from pathlib import Path

import pytest

from raylite._runtime.local import SessionOptions, node_config
from raylite._runtime.machine import default_gpus, default_memory


def gpus(root: Path, *models: str) -> Path:
    for number, model in enumerate(models):
        folder = root / f"0000:{number:02x}:00.0"
        folder.mkdir()
        (folder / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 1\n")
    return root


@pytest.fixture(autouse=True)
def sees_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 5090", "GeForce-RTX-5090"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000"),
        ("NVIDIA TITAN", "TITAN"),
    ],
)
def test_gpus_have_the_names_that_ray_gives_them(tmp_path: Path, model: str, kind: str) -> None:
    assert default_gpus(gpus(tmp_path, model, model)) == (2, kind)


def test_a_machine_without_the_driver_has_none(tmp_path: Path) -> None:
    assert default_gpus(tmp_path / "nothing") == (0, "")
    assert default_gpus(tmp_path) == (0, "")


@pytest.mark.parametrize(("visible", "count"), [("1", 1), ("0,1,2", 2), ("", 0), ("NoDevFiles", 0)])
def test_gpus_that_are_not_to_be_seen_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, count: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert default_gpus(gpus(tmp_path, "Tesla T4", "Tesla T4"))[0] == count


def test_more_gpus_than_may_be_seen_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert node_config(SessionOptions(num_gpus=2)).resources["GPU"] == 2
    with pytest.raises(ValueError, match=r"raylet with 3 GPU, but CUDA_VISIBLE_DEVICES contains"):
        node_config(SessionOptions(num_gpus=3))


@pytest.mark.parametrize("variable", ["RAYLITE_OVERRIDE_RESOURCES", "RAY_OVERRIDE_RESOURCES"])
def test_the_environments_resources_go_before_those_that_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    amounts = '{"CPU": 3, "memory": 7, "object_store_memory": 1e8, "oven": 2, "GPU": null}'
    monkeypatch.setenv(variable, amounts)
    offered = node_config(
        SessionOptions(num_cpus=1, num_gpus=2, memory=5, resources={"oven": 1, "pan": 4})
    )
    assert offered.num_cpus == 3
    assert offered.resources == {
        "GPU": 2,
        "memory": 7,
        "object_store_memory": 1e8,
        "oven": 2,
        "pan": 4,
    }


@pytest.mark.parametrize(
    ("amounts", "reason"),
    [
        ("CPU=3", "Expecting value"),
        ("[3]", "it is no JSON object"),
        ('{"CPU": -1}', "num_cpus cannot be negative"),
        ('{"CPU": "3"}', "'num_cpus' must be"),
        ('{"object_store_memory": 1}', "minimum allowed"),
        ('{"oven": true}', "oven must be a number, not True"),
    ],
)
def test_resources_of_the_environment_that_cannot_be_are_refused_by_the_variable(
    monkeypatch: pytest.MonkeyPatch, amounts: str, reason: str
) -> None:
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", amounts)
    with pytest.raises(ValueError, match=r"^RAY_OVERRIDE_RESOURCES=") as caught:
        node_config(SessionOptions())
    assert reason in str(caught.value)
    assert str(caught.value).endswith('. Write it like {"CPU": 4, "oven": 1}')


def test_the_environment_says_of_which_group_and_zone_a_node_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_NODE_TYPE_NAME", "small")
    monkeypatch.setenv("RAYLITE_NODE_ZONE", "z1")
    assert node_config(SessionOptions(num_gpus=0, labels={"a": "b"})).labels == {
        "ray.io/node-group": "small",
        "ray.io/availability-zone": "z1",
        "a": "b",
    }


def test_a_node_offers_the_memory_that_is_left_beside_its_objects() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < default_memory(0) <= total
    assert default_memory(2 * total) == 0
    assert node_config(SessionOptions(memory=5)).resources["memory"] == 5
    assert node_config(SessionOptions()).resources["memory"] > 0


def test_a_setting_of_rays_without_effect_is_warned_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"gcs_storage_path": "/x", "task_oom_retries": 1, "event_stats": True}
    monkeypatch.setenv("RAY_task_oom_retries", "5")
    for _ in range(2):
        assert node_config(SessionOptions(system=config)).system == {"task_oom_retries": 5}
    node_config(SessionOptions(system={**config, "support_fork": True}))
    assert [record.getMessage() for record in caplog.records] == [
        "These of Ray's settings have no effect in raylite: gcs_storage_path, event_stats",
        "These of Ray's settings have no effect in raylite: support_fork",
    ]
