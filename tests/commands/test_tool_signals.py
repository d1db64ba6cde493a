"""A closed terminal and Ctrl-\\ amid the work of sr-upscale and sr-eval: what is there is whole, nothing else is."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from skimage import data

from sr_runner.commands import evaluate, upscale
from sr_runner.commands.upscale import upscaling
from sr_runner.models import EDSR
from sr_runner.weights import export

PHOTO = data.chelsea()[:44, :52]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: weights, and three images."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    export(EDSR(scale=2, num_filters=4, num_res_blocks=1).eval(), tmp_path / "edsr.safetensors")
    (tmp_path / "photos").mkdir()
    for name in "abc":
        Image.fromarray(PHOTO).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path


def at_the_second(monkeypatch: pytest.MonkeyPatch, owner: Any, verb: str, signum: signal.Signals) -> list[int]:
    """`signum` comes in the midst of the second call of `verb`; the calls so far."""
    calls, real = [0], getattr(owner, verb)

    def signalled(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            if verb == "save":
                Path(arguments[1]).write_bytes(b"half")
            os.kill(os.getpid(), signum)
        return real(*arguments, **options)

    monkeypatch.setattr(owner, verb, signalled)
    return calls


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGQUIT])
@pytest.mark.parametrize("amid", ["upscale_image", "save"])
def test_sr_upscale_leaves_whole_images_and_goes_on_with_the_others(
    amid: str, signum: signal.Signals, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["edsr.safetensors", "photos", "output=large", "existing=skip"]
    with monkeypatch.context() as patched:
        owner = upscaling if amid == "upscale_image" else Image.Image
        calls = at_the_second(patched, owner, amid, signum)
        assert upscale.main(words) == 128 + signum and calls == [2]
    (whole,) = (folder / "large").iterdir()
    assert Image.open(whole).size == (104, 88) and "Traceback" not in capsys.readouterr().err
    made = whole.stat().st_mtime_ns
    assert upscale.main(words) == 0
    assert sorted(path.name for path in (folder / "large").iterdir()) == ["ax2.png", "bx2.png", "cx2.png"]
    assert whole.stat().st_mtime_ns == made


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGQUIT])
@pytest.mark.parametrize("amid", ["forward", "save"])
def test_sr_eval_leaves_no_table_and_no_half_picture(
    amid: str, signum: signal.Signals, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["edsr.safetensors", "data=photos", "output=t.csv", "pictures=sheets", "tracker=mlflow"]
    owner = EDSR if amid == "forward" else Image.Image
    calls = at_the_second(monkeypatch, owner, amid, signum)
    assert evaluate.main(words) == 128 + signum and calls == [2]
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err
    assert {path.name for path in folder.iterdir()} <= {"edsr.safetensors", "photos", "sheets"}
    for sheet in folder.glob("sheets/*"):
        Image.open(sheet).verify()
        assert not sheet.name.startswith(".")
