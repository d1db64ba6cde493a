"""Which run of ours an MLflow run is: asked of the tracking server by a process that resumes what another one began."""

from __future__ import annotations

import logging
import os
import re

from sr_runner.mlflow_server import mask_credentials, sqlite_file

log = logging.getLogger(__name__)

ATTEMPT_TAG = "sr_run.attempt"
_RUN_ID = re.compile(r"[0-9a-f]{32}")


def attempt_of(run_id: str, uri: str) -> str | None:
    """`<identity>/<attempt>` of the run with MLflow's id `run_id` at the tracking URI `uri`.

    None where there is no such run, or where the server cannot be asked, which is logged.
    """
    if not _RUN_ID.fullmatch(run_id):
        return None
    if (file := sqlite_file(uri)) is not None and not file.exists():
        return None
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        tags = MlflowClient(uri).get_run(run_id).data.tags
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            log.warning("%s could not be asked for run %s: %s", mask_credentials(uri), run_id, _first_line(error))
        return None
    except OSError as error:
        log.warning("%s could not be asked for run %s: %s", mask_credentials(uri), run_id, _first_line(error))
        return None
    return tags.get(ATTEMPT_TAG)


def _first_line(error: Exception) -> str:
    return mask_credentials(str(error).partition("\n")[0])[:200]
