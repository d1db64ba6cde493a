"""Batches as the train step gets them: from files, from the memory of the device, and with LR made on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from sr_runner.data import FolderData, PairData, to_batch
from sr_runner.data.crops import _check_room
from sr_runner.data.degradations import Blur, Degradation, Noise, Resize
from sr_runner.data.pairs import _Room
from sr_runner.data.preview import preview
from sr_runner.errors import RequestError

CONF = Path(__file__).parents[2] / "conf"
DEGRADATION = Degradation([Blur(sigma=(0.5, 2)), Noise(sigma=(5, 20)), Resize(factor=1, relative_to="lr")])

Make = Callable[..., PairData]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for seed, (height, width) in enumerate([(33, 47), (64, 40), (41, 41), (50, 38)]):
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")

    def folder_data(**changes: Any) -> PairData:
        options = {"train": folder, "valid": folder, "scale": 2, "patch_size": 16, "batch_size": 5, "seed": 3}
        data = FolderData(**{"cache_dir": tmp_path / "cache", "workers": 0, **options, **changes})
        data.prepare(progress=False)
        return data

    return folder_data


def taken(data: PairData, count: int, first: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` batches of the stream, joined."""
    with data.stream(first) as stream:
        lr, hr = zip(*(next(stream) for _ in range(count)), strict=True)
    return torch.cat(lr), torch.cat(hr)


def assert_same(this: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> None:
    for a, b in zip(this, other, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="bicubic"),
        pytest.param({"degradation": DEGRADATION}, id="degraded"),
        pytest.param({"cache": "device"}, id="resident"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_stream_is_the_uint8_samples_as_floats(workers: int, options: dict[str, Any], make: Make) -> None:
    data = make(workers=workers, **options)
    lr, hr = taken(data, 6, first=35)
    assert_same((lr, hr), tuple(to_batch(torch.from_numpy(part), "cpu") for part in data.samples(35, 6 * 5)))
    assert lr.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("degradation", ["bicubic", DEGRADATION], ids=["bicubic", "degraded"])
def test_a_data_set_in_the_memory_of_the_device_gives_the_same_samples_bit_for_bit(
    degradation: Any, make: Make, tmp_path: Path
) -> None:
    twice = [{"path": tmp_path / "photographs", "repeat": 2}, {"path": tmp_path / "photographs", "subset": "2-3"}]
    for train in (tmp_path / "photographs", twice):
        host, resident = (make(train=train, degradation=degradation, cache=cache) for cache in ("disk", "device"))
        assert_same(taken(host, 20), taken(resident, 20))
        assert host.fingerprint == resident.fingerprint


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("degradation", ["bicubic", DEGRADATION], ids=["bicubic", "degraded"])
def test_the_shares_of_several_processes_are_together_the_batch_of_one(
    workers: int, degradation: Any, make: Make
) -> None:
    data = make(workers=workers, degradation=degradation, batch_size=6)
    with data.stream(40, 6) as whole, data.stream(40, 6, share=(0, 2)) as a, data.stream(40, 6, share=(1, 2)) as b:
        for _ in range(3):
            assert_same(next(whole), tuple(map(torch.cat, zip(next(a), next(b), strict=True))))


AUGMENT = {"mixup": 0.3, "cutmix": 0.3, "cutblur": 0.2, "channel_shuffle": 0.1}
SCHEDULE = {3: {"patch_size": 24, "batch_size": 2}, 5: {"batch_size": 4, "patch_size": 32}}


@pytest.mark.parametrize("options", [{"augment": AUGMENT}, {"patch_schedule": SCHEDULE}], ids=["augment", "schedule"])
def test_augmented_and_growing_samples_are_the_same_wherever_the_stream_starts_and_whoever_draws(
    options: dict[str, Any], make: Make
) -> None:
    whole = make(batch_size=6, **options)
    with whole.stream(0, 12) as stream:  # two batches a step
        batches = [next(stream) for _ in range(8)]
    for first in (1, 3, 4, 6):
        data = make(batch_size=6, workers=2, cache="device", **options)
        with data.stream(12 * first, 12, share=(0, 2)) as a, data.stream(12 * first, 12, share=(1, 2)) as b:
            for batch in batches[first:]:
                assert_same(batch, tuple(map(torch.cat, zip(next(a), next(b), strict=True))))
    assert make(**options).fingerprint == make().fingerprint or "augment" in options


def test_patches_grow_and_batches_shrink_after_so_many_steps(make: Make) -> None:
    data = make(batch_size=6, patch_schedule=SCHEDULE)
    with data.stream(0) as stream:
        sizes = [tuple(next(stream)[1].shape[::3]) for _ in range(7)]
    assert sizes == [(6, 16)] * 3 + [(2, 24)] * 2 + [(4, 32)] * 2
    assert data.patch_sizes == {16, 24, 32}


def test_patches_that_grow_are_samples_of_the_same_numbers(make: Make) -> None:
    """The first of those of a step: one that is drawn late shows what it would have shown from the start."""
    late, early = make(batch_size=6, patch_schedule=SCHEDULE), make(batch_size=6, patch_size=24)
    assert_same(taken(late, 1, first=18), tuple(part[:2] for part in taken(early, 1, first=18)))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({0: {"batch_size": 1}}, r"patch_schedule\.0: expected the number of a step, 1 or more"),
        ({True: {"batch_size": 1}}, r"patch_schedule\.True: expected"),
        ({3: {}}, r"patch_schedule\.3=\{\}: expected \{patch_size: 128, batch_size: 8\}"),
        ({3: {"lr": 1}}, r"patch_schedule\.3=\{'lr': 1\}: expected"),
        ({3: {"patch_size": 17}}, r"patch_schedule\.3\.patch_size=17 is not a multiple of scale=2; expected 16 or 18"),
        ({3: {"batch_size": 7}}, r"patch_schedule\.3\.batch_size=7: expected a whole number, 1 to 5"),
        ({3: {"patch_size": 40}}, r"are less than data\.patch_size=40 \(data\.patch_schedule\)"),
    ],
)
def test_wrong_schedules_are_refused(schedule: Any, message: str, make: Make) -> None:
    with pytest.raises(RequestError, match=message):
        make(patch_schedule=schedule)


def test_contiguous_batches_are_given_where_they_are_asked_for(make: Make) -> None:
    with make().stream(0, 3, channels_last=False) as stream:
        lr, hr = next(stream)
    assert (lr.shape, hr.shape) == ((3, 3, 8, 8), (3, 3, 16, 16))
    assert lr.is_contiguous()
    assert hr.is_contiguous()


def test_degraded_samples_go_on_where_they_stopped_and_follow_the_seed(make: Make) -> None:
    data = make(degradation=DEGRADATION)
    whole, resumed = taken(data, 8), taken(make(degradation=DEGRADATION, workers=2), 5, first=15)
    assert_same(tuple(part[15:] for part in whole), resumed)
    assert not torch.equal(whole[0], taken(make(degradation=DEGRADATION, seed=4), 8)[0])
    assert torch.equal(whole[1], taken(make(), 8)[1])  # HR is as without


def test_the_fingerprint_is_of_the_degradation_however_it_is_written(make: Make) -> None:
    steps = [Blur(sigma=[0.5, 2.0]), Noise(sigma=[5.0, 20.0]), Resize(factor=1.0, relative_to="lr")]
    same = make(degradation=Degradation(tuple(steps)))
    other = make(degradation=Degradation([Blur(sigma=(0.5, 2.1)), *steps[1:]]))
    assert same.fingerprint == make(degradation=DEGRADATION).fingerprint
    assert len({same.fingerprint, other.fingerprint, make().fingerprint}) == 3


def test_validation_images_are_degraded_once_and_the_same_in_every_run(make: Make, tmp_path: Path) -> None:
    first = make(degradation=DEGRADATION).valid
    again = make(degradation=DEGRADATION, seed=99, cache_dir=tmp_path / "elsewhere").valid
    bicubic = make().valid
    for pair, same, plain in zip(first, again, bicubic, strict=True):
        assert np.array_equal(pair.lr, same.lr)
        assert pair.lr.shape == plain.lr.shape
        assert not np.array_equal(pair.lr, plain.lr)
        assert np.array_equal(pair.hr, plain.hr)


def test_images_with_lr_images_are_not_degraded(make: Make, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"data\.degradation makes the LR images, but there are some already"):
        make(degradation=DEGRADATION, train_lr=tmp_path / "photographs")


def test_wrong_choices_are_refused(make: Make) -> None:
    with pytest.raises(RequestError, match=r"data\.degradation='unknown': .*only DIV2K"):
        make(degradation="unknown")
    with pytest.raises(RequestError, match=r"data\.cache=devise: expected disk or device\. Did you mean 'device'"):
        make(cache="devise")
    with pytest.raises(RequestError, match=r"data\.preview=-1"):
        make(preview=-1)


def test_an_error_in_a_step_is_raised_by_the_stream(make: Make) -> None:
    data = make(degradation=Degradation([Blur()]), valid=None, valid_fraction=0, workers=1)
    with data.stream(0) as stream, pytest.raises(RequestError, match="do not end with pictures of the LR size"):
        next(stream)


def test_the_preview_shows_samples_with_lr_as_large_as_hr(make: Make) -> None:
    data = make()
    page = np.asarray(preview(data, 5))
    lr, hr = data.samples(0, 5)
    assert np.array_equal(page[4:20, 4:20], lr[0].repeat(2, axis=0).repeat(2, axis=1))
    assert np.array_equal(page[4:20, 22:38], hr[0])
    assert np.array_equal(page[4:20, 44:60], lr[1].repeat(2, axis=0).repeat(2, axis=1))
    assert preview(data, 1).size == (44, 38)


@pytest.mark.parametrize("name", ["bsrgan", "classic", "realesrgan"])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_every_degradation_of_the_config_gives_lr_of_every_scale(name: str, scale: int) -> None:
    with initialize_config_dir(str(CONF / "data" / "degradation"), version_base=None):
        degradation = hydra.utils.instantiate(compose(name), _convert_="all")
    hr = torch.rand(4, 3, 48, 72, generator=torch.Generator().manual_seed(0))
    lr = degradation(hr, scale=scale, seed=1, n=np.arange(4))
    assert lr.shape == (4, 3, 48 // scale, 72 // scale)
    assert lr.float().std() > 1


def test_large_images_are_decoded_one_at_a_time() -> None:
    room = _Room(100)
    with room.hold(500):  # more than there is: alone, but not for ever
        assert room._held == 500
    with room.hold(60), room.hold(40):
        assert room._held == 100
    assert room._held == 0


def test_a_device_without_room_for_the_images_is_named_with_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2_000_000_000, 8_000_000_000))
    _check_room(2_000_000_000, torch.device("cuda"))
    with pytest.raises(RequestError, match=r"data\.cache=device: the images need 2 GB and 2 GB are free on cuda"):
        _check_room(2_000_000_001, torch.device("cuda"))
    _check_room(10**18, torch.device("cpu"))
