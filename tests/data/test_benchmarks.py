from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from skimage import data

from sr_runner.data.benchmarks import Benchmark, Finder
from sr_runner.errors import RequestError
from sr_runner.imresize import imresize_uint8

UInt8 = npt.NDArray[np.uint8]
HR = data.chelsea()[:50, :62]
"""Not a multiple of 4."""
LR = np.full((12, 15, 3), 77, dtype=np.uint8)
"""An LR image that nobody could take for one made by bicubic."""


def save(path: Path, image: UInt8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def find(folder: Path, scale: int = 4, lr: str | None = None) -> list[Benchmark]:
    return Finder(scale, lr=lr).find(folder)


@pytest.mark.parametrize("hr_folder", [".", "HR", "hr", "GTmod12", "original"])
def test_hr_images_alone_get_lr_images_by_matlab_bicubic_of_the_cropped_hr(tmp_path: Path, hr_folder: str) -> None:
    save(tmp_path / "Set1" / hr_folder / "cat.png", HR)
    [benchmark] = find(tmp_path / "Set1")
    [pair] = benchmark
    assert (benchmark.name, pair.name) == ("Set1", "cat")
    assert "MATLAB bicubic" in benchmark.degradation
    assert np.array_equal(pair.hr, HR[:48, :60])
    assert np.array_equal(pair.lr, imresize_uint8(HR[:48, :60], Fraction(1, 4)))


@pytest.mark.parametrize(
    ("hr", "lr"),
    [
        ("HR/baby.png", "LR_bicubic/X4/babyx4.png"),
        ("GTmod12/baby.png", "LRbicx4/baby.png"),
        ("image_SRF_4/img_001_SRF_4_HR.png", "image_SRF_4/img_001_SRF_4_LR.png"),
        ("HR/x4/baby_HR_x4.png", "LR/X4/baby_LRBI_x4.png"),
        ("DIV2K_valid_HR/0801.png", "DIV2K_valid_LR_bicubic/X4/0801x4.png"),
        ("hr/baby.bmp", "lr/x4/baby.png"),
    ],
)
def test_lr_images_are_found_in_the_usual_layouts(tmp_path: Path, hr: str, lr: str) -> None:
    save(tmp_path / "Set1" / hr, HR)
    save(tmp_path / "Set1" / lr, LR)
    [benchmark] = find(tmp_path / "Set1")
    [pair] = benchmark
    assert np.array_equal(pair.lr, LR)
    assert np.array_equal(pair.hr, HR[:48, :60])
    assert benchmark.degradation == "LR images of its own"


def test_lr_images_of_another_scale_do_not_count(tmp_path: Path) -> None:
    save(tmp_path / "HR" / "baby.png", HR)
    save(tmp_path / "LR_bicubic" / "X2" / "babyx2.png", LR)
    [pair] = find(tmp_path)[0]
    assert np.array_equal(pair.lr, imresize_uint8(HR[:48, :60], Fraction(1, 4)))


def test_the_hr_folder_itself_can_be_named(tmp_path: Path) -> None:
    save(tmp_path / "Set5" / "HR" / "baby.png", HR)
    save(tmp_path / "Set5" / "LR_bicubic" / "X4" / "babyx4.png", LR)
    [benchmark] = find(tmp_path / "Set5" / "HR")
    assert benchmark.name == "Set5"
    assert np.array_equal(benchmark[0].lr, LR)
    save(tmp_path / "DIV2K" / "DIV2K_valid_HR" / "0801.png", HR)
    save(tmp_path / "DIV2K" / "DIV2K_valid_LR_bicubic" / "X4" / "0801x4.png", LR)
    [benchmark] = find(tmp_path / "DIV2K" / "DIV2K_valid_HR")
    assert np.array_equal(benchmark[0].lr, LR)


def test_lr_bicubic_makes_lr_images_even_where_there_are_some(tmp_path: Path) -> None:
    save(tmp_path / "HR" / "baby.png", HR)
    save(tmp_path / "LR_bicubic" / "X4" / "babyx4.png", LR)
    [pair] = find(tmp_path, lr="bicubic")[0]
    assert not np.array_equal(pair.lr, LR)


def test_lr_images_can_lie_in_a_folder_that_is_named(tmp_path: Path) -> None:
    save(tmp_path / "photos" / "baby.png", HR)
    save(tmp_path / "elsewhere" / "babyx4.png", LR)
    [pair] = find(tmp_path / "photos", lr=str(tmp_path / "elsewhere"))[0]
    assert np.array_equal(pair.lr, LR)
    with pytest.raises(RequestError, match=r"lr=.*nowhere.* no such folder"):
        find(tmp_path / "photos", lr=str(tmp_path / "nowhere"))


def test_images_that_differ_in_their_ending_alone_are_refused(tmp_path: Path) -> None:
    for name in ("baby.png", "baby.bmp"):
        save(tmp_path / "Set1" / name, HR)
    with pytest.raises(RequestError, match=r"baby\.bmp and baby\.png have the same name"):
        find(tmp_path / "Set1")


def test_div2k_x8_is_found_in_its_own_layout(tmp_path: Path) -> None:
    save(tmp_path / "DIV2K_valid_HR" / "0801.png", HR)
    save(tmp_path / "DIV2K_valid_LR_x8" / "0801x8.png", LR[:6, :7])
    [pair] = find(tmp_path, scale=8)[0]
    assert np.array_equal(pair.lr, LR[:6, :7])


def test_a_folder_of_benchmarks_gives_all_of_them_in_order(tmp_path: Path) -> None:
    for name in ("Urban100", "B100", "Set5"):
        save(tmp_path / name / "HR" / "a.png", HR)
    (tmp_path / "notes").mkdir()
    assert [benchmark.name for benchmark in find(tmp_path)] == ["B100", "Set5", "Urban100"]


def test_pairs_are_read_one_at_a_time_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def reader(path: Path) -> UInt8:
        read.append(path.stem)
        return HR

    for name in ("c", "a", "b"):
        save(tmp_path / f"{name}.png", HR)
    monkeypatch.setattr("sr_runner.data.sources.read_image", reader)
    [benchmark] = find(tmp_path)
    assert read == [] and len(benchmark) == 3
    pairs = iter(benchmark)
    assert next(pairs).name == "a" and read == ["a"]
    assert benchmark[2].name == "c" and [pair.name for pair in benchmark[1:]] == ["b", "c"]


def test_grey_images_become_rgb(tmp_path: Path) -> None:
    Image.fromarray(HR).convert("L").save(tmp_path / "grey.png")
    assert find(tmp_path)[0][0].hr.shape == (48, 60, 3)


def test_a_missing_folder_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "Set14").mkdir()
    with pytest.raises(RequestError, match=r"data=.*Set41: there is no such folder.* 'Set14'"):
        find(tmp_path / "Set41")


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png", HR)
    with pytest.raises(RequestError, match="expected a folder of HR images or of benchmarks"):
        find(tmp_path / "a.png")


def test_a_folder_without_images_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"neither images \(\.png"):
        find(tmp_path)


def test_an_hr_image_without_its_lr_image_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path / "HR" / "baby.png", HR)
    save(tmp_path / "LR_bicubic" / "X4" / "bird.png", LR)
    with pytest.raises(RequestError, match=r"no LR image for .*baby\.png in .*babyx4 or baby"):
        find(tmp_path)


def test_lr_and_hr_that_do_not_fit_are_refused_with_both_sizes(tmp_path: Path) -> None:
    save(tmp_path / "HR" / "baby.png", HR)
    save(tmp_path / "LR_bicubic" / "X4" / "baby.png", LR[:9])
    with pytest.raises(RequestError, match=r"'baby': an LR image of 15x9 .* 62x50 at scale=4"):
        find(tmp_path)[0][0]
