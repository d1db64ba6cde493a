"""Checkpoints as artifacts of the MLflow run that they belong to.

The attempt `<identity>/<attempt>` is the run with the tag `sr_run.attempt` of that value, and its checkpoint
`step-00001000` the artifacts below `checkpoints/step-00001000/`. The tracker gives the run its tag when it makes it, so
the store needs nothing but the tracking URI and the experiment's name to find checkpoints from any machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sr_runner.checkpoint.format import Blob
from sr_runner.checkpoint.stores.objects import ObjectStore
from sr_runner.checkpoint.stores.requests import Requests, check_seconds
from sr_runner.errors import RequestError
from sr_runner.files import scratch_folder
from sr_runner.masking import masked_text
from sr_runner.mlflow_server import ARTIFACTS, ATTEMPT_TAG, EXPERIMENT, Server, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import FileInfo, Run

_FOLDER = "checkpoints"


class MlflowStore(ObjectStore):
    """Checkpoints as artifacts of the runs of one experiment (see `ObjectStore` for how they are committed).

    `uri` is MLflow's tracking URI; without one `$MLFLOW_TRACKING_URI` counts, and without that the SQLite file
    `outputs/mlflow.db`. `root` has to be null. The first save waits up to `wait_for_run` seconds for the tracker to
    make the run, and then makes it itself; the tracker takes over a run that it finds by its tag. A request that
    fails is sent again for `retry_seconds`. MLflow is imported with the first request.

    Durability is that of the artifact storage behind the server: a folder (the default) is not flushed to the disk.
    """

    def __init__(
        self,
        root: str | None = None,
        *,
        uri: str | None = None,
        experiment: str = EXPERIMENT,
        outputs: str | Path = "outputs",
        retry_seconds: float = 60.0,
        wait_for_run: float = 20.0,
    ):
        if root is not None:
            raise RequestError(
                f"checkpoint.root={masked_text(str(root))}: checkpoint=mlflow keeps checkpoints where tracker.uri "
                "says; leave checkpoint.root out, or take checkpoint=local or checkpoint=s3"
            )
        if not experiment.strip():
            raise RequestError(f"checkpoint.store.experiment={experiment!r} is empty: expected a name")
        place = Path(outputs).absolute()
        address = tracking_uri(uri, place)
        url = f"mlflow:{masked_text(address)}#{experiment}"
        server = Server(address, place / ARTIFACTS)
        wait = check_seconds("wait_for_run", wait_for_run)
        self._artifacts = Artifacts(url, server, experiment, place, Requests(retry_seconds), wait)
        super().__init__(self._artifacts)

    def check(self) -> None:
        """Nothing to ask yet: the run that the checkpoints will belong to is the tracker's to make."""

    def write_lease(self, attempt: str, record: bytes) -> None:
        """Nor is the run made for a lease: until the tracker has made it, nobody else can know of the attempt."""
        if not self._artifacts.has_run(attempt):
            raise FileNotFoundError(f"there is no run of {attempt} in {self.url} yet")
        super().write_lease(attempt, record)


class Artifacts:
    """`Objects` in the artifacts of MLflow runs; the first two parts of a key are the run's tag."""

    def __init__(
        self, url: str, server: Server, experiment: str, outputs: Path, requests: Requests, wait_for_run: float
    ):
        self.url = url
        self._server = server
        self._experiment = experiment
        self._outputs = outputs
        self._send = requests.send
        self._wait_for_run = wait_for_run

    def has_run(self, attempt: str) -> bool:
        return bool(self._runs(attempt))

    def keys(self, folder: str) -> Mapping[str, int]:
        what, parts = f"listing {self.url}", folder.split("/") if folder else []
        runs = self._send(what, lambda: self._find("/".join(parts[:2]), whole=len(parts) >= 2))
        found: dict[str, int] = {}
        for attempt, attempt_runs in runs.items():
            for run in attempt_runs:
                for file in self._walk(run, "/".join([_FOLDER, *parts[2:]])):
                    # Two runs of one attempt, of which the tracker removed one, are one to us: the older one's file.
                    found.setdefault(f"{attempt}{file.path.removeprefix(_FOLDER)}", int(file.file_size or 0))
        return found

    def write(self, key: str, blob: Blob) -> None:
        attempt, folder, name = _split(key)
        with self._scratch() as scratch:
            file = scratch / name
            with file.open("xb") as stream:
                for chunk in blob.chunks():
                    stream.write(chunk)
            self._upload(attempt, folder, file, f"uploading {key} to {self.url}")

    def read(self, key: str, path: Path, size: int) -> None:
        attempt, folder, name = _split(key)
        self._download(self._holder(attempt, f"{folder}/{name}"), f"{folder}/{name}", path, size)

    def peek(self, key: str, limit: int) -> bytes | None:
        attempt, folder, name = _split(key)
        for run in self._runs(attempt):
            sizes = {file.path: file.file_size or 0 for file in self._list(run, folder)}
            if (size := sizes.get(f"{folder}/{name}")) is not None:
                if size > limit:  # MLflow downloads files whole
                    return b""
                with self._scratch() as scratch, suppress(FileNotFoundError):
                    self._download(run, f"{folder}/{name}", scratch / name, size)
                    return (scratch / name).read_bytes()[:limit]
        return None

    def copy(self, source: str, target: str) -> None:
        attempt, folder, name = _split(target)
        with self._scratch() as scratch:
            file = scratch / name
            size = self.keys(source.rpartition("/")[0])[source]
            self.read(source, file, size)
            self._upload(attempt, folder, file, f"copying {source} in {self.url}")

    def delete(self, keys: Sequence[str], *, once: bool = False) -> None:
        runs = {attempt: self._runs(attempt) for attempt in {_split(key)[0] for key in keys}}
        for attempt, folder, name in map(_split, keys):
            for run in runs[attempt]:
                self._delete(run, f"{folder}/{name}", once)
        for attempt, folder in dict.fromkeys(_split(key)[:2] for key in keys):
            for run in runs[attempt]:
                if not self._list(run, folder):
                    self._delete(run, folder, once)  # where folders exist, an empty one stays otherwise

    def abandon_uploads(self, folder: str) -> None:
        """There are none: a file is uploaded whole, and what a killed process kept here the next one removes."""

    def _runs(self, attempt: str) -> list[Run]:
        """The runs that may hold an attempt's checkpoints: one, hardly ever two; the first is written to."""
        what = f"finding the run of {attempt} in {self.url}"
        return self._send(what, lambda: self._find(attempt, whole=True)).get(attempt, [])

    def _find(self, attempt: str, *, whole: bool) -> dict[str, list[Run]]:
        """Attempt -> its runs, deleted ones too, the one to write to first. `attempt` is one if `whole`, else the
        identity that it begins with ("": any).

        Of two runs that the store and the tracker made at the same time both go on with the older, but what was
        written to the other in the meantime has to be found, though it is deleted.
        """
        found: dict[str, list[Run]] = {}
        if not self._server.is_made:  # the tracker makes it
            return found
        experiment = self._server.ask(lambda client: client.get_experiment_by_name(self._experiment))
        if experiment is not None:
            value = attempt if whole or not attempt else f"{attempt}/"
            for run in self._server.runs(experiment.experiment_id, ATTEMPT_TAG, value, prefix=not whole):
                found.setdefault(run.data.tags[ATTEMPT_TAG], []).append(run)
        return found

    def _run_to_write(self, attempt: str) -> Run:
        """The run of an attempt, made here where no tracker makes it: that is off, or has not come that far."""

        def make() -> Run:
            experiment_id, now = self._server.experiment_id(self._experiment), int(time.time() * 1000)
            name = attempt.partition("/")[0]
            return self._server.tagged_run(experiment_id, ATTEMPT_TAG, attempt, name=name, start_time=now)

        until = time.monotonic() + self._wait_for_run
        while not (runs := self._runs(attempt)):
            if time.monotonic() >= until:
                return self._send(f"making the run of {attempt} in {self.url}", make)
            time.sleep(0.25)
        return runs[0]

    def _holder(self, attempt: str, path: str) -> Run:
        """The run that has the artifact `path`."""
        runs = self._runs(attempt)
        if not runs:
            raise FileNotFoundError(f"there is no run of {attempt} in {self.url}")
        return runs[0] if len(runs) == 1 else next((run for run in runs if self._has(run, path)), runs[0])

    def _has(self, run: Run, path: str) -> bool:
        return any(file.path == path for file in self._list(run, path.rpartition("/")[0]))

    def _download(self, run: Run, path: str, file: Path, size: int | None = None) -> None:
        def download() -> None:
            file.unlink(missing_ok=True)
            if size == 0:  # MLflow's client makes no file of an empty answer
                file.touch()
                return
            self._server.artifacts(run)._download_file(path, str(file))
            if size not in (None, file.stat().st_size):
                raise OSError(f"{file.stat().st_size} bytes came instead of {size}")

        self._send(f"downloading {path} of run {run.info.run_id} in {self.url}", download)

    def _walk(self, run: Run, folder: str) -> Iterator[FileInfo]:
        for file in self._list(run, folder):
            yield from self._walk(run, file.path) if file.is_dir else [file]

    def _list(self, run: Run, folder: str) -> list[FileInfo]:
        try:
            what = f"listing {folder} in {self.url}"
            found = self._send(what, lambda: self._server.artifacts(run).list_artifacts(folder))
        except FileNotFoundError:
            return []
        return [file for file in found if file.path != folder]

    def _delete(self, run: Run, path: str, once: bool) -> None:
        """What is not there (a first try deleted it, and its answer was lost) is no error, whatever MLflow says."""

        def delete() -> None:
            artifacts = self._server.artifacts(run)
            try:
                artifacts.delete_artifacts(path)
            except Exception:
                if any(file.path == path for file in artifacts.list_artifacts(path.rpartition("/")[0])):
                    raise

        self._send(f"deleting {path} of run {run.info.run_id} in {self.url}", delete, once=once)

    def _upload(self, attempt: str, folder: str, file: Path, what: str) -> None:
        run = self._run_to_write(attempt)
        self._send(what, lambda: self._server.artifacts(run).log_artifact(str(file), folder))

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder on this machine's disk for one file: MLflow uploads files, not streams."""
        self._outputs.mkdir(parents=True, exist_ok=True)
        with scratch_folder(self._outputs) as folder:
            yield folder


def _split(key: str) -> tuple[str, str, str]:
    """A key as the run's tag, the folder among its artifacts, and the file's name."""
    identity, attempt, *folders, name = key.split("/")
    return f"{identity}/{attempt}", "/".join([_FOLDER, *folders]), name
