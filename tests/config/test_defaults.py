"""Every default stands in one place, every key is explained where it is defined, and code and config agree."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from support import ROOT, SrRun, options_of
from torch import nn

from sr_runner.attempt.build import build
from sr_runner.checkpoint import BestN
from sr_runner.config.compose import composed
from sr_runner.config.identity import flatten
from sr_runner.config.settings import CheckpointSettings, RunSettings, TermSettings, TrainerSettings, config_dir
from sr_runner.errors import RequestError
from sr_runner.objectives import Learner

GROUPS = (
    "model",
    "objective",
    "optimizer",
    "scheduler",
    "data",
    "data/degradation",
    "checkpoint",
    "tracker",
    "trainer",
)
OPTIONS = [f"{group}={option}" for group in GROUPS for option in options_of(group)]
RECIPES = options_of("experiment")
OPTIMIZERS = options_of("optimizer")
TRACKER = config_dir() / "tracker" / "mlflow.yaml"

ON_PURPOSE = {
    "optimizer=muon": {"lr", "nesterov"},  # timm's rate of 0.02 is that of updates that are not adjusted
    "objective=realesrgan": {
        "adversarial_weight",
        "layers",
        "layer_weights",
        "criterion",
        "scale",
        "before_activation",
    },
    "optimizer=sgd": {"momentum"},  # torch's own is none
    "scheduler=constant": {"factor", "total_iters"},  # torch's ConstantLR begins with a third of the rate
    "scheduler=cosine": {"pct_start", "cycle_momentum", "div_factor", "final_div_factor"},
    "scheduler=multistep": {"gamma"},
}
"""Keys that an option sets otherwise than its class does, beside `fused`; those of an option that is based on another
one (`edsr_large`, `adam_edsr`) are that option's whole purpose."""


def chain(group: str, option: str) -> list[Path]:
    """The file of an option, and before it those that it is based on."""
    path = config_dir() / group / f"{option}.yaml"
    bases = [each for each in (yaml.safe_load(path.read_text()) or {}).get("defaults", []) if isinstance(each, str)]
    return [*(file for base in bases if base != "_self_" for file in chain(group, base)), path]


def own_keys(path: Path) -> dict[str, Any]:
    """Key -> value, flat, without what makes Hydra's syntax."""
    values = yaml.safe_load(path.read_text()) or {}
    return {
        key: value
        for key, value in flatten({k: v for k, v in values.items() if k != "defaults"}).items()
        if not key.rpartition(".")[2].startswith("_")
    }


def explained(path: Path) -> set[str]:
    return {match[1] for match in re.finditer(r"^ *(\w+):.*# .{3}", path.read_text(), re.MULTILINE)}


@cache
def config_of(option: str) -> DictConfig:
    return composed([option])[0]


@pytest.mark.parametrize("option", [*OPTIONS, *(f"experiment={name}" for name in RECIPES)])
def test_every_option_composes_and_has_every_key_of_the_settings(option: str) -> None:
    config = config_of(option)
    for settings, node in (
        (RunSettings, config),
        (TrainerSettings, config.trainer),
        (CheckpointSettings, config.checkpoint),
    ):
        assert {field.name for field in fields(settings)} <= {str(key) for key in node}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_key_of_an_option_is_explained_where_it_is_defined(option: str) -> None:
    group, _, name = option.partition("=")
    settings = (("trainer", TrainerSettings), ("checkpoint", CheckpointSettings))
    known = {f"{prefix}.{field.name}" for prefix, kind in settings for field in fields(kind)}
    of_a_term = {field.name for field in fields(TermSettings)}
    for path in chain(group, name):
        for key, value in own_keys(path).items():
            if re.fullmatch(r"losses\.\w+\.\w+", key) and key.rpartition(".")[2] in of_a_term:
                continue
            if key in known or f"{group}.{key}" in known or (isinstance(value, str) and value.startswith("${")):
                continue
            assert key.rpartition(".")[2] in explained(path), f"{path}: {key}"
            known.add(key)


@pytest.mark.parametrize(
    "path", sorted(config_dir().rglob("*/*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_every_file_begins_with_what_it_is(path: Path) -> None:
    first = next(line for line in path.read_text().splitlines() if not line.startswith("# @package"))
    assert re.match(r"# .{10}", first)


def parts_in(value: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts (`_target_`) in a plain config, those in lists and in other parts included, each under its key."""
    if isinstance(value, dict) and "_target_" in value:
        yield key, value
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in inside:
        yield from parts_in(inner, f"{key}.{name}")


def of_the_run(value: Any) -> Any:
    """What an interpolation is in a run of nothing but defaults."""
    without = {**vars(RunSettings()), "tracker": own_keys(TRACKER), "value": value}
    return OmegaConf.create(without).value


@pytest.mark.parametrize("option", OPTIONS)
def test_config_and_class_have_the_same_defaults_or_only_one_of_them_has(option: str) -> None:
    """A key of an option is what its class takes for it by itself, whatever it refers to; what stands in a list of
    parts is there because it differs."""
    group, _, name = option.partition("=")
    *bases, own = chain(group, name)
    is_based = any(not path.stem.startswith("_") for path in bases)
    changed = [key.rpartition(".")[2] for key in own_keys(own)] if is_based else []
    on_purpose = {"fused", *changed, *ON_PURPOSE.get(option, ())}
    for key, node in parts_in(OmegaConf.to_container(config_of(option)[group.partition("/")[0]], resolve=False), group):
        pytest.importorskip(node["_target_"].partition(".")[0])  # an extra
        parameters = inspect.signature(get_object(node["_target_"])).parameters
        for argument, value in node.items():
            default = parameters[argument].default if argument in parameters else inspect.Parameter.empty
            refers = re.search(r"\$\{(optimizer|trainer|data)\.", str(value))
            if default is inspect.Parameter.empty or argument in on_purpose or refers or isinstance(value, dict):
                continue
            plain = list(default) if isinstance(default, tuple) else default
            is_in_list = any(part.isdigit() for part in key.split("."))
            assert (of_the_run(value) == plain) is not is_in_list, f"{key}.{argument}"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_only_keys_that_are_there_without_it(name: str) -> None:
    config, choices = composed([f"experiment={name}"])
    groups = [f"{group}={choices[group]}" for group in GROUPS if choices.get(group, "None") != "None"]
    without, _ = composed(["experiment=none", *groups])

    def keys(tree: DictConfig) -> set[str]:
        return {re.sub(r"^(model\.arguments)\..*", r"\1", key) for key in flatten(OmegaConf.to_container(tree))}

    assert keys(config) == keys(without)  # those of model.arguments are a class's of spandrel


def test_a_run_without_a_recipe_is_the_quick_one_whatever_its_data() -> None:
    for data in ("sample", "div2k"):
        config, choices = composed([f"data={data}"])
        trainer = config.trainer
        assert (choices["experiment"], choices["scheduler"], choices["data"]) == ("quick", "cosine", data)
        assert (trainer.steps, trainer.eval_every, trainer.log_every, trainer.grad_clip) == (800, 400, 20, 0.1)
        assert (config.optimizer._target_, config.optimizer.lr) == ("torch.optim.Adam", 1e-3)


def test_no_function_repeats_the_default_of_a_setting_of_checkpoints() -> None:
    own = {field.name for field in fields(CheckpointSettings)}
    repeated = []
    for path in (ROOT / "sr_runner").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.arguments):
                last = [*node.posonlyargs, *node.args][::-1]  # those with a default
                pairs = [
                    *zip(last, node.defaults[::-1], strict=False),
                    *zip(node.kwonlyargs, node.kw_defaults, strict=True),
                ]
                given = {each.arg: default.value for each, default in pairs if isinstance(default, ast.Constant)}
                repeated += [
                    f"{path.name}: {name}={given[name]}" for name in own & given.keys() if given[name] is not None
                ]
    assert repeated == []
    assert BestN(1).metric == CheckpointSettings.best_metric


def test_no_pattern_of_a_name_and_no_name_of_the_experiment_stands_in_two_files() -> None:
    texts = [path.read_text() for path in (ROOT / "sr_runner").rglob("*.py")]
    patterns = [found[1] for text in texts for found in re.finditer(r're\.compile\(r?f?"([^"]{8,})"\)', text)]
    assert sorted(patterns) == sorted({*patterns})
    assert not [text for text in texts if 'experiment: str = "' in text]


def test_without_any_recipe_every_setting_is_that_of_its_dataclass() -> None:
    config, choices = composed(["experiment=none"])
    assert OmegaConf.to_container(config.trainer) == vars(TrainerSettings()) and choices["scheduler"] == "constant"
    differing = {key for key, value in vars(CheckpointSettings()).items() if config.checkpoint[key] != value}
    assert differing == {"store", "root"}


@pytest.mark.parametrize("option", ["experiment=_paper", "+experiment=_gan", "data=_images", "optimizer=_moments"])
def test_what_options_share_is_no_option(option: str) -> None:
    group, _, name = option.lstrip("+").partition("=")
    assert name not in options_of(group)
    with pytest.raises(RequestError, match=f"{group}={name}.* Options: [a-z]"):
        composed([option])
    with pytest.raises(RequestError) as refused:
        composed([f"{group}=nonsense"])
    assert "_" + name.lstrip("_") not in str(refused.value).partition("Options:")[2].split(", ")


@pytest.mark.parametrize("scheduler", options_of("scheduler"))
@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if not name.startswith("adam_")])
def test_every_optimizer_trains_convolutions_under_every_schedule_and_resumes(optimizer: str, scheduler: str) -> None:
    nodes = {"optimizer": config_of(f"optimizer={optimizer}"), "scheduler": config_of(f"scheduler={scheduler}")}
    factories = [build(OmegaConf.merge(config[key], {"_partial_": True}), key) for key, config in nodes.items()]  # type: ignore[arg-type]

    def learner() -> Learner:
        torch.manual_seed(0)
        return Learner(nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(), nn.Conv2d(4, 3, 3)), *factories)

    def trained(learner: Learner, steps: int) -> list[torch.Tensor]:
        for _ in range(steps):
            learner.backward(learner(torch.ones(1, 3, 8, 8)).square().mean())
            learner.step()
        return [parameter.detach().clone() for parameter in learner.network.parameters()]

    whole, begun, resumed = learner(), learner(), learner()
    start, end = trained(whole, 0), trained(whole, 4)
    trained(begun, 2)
    resumed.network.load_state_dict(begun.network.state_dict())
    resumed.load_state_dict(begun.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(end, trained(resumed, 2), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(start, end, strict=True))


@pytest.mark.parametrize(
    "request_", [*((name, "sgd") for name in RECIPES), *(("edsr_x4", each) for each in OPTIMIZERS[-4:])]
)
def test_any_optimizer_can_take_the_place_of_a_recipes_own(request_: tuple[str, str]) -> None:
    recipe, optimizer = request_
    config, _ = composed([f"+experiment={recipe}", f"optimizer={optimizer}"])
    build(OmegaConf.merge(config.optimizer, {"_partial_": True}), "optimizer")(nn.Conv2d(3, 3, 3).parameters())  # type: ignore[arg-type]


def test_the_printed_config_shows_every_setting(sr_run: SrRun) -> None:
    printed = yaml.safe_load(sr_run("--cfg", "job").stdout)
    assert printed["trainer"].keys() == vars(TrainerSettings()).keys() and printed["trainer"]["steps"] == 800
    assert printed["checkpoint"].keys() == vars(CheckpointSettings()).keys()
    assert vars(RunSettings()).keys() <= printed.keys()
