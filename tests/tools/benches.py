"""The stores that the fault trials run against, with their real servers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from interpose import Watch, watch_folder, watch_requests
from store_servers import MlflowArtifactServer, S3Server, StorageServer

Points = tuple[int, dict[str, list[tuple[int, float]]]]


@dataclass
class Bench:
    """One store. `outputs` is the folder of one trial; its name is the trial's place in the store."""

    kind: str
    folder: Path
    server: StorageServer | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def overrides(self, outputs: Path) -> list[str]:
        mine = [f"outputs={outputs}", f"checkpoint={self.kind}"]
        if self.kind == "s3":
            mine.append(f"checkpoint.root=s3://bucket/{outputs.name}")
        if isinstance(self.server, MlflowArtifactServer):
            mine += [f"tracker.uri={self.server.uri}", f"tracker.experiment={outputs.name}"]
        return mine

    def open(self, outputs: Path) -> Any:
        """The store of a trial."""
        from sr_runner.checkpoint.stores import LocalStore, MlflowStore, RemoteStore

        if self.kind == "local":
            return LocalStore(outputs / "checkpoints")
        if self.kind == "s3":
            return RemoteStore(f"s3://bucket/{outputs.name}")
        assert isinstance(self.server, MlflowArtifactServer)
        return MlflowStore(uri=self.server.uri, experiment=outputs.name, outputs=outputs, wait_for_run=0)

    def interpose(self, outputs: Path, watch: Watch) -> Callable[[], None]:
        return partial(watch_folder, watch, outputs / "checkpoints") if self.kind == "local" else partial(
            watch_requests, watch
        )  # fmt: skip

    def points(self, outputs: Path) -> Points:
        """The MLflow runs of a trial, and the metric points of the first."""
        import kill_and_resume

        if isinstance(self.server, MlflowArtifactServer):
            return kill_and_resume.points(outputs, self.server.uri, outputs.name)
        return kill_and_resume.points(outputs)

    def files(self, outputs: Path) -> list[str]:
        """Everything that is in the store, unfinished uploads too; `identity/attempt/folder/file`."""
        if self.kind == "local":
            root = outputs / "checkpoints"
            return [str(path.relative_to(root)) for path in root.rglob("*") if not any(path.glob("*"))]
        objects = self.open(outputs)._objects
        found = list(objects.keys(""))
        if self.kind == "s3":
            uploads = objects._uploads("bucket", f"{outputs.name}/")
            found += [f"{upload['Key'].partition('/')[2]} (unfinished upload)" for upload in uploads]
        else:
            scratch = outputs / ".scratch"
            found += [str(path.relative_to(outputs)) for path in scratch.rglob("*") if path.is_file()]
        return found

    def flip(self, outputs: Path, name: str) -> None:
        """Flip a bit in the middle of the weights of the checkpoint `name`."""
        from sr_runner.checkpoint.format import MODEL, Blob

        store, key = self.open(outputs), f"{name}/{MODEL}"
        data = bytearray((store.get(name, outputs / "flipped") / MODEL).read_bytes())
        data[len(data) // 2] ^= 1
        if self.kind == "local":
            (outputs / "checkpoints" / key).write_bytes(data)
        else:
            store._objects.write(key, Blob.of(MODEL, bytes(data)))
            shutil.rmtree(outputs / "flipped")

    def close(self) -> None:
        if self.server is not None:
            self.server.kill()


def bench(kind: str, folder: Path) -> Bench:
    """The store `kind`, its server started in `folder`. Call before anything starts a thread in this process."""
    if kind == "local":
        return Bench(kind, folder)
    place = folder / "server"
    place.mkdir()
    server: StorageServer = S3Server(place) if kind == "s3" else MlflowArtifactServer(place)
    server.start()
    made = Bench(kind, folder, server)
    if isinstance(server, S3Server):
        made.environment = server.environment()
    return made
