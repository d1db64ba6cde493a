from __future__ import annotations

import hashlib
import inspect
import itertools
import shutil
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sr_runner.data import FolderData, PairData, SampleData, counter, to_batch
from sr_runner.errors import RequestError
from sr_runner.imresize import imresize_uint8


def save(folder: Path, name: str, height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    for seed, (height, width) in enumerate([(33, 47), (64, 40), (41, 41), (50, 38)]):
        save(folder, f"{seed}.png", height, width, seed)
    return folder


Make = Callable[..., FolderData]


@pytest.fixture
def make(photographs: Path, tmp_path: Path) -> Make:
    def folder_data(**changes: Any) -> FolderData:
        options = {"train": photographs, "valid_fraction": 0, "scale": 2, "patch_size": 16, "batch_size": 5, "seed": 3}
        data = FolderData(**{"cache_dir": tmp_path / "cache", "workers": 0, **options, **changes})
        data.prepare(progress=False)
        return data

    return folder_data


def batches(data: PairData, first: int = 0, count: int = 5) -> Iterator[tuple[Any, ...]]:
    """The batches of `stream`, as uint8 N x H x W x 3 as `samples` gives them."""
    with data.stream(first, count) as stream:
        for batch in stream:
            yield tuple((part * 255).round().byte().permute(0, 2, 3, 1).numpy() for part in batch)


def assert_same(this: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    for a, b in zip(this, other, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_the_samples_do_not_depend_on_the_number_of_workers(workers: int, make: Make) -> None:
    data = make(workers=workers)
    for step, batch in zip(range(12), batches(data), strict=False):
        assert_same(batch, data.samples(5 * step, 5))


def test_a_run_that_starts_at_step_k_draws_what_an_uninterrupted_one_draws_there(make: Make) -> None:
    whole, resumed = batches(make()), batches(make(workers=2), 5 * 7)
    for _ in range(7):
        next(whole)
    for _ in range(10):
        assert_same(next(whole), next(resumed))


def test_other_batch_sizes_cut_the_same_stream(make: Make) -> None:
    lr, hr = make().samples(0, 60)
    parts = list(itertools.islice(batches(make(), 0, 12), 5))
    assert_same((lr, hr), (np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])))


def orientations(pixels: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    return [np.rot90(side, turns) for side in (pixels, pixels[:, ::-1]) for turns in range(4)]


def test_each_sample_is_an_upright_or_turned_crop_of_one_image_aligned_in_lr_and_hr(
    make: Make, photographs: Path
) -> None:
    data = make()
    images = [np.asarray(Image.open(path)) for path in sorted(photographs.iterdir())]
    seen = set()
    for lr, hr in zip(*data.samples(0, 60), strict=True):
        for number, image in enumerate(images):
            crops = np.lib.stride_tricks.sliding_window_view(image, (16, 16, 3))[::2, ::2, 0]
            small = imresize_uint8(image[: len(image) // 2 * 2, : image.shape[1] // 2 * 2], Fraction(1, 2))
            for turned, (upright, upright_lr) in enumerate(zip(orientations(hr), orientations(lr), strict=True)):
                for top, left in np.argwhere((crops == upright).all(axis=(2, 3, 4))):
                    assert np.array_equal(small[top : top + 8, left : left + 8], upright_lr)
                    seen.add((number, turned))
    assert {number for number, _ in seen} == set(range(4))
    assert {turned for _, turned in seen} == set(range(8))


def test_flips_and_rotations_are_optional(make: Make, photographs: Path) -> None:
    image = np.asarray(Image.open(photographs / "0.png"))
    plain = make(flip=False, rotate=False)
    _, hr = plain.samples(0, 40)
    crops = np.lib.stride_tricks.sliding_window_view(image, (16, 16, 3))[::2, ::2, 0].reshape(-1, 16, 16, 3)
    assert sum((crops == patch).all(axis=(1, 2, 3)).any() for patch in hr) == 10  # each of 4 images once an epoch


def test_the_fingerprint_is_of_the_content_not_of_the_place(make: Make, photographs: Path, tmp_path: Path) -> None:
    original = make().fingerprint
    moved = shutil.copytree(photographs, tmp_path / "elsewhere")
    assert make(train=moved, cache_dir=tmp_path / "other cache").fingerprint == original
    assert make(batch_size=2, patch_size=8, workers=3).fingerprint == original
    assert make(seed=9).fingerprint == original
    pixels = np.array(Image.open(moved / "2.png"))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(moved / "2.png")
    assert make(train=moved).fingerprint != original


def test_the_fingerprint_tells_apart_what_is_done_to_the_images(make: Make) -> None:
    variants = [make(), make(flip=False), make(rotate=False), make(scale=4), make(valid_fraction=0.3)]
    assert len({data.fingerprint for data in variants}) == len(variants)


def test_validation_images_are_no_part_of_the_fingerprint(make: Make, photographs: Path) -> None:
    assert (
        make(valid=photographs).fingerprint == make(valid=photographs, valid_images=1).fingerprint == make().fingerprint
    )


def test_an_edited_image_is_decoded_again(make: Make, photographs: Path) -> None:
    before = make().samples(0, 20)
    save(photographs, "1.png", 64, 40, seed=77)
    after = make().samples(0, 20)
    assert not np.array_equal(before[1], after[1])


def test_a_prepared_data_set_needs_no_decoding_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, fingerprint = make().samples(0, 9), make().fingerprint
    monkeypatch.setattr("sr_runner.data.sources.read_image", None)
    again = make()
    assert_same(again.samples(0, 9), samples)
    assert again.fingerprint == fingerprint


def test_validation_pairs_are_whole_images_cropped_to_a_multiple_of_the_scale(make: Make, photographs: Path) -> None:
    data = make(scale=3, patch_size=15, valid=photographs, valid_images=3)
    assert [pair.name for pair in data.valid] == ["0", "1", "2"]
    for pair in data.valid:
        image = np.asarray(Image.open(photographs / f"{pair.name}.png"))
        height, width = image.shape[0] // 3 * 3, image.shape[1] // 3 * 3
        assert np.array_equal(pair.hr, image[:height, :width])
        assert np.array_equal(pair.lr, imresize_uint8(image[:height, :width], Fraction(1, 3)))


def test_validation_pairs_are_in_memory_only_while_they_are_looked_at(make: Make, tmp_path: Path) -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(str(tmp_path / "cache"))

    data = make(valid=tmp_path / "photographs")
    before = mapped()
    for pair in data.valid:
        assert pair.hr.any() and mapped() > before
    pairs = data.valid[1:3]
    assert [each.name for each in pairs] == ["1", "2"]
    del pair
    assert mapped() == before


def test_without_a_validation_folder_a_share_is_held_out_and_never_trained_on(make: Make, tmp_path: Path) -> None:
    for index in range(40):
        save(tmp_path / "many", f"{index}.png", 16, 16, index)
    data = make(train=tmp_path / "many", valid_fraction=0.1, flip=False, rotate=False)
    assert len(data.valid) == 4
    _, hr = data.samples(0, 36)
    assert len({patch.tobytes() for patch in hr}) == 36
    assert not {pair.hr.tobytes() for pair in data.valid} & {patch.tobytes() for patch in hr}
    save(tmp_path / "many", "another.png", 16, 16, 99)
    again = make(train=tmp_path / "many", valid_fraction=0.1)
    assert len({pair.name for pair in again.valid} & {pair.name for pair in data.valid}) >= 3


def test_folders_of_lr_images_are_used_as_they_are(make: Make, photographs: Path, tmp_path: Path) -> None:
    for index, (height, width) in enumerate([(16, 23), (32, 20), (20, 20), (25, 19)]):
        save(tmp_path / "lr", f"{index}x2.png" if index % 2 else f"{index}.png", height, width, 50 + index)
    data = make(train_lr=tmp_path / "lr", valid=photographs, valid_lr=tmp_path / "lr")
    for index, pair in enumerate(data.valid):
        path = tmp_path / "lr" / (f"{index}x2.png" if index % 2 else f"{index}.png")
        assert np.array_equal(pair.lr, np.asarray(Image.open(path)))
        assert pair.hr.shape[0] == 2 * pair.lr.shape[0]
    assert data.fingerprint != make().fingerprint
    assert data.samples(0, 4)[0].shape == (4, 8, 8, 3)


def test_grey_and_rgba_images_and_folders_in_folders_are_found(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    (folder / "deep" / "er").mkdir(parents=True)
    Image.new("L", (30, 30), 7).save(folder / "deep" / "grey.PNG")
    Image.new("RGBA", (30, 30), (1, 2, 3, 4)).save(folder / "deep" / "er" / "rgba.webp", lossless=True)
    (folder / "notes.txt").write_text("no image")
    Image.new("L", (3, 3)).save(folder / ".hidden.png")
    (folder / "deep" / "loop").symlink_to(folder)
    data = make(train=folder)
    assert data.summary()["train_images"] == 2
    assert {tuple(patch[0, 0]) for patch in data.samples(0, 2)[1]} == {(7, 7, 7), (1, 2, 3)}


def test_the_sample_photographs_train_and_validate_without_a_network(tmp_path: Path) -> None:
    data = SampleData(scale=4, patch_size=96, batch_size=2, seed=1, cache_dir=tmp_path)
    data.prepare(progress=False)
    assert [pair.name for pair in data.valid] == ["chelsea", "flower"]
    assert data.summary()["train_images"] == 5
    with data.stream(0) as batches:
        lr, hr = next(batches)
    assert (lr.shape, hr.shape) == ((2, 3, 24, 24), (2, 3, 96, 96))


def test_a_batch_becomes_floats_in_0_to_1_with_channels_second() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8))
    for channels_last in (True, False):
        batch = to_batch(images, "cpu", channels_last)
        assert batch.dtype == torch.float32
        assert batch.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert torch.equal(batch, images.permute(0, 3, 1, 2) / 255)


def test_the_pixels_of_samples_are_those_of_every_earlier_release(make: Make, tmp_path: Path) -> None:
    """A change of this digest changes the data of every run: resumed ones would go on with other samples."""
    (tmp_path / "pinned").mkdir()
    for index in range(3):
        noise = counter.bits(index, 0, np.arange(61 * 53 * 3)).astype(np.uint8).reshape(61, 53, 3)
        Image.fromarray(noise).save(tmp_path / "pinned" / f"{index}.png")
    lr, hr = make(train=tmp_path / "pinned", scale=4, seed=1234).samples(98_765, 64)
    digest = hashlib.sha256(lr.tobytes() + hr.tobytes()).hexdigest()
    assert digest == "6b603037d0c0b1238e87bb8b57845c00cf173e16c67165ee8b61b8f673d789fd"


def refused(match: str) -> Any:
    return pytest.raises(RequestError, match=match)


def test_wrong_arguments_are_refused_in_the_words_of_the_config(make: Make) -> None:
    with refused(r"data\.patch_size=97 is not a multiple of scale=4; expected 96 or 100"):
        make(patch_size=97, scale=4)
    with refused(r"data\.patch_size=3 is not a multiple of scale=4; expected 4"):
        make(patch_size=3, scale=4)
    for key, value in [
        ("batch_size", 0),
        ("batch_size", "abc"),
        ("workers", -1),
        ("valid_images", -2),
        ("valid_images", 1.5),
    ]:
        with refused(rf"data\.{key}={value!r}: expected a whole number"):
            make(**{key: value})
    with refused(r"data\.valid_fraction=1\.5: expected a number from 0"):
        make(valid_fraction=1.5)
    with refused("scale=0"):
        make(scale=0)


def test_wrong_folders_are_refused(make: Make, photographs: Path, tmp_path: Path) -> None:
    with refused(r"data\.train=.*photograhs': there is no such folder or file. Did you mean 'photographs'"):
        make(train=tmp_path / "photograhs")
    with refused("there is no such folder"):
        make(train="/nope/nope")
    with refused(r"data\.train=None: expected a folder of HR images"):
        make(train=None)
    (tmp_path / "notes.txt").touch()
    with refused("no image there"):
        make(train=tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    with refused(r"data\.valid=.*no image there \(looked for \.png \.jpg"):
        make(valid=tmp_path / "empty")
    shutil.copy(photographs / "0.png", photographs / "0.bmp")
    with refused(r"0\.bmp and 0\.png have the same name"):
        make()


def test_a_single_image_cannot_be_split(make: Make, photographs: Path) -> None:
    for index in (1, 2, 3):
        (photographs / f"{index}.png").unlink()
    with refused(r"all of its images \(1\) would be held out.*give data\.valid"):
        make(valid_fraction=0.1)
    assert len(make(valid_fraction=0).valid) == 0


def test_a_damaged_image_is_named(make: Make, photographs: Path) -> None:
    data = (photographs / "2.png").read_bytes()
    (photographs / "2.png").write_bytes(data[: len(data) // 2])
    with refused(r"2\.png: damaged image"):
        make()


def test_an_image_smaller_than_the_patch_is_named_with_what_would_do(make: Make) -> None:
    with refused(r"0\.png: 47 x 33 pixels are less than data\.patch_size=36; expected data\.patch_size=32 or less"):
        make(patch_size=36)


def test_pairs_of_unfitting_sizes_are_named(make: Make, tmp_path: Path) -> None:
    for index in range(4):
        save(tmp_path / "lr", f"{index}.png", 20, 20, index)
    with refused(r"lr/0\.png: 20 x 20 pixels do not fit .*0\.png of 47 x 33 pixels at scale=2; .* 23 x 16"):
        make(train_lr=tmp_path / "lr")
    (tmp_path / "lr" / "3.png").unlink()
    with refused(r"data\.train_lr=.*: no LR image for .*3\.png; it should be called 3 or 3x2"):
        make(train_lr=tmp_path / "lr")


def test_nothing_is_decoded_before_prepare(photographs: Path, tmp_path: Path) -> None:
    (photographs / "2.png").write_bytes(b"damaged")
    cache = tmp_path / "c"
    data = FolderData(train=photographs, scale=2, patch_size=16, batch_size=1, seed=0, cache_dir=cache)
    assert data.summary()["train_images"] == 3
    assert not cache.exists()
    with pytest.raises(RuntimeError, match="prepare"):
        data.samples(0, 1)


@pytest.mark.parametrize("kind", [SampleData, FolderData])
def test_the_signature_of_a_data_set_shows_all_its_arguments(kind: type[PairData]) -> None:
    parameters = inspect.signature(kind).parameters
    assert {"scale", "patch_size", "batch_size", "workers", "flip"} <= set(parameters)
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters.values())
    assert parameters["scale"].default is inspect.Parameter.empty
    assert parameters["workers"].default == 1
