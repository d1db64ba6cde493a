"""One process per attempt."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sr_runner.errors import RequestError


@contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Hold the attempt in `folder` for this process; the kernel lets go of it when the process dies, however it dies.

    Raises `RequestError` that names the host and the process of the one who holds it already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "run.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RequestError(
                f"{what} is in use by {_holder(folder)}: two processes cannot train one run. Wait for it or stop it; "
                "trainer.resume=false starts an attempt of its own"
            ) from error
        file.truncate(0)
        file.write(json.dumps({"host": platform.node(), "pid": os.getpid()}))
        file.flush()
        yield


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / "run.lock").read_text())
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
