"""`trainer.resume=RUN`: what a run was started with is the base of the new request."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from saved_runs import IDENTITY, save

from sr_runner.attempt.base import with_recorded
from sr_runner.checkpoint import LocalStore
from sr_runner.config.compose import Request, composed
from sr_runner.config.fitting import fitted
from sr_runner.config.schema import as_yaml
from sr_runner.errors import RequestError
from sr_runner.masking import masked
from sr_runner.runs import folder as files

ATTEMPT = f"{IDENTITY}/a0001-cafe"
RESUME = f"trainer.resume={IDENTITY}"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def recorded(*overrides: str, change: dict[str, Any] | None = None, **where: str) -> None:
    """A run that was started with `overrides`; `change` is what its options have been changed to since."""
    config = fitted(composed(overrides, **where)[0], overrides)
    for key, value in (change or {}).items():
        OmegaConf.update(config, key, value)
    request = {"overrides": masked(list(overrides)), **where}
    files.begin(Path("outputs", "runs", ATTEMPT), {"seed": 0}, as_yaml(config), {"request": request})


def asked(*overrides: str, **where: str) -> dict[str, Any]:
    config, _ = composed(**vars(with_recorded(Request(overrides, **where))))
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return plain


def test_what_a_run_was_started_with_is_the_base_and_what_is_given_applies_on_top(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    recorded("optimizer=sgd", "optimizer.lr=0.5", "trainer.steps=7", "trainer.resume=true", "outputs=other")
    config = asked(RESUME, "optimizer.lr=0.1")
    assert config["optimizer"]["_target_"] == "torch.optim.SGD" and config["optimizer"]["lr"] == 0.1
    assert config["trainer"]["steps"] == 7 and config["trainer"]["resume"] == IDENTITY
    assert config["outputs"] == str(Path("outputs").absolute())
    assert f"{RESUME} was started with: optimizer=sgd optimizer.lr=0.5 trainer.steps=7. What" in caplog.text


@pytest.mark.parametrize("resume", ["trainer.resume=true", "trainer.resume=false", "trainer.resume=null", "seed=1"])
def test_a_request_that_names_no_run_is_taken_as_it_is(resume: str) -> None:
    request = Request([resume])
    assert with_recorded(request) is request


def test_another_option_of_a_group_takes_nothing_over_from_the_recorded_one() -> None:
    recorded("optimizer=sgd", "optimizer.momentum=0.8", "data.batch_size=3")
    config = asked(RESUME, "optimizer=adam")
    assert config["optimizer"]["_target_"] == "torch.optim.Adam" and "momentum" not in config["optimizer"]
    assert config["data"]["batch_size"] == 3


def test_what_follows_from_a_key_follows_from_its_new_value() -> None:
    recorded("scheduler=cosine", "optimizer.lr=0.5", "trainer.steps=7")
    scheduler = asked(RESUME, "optimizer.lr=0.1", "trainer.steps=9")["scheduler"]
    assert (scheduler["max_lr"], scheduler["total_steps"]) == (0.1, 9)


def test_options_that_were_changed_since_have_the_recorded_values() -> None:
    awkward = "it's {here}, [there] \\"
    recorded("optimizer=sgd", change={"optimizer.momentum": 0.25, "tracker.run_name": awkward, "seed": 3})
    config = asked(RESUME, "seed=4")
    assert (config["optimizer"]["momentum"], config["tracker"]["run_name"], config["seed"]) == (0.25, awkward, 4)


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("objective.losses.pixel._target_=torch.nn.MSELoss", "names code"),
        ("objective.losses.pixel={_target_: torch.nn.MSELoss}", "names code"),
        ("tracker.experiment=${oc.env:HOME}", "reads the environment"),
        ("hydra.searchpath=[pkg://hydra]", "names code"),
    ],
)
def test_a_record_is_believed_neither_code_nor_the_environment_unless_they_are_asked_for_again(
    override: str, what: str
) -> None:
    recorded(override)
    with pytest.raises(RequestError) as refused:
        asked(RESUME)
    assert what in str(refused.value) and str(refused.value).endswith(f"sr-run {shlex.quote(override)} {RESUME}")
    asked(override, RESUME)


def test_a_recorded_config_that_names_another_class_than_its_options_do_is_refused() -> None:
    recorded("seed=0", change={"objective.losses.pixel._target_": "torch.nn.MSELoss"})
    with pytest.raises(RequestError, match=r"objective.losses.pixel._target_=torch.nn.MSELoss, which names code"):
        asked(RESUME)


def test_a_text_with_the_word_for_a_class_in_it_names_none() -> None:
    recorded("tracker.run_name=x_target_y", "trainer.steps=7")
    assert asked(RESUME)["trainer"]["steps"] == 7


def test_a_folder_of_configs_has_to_be_given_again(tmp_path: Path) -> None:
    (tmp_path / "mine" / "optimizer").mkdir(parents=True)
    (tmp_path / "mine" / "optimizer" / "mine.yaml").write_text("_target_: torch.optim.SGD\nlr: 0.5\n")
    where = {"config_dir": str(tmp_path / "mine")}
    recorded("optimizer=mine", **where)
    with pytest.raises(RequestError, match=rf"^{RESUME}: it was started with --config-dir={tmp_path}/mine, which"):
        asked(RESUME)
    assert asked(RESUME, **where)["optimizer"]["lr"] == 0.5


def test_a_secret_is_not_recorded_and_has_to_be_given_again() -> None:
    uri = "tracker.uri='http://user:pa55word@127.0.0.1:9'"
    recorded(uri)
    with pytest.raises(RequestError, match=r"without its secret; expected tracker.uri=\.\.\. on this command line too"):
        asked(RESUME)
    assert asked(RESUME, uri)["tracker"]["uri"] == "http://user:pa55word@127.0.0.1:9"


def test_places_are_not_believed_where_only_a_checkpoint_says_them(tmp_path: Path) -> None:
    overrides = ["optimizer.lr=0.5", "tracker=none", "checkpoint.root=/elsewhere", "data.cache_dir=/elsewhere"]
    save(LocalStore(tmp_path / "outputs" / "checkpoints"), ATTEMPT, 10, request={"overrides": overrides})
    config = asked(RESUME)
    assert config["optimizer"]["lr"] == 0.5 and "elsewhere" not in str(config)
    assert config["tracker"]["_target_"] == "sr_runner.tracking.MlflowTracker"


def test_several_runs_are_no_base() -> None:
    with pytest.raises(RequestError, match=r"trainer.resume=a,b: expected one run, whose config is the base"):
        with_recorded(Request(["trainer.resume=a,b"]))


@pytest.mark.parametrize(
    "request_", [{"overrides": "seed=1"}, {"overrides": [1]}, {"overrides": ["seed=1", "=1"]}, {}, {"overrides": None}]
)
def test_a_forged_record_is_a_wrong_request(request_: dict[str, Any]) -> None:
    files.begin(Path("outputs", "runs", ATTEMPT), {"seed": 0}, "[" * 10_000, {"request": request_})
    with pytest.raises(RequestError):
        asked(RESUME)
