"""Each key that matters changes a run's identity, and each that does not, does not."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import hydra.utils
import pytest
from omegaconf import DictConfig, OmegaConf
from support import options_of

from sr_runner.config.compose import composed
from sr_runner.config.identity import flatten, identity, identity_facts
from sr_runner.config.settings import CheckpointSettings, TrainerSettings

# The decisions. A new key of the trainer, of checkpoints or of shipped data needs one: the tests fail until it has.
TRAINER = {
    "steps": False,  # a finished run can be extended; a schedule that is stretched over it has it in its own keys
    "eval_every": False,
    "log_every": False,
    "resume": False,
    "allow_changes": False,
    "device": False,
    "precision": True,
    "channels_last": False,
    "compile": False,
    "deterministic": False,
    "threads": False,
    "accumulate": True,
    "grad_clip": True,
    "on_nan": True,
    "parameters": True,
    "checkpoint_activations": False,  # the same bits
    "ema_decay": True,
    "grace_seconds": False,
    "metrics": False,
    "pictures": False,
}
CHECKPOINT = {
    "store": False,
    "root": False,
    "every": False,
    "keep_last": False,
    "keep_best": False,
    "best_metric": False,
    "keep_every": False,
    "keep_minutes": False,
    "max_failures": False,
    "when_busy": False,
    "lease_seconds": False,
    "init_from": False,  # a place; what is read there is given as its digest
    "init_rule": True,  # with init_from
    "init_options": False,  # in the digest
}
DATA = {
    "augment": True,
    "patch_schedule": True,
    "_target_": True,
    "_convert_": True,
    "scale": True,
    "seed": True,
    "batch_size": True,
    "patch_size": True,
    "flip": True,
    "rotate": True,
    "degradation": True,
    "valid_images": False,
    "workers": False,
    "cache": False,
    "cache_dir": False,
    "preview": False,
    # where images are: which images they are is in the fingerprint
    "train": False,
    "valid": False,
    "train_lr": False,
    "valid_lr": False,
    "valid_fraction": False,
    "valid_list": False,
    "hr_pattern": False,
    "lr_pattern": False,
    "root": False,
    "download": False,
    "base_url": False,
}
GROUPS = {"scale": True, "seed": True, "outputs": False, "tracker": False, "sweep": False} | dict.fromkeys(
    ("model", "objective", "optimizer", "scheduler"), True
)
NEEDED = {"data=folder": ["data.train=/photographs"]}


def decided(key: str) -> bool:
    group, _, rest = key.partition(".")
    table = {"trainer": TRAINER, "checkpoint": CHECKPOINT, "data": DATA}.get(group)
    return GROUPS[group] if table is None else table[rest.partition(".")[0]]


def another(value: Any) -> Any:
    """A value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [*value, 1]
    return {"a": 1} if isinstance(value, dict) else 7 if value is None else f"{value}x"


def facts(config: DictConfig, fingerprint: str = "images", init_from: str | None = "digest") -> dict[str, Any]:
    """With what the class of the data declares, none of which has to be built."""
    kind = hydra.utils.get_object(str(config.data._target_).removesuffix("x"))
    data = SimpleNamespace(not_in_identity=kind.not_in_identity, not_in_identity_if=kind.not_in_identity_if)
    return identity_facts(config, {"data": data}, fingerprint, init_from)


OPTIONS = [
    f"{group}={option}"
    for group in ("model", "objective", "optimizer", "scheduler", "data", "checkpoint", "tracker")
    for option in options_of(group)
] + [f"data/degradation={option}" for option in options_of("data/degradation")]


@pytest.mark.parametrize("option", ["", *OPTIONS])
def test_each_key_that_matters_changes_the_identity_and_no_other_does(option: str) -> None:
    """Of the option's group; without one, of the whole default config (whose `cosine` is stretched over the steps)."""
    config, _ = composed([option or "scheduler=constant", *NEEDED.get(option, [])])
    group = option.partition("=")[0].partition("/")[0]
    before = facts(config)
    values = flatten(OmegaConf.to_container(config, resolve=True))
    for key in (key for key in values if key.startswith(group)):
        changed = OmegaConf.create(OmegaConf.to_container(config))  # its interpolations stay: `scale` is in many places
        OmegaConf.update(changed, key, another(values[key]))
        assert (facts(changed) != before) == decided(key), key


@pytest.mark.parametrize(("kind", "table"), [(TrainerSettings, TRAINER), (CheckpointSettings, CHECKPOINT)])
def test_there_is_a_decision_for_every_setting(kind: type, table: dict[str, bool]) -> None:
    assert {field.name for field in dataclasses.fields(kind)} == table.keys()


def test_the_content_of_images_and_of_pre_trained_weights_counts() -> None:
    config, _ = composed([])
    assert facts(config, fingerprint="others") != facts(config)
    assert facts(config, init_from="another") != facts(config) != facts(config, init_from=None)


def test_how_weights_are_loaded_counts_only_where_there_are_some() -> None:
    strict, body = (composed([f"checkpoint.init_rule={rule}"])[0] for rule in ("strict", "body"))
    assert facts(strict, init_from=None) == facts(body, init_from=None)


def test_the_number_of_steps_counts_where_a_schedule_is_stretched_over_it() -> None:
    def both(scheduler: str) -> list[dict[str, Any]]:
        return [facts(composed([f"scheduler={scheduler}", f"trainer.steps={steps}"])[0]) for steps in (100, 200)]

    stretched, same = both("cosine"), both("constant")
    assert stretched[0].items() ^ stretched[1].items() == {
        ("scheduler.total_steps", 100),
        ("scheduler.total_steps", 200),
    }
    assert same[0] == same[1]


OWN = OmegaConf.create({"_target_": "mine.Photographs", "train_jitter": 1, "cache_policy": {"size": 2}, "workers": 3})


def own_facts(**declared: Any) -> dict[str, Any]:
    """Of a run on data of one's own, which declare `declared`."""
    config, _ = composed([])
    OmegaConf.set_struct(config, False)
    config.data = OWN
    found = identity_facts(config, {"data": SimpleNamespace(**declared)}, "images")
    return {key: value for key, value in found.items() if key.startswith("data.")}


def test_every_key_counts_of_data_of_ones_own_that_declare_nothing() -> None:
    assert own_facts() == {
        "data._target_": "mine.Photographs", "data.train_jitter": 1, "data.cache_policy.size": 2, "data.workers": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    "keys", [{"workers", "cache_policy"}, ["workers", "cache_policy"], ("workers", "cache_policy")]
)
def test_what_data_of_ones_own_declare_is_left_out_whole(keys: Any) -> None:
    assert own_facts(not_in_identity=keys) == {"data._target_": "mine.Photographs", "data.train_jitter": 1}


def test_a_declared_key_stands_for_itself_and_not_for_those_that_begin_like_it() -> None:
    assert own_facts(not_in_identity={"train", "cache"}) == own_facts() == own_facts(not_in_identity="train_jitter")


def test_a_file_counts_by_what_was_read_and_not_by_its_place() -> None:
    parts = {
        "objective": SimpleNamespace(file_contents={"losses.content.vgg_weights": "d1"}),
        "model": SimpleNamespace(),
    }
    key = "objective.losses.content.vgg_weights"
    here, there = (composed(["objective=srgan", f"{key}={place}"])[0] for place in ("a.pth", "b.pth"))
    assert identity_facts(here, parts, "") == identity_facts(there, parts, "") != identity_facts(here, {}, "")
    assert identity_facts(here, parts, "")[key] == "d1"


def test_scale_and_seed_are_named_once_where_the_data_have_the_same() -> None:
    config, _ = composed(["scale=3"])
    found = facts(config)
    assert (found["scale"], found["seed"]) == (3, config.seed) and not {"data.scale", "data.seed"} & found.keys()
    config.data.seed = config.seed + 1
    assert facts(config)["data.seed"] == config.seed + 1


def test_an_identity_is_that_of_every_earlier_release() -> None:
    """Where it changes, no run is found again."""
    assert identity("edsr", 4, {"b": [1, None], "a": 1e-4}) == "edsr-x4-3e86e116701d"


def test_an_identity_is_a_readable_name_and_a_hash_that_no_order_changes() -> None:
    name = identity("edsr/large 2", 4, {"a": 1, "b": 2})
    assert name == identity("edsr/large 2", 4, {"b": 2, "a": 1}) and name.startswith("edsr_large_2-x4-")
    assert len(name.rpartition("-")[2]) == 12 and name != identity("edsr/large 2", 4, {"a": 1, "b": 3})
