from __future__ import annotations

import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from PIL import Image

from sr_runner.data import FolderData
from sr_runner.data.names import match_lr, numbers, patterns
from sr_runner.errors import RequestError, RunError


def save(path: Path, seed: int, size: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


Make = Callable[..., FolderData]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def folder_data(**changes: Any) -> FolderData:
        options = {"scale": 2, "patch_size": 16, "batch_size": 4, "seed": 3, "workers": 0, "valid_fraction": 0}
        data = FolderData(**{"cache_dir": tmp_path / "cache", "flip": False, "rotate": False, **options, **changes})
        data.prepare(progress=False)
        return data

    return folder_data


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    for index in range(3):
        save(tmp_path / "a" / "HR" / f"{index}.png", index)
        save(tmp_path / "b" / "HR" / "deep" / f"{index}.png", 10 + index)
    return [tmp_path / "a" / "HR", tmp_path / "b" / "HR"]


def shown(data: FolderData, count: int) -> Counter[bytes]:
    """How often each image comes among the first samples; patches are whole images here."""
    return Counter(patch.tobytes() for patch in data.samples(0, count)[1])


def test_many_folders_are_one_data_set(make: Make, roots: list[Path]) -> None:
    data = make(train=[str(root) for root in roots])
    assert data.summary()["train_images"] == 6
    assert set(shown(data, 6).values()) == {1}


def test_images_of_equal_names_in_many_folders_are_told_apart(make: Make, roots: list[Path]) -> None:
    assert make(train=roots, valid_list=[f"{roots[0]}/1"]).summary()["train_images"] == 5


def test_a_glob_finds_folders_and_files(make: Make, roots: list[Path], tmp_path: Path) -> None:
    save(tmp_path / ".hidden" / "HR" / "no.png", 99)
    assert make(train=f"{tmp_path}/*/HR").summary()["train_images"] == 6
    assert make(train=f"{tmp_path}/**/1.png").summary()["train_images"] == 2
    assert make(train=f"{tmp_path}/*/HR").fingerprint == make(train=roots).fingerprint
    with pytest.raises(RequestError, match="no image there"):
        make(train=f"{tmp_path}/*/LR")


def test_images_come_again_where_the_cache_is_emptied_meanwhile(
    make: Make, roots: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole, emptied = make(train=roots), make(train=roots)
    shutil.rmtree(tmp_path / "cache")
    assert [each.tobytes() for each in emptied.samples(0, 9)] == [each.tobytes() for each in whole.samples(0, 9)]
    assert [pair.hr.tobytes() for pair in emptied.valid] == [pair.hr.tobytes() for pair in whole.valid]
    for edit, reason in ((lambda image: save(image, 99), "was edited during the run"), (Path.unlink, "No such file")):
        data = make(train=roots)
        shutil.rmtree(tmp_path / "cache")
        edit(roots[0] / "0.png")
        with pytest.raises(RunError, match=reason):
            data.samples(0, 6)


def test_a_folder_with_brackets_in_its_name_is_no_glob(make: Make, tmp_path: Path) -> None:
    save(tmp_path / "photos [2020]" / "1.png", 1)
    assert make(train=tmp_path / "photos [2020]").summary()["train_images"] == 1


def test_repeats_show_images_more_often_in_every_epoch(make: Make, roots: list[Path]) -> None:
    data = make(train=[{"path": roots[0], "repeat": 3}, roots[1]])
    assert sorted(shown(data, 12).values()) == [1, 1, 1, 3, 3, 3]
    assert sorted(shown(data, 24).values()) == [2, 2, 2, 6, 6, 6]
    assert data.summary()["train_images"] == 6
    assert data.fingerprint != make(train=roots).fingerprint


def test_a_folder_may_be_called_a_number(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "2024" / "0.png", 0)
    monkeypatch.chdir(tmp_path)
    assert make(train=2024).summary()["source"] == str(tmp_path / "2024")


def test_lr_images_without_an_hr_image_are_told(
    make: Make, roots: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("0", "1", "2", "3x2"):
        save(tmp_path / "LR" / f"{name}.png", 0, size=8)
    with caplog.at_level("INFO"):
        make(train=roots[0], train_lr=tmp_path / "LR")
    assert "1 of 4 images belong to no HR image and are left out, 3x2 for one" in caplog.text


def test_a_pipe_among_the_images_is_named_and_not_waited_for(make: Make, roots: list[Path]) -> None:
    os.mkfifo(roots[0] / "pipe.png")
    with pytest.raises(RequestError, match=r"pipe\.png: not a file"):
        make(train=roots[0])


def test_a_list_of_names_that_is_no_text_is_refused(make: Make, roots: list[Path], tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe0")
    with pytest.raises(RequestError, match=r"data\.valid_list=.*cannot be read as a text file of names"):
        make(train=roots[0], valid_list=tmp_path / "names.txt")


def test_a_subset_counts_images_in_alphabetical_order(make: Make, roots: list[Path]) -> None:
    data = make(train=[{"path": str(roots[0]), "subset": "2-3"}])
    expected = {np.asarray(Image.open(roots[0] / f"{index}.png")).tobytes() for index in (1, 2)}
    assert set(shown(data, 2)) == expected


def test_entries_of_a_list_are_checked(make: Make, roots: list[Path]) -> None:
    with pytest.raises(RequestError, match=r"not 'repeet'\. Did you mean 'repeat'"):
        make(train=[{"path": roots[0], "repeet": 3}])
    with pytest.raises(RequestError, match="expected path=FOLDER"):
        make(train=[{"repeat": 3}])
    with pytest.raises(RequestError, match=r"data\.train\.repeat=0"):
        make(train=[{"path": roots[0], "repeat": 0}])
    with pytest.raises(RequestError, match=r"data\.train\.subset='2-9': .* numbered from 1 to 3"):
        make(train=[{"path": roots[0], "subset": "2-9"}])
    with pytest.raises(RequestError, match=r"data\.train_lr: 1 places of LR images for 2"):
        make(train=roots, train_lr=roots[0])


def test_each_place_of_hr_images_has_its_place_of_lr_images(make: Make, roots: list[Path], tmp_path: Path) -> None:
    for index in range(3):
        save(tmp_path / "a" / "LR" / f"{index}x2.png", 20 + index, size=8)
        save(tmp_path / "b" / "LR" / "deep" / f"{index}.png", 30 + index, size=8)
    lr = [tmp_path / "a" / "LR", tmp_path / "b" / "LR"]
    data = make(train=roots, train_lr=lr)
    expected = {np.asarray(Image.open(path)).tobytes() for root in lr for path in root.rglob("*.png")}
    assert {patch.tobytes() for patch in data.samples(0, 6)[0]} == expected
    spelled_out = [{"path": root, "lr": place} for root, place in zip(roots, lr, strict=True)]
    assert make(train=spelled_out).fingerprint == data.fingerprint


def test_patterns_find_pairs_in_one_folder(make: Make, tmp_path: Path) -> None:
    for index in range(4):
        save(tmp_path / "real" / f"c_{index}_HR.png", index)
        save(tmp_path / "real" / f"c_{index}_LR2.png", 10 + index, size=8)
    data = make(train=tmp_path / "real", hr_pattern="{name}_HR", lr_pattern="{name}_LR{scale}", valid_list=["c_0"])
    assert data.summary()["train_images"] == 3
    assert np.array_equal(data.valid[0].lr, np.asarray(Image.open(tmp_path / "real" / "c_0_LR2.png")))
    with pytest.raises(RequestError, match="fits no image"):
        make(train=tmp_path / "real", hr_pattern="{name}_hr")
    with pytest.raises(RequestError, match=r"no LR image for .*c_0_HR\.png and for 3 more; it should be called X2/c_0"):
        make(train=tmp_path / "real", hr_pattern="{name}_HR", lr_pattern="X{scale}/{name}")


def test_patterns_are_checked() -> None:
    assert patterns("data.lr_pattern", ["{name}", "X{scale}/{name}"]) == ("{name}", "X{scale}/{name}")
    for wrong in ("x4", "{name}{name}", "{nam}", "{name}{factor}", "{name", "{name}x{scale!r}"):
        with pytest.raises(RequestError, match=r"data\.lr_pattern=.*must hold \{name\}"):
            patterns("data.lr_pattern", wrong)


def test_the_first_pattern_that_fits_counts() -> None:
    found = match_lr(["a", "b/c", "d"], ["a", "ax4", "b/cx4"], ("{name}", "{name}x{scale}"), 4)
    assert found == {"a": "a", "b/c": "b/cx4", "d": None}


def test_ranges_are_numbers_and_lists_of_them() -> None:
    assert numbers("data.train", "1-3, 7", 900) == [1, 2, 3, 7]
    assert numbers("data.train", [5, "1-2", 1], 900) == [1, 2, 5]
    for wrong in ("0-3", "5-2", "899-901", "all", "", "1-2-3"):
        with pytest.raises(RequestError, match=r"data\.train=.*numbered from 1 to 900"):
            numbers("data.train", wrong, 900)


def test_validation_images_are_those_listed(make: Make, roots: list[Path], tmp_path: Path) -> None:
    (tmp_path / "valid.txt").write_text("# held out\n2.png\n\n0\n")
    for given in (["2", "0.png"], tmp_path / "valid.txt"):
        data = make(train=roots[0], valid_list=given)
        assert [pair.name for pair in data.valid] == ["0", "2"]
        assert data.summary()["train_images"] == 1
    with pytest.raises(
        RequestError, match=r"data\.valid_list: no image is called 'deep/7'\. Did you mean 'deep/0'|1|2"
    ):
        make(train=roots[1], valid_list=["deep/7"])
    with pytest.raises(RequestError, match="cannot be read"):
        make(train=roots[0], valid_list=str(tmp_path / "nope.txt"))
    with pytest.raises(RequestError, match=r"all of its images \(3\)"):
        make(train=roots[0], valid_list=["0", "1", "2"])
    with pytest.raises(RequestError, match="not both"):
        make(train=roots[0], valid=roots[1], valid_list=["0"])


def test_names_of_images_may_have_line_ends(make: Make, roots: list[Path]) -> None:
    save(roots[0] / "a\nb.png", 3)
    assert [pair.name for pair in make(train=roots[0], valid_list=["a\nb"]).valid] == ["a\nb"]


# -- LMDB --------------------------------------------------------------------------------------------------------------


def database(folder: Path, images: list[Path], *, listed: bool = True) -> Path:
    """As BasicSR's `make_lmdb_from_imgs` writes it."""
    environment = lmdb.open(str(folder), map_size=1 << 24)
    with environment.begin(write=True) as transaction:
        for path in images:
            transaction.put(path.stem.encode("ascii"), path.read_bytes())
    environment.close()
    if listed:
        (folder / "meta_info.txt").write_text("".join(f"{path.stem}.png (16,16,3) 1\n" for path in images))
    return folder


@pytest.mark.parametrize("listed", [True, False])
def test_an_lmdb_database_is_read_as_the_folder_it_was_made_of(
    listed: bool, make: Make, roots: list[Path], tmp_path: Path
) -> None:
    folder = database(tmp_path / "a.lmdb", sorted(roots[0].iterdir()), listed=listed)
    assert make(train=folder).fingerprint == make(train=roots[0]).fingerprint
    pair = make(train=folder, valid_list=["1"]).valid[0]
    assert np.array_equal(pair.hr, np.asarray(Image.open(roots[0] / "1.png")))


def test_a_changed_database_is_read_again(make: Make, roots: list[Path], tmp_path: Path) -> None:
    folder = database(tmp_path / "a.lmdb", sorted(roots[0].iterdir()))
    before = make(train=folder).fingerprint
    save(roots[0] / "1.png", 77)
    database(folder, [roots[0] / "1.png"], listed=False)
    os.utime(folder / "data.mdb", ns=(time.time_ns(), time.time_ns()))
    assert make(train=folder).fingerprint == make(train=roots[0]).fingerprint != before


def test_a_damaged_image_in_a_database_is_named(make: Make, roots: list[Path], tmp_path: Path) -> None:
    (roots[0] / "1.png").write_bytes(b"damaged")
    with pytest.raises(RequestError, match=r"a\.lmdb::1: not an image"):
        make(train=database(tmp_path / "a.lmdb", sorted(roots[0].iterdir())))


def test_a_database_that_lacks_a_listed_image_is_named(make: Make, roots: list[Path], tmp_path: Path) -> None:
    folder = database(tmp_path / "a.lmdb", sorted(roots[0].iterdir()))
    with (folder / "meta_info.txt").open("a") as file:
        file.write("7.png (16,16,3) 1\n")
    with pytest.raises(RequestError, match=r"a\.lmdb::7: listed in meta_info\.txt, but not in the database"):
        make(train=folder)


def test_a_damaged_database_is_named(make: Make, tmp_path: Path) -> None:
    (tmp_path / "a.lmdb").mkdir()
    (tmp_path / "a.lmdb" / "data.mdb").write_bytes(b"damaged" * 1000)
    with pytest.raises(RequestError, match="damaged LMDB database"):
        make(train=tmp_path / "a.lmdb")


def test_validation_images_that_are_trained_on_are_named_in_one_warning(
    make: Make, roots: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(train=roots[0], valid=roots[1])
    assert not caplog.records
    for index in range(3):
        shutil.copy(roots[0] / f"{index}.png", tmp_path / f"copy{index}.png")
    make(train=roots[0], valid=[str(roots[1]), f"{tmp_path}/copy*.png", str(roots[0] / "0.png")])
    (warning,) = (record.getMessage() for record in caplog.records)
    assert "4 of the 7 validation images are training images too" in warning
    assert re.search(r"\([^ ]*copy0, [^ ]*copy1, [^ ]*copy2 and 1 more\)", warning)
