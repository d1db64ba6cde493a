"""DIV2K end to end against an HTTP server on this machine, with archives of the official names and layout."""

from __future__ import annotations

import errno
import http.client
import io
import re
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from div2k_server import Server, div2k, members, official, prepared
from PIL import Image

from sr_runner.data.degradations import Degradation, Resize
from sr_runner.data.div2k_archives import ARCHIVES
from sr_runner.errors import RequestError, RunError

COMBINATIONS = [
    *(("bicubic", scale) for scale in (2, 3, 4, 8)),
    *(("unknown", scale) for scale in (2, 3, 4)),
    *((realistic, 4) for realistic in ("mild", "difficult", "wild")),
]


@pytest.mark.parametrize(("degradation", "scale"), COMBINATIONS)
def test_every_official_combination_is_downloaded_and_trained_on(
    degradation: str, scale: int, server: Server, root: Path
) -> None:
    data = prepared(server, root, degradation=degradation, scale=scale, patch_size=24)
    assert len(server.requests) == 4
    lr, hr = data.samples(0, 12)
    assert (lr.shape[1], hr.shape[1]) == (24 // scale, 24)
    assert data.summary()["train_images"] == (12 if degradation == "wild" else 3)
    for pair in data.valid:
        assert pair.hr.shape == (pair.lr.shape[0] * scale, pair.lr.shape[1] * scale, 3)
    assert not list(root.glob("*.zip*"))


def test_the_lr_images_are_the_official_ones(server: Server, root: Path) -> None:
    data = prepared(server, root, degradation="unknown")
    expected = members("DIV2K_valid_LR_unknown_X4")["DIV2K_valid_LR_unknown/X4/0802x4.png"]
    assert np.array_equal(data.valid[1].lr, np.asarray(Image.open(io.BytesIO(expected))))


@pytest.mark.parametrize(("degradation", "scale"), [("mild", 2), ("unknown", 8), ("wild", 3), ("bicubic", 5)])
def test_impossible_combinations_are_refused_with_the_possible_ones(
    degradation: str, scale: int, server: Server, root: Path
) -> None:
    with pytest.raises(RequestError, match=r"bicubic at scale 2, 3, 4, 8; unknown at scale 2, 3, 4; mild at scale 4"):
        div2k(server, root, degradation=degradation, scale=scale, patch_size=120)


def test_a_misspelt_degradation_gets_a_suggestion(server: Server, root: Path) -> None:
    with pytest.raises(RequestError, match="Did you mean 'difficult'"):
        div2k(server, root, degradation="dificult")


def test_a_degradation_of_ones_own_needs_the_hr_images_alone(server: Server, root: Path) -> None:
    pipeline = Degradation([Resize(factor=1, relative_to="lr", methods=["area"])])
    data = prepared(server, root, degradation=pipeline)
    assert {name for name, _ in server.requests} == {"DIV2K_train_HR.zip", "DIV2K_valid_HR.zip"}
    lr, hr = data.samples(0, 3)
    assert np.abs(hr.reshape(3, 4, 4, 4, 4, 3).mean((2, 4)) - lr).max() <= 0.51
    assert data.valid[0].lr.shape == (12, 18, 3)


@pytest.mark.parametrize(("key", "value"), [("degradation", None), ("train", None), ("valid", "801-901")])
def test_options_that_mean_nothing_are_refused_by_name(key: str, value: Any, server: Server, root: Path) -> None:
    with pytest.raises(RequestError, match=rf"data\.{key}={value!r}" if key != "degradation" else "=None scale=4"):
        div2k(server, root, **{key: value})


def test_ranges_choose_images_and_only_their_archives_are_fetched(server: Server, root: Path) -> None:
    data = prepared(server, root, train="1,3", valid=2)
    assert {name for name, _ in server.requests} == {"DIV2K_train_HR.zip", "DIV2K_train_LR_bicubic_X4.zip"}
    assert (data.summary()["train_images"], [pair.name for pair in data.valid]) == (2, ["0002x4"])


def test_training_and_validation_images_must_not_overlap(server: Server, root: Path) -> None:
    with pytest.raises(RequestError, match="share images, 801"):
        div2k(server, root, train="1-801")


def test_a_folder_in_the_official_layout_is_used_without_asking_the_network(server: Server, root: Path) -> None:
    for name in ("DIV2K_train_HR", "DIV2K_valid_HR", "DIV2K_train_LR_bicubic_X4", "DIV2K_valid_LR_bicubic_X4"):
        for path, content in members(name).items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
    before = prepared(server, root, download=False).fingerprint
    assert server.requests == []
    assert before == prepared(server, root.parent / "downloaded").fingerprint


def test_a_second_run_asks_nothing_of_the_network(server: Server, root: Path) -> None:
    prepared(server, root)
    asked = len(server.requests)
    prepared(server, root)
    assert len(server.requests) == asked


def test_archives_put_there_by_hand_are_unpacked_and_kept(server: Server, root: Path) -> None:
    root.mkdir()
    for name in ("DIV2K_train_HR", "DIV2K_valid_HR", "DIV2K_train_LR_bicubic_X4", "DIV2K_valid_LR_bicubic_X4"):
        (root / f"{name}.zip").write_bytes(official(name))
    prepared(server, root, download=False)
    assert server.requests == []
    assert len(list(root.glob("*.zip"))) == 4


def test_a_missing_image_in_a_folder_is_fetched_and_the_others_stay(server: Server, root: Path) -> None:
    prepared(server, root)
    (root / "DIV2K_train_HR" / "0002.png").unlink()
    (root / "DIV2K_train_HR" / "notes.txt").write_text("mine")
    server.requests.clear()
    prepared(server, root)
    assert [name for name, _ in server.requests] == ["DIV2K_train_HR.zip"]
    assert (root / "DIV2K_train_HR" / "notes.txt").read_text() == "mine"


# -- what goes wrong on the way ----------------------------------------------------------------------------------------


def test_an_interrupted_connection_is_taken_up_where_it_broke(server: Server, root: Path, pauses: list[float]) -> None:
    server.faults = [("hang up after", 1000), ("hang up after", 500)]
    prepared(server, root)
    assert [wanted for _, wanted in server.requests[:3]] == [None, "bytes=1000-", "bytes=1500-"]
    assert len(pauses) == 2


def test_a_run_that_was_killed_while_downloading_goes_on_where_it_stopped(server: Server, root: Path) -> None:
    root.mkdir()
    (root / "DIV2K_train_HR.zip.part").write_bytes(official("DIV2K_train_HR")[:777])
    prepared(server, root)
    assert server.requests[0] == ("DIV2K_train_HR.zip", "bytes=777-")


def test_a_run_that_was_killed_before_unpacking_downloads_nothing_again(server: Server, root: Path) -> None:
    root.mkdir()
    (root / "DIV2K_train_HR.zip.part").write_bytes(official("DIV2K_train_HR"))
    (root / ".unpacking DIV2K_train_HR.zip.part").mkdir()
    prepared(server, root)
    assert "DIV2K_train_HR.zip" not in {name for name, _ in server.requests}
    assert not list(root.glob(".unpacking*"))


def test_an_archive_that_was_moved_is_followed_and_taken_up_there(server: Server, root: Path) -> None:
    server.moved, server.faults = True, [("hang up after", 1000)]
    prepared(server, root)
    assert server.requests[1] == ("DIV2K_train_HR.zip", "bytes=1000-")


def test_two_processes_that_start_together_download_everything_once(server: Server, root: Path) -> None:
    # Threads stand for processes: the kernel's lock is held by whoever has opened the file.
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: prepared(server, root), range(2)))
    assert made[0].fingerprint == made[1].fingerprint
    assert len(server.requests) == 4


def test_a_network_that_fails_below_http_is_asked_again(
    server: Server, root: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    read, failures = http.client.HTTPResponse.read1, [OSError(errno.EHOSTUNREACH, "No route to host")]

    def fails_once(response: http.client.HTTPResponse, count: int) -> bytes:
        if failures:
            raise failures.pop()
        return read(response, count)

    monkeypatch.setattr(http.client.HTTPResponse, "read1", fails_once)
    prepared(server, root)
    assert pauses == [1]


def test_a_file_in_place_of_the_folder_is_one_clear_message(server: Server, root: Path) -> None:
    root.write_text("a file")
    with pytest.raises(RequestError, match=r"data\.root=.* cannot be written to .*; choose another folder"):
        prepared(server, root)


def test_a_server_without_ranges_sends_everything_again(server: Server, root: Path) -> None:
    server.ranges = False
    server.faults = [("hang up after", 1000)]
    prepared(server, root)


def test_a_damaged_part_from_an_earlier_run_is_fetched_anew(server: Server, root: Path) -> None:
    root.mkdir()
    (root / "DIV2K_train_HR.zip.part").write_bytes(b"x" * 777)
    prepared(server, root)


def test_a_busy_server_is_asked_again_after_longer_and_longer_pauses(
    server: Server, root: Path, pauses: list[float]
) -> None:
    server.faults = [("status", code) for code in (503, 500, 429, 502)]
    prepared(server, root)
    assert pauses == [1, 2, 4, 8]


def test_a_server_that_stays_down_ends_in_urls_and_the_place_to_put_the_files(server: Server, root: Path) -> None:
    server.faults = [("status", 503)] * 5
    with pytest.raises(RequestError) as caught:
        prepared(server, root)
    message = str(caught.value)
    assert "503" in message
    assert "5 attempts" in message
    assert f"put these archives into {root}" in message
    for name in ("train_HR", "train_LR_bicubic_X4", "valid_HR", "valid_LR_bicubic_X4"):
        assert f"{server.url}DIV2K_{name}.zip" in message


def test_without_a_network_the_urls_and_the_place_to_put_the_files_are_told(server: Server, root: Path) -> None:
    unreachable = "http://127.0.0.1:9/"
    with pytest.raises(
        RequestError, match=rf"refused(.|\n)*put these archives into {root}(.|\n)*{unreachable}DIV2K_valid_HR"
    ):
        prepared(server, root, base_url=unreachable)
    with pytest.raises(RequestError, match=r"is not in(.|\n)*put these archives into(.|\n)*data\.root=FOLDER"):
        prepared(server, root, download=False)


def test_a_server_whose_name_is_unknown_is_not_waited_for(server: Server, root: Path, pauses: list[float]) -> None:
    with pytest.raises(RequestError, match=r"is there a network\?(.|\n)*put these archives into"):
        prepared(server, root, base_url="http://div2k.invalid/")
    assert pauses == []


def test_a_missing_archive_is_not_asked_for_again(server: Server, root: Path, pauses: list[float]) -> None:
    table = server.table()
    del server.files["DIV2K_train_HR.zip"]
    with pytest.raises(RequestError, match="404"):
        prepared(server, root, archives=table)
    assert pauses == []


def test_a_file_of_wrong_hash_is_refused_and_removed(server: Server, root: Path) -> None:
    table = server.table()
    content = bytearray(server.files["DIV2K_train_HR.zip"])
    content[len(content) // 2] ^= 1
    server.files["DIV2K_train_HR.zip"] = bytes(content)
    with pytest.raises(RunError, match=r"the SHA-256 of what was downloaded is \w{64}, it should be"):
        prepared(server, root, archives=table)
    assert not list(root.glob("*.part"))


def test_a_file_of_wrong_size_is_refused_before_it_is_fetched(server: Server, root: Path) -> None:
    table = server.table()
    server.files["DIV2K_train_HR.zip"] = server.files["DIV2K_train_HR.zip"][:-10]
    with pytest.raises(RunError, match="not this file"):
        prepared(server, root, archives=table)


def test_a_truncated_archive_put_there_by_hand_is_named(server: Server, root: Path) -> None:
    root.mkdir()
    (root / "DIV2K_train_HR.zip").write_bytes(official("DIV2K_train_HR")[:-10])
    with pytest.raises(RequestError, match=r"DIV2K_train_HR\.zip: has \d+ bytes, .* truncated"):
        prepared(server, root)


def test_a_damaged_archive_put_there_by_hand_is_named(server: Server, root: Path) -> None:
    root.mkdir()
    (root / "DIV2K_train_HR.zip").write_bytes(official("DIV2K_train_HR")[:-1] + b"!")
    with pytest.raises(RequestError, match=r"DIV2K_train_HR\.zip: its SHA-256 is"):
        prepared(server, root)


def test_an_archive_that_is_no_archive_is_named(server: Server, root: Path) -> None:
    server.files["DIV2K_train_HR.zip"] = official("DIV2K_train_HR")[:2000]
    with pytest.raises(RunError, match="damaged archive"):
        prepared(server, root)


def test_too_little_room_is_said_before_anything_is_downloaded(
    server: Server, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(RequestError, match=r"data\.root=.* are needed .* are free"):
        prepared(server, root)
    assert server.requests == []


def test_a_disk_that_fills_up_is_one_clear_message_and_what_was_fetched_is_kept(server: Server, root: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # the kernel then refuses larger files
    try:
        with pytest.raises(RequestError, match="no room for the whole"):
            prepared(server, root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (root / "DIV2K_train_HR.zip.part").stat().st_size == 5000
    prepared(server, root)


def test_a_disk_that_fills_up_while_unpacking_is_one_clear_message_and_leaves_nothing(
    server: Server, root: Path
) -> None:
    root.mkdir()
    for name in ("DIV2K_train_HR", "DIV2K_valid_HR", "DIV2K_train_LR_bicubic_X4", "DIV2K_valid_LR_bicubic_X4"):
        (root / f"{name}.zip").write_bytes(official(name))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(RequestError, match=r"no room to unpack DIV2K_train_HR\.zip .*; make room"):
            prepared(server, root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == []
    prepared(server, root)


def test_the_official_table_is_complete() -> None:
    assert len(ARCHIVES) == 22
    assert ARCHIVES["DIV2K_train_HR"][0] == 3530603713
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for _, digest in ARCHIVES.values())


@pytest.mark.parametrize("url", ["file:///etc/", "ftp://host/", "https://host"])
def test_only_web_addresses_are_taken(url: str, server: Server, root: Path) -> None:
    with pytest.raises(RequestError, match=r"data\.base_url="):
        div2k(server, root, base_url=url)
