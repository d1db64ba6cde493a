from __future__ import annotations

import math

import pytest
import torch

from sr_runner.training.window import Window


def window(*losses: float, **terms: float) -> Window:
    made = Window()
    for loss in losses:
        made.add({"loss": torch.tensor(loss), **{name: torch.tensor(value) for name, value in terms.items()}})
    return made


def test_a_point_is_the_mean_of_its_steps() -> None:
    assert window(1.0, 2.0, 6.0, **{"loss/pixel": 4.0}).metrics(16)["train/loss"] == 3.0
    assert window(1.0, 2.0, 6.0, **{"loss/pixel": 4.0}).metrics(16)["train/loss/pixel"] == 4.0


def test_steps_without_a_finite_loss_are_left_out_of_the_mean_and_named() -> None:
    made = window(1.0, math.nan, 3.0, math.inf)
    assert made.metrics(16)["train/loss"] == 2.0
    assert list(made.not_finite()) == [1, 3] and made.not_finite()[3] == math.inf
    assert window(math.nan, **{"loss/a": 1.0, "loss/b": math.inf}).blamed(0) == ["b"]
    assert math.isnan(window(math.nan).metrics(16)["train/loss"])


def test_the_gradient_norm_is_that_of_the_last_step_and_not_a_mean() -> None:
    made = window(1.0, 1.0)
    assert "train/grad_norm" not in made.metrics(16)
    made.add({"loss": torch.tensor(1.0), "grad_norm": torch.tensor(7.0)})
    assert made.metrics(16)["train/grad_norm"] == 7.0


def test_rates_leave_out_the_time_of_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("sr_runner.training.window.time.perf_counter", lambda: now)
    made = window(1.0, 1.0)
    made.start_clock(5.0)
    now = 110.0
    made.exclude(6.0)
    made.read_clock(6.0)
    metrics = made.metrics(8)
    assert metrics["train/images_per_second"] == 2 * 8 / 4 and metrics["train/data_wait"] == 1 / 4
    made.clear()
    made.add({"loss": torch.tensor(1.0)})
    now = 110.5
    made.read_clock(6.25)
    metrics = made.metrics(8)
    assert metrics["train/images_per_second"] == 8 / 0.5 and metrics["train/data_wait"] == 1 / 2


def test_a_window_goes_on_from_its_saved_state() -> None:
    saved = window(1.0, 2.0, **{"loss/pixel": 4.0}).state()
    restored = Window()
    restored.restore(saved)
    restored.add({"loss": torch.tensor(6.0), "loss/pixel": torch.tensor(1.0)})
    assert len(restored) == 3 and restored.metrics(1)["train/loss"] == 3.0
    assert restored.metrics(1)["train/loss/pixel"] == 3.0
    restored.clear()
    assert len(restored) == 0 and restored.not_finite() == {}


def test_losses_are_averaged_over_processes_once() -> None:
    made = window(1.0, 3.0)
    made.average(lambda losses: losses * 2)
    made.add({"loss": torch.tensor(5.0)})
    made.average(lambda losses: losses * 2)
    assert made.metrics(1)["train/loss"] == (2 + 6 + 10) / 3
