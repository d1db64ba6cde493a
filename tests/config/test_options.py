"""What an option says by itself, and what a network is called."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sr_runner.config.compose import composed
from sr_runner.config.options import as_written


@pytest.fixture
def own(tmp_path: Path) -> str:
    """The override that adds a folder of own configs."""
    (tmp_path / "model").mkdir()
    (tmp_path / "experiment").mkdir()
    (tmp_path / "model" / "tiny.yaml").write_text("_target_: mine.Net\nscale: ${scale}\n")
    (tmp_path / "model" / "wider.yaml").write_text("defaults:\n  - tiny\n  - _self_\nwidth: 16\n")
    (tmp_path / "experiment" / "ours.yaml").write_text("# @package _global_\nmodel:\n  _target_: mine.Ours\n")
    return f"hydra.searchpath=['file://{tmp_path}']"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "edsr"),
        (["model=edsr_large"], "edsr_large"),
        (["model._target_=mine.Net"], "net"),
        (["model=wdsr_b", "model._target_=mine.deep.WideNet"], "widenet"),
        (["model._target_=sr_runner.models.EDSR"], "edsr"),
        (["model=tiny"], "tiny"),
        (["model=wider"], "wider"),
        (["model=tiny", "model._target_=mine.Other"], "other"),
        (["experiment=ours"], "ours"),
    ],
)
def test_a_network_is_called_by_its_option_or_where_another_class_is_named_by_that(
    own: str, overrides: list[str], name: str
) -> None:
    assert composed([own, *overrides])[1]["model"] == name


def test_an_option_says_what_its_bases_say_interpolations_as_they_stand(own: str) -> None:
    composed([own, "model=wider", "optimizer.lr=5", "trainer.steps=3"])
    assert as_written("model") == {"_target_": "mine.Net", "scale": "${scale}", "width": 16}
    assert as_written("optimizer")["lr"] == 1e-3 and as_written("scheduler")["total_steps"] == "${trainer.steps}"


def test_an_option_that_is_edited_says_what_it_says_now(own: str, tmp_path: Path) -> None:
    composed([own, "model=wider"])
    assert as_written("model")["scale"] == "${scale}"
    (tmp_path / "model" / "tiny.yaml").write_text("_target_: mine.Net\nscale: 3\n")
    assert as_written("model") == {"_target_": "mine.Net", "scale": 3, "width": 16}


@pytest.mark.parametrize("model", ["edsr_large", "wdsr_b", "msrresnet"])
def test_an_option_composes_to_what_it_says(model: str) -> None:
    config, _ = composed([f"model={model}"])
    assert OmegaConf.to_container(config.model, resolve=False) == as_written("model")
