"""Every key of every shipped part refuses what makes no sense for it, in one sentence that names the key."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from sr_runner.attempt.build import build, build_objective
from sr_runner.config.compose import _check_booleans, composed
from sr_runner.config.identity import flatten
from sr_runner.config.overrides import as_override, parse
from sr_runner.config.schema import check
from sr_runner.errors import RequestError
from sr_runner.objectives import Learner

OPTIONS = (
    "model=edsr optimizer=adam scheduler=cosine checkpoint=local",
    "model=srresnet optimizer=rmsprop scheduler=multistep data=folder data.train={train} checkpoint=s3 checkpoint.root=memory://x",
    "model=wdsr_b optimizer=sgd data=div2k checkpoint=mlflow objective=srgan objective.losses.content.layers=[VGG22] "
    "objective.losses.content.vgg_seed=0 +objective.losses.content.range=[0,1]",
    "model=msrresnet optimizer=nadam objective=mse",
)
"""In these every key of a shipped part occurs, but for those of degradations, which are lists of parts."""
VALUES: dict[str, Any] = {
    "not a number": float("nan"), "infinity": float("-inf"), "too large": 1e300, "below zero": -1, "zero": 0,
    "a line end": "a\nb", "nothing": "", "a word": "off", "a mapping": {"a": 1}, "null": None,
}  # fmt: skip
TEXT = {
    "outputs", "checkpoint.root", "tracker.uri", "tracker.experiment", "tracker.run_name", "tracker.outputs",
    "data.cache_dir", "data.train", "data.valid", "data.train_lr", "data.valid_lr", "data.valid_list", "data.root",
    "checkpoint.store.experiment", "checkpoint.store.outputs", "objective.losses.content.vgg_weights", "sweep.name",
}  # fmt: skip
SENSIBLE = {
    # A folder may be called so, and what is better the larger it is has such a weight.
    "below zero": {"outputs", "objective.losses.content.weight", "objective.losses.pixel.weight"},
    "not a number": {"sweep.name"},  # and a sweep nan
    "zero": {
        "outputs", "seed", "sweep.name", "data.seed", "data.workers", "data.valid_images", "data.preview",
        "trainer.pictures", "checkpoint.keep_last", "checkpoint.keep_best", "checkpoint.store.retry_seconds",
        "checkpoint.store.wait_for_run", "optimizer.weight_decay", "optimizer.momentum",
        "optimizer.momentum_decay", "optimizer.alpha", "scheduler.total_iters",
        "objective.adversarial_weight", "objective.losses.content.weight", "objective.losses.pixel.weight",
        "objective.gradient_penalty", "data.valid_fraction",
    },
    "a word": TEXT,
    "a mapping": {"checkpoint.store.options", "checkpoint.init_options"},
    "null": {
        "trainer.threads", "trainer.grad_clip", "trainer.parameters", "trainer.ema_decay", "trainer.grace_seconds",
        "checkpoint.keep_every", "checkpoint.keep_minutes", "checkpoint.every", "checkpoint.max_failures",
        "checkpoint.lease_seconds", "checkpoint.init_options", "checkpoint.store.options", "checkpoint.store.uri",
        "optimizer.fused", "tracker.uri", "tracker.run_name", "sweep.name", "data.valid",
        "data.train_lr", "data.valid_lr", "data.valid_list", "data.lr_pattern", "data.valid_images",
        "objective.losses.content.vgg_weights", "objective.discriminator_weights",
        "objective.losses.content.layer_weights",
        "objective.discriminator_optimizer", "objective.discriminator_scheduler",
    },
}  # fmt: skip
LATER = {
    "trainer.resume", "checkpoint.init_from", "checkpoint.best_metric", "checkpoint.root", "checkpoint.store",
    "objective.losses.content.vgg_seed",
}  # fmt: skip
"""What they name is looked up when the run begins; without its seed VGG19 would be downloaded."""
CLASSES = ("model", "data", "tracker")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DictConfig]:
    """By key: a config that has it."""
    train = tmp_path_factory.mktemp("train")
    for name in ("a", "b"):
        Image.new("RGB", (40, 40)).save(train / f"{name}.png")
    found: dict[str, DictConfig] = {}
    for line in OPTIONS:
        config = composed(line.format(train=train).split())[0]
        keys = flatten(OmegaConf.to_container(config, resolve=False))
        found |= {key: config for key in keys if key not in found and not key.endswith("_")}
    return {key: config for key, config in found.items() if key not in LATER}


def answer(config: DictConfig, key: str, value: Any) -> str:
    """What is said of `key=value`, or nothing where it is taken."""
    config, group = copy.deepcopy(config), key.partition(".")[0]
    OmegaConf.set_struct(config, False)
    try:
        _check_booleans(parse([as_override(key, value)]), config)  # before OmegaConf makes a boolean of it
        OmegaConf.update(config, key, value, merge=False)
        check(config)
        network = torch.nn.Conv2d(3, 3, 3)
        if group == "objective":
            build_objective(config.objective).networks(network, patch_size=config.data.patch_size)
        elif group in CLASSES:
            build(config[group], group)
        elif group == "checkpoint":
            build(config.checkpoint.store, "checkpoint.store", root=config.checkpoint.root)
        elif group == "trainer":
            Learner(network, torch.optim.Adam, None, rules=config.trainer.parameters)
        else:
            optimizer = build(config.optimizer, "optimizer", _partial_=True)(network.parameters())
            build(config.scheduler, "scheduler", _partial_=True)(optimizer)
    except RequestError as error:
        return str(error)
    except OmegaConfBaseException as error:  # `compose` makes a sentence of it, which names the key
        return error.full_key or str(error)
    except (ValueError, TypeError) as error:  # as in `build_parts`
        return f"optimizer or scheduler: {error}" if group in ("optimizer", "scheduler") else repr(error)
    return ""


def fault(options: dict[str, DictConfig], key: str, kind: str) -> str:
    """What is wrong with the answer to a value of that kind."""
    said = answer(options[key], key, VALUES[kind])
    if said:
        is_sentence = key.rpartition(".")[2] in said and len(said.splitlines()) == 1
        expected = is_sentence and (key not in SENSIBLE.get(kind, ()) or kind == "a word")
    else:
        expected = key in SENSIBLE.get(kind, ())
    return "" if expected else f"{key}={VALUES[kind]!r}: {said or 'taken'}"


def test_every_key_refuses_what_makes_no_sense(options: dict[str, DictConfig]) -> None:
    """One kind of value for each key here, all of them in the slow test."""
    kinds = list(VALUES)
    faults = [fault(options, key, kinds[place % len(kinds)]) for place, key in enumerate(sorted(options))]
    assert not list(filter(None, faults))


@pytest.mark.slow
@pytest.mark.parametrize("kind", VALUES)
def test_every_key_refuses_every_value_that_makes_no_sense(kind: str, options: dict[str, DictConfig]) -> None:
    assert not list(filter(None, (fault(options, key, kind) for key in options)))
