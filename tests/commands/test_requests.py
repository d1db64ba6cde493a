"""Wrong requests: one clear message, exit status 2, no run.

They are asked in one process, `main` being called many times; what only a process can show has one of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from support import SrRun

from sr_runner.commands.run import main

Refused = Callable[..., str]

WRONG = {
    "model=edrs": ["model=edrs", "Did you mean 'edsr'?", "wdsr_b"],
    "trainer.stps=5": ["trainer.stps", "Did you mean 'trainer.steps'?"],
    "+trainer.stps=5": ["trainer.stps", "Did you mean 'trainer.steps'?"],
    "+nonsense=5": ["there is no key nonsense"],
    "trainer.steps=-1": ["trainer.steps=-1", "at least 1"],
    "trainer.steps=abc": ["trainer.steps=abc", "a whole number"],
    "trainer.compile=abc": ["trainer.compile=abc", "true or false"],
    "trainer.compile=-1": ["trainer.compile=-1", "true or false"],
    "trainer.threads=99999999999999999999999": ["trainer.threads=9999", "2^63"],
    "trainer.compile=${..scale}": ["trainer.compile=2", "true or false"],
    "trainer.deterministic=${trainer.steps}": ["trainer.deterministic=800", "true or false"],
    "scheduler.max_lr=-1": ["scheduler.max_lr=-1", "a number above 0"],
    "trainer.device=cuda:99999999999999999999": ["trainer.device=cuda:9999"],
    "trainer.threads=99999": ["trainer.threads=99999", "4096"],
    "scale=5": ["scale=5", "2, 3, 4, 8"],
    "model=wdsr_b scale=7": ["scale=7"],
    "++data.scale=1": ["data.scale=1", "scale=2"],
    "data.patch_size=97 scale=4": ["data.patch_size=97", "scale=4", "96 or 100"],
    "data.preview=99999999999999999999999": ["data.preview=9999", "2^63"],
    "data.preview=99999999": ["data.preview=99999999", "0 to 1000"],
    "data=folder data.train=/nope": ["data.train", "/nope", "no such folder"],
    f"data={5000 * 'x'}": ["data=xxx", "no such data", "sample"],
    "optimizer.lr=abc": ["optimizer.lr=abc", "a number above 0"],
    "optimizer.lr=-1": ["optimizer.lr=-1", "a number above 0"],
    "optimizer._target_=torch.optim.Admam": ["Did you mean 'Adam'?"],
    "optimizer._target_=\\": ["optimizer._target_=\\", "package.module.Class"],
    "objective.losses.pixel._target_=None": ["objective.losses.pixel._target_=None", "package.module.Class"],
    "objective.losses.pixel._target_=torch.nn.L2Loss": [
        "objective.losses.pixel._target_=torch.nn.L2Loss",
        "Did you mean",
    ],
    "model._target_=no.such.Net": ["model._target_=no.such.Net", "no module"],
    "+model.fliters=5": ["model.fliters=5", "Did you mean 'num_filters'?"],
    "model.num_filters=${nope}": ["model.num_filters", "'nope' not found"],
    "trainer.device=tpu": ["trainer.device=tpu", "auto"],
    "trainer.precision=int8": ["trainer.precision=int8", "bf16"],
    "trainer.ema_decay=1.5": ["trainer.ema_decay=1.5", "between 0 and 1"],
    "trainer.resume=nosuchrun": ["trainer.resume=nosuchrun", "no such run"],
    "trainer.resume=nosuchrun outputs=/dev/null": ["trainer.resume=nosuchrun", "no such run", "/dev/null/runs"],
    "trainer.resume=edsr-x2-0123456789ab checkpoint=none": ["trainer.resume=edsr-x2-0123456789ab", "no such run"],
    'trainer.parameters={"*.bias":{weight_decay:0}}': ["trainer.parameters={", "keys without quotes"],
    "tracker.run_name=it's": ["tracker.run_name=it's", """as text it is "tracker.run_name='it\\'s'\""""],
    "model.num_filters=${scale": ["model.num_filters=${scale", "cannot be read"],
    "checkpoint.root=s3:/bucket/x": ["checkpoint.root=s3:/bucket/x", "not a URL; add checkpoint=s3"],
    "checkpoint.root=mlflow-artifacts:/x": ["checkpoint.root=mlflow-artifacts:/x", "checkpoint=mlflow"],
    "checkpoint.root=https://bucket/x": ["checkpoint.root=https://bucket/x", "not a URL"],
    "trainer.allow_changes=true": ["trainer.allow_changes=true", "expected trainer.resume=NAME"],
    "trainer.resume=": ["trainer.resume=: expected the name of a run"],
    "trainer.resume=5": ["trainer.resume=5", "no such run"],
    "checkpoint.init_from=nosuchrun": ["checkpoint.init_from=nosuchrun", "no such run"],
    "checkpoint.root=null": ["checkpoint.root=null", "expected a folder"],
    "outputs=": ["outputs=", "expected a folder"],
    "trainer.resume=true checkpoint=none": ["trainer.resume=True", "checkpoint=none"],
    "optimizer.lr=1e-3,1e-4": ["several values are a sweep", "sr-run -m"],
    "-m model=edsr,edrs": ["model=edrs", "Did you mean 'edsr'?"],
    "-m seed=1,-1": ["seed=-1", "from 0"],
    "-m seed=range(0)": ["seed=range(0)", "at least one value"],
    "-m seed=range(1000000000)": ["seed=range(1000000000)", "at most 10,000 values"],
    "-m seed=1,1": ["seed=1,1", "each value once"],
    "-m seed=range(9999) trainer.steps=range(1,9999)": ["99,970,002 jobs", "at most 100,000"],
    "-m sweep.name=a,b seed=1,2": ["sweep.name=a,b", "one value"],
    "-m sweep.name=${seed} seed=1,2": ["sweep.name=${seed}", "one value"],
    "-m ~sweep seed=1,2": ["~sweep", "expected sweep to stay"],
    "-m hydra/sweeper=asha hydra.sweeper.pruner=null seed=1,2": ["hydra.sweeper.pruner=None", "a mapping"],
    "-m hydra/sweeper=asha hydra.sweeper.pruner.min_steps=0 seed=1,2": ["sr-run: hydra.sweeper.pruner.min_steps=0:"],
    "-m hydra/sweeper=optuna hydra.sweeper.metrics=null seed=1,2": ["hydra.sweeper.metrics=None", "a mapping"],
    "-m hydra/sweeper=optuna hydra.sweeper.sampler=null seed=1,2": ["hydra.sweeper.sampler=None", "a mapping"],
    "tracker.uri=http://": ["tracker.uri='http://'", "a host and a port"],
    "tracker.uri=http://h:99999": ["tracker.uri='http://h:99999'", "a host and a port"],
    "experiment=../../x": ["experiment=../../x", "an option of experiment"],
    "-m model=edsr,../../x": ["model=edsr,../../x", "an option of model"],
    "hydra.searchpath=[file:///nope] --cfg job": ["hydra.searchpath=file:///nope", "there is no such folder"],
    "hydra.nonsense=1": ["there is no key hydra.nonsense", "sweep", "callbacks"],
    "checkpoint.keep_last=-1": ["checkpoint.keep_last=-1"],
    "checkpoint.root=/proc/nope": ["checkpoint.root=/proc/nope", "nothing can be written"],
    "checkpoint.root=/dev/null": ["checkpoint.root=/dev/null", "nothing can be written"],
    "data.batch_size=0": ["data.batch_size=0"],
    "seed=-3": ["seed=-3"],
    "seed=${oc.decode:abc}": ["seed=abc", "a whole number"],
    "outputs=/proc/nowhere": ["outputs=/proc/nowhere", "nothing can be written"],
    "outputs=${seed}": ["outputs=0", "a folder"],
    "checkpoint.init_from=nosuchfile": ["checkpoint.init_from=nosuchfile", "no such run"],
    "model==": ["model==", "its value cannot be read"],
    "=1": ["=1", "key=value"],
    "@seed=1": ["@seed=1", "key=value"],
    "trainer=1": ["trainer=1", "an option of trainer: default"],
    "checkpoint=false": ["checkpoint=false", "local, mlflow, none, s3"],
    "optimizer=[1,2]": ["optimizer=[1,2]", "an option of optimizer: adam"],
    "scheduler=null": ["scheduler=null", "constant: the same learning rate"],
    "~scheduler": ["scheduler is missing", "constant"],
    "hydra=null": ["hydra=null"],
    "tracker.uri=sqlite:////proc/nope/x.db": ["tracker.uri=sqlite:////proc/nope/x.db", "nothing can be written"],
    "+model._recursive_=abc": ["model._recursive_=abc", "expected true or false"],
    "+model._partial_=abc": ["model._partial_=abc", "expected true or false"],
    "+model._convert_=abc": ["model._convert_=abc", "expected none, partial, object or all"],
    "+model._args_=5": ["model._args_=5", "expected a list"],
    "+objective.losses.pixel._recursive_=null": ["objective.losses.pixel._recursive_", "expected true or false"],
    "optimizer._target_=builtins.print": ["optimizer._target_=builtins.print", "expected a class"],
    "optimizer._target_=torch.nn.Identity": ["optimizer._target_ makes a Identity", "torch.optim.Optimizer"],
    "objective._target_=sys.exit": ["objective._target_=sys.exit", "expected a class"],
    "objective.losses.pixel._target_=sys.exit": ["objective.losses.pixel._target_=sys.exit", "expected a class"],
    "lr=1e-4": ["no key lr. Did you mean 'optimizer.lr'?"],
    "data.train=photos": ["no key data.train. data=div2k or data=folder has it"],
    "--resume": ["--resume: no such option; expected trainer.resume=true"],
    "--ema-decay=0.9 seed=1": ["--ema-decay=0.9: no such option; expected trainer.ema_decay=0.9"],
    "experiment=night": ["experiment=night: no such experiment", "--config-dir FOLDER adds those of your own"],
    "model._target_=math.pi": ["model._target_=math.pi", "expected a class"],
}


GLOBAL = "# @package _global_\n"
WRONG_RECIPES = {
    "trainer: {steps: 3}": ["expected the line '# @package _global_' at its top"],
    f"{GLOBAL}seed: ${{oops": ["seed: ${oops is no whole interpolation; expected ${KEY}"],
    f"{GLOBAL}defaults: [{{/model: wdsr_b}}]": ["'/model: wdsr_b'", "expected 'override /model: wdsr_b'"],
    f"{GLOBAL}defaults: [{{model: wdsr_b}}]": ["'model: wdsr_b'", "expected 'override /model: wdsr_b'"],
    f"{GLOBAL}defaults: [{{override model: wdsr_b}}]": ["expected 'override /model: wdsr_b'"],
    f"{GLOBAL}defaults: [{{data/degradation: bsrgan}}]": ["expected 'override /data/degradation: bsrgan'"],
    f"{GLOBAL}defaults: [{{override /modle: wdsr_b}}]": ["no key modle. Did you mean 'model'?"],
    f"{GLOBAL}trainer: {{stepz: 3}}": ["no key trainer.stepz. Did you mean 'trainer.steps'?"],
    f"{GLOBAL}schale: 3": ["no key schale. Did you mean 'scale'?"],
}


@pytest.fixture
def refused(
    tmp_path: Path, image_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """`refused("key=value", ...)` in `tmp_path`: the one message of a request that ends with status 2."""

    def ask(*arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        cache = [f"data.cache_dir={image_cache}"] if "=" in arguments[-1] else []
        status = main([*arguments, *cache])
        said = capsys.readouterr()
        assert status == 2 and said.out == "", (status, said)
        assert "Traceback" not in said.err and len(said.err.strip().splitlines()) <= 2, said.err
        assert said.err.splitlines()[-1].startswith("sr-run: ") and len(said.err) < 1000
        assert not (tmp_path / "outputs").exists(), "something was written"
        return said.err

    return ask


@pytest.mark.parametrize("request_", WRONG, ids=lambda request: request[:60])
def test_a_wrong_request_gets_one_clear_message_and_status_2(request_: str, refused: Refused) -> None:
    said = refused(*request_.split(" "))
    assert all(words in said for words in WRONG[request_]), said


@pytest.mark.parametrize("recipe", WRONG_RECIPES)
def test_what_is_wrong_in_a_recipe_of_ones_own_is_one_sentence_that_names_its_file(
    recipe: str, refused: Refused, tmp_path: Path
) -> None:
    file = tmp_path / "my" / "experiment" / "night.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(recipe)
    (file.parent / "based.yaml").write_text(f"{GLOBAL}defaults: [night]\nscale: 2\n")
    for name in ("night", "based") if GLOBAL in recipe else ("night",):
        said = refused("--config-dir", str(tmp_path / "my"), f"experiment={name}")
        assert said.startswith("sr-run: my/experiment/night.yaml: "), said
        assert all(words in said for words in WRONG_RECIPES[recipe]), said


@pytest.mark.parametrize(
    "request_", ["trainer.stps=5", "scheduler=null --cfg job", "--multirum", "checkpoint.root=/proc/nope", "-cn nope"]
)
def test_a_process_ends_with_that_message_and_status_as_well(request_: str, sr_run: SrRun, tmp_path: Path) -> None:
    done = sr_run(*request_.split(), code=2)
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "outputs" / "runs").exists(), "a run was started"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise SystemExit(3)", "SystemExit(3) in {file}, line 3"),
        ("{}['x']", "KeyError('x') in {file}, line 3"),
        ("raise ValueError('1\\n2')", "refuses this: 1 2"),
    ],
)
@pytest.mark.parametrize("part", ["model", "optimizer", "objective.losses.pixel"])
def test_whatever_making_a_part_raises_is_one_sentence_that_says_where(
    part: str, body: str, message: str, refused: Refused, tmp_path: Path
) -> None:
    name = f"part_{abs(hash((part, body)))}"
    (tmp_path / f"{name}.py").write_text(f"class Part:\n    def __init__(self, *given, **named):\n        {body}\n")
    assert message.format(file=tmp_path / f"{name}.py") in refused(f"{part}._target_={name}.Part")


def test_cuda_on_a_machine_without_one_is_refused(refused: Refused) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert "no CUDA device" in refused("trainer.device=cuda")


def test_a_folder_without_images_a_damaged_image_and_one_smaller_than_the_patch_are_named(
    refused: Refused, tmp_path: Path, photographs: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("no picture")
    said = refused("data=folder", f"data.train={empty}")
    assert str(empty) in said and ".png" in said

    small = refused("data=folder", f"data.train={photographs}", "data.patch_size=96")
    assert "data.patch_size=96" in small and ".png" in small

    whole = (photographs / "1.png").read_bytes()
    (photographs / "1.png").write_bytes(whole[: len(whole) // 2])
    assert "1.png" in refused("data=folder", f"data.train={photographs}", "data.patch_size=32")


def test_pairs_whose_sizes_do_not_fit_are_named(refused: Refused, tmp_path: Path, photographs: Path) -> None:
    lr = tmp_path / "lr"
    lr.mkdir()
    for path in photographs.glob("*.png"):
        Image.open(path).resize((20, 20)).save(lr / path.name)
    assert "20" in refused("data=folder", f"data.train={photographs}", f"data.train_lr={lr}", "data.patch_size=32")


def test_help_is_a_page_with_groups_options_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    for word in ("wdsr_b", "multistep", "trainer.steps", "sr-run -m", "trainer.resume=true", "Exit status"):
        assert word in page


def test_a_network_that_makes_another_size_is_refused_before_training(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "net_of_another_size.py").write_text(
        "import torch\nclass Net(torch.nn.Conv2d):\n    def __init__(self):\n        super().__init__(3, 3, 3)\n"
    )
    said = refused("model._target_=net_of_another_size.Net")
    assert "model: Net makes (1, 3, 14, 14)" in said and "scale=2 asks for (1, 3, 32, 32)" in said
