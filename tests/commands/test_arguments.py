from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from sr_runner.commands.arguments import option, options_help, parse
from sr_runner.errors import RequestError


@dataclass(kw_only=True)
class Base:
    tracker_uri: str | None = option(None, key="tracker.uri")
    """Where the server is,
    or null."""


@dataclass(kw_only=True)
class Options(Base):
    data: list[str] = field(default_factory=list)
    """Folders."""
    scale: int | None = option(None, least=1)
    """The factor."""
    minutes: float = 1.0
    """How long."""
    self_ensemble: bool = False
    """Eight times as slow."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network."""
    metrics: list[Literal["lpips", "dists"]] = field(default_factory=list)
    """Further ones."""
    model: dict[str, Any] = field(default_factory=dict)
    """Of the network."""


def read(*words: str) -> Options:
    return parse(words, Options)[1]


def test_words_are_sources_and_pairs_are_options() -> None:
    sources, options = parse(["a.pt", "data=x,y", "s3://b/c?d=e", "scale=4"], Options)
    assert sources == ["a.pt", "s3://b/c?d=e"]
    assert (options.data, options.scale) == (["x", "y"], 4)


def test_what_was_not_given_has_its_default() -> None:
    assert read("a.pt") == Options()


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("data=[a,b]", "data", ["a", "b"]),
        ("data=a", "data", ["a"]),
        ("data='a, b',c", "data", ["a, b", "c"]),
        ("data=Bücher,B100", "data", ["Bücher", "B100"]),
        ("data=2024,b", "data", ["2024", "b"]),
        ("metrics=lpips,dists", "metrics", ["lpips", "dists"]),
        ("scale=null", "scale", None),
        ("minutes=2", "minutes", 2),
        ("self_ensemble=True", "self_ensemble", True),
        ("+scale=3", "scale", 3),
        ("++scale=3", "scale", 3),
        ("tracker.uri=null", "tracker_uri", None),
        ("tracker.uri=http://host:5000/?a=b", "tracker_uri", "http://host:5000/?a=b"),
        ("tracker.uri='it is'", "tracker_uri", "it is"),
        ("tracker.uri=photos, and (more)", "tracker_uri", "photos, and (more)"),
        ("tracker.uri=1.10", "tracker_uri", "1.10"),
    ],
)
def test_values_are_in_the_grammar_of_hydra_and_text_is_as_it_is_written(word: str, key: str, value: object) -> None:
    assert getattr(read(word), key) == value


def test_keys_of_an_open_group_may_have_any_name_and_value() -> None:
    words = ["model.scaling=0.1", "model.depths=[6,6]", "+model.act='a b'", "model.more={a: 1}", "model.bias=false"]
    model = {"scaling": 0.1, "depths": [6, 6], "act": "a b", "more": {"a": 1}, "bias": False}
    assert read(*words).model == model
    assert read("model={a: 1}", "model.b=2").model == {"a": 1, "b": 2}


def test_the_last_value_of_a_key_counts_as_with_hydra() -> None:
    assert read("scale=2", "scale=4").scale == 4
    assert read("model={a: 1}", "model.a=2", "model.a=3").model == {"a": 3}


def test_a_variable_of_the_environment_can_be_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_FOLDER", "photos")
    monkeypatch.setenv("A_NUMBER", "3")
    options = read(
        "tracker.uri=${oc.env:A_FOLDER}/x", "data=${oc.env:A_FOLDER},b", "scale=${oc.decode:${oc.env:A_NUMBER}}"
    )
    assert (options.tracker_uri, options.data, options.scale) == ("photos/x", ["photos", "b"], 3)


def test_a_file_whose_name_looks_like_an_option_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("lr=1e-4.pt", "-x.png"):
        Path(name).touch()
    assert parse(["lr=1e-4.pt", "-x.png"], Options)[0] == ["lr=1e-4.pt", "-x.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scal=4"], "scal=4: there is no option 'scal'. Did you mean 'scale'?"),
        (["tracker.url=4"], "Did you mean 'tracker.uri'?"),
        (["zzz=4"], "Options: tracker.uri, data, scale"),
        (["--scale=4"], "--scale=4: options are written key=value. Did you mean 'scale'?"),
        (["--self-ensemble"], "Did you mean 'self_ensemble'?"),
        (["~scale"], "~scale: options are written key=value."),
        (["tracker.uri=${oc.env:NO_SUCH_NAME}"], "Environment variable 'NO_SUCH_NAME' not found"),
        (["trainer.scale=4"], "Did you mean 'scale'?"),
        (["scale="], "scale=: expected a whole number of at least 1 or null"),
        (["data="], "data=: expected a list"),
        (["scale=abc"], "scale=abc: expected a whole number of at least 1 or null."),
        (["scale=1.5"], "scale=1.5: expected a whole number"),
        (["scale=true"], "scale=true: expected a whole number"),
        (["scale=2,4"], "scale=2,4: expected a whole number"),
        (["scale=0"], "scale=0: expected a whole number of at least 1 or null."),
        (["minutes=x"], "minutes=x: expected a number."),
        (["self_ensemble=maybe"], "self_ensemble=maybe: expected true or false."),
        (["precision=fp23"], "precision=fp23: expected one of fp32, bf16. Did you mean 'fp32'?"),
        (["precision=null"], "precision=null: expected one of fp32, bf16."),
        (["metrics=lpips,lpisp"], "metrics=lpips,lpisp: expected one of lpips, dists."),
        (["model=x"], "model=x: expected a mapping"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_key_value_and_expectation(words: list[str], message: str) -> None:
    with pytest.raises(RequestError) as refusal:
        read(*words)
    assert message in str(refusal.value)


def test_the_help_page_lists_every_option_with_default_docstring_and_choices_its_own_first() -> None:
    lines = options_help(Options).splitlines()
    assert [line.split()[0] for line in lines] == [
        "data=[]", "scale=null", "minutes=1.0", "self_ensemble=false", "precision=fp32", "metrics=[]",
        "model.KEY=VALUE", "tracker.uri=null",
    ]  # fmt: skip
    assert lines[4].endswith("Of the network. (fp32 | bf16)") and lines[-1].endswith("Where the server is, or null.")
    assert "tracker.uri" not in options_help(Options, but=Base)
