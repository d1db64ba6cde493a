from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from support import ROOT, started

from sr_runner.commands.upscale import main
from sr_runner.inference.tiling import upscale_image
from sr_runner.models import EDSR
from sr_runner.weights import export

PHOTO = data.chelsea()[:41, :53]


def network() -> EDSR:
    torch.manual_seed(0)
    return EDSR(scale=2, num_filters=4, num_res_blocks=1).eval()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: weights, an image, and a folder of images."""
    monkeypatch.chdir(tmp_path)
    export(network(), tmp_path / "edsr.safetensors")
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    (tmp_path / "photos" / ".hidden").mkdir()
    for name in ("cat.png", "photos/a.png", "photos/deep/b.png", "photos/.hidden/c.png"):
        Image.fromarray(PHOTO).save(tmp_path / name)
    return tmp_path


def expected() -> np.ndarray:
    with torch.no_grad():
        return upscale_image(network(), PHOTO, scale=2, device="cpu")


def test_images_and_folders_are_enlarged_and_folders_kept(folder: Path) -> None:
    assert main(["edsr.safetensors", "cat.png", "photos", "output=large"]) == 0
    made = sorted(str(path.relative_to(folder / "large")) for path in (folder / "large").rglob("*.*"))
    assert made == ["ax2.png", "catx2.png", "deep/bx2.png"]
    assert np.array_equal(np.asarray(Image.open(folder / "large" / "catx2.png")), expected())


@pytest.mark.parametrize("ending", ["png", "webp", "jpg"])
def test_the_format_can_be_chosen(folder: Path, ending: str) -> None:
    assert main(["edsr.safetensors", "cat.png", "output=large", f"format={ending}"]) == 0
    pixels = np.asarray(Image.open(folder / "large" / f"catx2.{ending}").convert("RGB")).astype(int)
    assert np.abs(pixels - expected()).mean() <= (2 if ending == "jpg" else 0)


def test_the_files_that_were_made_can_be_had_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "photos" / "a.png").write_bytes(b"nonsense")
    assert main(["edsr.safetensors", "photos", "output=large", "--json"]) == 1
    made = json.loads(capsys.readouterr().out)
    assert made == [{"file": "large/deep/bx2.png", "image": "photos/deep/b.png", "width": 106, "height": 82}]


def test_precision_auto_is_one_that_the_device_computes(folder: Path) -> None:
    assert main(["edsr.safetensors", "cat.png", "output=large", "precision=auto", "device=cpu"]) == 0
    difference = np.abs(np.asarray(Image.open(folder / "large" / "catx2.png")).astype(int) - expected())
    assert difference.mean() < 2


def test_tiles_give_the_same_image(folder: Path) -> None:
    assert main(["edsr.safetensors", "cat.png", "output=large", "tile=16", "overlap=6"]) == 0
    difference = np.abs(np.asarray(Image.open(folder / "large" / "catx2.png")).astype(int) - expected())
    assert difference.max() <= 1 and difference.mean() < 1e-3


def test_a_long_job_goes_on_where_it_was_stopped(folder: Path) -> None:
    (folder / "large").mkdir()
    (folder / "large" / "ax2.png").write_bytes(b"done before")
    assert main(["edsr.safetensors", "photos", "output=large", "existing=skip"]) == 0
    assert (folder / "large" / "ax2.png").read_bytes() == b"done before"
    assert (folder / "large" / "deep" / "bx2.png").stat().st_size > 100
    assert main(["edsr.safetensors", "photos", "output=large"]) == 0
    assert (folder / "large" / "ax2.png").stat().st_size > 100


def test_one_damaged_image_does_not_keep_the_others_from_being_made(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "photos" / "a.png").write_bytes(b"nonsense")
    assert main(["edsr.safetensors", "photos", "output=large"]) == 1
    assert "1 of 2 images could not be enlarged" in capsys.readouterr().err
    assert [path.name for path in (folder / "large").rglob("*.*")] == ["bx2.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["edsr.safetensors"], "a model and at least one image"),
        (["edsr.safetensors", "cat.png"], "output is not set"),
        (["no.pt", "cat.png", "output=/proc/nope"], "output=/proc/nope: nothing can be written there"),
        (["edsr.safetensors", "dog.png", "output=o"], "dog.png: there is no such image or folder"),
        (["edsr.safetensors", "edsr.safetensors", "output=o"], "not a kind of image that is read"),
        (["edsr.safetensors", "empty", "output=o"], "empty: no image in this folder"),
        (["edsr.safetensors", "cat.png", "photos/cat.jpg", "output=o"], "would both become o/catx2.png"),
        (["edsr.safetensors", "cat.png", "output=o", "format=gif"], "format=gif: expected one of png, webp, jpg"),
        (["edsr.safetensors", "cat.png", "output=o", "tile=0"], "tile=0: expected a whole number of at least 1"),
        (["nowhere", "cat.png", "output=o"], "nowhere: no such file"),
    ],
)
def test_a_wrong_request_ends_with_status_2_before_anything_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], words: Sequence[str], message: str
) -> None:
    (folder / "empty").mkdir()
    Image.fromarray(PHOTO).save(folder / "photos" / "cat.jpg")
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "o").exists()


def test_an_image_is_never_written_over_by_its_own_sr_image(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "catx2.png").symlink_to(folder / "cat.png")
    assert main(["edsr.safetensors", "cat.png", "output=."]) == 2
    assert "its SR image would overwrite it" in capsys.readouterr().err


def test_the_command_line_works_in_a_process_of_its_own(folder: Path) -> None:
    done = subprocess.run(
        [*started("sr_runner.commands.upscale"), "edsr.safetensors", "cat.png", "output=large"],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "large/catx2.png: 106 x 82" in done.stderr


@pytest.mark.timeout(60)
def test_what_is_no_file_is_named_and_passed_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = folder / "odd"
    odd.mkdir()
    os.mkfifo(odd / "pipe.png")
    (odd / "zero.png").symlink_to("/dev/zero")
    Image.new("RGB", (8, 8)).save(odd / "whole.png")
    assert main(["edsr.safetensors", str(odd), "output=large"]) == 1
    assert [path.name for path in Path("large").iterdir()] == ["wholex2.png"]


def test_a_folder_is_not_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8)).save("whole.png")
    Path("large/wholex2.png").mkdir(parents=True)
    assert main(["edsr.safetensors", "whole.png", "output=large", "existing=replace"]) == 2
    assert "there is a folder where the SR image of whole.png would go" in capsys.readouterr().err
