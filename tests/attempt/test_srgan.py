"""A generator pre-trained and fine-tuned as SRGAN, on photographs, and killed on the way."""

from __future__ import annotations

import math
import re
import signal
from pathlib import Path

import kill_and_resume
import pytest
import torch
from mlflow import MlflowClient
from run_server import RunServer
from safetensors.torch import load_file
from support import TINY, SrRun, wait_until

from sr_runner.attempt.build import build_parts
from sr_runner.config.compose import composed
from sr_runner.config.identity import identity_facts
from sr_runner.models import VGG19Features

CONTENT = "objective.losses.content"
GAN = ("objective=srgan", f"{CONTENT}.vgg_seed=0", f"{CONTENT}.layers=[VGG22]", "objective.discriminator.num_filters=2")
"""SRGAN with random features and a small discriminator."""


def final_bytes(outputs: Path) -> list[bytes]:
    (attempt,) = (outputs / "checkpoints").glob("*/*")
    newest = max(attempt.glob("step-*"))
    return [(newest / name).read_bytes() for name in ("model.safetensors", "training.safetensors")]


def test_a_generator_is_pre_trained_and_fine_tuned_in_two_commands(sr_run: SrRun, tmp_path: Path) -> None:
    model = ("model=srresnet", "model.num_res_blocks=1", "model.num_filters=8")
    tiny = [argument for argument in TINY if not argument.startswith("model.")]
    sr_run(*tiny, *model, "objective=mse", "outputs=pre-trained", "tracker=none")
    (pre_trained,) = (tmp_path / "pre-trained" / "checkpoints").glob("*/*/step-00000006")
    done = sr_run(
        *tiny, *model, *GAN, f"checkpoint.init_from={pre_trained}", "trainer.ema_decay=0.9", "optimizer.lr=1e-5",
        "+objective.losses.pixel={_target_: torch.nn.L1Loss, weight: 0.1}",
    )  # fmt: skip
    assert "tensors loaded, 0 skipped, 0 new" in done.stderr and "loaded: " not in done.stderr
    (log,) = (tmp_path / "outputs" / "runs").glob("*/*/run.log")
    listed = {line.split()[-1] for line in log.read_text().splitlines() if "  loaded: " in line}
    assert listed == set(load_file(pre_trained / "model.safetensors"))
    client = MlflowClient(f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    for term in ("loss", "loss/content", "loss/pixel", "loss/adversarial", "loss/discriminator", "grad_norm"):
        assert [p.step for p in client.get_metric_history(run.info.run_id, f"train/{term}")] == [2, 4, 6], term
    assert client.list_artifacts(run.info.run_id, "images")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_goes_on_with_the_same_vgg19_wherever_the_file_lies(sr_run: SrRun, tmp_path: Path) -> None:
    for seed in (1, 2):
        torch.save(VGG19Features.seeded(seed, layer="VGG22").state_dict(), tmp_path / f"{seed}.pth")
    gan = [argument for argument in GAN if "seed" not in argument]
    arguments = (*TINY, *gan, "scheduler=constant", "trainer.resume=true")
    sr_run(*arguments, f"{CONTENT}.vgg_weights=1.pth")
    (tmp_path / "1.pth").rename(tmp_path / "moved.bin")
    moved = sr_run(*arguments, f"{CONTENT}.vgg_weights=moved.bin", "trainer.steps=8")
    assert "resumed at step 6 of 8" in moved.stderr
    other = sr_run(*arguments, f"{CONTENT}.vgg_weights=2.pth", "trainer.steps=8")
    assert "near miss: " in other.stderr and "differs in objective.losses.content.vgg_weights=" in other.stderr
    assert len(list((tmp_path / "outputs" / "checkpoints").iterdir())) == 2


def test_the_identity_holds_what_a_vgg19_file_contains_and_not_its_place(tmp_path: Path) -> None:
    torch.save(VGG19Features.seeded(1, layer="VGG22").state_dict(), tmp_path / "vgg19.pth")
    arguments = [
        *TINY,
        *GAN,
        f"{CONTENT}.vgg_seed=null",
        f"{CONTENT}.vgg_weights={tmp_path}/vgg19.pth",
        "tracker=none",
    ]
    parts = build_parts(composed(arguments)[0], arguments)
    parts.data.prepare(progress=False)
    facts = parts.identity_facts()
    assert re.fullmatch("[0-9a-f]{16}", facts[f"{CONTENT}.vgg_weights"])
    assert str(tmp_path) not in str(facts)


@pytest.mark.slow
def test_a_wdsr_pre_trained_in_the_same_outputs_is_named_by_its_run_id(sr_run: SrRun, tmp_path: Path) -> None:
    sr_run(*TINY, "model=wdsr_b", "tracker=none")
    (identity,) = (tmp_path / "outputs" / "runs").iterdir()
    done = sr_run(*TINY, "model=wdsr_b", *GAN, f"checkpoint.init_from={identity.name}", "tracker=none")
    assert "tensors loaded, 0 skipped, 0 new" in done.stderr


SPECTRAL = "objective.discriminator._target_=sr_runner.models.UNetDiscriminator"


@pytest.mark.parametrize(
    "options",
    [
        ("trainer.precision=fp32",),
        pytest.param(("trainer.precision=bf16",), marks=pytest.mark.slow),
        pytest.param((SPECTRAL, "objective.gradient_penalty=1"), marks=pytest.mark.slow),
    ],
    ids=["fp32", "bf16", "spectral"],
)
def test_srgan_killed_and_resumed_ends_with_the_same_bytes(
    options: tuple[str, ...], sr_run: SrRun, run_server: RunServer, tmp_path: Path, image_cache: Path
) -> None:
    arguments = (
        *TINY, *GAN, "tracker=none", "trainer.steps=15", "checkpoint.every=4", "trainer.ema_decay=0.9",
        *options,
    )  # fmt: skip
    log = tmp_path / "log"
    killed = run_server.start([*arguments, f"data.cache_dir={image_cache}"], tmp_path, log, log)
    wait_until(lambda: list((tmp_path / "outputs").glob("checkpoints/*/*/step-*/manifest.json")), "a checkpoint")
    assert killed.kill() == -signal.SIGKILL, log.read_text()
    resumed = sr_run(*arguments, "trainer.resume=true")
    assert "resumed at step" in resumed.stderr
    sr_run(*arguments, "outputs=unbroken")
    assert final_bytes(tmp_path / "outputs") == final_bytes(tmp_path / "unbroken")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_srgan_killed_at_least_ten_times_at_random_instants_is_byte_identical(tmp_path: Path) -> None:
    kills = 0
    for seed in range(6):  # some of the instants lie after the run's end
        (folder := tmp_path / str(seed)).mkdir()
        tally = kill_and_resume.run(5, seed, ("srgan",), folder, say=False)
        assert tally.faults == []
        kills += tally.kills
        if kills >= 10:
            return
    raise AssertionError(f"only {kills} kills")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_on_photographs_the_losses_of_generator_and_discriminator_stay_in_balance(
    sr_run: SrRun, tmp_path: Path
) -> None:
    small = (
        "model.num_res_blocks=4", "model.num_filters=32", "data.patch_size=32", "data.batch_size=4",
        "trainer.threads=1", "trainer.log_every=20", "trainer.eval_every=150", "tracker.system_metrics=false",
    )  # fmt: skip
    sr_run(*small, "objective=l1", "trainer.steps=600", "tracker=none", timeout=900)
    (generator,) = (tmp_path / "outputs" / "runs").iterdir()
    sr_run(
        *small, *GAN, f"{CONTENT}.scale=1", "objective.adversarial_weight=5e-3",
        "objective.discriminator.num_filters=16", f"checkpoint.init_from={generator.name}", "optimizer.lr=1e-4",
        "scheduler=constant", "trainer.steps=300", timeout=900,
    )  # fmt: skip
    client = MlflowClient(f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])

    def values(key: str) -> list[float]:
        return [p.value for p in sorted(client.get_metric_history(run.info.run_id, key), key=lambda p: p.step)]

    content, against = values("train/loss/content"), values("train/loss/discriminator")
    assert all(math.isfinite(value) for value in content + against + values("train/loss"))
    assert sum(content[-5:]) < 1.2 * sum(content[:5])
    assert all(0.7 < value < 2.1 for value in against)  # a coin toss costs 2 ln 2 = 1.39
    assert values("valid/psnr")[-1] > 33  # bicubic: 33.75 dB
    assert client.list_artifacts(run.info.run_id, "images")


def test_missing_vgg_weights_are_said_before_anything_is_written(sr_run: SrRun, tmp_path: Path) -> None:
    refused = sr_run(*TINY, "objective=srgan", f"{CONTENT}.vgg_weights=/nope/vgg19.pth", code=2)
    assert f"{CONTENT}.vgg_weights=/nope/vgg19.pth" in refused.stderr
    assert not (tmp_path / "outputs").exists()


def test_parameters_are_frozen_and_slowed_from_the_command_line(sr_run: SrRun, tmp_path: Path) -> None:
    done = sr_run(*TINY, "trainer.parameters={head|tail: {lr: 1e-5}, body: {freeze: true}}", "tracker=none")
    (log,) = (tmp_path / "outputs" / "runs").glob("*/*/run.log")
    for text in (done.stderr, log.read_text()):
        assert "lr 1e-05 on 4 of 6 tensors" in text and "6 of 12 tensors frozen" in text, text


def test_frozen_parameters_are_part_of_the_identity() -> None:
    plain, frozen = (composed(rules)[0] for rules in ([], ["trainer.parameters={body: {freeze: true}}"]))
    assert identity_facts(plain, {}, "") != identity_facts(frozen, {}, "")
