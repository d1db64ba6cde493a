"""Forty secrets are planted in a config, in URLs and in the environment. None is in anything that is left behind."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from run_server import RunServer
from store_servers import S3Server
from support import TINY, SrRun, environment, started

KEYS = (
    "password", "passwd", "pwd", "passphrase", "secret", "token", "hub_token", "credential", "credentials", "api_key",
    "apikey", "access_key", "account_key", "AccountKey", "private_key", "sas", "sig", "signature", "connection_string",
    "cookie", "bearer", "authorization", "auth", "client_secret", "apitoken", "sas_url", "userpwd", "PGPASS",
    "passcode", "creds", "jwt", "signing_key", "psk", "otp", "hub_token_v2", "auth_header", "GITHUB_PAT", "S3_KEY",
)  # fmt: skip
SIGNED = ("X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "X-Goog-Signature", "sig", "api_key", "key")
VARIABLES = ("HUB_TOKEN", "THEIR_API_KEY", "DATABASE_PASSWORD", "AZURE_STORAGE_CONNECTION_STRING", "PLAIN_PLACE_SECRET")

PARTS = '''
"""Parts of one's own that tell everybody what they were given."""
import logging, os, sys, warnings
import torch
from sr_runner.data import SampleData
from sr_runner.models import EDSR

def tell(what):
    logging.getLogger("mine").warning("given %s", what)
    print("given", what)
    print(what, file=sys.stderr)
    for name in ("HUB_TOKEN", "THEIR_API_KEY", "DATABASE_PASSWORD", "AZURE_STORAGE_CONNECTION_STRING"):
        logging.getLogger("mine").info("the environment has <%s>", os.environ[name])
    warnings.warn(f"with {what}")

class Net(EDSR):
    def __init__(self, scale, num_filters=8, num_res_blocks=1, fail=False, place="", **secrets):
        super().__init__(scale=scale, num_filters=num_filters, num_res_blocks=num_res_blocks)
        tell(secrets)
        if fail:
            raise ValueError(f"{place}: cannot connect with {secrets}")

class Data(SampleData):
    __signature__ = None  # that of its own __init__

    def __init__(self, base_url, nested, signed, **others):
        super().__init__(**others)
        tell([base_url, nested, signed])

        self.source = base_url

    def summary(self):
        return dict(super().summary()) | {"source": self.source}

class Adam(torch.optim.Adam):
    def __init__(self, params, secret_key="", **others):
        tell(secret_key)
        super().__init__(params, **others)
'''

EVALUATION = ("data=sample", "tracker=mlflow", "tracker.uri=sqlite:///outputs/mlflow.db")
MARK = "".join(("hUnTeR", "2"))  # a record has the diff of what is not committed, and that may be this file
"""In every secret."""


class Planted:
    """The secrets, a folder of configs that hold them, and an environment that does: no command line has to."""

    def __init__(self, folder: Path, run_server: RunServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._run_server = run_server
        self.secrets: list[str] = []
        self.others: list[bytes] = []
        self.seen: set[bytes] = set()
        """Command lines of processes."""
        (folder / "mine.py").write_text(PARTS)
        (folder / "conf" / "experiment").mkdir(parents=True)
        for name in VARIABLES:
            monkeypatch.setenv(name, self.plant())
        model = {key: self.plant() for key in KEYS} | {"_target_": "mine.Net", "place": "${oc.env:PLAIN_PLACE_SECRET}"}
        signed = "&".join(f"{key}={self.plant()}" for key in SIGNED)
        data = {
            "_target_": "mine.Data",
            "base_url": f"https://me:{quote(self.plant(), safe='')}@{quote(self.plant(), safe='')}@host/images",
            "nested": [{"auth": {"user": self.plant()}}, f"AccountName=me;AccountKey={self.plant()}"],
            "signed": f"https://host/images?{signed}",
        }
        uri = f"sqlite:///{folder}/outputs/mlflow.db?password={quote(self.plant())}"
        config = {"model": model, "data": data, "optimizer": {"_target_": "mine.Adam", "secret_key": self.plant()}}
        text = yaml.safe_dump(config | {"tracker": {"uri": uri}})
        (folder / "conf" / "experiment" / "planted.yaml").write_text("# @package _global_\n" + text)
        assert len(self.secrets) >= 40

    def plant(self) -> str:
        self.secrets.append(f"{MARK}-{len(self.secrets):02}+/{os.urandom(3).hex()}")
        return self.secrets[-1]

    def train(self, *words: str) -> str:
        """What `sr-run` printed; it may fail."""
        output, errors = self.folder / "report", self.folder / "said"
        for path in (output, errors):
            path.unlink(missing_ok=True)
        asked = ["--config-dir", "conf", "+experiment=planted", *TINY, *words]
        with self._watching():
            run = self._run_server.start(asked, self.folder, output, errors, real_sender=True)
            self.status = run.wait(280)
        return self._printed(output.read_text() + errors.read_text())

    def evaluate(self, *words: str) -> str:
        """What `sr-eval` printed; it may fail."""
        command = [*started("sr_runner.commands.evaluate"), *words]
        with self._watching():
            ended = subprocess.run(
                command, cwd=self.folder, env=environment(), capture_output=True, text=True, timeout=280,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self.status = ended.returncode
        return self._printed(ended.stdout + ended.stderr)

    def _printed(self, text: str) -> str:
        self.assert_clean("the terminal", text.encode())
        return text

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Every command line of every process meanwhile is clean."""
        done = threading.Event()
        watch = threading.Thread(target=_watch, args=(self.seen, done))
        watch.start()
        try:
            yield
        finally:
            done.set()
            watch.join()
        self.assert_clean("the list of processes", b"\n".join(self.seen))

    def assert_clean(self, where: str, content: bytes) -> None:
        for mark in (MARK.encode(), *self.others):
            at = content.find(mark)
            assert at < 0, f"{where}: {content[max(0, at - 80) : at + 40]!r}"

    def assert_nothing_is_left(self) -> None:
        """Every byte of every file below the outputs, and every value of every table."""
        count = 0
        for path in (self.folder / "outputs").rglob("*"):
            if path.is_file():
                count += 1
                self.assert_clean(str(path), path.read_bytes())
        assert count > 10
        with sqlite3.connect(self.folder / "outputs" / "mlflow.db") as database:
            tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
            dump = {name: database.execute(f'select * from "{name}"').fetchall() for name in tables}
        assert len(dump["params"]) > 15 and dump["metrics"]
        self.assert_clean("the database", repr(dump).encode())


def _watch(seen: set[bytes], done: threading.Event) -> None:
    while not done.wait(0.1):
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen.add(path.read_bytes())
            except OSError:
                continue


@pytest.fixture
def planted(tmp_path: Path, run_server: RunServer, monkeypatch: pytest.MonkeyPatch) -> Planted:
    return Planted(tmp_path, run_server, monkeypatch)


def test_forty_secrets_are_nowhere_in_what_a_run_leaves_behind(planted: Planted) -> None:
    printed = planted.train("trainer.steps=2")
    assert planted.status == 0, printed
    assert "given" in printed and "*****" in printed
    assert any(b"sr_runner.tracking.sender" in each for each in planted.seen)
    planted.assert_nothing_is_left()
    (record,) = (planted.folder / "outputs" / "runs").glob("*/*/run.json")
    facts = json.loads(record.read_text())["facts"]
    assert len({facts[f"model.{key}"] for key in KEYS}) == len(KEYS), "other secrets, other digests"


@pytest.mark.slow
def test_forty_secrets_are_nowhere_after_a_resume_a_fork_a_sweep_an_evaluation_and_a_failure(planted: Planted) -> None:
    for words in (
        ["trainer.steps=3"],
        ["trainer.steps=6", "trainer.resume=true"],
        ["trainer.steps=6", "trainer.resume=true", "seed=1"],
        ["-m", "trainer.steps=2", "seed=2,3"],
    ):
        printed = planted.train(*words)
        assert planted.status == 0, printed
    (first, *_) = sorted((planted.folder / "outputs" / "runs").glob("*/*"), key=lambda path: path.stat().st_mtime)
    name = f"{first.parent.name}/{first.name}"
    fork = planted.train("trainer.steps=8", f"trainer.resume={name}", "trainer.allow_changes=true", "optimizer.lr=1e-5")
    assert planted.status == 0 and f"fork of {name}" in fork, fork
    refused = planted.train(f"trainer.resume={name}", "model.hub_token=another")
    assert planted.status == 2 and "model.hub_token" in refused, refused
    failed = planted.train("+model.fail=true")
    assert planted.status == 2 and "cannot connect with" in failed, failed
    swept = planted.train("-m", "+model.fail=true", "seed=7,8")
    assert planted.status != 0 and "cannot connect with" in swept, swept
    named = planted.train("-m", "trainer.steps=2", "model.hub_token=gRaFf-0815,gRaFf-4711", "seed=9")
    assert planted.status == 0 and named.count("job 2 of 2: ") >= 2 and "gRaFf" not in named
    left = [path for path in planted.folder.rglob("*") if "gRaFf" in path.name]
    assert left + [path for path in planted.folder.rglob("*") if path.is_file() and b"gRaFf" in path.read_bytes()] == []
    assert "secret_key: *****" in planted.train("--cfg", "job")
    evaluated = planted.evaluate(name, "network=mine.Net", *EVALUATION)
    assert planted.status == 0 and "mlflow.db" in evaluated, evaluated
    planted.assert_nothing_is_left()


@pytest.fixture
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    server.make_bucket()
    yield server
    server.kill()


@pytest.mark.slow
def test_forty_secrets_are_in_no_checkpoint_that_is_uploaded(
    planted: Planted, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ("checkpoint=s3", "checkpoint.root=s3://bucket/runs", "trainer.steps=2")
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    planted.others.append(s3.environment()["AWS_SECRET_ACCESS_KEY"].encode())
    printed = planted.train(*where)
    assert planted.status == 0, printed
    planted.assert_nothing_is_left()
    for path in s3.files().find("bucket"):
        planted.assert_clean(path, s3.files().cat_file(path))
    assert any(path.endswith("config.yaml") for path in s3.files().find("bucket"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", planted.plant())
    wrong = planted.train(*where)
    assert planted.status == 2 and "cannot be used" in wrong, wrong


@pytest.mark.slow  # it waits for that server for half a minute
def test_credentials_of_a_server_that_is_down_are_in_no_message_and_no_file(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"http://somebody:{planted.plant()}@127.0.0.1:9/?api_key={planted.plant()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    printed = planted.train("trainer.steps=2", "tracker.uri=null")
    assert "127.0.0.1:9" in printed
    for path in planted.folder.glob("outputs/**/*"):
        if path.is_file():
            planted.assert_clean(str(path), path.read_bytes())


def test_a_refused_request_is_quoted_without_its_secret(sr_run: SrRun) -> None:
    refused = sr_run(*TINY, "tracker.uri=htp://somebody:pass@hunter2@host", code=2)
    assert "tracker.uri=" in refused.stderr and "hunter2" not in refused.stderr
