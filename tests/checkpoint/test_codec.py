from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sr_runner.checkpoint import codec

_keys = st.one_of(st.text(max_size=5), st.integers(-5, 5), st.just(codec.MARK))
_leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.integers(0, 3).map(lambda n: torch.arange(n, dtype=torch.float32)),
)  # fmt: skip
_trees = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(_keys, inner, max_size=3)
    ),
    max_leaves=12,
)


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    if isinstance(a, dict):
        return type(b) is type(a) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(st.dictionaries(st.text(max_size=5), _trees, max_size=4))
def test_any_tree_of_plain_data_and_tensors_survives_the_round_trip_through_json(tree: dict[str, object]) -> None:
    tensors, rest = codec.flatten(tree)
    assert same(tree, codec.unflatten(json.loads(json.dumps(rest)), tensors))


def test_counters_arrays_sets_and_types_of_tensors_survive() -> None:
    tree = {"milestones": Counter({200: 1, 300: 2}), "array": np.arange(3), "set": {1, 2}, "type": torch.bfloat16}
    tensors, rest = codec.flatten(tree)
    back = codec.unflatten(json.loads(json.dumps(rest)), tensors)
    assert back["milestones"] == tree["milestones"] and type(back["milestones"]) is Counter
    assert back["array"].tolist() == [0, 1, 2] and back["set"] == {1, 2}


def test_every_scheduler_of_torch_survives() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    schedulers = {
        "MultiStepLR": {"milestones": [2, 4]}, "CosineAnnealingLR": {"T_max": 10}, "StepLR": {"step_size": 2},
        "OneCycleLR": {"max_lr": 0.1, "total_steps": 10}, "ReduceLROnPlateau": {}, "ExponentialLR": {"gamma": 0.9},
        "CosineAnnealingWarmRestarts": {"T_0": 3},
        "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "cycle_momentum": False},
    }  # fmt: skip
    for name, arguments in schedulers.items():
        scheduler = getattr(torch.optim.lr_scheduler, name)(torch.optim.SGD([parameter], 0.1, 0.9), **arguments)
        state = dict(scheduler.state_dict())
        tensors, rest = codec.flatten(state)
        assert same(state, codec.unflatten(json.loads(json.dumps(rest)), tensors)), name


def test_an_object_that_no_checkpoint_can_hold_is_named_with_its_place() -> None:
    with pytest.raises(codec.UnsupportedStateError, match=r"learners/model/thing is a builtins\.object"):
        codec.flatten({"learners": {"model": {"thing": object()}}})
