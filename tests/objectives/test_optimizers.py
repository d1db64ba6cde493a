"""Optimizers of other packages: the kinds of state that they keep, and what docs/optimizers.md says of each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from optimizers import EXACT, optimizers, tables, verdict

KINDS = {
    "torch.optim.Adafactor": "factored moments",
    "schedulefree.RAdamScheduleFree": "weights to train with and others to evaluate",
    "pytorch_optimizer.SOAP": "lists of matrices, in a layout that is neither contiguous nor their parameter's",
    "pytorch_optimizer.Shampoo": "roots of matrices, now and then",
    "pytorch_optimizer.Prodigy": "an estimate of the rate, in its groups",
    "pytorch_optimizer.Lamb": "norms",
    "pytorch_optimizer.Adan": "the last gradient",
    "pytorch_optimizer.Lion": "one moment",
    "pytorch_optimizer.FlashAdamW": "moments of other types",
    "pytorch_optimizer.MADGRAD": "a count of no parameter",
    "pytorch_optimizer.StableSPAM": "a state_dict of its own",
    "pytorch_optimizer.ROSE": "types in its groups",
    "pytorch_optimizer.Muon": "groups that say which parameters are matrices",
    "timm.optim.Muon": "matrices and the rest, told apart by itself",
}


@pytest.mark.parametrize("target", KINDS)
def test_an_optimizer_of_every_kind_goes_on_bit_for_bit_from_a_checkpoints_bytes(target: str) -> None:
    assert verdict(optimizers()[target], torch.channels_last) == EXACT, KINDS[target]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_page_of_optimizers_says_what_is_so() -> None:
    text, is_all_exact = tables()
    assert is_all_exact
    assert text in (Path(__file__).parents[2] / "docs" / "optimizers.md").read_text()
