"""A request that a storage service does not fulfil: which error it becomes, and whether it is worth another try."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError, NoCredentialsError
from mlflow.exceptions import RestException

from sr_runner.checkpoint.stores import requests
from sr_runner.errors import RequestError
from sr_runner.mlflow_server import Unreachable


class Clock:
    def __init__(self) -> None:
        self.now, self.pauses = 100.0, list[float]()

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(requests, "time", SimpleNamespace(monotonic=lambda: made.now, sleep=made.sleep))
    monkeypatch.setattr(requests, "_JITTER", SimpleNamespace(uniform=lambda low, high: (low + high) / 2))
    return made


class Service:
    """Fails with `errors`, one a request, and then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.asked = list(errors), 0

    def __call__(self) -> str:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def aws(status: int) -> ClientError:
    error = ClientError({"Error": {"Code": "X", "Message": "said"}}, "PutObject")
    error.status = status
    return error


def mlflow(code: str) -> RestException:
    return RestException({"error_code": code, "message": "said"})


def of_response(status: Any) -> Exception:
    """As `requests` and `google` raise them."""
    error = mlflow("INTERNAL_ERROR")
    error.response = SimpleNamespace(status_code=status)
    return error


def behind(code: str) -> Unreachable:
    error = Unreachable("said")
    error.__cause__ = mlflow(code)
    return error


HOPELESS = [
    (aws(404), FileNotFoundError, errno.ENOENT),
    (FileNotFoundError("x"), FileNotFoundError, errno.ENOENT),
    (mlflow("RESOURCE_DOES_NOT_EXIST"), FileNotFoundError, errno.ENOENT),
    (mlflow("NOT_FOUND"), FileNotFoundError, errno.ENOENT),
    (behind("NOT_FOUND"), FileNotFoundError, errno.ENOENT),
    (of_response("404"), FileNotFoundError, errno.ENOENT),
    (aws(401), PermissionError, errno.EACCES),
    (aws(403), PermissionError, errno.EACCES),
    (PermissionError("x"), PermissionError, errno.EACCES),
    (mlflow("PERMISSION_DENIED"), PermissionError, errno.EACCES),
    (mlflow("UNAUTHENTICATED"), PermissionError, errno.EACCES),
    (NoCredentialsError(), PermissionError, errno.EACCES),
    (aws(400), OSError, errno.EINVAL),
    (aws(499), OSError, errno.EINVAL),
    (mlflow("INVALID_PARAMETER_VALUE"), OSError, errno.EINVAL),
    (mlflow("BAD_REQUEST"), OSError, errno.EINVAL),
    (OSError(errno.ENOSPC, "full"), OSError, errno.ENOSPC),
    (FileExistsError(errno.EEXIST, "there"), FileExistsError, errno.EEXIST),
]
WORTH_IT = [aws(408), aws(409), aws(425), aws(429), aws(500), aws(503), of_response(700), of_response("no"),
            ConnectionResetError(errno.ECONNRESET, "reset"), OSError("no number")]  # fmt: skip


@pytest.mark.parametrize(("error", "kind", "number"), HOPELESS, ids=repr)
def test_what_no_second_try_can_mend_is_raised_at_once_as_what_it_is(
    error: Exception, kind: type[OSError], number: int, clock: Clock
) -> None:
    service = Service(error)
    with pytest.raises(kind, match="the checkpoint: ") as raised:
        requests.Requests(60).send("the checkpoint", service)
    assert raised.value.errno == number and raised.value.__cause__ is error and service.asked == 1


@pytest.mark.parametrize("error", WORTH_IT, ids=repr)
def test_what_may_pass_is_tried_again_until_it_has(error: Exception, clock: Clock) -> None:
    service = Service(error, error)
    assert requests.Requests(60).send("the checkpoint", service) == "answer" and service.asked == 3
    with pytest.raises(OSError, match="the checkpoint: ") as raised:
        requests.Requests(60).send("the checkpoint", Service(error), once=True)
    assert raised.value.errno in (errno.EIO, errno.EINVAL, errno.ECONNRESET)


def test_pauses_grow_to_four_seconds_and_end_before_the_patience_does(clock: Clock) -> None:
    with pytest.raises(OSError, match="reset"):
        requests.Requests(20).send("x", Service(*[ConnectionResetError(errno.ECONNRESET, "reset")] * 99))
    assert clock.pauses == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 4, 4, 4]) and clock.now <= 120


def test_a_fault_of_the_code_stays_what_it_is(clock: Clock) -> None:
    with pytest.raises(KeyError, match="mine"):
        requests.Requests(60).send("x", Service(KeyError("mine")))


def test_no_second_try_can_be_asked_for_and_less_than_none_cannot(clock: Clock) -> None:
    with pytest.raises(OSError, match="reset"):
        requests.Requests(0).send("x", Service(ConnectionResetError(errno.ECONNRESET, "reset")))
    assert clock.pauses == []
    with pytest.raises(RequestError, match=r"retry_seconds=-1: expected 0"):
        requests.Requests(-1)
