from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from support import ROOT, started

from sr_runner.checkpoint import CheckpointManager, LocalStore, TrainingState
from sr_runner.commands.evaluate import main
from sr_runner.evaluation.efficiency import count
from sr_runner.imresize import imresize_uint8
from sr_runner.inference.tiling import upscale_image
from sr_runner.models import EDSR
from sr_runner.weights import describe, export, load_model


def edsr(scale: int = 4, seed: int = 0) -> EDSR:
    torch.manual_seed(seed)
    return EDSR(scale=scale, num_filters=4, num_res_blocks=1).eval()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: two benchmarks and the weights of a network."""
    monkeypatch.chdir(tmp_path)
    for name, image in {"Set5/HR/cat": data.chelsea()[20:117, 100:215], "B100/cup": data.coffee()[:90, :80]}.items():
        path = tmp_path / "benchmark" / f"{name}.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(image).save(path)
    Image.fromarray(data.chelsea()[150:250, 200:300]).save(tmp_path / "benchmark/Set5/HR/eye.png")
    export(edsr(), tmp_path / "edsr.safetensors")
    return tmp_path


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_the_table_of_a_model_equals_scikit_image_on_its_sr_images(folder: Path) -> None:
    assert main(["edsr.safetensors", "data=benchmark/Set5", "output=table.csv"]) == 0
    table = rows(folder / "table.csv")
    assert [row["image"] for row in table] == ["cat", "eye"]
    network = load_model("edsr.safetensors")
    for row in table:
        hr = np.asarray(Image.open(folder / "benchmark/Set5/HR" / f"{row['image']}.png"))
        hr = hr[: hr.shape[0] // 4 * 4, : hr.shape[1] // 4 * 4]
        with torch.no_grad():
            sr = upscale_image(network, imresize_uint8(hr, Fraction(1, 4)), scale=4, device="cpu")
        x, y = (image[4:-4, 4:-4].astype(np.float64) for image in (sr, hr))
        x_luma, y_luma = (rgb2ycbcr(image / 255)[..., 0] for image in (x, y))
        windows = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
        assert float(row["psnr"]) == pytest.approx(peak_signal_noise_ratio(y, x, data_range=255), abs=1e-6)
        assert float(row["psnr_y"]) == pytest.approx(peak_signal_noise_ratio(y_luma, x_luma, data_range=255), abs=1e-6)
        assert float(row["ssim"]) == pytest.approx(structural_similarity(y, x, channel_axis=2, **windows), abs=1e-6)
        assert float(row["ssim_y"]) == pytest.approx(structural_similarity(y_luma, x_luma, **windows), abs=1e-6)


def test_bicubic_on_the_sample_photographs_has_the_figures_of_the_protocol(folder: Path) -> None:
    assert main(["bicubic", "data=sample", "scale=4", "output=bicubic.csv"]) == 0
    table = {row.pop("image"): [float(value) for value in row.values()] for row in rows(folder / "bicubic.csv")}
    assert table["chelsea"] == pytest.approx([30.0516, 0.7811, 31.4758, 0.8064], abs=1e-4)
    assert table["flower"] == pytest.approx([29.2125, 0.9014, 30.7165, 0.9182], abs=1e-4)


def test_several_models_and_benchmarks_stand_side_by_side(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(edsr(seed=1), folder / "other.safetensors")
    words = ["edsr.safetensors", "other.safetensors", "data=Set5,B100", "root=benchmark"]
    assert main([*words, "output=t.csv,t.json,t.md"]) == 0
    shown = capsys.readouterr().out
    assert "Set5, scale 4: 2 images" in shown and "B100, scale 4: 1 image (published: of 100)," in shown
    assert "28.42 / 0.8104" in shown and "25.96 / 0.6675" in shown  # published for bicubic
    assert "parameters" in shown and "s/Mpx" in shown
    table = rows(folder / "t.csv")
    assert [(row["benchmark"], row["model"], row["image"]) for row in table] == [
        ("Set5", "edsr", "cat"), ("Set5", "edsr", "eye"), ("Set5", "other", "cat"), ("Set5", "other", "eye"),
        ("B100", "edsr", "cup"), ("B100", "other", "cup"),
    ]  # fmt: skip
    models = [(result["benchmark"], result["model"]) for result in json.loads((folder / "t.json").read_text())]
    assert models == [(name, model) for name in ("Set5", "B100") for model in ("bicubic", "edsr", "other")]
    assert "| edsr |" in (folder / "t.md").read_text()


def test_published_numbers_stand_beside_what_was_measured_alike_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    export(EDSR(scale=4), folder / "baseline.safetensors")
    (folder / "blurred").mkdir()
    Image.new("RGB", (20, 22)).save(folder / "blurred" / "cup.png")
    words = ["baseline.safetensors", "data=benchmark/B100"]
    for more, measured_alike in [
        ([], {"25.96 / 0.6675": True, "27.56 / 0.7354": True}),
        (["self_ensemble=true"], {"25.96 / 0.6675": True, "27.56 / 0.7354": False}),
        (["lr=blurred"], {"25.96 / 0.6675": False, "27.56 / 0.7354": False}),
    ]:
        assert main([*words, *more]) == 0
        shown = capsys.readouterr().out
        assert {number: number in shown for number in measured_alike} == measured_alike


def test_a_folder_may_have_a_comma_in_its_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "benchmark" / "B100").rename(folder / "cups, and more")
    assert main(["bicubic", "data='cups, and more'", "scale=4"]) == 0
    assert "cups, and more, scale 4: 1 image" in capsys.readouterr().out


def test_a_folder_of_benchmarks_is_evaluated_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bicubic", "data=benchmark", "scale=2"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("B100") < shown.index("Set5")


def test_tiles_change_nothing_and_self_ensemble_does(folder: Path) -> None:
    words = ["edsr.safetensors", "data=benchmark/Set5"]
    main([*words, "output=whole.csv"])
    main([*words, "output=tiled.csv", "tile=8", "overlap=6"])
    main([*words, "output=ensemble.csv", "self_ensemble=true"])
    whole, tiled, ensemble = (
        [float(r["psnr"]) for r in rows(folder / f"{n}.csv")] for n in ("whole", "tiled", "ensemble")
    )
    assert tiled == pytest.approx(whole, abs=1e-3)
    assert ensemble != pytest.approx(whole, abs=1e-3)


def test_pictures_show_the_best_and_the_worst_image(folder: Path) -> None:
    assert main(["edsr.safetensors", "data=benchmark/Set5", "pictures=sheets", "output=t.csv"]) == 0
    psnr = {row["image"]: float(row["psnr"]) for row in rows(folder / "t.csv")}
    best, worst = max(psnr, key=psnr.__getitem__), min(psnr, key=psnr.__getitem__)
    names = sorted(path.name for path in (folder / "sheets").iterdir())
    assert names == [
        f"Set5-edsr-best-{best}-{psnr[best]:.2f}-dB.png",
        f"Set5-edsr-worst-{worst}-{psnr[worst]:.2f}-dB.png",
    ]
    with Image.open(folder / "sheets" / names[0]) as sheet:
        assert sheet.width > 800 and sheet.height > 700


def save_run(folder: Path, network: torch.nn.Module, config: str = "model: {}") -> str:
    """A checkpoint of a run, as `sr-run` leaves it; its name."""
    store = LocalStore(folder / "outputs" / "checkpoints")
    manager = CheckpointManager(store, "net-x4-000000000000/a0001-cafe", keep=(), scratch=folder)
    manager.save(TrainingState(30, network.state_dict(), {}, config, describe(network)), wait=True)
    manager.close()
    return "net-x4-000000000000"


def test_a_run_is_evaluated_by_its_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([save_run(folder, edsr()), "data=benchmark/Set5", "output=run.csv"]) == 0
    assert "net-x4-000000000000 step 30" in capsys.readouterr().out
    main(["edsr.safetensors", "data=benchmark/Set5", "output=file.csv"])
    assert (folder / "run.csv").read_text() == (folder / "file.csv").read_text()


OWN_NETWORK = """
from torch import nn
class Net(nn.Module):
    def __init__(self, *, scale, width=3):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3 * scale**2, 1))
        self.shuffle = nn.PixelShuffle(scale)
    def forward(self, lr):
        return self.shuffle(self.layers(lr))
"""


def test_a_network_of_ones_own_is_evaluated_where_its_class_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "own_network.py").write_text(OWN_NETWORK)
    monkeypatch.syspath_prepend(folder)
    from own_network import Net  # type: ignore[import-not-found]

    run = save_run(folder, Net(scale=4, width=5), "model: {_target_: own_network.Net, scale: 4, width: 5}")
    assert main([run, "data=benchmark/Set5"]) == 2
    assert "expected network=own_network.Net" in capsys.readouterr().err
    assert main([run, "data=benchmark/Set5", "network=own_network.Net"]) == 0
    assert main([run, "data=benchmark/Set5", "network=own_network.Nett"]) == 2
    assert main([run, "data=benchmark/Set5", "network=own_network.Net", "model.widht=5"]) == 2
    assert "model.widht: own_network.Net has no such argument. Did you mean 'width'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=benchmark"], "no model"),
        (["edsr.safetensors"], "data is not set"),
        (["bicubic", "data=benchmark"], "expected scale=…"),
        (["edsr.safetensors", "data=benchmrk"], "data=benchmrk: there is no such folder. Did you mean 'benchmark'?"),
        (["edsr.safetensors", "data=benchmark", "scale=2"], "scale=2: edsr enlarges by 4"),
        (["edsr.safetensors", "data=benchmark", "outptu=a.csv"], "Did you mean 'output'?"),
        (["edsr.safetensors", "data=benchmark", "output=a.xls"], "ends in one of .csv"),
        (["no.pt", "data=benchmark", "output=edsr.safetensors/t.csv"], "output=edsr.safetensors/t.csv: nothing can be"),
        (["no.pt", "data=benchmark", "pictures=/proc/nope"], "pictures=/proc/nope: nothing can be written there"),
        (["edsr.safetensors", "data=nope", "tracker=mlflow", "tracker.uri=foo://x"], "tracker.uri='foo://x'"),
        (["edsr.safetensors", "data=benchmark", "device=cuda:99"], "device=cuda:99: this machine has"),
        (["edsr.safetensors", "data=benchmark", "device=tpu"], "device=tpu: expected auto"),
        (["edsr.safetensors", "data=benchmark", "precision=fp16", "device=cpu"], "precision=fp16 needs a GPU"),
        (["bicubic", "scale=2", "data=benchmark", "protocol=ntire_esr"], "is of networks of x4: expected one, not x2"),
        (["edsr.safetensors", "data=benchmark", "protocol=ntire_esr", "self_ensemble=true"], "self_ensemble=false"),
        (["edsr.safetensors", "data=benchmark", "metrics=lpisp"], "Did you mean 'lpips'?"),
        (["edsr.safetensors", "data=benchmark", "metrics=here.Net"], "metrics=here.Net: there is no module 'here'"),
        (["edsr.safetensors", "data=benchmark/Set5,benchmark/B100", "lr=benchmark"], "one folder of HR images"),
        (["edrs.safetensors", "data=benchmark"], "edrs.safetensors: no such file"),
        (["edsr.safetensors", "data=benchmark", "tracker.uri=http://h"], "nothing uses it: expected tracker=mlflow"),
        (["broken.pt", "data=benchmark"], "broken.pt"),
        (["edsr.safetensors", "data=broken"], "cat.png"),
    ],
)
def test_a_wrong_request_ends_with_status_2_and_one_message(
    folder: Path, capsys: pytest.CaptureFixture[str], words: Sequence[str], message: str
) -> None:
    (folder / "broken.pt").write_bytes(b"nonsense")
    (folder / "broken").mkdir()
    (folder / "broken" / "cat.png").write_bytes((folder / "benchmark/Set5/HR/cat.png").read_bytes()[:900])
    assert main(words) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.out == ""


def test_the_protocol_of_ntires_efficient_track_is_rgb_and_what_a_network_costs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["edsr.safetensors", "data=benchmark/Set5", "protocol=ntire_esr", "output=t.json,t.csv"]
    assert main([*words, "tile=16", "overlap=0", "device=cpu"]) == 0
    title, _, header, bicubic, row = capsys.readouterr().out.splitlines()
    costs = ["FLOPs", "activations", "convs", "memory", "runtime", "score"]
    assert header.split() == ["model", "PSNR", "SSIM", "parameters", "s/Mpx", *costs]
    assert "4 border pixels" in title and bicubic.split()[0] == "bicubic" and len(bicubic.split()) == 4
    network, [_, result] = load_model("edsr.safetensors"), json.loads((folder / "t.json").read_text())
    whole = count(network.to("meta"))
    assert f"{whole.flops / 1e9:.2f} G" in row and f"{whole.activations / 1e6:.2f} M" in row
    cost = result["cost"]
    assert (cost["flops"], cost["activations"], cost["convolutions"]) == (
        whole.flops, whole.activations, whole.convolutions,
    )  # fmt: skip
    assert "memory_mib" not in cost and cost["milliseconds"] > 0
    assert cost["ntire_score"] == pytest.approx(replace(whole, milliseconds=cost["milliseconds"]).score)
    tiled = float(rows(folder / "t.csv")[0]["psnr"])
    assert main([*words[:2], "output=t.csv"]) == 0
    assert float(rows(folder / "t.csv")[0]["psnr"]) == pytest.approx(tiled, abs=1e-9), "whole images, whatever tile is"


def test_a_metric_without_its_package_names_the_extra(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert main(["edsr.safetensors", "data=benchmark", "metrics=lpips"]) == 2
    assert "pip install 'sr-run[lpips]'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    assert main(["edsr.safetensors", "data=benchmark", "metrics=niqe"]) == 2
    assert "pip install 'sr-run[pyiqa]'" in capsys.readouterr().err


def test_the_results_can_be_had_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bicubic", "data=benchmark/B100", "scale=4", "output=t.json", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(result["model"], result["benchmark"]) for result in shown] == [("bicubic", "B100")]
    assert shown[0]["images"][0]["image"] == "cup"


def test_the_command_line_works_from_another_folder_in_a_process_of_its_own(folder: Path) -> None:
    done = subprocess.run(
        [*started("sr_runner.commands.evaluate"), "bicubic", "data=benchmark/Set5", "scale=4", "output=t.csv"],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "bicubic" in done.stdout and "written: t.csv" in done.stderr
    assert len(rows(folder / "t.csv")) == 2


def test_results_go_into_the_mlflow_run_that_the_checkpoint_belongs_to(folder: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{folder / 'outputs' / 'mlflow.db'}"
    words = ["data=benchmark/Set5", "pictures=sheets", "tracker=mlflow", f"tracker.uri={uri}"]
    run = save_run(folder, edsr())
    assert main([run, "bicubic", *words]) == 0
    client = MlflowClient(uri)
    [experiment] = [e for e in client.search_experiments() if e.name == "sr-eval"]
    runs = {each.info.run_name: each for each in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {f"{run} step 30", "bicubic"}
    logged = runs[f"{run} step 30"]
    assert logged.info.status == "FINISHED"
    assert set(logged.data.metrics) == {f"eval/Set5/{name}" for name in ("psnr", "ssim", "psnr_y", "ssim_y")}
    names = [Path(each.path).name for each in client.list_artifacts(logged.info.run_id, "eval")]
    assert len(names) == 3 and "Set5.csv" in names

    record = folder / "outputs" / "runs" / run / "a0001-cafe" / "tracker.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"run_id": runs["bicubic"].info.run_id, "tracking_uri": uri}))
    assert main([run, "data=benchmark/B100", "tracker=mlflow"]) == 0
    known = client.get_run(runs["bicubic"].info.run_id)
    assert known.data.metrics.keys() >= {"eval/Set5/psnr", "eval/B100/psnr"}
    assert client.get_metric_history(known.info.run_id, "eval/B100/psnr")[0].step == 30
