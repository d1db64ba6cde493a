from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sr_runner.checkpoint import CheckpointManager, LastN, LocalStore, TrainingState
from sr_runner.errors import RequestError
from sr_runner.runs.resolve import Source, find_source

IDENTITY = "edsr-x2-0123456789ab"


def save(outputs: Path, attempt: str, *steps: int, tracker: dict[str, object] | None = None) -> None:
    """Real checkpoints of a run that has its folder."""
    (outputs / "runs" / IDENTITY / attempt).mkdir(parents=True)
    store = LocalStore(outputs / "checkpoints")
    manager = CheckpointManager(store, f"{IDENTITY}/{attempt}", keep=(LastN(9),), scratch=outputs / "scratch")
    network = nn.Conv2d(3, 3, 1)
    for step in steps:
        manager.save(TrainingState(step, network.state_dict(), {"tracker": tracker or {}}, "model: {}"), wait=True)
    manager.close()


def find(wanted: str, outputs: Path) -> Source:
    return find_source(wanted, outputs=outputs, checkpoints=outputs / "checkpoints")


def test_a_run_is_found_by_name_attempt_and_step(tmp_path: Path) -> None:
    save(tmp_path, "a0001-aaaa", 10, 20)
    save(tmp_path, "a0002-bbbb", 5)
    root = tmp_path / "checkpoints" / IDENTITY
    assert find(IDENTITY, tmp_path).location == str(root / "a0002-bbbb" / "step-00000005")
    assert find(f"{IDENTITY}/a0001-aaaa", tmp_path).location == str(root / "a0001-aaaa" / "step-00000020")
    source = find(f"{IDENTITY}/a0001-aaaa/step-10", tmp_path)
    assert source.location == str(root / "a0001-aaaa" / "step-00000010")
    assert (source.label, source.step) == (f"{IDENTITY} step 10", 10)


def test_a_run_is_found_by_its_folder_and_by_its_mlflow_id(tmp_path: Path) -> None:
    save(tmp_path, "a0001-aaaa", 10)
    folder = tmp_path / "runs" / IDENTITY / "a0001-aaaa"
    (folder / "tracker.json").write_text(json.dumps({"run_id": "f00d", "tracking_uri": "sqlite:////x.db"}))
    assert find(str(folder), tmp_path).step == find("f00d", tmp_path).step == 10
    assert find(IDENTITY, tmp_path).tracker["run_id"] == "f00d"


def test_the_checkpoint_itself_knows_its_run_in_mlflow(tmp_path: Path) -> None:
    save(tmp_path, "a0001-aaaa", 10, tracker={"run_id": "beef", "tracking_uri": "http://host"})
    assert find(IDENTITY, tmp_path).tracker["run_id"] == "beef"


def test_files_checkpoints_and_urls_stand_for_themselves(tmp_path: Path) -> None:
    save(tmp_path, "a0001-aaaa", 10)
    folder = tmp_path / "checkpoints" / IDENTITY / "a0001-aaaa" / "step-00000010"
    torch.save({}, tmp_path / "edsr_x4.pt")
    assert find(str(folder), tmp_path / "elsewhere").location == str(folder)
    assert find(str(tmp_path / "edsr_x4.pt"), tmp_path) == Source(str(tmp_path / "edsr_x4.pt"), "edsr_x4")
    assert find(str(tmp_path / "edsr_x4.pt"), tmp_path).tracker == {}
    assert find("https://host/w/edsr.pth?raw=1", tmp_path).label == "edsr"


def test_a_run_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    save(tmp_path, "a0001-aaaa", 10)
    with pytest.raises(RequestError, match=f"edsr-x9: no such file, no checkpoint, and no run.*Runs there: {IDENTITY}"):
        find("edsr-x9", tmp_path)
    with pytest.raises(RequestError, match="has checkpoints at 10 alone"):
        find(f"{IDENTITY}/a0001-aaaa/step-11", tmp_path)


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "a0001-aaaa")
    with pytest.raises(RequestError, match=r"the run .*/a0001-aaaa has no checkpoint"):
        find(IDENTITY, tmp_path)


def test_a_checkpoint_in_any_store_is_found_by_the_stores_url_and_by_its_own(tmp_path: Path) -> None:
    save(tmp_path, "a0001-aaaa", 10, 20)
    url = f"file://{tmp_path}/checkpoints"
    newest = find_source(IDENTITY, outputs=tmp_path / "elsewhere", checkpoints=url)
    assert (newest.step, newest.label) == (20, f"{IDENTITY} step 20")
    exact = find(f"{url}/{IDENTITY}/a0001-aaaa/step-00000010", tmp_path / "elsewhere")
    assert exact.step == 10
    weights = [load_file(Path(source.location) / "model.safetensors") for source in (newest, exact)]
    assert weights[0].keys() == weights[1].keys()
