"""Requests to a storage service: repeated while that can help, and an `OSError` where it did not."""

from __future__ import annotations

import errno
import logging
import random
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from sr_runner.errors import RequestError
from sr_runner.masking import cause
from sr_runner.mlflow_server import Refused, Unreachable

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

# Whose exceptions are the service's fault or the network's; everything else is a fault of the code and stays as it is.
_LIBRARIES = {
    "aiobotocore", "aiohttp", "botocore", "urllib3", "http", "s3fs", "fsspec", "gcsfs", "google", "adlfs", "azure",
    "mlflow", "requests", "sqlalchemy",
}  # fmt: skip
_HOPELESS = {errno.EINVAL, errno.ENOSYS, errno.ENAMETOOLONG, errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EDQUOT}
_HOPELESS_TYPES = (FileExistsError, IsADirectoryError, NotADirectoryError)
# What the libraries raise before they have sent anything: who asks, and for what, has to change first.
_UNSENDABLE = {
    "botocore.exceptions": (
        "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound", "NoRegionError",
        "InvalidRegionError", "EndpointProviderError", "InvalidEndpointConfigurationError", "ParamValidationError",
        "SSOError", "LoginError", "TokenRetrievalError", "NoAuthTokenError",
    ),
    "google.auth.exceptions": ("DefaultCredentialsError", "RefreshError"),
    "azure.core.exceptions": ("ClientAuthenticationError",),
}  # fmt: skip
_WORTH_ANOTHER_TRY = (408, 409, 425, 429)
_CODES = {
    "RESOURCE_DOES_NOT_EXIST": 404, "PERMISSION_DENIED": 403, "UNAUTHENTICATED": 401, "INVALID_PARAMETER_VALUE": 400,
    "BAD_REQUEST": 400, "NOT_FOUND": 404,
}  # fmt: skip
_JITTER = random.Random()
"""Its own: the global generator belongs to the run, and is part of its checkpoints."""


def check_seconds(name: str, seconds: float) -> float:
    """Raises `RequestError` unless they are 0 to 1e7 (some months)."""
    if not 0 <= seconds <= 1e7:
        raise RequestError(f"checkpoint.store.{name}={seconds}: expected 0 to 1e7 seconds")
    return seconds


class Requests:
    """Sends requests; one that fails is sent again, after longer and longer pauses, for `retry_seconds` seconds."""

    def __init__(self, retry_seconds: float):
        self.retry_seconds = check_seconds("retry_seconds", retry_seconds)

    def send(self, what: str, request: Callable[[], Answer], *, once: bool = False) -> Answer:
        """The answer to `request`, which can be repeated without harm (and is not, with `once`).

        Raises `FileNotFoundError`, `PermissionError` or another `OSError` whose message begins with `what`.
        """
        give_up, pause = time.monotonic() + self.retry_seconds, 0.2
        while True:
            try:
                return request()
            except Exception as error:
                fault, hopeless = _fault(_raised_below(error), what)
                if fault is None:
                    raise
                # The jitter keeps the jobs of a sweep from coming back all at once.
                wait = pause * _JITTER.uniform(0.75, 1.25)
                if once or hopeless or time.monotonic() + wait > give_up:
                    raise fault from error
                log.debug("%s; trying again in %.1f s", fault, wait)
            time.sleep(wait)
            pause = min(2 * pause, 4.0)


def _raised_below(error: Exception) -> Exception:
    """What MLflow raised, where the tracking server has put its own words to it."""
    below = error.__cause__
    return below if isinstance(error, Refused | Unreachable) and isinstance(below, Exception) else error


def _fault(error: Exception, what: str) -> tuple[OSError | None, bool]:
    """`error` as an `OSError` (None: it is no fault of the medium), and whether another try is hopeless."""
    if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _LIBRARIES:
        return None, True
    message = f"{what}: {cause(error)}"
    status = _status(error)
    if isinstance(error, FileNotFoundError) or status == 404:
        return FileNotFoundError(errno.ENOENT, message), True
    if isinstance(error, PermissionError) or status in (401, 403):
        return PermissionError(errno.EACCES, message), True
    if status is not None and 400 <= status < 500:
        return OSError(errno.EINVAL, message), status not in _WORTH_ANOTHER_TRY
    if _is_unsendable(error):
        return PermissionError(errno.EACCES, message), True
    number = error.errno if isinstance(error, OSError) else None
    return OSError(number or errno.EIO, message), isinstance(error, _HOPELESS_TYPES) or number in _HOPELESS


def _is_unsendable(error: Exception) -> bool:
    """A library that has raised something is imported already."""
    kinds = [getattr(sys.modules.get(module), name, ()) for module, names in _UNSENDABLE.items() for name in names]
    return isinstance(error, tuple(kinds))


def _status(error: Exception) -> int | None:
    """The HTTP status in an error, under the names that the libraries have for it."""
    response = getattr(error, "response", None)
    if (code := _CODES.get(str(getattr(error, "error_code", "")))) is not None:
        return code
    for holder, name in ((response, "status_code"), (error, "status_code"), (error, "status"), (error, "code")):
        value = getattr(holder, name, None)
        if isinstance(value, int | str) and str(value).isdigit() and 100 <= int(value) < 600:
            return int(value)
    return None
