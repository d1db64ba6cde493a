"""What each line of a journal becomes in MLflow. A line may come again: nothing doubles."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from PIL import Image, UnidentifiedImageError

from sr_runner.files import open_own, scratch_folder
from sr_runner.mlflow_server import Refused, Server, Unreachable
from sr_runner.tracking.tracker import SWEEP_TAG

_PARAM_LENGTH, _TAG_LENGTH, _KEY_LENGTH, _DIGEST_LENGTH = 6000, 8000, 250, 36
_NOT_IN_KEYS = re.compile(r"[^/\w.\- :]")
_NOT_IN_PICTURE_KEYS = re.compile(r"[^a-zA-Z0-9_\-./ ]")
_PICTURE = re.compile(r"images/(?P<key>.+)\+step\+(?P<step>-?\d+)\+timestamp\+\d+\+")
_PICTURES_TAG = "mlflow.loggedImages"
_THUMBNAIL = 256
_DATASET = ("name", "source", "digest")

Item = TypeVar("Item", Metric, Param, RunTag)


class Report(Protocol):
    """How the sender speaks to the training process: a message for the log, facts for the tracker, or both."""

    def __call__(self, message: str | None = None, *, level: str = "info", **facts: object) -> None: ...


class RunGone(Exception):
    """The server does not know the run any more: its database was removed, or the run was deleted for good."""


class RunWriter:
    """Writes to one run of the server, less the points and pictures that it has when this is made.

    Raises `Unreachable`, `RunGone`, and `Refused` for what it can do without.
    """

    def __init__(self, server: Server, run_id: str, run_dir: Path, report: Report) -> None:
        self.run_id = run_id
        self._server = server
        self._run_dir = run_dir
        self._report = report
        self._has_pictures = False
        self._refused: set[str] = set()
        self._there = self._steps_there()

    def start(self, event: Mapping[str, Any], parent_id: str | None) -> None:
        """Opens the run, or opens it again: RUNNING, with the params it lacks, the tags, and the data set."""
        run = self.run()
        self._ask("update_run", status="RUNNING")
        self._params(event["params"], run.data.params)
        tags = dict(event["tags"])
        sweeps = run.data.tags.get(SWEEP_TAG, "").split()
        if SWEEP_TAG in tags:  # a job of two sweeps is one of both
            tags[SWEEP_TAG] = " ".join(dict.fromkeys([*sweeps, tags[SWEEP_TAG]]))
        self.tags(tags | ({"mlflow.parentRunId": parent_id} if parent_id else {}))
        if event.get("dataset"):
            self._ask("log_inputs", datasets=[_dataset_input(event["dataset"])])

    def metrics(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Adds the points of metrics lines, each with its line's time."""
        points = [
            Metric(_key(key), float(value), event["time"], event["step"])
            for event in events
            for key, value in event["values"].items()
            if event["step"] not in self._there.get(_key(key), ())
        ]
        self._send(points, "metrics")

    def tags(self, tags: Mapping[str, str]) -> None:
        self._send([RunTag(_key(key), _cut(value, _TAG_LENGTH)) for key, value in tags.items()], "tags")

    def picture(self, event: Mapping[str, Any]) -> None:
        """Adds a picture to the run's image grid, named as `MlflowClient.log_image` names one, with its thumbnail.

        That function draws a name at random; here it stands in the journal, so the same picture keeps one name.
        """
        key = _NOT_IN_PICTURE_KEYS.sub("_", event["key"])
        if event["step"] in self._there.get(f"picture {key}", ()):
            return
        name = f"{key.replace('/', '~')}+step+{event['step']}+timestamp+{event['time']}+{event['id']}"
        with scratch_folder(self._run_dir) as folder:
            try:
                with (
                    os.fdopen(open_own(self._run_dir / event["file"], os.O_RDONLY), "rb") as file,
                    Image.open(file) as image,
                ):
                    image.save(folder / f"{name}.png")
                    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
                    image.convert("RGB").save(folder / f"{name}+compressed.webp")
            except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:
                raise Refused(f"{event['file']}: {error}", "LOCAL") from error
            self._ask("log_artifacts", local_dir=str(folder), artifact_path="images")
        if not self._has_pictures:
            self.tags({_PICTURES_TAG: "True"})
            self._has_pictures = True

    def artifact(self, event: Mapping[str, Any]) -> None:
        """Puts a file among the run's artifacts, in the folder that it has below the run's; one that lies elsewhere at
        the top. It is copied first: a log grows while it is sent."""
        path, below = self._run_dir / event["file"], PurePosixPath(event["file"]).parent
        with scratch_folder(self._run_dir) as folder:
            try:
                with os.fdopen(open_own(path, os.O_RDONLY), "rb") as source, (folder / path.name).open("xb") as copy:
                    shutil.copyfileobj(source, copy)
            except (OSError, ValueError) as error:
                raise Refused(f"{path}: {error}", "LOCAL") from error
            is_top = below.is_absolute() or ".." in below.parts or not below.parts
            place = None if is_top else str(below)
            self._ask("log_artifact", local_path=str(folder / path.name), artifact_path=place)

    def finish(self, status: str, time: int, tags: Mapping[str, str]) -> None:
        self.tags(tags)
        self._ask("set_terminated", status=status, end_time=time)

    def run(self) -> Run:
        """The run as the server has it. Raises `RunGone`, or `Unreachable` while it lies in MLflow's bin."""
        run = self._server.run(self.run_id)
        if run is None:
            raise RunGone(self.run_id)
        if run.info.lifecycle_stage != "active":
            raise Unreachable(f"run {self.run_id} was deleted in MLflow; restore it there, or resume the training")
        return run

    def _params(self, wanted: Mapping[str, str], there: Mapping[str, str]) -> None:
        params = {_key(key): _cut(value, _PARAM_LENGTH) for key, value in wanted.items()}
        changed = sorted(key for key, value in params.items() if there.get(key, value) != value)
        if changed:
            self._once(f"params cannot be changed in MLflow and stay what they were: {', '.join(changed)}")
        self._send([Param(key, value) for key, value in params.items() if key not in there], "params")

    def _send(self, items: Sequence[Item], kind: str) -> None:
        """Sends the items, and where they are refused all but the ones to blame, found by halving."""
        if not items:
            return
        try:
            self._ask("log_batch", **{kind: items}, synchronous=True)
        except Refused as refusal:
            if len(items) == 1:
                self._once(f"MLflow refuses {kind} {items[0].key!r}: {refusal}")
                return
            half = len(items) // 2
            self._send(items[:half], kind)
            self._send(items[half:], kind)

    def _ask(self, method: str, **arguments: Any) -> Any:
        try:
            return self._server.ask(lambda client: getattr(client, method)(self.run_id, **arguments))
        except Refused:
            self.run()  # not a refusal of this request where the run itself is gone
            raise

    def _once(self, message: str) -> None:
        if message not in self._refused:
            self._refused.add(message)
            self._report(message, level="warning")

    def _steps_there(self) -> dict[str, set[int]]:
        """Per key the steps of the points and pictures that the server has. The journal may not know of them: another
        machine's journal did, or it lost lines, and a resumed run computed their points again."""
        found: dict[str, set[int]] = {}
        data = self.run().data
        for key in data.metrics:
            if not key.startswith("system/"):
                found[key] = {point.step for point in self._ask("get_metric_history", key=key)}
        pictures = self._ask("list_artifacts", path="images") if _PICTURES_TAG in data.tags else []
        for entry in pictures:
            if name := _PICTURE.match(entry.path):
                found.setdefault(f"picture {name['key'].replace('~', '/')}", set()).add(int(name["step"]))
        return found


def _dataset_input(dataset: Mapping[str, Any]) -> DatasetInput:
    entity = Dataset(
        name=str(dataset["name"]),
        digest=str(dataset["digest"])[:_DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": str(dataset.get("source", ""))}),
        profile=json.dumps({key: value for key, value in dataset.items() if key not in _DATASET}),
    )
    return DatasetInput(entity, [InputTag("mlflow.data.context", "training")])


def _key(key: str) -> str:
    """`key` with what MLflow does not allow in keys replaced by `_`."""
    return _NOT_IN_KEYS.sub("_", key)[:_KEY_LENGTH]


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
