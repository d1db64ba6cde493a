"""Wrong, damaged, hostile and unrelated files: one clear RequestError each, and nothing executed or filled."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import weight_originals as originals
from safetensors.torch import save_file

import sr_runner
import sr_runner.weights as weights
from sr_runner.errors import RequestError
from sr_runner.models import EDSR
from sr_runner.weights import tensorfile


def edsr_state() -> dict[str, torch.Tensor]:
    return originals.EdsrPytorch(2, 4, 1, 1.0).state_dict()


def good_file(kind: str, folder: Path) -> Path:
    path = folder / f"good.{kind}"
    if kind == "pt":
        torch.save(edsr_state(), path)
    elif kind == "old-pt":
        torch.save(edsr_state(), path, _use_new_zipfile_serialization=False)
    elif kind == "safetensors":
        weights.export(EDSR(scale=2, num_filters=4, num_res_blocks=1), path)
    else:
        originals.write_h5(path, originals.keras_edsr(np.zeros((1, 4, 4, 3)), 2, 4, 1, 1.0)[1])
    return path


KINDS = ["pt", "old-pt", "safetensors", "h5"]


def refusal(path: Path) -> str:
    with pytest.raises(RequestError) as error:
        weights.load_model(path, res_block_scaling=1.0)
    message = str(error.value)
    assert path.name in message and "\n" not in message and len(message) < 700
    return message


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, kind):
    content = good_file(kind, tmp_path).read_bytes()
    for fraction in (0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99):
        path = tmp_path / f"cut.{kind}"
        path.write_bytes(content[: int(len(content) * fraction)])
        refusal(path)


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bytes_give_a_refusal_or_other_numbers_but_nothing_else(tmp_path, kind):
    content = good_file(kind, tmp_path).read_bytes()
    draw = random.Random(0)
    for _ in range(15 if kind == "h5" else 60):  # each h5 is read in a process of its own
        damaged = bytearray(content)
        for _ in range(draw.choice((1, 8))):
            damaged[draw.randrange(min(len(damaged), 4000))] = draw.randrange(256)
        path = tmp_path / f"flipped.{kind}"
        path.write_bytes(damaged)
        try:
            weights.read(path)
        except RequestError as error:
            assert path.name in str(error)


class Shell:
    """What a hostile pickle does: calls something when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_wants_to_run_code_is_refused_and_does_not(tmp_path, zipped):
    path, marker = tmp_path / "hostile.pth", tmp_path / "executed"
    torch.save(edsr_state() | {"extra": Shell(marker)}, path, _use_new_zipfile_serialization=zipped)
    assert "could run code" in refusal(path)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Shell(marker)))
    refusal(tmp_path / "bare.pt")
    assert not marker.exists()


def test_a_whole_pickled_network_is_refused_with_what_to_save_instead(tmp_path):
    torch.save({"model": originals.EdsrPytorch(2, 4, 1, 1.0)}, tmp_path / "module.pth")
    message = refusal(tmp_path / "module.pth")
    assert "more than tensors (weight_originals.EdsrPytorch)" in message and "state_dict() by itself" in message
    script = torch.jit.trace(torch.nn.Linear(3, 3), torch.ones(1, 3))
    script.save(str(tmp_path / "script.pt"))
    assert "is a TorchScript program" in refusal(tmp_path / "script.pt")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda v: v.to(torch.int8), "head.weight is torch.int8, not floating point"),
        (lambda v: v.to(torch.complex64), "head.0.weight as complex numbers"),
        (lambda v: v * float("nan"), "head.weight has values that are not finite"),
        (lambda v: v / 0, "head.weight has values that are not finite"),
    ],
)
def test_numbers_that_no_network_computes_with_are_refused(tmp_path, spoil, message):
    state = edsr_state()
    torch.save(state | {"head.0.weight": spoil(state["head.0.weight"])}, tmp_path / "odd.pt")
    assert message in refusal(tmp_path / "odd.pt")


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(RequestError, match=r"pipe\.pt: is not a regular file"):
        weights.read(tmp_path / "pipe.pt")


@pytest.mark.parametrize("source", ["/nope.pt", "/nope/edsr.pt", "nope", "", "*", "http://[::bad/x.pt", "ftp://a/b.pt"])
def test_a_name_behind_which_nothing_is_gives_one_sentence(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError) as error:
        sr_runner.load_model(source)
    assert source in str(error.value) and "\n" not in str(error.value)


def test_a_tensor_that_claims_more_numbers_than_the_file_holds_is_refused(tmp_path):
    path = tmp_path / "vast.pth"
    torch.save(edsr_state() | {"head.0.weight": torch.zeros(1).expand(1 << 20, 3, 1 << 10, 1 << 10)}, path)
    assert "more numbers" in refusal(path)


def test_a_compressed_zip_is_refused_before_it_swells(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\0" * 10_000_000)
    assert "compressed zip" in refusal(path)


def test_a_safetensors_header_that_claims_too_much_is_refused(tmp_path):
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    (tmp_path / "vast.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    refusal(tmp_path / "vast.safetensors")
    (tmp_path / "header.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b'{"w":')
    refusal(tmp_path / "header.safetensors")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{", "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ('{"network": 3}', "right kind"),
        ('{"network": "edsr", "hyperparameters": []}', "right kind"),
        ('{"network": "unet", "hyperparameters": {}}', "holds a network 'unet'"),
        ('{"network": "wdsr_a", "hyperparameters": {}}', "look like those of wdsr_a"),
        ('{"network": "edsr", "hyperparameters": {"num_res_blocks": 1000000000}}', "has num_res_blocks=1000000000"),
        ('{"network": "edsr", "hyperparameters": {"rgb_range": "os.system"}}', "has rgb_range='os.system'"),
        ('{"network": "edsr", "hyperparameters": {"rgb_range": -1}}', "rgb_range"),
    ],
)
def test_a_header_of_ours_that_makes_no_sense_is_refused(tmp_path, header, message):
    path = tmp_path / "model.safetensors"
    save_file(EDSR(scale=2, num_filters=4, num_res_blocks=1).state_dict(), path, metadata={"sr_run": header})
    assert message in refusal(path)


def test_hdf5_that_reaches_out_of_the_file_or_claims_too_much_is_refused(tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["kernel"] = np.ones((3, 3, 3, 4))

    def damaged(name: str, spoil: object) -> Path:
        path = good_file("h5", tmp_path).rename(tmp_path / name)
        with h5py.File(path, "a") as file:
            del file["conv2d/conv2d/kernel:0"]
            spoil(file)
        return path

    def link(file: h5py.File) -> None:
        file["conv2d/conv2d/kernel:0"] = h5py.ExternalLink(str(secret), "kernel")

    def soft(file: h5py.File) -> None:
        file["conv2d/conv2d/kernel:0"] = h5py.SoftLink("/conv2d_1/conv2d_1/kernel:0")

    def vast(file: h5py.File) -> None:
        file.create_dataset("conv2d/conv2d/kernel:0", (1 << 20, 1 << 20, 3, 4), "f4", chunks=(64, 64, 3, 4))

    def raw(file: h5py.File) -> None:
        external = [("/etc/hostname", 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("conv2d/conv2d/kernel:0", (4,), "u1", external=external)

    def words(file: h5py.File) -> None:
        file["conv2d/conv2d/kernel:0"] = ["a", "b"]

    with h5py.File(tmp_path / "group.h5", "w") as file:
        file["model_weights"] = h5py.ExternalLink(str(good_file("h5", tmp_path)), "/")
    assert "does not hold it" in refusal(tmp_path / "group.h5")
    assert "does not hold it" in refusal(damaged("link.h5", link))
    assert "does not hold it" in refusal(damaged("soft.h5", soft))
    assert "more numbers" in refusal(damaged("vast.h5", vast))
    assert "plain numbers" in refusal(damaged("raw.h5", raw))
    assert "plain numbers" in refusal(damaged("words.h5", words))


def test_an_hdf5_file_that_its_library_never_finishes_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorfile, "HDF5_SECONDS", 0.001)
    assert "did not finish reading it within 0.001 s" in refusal(good_file("h5", tmp_path))


def test_files_that_are_no_weights_say_what_they_are(tmp_path):
    def file(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(good_file("h5", tmp_path))
    assert "gzip archive: unpack it" in refusal(file("weights-edsr-16-x4.tar.gz", packed.getvalue()))
    assert "is empty" in refusal(file("empty.pt", b""))
    assert "not a weights file" in refusal(file("photo.png", b"\x89PNG\r\n\x1a\n" + bytes(100)))
    assert "not a weights file" in refusal(file("readme.md", b"# weights"))
    assert "no such file" in refusal(tmp_path / "missing.pt")
    zipped = tmp_path / "photos.zip"
    with zipfile.ZipFile(zipped, "w") as photos:
        photos.writestr("a.txt", "a")
    assert "no PyTorch weights file" in refusal(zipped)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = np.ones(3)
    assert "not one that Keras' save_weights wrote" in refusal(tmp_path / "other.h5")
    with h5py.File(tmp_path / "keras3.weights.h5", "w") as keras3:
        keras3["layers/conv2d/vars/0"] = np.ones(3)
    assert "Keras 3" in refusal(tmp_path / "keras3.weights.h5")


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        {"epoch": 3},
        {"params": {}},
        {"params": [torch.ones(1)]},
        torch.ones(3),
        OrderedDict(a=torch.ones(2)).keys().__len__(),
    ],
)
def test_pytorch_files_without_a_state_dict_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "odd.pth")
    assert "holds no tensors" in refusal(tmp_path / "odd.pth")


def test_weights_of_a_network_that_nobody_here_knows_say_what_to_do(tmp_path):
    torch.save(torch.nn.Linear(3, 4).state_dict(), tmp_path / "linear.pth")
    message = refusal_without_arguments(tmp_path / "linear.pth")
    assert "2 tensors (weight, bias" in message and "expected network=package.module.Class" in message


def refusal_without_arguments(path: Path) -> str:
    with pytest.raises(RequestError) as error:
        weights.load_model(path)
    return str(error.value)
