from __future__ import annotations

from pathlib import Path

import pytest
from support import TINY, SrRun

SECRET = "hunter2-correct-horse"


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_secret_in_the_config_is_nowhere_in_what_a_sweep_leaves_behind(sr_run: SrRun, tmp_path: Path) -> None:
    secrets = (
        f"checkpoint.store.options={{secret: {SECRET}, client_kwargs: {{aws_secret_access_key: {SECRET}}}}}",
        f"tracker.uri='sqlite:///{tmp_path}/outputs/mlflow.db?password={SECRET}'",
    )  # fmt: skip
    done = sr_run("-m", "seed=0", *TINY, "checkpoint=s3", f"checkpoint.root=file://{tmp_path}/store", *secrets)
    left = everything(tmp_path)
    assert b"valid/psnr" in left and (tmp_path / "outputs" / "mlflow.db").is_file(), "nothing was recorded"
    assert SECRET.encode() not in left
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.slow  # it waits for that server for half a minute
def test_credentials_of_a_server_that_is_down_are_in_no_message_and_no_file(sr_run: SrRun, tmp_path: Path) -> None:
    uri = f"http://somebody:{SECRET}@127.0.0.1:9"
    done = sr_run(*TINY, "trainer.steps=2", f"tracker.uri={uri}")
    assert SECRET.encode() not in everything(tmp_path) and SECRET not in done.stdout + done.stderr
    assert "127.0.0.1:9" in done.stdout + done.stderr


def test_a_refused_request_is_quoted_without_its_secret(sr_run: SrRun) -> None:
    refused = sr_run(*TINY, f"tracker.uri=htp://somebody:{SECRET}@host", code=2)
    assert "tracker.uri=" in refused.stderr and SECRET not in refused.stderr
