"""One run in two processes (gloo, on the CPU).

The quick tests fork the processes, the others start them by the real torchrun.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import ranks
from kill_and_resume import differences, points
from safetensors.torch import load_file
from support import TINY, environment

from sr_runner.commands import run as cli

LONG = (*TINY, "trainer.steps=400", "trainer.log_every=50", "trainer.eval_every=200", "checkpoint.every=40")
GAN = (
    "objective=srgan", "objective.losses.content.vgg_seed=0", "objective.losses.content.layers=[VGG22]",
    "objective.discriminator.num_filters=4",
    "data.patch_size=96",
)  # fmt: skip
NETWORKS = {
    "edsr": (),
    "wdsr_b": ("model=wdsr_b", "model.num_res_blocks=1", "model.num_filters=8"),
    "srresnet": ("model=srresnet", "model.num_res_blocks=1", "model.num_filters=8", "trainer.ema_decay=0.9"),
    "srgan": ("model=srresnet", "model.num_res_blocks=1", "model.num_filters=8", *GAN, "trainer.accumulate=2"),
    "dropout": ("model._target_=dropout_net.Net", "~model.num_res_blocks", "~model.num_filters"),
}
SR_RUN = Path(sys.executable).with_name("sr-run")
Torchrun = Callable[..., subprocess.Popen]


@pytest.fixture
def torchrun(tmp_path: Path, image_cache: Path) -> Iterator[Torchrun]:
    """`torchrun("key=value", ...)` in `tmp_path`; what it says goes into `log` there."""
    started: list[subprocess.Popen] = []
    path = os.pathsep.join([str(SR_RUN.parent), os.environ.get("PATH", "")])

    def start(*arguments: str, launch: tuple[str, ...] = ("-m", "sr_runner.commands.run")) -> subprocess.Popen:
        log = (tmp_path / "log").open("a")
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *launch]
        process = subprocess.Popen(
            [*run, *arguments, f"data.cache_dir={image_cache}"], cwd=tmp_path, stdout=log, stderr=log,
            stdin=subprocess.DEVNULL, env=environment() | {"PATH": path},
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            kill_tree(process)


def kill_tree(process: subprocess.Popen) -> None:
    for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def finish(process: subprocess.Popen, folder: Path) -> None:
    assert process.wait(600) == 0, (folder / "log").read_text()


def ranks_of(process: subprocess.Popen) -> dict[int, psutil.Process]:
    """The run's processes by rank."""
    found = {}
    for child in psutil.Process(process.pid).children():
        number = child.environ().get("RANK")
        if number is not None:
            found[int(number)] = child
    return found


def wait_for(condition: Callable[[], object], process: subprocess.Popen, folder: Path, timeout: float = 300) -> None:
    began = time.monotonic()
    while not condition():
        assert process.poll() is None and time.monotonic() - began < timeout, (folder / "log").read_text()
        time.sleep(0.02)


def checkpoints(outputs: Path) -> list[Path]:
    return [manifest.parent for manifest in outputs.glob("checkpoints/*/*/step-*/manifest.json")]


def final_bytes(outputs: Path) -> list[bytes]:
    (attempt,) = (outputs / "checkpoints").glob("*/*")
    newest = max(attempt.glob("step-*"))
    return [(newest / name).read_bytes() for name in ("model.safetensors", "training.safetensors")]


def assert_same(broken: Path, unbroken: Path) -> None:
    """The same bytes, one MLflow run, one point per metric and step."""
    assert final_bytes(broken) == final_bytes(unbroken)
    runs, mine = points(broken)
    assert runs == 1
    assert not differences(points(unbroken)[1], mine)


SLOW_NET = (
    "import os, pathlib, time, torch\n"
    "class Net(torch.nn.Module):\n"
    "    def __init__(self, scale):\n"
    "        super().__init__()\n"
    "        self.conv = torch.nn.Conv2d(3, 3 * scale ** 2, 3, padding=1)\n"
    "        self.scale = scale\n"
    "    def forward(self, x):\n"
    "        if not self.training and x.shape[-1] > 16 and os.environ['EVALUATES'] == 'slowly':\n"
    "            pathlib.Path('evaluating').touch()\n"
    "            time.sleep(0.5)\n"
    "        return torch.nn.functional.pixel_shuffle(self.conv(x), self.scale)\n"
)


def fork(folder: Path, *arguments: str, number: int = 2, **environment: str) -> ranks.Ranks:
    def work(rank: int) -> int:
        os.environ |= environment
        return cli.main(list(arguments))

    return ranks.start(work, folder, number)


@pytest.mark.parametrize(
    ("precision", "signum", "victims"),
    [
        ("fp32", signal.SIGTERM, [1]),
        pytest.param("bf16", signal.SIGTERM, [1], marks=pytest.mark.slow),
        pytest.param("fp32", signal.SIGHUP, [0, 1], marks=pytest.mark.slow, id="terminal"),
    ],
)
def test_two_processes_are_stopped_by_a_signal_and_resumed_to_the_same_bytes(
    precision: str, signum: signal.Signals, victims: list[int], tmp_path: Path, image_cache: Path
) -> None:
    steps = ("trainer.steps=40", "trainer.eval_every=20", "checkpoint.every=5", "trainer.ema_decay=0.9")
    arguments = (*TINY, *steps, f"trainer.precision={precision}", "tracker=none", f"data.cache_dir={image_cache}")
    broken = fork(tmp_path, *arguments)
    while not checkpoints(tmp_path / "outputs"):
        assert broken.alive(), ranks.said(tmp_path)
        time.sleep(0.01)
    for rank in victims:
        os.kill(broken.pids[rank], signum)
    assert broken.wait() == [128 + signum] * 2
    assert ranks.said(tmp_path).count(f"stopping on signal {signum} at step") == 1
    assert fork(tmp_path, *arguments, "trainer.resume=true").wait() == [0, 0]
    assert ranks.said(tmp_path).count("resumed at step") == ranks.said(tmp_path).count("Step 40 of 40") == 1
    assert fork(tmp_path, *arguments, "outputs=unbroken").wait() == [0, 0]
    assert final_bytes(tmp_path / "outputs") == final_bytes(tmp_path / "unbroken")


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "rounding"), [("fp32", 1e-6), ("bf16", 1e-4)])
def test_one_process_learns_what_two_learn_and_two_go_on_from_its_checkpoint(
    precision: str, rounding: float, tmp_path: Path, image_cache: Path
) -> None:
    precise = (f"trainer.precision={precision}", "scheduler=constant")
    arguments = (*TINY, *precise, "tracker=none", f"data.cache_dir={image_cache}")
    assert fork(tmp_path, *arguments, "outputs=two").wait() == [0, 0]
    assert fork(tmp_path, *arguments, "outputs=one", number=1).wait() == [0]
    two, one = (load_file(max(checkpoints(tmp_path / each)) / "model.safetensors") for each in ("two", "one"))
    for name in two:
        # The mean: where a gradient is all rounding, Adam moves a weight by its learning rate, whichever way.
        assert (two[name] - one[name]).abs().mean() < rounding, name
    done = fork(tmp_path, *arguments, "trainer.resume=true", "trainer.steps=8", "outputs=one")
    assert done.wait() == [0, 0]
    assert "processes 1 -> 2" in ranks.said(tmp_path) and "Step 8 of 8" in ranks.said(tmp_path)


@pytest.mark.slow
def test_a_signal_to_a_process_that_waits_for_the_evaluation_cuts_it_short_and_it_is_made_up_for(
    tmp_path: Path, image_cache: Path
) -> None:
    (tmp_path / "slow_net.py").write_text(SLOW_NET)
    tiny = [argument for argument in TINY if not argument.startswith(("model.", "data.valid_images"))]
    arguments = (*tiny, "model._target_=slow_net.Net", "tracker=none", f"data.cache_dir={image_cache}")
    broken = fork(tmp_path, *arguments, EVALUATES="slowly")
    while not (tmp_path / "evaluating").exists():
        assert broken.alive(), ranks.said(tmp_path)
        time.sleep(0.01)
    os.kill(broken.pids[1], signal.SIGUSR1)
    assert broken.wait() == [138, 138]
    (stopped,) = checkpoints(tmp_path / "outputs")
    assert stopped.name == "step-00000003" and json.loads((stopped / "state.json").read_text())["evaluated_at"] == 0
    assert fork(tmp_path, *arguments, "trainer.resume=true", EVALUATES="fast").wait() == [0, 0]
    assert fork(tmp_path, *arguments, "outputs=unbroken", EVALUATES="fast").wait() == [0, 0]
    assert final_bytes(tmp_path / "outputs") == final_bytes(tmp_path / "unbroken")


def test_a_sweep_is_refused_under_torchrun(tmp_path: Path) -> None:
    assert fork(tmp_path, "-m", "optimizer.lr=1e-4,1e-3").wait() == [2, 2]
    assert ranks.said(tmp_path).startswith("sr-run: -m: ") and ranks.said(tmp_path).count("\n") == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("launch", [("-m", "sr_runner.commands.run"), ("--no-python", "sr-run"), (str(SR_RUN),)])
def test_torchrun_starts_the_module_and_the_command_alike_and_a_bad_request_is_said_once(
    launch: tuple[str, ...], torchrun: Torchrun, tmp_path: Path
) -> None:
    finish(torchrun(*TINY, "tracker=none", launch=launch), tmp_path)
    assert checkpoints(tmp_path / "outputs")
    assert torchrun(*TINY, "tracker=none", "data.batch_size=3", launch=launch).wait(300) == 1
    log = (tmp_path / "log").read_text()
    assert log.count("data.batch_size=3 cannot be shared by 2 processes") == 1
    assert len(re.findall(r"exitcode +: 2 ", log)) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("victim", ["all", "0", "1"])
def test_what_was_killed_goes_on_to_the_same_bytes(victim: str, torchrun: Torchrun, tmp_path: Path) -> None:
    process = torchrun(*LONG)
    wait_for(lambda: checkpoints(tmp_path / "outputs"), process, tmp_path)
    if victim == "all":
        kill_tree(process)
    else:
        ranks_of(process)[int(victim)].kill()
        assert process.wait(300) == 1
    finish(torchrun(*LONG, "trainer.resume=true"), tmp_path)
    finish(torchrun(*LONG, "outputs=unbroken"), tmp_path)
    assert_same(tmp_path / "outputs", tmp_path / "unbroken")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_torchruns_own_restart_after_a_crash_goes_on_with_the_attempt(torchrun: Torchrun, tmp_path: Path) -> None:
    process = torchrun(*LONG, launch=("--max-restarts=1", "-m", "sr_runner.commands.run"))
    wait_for(lambda: checkpoints(tmp_path / "outputs"), process, tmp_path)
    ranks_of(process)[1].kill()
    assert process.wait(600) == 0, (tmp_path / "log").read_text()
    finish(torchrun(*LONG, "outputs=unbroken"), tmp_path)
    assert_same(tmp_path / "outputs", tmp_path / "unbroken")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_signal_to_one_process_or_to_torchrun_stops_all_after_one_step_and_the_rest_is_the_same(
    name: str, torchrun: Torchrun, tmp_path: Path
) -> None:
    write_dropout_net(tmp_path)
    arguments = (*LONG, *NETWORKS[name], *(("trainer.steps=120", "trainer.eval_every=60") if name == "srgan" else ()))
    process = torchrun(*arguments)
    wait_for(lambda: checkpoints(tmp_path / "outputs"), process, tmp_path)
    if name == "wdsr_b":
        process.terminate()  # torchrun itself, which tells all of them and has a traceback for it
        assert process.wait(300) == 1
    else:
        ranks_of(process)[1].send_signal(signal.SIGTERM)
        assert process.wait(300) == 1
        assert len(re.findall(r"exitcode +: 143 ", (tmp_path / "log").read_text())) == 2
    log = (tmp_path / "log").read_text()
    assert len(re.findall("stopping on signal 15 at step", log)) == 1
    finish(torchrun(*arguments, "trainer.resume=true"), tmp_path)
    finish(torchrun(*arguments, "outputs=unbroken"), tmp_path)
    assert_same(tmp_path / "outputs", tmp_path / "unbroken")


def write_dropout_net(folder: Path) -> None:
    (folder / "dropout_net.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Sequential):\n"
        "    def __init__(self, scale):\n"
        "        super().__init__(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Dropout(0.5),\n"
        "            torch.nn.Conv2d(8, 3 * scale ** 2, 3, padding=1), torch.nn.PixelShuffle(scale))\n"
    )
