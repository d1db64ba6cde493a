"""A value out of range is refused where the settings are made, with key, value and what was expected."""

from __future__ import annotations

from typing import Any

import pytest

from sr_runner.config.settings import CheckpointSettings, RunSettings, TrainerSettings
from sr_runner.errors import RequestError

WRONG: list[tuple[str, type[Any], Any, str]] = [
    ("scale", RunSettings, 5, "2, 3, 4, 8"),
    ("seed", RunSettings, -1, "a whole number from 0"),
    ("trainer.steps", TrainerSettings, 0, "a whole number of at least 1"),
    ("trainer.threads", TrainerSettings, 0, "a whole number of at least 1"),
    ("trainer.on_nan", TrainerSettings, "go", "stop or skip"),
    ("trainer.pictures", TrainerSettings, -1, "0"),
    ("trainer.metrics", TrainerSettings, ["ssim"], "psnr among them"),
    ("trainer.metrics", TrainerSettings, ["psnr", "psnr"], "each once"),
    ("trainer.precision", TrainerSettings, "int8", "auto, fp32, bf16, fp16"),
    ("trainer.device", TrainerSettings, "tpu", "auto, cpu, cuda or cuda:N"),
    ("trainer.device", TrainerSettings, "cpu:1", "auto, cpu, cuda or cuda:N"),
    ("trainer.device", TrainerSettings, "cuda:", "auto, cpu, cuda or cuda:N"),
    ("trainer.grace_seconds", TrainerSettings, 0, "a number above 0 and at most 10000000, or null"),
    ("trainer.grad_clip", TrainerSettings, 0, "a number above 0, or null"),
    ("trainer.grad_clip", TrainerSettings, float("nan"), "a number above 0, or null"),
    ("trainer.ema_decay", TrainerSettings, 1.0, "between 0 and 1"),
    ("checkpoint.every", CheckpointSettings, 0, "a whole number of at least 1"),
    ("checkpoint.keep_last", CheckpointSettings, -1, "a whole number of at least 0"),
    ("checkpoint.when_busy", CheckpointSettings, "run", "wait or replace"),
    ("checkpoint.lease_seconds", CheckpointSettings, 0.5, "1 to 10000000, or null"),
    ("checkpoint.keep_minutes", CheckpointSettings, 0, "a number above 0 and at most 10000000, or null"),
    ("checkpoint.init_rule", CheckpointSettings, "all", "strict, body, matching"),
]


@pytest.mark.parametrize(("key", "settings", "value", "expected"), WRONG)
def test_a_value_out_of_range_is_refused(key: str, settings: type[Any], value: Any, expected: str) -> None:
    with pytest.raises(RequestError) as refused:
        settings(**{key.rpartition(".")[2]: value})
    assert str(refused.value).startswith(f"{key}={value}: expected ") and expected in str(refused.value)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:3"])
def test_every_kind_of_device_is_accepted(device: str) -> None:
    assert TrainerSettings(device=device).device == device
