from __future__ import annotations

import pytest

from sr_runner.commands.evaluate.published import Published, known_network, published
from sr_runner.models import EDSR, WDSRA, SRResNet


@pytest.mark.parametrize("folder", ["B100", "BSD100", "bsds100", "BSDS-100"])
def test_a_benchmark_is_recognised_by_its_folder(folder: str) -> None:
    assert published("bicubic", 4, folder) == Published(25.96, 0.6675)


def test_results_are_those_of_the_network_and_the_scale() -> None:
    assert published("edsr-baseline", 2, "Set5") == Published(37.98, 0.9604)
    assert published("edsr-baseline", 4, "Set5") == Published(32.09, 0.8936)
    assert published("wdsr-a-16", 4, "Urban100") == Published(26.21)


def test_what_was_not_published_is_not_made_up() -> None:
    assert published("edsr-baseline", 3, "Set5") is None
    assert published("wdsr-a-16", 2, "Set14") is None
    assert published("bicubic", 4, "Manga109") is None
    assert published("bicubic", 4, "holiday") is None
    assert published(None, 4, "Set5") is None


def test_figures_on_div2k_are_marked_as_rgb() -> None:
    assert str(published("edsr-baseline", 4, "DIV2K_valid_HR")) == "28.97 (RGB)"
    assert str(published("bicubic", 4, "Set5")) == "28.42 / 0.8104"


def test_networks_are_recognised_by_their_class_and_hyperparameters() -> None:
    class Edsr(EDSR):
        """Someone's own, whatever its name."""

    Edsr.__name__ = "EDSR"
    assert known_network(EDSR(scale=4)) == "edsr-baseline"
    assert known_network(EDSR(scale=4, num_res_blocks=8)) is None
    assert known_network(EDSR(scale=4, res_block_scaling=0.1)) is None
    assert known_network(Edsr(scale=4)) is None
    assert known_network(WDSRA(scale=2, num_res_blocks=16, res_block_expansion=4)) == "wdsr-a-16"
    assert known_network(SRResNet(scale=4)) is None
