"""The parent run of a sweep, seen from the sweep's process, which does not import MLflow."""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Mapping
from pathlib import Path

from sr_runner.masking import masked, masked_text
from sr_runner.mlflow_server import tracking_uri
from sr_runner.tracking.sender_process import sender_command, sender_environment
from sr_runner.tracking.tracker import Status

logger = logging.getLogger(__name__)


def close_parent(
    folder: Path,
    status: Status,
    tags: Mapping[str, str] | None = None,
    *,
    uri: str | None = None,
    outputs: str | Path = "outputs",
    wait: float = 30.0,
) -> bool:
    """Gives the parent run of the sweep in `folder` its end, `status` and `tags`; False (and a warning) if it cannot.

    `uri` and `outputs` are those of the jobs' tracker. True too where no job of the sweep ever reached the server.
    """
    where = tracking_uri(uri, Path(outputs))
    command = sender_command("--close-sweep", status, "--tags", json.dumps(masked(tags or {})), str(folder.absolute()))
    try:
        ended = subprocess.run(
            command,
            env=sender_environment(where),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=wait,
            text=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("tracking: the sweep's parent run stays open: %s", type(error).__name__)
        return False
    if ended.returncode != 0:
        reason = masked_text(ended.stdout + ended.stderr).strip().splitlines()
        logger.warning("tracking: the sweep's parent run stays open: %s", reason[-1] if reason else "no reason given")
    return ended.returncode == 0
