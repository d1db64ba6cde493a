"""The runs that are killed and resumed: what a training can be made of, as small as it can be."""

from __future__ import annotations

from typing import Any

_SMALL = ("model.num_res_blocks=1", "model.num_filters=8")
_EDSR = ("model=edsr", *_SMALL, "trainer.precision=fp32", "trainer.ema_decay=0.9")
_SRRESNET = ("model=srresnet", *_SMALL, "trainer.precision=fp32")
_SRGAN = (
    "objective=srgan", "objective.losses.content.vgg_seed=0", "objective.losses.content.layers=[VGG22]",
    "objective.discriminator.num_filters=2",
    "scheduler=multistep", "scheduler.milestones=[5]", "trainer.ema_decay=0.9",
    "trainer.checkpoint_activations=body.*",
)  # fmt: skip

VARIANTS = {
    "edsr": _EDSR,
    "bf16": ("model=wdsr_b", "model.num_res_blocks=2", "model.num_filters=8", "trainer.precision=bf16"),
    "srresnet": _SRRESNET,
    "srgan": (*_SRRESNET, *_SRGAN),
    "unet": (
        *_SRRESNET,
        *_SRGAN[:3],
        "objective.discriminator._target_=sr_runner.models.UNetDiscriminator",
        "objective.discriminator.num_filters=2",
        "objective.adversarial_weight=0.1",
        *_SRGAN[4:],
    ),
    "losses": (*_EDSR, "objective=l1_fft", "+objective.losses.own={_target_: harder.Harder, weight: 0.1}"),
    "replace": (*_EDSR, "checkpoint.when_busy=replace", "checkpoint.every=1"),
    "skip": (*_EDSR, "trainer.on_nan=skip", "objective.losses.pixel._target_=variants.OftenInfinite"),
    "schedulefree": (*_EDSR, "optimizer=schedulefree_adamw"),
    "muon": (*_EDSR, "optimizer=muon", "trainer.parameters={tail: {use_fallback: true}}"),
    "soap": (*_EDSR, "optimizer._target_=pytorch_optimizer.SOAP", "scheduler=constant"),
    "workers": (*_EDSR, "data.workers=4"),
    "accumulate": (*_EDSR, "trainer.accumulate=3"),
    "augment": (
        *_EDSR,
        "data.augment={mixup: 0.3, cutmix: 0.3, cutblur: 0.2, channel_shuffle: 0.2}",
        "data.patch_schedule={4: {patch_size: 24, batch_size: 1}}",
    ),
    **{name: (*_EDSR, f"data/degradation={name}") for name in ("classic", "bsrgan", "realesrgan")},
}
COMPILED = {"compiled": (*_SRRESNET, "trainer.compile=true", "trainer.checkpoint_activations=body.*")}
"""Needs a C++ compiler."""


class OftenInfinite:
    """L1, divided by zero for the batches that are darker than others."""

    def __call__(self, sr: Any, hr: Any) -> Any:
        return (sr - hr).abs().mean() / (hr.mean() > 0.4)
