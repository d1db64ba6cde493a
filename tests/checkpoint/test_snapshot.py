from __future__ import annotations

import torch

from sr_runner.checkpoint.snapshot import HostSnapshot


def test_memory_is_allocated_once_and_again_only_for_other_shapes_and_types() -> None:
    snapshot = HostSnapshot()
    first = snapshot.take({"a": torch.ones(3), "b": torch.ones(2, 2), "gone": torch.ones(1)})
    second = snapshot.take({"a": torch.full((3,), 2.0), "b": torch.ones(2, 2, dtype=torch.float64)})
    assert second["a"].data_ptr() == first["a"].data_ptr() and first["a"].tolist() == [2, 2, 2]
    assert second["b"].dtype == torch.float64 and second.keys() == {"a", "b"} == snapshot._buffers.keys()
    third = snapshot.take({"a": torch.ones(4), "b": torch.ones(2, 2)})
    assert third["a"].tolist() == [1, 1, 1, 1] and third["b"].dtype == torch.float32


def test_a_copy_has_the_memory_format_of_what_it_copies() -> None:
    weight = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    copied = HostSnapshot().take({"weight": weight})["weight"]
    assert copied.stride() == weight.stride() and torch.equal(copied, weight) and copied is not weight
