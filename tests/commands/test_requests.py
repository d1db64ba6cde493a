"""Wrong requests: one clear message, exit status 2, no run."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from support import SrRun

WRONG = {
    "model=edrs": ["model=edrs", "Did you mean 'edsr'?", "wdsr_b"],
    "trainer.stps=5": ["trainer.stps", "Did you mean 'trainer.steps'?"],
    "+trainer.stps=5": ["trainer.stps", "Did you mean 'steps'?"],
    "+nonsense=5": ["there is no key nonsense"],
    "trainer.steps=-1": ["trainer.steps=-1", "at least 1"],
    "trainer.steps=abc": ["trainer.steps=abc", "a whole number"],
    "scale=5": ["scale=5", "2, 3, 4, 8"],
    "model=wdsr_b scale=7": ["scale=7"],
    "data.patch_size=97 scale=4": ["data.patch_size=97", "scale=4", "96 or 100"],
    "data=folder data.train=/nope": ["data.train", "/nope", "no such folder"],
    "optimizer.lr=abc": ["optimizer.lr=abc", "a number above 0"],
    "optimizer.lr=-1": ["optimizer.lr=-1", "a number above 0"],
    "optimizer._target_=torch.optim.Admam": ["Did you mean 'Adam'?"],
    "model._target_=no.such.Net": ["model._target_=no.such.Net", "no module"],
    "+model.fliters=5": ["model.fliters=5", "Did you mean 'num_filters'?"],
    "trainer.device=tpu": ["trainer.device=tpu", "auto"],
    "trainer.precision=int8": ["trainer.precision=int8", "bf16"],
    "trainer.ema_decay=1.5": ["trainer.ema_decay=1.5", "between 0 and 1"],
    "trainer.resume=nosuchrun": ["trainer.resume=nosuchrun", "no such run"],
    "trainer.resume=true checkpoint=none": ["trainer.resume=True", "checkpoint=none"],
    "optimizer.lr=1e-3,1e-4": ["several values are a sweep", "sr-run -m"],
    "-m model=edsr,edrs": ["model=edrs", "Did you mean 'edsr'?"],
    "--multirum": ["--multirum", "Did you mean '--multirun'?"],
    "checkpoint.keep_last=-1": ["checkpoint.keep_last=-1"],
    "data.batch_size=0": ["data.batch_size=0"],
    "seed=-3": ["seed=-3"],
    "outputs=/proc/nowhere": ["outputs=/proc/nowhere", "nothing can be written"],
    "checkpoint.init_from=nosuchfile": ["checkpoint.init_from=nosuchfile", "no such run"],
    "model==": ["model==", "key=value"],
}


@pytest.mark.parametrize("request_", WRONG)
def test_a_wrong_request_gets_one_clear_message_and_status_2(request_: str, sr_run: SrRun, tmp_path: Path) -> None:
    done = sr_run(*request_.split(), code=2)
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert all(words in done.stderr for words in WRONG[request_]), done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2, done.stderr
    assert not (tmp_path / "outputs" / "runs").exists(), "a run was started"


def test_cuda_on_a_machine_without_one_is_refused(sr_run: SrRun) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert "no CUDA device" in sr_run("trainer.device=cuda", code=2).stderr


def test_a_folder_without_images_a_damaged_image_and_one_smaller_than_the_patch_are_named(
    sr_run: SrRun, tmp_path: Path, photographs: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("no picture")
    done = sr_run("data=folder", f"data.train={empty}", code=2)
    assert str(empty) in done.stderr and ".png" in done.stderr

    small = sr_run("data=folder", f"data.train={photographs}", "data.patch_size=96", code=2)
    assert "data.patch_size=96" in small.stderr and ".png" in small.stderr

    whole = (photographs / "1.png").read_bytes()
    (photographs / "1.png").write_bytes(whole[: len(whole) // 2])
    done = sr_run("data=folder", f"data.train={photographs}", "data.patch_size=32", code=2)
    assert "1.png" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "outputs" / "runs").exists()


def test_pairs_whose_sizes_do_not_fit_are_named(sr_run: SrRun, tmp_path: Path, photographs: Path) -> None:
    lr = tmp_path / "lr"
    lr.mkdir()
    for path in photographs.glob("*.png"):
        Image.open(path).resize((20, 20)).save(lr / path.name)
    done = sr_run("data=folder", f"data.train={photographs}", f"data.train_lr={lr}", "data.patch_size=32", code=2)
    assert "20" in done.stderr and "Traceback" not in done.stderr


def test_help_is_a_page_with_groups_options_and_commands(sr_run: SrRun) -> None:
    page = sr_run("--help").stdout
    for word in ("wdsr_b", "multistep", "trainer.steps", "sr-run -m", "trainer.resume=true", "Exit status"):
        assert word in page


def test_a_network_that_makes_another_size_is_refused_before_training(sr_run: SrRun, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nclass Net(torch.nn.Conv2d):\n    def __init__(self):\n        super().__init__(3, 3, 3)\n"
    )
    done = sr_run("model._target_=mine.Net", code=2)
    assert "model: Net makes (1, 3, 14, 14)" in done.stderr and "scale=2 asks for (1, 3, 32, 32)" in done.stderr
