"""Resume, extend and fork by the name of a run, as people do it."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from run_server import RunServer
from support import TINY, SrRun

from sr_runner.runs import folder as files


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, image_cache: Path, run_server: RunServer) -> Path:
    """Outputs of a finished run of six steps under a schedule that is stretched over them."""
    folder = tmp_path_factory.mktemp("finished")
    asked = (*TINY, "scheduler=cosine", "tracker=none", f"data.cache_dir={image_cache}")
    assert run_server.start(asked, folder, folder / "report", folder / "said").wait() == 0
    return folder / "outputs"


@pytest.fixture
def trained(finished: Path, tmp_path: Path) -> str:
    """That run, in the outputs of this test."""
    shutil.copytree(finished, tmp_path / "outputs")
    return identities(tmp_path)[0]


def identities(folder: Path) -> list[str]:
    """Oldest first."""
    return [path.name for path in sorted((folder / "outputs" / "runs").iterdir(), key=lambda p: p.stat().st_ctime_ns)]


def attempts(folder: Path) -> list[Path]:
    return sorted((folder / "outputs" / "runs").glob("*/*"))


def test_a_stretched_schedule_is_extended_as_a_fork_that_says_what_becomes_of_the_rate(
    trained: str, sr_run: SrRun, tmp_path: Path
) -> None:
    longer = (f"trainer.resume={trained}", "trainer.steps=12")
    done = sr_run(*longer)
    assert "scheduler.total_steps: 12 here, 6 there" in done.stderr
    assert "starts at step 6 of 12" in done.stderr and "learning rate: was 5e-07 at step 6, is 0.0" in done.stderr
    assert "will be 5e-07 at step 12" in done.stderr and "Step 12 of 12" in done.stdout
    # The same request goes on with the fork, and a run from the start is not taken for it.
    again = sr_run(*longer)
    assert "this fork was begun before" in again.stderr and "complete already" in again.stderr
    assert len(attempts(tmp_path)) == 2
    fork = next(name for name in identities(tmp_path) if name != trained)
    assert "complete already" in sr_run(f"trainer.resume={fork}").stderr
    fresh = sr_run(*TINY, "scheduler=cosine", "tracker=none", "trainer.steps=12", "trainer.resume=true")
    assert "nothing to resume" in fresh.stderr and len(attempts(tmp_path)) == 3
    assert f"trainer.resume={trained} trainer.steps=12 makes that run longer" in fresh.stderr


def test_a_schedule_that_is_not_stretched_is_extended_as_the_same_run(sr_run: SrRun, tmp_path: Path) -> None:
    sr_run(*TINY, "scheduler=constant", "tracker=none")
    (identity,) = identities(tmp_path)
    done = sr_run(f"trainer.resume={identity}", "trainer.steps=9")
    assert "resumed at step 6 of 9" in done.stderr and "Step 9 of 9" in done.stdout
    (attempt,) = attempts(tmp_path)
    fresh = sr_run(*TINY, "scheduler=constant", "tracker=none", "trainer.steps=12")
    said = f"{identity}/{attempt.name} has the same config and is at step 9 of 12: trainer.resume=true goes on with it"
    assert said in fresh.stderr and "Step 12 of 12" in fresh.stdout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.weight_decay=0.1"], "trainer.steps=6: .* has nothing to train; expected more than 6"),
        (
            ["model.num_filters=12", "trainer.steps=9"],
            r"its model has other tensors .*: 8 x 3 x 3 x 3 there, 12 x 3 x 3 x 3 here\); expected the same network",
        ),
    ],
    ids=["no steps", "another network"],
)
def test_a_fork_that_cannot_be_is_refused_and_leaves_nothing(
    overrides: list[str], message: str, trained: str, sr_run: SrRun, tmp_path: Path
) -> None:
    refused = sr_run(f"trainer.resume={trained}", "trainer.allow_changes=true", *overrides, code=2)
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("sr-run: ")
    assert re.search(message, last), last
    assert identities(tmp_path) == [trained]


def test_a_stretched_schedule_that_would_end_earlier_is_a_slip_and_no_fork(trained: str, sr_run: SrRun) -> None:
    refused = sr_run(f"trainer.resume={trained}", "trainer.steps=4", code=2).stderr.splitlines()[-1]
    assert refused == f"sr-run: trainer.steps=4: {trained} is at step 6; expected at least that"


def test_a_fork_under_another_kind_of_optimizer_starts_that_anew(trained: str, sr_run: SrRun) -> None:
    fork = (f"trainer.resume={trained}", "trainer.allow_changes=true", "optimizer=sgd", "trainer.steps=8")
    assert "another kind of optimizer are left: SGD starts anew" in sr_run(*fork).stderr


def test_every_start_is_recorded_with_its_command_and_versions(sr_run: SrRun, tmp_path: Path) -> None:
    first = (*TINY, "scheduler=constant", "+model.api_key=pa55word")
    refused = sr_run(*first, code=2)
    assert "pa55word" not in refused.stderr
    sr_run(*first[:-1])
    (attempt,) = attempts(tmp_path)
    sr_run(f"trainer.resume={attempt.parent.name}", "trainer.steps=9", "seed=0")
    starts = files.starts(attempt)
    assert files.ended(attempt)["end"] == "finished"
    commands = [shlex.split(start["command"]) for start in starts]
    assert commands[0][: len(first)] == ["sr-run", *first[:-1]]
    assert commands[1][:4] == ["sr-run", f"trainer.resume={attempt.parent.name}", "trainer.steps=9", "seed=0"]
    assert [start["step"] for start in starts] == [0, 6] and {start["folder"] for start in starts} == {str(tmp_path)}
    assert all(start[key] for start in starts for key in ("time", "host", "sr_run", "python", "torch", "mlflow"))
    client = MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    tags = run.data.tags
    assert tags["sr_run.command"] == starts[1]["command"] and tags["sr_run.folder"] == str(tmp_path)
    assert starts[0]["command"] in tags["sr_run.start.1"] and starts[1]["command"] in tags["sr_run.start.2"]
    assert tags["sr_run.torch"] == starts[0]["torch"] and tags["sr_run.python"] == starts[0]["python"]
    assert "starts.jsonl" in {each.path for each in client.list_artifacts(run.info.run_id)}


def test_the_beginning_of_a_run_says_what_is_trained(sr_run: SrRun, tmp_path: Path) -> None:
    said = sr_run(
        *TINY, "scheduler=cosine", "trainer.steps=60", "trainer.eval_every=60", "trainer.precision=fp32",
        "trainer.ema_decay=0.99", "trainer.accumulate=2", "checkpoint.every=60",
        "trainer.parameters={tail: {lr: 1e-5}, head: {freeze: true}}", "tracker=none",
    ).stderr  # fmt: skip
    for expected in (
        r"network +EDSR, [\d,]+ parameters",
        r"device +cpu, \d+ threads, fp32\n",
        r"step +\d+ samples of \d+ x \d+ HR pixels \(2 batches of \d+\)",
        r"optimizer +Adam lr 0.001, betas \(0.9, 0.999\), weight_decay 0.0, lr 0.001 on 8 of 10 tensors, "
        r"lr 1e-05 on 2 of 10 tensors, 2 of 12 tensors frozen",
        r"schedule +OneCycleLR: rate 5e-05 at first, at most 0.001, 5e-07 at step 60",
        r"loss +L1Loss\n",
        r"EMA +0.99: the averaged weights are evaluated and exported",
        r"trainer.ema_decay=0.99 averages over more than trainer.steps=60: at the end, 55 % of the average are the "
        r"initial weights; 0.9 fits so few steps",
        r"held out +chelsea",
        rf"writes +{tmp_path}/outputs/runs/\S+, {tmp_path}/outputs/checkpoints",
        r"step 60 of 60: loss \d",
    ):
        assert re.search(expected, said), f"{expected}\n{said}"
