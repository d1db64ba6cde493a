from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_runner.errors import RequestError
from sr_runner.models import VGG19Features
from sr_runner.objectives import PerceptualLoss


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    lr, hr = torch.rand(3, 3, 8, 8, generator=generator), torch.rand(3, 3, 16, 16, generator=generator)
    return F.interpolate(lr, scale_factor=2), hr


@pytest.mark.parametrize("layer", ["VGG22", "VGG54"])
def test_it_is_the_scaled_distance_of_features(layer: str) -> None:
    sr, hr = images()
    vgg = VGG19Features.seeded(3, layer=layer)
    loss = PerceptualLoss(layers=[layer], vgg_seed=3)
    torch.testing.assert_close(loss(sr, hr), F.mse_loss(vgg(sr) / 12.75, vgg(hr) / 12.75))
    assert loss(hr, hr) == 0
    l1 = PerceptualLoss(layers=[layer], vgg_seed=3, scale=1.0, criterion="l1", before_activation=True)
    before = [nn.Sequential(*vgg.features[:-1])((each - vgg.mean) / vgg.divisor) for each in (sr, hr)]
    torch.testing.assert_close(l1(sr, hr), F.l1_loss(*before))
    assert torch.any(before[0] < 0)


@pytest.mark.parametrize("before_activation", [True, False])
def test_several_layers_count_with_their_weights(before_activation: bool) -> None:
    sr, hr = images()

    def loss(*layers: str, **arguments: Any) -> Tensor:
        settings = {"vgg_seed": 0, "criterion": "l1", "before_activation": before_activation}
        result: Tensor = PerceptualLoss(layers=layers, **settings | arguments)(sr, hr)
        return result

    first, second = loss("VGG12"), loss("VGG22")
    torch.testing.assert_close(loss("VGG22", "VGG12", layer_weights=[0.25, 3]), 0.25 * second + 3 * first)
    torch.testing.assert_close(loss("VGG12", "VGG22"), first + second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"criterion": "mae"}, "criterion=mae: expected mse or l1"),
        ({"layers": ["VGG45"]}, "layers=VGG45: .*Did you mean 'VGG54'"),
        ({"layers": []}, r"layers=\[\]: expected one layer or more"),
        ({"layers": ["VGG22", "VGG22"]}, "none twice"),
        ({"layer_weights": [1, 2]}, r"layer_weights=\[1, 2\]: expected a number above 0 for each of 1 layers"),
        ({"layer_weights": [0]}, r"layer_weights=\[0\]"),
        ({"scale": 0.0}, "scale=0.0"),
        ({"vgg_seed": -1}, "vgg_seed=-1"),
        ({"vgg_seed": None, "vgg_weights": "/nope.pth"}, "vgg_weights=/nope.pth"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        PerceptualLoss(**{"vgg_seed": 0, "layers": ["VGG22"]} | arguments)


def test_it_says_what_it_lacks_and_what_it_does_not_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "no.pth").write_text("no weights")
    with pytest.raises(RequestError, match=r"vgg_weights=.*no\.pth: ") as refused:
        PerceptualLoss(layers=["VGG22"], vgg_weights=tmp_path / "no.pth")
    assert "smoke test" not in str(refused.value)
    monkeypatch.setenv("TORCH_HOME", "/dev/null/none")  # nothing can be downloaded there
    with pytest.raises(RequestError, match=r"vgg_weights=null: .*smoke test use vgg_seed=0"):
        PerceptualLoss(layers=["VGG22"])
    torch.save(VGG19Features.seeded(1, layer="VGG22").state_dict(), tmp_path / "vgg.pth")
    PerceptualLoss(layers=["VGG22"], vgg_weights=tmp_path / "vgg.pth")
    PerceptualLoss(layers=["VGG22"], vgg_seed=0)
    assert "random features" not in caplog.text
    PerceptualLoss(layers=["VGG22"], vgg_weights=tmp_path / "vgg.pth", vgg_seed=0)
    assert "vgg_seed=0: random features are used instead of vgg_weights" in caplog.text


def test_a_file_stands_in_the_identity_by_its_content(tmp_path: Path) -> None:
    for seed in (1, 2):
        torch.save(VGG19Features.seeded(seed, layer="VGG22").state_dict(), tmp_path / f"{seed}.pth")
    (tmp_path / "moved").write_bytes((tmp_path / "1.pth").read_bytes())

    def content(**arguments: Any) -> str | None:
        return PerceptualLoss(layers=["VGG22"], **arguments).file_contents["vgg_weights"]

    one, moved, other = (content(vgg_weights=tmp_path / name) for name in ("1.pth", "moved", "2.pth"))
    assert one == moved != other
    assert content(vgg_seed=0, vgg_weights=tmp_path / "1.pth") is None  # not read
