"""The real command against a real S3 server that hangs, goes away, and is shared by two machines."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kill_and_resume import senders_of
from mlflow import MlflowClient
from store_servers import MlflowArtifactServer, S3Server
from support import TINY, command, environment, started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STORE = ("checkpoint=s3", "checkpoint.every=5", "checkpoint.store.retry_seconds=2")
RUN = (*TINY, *STORE, "tracker=none", "scheduler=constant", "trainer.eval_every=100000")
LONG = (*RUN, "trainer.steps=100000")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    started = S3Server(tmp_path_factory.mktemp("s3"))
    started.start()
    started.make_bucket()
    yield started
    started.kill()


@pytest.fixture
def start(server: S3Server, image_cache: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str, prefix: tuple[str, ...] = (), given: bool = False) -> subprocess.Popen[str]:
        root = [] if given else [f"checkpoint.root=s3://bucket/{tmp_path.name}"]
        process = subprocess.Popen(
            [*prefix, *command(*arguments, *root, f"data.cache_dir={image_cache}")], cwd=tmp_path, text=True,
            env=environment() | dict(server.environment()), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def has_saved(server: S3Server, tmp_path: Path) -> bool:
    return bool(server.files().glob(f"bucket/{tmp_path.name}/*/*/*/manifest.json"))


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
        time.sleep(0.3)


def fetched(server: S3Server, output: str, to: Path) -> list[bytes]:
    """The tensors of the checkpoint that a run's last lines name."""
    place = re.search(r"Checkpoint  (\S+)/([^/\s]+/[^/]+/step-\d+)", output)
    assert place is not None
    copy = subprocess.run(
        [*started("sr_runner.commands.ckpt"), "cp", place[2], str(to), f"checkpoint.root={place[1]}"],
        env=environment() | dict(server.environment()), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert copy.returncode == 0, copy.stderr
    return [(to / place[2] / name).read_bytes() for name in ("model.safetensors", "training.safetensors")]


def test_a_signal_is_heeded_in_time_while_the_store_hangs_and_nothing_is_lost(
    server: S3Server, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start(*LONG, "trainer.grace_seconds=8")
    wait_for(lambda: has_saved(server, tmp_path), process)
    assert server.process is not None
    os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        time.sleep(2)
        process.terminate()
        output, _ = process.communicate(timeout=120)  # the store hangs until then
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)
    assert process.returncode == 128 + signal.SIGTERM and "goes into the spool" in output, output
    (spooled,) = (tmp_path / "outputs" / "spool").glob("*/*/step-*")
    step = int(spooled.name.removeprefix("step-"))
    assert f"stopping on signal 15 at step {step}" in output and "goes into the spool" in output

    resumed, _ = (second := start(*RUN, f"trainer.steps={step + 7}", "trainer.resume=true")).communicate(timeout=120)
    assert second.returncode == 0 and f"resumed at step {step} of {step + 7}" in resumed, resumed
    assert "which had been spooled, is in s3://" in resumed
    assert not list((tmp_path / "outputs" / "spool").glob("*/*/step-*"))
    unbroken, _ = (third := start(*RUN, f"trainer.steps={step + 7}", "outputs=unbroken")).communicate(timeout=120)
    assert third.returncode == 0, unbroken
    assert fetched(server, resumed, tmp_path / "copy-0") == fetched(server, unbroken, tmp_path / "copy-1")


def test_a_store_that_goes_away_costs_no_step_and_ends_the_run_only_after_so_many_failures(
    server: S3Server, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start(*LONG, "checkpoint.max_failures=2", "checkpoint.every=200")
    wait_for(lambda: has_saved(server, tmp_path), process)
    server.kill()
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        server.start()
    assert process.returncode == 1, output
    assert "1 in a row. Training goes on, older checkpoints stay; this one is kept as" in output
    assert "sr-run: 2 checkpoints in a row could not be written" in output and "Traceback" not in output
    (spooled,) = (tmp_path / "outputs" / "spool").glob("*/*/step-*")
    step = int(spooled.name.removeprefix("step-"))
    resumed, _ = (second := start(*RUN, f"trainer.steps={step}", "trainer.resume=true")).communicate(timeout=120)
    assert second.returncode == 0 and f"complete already: step {step} of {step}" in resumed, resumed
    assert not list((tmp_path / "outputs" / "spool").glob("*/*/step-*"))


needs_namespaces = pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "--pid", "--fork", "--uts", "true"], capture_output=True).returncode != 0,
    reason="namespaces stand for machines, and cannot be made here",
)
MACHINE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "--uts")


@needs_namespaces
def test_two_machines_do_not_write_to_one_run_and_a_dead_one_does_not_block_it(
    server: S3Server, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    lease = ("checkpoint.lease_seconds=4", "trainer.resume=true")
    first = start(*LONG, *lease, prefix=MACHINE)
    wait_for(lambda: has_saved(server, tmp_path), first)
    second = start(*LONG, *lease, "outputs=elsewhere", prefix=MACHINE)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 2 and re.search(r"is in use by process \d+ on \S+: two processes cannot", output), (
        output
    )
    assert first.poll() is None

    os.killpg(first.pid, signal.SIGKILL)
    third = start(*LONG, *lease, "outputs=elsewhere", prefix=MACHINE)
    wait_for(lambda: "no sign of life: this process takes over" in log_of(tmp_path / "elsewhere"), third)
    wait_for(lambda: "resumed at step" in log_of(tmp_path / "elsewhere"), third)


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowArtifactServer]:
    started = MlflowArtifactServer(tmp_path_factory.mktemp("mlflow"))
    started.start()
    yield started
    started.kill()


@pytest.mark.parametrize("kind", ["s3", "mlflow"])
def test_a_run_goes_on_on_another_machine_that_knows_but_the_store_and_the_tracking_server(
    kind: str, server: S3Server, tracking: MlflowArtifactServer, start: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
) -> None:  # fmt: skip
    store = (
        ("checkpoint=s3", f"checkpoint.root=s3://bucket/{tmp_path.name}") if kind == "s3" else ("checkpoint=mlflow",)
    )
    experiment = f"moved-{kind}"
    run = (
        *TINY, *store, f"tracker.uri={tracking.uri}", f"tracker.experiment={experiment}", "trainer.steps=100000",
        "checkpoint.every=10", "trainer.eval_every=100000", "scheduler=constant", "checkpoint.lease_seconds=2",
    )  # fmt: skip

    def on(machine: str, *arguments: str) -> subprocess.Popen[str]:
        return start(*run, f"outputs={machine}", *arguments, given=True)

    def has_manifest() -> bool:
        return has_saved(server, tmp_path) if kind == "s3" else any(tracking.folder.rglob("manifest.json"))

    first = on("first")
    client = MlflowClient(tracking.uri)

    def is_recorded() -> bool:
        known = client.get_experiment_by_name(experiment)
        return known is not None and bool(client.search_runs([known.experiment_id]))

    wait_for(lambda: has_manifest() and is_recorded(), first)
    os.killpg(first.pid, signal.SIGKILL)
    for sender in senders_of(tmp_path / "first"):
        os.kill(sender, signal.SIGKILL)
    first.communicate()
    shutil.rmtree(tmp_path / "first")

    url = f"s3://bucket/{tmp_path.name}" if kind == "s3" else f"mlflow:{tracking.uri}#{experiment}"
    listed = subprocess.run(
        [*started("sr_runner.commands.ckpt"), "ls", f"checkpoint.root={url}", "--json"],
        env=environment() | dict(server.environment()), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert listed.returncode == 0, listed.stderr
    saved = json.loads(listed.stdout)[-1]["step"]

    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (begun,) = client.search_runs([found.experiment_id])
    second = on("second", f"trainer.resume={begun.info.run_id}", f"trainer.steps={saved + 300}")
    output, _ = second.communicate(timeout=120)
    assert second.returncode == 0 and f"resumed at step {saved} of {saved + 300}" in output, output
    third = on("third", "trainer.resume=true", f"trainer.steps={saved + 600}")
    output, _ = third.communicate(timeout=120)
    assert third.returncode == 0 and f"resumed at step {saved + 300} of {saved + 600}" in output, output

    (ended,) = client.search_runs([found.experiment_id])
    assert ended.info.run_id == begun.info.run_id and ended.info.status == "FINISHED"
    points = client.get_metric_history(ended.info.run_id, "train/loss")
    assert sorted(point.step for point in points) == list(range(2, saved + 601, 2))
    unbroken = on(
        "fourth", f"trainer.steps={saved + 600}", "tracker=none", "checkpoint=s3",
        f"checkpoint.root=s3://bucket/{tmp_path.name}-unbroken",
    )  # fmt: skip
    reference, _ = unbroken.communicate(timeout=120)
    assert unbroken.returncode == 0, reference
    assert fetched(server, output, tmp_path / "copy-0") == fetched(server, reference, tmp_path / "copy-1")


def log_of(outputs: Path) -> str:
    return "".join(path.read_text() for path in outputs.glob("runs/*/*/run.log"))
