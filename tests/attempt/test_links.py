"""Links that somebody planted among sr-run's own files: none is written through or read through."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from saved_runs import IDENTITY, network, save
from skimage import data
from support import TINY, SrRun

from sr_runner.attempt import logs
from sr_runner.attempt.lock import AttemptLock
from sr_runner.checkpoint import CheckpointManager, DamagedError, LastN, LocalStore
from sr_runner.checkpoint.format import FILES, MANIFEST, Blob
from sr_runner.checkpoint.reader import read
from sr_runner.checkpoint.stores.mlflow import MlflowStore
from sr_runner.commands import ckpt, evaluate, upscale
from sr_runner.config.settings import CheckpointSettings
from sr_runner.data.cache import ImageCache
from sr_runner.errors import RequestError
from sr_runner.files import LinkError, file_lock
from sr_runner.runs import folder as files
from sr_runner.runs.catalogue import Attempt, Catalogue
from sr_runner.signals import StopSignal
from sr_runner.tracking.journal import JournalWriter, read_json, read_lines, write_json
from sr_runner.tracking.sender_process import sender_for
from sr_runner.weights import export

ATTEMPT = f"{IDENTITY}/a0001-cafe"
REPLACED = ("run.json", "config.yaml", "result.json", "images.csv", "tracker.json", "journal.sent")
REFUSED = ("run.lock", "starts.jsonl", "journal.jsonl", "system.jsonl")
ALARM = b"alias ls='echo this is a file of the user'\n"


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file of the user's, alone in a folder. Both stay as they are, which every test checks at its end."""
    path = tmp_path / "home" / ".bashrc"
    path.parent.mkdir()
    path.write_bytes(ALARM)
    return path


@pytest.fixture(autouse=True)
def unharmed(canary: Path) -> object:
    yield
    assert canary.read_bytes() == ALARM and [path.name for path in canary.parent.iterdir()] == [canary.name]


def plant(path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def manager_of(store: LocalStore, tmp_path: Path) -> CheckpointManager:
    return CheckpointManager(store, ATTEMPT, keep=[LastN(5)], scratch=tmp_path / "s")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """With two good checkpoints."""
    store = LocalStore(tmp_path / "outputs" / "checkpoints")
    save(store, ATTEMPT, 10, 20)
    return store


# -- a run's folder ------------------------------------------------------------------------------------------------


def test_a_resume_refuses_a_link_at_a_lock_or_log_and_replaces_one_at_any_other_file(
    sr_run: SrRun, tmp_path: Path, canary: Path
) -> None:
    words = (*TINY, "scheduler=constant")
    sr_run(*words, "trainer.steps=3")
    (folder,) = (tmp_path / "outputs" / "runs").glob("*/*")
    resume = (*words, "trainer.resume=true")
    for name in REFUSED:
        kept = (folder / name).read_bytes() if (folder / name).exists() else b""
        plant(folder / name, canary)
        done = sr_run(*resume, code=2)
        last = done.stderr.splitlines()[-1]
        assert f"{folder / name}" in last and "link" in last and "Traceback" not in done.stderr
        (folder / name).unlink()
        (folder / name).write_bytes(kept)
    (picture,) = (path.name for path in (folder / "pictures").iterdir())
    replaced = [folder / name for name in REPLACED]
    replaced += [folder / "pictures" / picture.replace("00000003", "00000006")]
    for path in replaced:
        plant(path, canary)
    assert "resumed at step 3 of 6" in sr_run(*resume).stderr
    assert not any(path.is_symlink() for path in replaced)


@pytest.mark.parametrize(
    "use",
    [
        lambda path: logs.to_file(path).__enter__(),
        lambda path: JournalWriter(path),
        lambda path: list(read_lines(path)),
        lambda path: file_lock(path).__enter__(),
        lambda path: files.add_job(path.parent, "slurm 1"),
    ],
    ids=["log", "journal", "reading", "file_lock", "jobs"],
)
@pytest.mark.parametrize("exists", [True, False], ids=["file", "dangling"])
def test_what_is_appended_to_is_no_link(
    use: Callable[[Path], object], exists: bool, tmp_path: Path, canary: Path
) -> None:
    folder = tmp_path / "runs" / ATTEMPT
    for name in (files.LOCK, files.JOBS):
        plant(folder / name, canary if exists else canary.parent / "new")
    with pytest.raises(LinkError, match="expected a file, not a link"):
        use(folder / files.LOCK)


def test_a_link_at_the_senders_log_is_reported_and_the_sender_not_started(
    tmp_path: Path, canary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plant(tmp_path / "sender.log", canary)
    sender = sender_for("http://127.0.0.1:9", tmp_path)
    served = sender.begin(tmp_path, system_metrics=False)
    sender.end(served)
    assert not sender.settle(served, wait=0, stays=False) and sender.is_over
    assert "sender.log: expected a file, not a link" in caplog.text and "points are kept in the journal" in caplog.text


def test_records_are_replaced_whole_and_not_read_through_a_link(tmp_path: Path, canary: Path) -> None:
    folder, elsewhere = tmp_path / "runs" / ATTEMPT, tmp_path / "elsewhere.json"
    elsewhere.write_text('{"facts": {"seed": 1}, "run_id": "0"}')
    for name in (files.RECORD, files.TRACKER, files.JOBS):
        plant(folder / name, elsewhere)
    assert files.facts(folder) is None and files.tracker(folder) == {} and files.jobs(folder) == []
    write_json(folder / files.TRACKER, {"run_id": "1"})
    files.begin(folder, {"seed": 2}, "", {})
    assert read_json(folder / files.TRACKER) == {"run_id": "1"} and files.facts(folder) == {"seed": 2}
    assert json.loads(elsewhere.read_text())["run_id"] == "0"


@pytest.mark.parametrize("linked", [IDENTITY, ATTEMPT])
def test_the_folder_of_a_run_is_no_link(linked: str, tmp_path: Path, canary: Path) -> None:
    runs = tmp_path / "runs"
    plant(runs / linked, canary.parent)
    catalogue = Catalogue(runs, None, tmp_path / "s", lambda run_id: None)
    folder = catalogue.folder(Attempt(*ATTEMPT.split("/")))
    assert catalogue.attempts(IDENTITY) == []
    parts = SimpleNamespace(store=None, checkpoint=CheckpointSettings())
    with pytest.raises(LinkError, match="expected a folder, not a link"):
        AttemptLock(parts, catalogue, StopSignal()).hold(Attempt(*ATTEMPT.split("/")), False)  # type: ignore[arg-type]
    with pytest.raises(LinkError, match="expected a folder, not a link"):
        files.begin(folder, {}, "", {})
    if linked == IDENTITY:
        with pytest.raises(LinkError, match="expected a folder, not a link"):
            catalogue.open_new(IDENTITY)


def test_the_roots_may_be_links(tmp_path: Path, canary: Path) -> None:
    for name in ("runs", "checkpoints"):
        (tmp_path / "disk" / name).mkdir(parents=True)
        plant(tmp_path / name, tmp_path / "disk" / name)
    store = LocalStore(tmp_path / "checkpoints")
    save(store, ATTEMPT, 10)
    catalogue = Catalogue(tmp_path / "runs", store, tmp_path / "s", lambda run_id: None)
    attempt = catalogue.open_new(IDENTITY)
    files.begin(catalogue.folder(attempt), {"seed": 2}, "", {})
    assert catalogue.facts(attempt) == {"seed": 2} and len(catalogue.attempts(IDENTITY)) == 2
    assert manager_of(store, tmp_path).restore() is not None


# -- checkpoints ---------------------------------------------------------------------------------------------------


def test_a_forged_checkpoint_whose_why_json_is_a_link_is_quarantined_without_writing_through_it(
    store: LocalStore, tmp_path: Path, canary: Path
) -> None:
    plant(store.root / ATTEMPT / "step-00000020" / "why.json", canary)
    restored = manager_of(store, tmp_path).restore()
    assert restored is not None and restored.step == 10
    (damaged,) = (store.root / ATTEMPT).glob("damaged-*")
    assert not (damaged / "why.json").is_symlink()
    assert json.loads((damaged / "why.json").read_text())["reason"] == "why.json is a link"


def test_a_step_that_is_a_link_is_damage_however_good_what_it_leads_to(
    store: LocalStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = tmp_path / "elsewhere"
    step = store.root / ATTEMPT / "step-00000020"
    step.rename(good)
    before = {path.name: path.read_bytes() for path in good.iterdir()}
    plant(step, good)
    restored = manager_of(store, tmp_path).restore()
    assert restored is not None and restored.step == 10 and "step-00000020 is a link" in caplog.text
    (damaged,) = (store.root / ATTEMPT).glob("damaged-*")
    assert (damaged / "step-00000020").is_symlink() and (damaged / "why.json").is_file()
    assert {path.name: path.read_bytes() for path in good.iterdir()} == before


def test_a_step_that_is_a_link_is_replaced_and_deleted_as_a_link(store: LocalStore, tmp_path: Path) -> None:
    step, elsewhere = store.root / ATTEMPT / "step-00000030", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for target in (elsewhere, tmp_path / "nowhere"):
        plant(step, target)
        save(store, ATTEMPT, 30)
        assert step.is_dir() and not step.is_symlink() and not list(elsewhere.iterdir())
        store.delete(f"{ATTEMPT}/step-00000030")
        plant(step, target)
        store.delete(f"{ATTEMPT}/step-00000030")
        assert not step.is_symlink()
    for left in (".writing-x", ".deleted-x", ".replaced-step-00000040-0"):
        plant(store.root / ATTEMPT / left, elsewhere)
    (elsewhere / MANIFEST).write_text("")
    store.clean(ATTEMPT)
    assert sorted(path.name for path in (store.root / ATTEMPT).iterdir()) == ["step-00000010", "step-00000020"]
    assert [path.name for path in elsewhere.iterdir()] == [MANIFEST]


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_file_of_a_checkpoint_that_is_a_link_is_damage(name: str, store: LocalStore, tmp_path: Path) -> None:
    folder = store.root / ATTEMPT / "step-00000020"
    (folder / name).rename(tmp_path / name)
    plant(folder / name, tmp_path / name)
    with pytest.raises(DamagedError, match=f"{name}.*link"):
        read(folder)
    with pytest.raises(LinkError):
        list(Blob.of_file(folder / name).chunks())


def test_a_link_at_the_lease_is_not_read_and_replaced(store: LocalStore, canary: Path) -> None:
    plant(store.root / ATTEMPT / "lease.json", canary)
    with pytest.raises(LinkError):
        store.read_lease(ATTEMPT)
    store.write_lease(ATTEMPT, b"{}")
    assert store.read_lease(ATTEMPT) == b"{}"


@pytest.mark.parametrize("linked", [IDENTITY, ATTEMPT])
def test_no_folder_between_the_root_and_a_checkpoint_is_a_link(
    linked: str, store: LocalStore, tmp_path: Path, canary: Path
) -> None:
    (store.root / linked).rename(tmp_path / "elsewhere")
    plant(store.root / linked, tmp_path / "elsewhere")
    before = sorted((tmp_path / "elsewhere").rglob("*"))
    name = f"{ATTEMPT}/step-00000010"
    assert list(store.list()) == [] and list(store.list(f"{ATTEMPT}/")) == []
    for verb in (
        lambda: store.put(name, [Blob.of(MANIFEST, b"")]), lambda: store.get(name, tmp_path),
        lambda: store.delete(name), lambda: store.quarantine(name, ""), lambda: store.clean(ATTEMPT),
        lambda: store.read_lease(ATTEMPT), lambda: store.write_lease(ATTEMPT, b""), lambda: store.drop_lease(ATTEMPT),
    ):  # fmt: skip
        with pytest.raises(LinkError, match="expected a folder, not a link"):
            verb()
    assert sorted((tmp_path / "elsewhere").rglob("*")) == before


def test_what_is_uploaded_does_not_lie_behind_a_link_meanwhile(tmp_path: Path, canary: Path) -> None:
    plant(tmp_path / "outputs" / ".scratch", tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "kept").mkdir(parents=True)
    with pytest.raises(LinkError), MlflowStore(outputs=tmp_path / "outputs")._artifacts._scratch():
        pass
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["kept"]


# -- the cache, sweeps, and what the commands write ----------------------------------------------------------------


def test_a_link_in_the_image_cache_is_replaced_or_refused(tmp_path: Path, canary: Path) -> None:
    cache, pixels = ImageCache(tmp_path / "cache"), np.zeros((2, 3, 3), np.uint8)
    image = cache.store("a", {"version": 1}, pixels, job="j")
    image.path.rename(tmp_path / "elsewhere")
    plant(image.path, tmp_path / "elsewhere")
    assert cache.find("a", {"version": 1}) is None, "it was read through the link"
    plant(image.path, canary)
    assert np.array_equal(cache.store("a", {"version": 1}, pixels, job="j").pixels(), pixels)
    assert not image.path.is_symlink()
    for name in ("images", "building", "locks"):
        shutil.rmtree(tmp_path / "cache" / name)
        plant(tmp_path / "cache" / name, canary.parent)
        with pytest.raises(LinkError), cache.building("j"):
            cache.store("a", {"version": 1}, pixels, job="j")
        (tmp_path / "cache" / name).unlink()


def test_a_link_in_the_folder_of_a_sweep_is_refused_and_its_record_replaced(
    sr_run: SrRun, tmp_path: Path, canary: Path
) -> None:
    words = ("-m", *TINY, "seed=1", "trainer.steps=1", "tracker=none", "checkpoint=none", "hydra.sweep.dir=sweep")
    plant(tmp_path / "sweep" / "multirun.yaml", canary)
    assert "multirun.yaml: expected a file, not a link" in sr_run(*words, code=2).stderr
    (tmp_path / "sweep" / "multirun.yaml").unlink()
    plant(tmp_path / "sweep" / "job", canary.parent)
    done = sr_run(*words, code=2)
    assert "sweep/job: expected a folder, not a link" in done.stderr and "Traceback" not in done.stderr
    (tmp_path / "sweep" / "job").unlink()
    plant(tmp_path / "sweep" / "job" / "job.log", canary)
    done = sr_run(*words, code=2)
    assert "job.log: expected a file, not a link" in done.stderr and "Traceback" not in done.stderr
    (tmp_path / "sweep" / "job" / "job.log").unlink()
    for name in ("job/job.json", "sweep.csv", "sweep.html", "sweep.json"):
        (tmp_path / "sweep" / name).unlink(missing_ok=True)
        plant(tmp_path / "sweep" / name, canary)
    sr_run(*words)


def test_the_preview_replaces_a_link(sr_run: SrRun, tmp_path: Path, canary: Path) -> None:
    plant(tmp_path / "outputs" / "preview.png", canary)
    sr_run(*TINY, "data.preview=1")
    assert not (tmp_path / "outputs" / "preview.png").is_symlink()
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["preview.png"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: weights and a folder of HR images."""
    monkeypatch.chdir(tmp_path)
    export(network(0.1), tmp_path / "edsr.safetensors")
    (tmp_path / "hr" / "deep").mkdir(parents=True)
    for name in ("cat.png", "deep/cat.png"):
        Image.fromarray(data.chelsea()[:24, :24]).save(tmp_path / "hr" / name)
    return tmp_path


def test_sr_upscale_replaces_a_link_and_refuses_a_folder_that_is_one(
    here: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(here / "large" / "catx2.png", canary)
    plant(here / "large" / "deep", canary.parent)
    assert upscale.main(["edsr.safetensors", "hr", "output=large"]) == 2
    assert "large/deep: expected a folder, not a link" in capsys.readouterr().err
    assert not (here / "large" / "catx2.png").is_symlink()


def test_sr_eval_replaces_links_at_its_tables_and_pictures(here: Path, canary: Path) -> None:
    words = ["edsr.safetensors", "data=hr", "output=table.csv", "pictures=drawn"]
    assert evaluate.main(words) == 0
    made = [here / "table.csv", *(here / "drawn").iterdir()]
    assert len(made) == 3
    for path in made:
        plant(path, canary)
    assert evaluate.main(words) == 0
    assert not any(path.is_symlink() for path in made)


def test_sr_ckpt_export_takes_a_dangling_link_for_a_file_that_exists(
    here: Path, store: LocalStore, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(here / "out.safetensors", canary.parent / "new")
    assert ckpt.main(["export", ATTEMPT, "out.safetensors"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_exported_weights_replace_a_link(here: Path, canary: Path) -> None:
    plant(here / "mine.safetensors", canary)
    plant(here / ".mine.safetensors.part", canary)
    export(network(), here / "mine.safetensors")
    assert not (here / "mine.safetensors").is_symlink()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.log")
    with pytest.raises(RequestError, match="expected a file"):
        list(read_lines(tmp_path / "run.log"))
    with pytest.raises(RequestError, match="expected a file"), logs.to_file(tmp_path / "run.log"):
        logging.getLogger("x").info("never")


def test_a_log_that_is_a_link_leaves_nothing_to_be_closed_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "run.log").symlink_to(tmp_path / "elsewhere")
    before = len(logging._handlerList)
    with pytest.raises(LinkError):
        logs.LogFile(tmp_path / "run.log")
    assert len(logging._handlerList) == before
