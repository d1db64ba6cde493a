"""What is a store's own: S3's errors, MLflow's runs, and what each refuses before it asks anybody."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from media import ATTEMPT, MLFLOW, Medium, blobs, content, name, objects_of
from store_servers import S3Server
from support import ROOT, environment

from sr_runner.checkpoint import LocalStore
from sr_runner.checkpoint.format import FILES, MANIFEST
from sr_runner.checkpoint.stores import MlflowStore, RemoteStore, Store
from sr_runner.errors import RequestError


class TestS3:
    def test_a_wrong_secret_is_said_and_never_shown(
        self, s3_server: S3Server, medium_of: Callable[[str], Medium], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        medium = medium_of("s3")
        wrong = "not-the-secret-9876543210"
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", wrong)
        store = medium.store()
        assert isinstance(store, RemoteStore)
        with pytest.raises(RequestError, match="cannot be used") as refused:
            store.check()
        with pytest.raises(PermissionError) as failed:
            store.put(name(1), blobs(1))
        assert wrong not in str(refused.value) + str(failed.value) + store.url

    def test_a_bucket_that_is_not_there_is_no_empty_store(self, medium_of: Callable[[str], Medium]) -> None:
        store = medium_of("s3").another(root="s3://nowhere/checkpoints")
        assert isinstance(store, RemoteStore)
        with pytest.raises(FileNotFoundError, match="bucket"):
            store.list()
        with pytest.raises(RequestError, match=r"checkpoint.root=s3://nowhere/checkpoints cannot be used"):
            store.check()

    @pytest.mark.slow
    def test_more_checkpoints_than_one_page_of_a_listing_holds(self, medium_of: Callable[[str], Medium]) -> None:
        medium = medium_of("s3")
        objects = objects_of(medium.store())
        for number in range(1005):
            objects._fs.pipe_file(objects._path(f"{name(number + 1)}/{MANIFEST}"), b"x")
        assert len(medium.store().list(f"{ATTEMPT}/")) == 1005

    def test_a_store_can_be_used_after_a_fork(self, medium_of: Callable[[str], Medium]) -> None:
        store = medium_of("s3").store()
        store.put(name(1), blobs(1))
        child = os.fork()
        if child == 0:
            os._exit(0 if list(store.list()) == [name(1)] else 1)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("medium", ["mlflow-sqlite", MLFLOW], indirect=True)
class TestMlflow:
    def tagged(self, medium: Medium, start_time: int | None = None) -> Any:
        from mlflow import MlflowClient

        client = MlflowClient(medium.arguments["uri"])
        experiment = client.get_experiment_by_name(medium.arguments["experiment"])
        if experiment:
            ident = experiment.experiment_id
        else:
            place = None if medium.kind == "mlflow" else Path(medium.arguments["outputs"], "artifacts").as_uri()
            ident = client.create_experiment(medium.arguments["experiment"], artifact_location=place)
        return client.create_run(ident, start_time, tags={"sr_run.attempt": ATTEMPT})

    def runs(self, medium: Medium) -> list[Any]:
        from mlflow import MlflowClient

        client = MlflowClient(medium.arguments["uri"])
        experiment = client.get_experiment_by_name(medium.arguments["experiment"])
        assert experiment is not None
        return list(client.search_runs([experiment.experiment_id]))

    def test_checkpoints_are_artifacts_of_the_run_that_the_tracker_made(self, medium: Medium) -> None:
        from mlflow import MlflowClient

        run = self.tagged(medium)
        medium.store().put(name(1), blobs(1))
        (only,) = self.runs(medium)
        assert only.info.run_id == run.info.run_id
        files = MlflowClient(medium.arguments["uri"]).list_artifacts(run.info.run_id, "checkpoints/step-00000001")
        assert {file.path.rpartition("/")[2] for file in files} == {*FILES, MANIFEST}
        medium.store().delete(name(1))
        assert MlflowClient(medium.arguments["uri"]).list_artifacts(run.info.run_id, "checkpoints") == []

    def test_the_first_save_waits_for_the_tracker_to_make_the_run(self, medium: Medium) -> None:
        later = threading.Timer(1.0, self.tagged, [medium])
        later.start()
        medium.another(wait_for_run=30).put(name(1), blobs(1))
        later.join()
        assert len(self.runs(medium)) == 1

    def test_without_a_tracker_the_store_makes_the_run_once(self, medium: Medium) -> None:
        medium.store().put(name(1), blobs(1))
        medium.store().put(name(2), blobs(2))
        (run,) = self.runs(medium)
        assert run.data.tags["sr_run.attempt"] == ATTEMPT

    def test_what_went_to_a_second_run_of_the_attempt_is_found_though_that_run_is_deleted(
        self, medium: Medium, tmp_path: Path
    ) -> None:
        from mlflow import MlflowClient

        medium.store().put(name(1), blobs(1))
        (second,) = self.runs(medium)
        self.tagged(medium, start_time=1)
        MlflowClient(medium.arguments["uri"]).delete_run(second.info.run_id)
        medium.store().put(name(2), blobs(2))
        assert set(medium.store().list()) == {name(1), name(2)}
        for step in (1, 2):
            assert content(medium.store().get(name(step), tmp_path / "scratch")) == "first"
        medium.store().delete(name(1))
        assert list(medium.store().list()) == [name(2)]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, r"checkpoint.root is not set: expected a URL such as checkpoint.root=s3://bucket/prefix"),
        ({"root": "???"}, "checkpoint.root is not set"),
        ({"root": "/mnt/folder"}, r"checkpoint.root=/mnt/folder is not a URL.*checkpoint=local"),
        ({"root": "s3x://bucket"}, r"s3x:// is not supported.* Did you mean 's3'"),
        ({"root": "s3://"}, "names no bucket"),
        ({"root": "s3://bucket/../other"}, "cannot be in it"),
        ({"root": "gs://bucket/x"}, "the package gcsfs is missing: pip install gcsfs"),
        ({"root": "memory://x", "retry_seconds": -1}, "retry_seconds=-1"),
    ],
)
def test_a_root_that_cannot_be_is_refused_before_anything_is_asked(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        RemoteStore(**arguments)


def test_an_s3fs_that_is_too_old_is_refused_with_the_version_that_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsspec.get_filesystem_class", lambda protocol: object)  # it has no `call_s3`
    with pytest.raises(RequestError, match=r"s3fs [\d.]+ is too old: expected 2025\.3 or later") as refused:
        RemoteStore("s3://bucket/prefix")
    needed = re.search(r"s3fs>=([\d.]+)", (ROOT / "pyproject.toml").read_text())
    assert needed is not None and f"expected {needed[1]} " in str(refused.value)


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(RequestError, match="credentials must not be in the URL") as refused:
        RemoteStore("s3://AKIAKEY:verysecret@bucket/prefix")
    assert "verysecret" not in str(refused.value)
    assert "verysecret" not in MlflowStore(uri="http://me:verysecret@host:5000").url


def test_mlflow_takes_no_root() -> None:
    with pytest.raises(RequestError, match=r"leave checkpoint.root out"):
        MlflowStore("s3://bucket")


def test_nothing_of_a_store_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, sr_runner.checkpoint.stores as stores; stores.MlflowStore(uri='http://127.0.0.1:9'); "
        "print(sorted({'mlflow', 'fsspec', 's3fs', 'botocore'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def fits(store: Store) -> Sequence[str]:
    return store.list()


def test_every_store_is_a_store(tmp_path: Path) -> None:
    for store in (LocalStore(tmp_path), RemoteStore("memory://none"), MlflowStore(outputs=tmp_path)):
        assert list(fits(store)) == []
