from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from sr_runner.checkpoint import tensors


def content(file: tensors.TensorFile) -> bytes:
    return b"".join(bytes(chunk) for chunk in file.chunks())


def sample() -> dict[str, torch.Tensor]:
    return {
        "weight": torch.randn(8, 3, 3, 3).to(memory_format=torch.channels_last),
        "half": torch.randn(5).half(), "bf16": torch.randn(2, 2).bfloat16(), "step": torch.tensor(7),
        "empty": torch.empty(0, 4), "flag": torch.tensor([True, False]), "view": torch.arange(10.0)[::2],
        "ünïcode/name": torch.tensor([1], dtype=torch.uint8),
    }  # fmt: skip


def test_the_library_reads_what_is_written_here(tmp_path: Path) -> None:
    original = sample()
    (tmp_path / "x.safetensors").write_bytes(content(tensors.TensorFile.of(original, {"format": "pt"})))
    loaded = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == original.keys()
    assert all(torch.equal(loaded[name], original[name]) for name in original)


def test_what_the_library_writes_is_read_here() -> None:
    original = {name: tensor.contiguous() for name, tensor in sample().items()}
    loaded, metadata = tensors.parse(safetensors.torch.save(original, {"a": "b"}))
    assert metadata == {"a": "b"}
    assert all(torch.equal(loaded[name], original[name]) for name in original)


def test_the_size_is_known_before_anything_is_written() -> None:
    file = tensors.TensorFile.of(sample(), {"x": "y"})
    assert file.size == len(content(file))


def test_equal_tensors_give_equal_bytes_whatever_their_order_and_memory_format() -> None:
    original = sample()
    other = {name: original[name].contiguous() for name in reversed(original)}
    assert content(tensors.TensorFile.of(original)) == content(tensors.TensorFile.of(other))


@pytest.mark.parametrize("cut", [0, 7, 8, 20, -1])
def test_a_truncated_file_is_refused(cut: int) -> None:
    with pytest.raises(tensors.TensorFileError):
        tensors.parse(content(tensors.TensorFile.of(sample()))[:cut])


def test_a_header_that_claims_a_terabyte_is_refused_before_anything_is_allocated() -> None:
    with pytest.raises(tensors.TensorFileError):
        tensors.parse(struct.pack("<Q", 1 << 40) + b"{}")
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}}).encode()
    with pytest.raises(tensors.TensorFileError):
        tensors.parse(struct.pack("<Q", len(header)) + header)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_empty(data: bytes) -> None:
    with contextlib.suppress(tensors.TensorFileError):
        assert tensors.parse(data)[0] == {}


def test_metadata_that_is_null_is_none() -> None:
    header = b'{"__metadata__":null}'
    assert tensors.parse(struct.pack("<Q", len(header)) + header) == ({}, {})
