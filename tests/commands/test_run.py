"""sr-run as people use it: train, look, extend, resume, sweep, use from Python."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from run_server import Run, RunServer
from support import TINY, SrRun, wait_until

from sr_runner.commands.runs import main as sr_runs


def client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'outputs' / 'mlflow.db'}")


def runs(folder: Path) -> list:
    found = client(folder)
    return found.search_runs([experiment.experiment_id for experiment in found.search_experiments()])


def final_bytes(outputs: Path) -> list[bytes]:
    (attempt,) = (outputs / "checkpoints").glob("*/*")
    newest = max(attempt.glob("step-*"))
    return [(newest / name).read_bytes() for name in ("model.safetensors", "training.safetensors")]


@dataclass
class Finished:
    folder: Path
    """Where `sr-run` was started."""
    stdout: str
    stderr: str


def finished(run_server: RunServer, folder: Path, *arguments: str) -> Finished:
    for name in ("said", "errors"):
        (folder / name).unlink(missing_ok=True)  # those of an earlier start
    status = started(run_server, folder, *arguments).wait()
    said, errors = (folder / "said").read_text(), (folder / "errors").read_text()
    assert status == 0, errors
    return Finished(folder, said, errors)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, image_cache: Path, run_server: RunServer) -> Finished:
    """The run of `TINY`, in MLflow. What a test does to it leaves it one run, finished, with the same bytes."""
    return finished(run_server, tmp_path_factory.mktemp("tiny"), *TINY, f"data.cache_dir={image_cache}")


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory, image_cache: Path, run_server: RunServer) -> Path:
    """Outputs of the run of `TINY` without a tracker, to be copied."""
    folder = tmp_path_factory.mktemp("untracked")
    return finished(run_server, folder, *TINY, "tracker=none", f"data.cache_dir={image_cache}").folder / "outputs"


@pytest.fixture
def trained(untracked: Path, tmp_path: Path) -> Path:
    """A copy of them in `tmp_path`."""
    return Path(shutil.copytree(untracked, tmp_path / "outputs"))


def test_with_json_the_outcome_is_one_document_instead_of_the_table(sr_run: SrRun) -> None:
    short = (*TINY, "trainer.steps=2", "trainer.eval_every=2", "tracker=none", "--json")
    outcome = json.loads(sr_run(*short).stdout)
    assert outcome["step"] == 2 and Path(outcome["checkpoint"]).is_dir() and outcome["metrics"]["valid/psnr"] > 0
    jobs = json.loads(sr_run(*short, "-m", "seed=0,1").stdout)
    assert {(job["name"], job["status"], job["values"]["seed"]) for job in jobs} == {
        ("seed=0", "finished", "0"), ("seed=1", "finished", "1"),
    }  # fmt: skip
    jobs.sort(key=lambda job: job["number"])
    assert len({round(job["psnr"] - job["gain"], 6) for job in jobs}) == 1  # that of bicubic, on the same images
    assert jobs[0]["run"].startswith(f"{outcome['identity']}/") and jobs[0]["psnr"] == outcome["metrics"]["final/psnr"]


def test_a_run_leaves_checkpoint_record_pictures_and_says_where(tiny: Finished) -> None:
    outputs = tiny.folder / "outputs"
    (folder,) = (outputs / "runs").glob("edsr-x2-*/a0001-*")
    assert "chelsea" in tiny.stdout and "bicubic" in tiny.stdout
    assert f"mlflow ui --backend-store-uri sqlite:///{outputs}/mlflow.db" in tiny.stdout
    (checkpoint,) = (outputs / "checkpoints").glob("*/*/step-00000006")
    assert str(checkpoint) in tiny.stdout
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "config.yaml", "manifest.json", "model.safetensors", "state.json", "training.safetensors",
    ]  # fmt: skip

    (run,) = runs(tiny.folder)
    assert run.info.status == "FINISHED"
    assert (run.info.run_name, run.data.params["model"]) == (
        "edsr x2 num_res_blocks=1 num_filters=8 batch_size=2 patch_size=32 precision=fp32",
        "edsr",
    )
    assert run.data.params["optimizer.lr"] == "0.001" and run.data.params["model.num_filters"] == "8"
    assert run.data.params["scale"] == "2" and not any("${" in value for value in run.data.params.values())
    assert run.data.tags["sr_run.status"] == "finished" and run.data.tags["sr_run.identity"] == folder.parent.name
    assert run.inputs.dataset_inputs[0].dataset.name == "sample"
    for key in ("train/loss", "train/lr", "train/grad_norm", "train/images_per_second", "train/data_wait"):
        assert [point.step for point in client(tiny.folder).get_metric_history(run.info.run_id, key)] == [2, 4, 6], key
    for key in ("valid/psnr", "valid/ssim", "valid/psnr_y", "valid/ssim_y", "checkpoint/stall_seconds"):
        assert [point.step for point in client(tiny.folder).get_metric_history(run.info.run_id, key)] == [3, 6], key
    names = {item.path for item in client(tiny.folder).list_artifacts(run.info.run_id)}
    assert {"config.yaml", "starts.jsonl", "run.log", "images.csv", "images"} <= names
    assert len(list((folder / "pictures").glob("*.png"))) == 2


@pytest.mark.slow
def test_what_was_not_committed_at_each_start_is_a_masked_patch_among_the_artifacts(
    sr_run: SrRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    git = ("git", "-C", str(tmp_path), "-c", "user.name=me", "-c", "user.email=me@here")
    notes, long, secrets = (tmp_path / name for name in ("notes.py", "long.txt", "db.yaml"))
    for path in (notes, long, secrets):
        path.write_text("")
    for words in (("init", "-q"), ("add", "."), ("commit", "-qm", "notes")):
        subprocess.run([*git, *words], check=True)
    run = (*TINY, "scheduler=constant")
    notes.write_text("first = 1\ntoken = 'hUnTeR2-0815'\n")
    long.write_text("# a long line\n" * 20_000)
    secrets.write_text("db:\n  password: hUnTeR2-22xx\ntoken: hUnTeR2-abcdef\nsecret: |\n  hUnTeR2\n\n  more\nend: 1\n")
    sr_run(*run)
    notes.write_text("second = 2\n")
    sr_run(*run, "trainer.steps=8", "trainer.resume=true")

    (attempt,) = (tmp_path / "outputs" / "runs").glob("*/*")
    (recorded,) = runs(tmp_path)
    sent = [
        Path(client(tmp_path).download_artifacts(recorded.info.run_id, f"start-{start}-folder.diff")).read_text()
        for start in (1, 2)
    ]
    assert sent == [(attempt / f"start-{start}-folder.diff").read_text() for start in (1, 2)]
    assert "+first = 1" in sent[0] and "hUnTeR2" not in sent[0] and "+second = 2" in sent[1]
    assert sent[0].startswith(f"# not committed in {tmp_path}\n# left out: long.txt (") and "\n# masked: " in sent[0]
    monkeypatch.chdir(tmp_path)
    assert sr_runs(["reproduce", attempt.parent.name]) == 0
    said = caplog.text
    assert f"git -C {tmp_path} apply {attempt}/start-2-folder.diff" in said.replace("'", "")
    assert "of these changes, left out: long.txt (" in said
    subprocess.run([*git, "checkout", "-q", "."], check=True)
    subprocess.run(["git", "-C", str(tmp_path), "apply", str(attempt / "start-1-folder.diff")], check=True, cwd="/")
    assert notes.read_text() == "first = 1\ntoken = *****\n" and long.read_text() == ""
    assert secrets.read_text().startswith("db:\n  password: *****\ntoken: *****\nsecret: *****\n*****\n")


def test_a_complete_run_is_reported_again_and_nothing_is_trained(
    tiny: Finished, run_server: RunServer, image_cache: Path
) -> None:
    outputs = tiny.folder / "outputs"
    before = final_bytes(outputs)
    resume = (run_server, tiny.folder, *TINY, "trainer.resume=true", f"data.cache_dir={image_cache}")
    again = finished(*resume)
    assert "complete already" in again.stderr and final_bytes(outputs) == before
    table = [line for line in tiny.stdout.splitlines() if "dB" in line]
    assert table and table == [line for line in again.stdout.splitlines() if "dB" in line]
    assert len(runs(tiny.folder)) == 1 and runs(tiny.folder)[0].info.status == "FINISHED"
    (result,) = (outputs / "runs").glob("*/*/result.json")
    result.unlink()
    result.mkdir()
    assert "its result could not be written" in finished(*resume).stderr


def test_a_finished_run_is_extended_to_the_same_bytes_as_one_that_was_long_from_the_start(
    sr_run: SrRun, tmp_path: Path
) -> None:
    constant = (*TINY, "scheduler=multistep", "scheduler.milestones=[4]", "tracker=none")
    sr_run(*constant, "outputs=extended")
    sr_run(*constant, "outputs=extended", "trainer.resume=true", "trainer.steps=9")
    sr_run(*constant, "outputs=long", "trainer.steps=9")
    assert final_bytes(tmp_path / "extended") == final_bytes(tmp_path / "long")


def test_resume_false_starts_a_fresh_attempt_and_leaves_the_older_one_alone(
    sr_run: SrRun, trained: Path, tmp_path: Path
) -> None:
    (first,) = (trained / "checkpoints").glob("*/*")
    before = {path: path.read_bytes() for path in first.rglob("*.safetensors")}
    sr_run(*TINY)
    attempts = sorted((tmp_path / "outputs" / "checkpoints").glob("*/*"))
    assert len(attempts) == 2 and len(runs(tmp_path)) == 1
    assert all(path.read_bytes() == content for path, content in before.items())
    newest = {path.name: path.read_bytes() for path in max(attempts).rglob("step-00000006/*.safetensors")}
    assert newest == {path.name: content for path, content in before.items() if "step-00000006" in str(path)}


def test_resuming_one_run_with_another_config_is_refused_unless_asked_for_as_a_fork(
    sr_run: SrRun, trained: Path, tmp_path: Path
) -> None:
    (identity,) = (path.name for path in (trained / "runs").iterdir())
    other = (*TINY, f"trainer.resume={identity}", "optimizer.weight_decay=0.1", "trainer.steps=9")
    refused = sr_run(*other, "tracker=none", code=2)
    assert "optimizer.weight_decay: 0.1 here, 0.0 there" in refused.stderr
    sr_run(*other, "tracker=mlflow", "trainer.allow_changes=true")
    assert len(list((trained / "runs").iterdir())) == 2
    assert runs(tmp_path)[0].data.tags["sr_run.forked_from"].startswith(identity)


LONG = (*TINY, "trainer.steps=300", "trainer.eval_every=300", "checkpoint.every=30", "tracker=none")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, image_cache: Path, run_server: RunServer) -> Path:
    """Outputs of the run of `LONG` that nobody touched."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert started(run_server, folder, *LONG, f"data.cache_dir={image_cache}").wait() == 0
    return folder / "outputs"


@pytest.mark.parametrize(
    "signum",
    [signal.SIGINT, *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGTERM, signal.SIGUSR1))],
)
def test_a_stopping_signal_saves_and_exits_with_128_plus_n_and_the_rest_is_the_same(
    signum: signal.Signals, sr_run: SrRun, run_server: RunServer, unbroken: Path, tmp_path: Path, image_cache: Path
) -> None:
    arguments = LONG
    run = started(run_server, tmp_path, *arguments, f"data.cache_dir={image_cache}")
    wait_for_checkpoint(tmp_path / "outputs")
    time.sleep(0.1)
    os.kill(run.pid, signum)
    assert run.wait(60) == 128 + signum
    (attempt,) = (tmp_path / "outputs" / "checkpoints").glob("*/*")
    stopped_at = int(max(attempt.glob("step-*")).name.removeprefix("step-"))
    assert stopped_at < 300
    (command,) = re.findall(rf"saved step {stopped_at}; go on with: sr-run (.*)", (tmp_path / "errors").read_text())
    sr_run(*shlex.split(command))
    assert final_bytes(tmp_path / "outputs") == final_bytes(unbroken)


def test_a_signal_before_the_first_step_is_answered_with_how_to_go_on(
    sr_run: SrRun, run_server: RunServer, tmp_path: Path, image_cache: Path
) -> None:
    run = started(run_server, tmp_path, *TINY, "tracker=none", f"data.cache_dir={image_cache}")
    wait_until(lambda: any("network" in errors.read_text() for errors in tmp_path.glob("errors")))
    os.kill(run.pid, signal.SIGINT)
    assert run.wait(60) == 130
    (command,) = re.findall(
        r"saved (?:nothing yet|step \d); go on with: sr-run (.*)", (tmp_path / "errors").read_text()
    )
    assert "Step 6 of 6" in sr_run(*shlex.split(command)).stdout
    assert len(list(tmp_path.glob("outputs/runs/*/*"))) == 1


def test_a_run_without_checkpoints_is_stopped_by_a_signal_as_well_and_promises_nothing(
    run_server: RunServer, tmp_path: Path, image_cache: Path
) -> None:
    endless = (*TINY, "trainer.steps=100000", "checkpoint=none", "tracker=none", f"data.cache_dir={image_cache}")
    run = started(run_server, tmp_path, *endless)
    wait_until(lambda: any("step 3: PSNR" in log.read_text() for log in tmp_path.glob("outputs/runs/*/*/run.log")))
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait(60) == 143
    said = (tmp_path / "errors").read_text()
    assert "stopping on signal 15" in said and "saved nothing: checkpoint=none" in said
    assert "go on with" not in said and "Traceback" not in said


def started(run_server: RunServer, folder: Path, *arguments: str) -> Run:
    return run_server.start(arguments, folder, folder / "said", folder / "errors")


def wait_for_checkpoint(outputs: Path) -> None:
    """Until the first is there: training is under way."""
    wait_until(lambda: list(outputs.glob("checkpoints/*/*/step-*/manifest.json")), "a checkpoint")


def test_a_signal_in_the_middle_of_an_evaluation_is_heeded_and_the_evaluation_made_up_for(
    sr_run: SrRun, run_server: RunServer, tmp_path: Path, image_cache: Path
) -> None:
    """The network is slow on whole images as long as a file says so, so that the evaluation can be hit."""
    (tmp_path / "slow").touch()
    (tmp_path / "slow_net.py").write_text(
        "import pathlib, time, torch\n"
        "class Slow(torch.nn.Module):\n"
        "    def __init__(self, scale):\n"
        "        super().__init__()\n"
        "        self.conv = torch.nn.Conv2d(3, 3 * scale ** 2, 3, padding=1)\n"
        "        self.scale = scale\n"
        "    def forward(self, x):\n"
        "        time.sleep(1.0 if pathlib.Path('slow').exists() and not self.training else 0)\n"
        "        return torch.nn.functional.pixel_shuffle(self.conv(x), self.scale)\n"
    )
    rest = [argument for argument in TINY if not argument.startswith(("model.", "data.valid_images"))]
    arguments = (*rest, "model._target_=slow_net.Slow", "trainer.pictures=0")
    run = started(run_server, tmp_path, *arguments, f"data.cache_dir={image_cache}")
    journals = tmp_path.glob
    wait_until(lambda: any('"step": 2' in path.read_text() for path in journals("outputs/runs/*/*/journal.jsonl")))
    time.sleep(0.4)  # step 3 is done and its evaluation (two images, a second each) is under way
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait(30) == 143
    (tmp_path / "slow").unlink()
    (state,) = (tmp_path / "outputs" / "checkpoints").glob("*/*/step-00000003/state.json")
    assert json.loads(state.read_text())["evaluated_at"] == 0
    sr_run(*arguments, "trainer.resume=true")
    sr_run(*arguments, "outputs=unbroken", "tracker=none")
    assert final_bytes(tmp_path / "outputs") == final_bytes(tmp_path / "unbroken")
    (recorded,) = runs(tmp_path)
    assert [p.step for p in client(tmp_path).get_metric_history(recorded.info.run_id, "valid/psnr")] == [3, 6]


@pytest.mark.parametrize(
    ("asked", "said"),
    [((), r"saved step 2; go on with: sr-run .*trainer\.resume=\S+\n"), (("-m",), r"Go on with: sr-run -m .*\n")],
    ids=["run", "sweep"],
)
def test_a_second_ctrl_c_exits_at_once_and_says_how_to_go_on(
    asked: tuple[str, ...], said: str, run_server: RunServer, tmp_path: Path, image_cache: Path
) -> None:
    """The evaluation sits in one call for a minute, so that the first signal cannot be heeded yet."""
    (tmp_path / "stuck_net.py").write_text(
        "import pathlib, time, torch\n"
        "class Stuck(torch.nn.Module):\n"
        "    def __init__(self, scale):\n"
        "        super().__init__()\n"
        "        self.conv = torch.nn.Conv2d(3, 3 * scale ** 2, 3, padding=1)\n"
        "        self.scale = scale\n"
        "    def forward(self, x):\n"
        "        if not self.training and x.shape[-1] > 16:\n"
        "            pathlib.Path('evaluating').touch()\n"
        "            time.sleep(60)\n"
        "        return torch.nn.functional.pixel_shuffle(self.conv(x), self.scale)\n"
    )
    rest = [argument for argument in TINY if not argument.startswith("model.")]
    model = ("model._target_=stuck_net.Stuck", "tracker=none", "checkpoint.every=2")
    run = started(run_server, tmp_path, *asked, *rest, *model, f"data.cache_dir={image_cache}")
    wait_until((tmp_path / "evaluating").exists, "the evaluation")
    wait_for_checkpoint(tmp_path / "outputs")
    os.kill(run.pid, signal.SIGINT)
    time.sleep(0.5)
    assert psutil.Process(run.pid).status() != psutil.STATUS_ZOMBIE
    os.kill(run.pid, signal.SIGINT)
    assert run.wait(5) == 130
    assert re.search(rf"{said}$", (tmp_path / "errors").read_text())


def test_a_second_process_on_the_same_run_is_refused_by_host_and_process(
    sr_run: SrRun, run_server: RunServer, tmp_path: Path, image_cache: Path
) -> None:
    arguments = (*TINY, "trainer.steps=100000", "trainer.eval_every=100000", "checkpoint.every=50", "tracker=none")
    run = started(run_server, tmp_path, *arguments, f"data.cache_dir={image_cache}")
    wait_for_checkpoint(tmp_path / "outputs")
    try:
        refused = sr_run(*arguments, "trainer.resume=true", code=2)
        assert f"process {run.pid} on {os.uname().nodename}" in refused.stderr
    finally:
        run.kill()


def test_a_sweep_gives_runs_of_their_own_under_one_parent_and_goes_on_past_a_failed_job(
    sr_run: SrRun, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text(
        "import torch\n"
        "class Broken(torch.nn.Module):\n"
        "    def __init__(self, scale, num_res_blocks, num_filters):\n"
        "        super().__init__()\n"
        "        self.conv = torch.nn.Conv2d(3, 3, 3)\n"
        "    def forward(self, x):\n"
        "        if self.training:\n"
        "            raise ArithmeticError('this network is broken')\n"
        "        return torch.nn.functional.interpolate(x, scale_factor=2)\n"
    )
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "broken.yaml").write_text(
        "_target_: broken.Broken\nscale: ${scale}\nnum_res_blocks: 1\nnum_filters: 1\n"
    )
    done = sr_run("-m", "--config-dir", "mine", "model=wdsr_a,broken,wdsr_b", *TINY, "trainer.steps=3", code=1)
    assert "2 of 3 jobs finished" in done.stdout and "this network is broken" in done.stdout
    (folder,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert "ArithmeticError: this network is broken" in (folder / "model=broken" / "job.log").read_text()
    assert len(list((tmp_path / "outputs" / "checkpoints").glob("*/*"))) == 2
    (one,) = (run for run in runs(tmp_path) if run.info.run_name == "sweep model")
    children = [run for run in runs(tmp_path) if run.info.run_id != one.info.run_id]
    assert {run.data.tags["sr_run.sweep"] for run in children} == {one.data.tags["sr_run.sweep"]} == {folder.name}
    assert {run.info.run_name for run in children} == {run.data.params["model"] for run in children}
    assert {run.info.run_name for run in children} == {"wdsr_a", "wdsr_b", "broken"}
    assert not any("mlflow.parentRunId" in run.data.tags for run in children)
    note = one.data.tags["mlflow.note.content"]
    assert (
        "**Best: wdsr_" in note and "2 of 3 jobs finished, 1 failed" in note and "sr-run -m --config-dir mine" in note
    )
    assert one.data.metrics["jobs/finished"] == 2 and one.data.metrics["jobs/best_psnr"] > 0
    assert (folder / "sweep.csv").read_text().splitlines()[0].startswith("model,name,status,run,")
    assert sorted(run.info.status for run in children) == ["FAILED", "FINISHED", "FINISHED"]
    assert one.info.status == "FAILED"
    assert len({run.data.tags["sr_run.identity"] for run in children}) == 3


def test_own_network_loss_and_optimizer_are_a_target_away(sr_run: SrRun, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Sequential):\n"
        "    def __init__(self, scale, width=8):\n"
        "        super().__init__(torch.nn.Conv2d(3, width, 3, padding=1), torch.nn.ReLU(),\n"
        "            torch.nn.Conv2d(width, 3 * scale ** 2, 3, padding=1), torch.nn.PixelShuffle(scale))\n"
        "class Charbonnier(torch.nn.Module):\n"
        "    def forward(self, sr, hr):\n"
        "        return torch.sqrt((sr - hr) ** 2 + 1e-6).mean()\n"
    )
    rest = [argument for argument in TINY if not argument.startswith("model.")]
    done = sr_run(
        *rest, "model._target_=mine.Net", "+model.width=12", "objective.losses.pixel._target_=mine.Charbonnier",
        "optimizer._target_=torch.optim.RMSprop", "tracker=none",
    )  # fmt: skip
    assert "Identity net-x2-" in done.stdout and " net x2 " in done.stdout


def nan_net(folder: Path, at_call: int) -> tuple[str, ...]:
    """A network whose output is not a number in one training step."""
    (folder / "nan_net.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    calls = 0\n"
        "    def __init__(self, scale):\n"
        "        super().__init__()\n"
        "        self.conv = torch.nn.Conv2d(3, 3 * scale ** 2, 3, padding=1)\n"
        "        self.scale = scale\n"
        "    def forward(self, x):\n"
        "        Net.calls += self.training\n"
        f"        x = x * float('nan') if self.training and Net.calls == {at_call} else x\n"
        "        return torch.nn.functional.pixel_shuffle(self.conv(x), self.scale)\n"
    )
    rest = [argument for argument in TINY if not argument.startswith("model.")]
    return (*rest, "model._target_=nan_net.Net", "tracker=none")


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_step_and_samples(sr_run: SrRun, tmp_path: Path) -> None:
    done = sr_run(*nan_net(tmp_path, at_call=5), code=1)
    assert "the loss is nan at step 5 (samples 8 to 9)" in done.stderr and "Traceback" not in done.stderr
    (checkpoint,) = (tmp_path / "outputs" / "checkpoints").glob("*/*/step-*")
    assert checkpoint.name == "step-00000003"


def test_a_loss_that_is_not_a_number_is_skipped_where_asked_for(sr_run: SrRun, tmp_path: Path) -> None:
    done = sr_run(*nan_net(tmp_path, at_call=5), "trainer.on_nan=skip")
    assert "not finite at steps [5]" in done.stderr and "Step 6 of 6" in done.stdout


def test_evaluations_on_the_way_see_some_images_and_the_last_one_all(tiny: Finished) -> None:
    (folder,) = (tiny.folder / "outputs" / "runs").glob("*/*")
    names = [row.partition(",")[0] for row in (folder / "images.csv").read_text().splitlines()]
    assert names == ["image", "chelsea", "flower"]
    assert "mean of 2" in tiny.stdout and "on 1 images" in tiny.stderr and "on 2 images" in tiny.stderr
    run = runs(tiny.folder)[0]
    history = client(tiny.folder).get_metric_history
    assert [p.step for p in history(run.info.run_id, "valid/psnr")] == [3, 6]
    assert [p.step for p in history(run.info.run_id, "final/psnr")] == [6]
    assert "images.csv" in [file.path for file in client(tiny.folder).list_artifacts(run.info.run_id)]
