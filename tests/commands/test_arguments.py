from __future__ import annotations

from pathlib import Path

import pytest

from sr_runner.commands.arguments import Arguments
from sr_runner.errors import RequestError

KEYS = ("data", "scale", "self_ensemble", "tracker.uri", "precision")


def read(*words: str) -> Arguments:
    return Arguments(words, KEYS, open_groups=("model.",))


def test_words_are_sources_and_pairs_are_options() -> None:
    arguments = read("a.pt", "data=x,y", "b.pth", "scale=4", "tracker.uri=http://host:5000/?a=b")
    assert arguments.sources == ["a.pt", "b.pth"]
    assert arguments.words("data") == ["x", "y"]
    assert arguments.optional_integer("scale", least=1) == 4
    assert arguments.text("tracker.uri", "") == "http://host:5000/?a=b"


def test_what_was_not_given_has_its_default() -> None:
    arguments = read("a.pt")
    assert arguments.text("data", "here") == "here" and arguments.words("data") == []
    assert arguments.integer("scale", 7, least=1) == 7 and arguments.optional_integer("scale", least=1) is None
    assert not arguments.flag("self_ensemble")
    assert arguments.choice("precision", ("fp32", "bf16")) == "fp32"


def test_keys_of_an_open_group_may_have_any_name() -> None:
    arguments = read("model.res_block_scaling=0.1", "model.blocks=4", "model.act=relu")
    assert arguments.group("model.") == {"res_block_scaling": 0.1, "blocks": 4, "act": "relu"}


def test_a_file_whose_name_looks_like_an_option_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=1e-4.pt").touch()
    assert read("lr=1e-4.pt").sources == ["lr=1e-4.pt"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scal=4"], "scal=4: there is no option 'scal'. Did you mean 'scale'?"),
        (["zzz=4"], "Options: data, scale"),
        (["--scale=4"], "--scale=4: options are written key=value. Did you mean 'scale'?"),
        (["--self-ensemble"], "Did you mean 'self_ensemble'?"),
        (["scale=2", "scale=4"], "scale is given twice: 2 and 4."),
        (["scale="], "scale=: a value is needed."),
    ],
)
def test_what_cannot_be_meant_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(RequestError) as refusal:
        read(*words)
    assert message in str(refusal.value)


def test_values_of_the_wrong_kind_are_refused_with_key_and_value() -> None:
    arguments = read("scale=abc", "self_ensemble=maybe", "precision=fp23", "data=lpisp")
    with pytest.raises(RequestError, match="scale=abc: a whole number of at least 1"):
        arguments.integer("scale", 1, least=1)
    with pytest.raises(RequestError, match="self_ensemble=maybe: true or false"):
        arguments.flag("self_ensemble")
    with pytest.raises(RequestError, match=r"precision=fp23: .* Did you mean 'fp32'"):
        arguments.choice("precision", ("fp32", "bf16"))
    with pytest.raises(RequestError, match=r"data=lpisp: .* Did you mean 'lpips'"):
        arguments.choices("data", ("lpips", "dists"))
    with pytest.raises(RequestError, match="scale=0: a whole number of at least 1"):
        read("scale=0").integer("scale", 1, least=1)
