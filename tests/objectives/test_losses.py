"""The loss as a list of terms: what each of them is given, what is minimised, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from support import options_of
from torch import Tensor, nn
from torch.nn import functional as F

from sr_runner.attempt.build import build_objective
from sr_runner.config.compose import composed
from sr_runner.config.settings import TermSettings
from sr_runner.errors import RequestError
from sr_runner.objectives import CharbonnierLoss, FrequencyLoss, Learner, Losses, PixelObjective, Term
from sr_runner.objectives.losses import total

Terms = dict[str, Term | Callable[[Tensor, Tensor], Tensor]]


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 8, 8, generator=generator), torch.rand(2, 3, 8, 8, generator=generator)


def step(losses: Terms, count: int = 1, precision: Any = "fp32") -> tuple[dict[str, Tensor], Tensor]:
    """What a train step on `count` times the same batch returns, and the weights after it."""
    torch.manual_seed(0)
    learner = Learner(nn.Conv2d(3, 3, 3, padding=1), partial(torch.optim.SGD, lr=0.1), None, precision=precision)
    terms = PixelObjective(losses).train_step({"model": learner}, [images()] * count, measure=True)
    return terms, learner.network.weight.detach()  # type: ignore[return-value]


class Learnable(nn.Module):
    """A distance with weights that are ready to be trained, and dropout, as LPIPS has them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.dropout = nn.Parameter(torch.ones(3, 1, 1)), nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        self.seen += 1
        made: Tensor = self.dropout(self.weight * (sr - hr).square()).mean(dim=(1, 2, 3), keepdim=True)
        return made


def test_the_loss_is_the_weighted_sum_of_its_terms_and_each_of_them_is_measured() -> None:
    huber = Term(nn.HuberLoss(), TermSettings(weight=3))
    terms, weights = step({"l1": nn.L1Loss(), "huber": huber, "seen": Term(nn.MSELoss(), TermSettings(weight=0))})
    assert terms.keys() == {"loss", "loss/l1", "loss/huber", "loss/seen", "grad_norm"}
    torch.testing.assert_close(terms["loss"], terms["loss/l1"] + 3 * terms["loss/huber"])
    _, without = step({"l1": nn.L1Loss(), "huber": huber})
    assert torch.equal(weights, without) and terms["loss/seen"] > 0
    assert not any(term.requires_grad for term in terms.values())


def test_a_loss_says_what_it_is_the_sum_of() -> None:
    sharp = Term(nn.MSELoss(), TermSettings(sharpen=True, weight=0.05))
    assert str(Losses({"l1": nn.L1Loss(), "sharp": sharp})) == "L1Loss + 0.05 MSELoss to sharpened HR"


def test_accumulated_batches_count_as_their_mean() -> None:
    losses: Terms = {"l1": nn.L1Loss(), "mse": Term(nn.MSELoss(), TermSettings(weight=2))}
    (once, weights), (twice, accumulated) = step(losses), step(losses, count=2)
    torch.testing.assert_close(once, twice)
    torch.testing.assert_close(weights, accumulated)


def test_a_negative_weight_makes_larger_what_is_better_so() -> None:
    def similarity(sr: Tensor, hr: Tensor) -> Tensor:
        return 1 - F.l1_loss(sr, hr)

    _, weights = step({"l1": nn.L1Loss()})
    _, others = step({"similarity": Term(similarity, TermSettings(weight=-1))})
    torch.testing.assert_close(weights, others)


def test_a_term_gets_images_in_its_range() -> None:
    given = {}

    def keep(sr: Tensor, hr: Tensor) -> Tensor:
        given.update(sr=sr, hr=hr)
        return F.l1_loss(sr, hr)

    sr, hr = images()
    assert Term(keep, TermSettings(range=(-1, 1)))(sr, hr) == pytest.approx(2 * F.l1_loss(sr, hr).item())
    assert torch.equal(given["sr"], sr * 2 - 1) and torch.equal(given["hr"], hr * 2 - 1)
    Term(keep)(sr, hr)
    assert given["sr"] is sr


def test_a_term_may_compare_with_a_sharpened_hr_patch_and_others_do_not() -> None:
    given = {}

    def keep(name: str) -> Term:
        def loss(sr: Tensor, hr: Tensor) -> Tensor:
            given[name] = sr, hr
            return F.l1_loss(sr, hr)

        return Term(loss, TermSettings(sharpen=name == "sharp"))

    photograph = torch.from_numpy(skimage.data.astronaut()[200:264, 200:280].copy()).permute(2, 0, 1)[None] / 255
    Losses({"sharp": keep("sharp"), "plain": keep("plain")})(photograph * 0.9, photograph)
    assert given["plain"][1] is photograph and torch.equal(given["sharp"][0], given["plain"][0])
    # BasicSR's USMSharp in OpenCV's words.
    image = photograph[0].permute(1, 2, 0).numpy()
    detail = image - cv2.GaussianBlur(image, (51, 51), 0, borderType=cv2.BORDER_REFLECT_101)
    mask = (np.abs(detail) * 255 > 10).astype(np.float32)
    soft = cv2.GaussianBlur(mask, (51, 51), 0, borderType=cv2.BORDER_REFLECT_101)
    expected = soft * np.clip(image + 0.5 * detail, 0, 1) + (1 - soft) * image
    np.testing.assert_allclose(given["sharp"][1][0].permute(1, 2, 0), expected, atol=1e-5)
    assert np.abs(expected - image).max() > 0.05
    with pytest.raises(ValueError, match="sharpen: patches of 8 x 8 pixels, expected more than 25"):
        Losses({"sharp": keep("sharp")})(*images())


@pytest.mark.parametrize("autocast", [True, False])
def test_a_term_is_computed_in_fp32_unless_it_asks_for_the_precision_of_the_run(autocast: bool) -> None:
    seen = []

    def product(sr: Tensor, hr: Tensor) -> Tensor:
        seen.append((sr @ hr).dtype)
        return F.l1_loss(sr, hr)

    terms, _ = step({"own": Term(product, TermSettings(autocast=autocast))}, precision="bf16")
    assert seen == [torch.bfloat16 if autocast else torch.float32]
    assert terms["loss"].dtype == torch.float32


def test_a_term_is_frozen_and_in_evaluation_mode_and_the_mean_of_its_images_counts() -> None:
    sr, hr = images()
    loss = Learnable().train()
    found = Losses({"own": loss})(sr.requires_grad_(), hr)["own"]
    torch.testing.assert_close(found, F.mse_loss(sr, hr))
    assert found.dim() == 0 and found.requires_grad
    assert not loss.weight.requires_grad and not loss.dropout.training


def test_what_a_term_keeps_is_its_state_and_its_weights_are_not() -> None:
    losses = Losses({"own": Learnable(), "l1": nn.L1Loss()})
    losses(*images())
    state = {key: value.clone() for key, value in losses.state().items()}
    assert state == {"own.loss.seen": 1}
    other = Losses({"own": Learnable(), "l1": nn.L1Loss()})
    other.restore(state)
    assert other.state() == state
    with pytest.raises(ValueError, match=r"own\.loss\.seen"):
        Losses({"l1": nn.L1Loss()}).restore(state)


@pytest.mark.parametrize("name", ["", "a/b", "a.b", "1st", "training", "forward"])
def test_what_is_no_name_of_a_term_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match=rf"objective\.losses\.{name}: expected a name of letters, digits and _"):
        Losses({name: nn.L1Loss()})
    with pytest.raises(RequestError, match=r"objective\.losses=\{\}: expected a term or more"):
        PixelObjective({})


def test_the_distances_are_those_of_their_papers() -> None:
    sr, hr = images()
    torch.testing.assert_close(CharbonnierLoss(eps=0.1)(sr, hr), ((sr - hr) ** 2 + 0.01).sqrt().mean())
    difference = torch.fft.rfft2(sr - hr)
    torch.testing.assert_close(FrequencyLoss()(sr, hr), (difference.real.abs() + difference.imag.abs()).mean() / 2)
    with pytest.raises(ValueError, match=r"eps=0\.0: expected a number above 0"):
        CharbonnierLoss(eps=0.0)


OPTIONS = {
    "l1": {"pixel": 1.0},
    "mse": {"pixel": 1.0},
    "charbonnier": {"pixel": 1.0},
    "l1_fft": {"pixel": 1.0, "fft": 0.05},
    "perceptual": {"pixel": 0.01, "content": 1.0},
    "ms_ssim_l1": {"pixel": 0.16, "ms_ssim": -0.84},
    "srgan": {"content": 1.0},
    "esrgan": {"content": 1.0, "pixel": 0.01},
    "realesrnet": {"pixel": 1.0},
    "realesrgan": {"content": 1.0, "pixel": 1.0},
}
"""The weights of each option's terms."""


def test_every_option_is_described_here() -> None:
    assert options_of("objective") == sorted(OPTIONS)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_weighs_its_terms_and_trains(option: str) -> None:
    is_vgg = "content" in OPTIONS[option]
    settings = {"vgg_seed": 0, "layers": "[VGG22]", "layer_weights": "null"} if is_vgg else {}
    content = [f"objective.losses.content.{key}={value}" for key, value in settings.items()]
    if option == "ms_ssim_l1":
        pytest.importorskip("pytorch_msssim")
    objective = build_objective(composed([f"objective={option}", *content])[0].objective)
    assert {name: term.settings.weight for name, term in objective.losses.terms.items()} == OPTIONS[option]
    size = 176 if option == "ms_ssim_l1" else 32
    sr, hr = torch.rand(2, 1, 3, size, size)
    found = objective.losses(sr.requires_grad_(), hr)
    total(objective.losses.weighted(found)).backward()  # type: ignore[no-untyped-call]
    assert sr.grad is not None and 0 < sr.grad.abs().sum() < torch.inf
