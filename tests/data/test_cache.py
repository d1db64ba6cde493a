from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sr_runner.data.cache import ImageCache, MappedImages
from sr_runner.errors import RequestError

PIXELS = np.random.default_rng(0).integers(0, 256, (13, 7, 3), dtype=np.uint8)
FACTS = {"file": "/a.png", "size": 3}


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "locks" not in path.parts]


def test_an_image_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    stored = ImageCache(tmp_path).store("a", FACTS, PIXELS, job="j")
    found = ImageCache(tmp_path).find("a", FACTS)
    assert found == stored
    assert np.array_equal(found.pixels(), PIXELS)
    assert not found.pixels().flags.writeable


def test_an_image_made_from_something_else_is_not_found_and_is_replaced(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path)
    old = cache.store("a", FACTS, PIXELS, job="j").pixels()
    edited = {**FACTS, "size": 4}
    assert cache.find("a", edited) is None
    assert cache.find("b", FACTS) is None
    cache.store("a", edited, PIXELS[::-1], job="j")
    assert cache.find("a", FACTS) is None
    assert len(files(tmp_path)) == 1
    assert np.array_equal(old, PIXELS)  # whoever had it mapped keeps it


def test_the_digest_tells_pixels_and_sizes_apart(tmp_path: Path) -> None:
    changed = PIXELS.copy()
    changed[3, 3, 1] ^= 1
    images = [PIXELS, changed, PIXELS.reshape(7, 13, 3)]
    digests = {ImageCache(tmp_path).store("a", FACTS, pixels, job="j").digest for pixels in images}
    assert len(digests) == 3
    assert ImageCache(tmp_path).store("b", {}, PIXELS, job="j").digest in digests


@pytest.mark.parametrize("size", [0, 100, 4096, 4097])
def test_a_file_that_lost_its_end_is_built_again(size: int, tmp_path: Path) -> None:
    cache = ImageCache(tmp_path)
    os.truncate(cache.store("a", FACTS, PIXELS, job="j").path, size)
    assert cache.find("a", FACTS) is None


def test_a_full_disk_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RequestError, match=r"data\.cache_dir=.*No space left"):
        ImageCache(tmp_path).store("a", FACTS, PIXELS, job="j")
    assert files(tmp_path) == []


def test_a_cache_below_a_file_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=r"data\.cache_dir="), ImageCache(tmp_path / "file").building("j"):
        pass


BUILDER = """
import sys, time
import numpy as np
from pathlib import Path
from sr_runner.data.cache import ImageCache
cache = ImageCache(Path(sys.argv[1]))
with cache.building("j"):
    if cache.find("a", {}) is None:
        (Path(sys.argv[1]) / "building").mkdir(exist_ok=True)
        folder = cache._temporary("j"); folder.mkdir(exist_ok=True); (folder / "half").write_bytes(b"x")
        print("building", flush=True)
        time.sleep(float(sys.argv[2]))
        cache.store("a", {}, np.zeros((5, 5, 3), np.uint8), job="j")
    else:
        print("found", flush=True)
"""


def builder(folder: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def test_of_two_processes_that_start_together_one_builds_and_the_other_waits(tmp_path: Path) -> None:
    both = [builder(tmp_path, 0.5) for _ in range(2)]
    outputs = sorted(process.communicate(timeout=60)[0].strip() for process in both)
    assert outputs == ["building", "found"]


def test_the_lock_of_a_killed_builder_is_free_and_its_leftovers_go(tmp_path: Path) -> None:
    killed = builder(tmp_path, 60)
    assert killed.stdout is not None
    assert killed.stdout.readline().strip() == "building"
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=30)
    assert len(files(tmp_path)) == 1
    with ImageCache(tmp_path).building("j"):  # or it would wait for ever
        assert files(tmp_path) == []


def test_mapped_images_stay_below_their_budget_and_give_the_right_pixels(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path)
    images = [cache.store(str(i), {}, np.full((10, 10, 3), i, np.uint8), job="j") for i in range(20)]
    small, large = MappedImages(images, budget=1000), MappedImages(images, budget=10**6)
    for i in np.random.default_rng(1).integers(0, 20, 200).tolist():
        assert (small[i] == i).all()
        assert (large[i] == i).all()
        assert len(small._mapped) <= 3
    assert len(large._mapped) == 20
