"""sr-run from Python."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import ROOT, TINY, environment

import sr_runner
from sr_runner.errors import RequestError
from sr_runner.models import EDSR

README = ROOT / "README.md"


def test_an_image_is_enlarged_by_a_network_as_the_whole_image_would_be() -> None:
    torch.manual_seed(0)
    network = EDSR(scale=2, num_filters=4, num_res_blocks=1).eval()
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    whole = sr_runner.upscale(network, image)
    assert whole.shape == (80, 60, 3) and whole.dtype == np.uint8
    assert np.array_equal(sr_runner.upscale(network, image, tile=16, overlap=8), whole)
    with torch.no_grad():
        expected = network(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    assert np.array_equal(expected[0].permute(1, 2, 0).mul(255).clamp(0, 255).round().byte().numpy(), whole)


def test_floats_are_the_unit_range_and_come_back_as_such() -> None:
    torch.manual_seed(0)
    network = EDSR(scale=2, num_filters=4, num_res_blocks=1).eval()
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    made = sr_runner.upscale(network, image / 255.0)
    assert made.dtype == np.float32 and made.min() >= 0 and made.max() <= 1
    assert np.array_equal((made * 255).round().astype(np.uint8), sr_runner.upscale(network, image))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 6), np.uint8), "image of 8 x 6: expected H x W x 3, RGB"),
        (np.zeros((8, 6, 4), np.uint8), "image of 8 x 6 x 4: expected H x W x 3, RGB"),
        (np.zeros((1, 3, 8, 6), np.float32), "image of 1 x 3 x 8 x 6: expected H x W x 3, RGB"),
        (np.full((8, 6, 3), 255.0), "image of float64 up to 255: expected floats in [0, 1], or uint8, 0..255"),
        (np.zeros((8, 6, 3), np.int64), "image of int64: expected uint8, 0..255, or floats in [0, 1]"),
    ],
)
def test_an_array_that_is_no_rgb_image_is_refused_in_one_sentence(image: np.ndarray, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        sr_runner.upscale(EDSR(scale=2, num_filters=4, num_res_blocks=1), image)


def test_a_network_that_does_not_enlarge_by_a_whole_factor_is_refused() -> None:
    with pytest.raises(RequestError, match="does not enlarge RGB images by a whole factor"):
        sr_runner.upscale(torch.nn.Conv2d(3, 3, 3), np.zeros((8, 8, 3), np.uint8))


def test_the_parts_that_a_run_hangs_on_are_there_by_name() -> None:
    assert sr_runner.Orchestrator.__name__ == "Orchestrator"
    assert sr_runner.CheckpointManager.__name__ == "CheckpointManager"
    with pytest.raises(AttributeError, match="no attribute 'Orchestra'"):
        _ = sr_runner.Orchestra


def test_importing_is_light_training_without_a_tracker_imports_no_mlflow_and_the_lines_of_the_readme_enlarge(
    tmp_path: Path, photographs: Path, image_cache: Path
) -> None:
    """One process: what it imports takes seconds."""
    (lines,) = (each for each in re.findall(r"(?s)```python\n(.*?)```", README.read_text()) if "sr_runner" in each)
    (tmp_path / "photograph.png").write_bytes((photographs / "0.png").read_bytes())
    training = (
        "import sys, sr_runner\n"
        "assert not {'torch', 'hydra'} & set(sys.modules)\n"
        "outcome = sr_runner.train(sys.argv[1:])\n"
        "assert outcome.step == 6 and outcome.psnr > 5\n"
        "assert not any(name == 'mlflow' or name.startswith('mlflow.') for name in sys.modules)\n"
    )
    program = training + lines.replace('"edsr-x2-3f9a12c40b1e"', "outcome.identity")
    assert "outcome.identity)" in program
    arguments = [*TINY, "tracker=none", f"data.cache_dir={image_cache}"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment(), cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d+\.\d\d dB$", done.stdout.splitlines()[-1])
    with Image.open(tmp_path / "photograph.png") as hr, Image.open(tmp_path / "large.png") as sr:
        assert sr.size == hr.size
