"""What a run is called where runs are compared, and what it is compared by."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from sr_runner.attempt.build import build_parts
from sr_runner.attempt.labels import params, run_name, short_names
from sr_runner.config.compose import composed

SMALL = ("model.num_filters=4", "model.num_res_blocks=1", "tracker=none")


def labels(*overrides: str, swept: tuple[str, ...] = ()) -> tuple[str, dict[str, object]]:
    """Name and params of the run that the overrides compose."""
    config, choices = composed(overrides)
    parts = build_parts(config, overrides)
    facts = parts.identity_facts()
    return (
        run_name(parts.config, choices, facts, overrides, swept),
        params(parts.config, choices, facts, overrides, swept),
    )


@pytest.fixture(autouse=True)
def data_without_images(monkeypatch: pytest.MonkeyPatch) -> None:
    from sr_runner.data import SampleData

    monkeypatch.setattr(SampleData, "fingerprint", "0" * 64)
    monkeypatch.setattr(SampleData, "file_contents", {}, raising=False)


def test_a_run_is_called_by_its_network_its_scale_and_what_was_asked_for() -> None:
    name, _ = labels(
        *SMALL, "optimizer.lr=3e-4", "outputs=elsewhere", "trainer.threads=1", "seed=4", "scheduler=constant"
    )
    assert name == "edsr x2 num_filters=4 num_res_blocks=1 lr=3e-4 seed=4 constant"


def test_a_job_is_called_by_what_is_swept_alone() -> None:
    name, shown = labels(
        *SMALL, "model=wdsr_b", "trainer.threads=1", "seed=4", swept=("model", "seed", "trainer.threads")
    )
    assert name == "wdsr_b seed=4 threads=1"
    assert (shown["model"], shown["seed"], shown["trainer.threads"]) == ("wdsr_b", 4, 1)


def test_keys_that_end_alike_keep_what_tells_them_apart() -> None:
    values = {"optimizer.lr": "1", "objective.discriminator_optimizer.lr": "2", "data/degradation": "bsrgan"}
    assert list(short_names(values, {"data/degradation"}).values()) == [
        "optimizer.lr=1", "discriminator_optimizer.lr=2", "bsrgan",
    ]  # fmt: skip
    long = run_name(OmegaConf.create({"scale": 2}), {}, {}, [f"a={'x' * 500}"], ("a",))
    assert len(long) == 120 and long.endswith("…")


def test_two_networks_differ_by_their_name_and_not_by_what_only_one_has() -> None:
    one, two = labels("tracker=none")[1], labels("tracker=none", "model=wdsr_b")[1]
    assert {key for key in one.keys() | two.keys() if one.get(key) != two.get(key)} == {"model"}
    assert len(one) < 30 and not any("_target_" in key or "${" in str(value) for key, value in one.items())


def test_what_somebody_chose_is_a_param_and_plumbing_and_copies_are_none() -> None:
    _, shown = labels(
        *SMALL, "model.res_block_scaling=0.1", "optimizer.lr=3e-4", "checkpoint.every=7", "data.workers=1"
    )
    assert shown["model.res_block_scaling"] == 0.1 and shown["optimizer.lr"] == 3e-4 and shown["optimizer"] == "adam"
    assert (
        not {"scheduler.max_lr", "data.seed", "checkpoint.every", "data.workers", "outputs", "tracker"} & shown.keys()
    )


def test_the_terms_of_a_loss_that_somebody_weighed_or_added_are_params() -> None:
    _, shown = labels(
        *SMALL, "objective.losses.pixel.weight=2", "+objective.losses.mse={_target_: torch.nn.MSELoss, weight: 0.5}"
    )
    assert {key: value for key, value in shown.items() if key.startswith("objective.")} == {
        "objective.losses.pixel.weight": 2,
        "objective.losses.mse._target_": "torch.nn.MSELoss",
        "objective.losses.mse.weight": 0.5,
    }
