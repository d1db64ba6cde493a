"""What a discriminator's logits cost the generator and the discriminator.

All take logits of photographs (`real`) and of SR patches (`fake`), in fp32, N x 1 or as many for each patch as the
discriminator makes, and give scalars. The logistic
losses are written with softplus: log(1 + e^x) = -log sigmoid(-x), which is binary cross-entropy on a logit without
its overflow.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.nn import functional as F


class AdversarialLoss(Protocol):
    """A pair of losses that the two networks minimise against each other."""

    def generator(self, real: Tensor, fake: Tensor) -> Tensor: ...

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor: ...


class Vanilla:
    """SRGAN (Ledig et al. 2017) in its non-saturating form, summed as krasserm/super-resolution does:

    generator -log D(fake); discriminator -log D(real) - log(1 - D(fake)).
    """

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(-fake).mean()

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(-real).mean() + F.softplus(fake).mean()


class RelativisticAverage:
    """ESRGAN (Wang et al. 2018): is a photograph more real than the average SR patch, and the other way round?

    With r = real - mean(fake) and f = fake - mean(real): generator (-log(1 - s(r)) - log s(f)) / 2, discriminator
    (-log s(r) - log(1 - s(f))) / 2, s being the sigmoid; halved as in the authors' code.
    """

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return self.discriminator(fake, real)

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return (F.softplus(fake.mean() - real).mean() + F.softplus(fake - real.mean()).mean()) / 2


class Hinge:
    """Geometric GAN (Lim and Ye 2017): generator -fake; discriminator max(0, 1 - real) + max(0, 1 + fake)."""

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return -fake.mean()

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


ADVERSARIAL_LOSSES: dict[str, type[AdversarialLoss]] = {
    "vanilla": Vanilla,
    "relativistic": RelativisticAverage,
    "hinge": Hinge,
}
