"""From a config to the parts: which keys a class gets, and what is said where it cannot be built."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from support import ROOT, TINY

from sr_runner.attempt.build import Parts, build_parts, check_losses, check_model
from sr_runner.config.compose import composed
from sr_runner.config.settings import TermSettings
from sr_runner.errors import RequestError
from sr_runner.objectives import Losses, Term

OWN = """
import random
import numpy as np
import torch
from sr_runner.data import SampleData
from sr_runner.objectives import PixelObjective
from sr_runner.tracking import NoTracker


class Net(torch.nn.Sequential):
    def __init__(self, scale, width=8):
        super().__init__(torch.nn.Conv2d(3, 3 * scale**2, 3, padding=1), torch.nn.PixelShuffle(scale))
        self.width = width


class Anything(Net):
    def __init__(self, scale, **others):
        super().__init__(scale)
        self.others = others


class Picky(Net):
    def __init__(self, scale):
        raise ValueError(f"not at scale {scale}")


class Telling(Net):
    def __init__(self, scale):
        super().__init__(scale)
        self.seen = []

    def forward(self, lr):
        channels_last = lr.is_contiguous(memory_format=torch.channels_last)
        sr = super().forward(lr)
        self.seen.append((lr.device.type, sr.dtype, channels_last, self.training))
        return sr


class Choosy(Net):
    def forward(self, lr):
        sr = super().forward(lr)
        if sr.dtype != torch.bfloat16:
            raise NotImplementedError("this scan has only bf16")
        return sr
class Forgetful(torch.optim.SGD):
    updates = 0  # where no state_dict shows it

    def step(self, closure=None):
        self.updates += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(parameter.grad, alpha=group["lr"] / self.updates)


class ForgetfulSchedule(torch.optim.lr_scheduler.StepLR):
    def state_dict(self):
        return {}


class Holding(torch.optim.SGD):
    def step(self, closure=None):
        super().step()
        self.state[self.param_groups[0]["params"][0]]["history"] = object()


class Noisy(torch.optim.SGD):
    def step(self, closure=None):
        super().step()
        for parameter in self.param_groups[0]["params"]:
            parameter.data.add_(torch.randn_like(parameter) + random.random() + np.random.random())


def not_a_network(scale):
    return "EDSR"


def no_schedule(optimizer):
    return None


class Charbonnier(torch.nn.Module):
    def __init__(self, eps=1e-6):
        super().__init__()
        self.eps = eps

    def forward(self, sr, hr):
        return torch.sqrt((sr - hr) ** 2 + self.eps).mean()


class Weighted(PixelObjective):
    def __init__(self, weight=1.0):
        super().__init__({"pixel": torch.nn.L1Loss()})


class Photographs(SampleData):
    def __init__(self, *, scale, seed, batch_size, patch_size, cache_dir, train_jitter=0):
        super().__init__(scale=scale, seed=seed, batch_size=batch_size, patch_size=patch_size, cache_dir=cache_dir)


class OneRate(torch.optim.SGD):
    def __init__(self, params):
        super().__init__(params, lr=0.1)


class Slow(torch.optim.SGD):
    not_in_identity = ("note",)

    def __init__(self, params, lr=0.02, weight_decay=0.25, momentum=0.0, note=""):
        super().__init__(params, lr=lr, weight_decay=weight_decay, momentum=momentum)


class Blocks(Net):
    def __init__(self, num_filters, scale=2, num_res_blocks=3):
        super().__init__(scale)
        self.said = scale, num_res_blocks, num_filters


class Lister:
    def __init__(self, scale):
        self.scale = scale


class Notebook(NoTracker):
    def __init__(self, run_name=None):
        super().__init__()
"""

Build = Callable[..., Parts]


@pytest.fixture
def build(tmp_path: Path, image_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Build]:
    """`build("key=value", ...)`: the parts of a tiny run."""
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)

    def parts(*arguments: str) -> Parts:
        tiny = [each for each in TINY if not each.startswith(("tracker.", "data.valid_images"))]
        network = [] if any(each.startswith("model") for each in arguments) else tiny[:2]
        fixed = [f"outputs={tmp_path}/outputs", f"data.cache_dir={image_cache}"]
        overrides = [*network, *tiny[2:], *fixed, *arguments]
        return build_parts(composed(overrides)[0], overrides)

    yield parts
    sys.modules.pop("own_parts", None)


def test_a_class_named_by_hand_gets_those_keys_of_the_option_file_that_it_takes(build: Build) -> None:
    parts = build("model._target_=own_parts.Net", "+model.width=12")
    assert parts.model.width == 12 and set(parts.config.model) == {"_target_", "scale", "width"}


@pytest.mark.parametrize("optimizer", ["RAdam", "SGD", "RMSprop", "Adamax", "Adagrad"])
def test_any_optimizer_of_torch_is_a_target_away(optimizer: str, build: Build) -> None:
    own = build(f"optimizer._target_=torch.optim.{optimizer}").learners["model"].optimizer
    assert type(own).__name__ == optimizer and own.param_groups[0]["lr"] > 0


def test_a_class_named_by_hand_has_its_own_defaults_and_keeps_what_refers_to_the_run(build: Build) -> None:
    config = build("optimizer._target_=own_parts.Slow", "+optimizer.momentum=0.5", "+optimizer.note=hi").config
    assert config.optimizer == {
        "_target_": "own_parts.Slow",
        "lr": 0.02,
        "weight_decay": 0.25,
        "momentum": 0.5,
        "note": "hi",
    }
    assert config.scheduler.max_lr == 0.02
    assert build("optimizer._target_=own_parts.Slow", "optimizer.lr=1e-3").config.optimizer.lr == 1e-3
    assert build("+experiment=edsr_x2", "optimizer._target_=own_parts.Slow").config.optimizer.lr == 1e-4
    assert build("model._target_=own_parts.Blocks", "scale=4").model.said == (4, 3, 64)


def test_what_others_refer_to_may_be_dropped(build: Build) -> None:
    config = build("optimizer._target_=own_parts.OneRate").config
    assert set(config.optimizer) == {"_target_"} and config.scheduler.max_lr == 1e-3


@pytest.mark.parametrize(
    ("target", "kept"),
    [
        ("scheduler._target_=torch.optim.lr_scheduler.PolynomialLR", set()),
        ("objective.losses.pixel._target_=own_parts.Charbonnier", {"losses"}),
        ("objective._target_=own_parts.Weighted", set()),
        ("data._target_=own_parts.Photographs", {"scale", "seed", "batch_size", "patch_size", "cache_dir"}),
        ("tracker._target_=own_parts.Notebook", {"run_name"}),
    ],
)
def test_every_group_drops_what_was_written_for_another_class(target: str, kept: set[str], build: Build) -> None:
    group = target.partition(".")[0]
    assert {key for key in build(target).config[group] if key[0] != "_"} == kept


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model.num_filters=16"], "model.num_filters=16: own_parts.Net has no such argument. It takes scale, width"),
        (["+model.widht=16"], "model.widht=16: own_parts.Net has no such argument. Did you mean 'width'?"),
        (["+model.options={a: 1}"], "model.options={'a': 1}: own_parts.Net has no such argument."),
    ],
)
def test_a_key_that_is_given_by_hand_has_to_be_taken(arguments: list[str], said: str, build: Build) -> None:
    with pytest.raises(RequestError) as refused:
        build("model._target_=own_parts.Net", *arguments)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("data.flip=off", "data.flip=off: expected true or false."),
        ("data.flip=1", "data.flip=1: expected true or false."),
        ("data.rotate=abc", "data.rotate=abc: expected true or false."),
        ("tracker.system_metrics='null null'", "tracker.system_metrics=null null: expected true or false or null."),
        ("data.valid_images=1.5", "data.valid_images=1.5: expected a whole number or null."),
        ("data.cache_dir=", "data.cache_dir='': expected a path."),
        ("tracker.experiment=2024", "expected text. In quotes it is text: tracker.experiment=\"'2024'\""),
        ("tracker.experiment=null", "expected text. In quotes it is text: tracker.experiment=\"'null'\""),
        ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]: expected a list of 2, each a number."),
        ("objective.losses.pixel=5", "objective.losses.pixel=5: expected {_target_: package.module.Class}."),
        ("scheduler.anneal_strategy=coz", "expected cos or linear. Did you mean 'cos'?"),
        ("optimizer.eps=nan", "optimizer.eps=nan: expected a finite number"),
        ("optimizer.betas=[0.9,1e400]", "optimizer.betas=inf: expected a finite number"),
        ("trainer.compile=off", "trainer.compile=off: expected true or false"),
        ("checkpoint.best_metric=valid/pnsr", "Did you mean 'valid/psnr'?"),
        ("checkpoint.best_metric=valid/lpips", "checkpoint.best_metric=valid/lpips: expected valid/psnr, "),
        ("trainer.metrics=[psnr,lpisp]", "trainer.metrics=lpisp: expected psnr, ssim, "),
        ("model.num_res_blocks=2147483647", "from 1 to 8192"),
        (
            "data.degradation={_target_: sr_runner.data.degradations.Degradation, steps: "
            "[{_target_: sr_runner.data.degradations.Jpeg, quality: high}]}",
            "data.degradation.steps[0].quality=high: expected a list, each a number.",
        ),
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_named_with_what_was_expected(
    argument: str, said: str, build: Build
) -> None:
    with pytest.raises(RequestError) as refused:
        build("scheduler=cosine", argument)
    assert said in str(refused.value)


def test_an_argument_without_an_annotation_takes_anything(build: Build) -> None:
    assert build("model._target_=own_parts.Net", "+model.width=wide").model.width == "wide"


def test_a_class_and_its_keys_may_be_given_as_one_value(build: Build) -> None:
    loss = build("++objective.losses.pixel={_target_: own_parts.Charbonnier, eps: 0.5}").objective.losses
    assert str(loss) == "Charbonnier" and loss.terms["pixel"].loss.eps == 0.5
    with pytest.raises(RequestError, match=r"objective\.losses\.pixel\.epz=0\.5: .* Did you mean 'eps'\?"):
        build("++objective.losses.pixel={_target_: own_parts.Charbonnier, epz: 0.5}")


def test_a_class_that_an_option_file_names_has_to_take_all_of_its_keys(build: Build, tmp_path: Path) -> None:
    file = tmp_path / "conf" / "model" / "own.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("_target_: own_parts.Net\nscale: ${scale}\nwith: 3\n")
    overrides = ["model=own", "tracker=none", f"hydra.searchpath=['file://{tmp_path / 'conf'}']"]
    config, _ = composed(overrides)
    with pytest.raises(
        RequestError, match=r"model\.with=3: own_parts\.Net has no such argument\. Did you mean 'width'"
    ):
        build_parts(config, overrides)


def test_an_argument_that_no_file_gives_is_named_with_the_line_that_would(build: Build, tmp_path: Path) -> None:
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "own.yaml").write_text("_target_: own_parts.Net\nwidth: 4\n")
    overrides = ["model=own", "tracker=none", f"hydra.searchpath=['file://{tmp_path / 'conf'}']"]
    expected = re.escape(
        "model.scale is missing, and own_parts.Net has no default for it: expected "
        "+model.scale=${scale}, or the line 'scale: ${scale}' in the option's file"
    )
    with pytest.raises(RequestError, match=expected):
        build_parts(composed(overrides)[0], overrides)
    with pytest.raises(RequestError, match=r"own_parts has no 'Charbonier'\. Did you mean 'Charbonnier'"):
        build("objective.losses.pixel._target_=own_parts.Charbonier")


def test_a_class_that_takes_any_argument_gets_all_of_them(build: Build) -> None:
    assert build("model._target_=own_parts.Anything").model.others.keys() >= {"num_filters", "num_res_blocks"}


def test_the_config_that_is_handed_in_stays_as_it_is(build: Build) -> None:
    overrides = ["optimizer._target_=torch.optim.RAdam", "tracker=none"]
    config, _ = composed(overrides)
    before = OmegaConf.to_yaml(config)
    assert "fused" not in build_parts(config, overrides).config.optimizer
    assert OmegaConf.to_yaml(config) == before


def test_dropped_keys_are_no_part_of_the_identity_and_those_of_the_class_are(build: Build) -> None:
    def facts(*arguments: str) -> dict[str, object]:
        parts = build("model._target_=own_parts.Net", "data._target_=own_parts.Photographs", *arguments)
        parts.data.prepare(progress=False)
        return parts.identity_facts()

    plain = facts()
    assert not [key for key in plain if "num_filters" in key or "valid_images" in key]
    noted = facts("optimizer._target_=own_parts.Slow", "+optimizer.note=hi")
    assert "optimizer.momentum" not in plain and "optimizer.note" not in noted
    assert facts("+data.train_jitter=1").items() ^ plain.items() == {("data.train_jitter", 1)}


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("objective._target_=torch.nn.L1Loss",
         "objective._target_=torch.nn.L1Loss has no losses, networks, trained_by, train_step: "
         "expected a sr_runner.objectives.base.Objective"),
        ("data._target_=own_parts.Lister ~data.batch_size ~data.patch_size ~data.cache_dir",
         "data._target_=own_parts.Lister has no batch_size, patch_size, prepare, summary, fingerprint, valid, "
         "valid_all, stream: expected a sr_runner.data.base.Data"),
        ("tracker._target_=own_parts.Charbonnier", "expected a sr_runner.tracking.tracker.Tracker"),
        ("checkpoint.store._target_=own_parts.Charbonnier", "own_parts.Charbonnier refuses this"),
        ("model._target_=own_parts.not_a_network", "makes a str: expected a torch.nn.Module"),
        ("scheduler._target_=own_parts.no_schedule", "makes a NoneType: expected a torch.optim.lr_scheduler"),
        ("model._target_=own_parts.Picky", "model: own_parts.Picky refuses this: not at scale 2"),
        ("model._target_=own_parts.Nett", "own_parts has no 'Nett'. Did you mean 'Net'?"),
        ("model._target_=no.such.Net", "there is no module 'no' that can be imported"),
        ("model._target_=null", "model._target_ is not set: expected model._target_=package.module.Class"),
    ],
)  # fmt: skip
def test_what_a_part_is_not_is_said_in_one_sentence(argument: str, said: str, build: Build) -> None:
    with pytest.raises(RequestError) as refused:
        build(*argument.split())
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_network_of_another_scale_is_refused_and_left_in_its_mode() -> None:
    network = torch.nn.Upsample(scale_factor=3)
    with pytest.raises(RequestError, match=r"makes \(1, 3, 24, 24\) .* scale=2 asks for \(1, 3, 16, 16\)"):
        check_model(network, torch.zeros(1, 3, 8, 8), scale=2, precision="fp32")
    assert network.training


def test_a_network_is_tried_in_the_memory_format_and_precision_of_a_step_and_of_an_evaluation(build: Build) -> None:
    seen = build("model._target_=own_parts.Telling", "trainer.precision=bf16").model.seen
    assert seen == [("cpu", torch.bfloat16, True, False), ("cpu", torch.float32, True, False)]


def test_a_network_is_tried_on_the_device_of_the_batch() -> None:
    class Recording(torch.nn.Conv2d):
        def forward(self, lr: torch.Tensor) -> torch.Tensor:
            self.seen = lr.device.type
            return super().forward(lr)

    network = Recording(3, 3, 1, device="meta")
    check_model(network, torch.zeros(1, 3, 8, 8, device="meta"), scale=1, precision="fp32")
    assert network.seen == "meta"


def test_what_a_network_says_there_is_passed_on(build: Build) -> None:
    said = r"Choosy fails on .* 1 x 3 x 16 x 16 \(cpu, fp32, as in an evaluation\): .*this scan has only bf16"
    with pytest.raises(RequestError, match=said):
        build("model._target_=own_parts.Choosy", "trainer.precision=bf16")


def test_activation_checkpointing_is_no_part_of_the_identity_as_it_changes_no_bit(build: Build) -> None:
    def facts(*arguments: str) -> dict[str, object]:
        parts = build(*arguments)
        parts.data.prepare(progress=False)
        return parts.identity_facts()

    assert facts("trainer.checkpoint_activations=body.*|head") == facts()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("bdy.*", "trainer.checkpoint_activations=bdy.*: this fits no module; expected the name of one"),
        ("*.relu", "trainer.checkpoint_activations: body.0.relu (ReLU) changes its input in place"),
    ],
)
def test_modules_that_are_not_there_or_cannot_be_computed_anew_are_named(names: str, said: str, build: Build) -> None:
    with pytest.raises(RequestError) as refused:
        build(f"trainer.checkpoint_activations={names}")
    assert str(refused.value).startswith(said)


class Unreduced(torch.nn.Module):
    def forward(self, sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        return (sr - hr).abs()


class Failing(torch.nn.Module):
    def forward(self, sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        return sr.reshape(7) - hr


class Detached(torch.nn.Module):
    def forward(self, sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        return (sr - hr).detach().abs().mean()


class Counting(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return (sr - hr).abs().mean(dim=(1, 2, 3), keepdim=True)  # one number for each image, as LPIPS


def check(loss: torch.nn.Module, **settings: float) -> None:
    losses = Losses({"own": Term(loss, TermSettings(**settings))})
    check_losses(losses, patch=16, device=torch.device("cpu"), precision="fp32")


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (Unreduced(), r"own: Unreduced makes \(2, 3, 16, 16\) of two batches of 2 x 3 x 16 x 16; expected one number"),
        (Failing(), "objective.losses.own: Failing fails on two batches of 2 x 3 x 16 x 16: RuntimeError"),
        (Detached(), "own: Detached makes a number that has no gradient; .* objective.losses.own.weight=0"),
    ],
)
def test_a_loss_that_is_none_is_refused_before_the_start(loss: torch.nn.Module, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        check(loss)


def test_a_loss_that_is_one_is_left_as_it_was() -> None:
    counting = Counting()
    check(counting)
    assert counting.calls == 0
    check(Detached(), weight=0.0)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("objective.losses=5", "objective.losses=5: expected a mapping, {key: value}"),
        ("+objective.losses.fft={weight: 1}", "expected {_target_: package.module.Class}"),
        ("objective.losses.pixel.weight=strong", "objective.losses.pixel.weight=strong: expected a number"),
        ("+objective.losses.pixel.range=[1,-1]", "losses.pixel.range=[1, -1]: expected [black, white]"),
        ("+objective.losses.pixel.range=[1]", "losses.pixel.range=[1]: expected a list of 2, each a number"),
        ("+objective.losses.pixel.autocast=1", "objective.losses.pixel.autocast=1: expected true or false"),
        ("+objective.losses.pixel.reduction=none", "objective.losses.pixel: L1Loss makes (2, 3, 32, 32)"),
        ("+objective.losses.a-b={_target_: torch.nn.L1Loss}", "losses.a-b: expected a name of letters, digits and _"),
        ("+objective.losses.net={_target_: builtins.dict}", "losses.net._target_=builtins.dict makes a dict"),
        (
            "+objective.losses.x={_target_: no_such.SSIM}",
            "x._target_=no_such.SSIM: there is no module 'no_such'",
        ),
        ("+objective.losses.x={_target_: own_parts.Charbonnier, epz: 1}", "objective.losses.x.epz=1: own_parts.Char"),
        (
            "+objective.losses.vgg={_target_: sr_runner.objectives.PerceptualLoss, vgg_seed: 0, layers: [VGG45]}",
            "objective.losses.vgg.layers=VGG45: expected VGG11, VGG12",
        ),
        ("objective._target_=own_parts.Weighted ++objective.losses.pixel.weight=2", "Weighted has no such argument"),
    ],
)
def test_what_is_wrong_with_a_term_is_said_with_its_key(argument: str, said: str, build: Build) -> None:
    with pytest.raises(RequestError) as refused:
        build(*(argument.split(" ") if "{" not in argument else [argument]))
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_the_loss_of_ones_own_in_the_docs_is_a_term_and_has_a_name(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "parts.md").read_text()
    (code,) = (block for block in re.findall(r"(?s)```python\n(.*?)```", page) if "class EdgeLoss" in block)
    (own,) = re.findall(r"(?s)`my_conf/objective/l1_edges\.yaml`:\n\n```yaml\n(.*?)```", page)
    (tmp_path / "edges.py").write_text(code)
    (tmp_path / "my_conf" / "objective").mkdir(parents=True)
    (tmp_path / "my_conf" / "objective" / "l1_edges.yaml").write_text(own)
    (given,) = re.findall(r"sr-run '(\+objective\.losses\.edges=.*)'", page)
    named = build(f"hydra.searchpath=['file://{tmp_path / 'my_conf'}']", "objective=l1_edges")
    assert str(named.objective.losses) == str(build(given).objective.losses) == "L1Loss + 0.2 EdgeLoss"
    monkeypatch.delitem(sys.modules, "edges")


def test_a_term_keeps_its_settings_where_its_class_is_named_by_hand(build: Build) -> None:
    losses = build("objective.losses.pixel._target_=own_parts.Charbonnier", "objective.losses.pixel.weight=3").objective
    assert str(losses.losses) == "3 Charbonnier"
    option = build("objective=l1_fft", "objective.losses.fft._target_=own_parts.Charbonnier").objective
    assert str(option.losses) == "L1Loss + 0.05 Charbonnier"
    more = "+objective.losses.own={_target_: own_parts.Charbonnier, weight: 0.5, range: [-1, 1]}"
    parts = build(more)
    assert str(parts.objective.losses) == "L1Loss + 0.5 Charbonnier"
    assert parts.objective.losses.terms["own"].settings == TermSettings(weight=0.5, range=(-1, 1))
    parts.data.prepare(progress=False)
    facts = parts.identity_facts()
    assert {key: value for key, value in facts.items() if key.startswith("objective.losses.own.")} == {
        "objective.losses.own._target_": "own_parts.Charbonnier",
        "objective.losses.own.weight": 0.5,
        "objective.losses.own.range": [-1, 1],
    }


def test_a_key_of_the_option_file_that_the_new_class_takes_as_something_else_is_dropped(build: Build) -> None:
    optimizer = build("optimizer._target_=torch.optim.Adafactor").learners["model"].optimizer
    assert optimizer.defaults["eps"] == (None, 1e-3) and optimizer.defaults["lr"] == 1e-2


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["optimizer._target_=torch.optim.LBFGS"], "optimizer: LBFGS cannot update with gradients only: .* 'closure'"),
        (["optimizer._target_=torch.optim.SparseAdam"], "optimizer: SparseAdam cannot update .* not support dense"),
        (
            ["optimizer._target_=own_parts.Forgetful"],
            r"optimizer: Forgetful keeps what it needs outside of state_dict\(\)",
        ),
        (
            ["optimizer._target_=own_parts.Holding"],
            "optimizer: Holding has a state that cannot be saved .* builtins.object",
        ),
        (
            ["optimizer._target_=pytorch_optimizer.A2Grad", "scheduler=constant"],
            "optimizer: A2Grad has no lr: expected",
        ),
        (["optimizer._target_=pytorch_optimizer.AdamP", "trainer.channels_last=true"], "channels_last=false may help"),
        (
            ["scheduler._target_=own_parts.ForgetfulSchedule", "+scheduler.step_size=2"],
            "scheduler: ForgetfulSchedule keeps",
        ),
        (["scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau"], r"step\(\) asks for metrics: expected"),
        (["scheduler._target_=timm.scheduler.CosineLRScheduler", "+scheduler.t_initial=9"], r"step\(\) asks for epoch"),
    ],
    ids=str,
)
def test_an_optimizer_or_schedule_that_cannot_train_or_resume_here_is_refused(
    overrides: list[str], reason: str, build: Build
) -> None:
    with pytest.raises(RequestError, match=reason):
        build(*overrides)


def test_an_optimizer_that_draws_random_numbers_is_none_that_cannot_resume(build: Build) -> None:
    states = []
    for optimizer in ("torch.optim.SGD", "own_parts.Noisy"):
        build(f"optimizer._target_={optimizer}")
        numpy = np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002
        states.append((torch.get_rng_state().tolist(), random.getstate(), numpy))
    assert states[0] == states[1], "no number of the run is drawn to find that out"
