"""No secret leaves the process as it is, wherever it stands; and nothing else is touched."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
from hydra.types import RunMode
from hypothesis import assume, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sr_runner import masking
from sr_runner.config.compose import Masking
from sr_runner.config.schema import as_yaml
from sr_runner.masking import MASK, digested, is_secret, masked, masked_output, masked_text
from sr_runner.tracking import MlflowTracker, RunRecord, mlflow_tracker

SECRET = "hunter2/correct+horse"

KEYS = (
    "password", "passwd", "pwd", "passphrase", "secret", "token", "credential", "credentials", "api_key", "apikey",
    "access_key", "account_key", "AccountKey", "private_key", "sas", "sig", "signature", "X-Amz-Signature",
    "X-Amz-Credential", "X-Amz-Security-Token", "X-Goog-Signature", "connection_string", "cookie", "bearer",
    "authorization", "auth", "model.hub_token", "db.password2", "clientSecret", "AWS_SECRET_ACCESS_KEY",
)  # fmt: skip
ORDINARY = (
    "tokenizer", "author", "keep_last", "signal", "sigma", "key", "num_tokens", "token_mixer", "keys", "compass",
    "model.num_filters", "passes", "signed", "sass", "authors", "monkey", "keyboard", "assignment", "design",
)  # fmt: skip

# Where in a text a secret can stand, and which characters it can have there.
WORD = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789_-.~+/=!$*()@:", min_size=4, max_size=24)
POSITIONS: dict[str, Callable[[str, str], str]] = {
    "an override": lambda key, secret: f"{key}={secret}",
    "a quoted value": lambda key, secret: f"{key}='{secret}' and more",
    "a sentence": lambda key, secret: f"refused: {key}={secret} is not what was expected",
    "an assignment": lambda key, secret: f"{key} = {secret}",
    "a flow mapping": lambda key, secret: f"options={{anon: true, {key}: '{secret}', nested: {{{key}: {secret}}}}}",
    "JSON": lambda key, secret: json.dumps({"a": 1, key: secret, "b": [{key: secret}]}),
    "a dictionary": lambda key, secret: f"failed with { ({'a': 1, key: secret})!r} at last",
    "YAML": lambda key, secret: f"store:\n  {key}: {secret}\n  other: 1\n  list:\n  - {key}: {secret}\n",
    "a connection string": lambda key, secret: f"Protocol=https;AccountName=me;{key}={secret}",
    "a query": lambda key, secret: f"GET https://host/file?a=b&{key}={secret}&c=d failed",
    "user info": lambda key, secret: f"(url 'http://me:{secret.replace('/', '')}x@host:5000/path')",
}


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "_known", frozenset())


@pytest.mark.parametrize("key", KEYS)
def test_a_secret_key_is_known(key: str) -> None:
    assert is_secret(key) and is_secret(f"group.{key}")


@pytest.mark.parametrize("key", ORDINARY)
def test_an_ordinary_key_is_left_alone(key: str) -> None:
    assert not is_secret(key)
    assert masked({key: "value"}) == {key: "value"} and masked(f"{key}=value") == f"{key}=value"
    assert masked_text(f"{key}=value, {{{key}: value}}") == f"{key}=value, {{{key}: value}}"


@pytest.mark.parametrize("place", POSITIONS)
@pytest.mark.parametrize("key", KEYS)
def test_a_secret_is_masked_under_every_key_in_every_place(key: str, place: str) -> None:
    shown = masked_text(POSITIONS[place](key, SECRET))
    assert MASK in shown and "hunter2" not in shown and "horse" not in shown


@given(place=st.sampled_from(sorted(POSITIONS)), key=st.sampled_from(KEYS), secret=WORD)
def test_any_secret_is_masked(place: str, key: str, secret: str) -> None:
    text = POSITIONS[place](key, secret)
    assume(secret not in POSITIONS[place](key, "#") and secret.lower() not in ("true", "false", "null", "none"))
    assume(MASK not in secret and secret not in MASK)
    assert secret not in masked_text(text).replace(MASK, "")


PROSE = [
    *ORDINARY, "password", "token", "/etc/passwd", "the secret", "no", "such:", "a=b", "http://host:5000/a@b", "run:",
    "sqlite:////x/mlflow.db", "(1.5 s)", "me@host.org", "s3://bucket/x", "edsr-x4-3f9a12c40b1e/a0001-99aa", "50%,",
    "'quoted'", "bearer of",
]  # fmt: skip


@given(st.lists(st.sampled_from(PROSE)))
def test_prose_is_left_alone(words: list[str]) -> None:
    prose = "It said " + " ".join(words)
    assert masked_text(prose) == prose


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/etc/passwd: no such run", "/etc/passwd: no such run"),
        ("token: expected a string", "token: expected a string"),
        ("model.password: there is no key model.password", "model.password: there is no key model.password"),
        ("if token == 3: x != y", "if token == 3: x != y"),
        ("password=${oc.env:DB_PASSWORD} auth=true token=null", "password=${oc.env:DB_PASSWORD} auth=true token=null"),
        ("http://u:p@S3CRET@h/x", "http://*****@h/x"),
        ("http://u:p/w@h/x", "http://*****@h/x"),
        ("https://token@host", "https://*****@host"),
        ("postgresql+psycopg2://u:p%40q@db/mlflow", "postgresql+psycopg2://*****@db/mlflow"),
        ("failed: (url 'http://a:b@h/') again", "failed: (url 'http://*****@h/') again"),
        ("postgresql://db/x?user=u&password=p&sslmode=on", "postgresql://db/x?user=u&password=*****&sslmode=on"),
        ("http://host:5000/a@b and mail@example.org", "http://host:5000/a@b and mail@example.org"),
        ("https://maps/x?key=AIzaSy&b=1", "https://maps/x?key=*****&b=1"),
        ("x?odbc_connect=DRIVER%3Dx%3BPWD%3Dhunter2%3B&y=1", "x?odbc_connect=DRIVER%3Dx%3BPWD%3D*****&y=1"),
        ("{'Authorization': 'Bearer abc.def'}", "{'Authorization': *****}"),
        ("sent Authorization: Basic dXNlcjpw", "sent Authorization: Basic *****"),
        ("  auth:\n    user: me\n    phrase: a b\n  steps: 3", "  auth: *****\n  steps: 3"),
        ("  - auth:\n      user: me\n    steps: 3\n  - 4", "  - auth: *****\n    steps: 3\n  - 4"),
        ("- token: a b\n  steps: 3\n- steps: 4", "- token: *****\n  steps: 3\n- steps: 4"),
    ],
)
def test_text(text: str, shown: str) -> None:
    assert masked_text(text).replace("auth:*****", "auth: *****") == shown
    assert masked_text(masked_text(text)) == masked_text(text)


def test_all_below_a_secret_key_is_masked_and_nothing_that_gives_none_away() -> None:
    tree = {"auth": {"user": "me", "on": True, "list": [1, None]}, "token": "${oc.env:TOKEN}", "secret": ""}
    hidden = {"auth": {"user": MASK, "on": True, "list": [MASK, None]}, "token": "${oc.env:TOKEN}", "secret": ""}
    assert masked(tree) == hidden


def test_an_override_is_masked_to_its_end() -> None:
    assert masked("model.password=three words, all") == f"model.password={MASK}"
    assert masked("model.a=1") == "model.a=1" and masked("-m") == "-m"


@pytest.mark.parametrize(
    "tree",
    [{"model": {"token": SECRET}}, {"uri": f"http://me:{SECRET.replace('/', '%2F')}@host"}, {"u": f"/x?sig={SECRET}"}],
)
def test_what_was_seen_as_a_secret_is_masked_wherever_it_turns_up(tree: dict[str, object]) -> None:
    masked(tree)
    assert masked_text(f"<{SECRET}> was refused") == f"<{MASK}> was refused"
    assert masked({"plain": [f"x{SECRET}y"]}) == {"plain": [f"x{MASK}y"]}
    assert SECRET not in masked_text(json.dumps(SECRET)) + masked_text(repr(SECRET))


def test_short_values_plain_words_and_files_are_not_searched_for(tmp_path: Path) -> None:
    masked({"token": "mean", "password": "12345", "auth": "digestion", "credentials": str(tmp_path)})
    text = f"the mean of 12345 in {tmp_path}, for better digestion"
    assert masked_text(text) == text


def test_a_secret_stands_in_facts_as_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"model.password": SECRET, "model.size": 3, "data.url": f"http://me:{SECRET}@host/x?sig={SECRET}"}
    shown = digested(facts)
    assert SECRET not in json.dumps(shown) and "hunter2" not in json.dumps(shown)
    assert shown["model.size"] == 3 and shown["data.url"].endswith(shown["data.url"].partition("?sig=")[2])
    assert digested(facts) == shown and digested({**facts, "model.password": "another"}) != shown
    masking.learn({"token": SECRET})
    assert digested(facts) == shown, "what was seen before changes an identity"
    monkeypatch.setenv("SOME_TOKEN", "sesame-open-1")
    assert "sesame" not in str(digested({"model.path": "sesame-open-1"}))


@pytest.fixture
def restored_logging() -> Iterator[None]:
    factory, hook = logging.getLogRecordFactory(), sys.excepthook
    yield
    logging.setLogRecordFactory(factory)
    sys.excepthook = hook


@pytest.mark.usefixtures("restored_logging")
def test_what_is_printed_or_logged_by_anyone_is_masked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THEIR_API_KEY", SECRET)
    log, stream = logging.getLogger("somebody.else"), StringIO()
    handler = logging.StreamHandler(stream)
    log.addHandler(handler)
    with masked_output():
        print(f"password={SECRET}")
        print(SECRET, file=sys.stderr)
        log.warning("failed: %s", {"token": SECRET})
        try:
            raise ValueError(f"cannot open {SECRET}")
        except ValueError:
            log.exception("it failed")
            sys.excepthook(*sys.exc_info())
    log.removeHandler(handler)
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err + stream.getvalue()
    assert "password=" in printed.out and printed.err.count("ValueError: cannot open") >= 1
    assert stream.getvalue().count("ValueError: cannot open") == 1


def test_configs_are_written_without_secrets(tmp_path: Path) -> None:
    config = OmegaConf.create(
        {"model": {"password": "two words", "url": f"http://me:{SECRET}@h"}, "same": "${model.url}"}
    )
    (tmp_path / "0" / ".hydra").mkdir(parents=True)
    records = [tmp_path / "multirun.yaml", tmp_path / "0" / ".hydra" / "config.yaml"]
    for record in records:
        record.write_text(OmegaConf.to_yaml(config))
    hydra = {"mode": RunMode.MULTIRUN, "sweep": {"dir": str(tmp_path)}, "output_subdir": ".hydra"}
    hydra |= {"runtime": {"output_dir": str(tmp_path / "0")}}
    Masking().on_job_start(config=OmegaConf.create({"hydra": hydra}))
    for text in (as_yaml(config), *(record.read_text() for record in records)):
        assert MASK in text and SECRET not in text and "two words" not in text
        assert OmegaConf.create(text).keys() == config.keys()


def test_the_tracker_writes_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoSender:
        def __init__(self, run_dir: Path, uri: str, options: object) -> None:
            self.reports: dict[str, object] = {}

        def start(self) -> None: ...

        def finish(self, wait: float) -> bool:
            return False

    monkeypatch.setattr(mlflow_tracker, "SenderProcess", NoSender)
    tracker = MlflowTracker(uri=f"http://me:{SECRET}@host?api_key={SECRET}", outputs=tmp_path)
    record = RunRecord(
        run_dir=tmp_path / "run", attempt="a/1", run_name="a", params={"model.token": SECRET, "b": f"api_key={SECRET}"},
        tags={"cookie": SECRET}, dataset={"name": "x", "source": f"http://me:{SECRET}@host", "digest": "0"},
    )  # fmt: skip
    tracker.start(record)
    state = json.dumps(tracker.state())
    tracker.finish("FAILED", {"sr_run.error": f"token={SECRET}"}, wait=0)
    written = "".join(path.read_text() for path in (tmp_path / "run").iterdir())
    assert '"event": "finish"' in written and SECRET not in written + state + str(tracker.ui_hint())


def test_the_command_line_of_the_sender_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def run(command: list[str], **others: object) -> None:
        started.append(command)
        raise OSError

    monkeypatch.setattr(mlflow_tracker.subprocess, "run", run)
    assert not MlflowTracker(uri=f"http://me:{SECRET}@host").close_parent(tmp_path, "FAILED")
    assert started and SECRET not in str(started)
