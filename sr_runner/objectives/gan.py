"""A generator against a discriminator, beside other losses: SRGAN, ESRGAN and their kin."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sr_runner import weights
from sr_runner.errors import RequestError, check_choice
from sr_runner.objectives.adversarial import ADVERSARIAL_LOSSES
from sr_runner.objectives.base import MODEL, MicroBatches, TrainedBy
from sr_runner.objectives.learner import Learner, OptimizerFactory, SchedulerFactory
from sr_runner.objectives.losses import Loss, Losses, Row, Term, mean, total

log = logging.getLogger(__name__)

DISCRIMINATOR = "discriminator"
"""The learner of the second network, and its loss."""

ADVERSARIAL = "adversarial"
"""The generator's part of that."""


class GanObjective:
    """Trains any generator (the model) and any discriminator against each other.

    The generator minimises the weighted sum of `losses` plus `adversarial_weight` x adversarial loss, the
    discriminator its half of the adversarial loss and the gradient penalty. As in krasserm/super-resolution
    one forward pass of either network serves both losses, both gradients are taken at the weights before the step,
    and then both networks are updated, each by its own optimizer and schedule. So neither comes first. The
    discriminator sees photographs and SR patches as two batches, each with BatchNorm statistics of its own.
    """

    def __init__(
        self,
        *,
        losses: Mapping[str, Term | Loss],
        discriminator: nn.Module,
        adversarial: str = "vanilla",
        adversarial_weight: float = 1e-3,
        gradient_penalty: float = 0.0,
        discriminator_weights: str | Path | None = None,
        discriminator_optimizer: OptimizerFactory | None = None,
        discriminator_scheduler: SchedulerFactory | None = None,
    ):
        """Arguments:

        losses: of SR and HR patches, such as `PerceptualLoss`; there may be none.
        discriminator: maps N x 3 x P x P patches in [0, 1] to logits, high for photographs, as many as it likes.
        adversarial: `vanilla` (SRGAN), `relativistic` (ESRGAN) or `hinge`: see `adversarial.py`.
        gradient_penalty: gamma of R1 (Mescheder et al. 2018), gamma / 2 x mean over photographs of the squared norm of
            the logit's gradient by the photograph's pixels. It costs a further pass of the discriminator, in fp32.
        discriminator_weights: file or URL to start the discriminator from, in sr-run's layout; SRGAN's
            also in Keras'.
        discriminator_optimizer, discriminator_scheduler: called with the parameters, and with the optimizer; None:
            as the generator's.

        Raises `RequestError` for values out of range.
        """
        check_choice("objective.adversarial", adversarial, ADVERSARIAL_LOSSES)
        for name, weight in (("adversarial_weight", adversarial_weight), ("gradient_penalty", gradient_penalty)):
            if not weight >= 0:
                raise RequestError(f"objective.{name}={weight}: expected 0 or a number above")
        for name in (ADVERSARIAL, DISCRIMINATOR):
            if name in losses:
                raise RequestError(f"objective.losses.{name}: expected another name; the GAN has a loss of that one")
        self.losses = Losses(losses)
        self.adversarial, self.adversarial_weight = ADVERSARIAL_LOSSES[adversarial](), adversarial_weight
        self.gradient_penalty = gradient_penalty
        self.discriminator = discriminator
        self._discriminator_weights = None if discriminator_weights is None else _discriminator(discriminator_weights)
        self._discriminator_trained_by = TrainedBy(discriminator_optimizer, discriminator_scheduler)

    @property
    def file_contents(self) -> dict[str, str | None]:
        """For a run's identity: the digests of the files that the arguments name, wherever these lie."""
        loaded = self._discriminator_weights
        return self.losses.file_contents | {"discriminator_weights": loaded.digest if loaded is not None else None}

    def networks(self, model: nn.Module, *, patch_size: int) -> dict[str, nn.Module]:
        """Raises `RequestError` where the discriminator makes no logits of patches of that size."""
        if self._discriminator_weights is not None:
            try:
                report = weights.apply(self.discriminator, self._discriminator_weights)
            except RequestError as error:
                raise RequestError(f"objective.discriminator_weights: {error}") from error
            report.log(log)
        check_discriminator(self.discriminator, patch_size)
        return {MODEL: model, DISCRIMINATOR: self.discriminator}

    def trained_by(self, name: str) -> TrainedBy:
        return self._discriminator_trained_by if name == DISCRIMINATOR else TrainedBy()

    def train_step(self, learners: Mapping[str, Learner], batches: MicroBatches, *, measure: bool) -> dict[str, Tensor]:
        rows = [self._backward(learners, lr, hr, share=1 / len(batches)) for lr, hr in batches]
        norm = learners[MODEL].step(measure=measure)
        learners[DISCRIMINATOR].step()
        found = mean(rows)
        if measure and norm is not None:
            found["grad_norm"] = norm
        return found

    def _backward(self, learners: Mapping[str, Learner], lr: Tensor, hr: Tensor, *, share: float) -> Row:
        """Add one batch's gradients, as `share` of the step's, to those of both networks; the batch's losses."""
        model, discriminator = learners[MODEL], learners[DISCRIMINATOR]
        sr = model(lr)
        # A batch's memory format and BatchNorm statistics are its own: two passes, not one over both.
        real, fake = discriminator(hr), discriminator(sr)
        terms = self.losses(sr, hr, model.autocast)
        adversarial = self.adversarial.generator(real, fake)
        loss = total([*self.losses.weighted(terms), self.adversarial_weight * adversarial])
        against = self.adversarial.discriminator(real, fake)
        if self.gradient_penalty:
            against = against + self.gradient_penalty / 2 * squared_gradient_norm(discriminator.network, hr)
        # Each loss reaches into both networks; each network gets only the gradients of its own.
        model.backward(loss * share, own=True, retain_graph=True)
        discriminator.backward(against * share, own=True)
        terms |= {ADVERSARIAL: adversarial, DISCRIMINATOR: against}
        return {"loss": loss.detach()} | {f"loss/{name}": term.detach() for name, term in terms.items()}


def _discriminator(file: str | Path) -> weights.LoadedWeights:
    try:
        loaded = weights.read(file)
    except RequestError as error:
        raise RequestError(f"objective.discriminator_weights={error}") from error
    if loaded.network not in ("discriminator", None):
        raise RequestError(f"objective.discriminator_weights={loaded} is no discriminator")
    return loaded


@torch.no_grad()
def check_discriminator(discriminator: object, patch_size: int) -> None:
    """Raises `RequestError` unless it makes logits of patches, before a run is started for nothing."""
    if not isinstance(discriminator, nn.Module):
        kind = type(discriminator).__name__
        raise RequestError(f"objective.discriminator._target_ makes a {kind}: expected a torch.nn.Module")
    name, batch = f"objective.discriminator: {type(discriminator).__name__}", f"1 x 3 x {patch_size} x {patch_size}"
    training = discriminator.training
    discriminator.eval()  # a pass in training would change BatchNorm's statistics
    try:
        made = discriminator(torch.zeros(1, 3, patch_size, patch_size))
    except Exception as error:
        raise RequestError(f"{name} fails on patches of {batch}: {error}") from error
    finally:
        discriminator.train(training)
    if not isinstance(made, Tensor) or not made.is_floating_point() or made.dim() == 0 or len(made) != 1:
        found = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise RequestError(f"{name} makes {found} of patches of {batch}; expected logits, 1 x ...")


def squared_gradient_norm(discriminator: nn.Module, images: Tensor) -> Tensor:
    """Mean over N x 3 x P x P `images` of |d logit / d image|^2, differentiable by the discriminator's weights; of the
    sum of an image's logits, where it has several.

    In fp32 and on the plain module: fp16 would overflow in the square, and compiled networks have no second
    derivative. Where BatchNorm ties a batch together, a logit's gradient by the other images counts as well.
    """
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()
