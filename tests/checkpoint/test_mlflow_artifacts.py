"""Checkpoints among MLflow's artifacts, from a server that answers what it likes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from sr_runner.checkpoint.format import Blob
from sr_runner.checkpoint.stores import MlflowStore
from sr_runner.checkpoint.stores.mlflow import _FOLDER, Artifacts
from sr_runner.checkpoint.stores.requests import Requests

ATTEMPT = "edsr-x2-0123456789ab/a0001-00ff"
STEP = f"{ATTEMPT}/step-00000001"


class Files:
    """The artifacts of one run. `faults`: bytes or errors that the next downloads give, or the next deletions."""

    def __init__(self, **files: bytes) -> None:
        self.files = {f"{_FOLDER}/step-00000001/{name}": content for name, content in files.items()}
        self.faults: list[Any] = []
        self.downloads = 0

    def list_artifacts(self, folder: str) -> list[Any]:
        return [
            SimpleNamespace(path=path, is_dir=False, file_size=len(content))
            for path, content in self.files.items() if path.rpartition("/")[0] == folder
        ]  # fmt: skip

    def _download_file(self, path: str, local: str) -> None:
        self.downloads += 1
        Path(local).write_bytes(self.faults.pop(0) if self.faults else self.files[path])

    def log_artifact(self, local: str, folder: str) -> None:
        self.files[f"{folder}/{Path(local).name}"] = Path(local).read_bytes()

    def delete_artifacts(self, path: str) -> None:
        if self.faults:
            fault = self.faults.pop(0)
            if fault == "it is gone":
                del self.files[path]
            raise MlflowException(str(fault))
        self.files.pop(path, None)


def artifacts(tmp_path: Path, *runs: Files, wait: float = 0) -> Artifacts:
    server = SimpleNamespace(artifacts=lambda run: runs[run.info.run_id])
    made = Artifacts("mlflow:x", server, "tests", tmp_path, Requests(5), wait)  # type: ignore[arg-type]
    known = [SimpleNamespace(info=SimpleNamespace(run_id=number)) for number in range(len(runs))]
    made._runs = lambda attempt: known if attempt == ATTEMPT else []  # type: ignore[assignment,return-value]
    return made


def test_without_a_run_there_is_nothing_to_lease_to_read_or_to_find(tmp_path: Path) -> None:
    store = MlflowStore(uri="http://127.0.0.1:9", outputs=tmp_path)
    store._artifacts._runs = lambda attempt: []  # type: ignore[method-assign]
    with pytest.raises(FileNotFoundError, match="there is no run of"):
        store.write_lease(ATTEMPT, b"me")
    with pytest.raises(FileNotFoundError, match="there is no run of"):
        store._artifacts.read(f"{STEP}/a", tmp_path / "a", 1)
    assert store._artifacts.peek(f"{STEP}/a", 9) is None


def test_a_file_that_comes_short_is_asked_for_again(tmp_path: Path) -> None:
    files = Files(a=b"0123")
    files.faults = [b"01"]
    artifacts(tmp_path, files).read(f"{STEP}/a", tmp_path / "a", 4)
    assert (tmp_path / "a").read_bytes() == b"0123" and files.downloads == 2


def test_of_a_file_above_the_limit_nothing_is_fetched(tmp_path: Path) -> None:
    files = Files(a=b"0123", b=b"01234")
    store = artifacts(tmp_path, files)
    assert store.peek(f"{STEP}/a", 4) == b"0123" and store.peek(f"{STEP}/none", 4) is None
    assert files.downloads == 1
    assert store.peek(f"{STEP}/b", 4) == b"" and files.downloads == 1


def test_of_two_runs_of_an_attempt_the_one_that_has_the_file_is_read_and_the_first_is_written_to(
    tmp_path: Path,
) -> None:
    first, second = Files(a=b"first"), Files(a=b"second", b=b"second")
    store = artifacts(tmp_path, first, second)
    for name, content in (("a", b"first"), ("b", b"second")):
        store.read(f"{STEP}/{name}", tmp_path / name, len(content))
        assert (tmp_path / name).read_bytes() == content == store.peek(f"{STEP}/{name}", 99)
    store.write(f"{STEP}/c", Blob.of("c", b"new"))
    assert f"{_FOLDER}/step-00000001/c" in first.files and len(second.files) == 2
    store.delete([f"{STEP}/a", f"{STEP}/b"])
    assert list(first.files) == [f"{_FOLDER}/step-00000001/c"] and second.files == {}


def test_a_deletion_whose_answer_was_lost_is_no_error_and_one_that_did_not_happen_is(tmp_path: Path) -> None:
    files = Files(a=b"0", b=b"1")
    store = artifacts(tmp_path, files)
    files.faults = ["it is gone"]
    store.delete([f"{STEP}/a"], once=True)
    files.faults = ["it is there"]
    with pytest.raises(OSError, match="deleting"):
        store.delete([f"{STEP}/b"], once=True)
