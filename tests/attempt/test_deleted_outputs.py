"""Somebody tidies up while a run goes on: `rm -rf outputs`, or only what is in two of its folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from run_server import RunServer
from support import TINY, wait_until

from sr_runner.tracking import is_delivered

RUN = (
    *TINY, "data=folder", "trainer.steps=150", "trainer.eval_every=75", "checkpoint.every=25", "trainer.log_every=25",
)  # fmt: skip


@pytest.mark.parametrize("whole", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_run_whose_outputs_are_deleted_says_so_and_goes_on(
    whole: bool, photographs: Path, tmp_path: Path, run_server: RunServer
) -> None:
    """Images, database and all: what is not in memory is made again, and the server gets every point."""
    said, outputs = tmp_path / "said", tmp_path / "outputs"
    run = run_server.start([*RUN, f"data.train={photographs}"], tmp_path, tmp_path / "report", said)
    wait_until(lambda: list(outputs.glob("checkpoints/*/*/step-*/manifest.json")), "a checkpoint")
    places = [outputs] if whole else [*(outputs / "runs").iterdir(), *(outputs / "checkpoints").iterdir()]
    for place in places:
        shutil.rmtree(place, ignore_errors=True)  # a checkpoint may be on its way
    if whole:
        shutil.rmtree(outputs / "cache", ignore_errors=True)
    assert run.wait() == 0, said.read_text()
    messages = said.read_text()
    assert messages.count("was deleted while this run works on it") == 1 and "Traceback" not in messages, messages
    assert "somebody else has deleted the newest checkpoint of edsr-x2-" in messages
    assert "150 of 150" in (tmp_path / "report").read_text()

    (folder,) = outputs.glob("runs/*/*")
    assert {"run.lock", "run.json", "config.yaml", "starts.jsonl", "result.json", "images.csv"} <= {
        p.name for p in folder.iterdir()
    }
    log = (folder / "run.log").read_text().splitlines()
    assert "sr_runner.attempt.announce: run " in "".join(log[:3]) and "step 150: PSNR" in "".join(log[3:])
    assert (outputs / "checkpoints" / folder.relative_to(outputs / "runs") / "step-00000150").is_dir()
    wait_until(lambda: is_delivered(folder), "the tracking server to have all, which the run waits for only so long")
    client = MlflowClient(f"sqlite:///{outputs}/mlflow.db")
    (found,) = client.search_runs(["1"])
    assert found.info.status == "FINISHED"
    points = client.get_metric_history(found.info.run_id, "train/loss")
    assert [point.step for point in points] == list(range(25, 151, 25))
