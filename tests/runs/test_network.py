"""A network of the user's own, out of a checkpoint: only named does its code run, and then the same way everywhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import sr_runner
from sr_runner import weights
from sr_runner.errors import RequestError
from sr_runner.models import EDSR
from sr_runner.runs.network import load_network
from sr_runner.runs.resolve import Source

OWN = """
import torch
open("was_imported", "w").close()

class Net(torch.nn.Conv2d):
    def __init__(self, width):
        super().__init__(3, width, 3)

class Unlike:
    def __init__(self, width):
        pass
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    """A checkpoint of `own_net.Net(width=5)`, whose module the tests can import."""
    (tmp_path / "own_net.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    network = nn.Conv2d(3, 5, 3)
    network.__class__ = type("Net", (nn.Conv2d,), {"__module__": "own_net", "__qualname__": "Net"})
    file = weights.export(network, tmp_path / "model.safetensors")
    yield Source(str(file), "net", 7, {"model": {"_target_": "own_net.Net", "scale": 2, "width": 5}})
    sys.modules.pop("own_net", None)


def test_a_file_runs_no_code_and_the_message_says_what_to_name(source: Source) -> None:
    with pytest.raises(RequestError, match=r"a network of your own: expected network=own_net\.Net, "):
        load_network(source, None, {}, prefix="model.")
    with pytest.raises(RequestError, match=r"a network of your own: expected network=own_net\.Net, "):
        sr_runner.load_model(source.location)
    assert not Path("was_imported").exists()


def test_its_name_its_class_and_an_instance_of_it_load_the_same_weights(source: Source) -> None:
    by_name = load_network(source, "own_net.Net", {})
    own = sys.modules["own_net"].Net
    for named in (own, own(5)):
        again = load_network(source, named, {})
        assert type(again) is own and not again.training
        assert torch.equal(again.weight, by_name.weight)


def test_a_bare_file_takes_the_arguments_of_the_class_by_hand(source: Source) -> None:
    network = sr_runner.load_model(source.location, network="own_net.Net", width=5)
    assert network.weight.shape == (5, 3, 3, 3)


@pytest.mark.parametrize(
    ("own", "arguments", "said"),
    [
        ("own_net.Nett", {}, "network=own_net.Nett: own_net has no 'Nett'. Did you mean 'Net'?"),
        ("own_net", {}, "network=own_net: expected package.module.Class"),
        ("own_net.Net", {"widht": 5}, "model.widht: own_net.Net has no such argument. Did you mean 'width'?"),
        ("own_net.Unlike", {}, "network=own_net.Unlike makes a Unlike: expected a torch.nn.Module"),
        ("own_net.Net", {"width": 6}, "none of its 2 tensors fits the network by name and shape"),
    ],
)
def test_what_cannot_be_its_network_is_refused(source: Source, own: str, arguments: dict[str, int], said: str) -> None:
    with pytest.raises(RequestError) as refused:
        load_network(source, own, arguments, prefix="model.")
    assert said in str(refused.value)


def test_what_a_file_does_not_state_is_asked_for_in_the_words_of_the_caller(tmp_path: Path) -> None:
    file = weights.export(EDSR(scale=2, num_filters=4, num_res_blocks=1), tmp_path / "edsr.pt", "edsr-pytorch")
    with pytest.raises(RequestError, match=r"does not state res_block_scaling: expected model\.res_block_scaling=1\.0"):
        load_network(Source(str(file), "edsr"), None, {}, prefix="model.")
    with pytest.raises(RequestError, match=r"does not state res_block_scaling: expected res_block_scaling=1\.0"):
        sr_runner.load_model(file)
    assert load_network(Source(str(file), "edsr"), None, {"res_block_scaling": 1.0}).res_block_scaling == 1
