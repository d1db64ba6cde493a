"""What `trainer.resume` means: which attempt a process works on, and the state it starts from."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from saved_runs import FACTS, IDENTITY, damage, parts_of, save

from sr_runner.attempt.lock import AttemptLock
from sr_runner.attempt.resume import Chosen, choose, spool_of
from sr_runner.checkpoint import LocalStore, RemoteStore
from sr_runner.checkpoint.lease import Holder
from sr_runner.errors import RequestError, RunError
from sr_runner.files import DRAFT, Busy, file_lock
from sr_runner.runs import folder as files
from sr_runner.runs.catalogue import FORKED_FROM, Attempt, Catalogue
from sr_runner.signals import StopSignal

OLDER, NEWER = f"{IDENTITY}/a0001-aaaa", f"{IDENTITY}/a0002-bbbb"
OTHER_FACTS = FACTS | {"optimizer.lr": 1e-3}
RUN_ID = "0123456789abcdef" * 2

Choose = Callable[..., Chosen]


@pytest.fixture(autouse=True)
def no_scheduler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SLURM_JOB_ID", "SUBMITIT_LOCAL_JOB_ID", "TORCHELASTIC_RESTART_COUNT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """Two attempts of one run, each with its folder."""
    store = LocalStore(tmp_path / "outputs" / "checkpoints")
    for attempt, steps in ((OLDER, (10, 20)), (NEWER, (30, 40))):
        save(store, attempt, *steps)
        files.begin(tmp_path / "outputs" / "runs" / attempt, FACTS, "", {})
    return store


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture
def chosen(store: LocalStore, outputs: Path) -> Choose:
    """`chosen(resume, ...)`: what a process with this config comes to, while it really holds its attempt."""

    def chosen(
        resume: object, facts: dict[str, Any] = FACTS, identity: str = IDENTITY, store: Any = store,
        overrides: Sequence[str] = (), **trainer: Any,
    ) -> Chosen:  # fmt: skip
        parts = replace(parts_of(outputs, store, resume=resume, **trainer), overrides=overrides)
        catalogue = Catalogue(outputs / "runs", store, outputs / "scratch", lambda run_id: None)

        def identify(of: Mapping[str, Any]) -> str:
            return identity if FORKED_FROM not in of else f"fork-x2-{len(str(of)):012}"

        with AttemptLock(parts, catalogue, StopSignal()) as lock:
            result = choose(parts, catalogue, facts, identify, lock.hold)
            assert (catalogue.folder(result.attempt) / files.LOCK).exists(), "it is not held"
        return result

    return chosen


def attempts(outputs: Path) -> list[str]:
    return sorted(f"{folder.parent.name}/{folder.name}" for folder in (outputs / "runs").glob("*/*"))


def content(root: Path) -> dict[Path, bytes]:
    """Every file below `root` but leases, which are renewed meanwhile, and their drafts."""
    files = (path for path in root.rglob("*") if path.name != "lease.json" and not path.name.startswith(DRAFT))
    return {path: path.read_bytes() for path in files if path.is_file()}


def is_fork(result: Chosen, of: str, step: int) -> bool:
    """Whether it is a third attempt that starts with the state of that checkpoint."""
    assert result.state is not None
    number = str(result.attempt).partition("/")[2][:5]
    return (number, result.parent, result.state.step) == ("a0003", f"{of}/step-{step:08d}", step)


def test_false_starts_a_fresh_attempt_and_touches_no_older_one(chosen: Choose, outputs: Path) -> None:
    before = content(outputs)
    result = chosen(False)
    assert result.attempt.name.startswith("a0003-") and result.state is None and result.parent is None
    assert before.items() <= content(outputs).items()


def test_true_takes_the_newest_checkpoint_of_the_newest_attempt(chosen: Choose) -> None:
    result = chosen(True)
    assert str(result.attempt) == NEWER and result.state is not None and result.state.step == 40
    assert result.parent is None


def test_fewer_steps_than_the_run_has_are_refused_and_nothing_is_begun(chosen: Choose, outputs: Path) -> None:
    before = content(outputs)
    for name, step in ((IDENTITY, 40), (NEWER, 40), (OLDER, 20), (f"{NEWER}/step-30", 30)):
        with pytest.raises(RequestError, match=rf"^trainer.steps=15: {name} is at step {step}; expected at least"):
            chosen(name, steps=15)
    with pytest.raises(RequestError, match=rf"^trainer.steps=39: {NEWER} is at step 40; expected at least that$"):
        chosen(True, steps=39, overrides=["trainer.steps=39"])
    assert attempts(outputs) == [OLDER, NEWER] and before.items() <= content(outputs).items()
    for resume, steps, given in ((True, 40, ["trainer.steps=40"]), (NEWER, 40, []), (True, 39, [])):
        result = chosen(resume, steps=steps, overrides=given)
        assert str(result.attempt) == NEWER and result.state is not None and result.state.step == 40


def test_true_with_nothing_to_resume_starts_a_first_attempt_and_names_near_misses(
    chosen: Choose, outputs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = chosen(True, OTHER_FACTS, "edsr-x2-ffffffffffff")
    assert str(result.attempt).startswith("edsr-x2-ffffffffffff/a0001-") and result.state is None
    assert f"near miss: {IDENTITY} differs in optimizer.lr=0.001 (there 0.0001)" in caplog.text
    assert "stretched" not in caplog.text


def test_a_near_miss_in_the_length_of_a_stretched_schedule_is_explained(
    chosen: Choose, outputs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    facts = FACTS | {"scheduler.total": 9}
    files.begin(outputs / "runs" / NEWER, FACTS | {"scheduler.total": 6}, "", {})
    chosen(True, facts, "edsr-x2-ffffffffffff", steps=9)
    assert "scheduler.total=9 (there 6) (the schedule is stretched over trainer.steps" in caplog.text


def test_true_where_the_newest_attempt_has_no_checkpoint_goes_on_with_it_and_names_an_older_one(
    chosen: Choose, store: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(store.root / NEWER)
    result = chosen(True)
    assert str(result.attempt) == NEWER and result.state is None
    assert f"trainer.resume={OLDER}" in caplog.text


@pytest.mark.parametrize(
    ("name", "attempt", "step"),
    [
        (IDENTITY, NEWER, 40), (OLDER, OLDER, 20), (f"{OLDER}/step-20", OLDER, 20),
        (f"outputs/runs/{OLDER}", OLDER, 20), (RUN_ID, OLDER, 20),
        (f"outputs/checkpoints/{OLDER}/step-00000020", OLDER, 20),
    ],
    ids=["identity", "attempt", "newest step", "folder of the run", "MLflow id", "folder of the checkpoint"],
)  # fmt: skip
def test_a_name_goes_on_with_exactly_that_attempt(
    chosen: Choose, outputs: Path, name: str, attempt: str, step: int
) -> None:
    (outputs / "runs" / OLDER / files.TRACKER).write_text(json.dumps({"run_id": RUN_ID}))
    result = chosen(name)
    assert (str(result.attempt), result.parent) == (attempt, None)
    assert result.state is not None and result.state.step == step
    assert attempts(outputs) == [OLDER, NEWER]


@pytest.mark.parametrize("name", [f"{OLDER}/step-10", f"outputs/checkpoints/{OLDER}/step-00000010"])
def test_an_older_step_forks_so_that_what_came_after_it_stays(chosen: Choose, store: LocalStore, name: str) -> None:
    before = content(store.root)
    assert is_fork(chosen(name), OLDER, 10)
    assert content(store.root) == before


@pytest.mark.parametrize("kind", ["path", "URL", "attempt's path", "copy"])
def test_a_checkpoint_of_another_store_is_forked_and_stays_as_it_is(chosen: Choose, tmp_path: Path, kind: str) -> None:
    elsewhere, foreign = LocalStore(tmp_path / "elsewhere"), f"{IDENTITY}/a0007-cccc"
    save(elsewhere, foreign, 70)
    folder = elsewhere.root / foreign / "step-00000070"
    if kind == "copy":
        folder = folder.rename(tmp_path / "best")
    before = content(tmp_path / "elsewhere")
    names = {"path": str(folder), "URL": f"file://{folder}", "attempt's path": str(folder.parent), "copy": "best"}
    assert is_fork(chosen(names[kind]), foreign, 70)
    assert content(tmp_path / "elsewhere") == before


def test_another_config_is_refused_with_the_difference_and_nothing_is_started(chosen: Choose, outputs: Path) -> None:
    with pytest.raises(RequestError, match=rf"trainer.resume={OLDER}: .*\n  optimizer.lr: 0.001 here, 0.0001 there"):
        chosen(OLDER, OTHER_FACTS, "edsr-x2-ffffffffffff")
    assert attempts(outputs) == [OLDER, NEWER]


def test_another_config_forks_under_its_own_identity_where_changes_are_allowed(chosen: Choose) -> None:
    result = chosen(OLDER, OTHER_FACTS, "edsr-x2-ffffffffffff", allow_changes=True)
    assert str(result.attempt).startswith("fork-x2-") and result.facts[FORKED_FROM] == result.parent
    assert result.parent == f"{OLDER}/step-00000020" and result.state is not None and result.state.step == 20


def test_the_config_of_a_run_is_known_from_its_checkpoint_where_its_folder_is_elsewhere(
    chosen: Choose, outputs: Path
) -> None:
    shutil.rmtree(outputs / "runs")
    assert str(chosen(OLDER).attempt) == OLDER
    with pytest.raises(RequestError, match=r"optimizer.lr: 0.001 here, 0.0001 there"):
        chosen(NEWER, OTHER_FACTS, "edsr-x2-ffffffffffff")


def test_a_run_that_does_not_tell_its_config_is_refused(chosen: Choose, store: LocalStore, outputs: Path) -> None:
    (outputs / "runs" / NEWER / files.RECORD).write_text("[" * 100_000)
    shutil.rmtree(store.root / NEWER)
    with pytest.raises(RequestError, match=rf"trainer.resume={NEWER}: no config is recorded for {NEWER}"):
        chosen(NEWER)


def test_a_step_that_is_not_there_is_refused(chosen: Choose) -> None:
    with pytest.raises(RequestError, match=rf"trainer.resume={OLDER}/step-15: .* at step 15, only at 10, 20"):
        chosen(f"{OLDER}/step-15")


@pytest.mark.parametrize("resume", [True, NEWER])
def test_a_damaged_newest_checkpoint_is_set_aside_for_the_newest_good_one(
    chosen: Choose, store: LocalStore, resume: object
) -> None:
    damage(store.root / NEWER / "step-00000040" / "training.safetensors")
    result = chosen(resume)
    assert str(result.attempt) == NEWER and result.state is not None and result.state.step == 30
    assert sorted(folder.name[:21] for folder in (store.root / NEWER).glob("[ds]*")) == [
        "damaged-step-00000040", "step-00000030",
    ]  # fmt: skip


def test_a_damaged_checkpoint_of_another_run_stays_where_it_is(chosen: Choose, store: LocalStore) -> None:
    damage(store.root / OLDER / "step-00000020" / "state.json")
    before = content(store.root)
    result = chosen(OLDER, OTHER_FACTS, "edsr-x2-ffffffffffff", allow_changes=True)
    assert result.parent == f"{OLDER}/step-00000010" and content(store.root) == before


def test_nothing_is_started_where_no_checkpoint_is_good(chosen: Choose, store: LocalStore, outputs: Path) -> None:
    for step in (30, 40):
        damage(store.root / NEWER / f"step-{step:08d}" / "model.safetensors")
    with pytest.raises(RunError, match="none of the 2 checkpoints"):
        chosen(True)
    assert attempts(outputs) == [OLDER, NEWER]


def test_an_attempt_that_another_process_holds_is_refused_before_its_checkpoints_are_read(
    chosen: Choose, store: LocalStore, outputs: Path
) -> None:
    damage(store.root / NEWER / "step-00000040" / "model.safetensors")
    parts = parts_of(outputs, store)
    catalogue = Catalogue(outputs / "runs", store, outputs / "scratch")
    newest = catalogue.named(IDENTITY)
    assert newest is not None
    with AttemptLock(parts, catalogue, StopSignal()) as lock:
        lock.hold(newest, False)
        before = content(store.root)
        for resume in (True, IDENTITY):
            with pytest.raises(RequestError, match="is in use by process"):
                chosen(resume)
        assert content(store.root) == before


@pytest.mark.parametrize("seconds", [60.0, None], ids=["lease", "no lease"])
def test_the_store_knows_who_holds_an_attempt_unless_leases_are_off(
    seconds: float | None, store: LocalStore, outputs: Path
) -> None:
    for there in (store, None):
        parts = parts_of(outputs, there)
        parts = replace(parts, checkpoint=replace(parts.checkpoint, lease_seconds=seconds))
        catalogue = Catalogue(outputs / "runs", store, outputs / "scratch")
        newest = catalogue.named(IDENTITY)
        assert newest is not None
        with AttemptLock(parts, catalogue, StopSignal()) as lock:
            lock.hold(newest, False)
            lock.confirm()
            assert (store.read_lease(NEWER) is not None) is (there is not None and seconds is not None)
            if there is not None:
                store.write_lease(NEWER, replace(Holder.me(60), host="elsewhere").record(1))
                with pytest.raises(RunError, match="on elsewhere") if seconds is not None else nullcontext():
                    lock.confirm()
        assert (store.read_lease(NEWER) is not None) is (there is not None), "another's is left alone"
        store.drop_lease(NEWER)


def test_a_store_on_the_file_system_of_the_outputs_has_no_spool_there(store: LocalStore, outputs: Path) -> None:
    assert spool_of(parts_of(outputs, store)) is None
    assert spool_of(parts_of(outputs, LocalStore(outputs / "not" / "yet"))) is None
    for there in (LocalStore(Path("/proc/not/yet")), RemoteStore("memory://x")):
        spool = spool_of(parts_of(outputs, there))
        assert spool is not None and spool.root == outputs / "spool"


def test_giving_up_a_lease_takes_half_of_what_a_stopping_signal_leaves(store: LocalStore, outputs: Path) -> None:
    catalogue, stop = Catalogue(outputs / "runs", store, outputs / "scratch"), StopSignal()
    with AttemptLock(parts_of(outputs, store), catalogue, stop) as lock:
        lock.hold(Attempt(*NEWER.split("/")), False)
        assert lock._lease is not None and lock._lease._patience() == 5
        stop.grace_seconds, stop.signum = 4, 15  # a signal of long ago
        assert lock._lease._patience() == 0


def test_the_lock_of_a_folder_that_was_deleted_is_taken_again_unless_somebody_has_it(
    store: LocalStore, outputs: Path
) -> None:
    catalogue = Catalogue(outputs / "runs", store, outputs / "scratch")
    newest, older = (catalogue.folder(Attempt(*name.split("/"))) for name in (NEWER, OLDER))
    with AttemptLock(parts_of(outputs, None), catalogue, StopSignal()) as lock:
        lock.hold(Attempt(*NEWER.split("/")), False)
        shutil.rmtree(newest)
        lock.hold_again(newest)
        with pytest.raises(Busy), file_lock(newest / files.LOCK, wait=False):
            pass
        with file_lock(older / files.LOCK):
            lock.hold_again(older)
            with pytest.raises(RequestError, match=f"{OLDER} is in use by process"):
                lock.hold(Attempt(*OLDER.split("/")), False)


def test_a_restarted_job_goes_on_with_its_own_attempt_whatever_its_arguments_ask_for(
    chosen: Choose, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    first = chosen(False)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    later = chosen(False)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert chosen(False).attempt == later.attempt != first.attempt
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert chosen(False).attempt == first.attempt
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    assert chosen(False).attempt not in (first.attempt, later.attempt)


def test_a_restarted_job_finds_its_attempt_on_another_machine_by_its_checkpoint(
    chosen: Choose, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, f"{IDENTITY}/a0003-dddd", 50, job="slurm 7")
    save(store, f"{IDENTITY}/a0004-eeee", 60, job="slurm 8")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    result = chosen(False)
    assert result.attempt.name == "a0003-dddd" and result.state is not None and result.state.step == 50


def test_a_job_that_was_restarted_before_its_first_checkpoint_forks_once_more_into_the_same_attempt(
    chosen: Choose, outputs: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    first = chosen(f"{OLDER}/step-10")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again = chosen(f"{OLDER}/step-10")
    assert again.attempt == first.attempt and is_fork(again, OLDER, 10)
    save(store, str(first.attempt), 11)
    gone_on = chosen(f"{OLDER}/step-10")
    assert gone_on.attempt == first.attempt and gone_on.parent is None
    assert gone_on.state is not None and gone_on.state.step == 11


@pytest.mark.parametrize("depth", [50, 500, 900, 5_000, 200_000])
def test_a_deeply_nested_record_of_another_run_is_in_nobodys_way(depth: int, chosen: Choose, outputs: Path) -> None:
    record = outputs / "runs" / OLDER.replace("0123456789ab", "ba9876543210") / files.RECORD
    record.parent.mkdir(parents=True)
    record.write_text('{"facts": {"scale": 2, "seed": 0, "optimizer.lr": ' + "[" * depth + "]" * depth + "}}")
    assert chosen(True, OTHER_FACTS, "edsr-x2-ffffffffffff").state is None
    assert chosen(True).attempt == Attempt(*NEWER.split("/"))


def test_attempts_of_equal_number_have_an_order_and_their_random_part_may_be_long(outputs: Path) -> None:
    names = [f"a0007-{digit * length}" for digit in "0123456789abcdef" for length in (4, 8)]
    for name in names:
        (outputs / "runs" / IDENTITY / name).mkdir(parents=True)
    catalogue = Catalogue(outputs / "runs", None, outputs / "scratch", lambda run_id: None)
    assert [attempt.name for attempt in catalogue.attempts(IDENTITY)] == sorted(names)
    assert re.fullmatch(r"a0008-[0-9a-f]{8}", catalogue.open_new(IDENTITY).name)


def test_a_fresh_start_says_whether_an_unfinished_run_of_the_same_config_can_be_gone_on_with(
    chosen: Choose, outputs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    chosen(False, steps=50)
    assert f"{NEWER} has the same config and is at step 40 of 50: trainer.resume=true goes on with it" in caplog.text
    shutil.rmtree(max((outputs / "runs" / IDENTITY).glob("a0003-*")))
    with file_lock(outputs / "runs" / NEWER / files.LOCK):
        chosen(False, steps=50)
    assert f"at step 40 of 50: process {os.getpid()} on {platform.node()} trains it; this is" in caplog.text


def test_a_schedules_own_length_that_happens_to_be_that_of_the_run_is_no_stretched_schedule(
    chosen: Choose, outputs: Path
) -> None:
    files.begin(outputs / "runs" / NEWER, FACTS | {"scheduler.total_iters": 40}, "", {})
    longer = FACTS | {"scheduler.total_iters": 80}
    assert chosen(NEWER, longer, "edsr-x2-ffffffffffff", steps=80).parent is not None
    with pytest.raises(RequestError, match=r"trainer.allow_changes=true forks it"):
        chosen(NEWER, longer, "edsr-x2-ffffffffffff", steps=80, overrides=["scheduler.total_iters=80"])
