"""The recipes in conf/experiment say what their papers say, compose, and run."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig
from support import SrRun

from sr_runner.attempt.build import build, build_objective
from sr_runner.config.compose import composed
from sr_runner.config.settings import config_dir
from sr_runner.errors import RequestError

# name -> model, objective, scale, HR patch, steps, learning rate, milestones
RECIPES: dict[str, tuple[str, str, int, int, int, float, list[int] | None]] = {
    "edsr_x2": ("edsr", "l1", 2, 96, 300_000, 1e-4, [200_000]),
    "edsr_x3": ("edsr", "l1", 3, 144, 300_000, 1e-4, [200_000]),
    "edsr_x4": ("edsr", "l1", 4, 192, 300_000, 1e-4, [200_000]),
    "edsr_x4_krasserm": ("edsr", "l1", 4, 96, 300_000, 1e-4, [200_000]),
    "wdsr_a": ("wdsr_a", "l1", 2, 96, 300_000, 1e-3, [200_000]),
    "wdsr_b": ("wdsr_b", "l1", 2, 96, 300_000, 1e-3, [200_000]),
    "wdsr_b_x4_krasserm": ("wdsr_b", "l1", 4, 96, 300_000, 1e-3, [200_000]),
    "srresnet": ("srresnet", "mse", 4, 96, 1_000_000, 1e-4, None),
    "srgan": ("srresnet", "srgan", 4, 96, 200_000, 1e-4, [100_000]),
    "srgan_krasserm_pretrain": ("srresnet", "mse", 4, 96, 1_000_000, 1e-4, None),
    "srgan_krasserm": ("srresnet", "srgan", 4, 96, 200_000, 1e-4, [100_000]),
    "span_x4": ("spandrel", "l1", 4, 256, 1_000_000, 5e-4, [200_000, 400_000, 600_000, 800_000]),
    "swinir_light_x4": ("spandrel", "l1", 4, 256, 500_000, 2e-4, [250_000, 400_000, 450_000, 475_000]),
    "esrgan_pretrain": ("spandrel", "l1", 4, 128, 1_000_000, 2e-4, [200_000, 400_000, 600_000, 800_000]),
    "esrgan": ("spandrel", "esrgan", 4, 128, 400_000, 1e-4, [50_000, 100_000, 200_000, 300_000]),
    "realesrnet": ("spandrel", "realesrnet", 4, 256, 1_000_000, 2e-4, None),
    "realesrgan": ("spandrel", "realesrgan", 4, 256, 400_000, 1e-4, None),
}
BATCHES = {"span_x4": 64, "swinir_light_x4": 64, "realesrnet": 48, "realesrgan": 48}  # of the others 16
PARAMETERS = {
    "edsr_x2": 1_369_859, "edsr_x3": 1_554_499, "edsr_x4": 1_517_571, "edsr_x4_krasserm": 1_517_571,
    "wdsr_a": 1_190_100, "wdsr_b_x4_krasserm": 615_088, "srresnet": 1_550_659, "srgan_krasserm_pretrain": 1_550_659,
    "swinir_light_x4": 897_228 + 24 * 15**2 * 6,  # the paper leaves out the position tables of its 24 layers
    "realesrnet": 16_697_987, "esrgan": 16_697_987,
}  # fmt: skip
SMALL_SPANDREL = {
    "span_x4": "model.arguments.feature_channels=8",
    "swinir_light_x4": "model.arguments={img_size: 16, embed_dim: 12, depths: [2], num_heads: [2]}",
}
SMALL = ("data=sample", "data.batch_size=2", "trainer.steps=2", "trainer.threads=1", "trainer.pictures=0",
         "model.num_res_blocks=1", "model.num_filters=8", "data.valid_images=1", "tracker=none")  # fmt: skip


def recipe(name: str, *overrides: str) -> DictConfig:
    return composed([f"experiment={name}", *overrides])[0]


@pytest.fixture
def night(tmp_path: Path) -> Path:
    """A recipe of one's own with a loss of its own."""
    (tmp_path / "experiment").mkdir()
    loss = "objective: {losses: {pixel: {_target_: torch.nn.HuberLoss, delta: 0.1}}}"
    (tmp_path / "experiment" / "night.yaml").write_text(f"# @package _global_\n{loss}\nmodel: {{num_filters: 8}}\n")
    return tmp_path


def test_an_option_that_a_recipe_leaves_without_effect_is_refused(night: Path) -> None:
    with pytest.raises(RequestError) as refused:
        composed(["experiment=night", "objective=mse"], config_dir=str(night))
    assert "objective=mse has no effect: " in str(
        refused.value
    ) and "night.yaml sets objective.losses.pixel._target_=" in str(refused.value)
    given = [
        "experiment=night",
        "objective=mse",
        "objective.losses.pixel._target_=torch.nn.MSELoss",
        "~objective.losses.pixel.delta",
    ]
    assert composed(given, config_dir=str(night))[0].objective.losses.pixel._target_ == "torch.nn.MSELoss"
    chosen = composed(["experiment=night", "model=wdsr_b", "optimizer=sgd"], config_dir=str(night))[0]
    assert (chosen.model.num_filters, chosen.optimizer._target_) == (8, "torch.optim.SGD")  # these have their effect


def test_every_recipe_is_described_here() -> None:
    options = [path.stem for path in (config_dir() / "experiment").glob("[!_]*.yaml")]
    assert sorted(options) == sorted([*RECIPES, "none", "quick"])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_its_source_says(name: str) -> None:
    config, choices = composed([f"+experiment={name}"])
    model, objective, scale, patch, steps, rate, milestones = RECIPES[name]
    assert (choices["model"], choices["objective"], choices["data"]) == (model, objective, "div2k")
    is_real = name.startswith("realesr")
    assert (config.scale, config.data.patch_size, config.data.batch_size) == (scale, patch, BATCHES.get(name, 16))
    assert (config.trainer.steps, config.optimizer.lr, config.scheduler.get("milestones")) == (steps, rate, milestones)
    assert (config.trainer.eval_every, config.data.valid_images, config.checkpoint.keep_last) == (1000, 10, 3)
    assert (config.trainer.grad_clip, config.trainer.precision) == (None, "fp32")
    assert (list(config.optimizer.betas), config.optimizer.weight_decay) == ([0.9, 0.99 if is_real else 0.999], 0)
    assert config.trainer.ema_decay == (0.999 if is_real or name == "swinir_light_x4" else None)
    assert choices["data/degradation"] == ("realesrgan" if is_real else "bicubic")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_begins_with_the_command_that_runs_it(name: str) -> None:
    header, command, *_ = (config_dir() / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert header == "# @package _global_" and command.startswith(f"# sr-run +experiment={name} ")


def test_the_three_stages_of_srgan_are_commands_in_their_headers() -> None:
    text = (config_dir() / "experiment" / "srgan_krasserm.yaml").read_text()
    for command in (
        "sr-run +experiment=srgan_krasserm_pretrain\n",
        "sr-run +experiment=srgan_krasserm checkpoint.init_from=srresnet-x4-",
        "sr-run +experiment=srgan_krasserm model=edsr model.rgb_range=2 checkpoint.init_from=",
        "sr-run +experiment=srgan_krasserm model=wdsr_b checkpoint.init_from=",
    ):
        assert f"#   {command}" in text


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_network_of_a_recipe_has_the_published_size(name: str) -> None:
    network = build(recipe(name).model, "model")
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]


def test_span_has_the_published_size_once_its_convolutions_are_merged() -> None:
    network = build(recipe("span_x4").model, "model")
    at_inference = ("eval_conv", "conv_cat", "upsampler")
    size = sum(each.numel() for name, each in network.named_parameters() if any(part in name for part in at_inference))
    assert size == 498_208


@pytest.mark.parametrize(
    ("name", "eps"),
    [
        ("edsr_x4", 1e-8 / 255), ("wdsr_a", 1e-8 / 255), ("edsr_x4_krasserm", 1e-7 / 255),
        ("wdsr_b_x4_krasserm", 1e-7 / 255), ("srgan_krasserm_pretrain", 1e-7 / 255**2), ("srgan_krasserm", 1e-7),
    ],
)  # fmt: skip
def test_eps_makes_a_loss_on_0_to_1_train_as_the_sources_on_0_to_255(name: str, eps: float) -> None:
    assert recipe(name).optimizer.eps == pytest.approx(eps, rel=1e-6)


def test_krasserms_recipes_have_the_reference_initialisation_and_range() -> None:
    edsr, wdsr, srgan = (recipe(name) for name in ("edsr_x4_krasserm", "wdsr_b_x4_krasserm", "srgan_krasserm"))
    assert (edsr.model.initialization, edsr.model.rgb_range) == ("keras", 2)
    assert (wdsr.model.initialization, wdsr.model.num_res_blocks, wdsr.model.res_block_expansion) == ("keras", 32, 6)
    assert srgan.objective.discriminator.initialization == "keras"
    content = srgan.objective.losses.content
    assert (content.weight, srgan.objective.adversarial_weight) == (1.0, 1e-3)
    assert content.scale == pytest.approx(1 / 12.75) and srgan.scheduler.gamma == 0.1


def test_the_command_line_wins_over_a_recipe() -> None:
    config, choices = composed(
        [
            "+experiment=srgan",
            "data=folder",
            "data.train=/photos",
            "trainer.steps=5",
            "model=edsr",
            "scale=2",
            "optimizer.lr=3e-4",
        ]
    )
    assert (choices["data"], choices["model"], choices["objective"]) == ("folder", "edsr", "srgan")
    assert (config.trainer.steps, config.scale, config.optimizer.lr, config.data.train) == (5, 2, 3e-4, "/photos")
    assert (config.data.patch_size, config.data.batch_size) == (96, 16)


@pytest.mark.parametrize("name", [name for name, facts in RECIPES.items() if facts[1].endswith("gan")])
def test_the_objective_of_every_gan_recipe_can_be_built(name: str) -> None:
    config = recipe(name, "objective.losses.content.vgg_seed=0")
    objective = build_objective(config.objective)
    assert objective.networks(build(config.model, "model"), patch_size=config.data.patch_size).keys() == {
        "model",
        "discriminator",
    }


@pytest.mark.parametrize("spelling", ["+experiment=edsr_x2", "experiment=wdsr_b"])
def test_a_recipe_runs(spelling: str, sr_run: SrRun, tmp_path: Path) -> None:
    done = sr_run(spelling, *SMALL)
    assert "Step 2 of 2" in done.stdout
    assert len(list((tmp_path / "outputs" / "checkpoints").glob("*/*/step-00000002"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_SPANDREL)
def test_a_recipe_of_spandrels_networks_runs(name: str, sr_run: SrRun) -> None:
    small = [word for word in SMALL if not word.startswith("model.")]
    done = sr_run(f"+experiment={name}", *small, SMALL_SPANDREL[name], "trainer.checkpoint_activations=*.block*")
    assert "Step 2 of 2" in done.stdout


def test_the_three_stages_of_srgan_run_one_after_another(sr_run: SrRun, tmp_path: Path) -> None:
    sr_run("+experiment=srgan_krasserm_pretrain", *SMALL, "data.patch_size=32")
    (generator,) = (tmp_path / "outputs" / "runs").iterdir()
    arguments = (
        "+experiment=srgan_krasserm", *SMALL, "data.patch_size=32", f"checkpoint.init_from={generator.name}",
        "objective.losses.content.vgg_seed=0", "objective.losses.content.layers=[VGG22]",
        "objective.discriminator.num_filters=4",
        "scheduler.milestones=[1]",
    )  # fmt: skip
    assert "tensors loaded, 0 skipped, 0 new" in sr_run(*arguments).stderr
