"""Every command of README.md, docs/ and `--help` is run as it is printed: bash reads the line, `sr-run` is forked
(`run_server`), all else is a process of its own. The default suite only composes them, and the recipes' commands."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from printed_commands import TOOLS, printed
from run_server import RunServer
from store_servers import MlflowArtifactServer, S3Server
from support import ROOT, TINY, environment

import sr_runner
from sr_runner.commands.run import main
from sr_runner.imresize import imresize_uint8
from sr_runner.models import MSRResNet
from sr_runner.runs import folder as files
from sr_runner.weights import export, spandrel_network

PLACES = [place for place in printed() if not place.endswith(".yaml")]
LINES = [line for lines in printed().values() for line in lines]
README = (ROOT / "README.md").read_text(encoding="utf-8")

NOT_RUN = {
    "pip install -e . && sr-run": "needs a package index; .ci/run does it",
    "pip install -e '.[dev]' && pytest": "needs a package index; .ci/run does it",
    "pip install 'sr-run[slurm]'": "needs a package index",
    "pip install 'sr-run[joblib]'": "needs a package index",
    "pip install 'sr-run[optuna]'": "needs a package index",
    "pip install 'sr-run[ray]'": "needs a package index",
    "pip install mlflow psycopg2-binary boto3": "needs a package index",
    "mlflow server --host 0.0.0.0 --backend-store-uri postgresql://database/mlflow "
    "--artifacts-destination s3://bucket/artifacts":
        "needs PostgreSQL and a bucket; tests/tracking/test_many_runs.py has a server on PostgreSQL",
    "export MLFLOW_TRACKING_URI=http://mlflow:5000": "of one's own shell",
    "sr-run -m model=edsr,wdsr_a optimizer.lr=1e-4,3e-4 checkpoint=s3 checkpoint.root=s3://bucket/runs "
    "hydra/launcher=submitit_slurm hydra.launcher.partition=gpu hydra.launcher.gpus_per_node=1":
        "needs Slurm, a server and a bucket; each has tests of its own",
    "sr-run -m model=edsr,wdsr_a hydra/launcher=submitit_slurm hydra.launcher.partition=gpu "
    "hydra.launcher.gpus_per_node=1 hydra.launcher.timeout_min=240 hydra.launcher.max_num_timeout=20":
        "needs Slurm; tests/attempt/test_slurm.py runs a sweep in it, where it is installed",
    "sr-run -m model=edsr,wdsr_a optimizer.lr=1e-4,3e-4 hydra/launcher=ray "
    "+hydra.launcher.ray.remote.num_gpus=1": "needs GPUs; tests/commands/test_sweep_ends.py runs a sweep on Ray",
    "sr-run -m model=edsr,wdsr_a optimizer.lr=1e-4,3e-4 hydra/launcher=ray hydra.launcher.ray.init.address=auto":
        "needs Ray to be started; tests/commands/test_sweep_ends.py runs a sweep on Ray",
    "sr-run -m model=edsr,wdsr_a optimizer.lr=1e-4,3e-4 hydra/launcher=joblib hydra.launcher.n_jobs=4 "
    "sweep.gpu_per_job=true": "needs GPUs; tests/training/test_gpus.py shows how they are dealt out",
    'mlflow run . --env-manager=local -P overrides="model=wdsr_b trainer.steps=100"':
        "tests/tracking/test_environment.py runs it with little to train",
    "autoload -Uz bashcompinit && bashcompinit": "needs zsh",
    "sr-run -sc install=fish | source": "needs fish",
    "sr-runs rm RUN RUN": "asks a person; tests/commands/test_runs.py deletes",
    "sr-runs rm RUN...": "asks a person; tests/commands/test_runs.py deletes",
    "sr-ckpt ls | verify | diff | export | prune | cp": "the names of the verbs",
    "sr-ckpt export": "the name of a verb",
    "sr-ckpt prune": "the name of a verb",
    "sr-run 'trainer.metrics=[psnr,ssim,psnr_y,ssim_y,lpips]'                       # the default, and LPIPS":
        "needs weights from the network; tests/evaluation/test_named.py has the package at work",
    "sr-run 'trainer.metrics=[psnr,dists,niqe]' checkpoint.best_metric=valid/niqe   # the lowest NIQE is the best":
        "needs weights from the network",
    "sr-eval edsr-x2-3f9a12c40b1e data=sample metrics=lpips,niqe": "needs weights from the network",
    "PSNR (RGB)    bicubic     edsr x2      gain": "output",
    "chelsea        33.82       34.72    +0.90 dB": "output",
    "flower         33.69       34.75    +1.06 dB": "output",
    "mean of 2      33.75       34.74    +0.98 dB": "output",
    "job 3 of 8: edsr lr=0.0003 seed=0": "output",
    "job 3 of 8: edsr lr=0.0003 seed=0: finished, PSNR 31.42 dB (+0.87 dB over bicubic), 41 s": "output",
}  # fmt: skip

SUBSTITUTED = {
    r"\[[^]]*\.\.\.\]|\[NAME\]|\[options\]|,FOLDER\.\.\.": "",  # what may be left out
    r"(?<= )\.\.\. ": "",
    r"(?<=[A-Z])\.\.\.": "",
    r"\b(\w+-x\d)-3f9a12c40b1e": r"{\1}",
    r"^sr-run (.*)<TAB>$":
        r"""test "$(COMP_LINE='sr-run \1' sr-run -sc query=bash)" = 'model=edsr model=edsr_large'""",
    r"<[^>]*>": "{edsr-x2}",
    r"\b(NAME|RUN|MODEL|A|NEW)\b": "{edsr-x2}",
    r"\b(B|OLD)\b(?!:)": "{edsr-x2}/step-3",
    r"\bIMAGE-OR-FOLDER\b": "photos",
    r"(?<=data=)FOLDER\b": "photos",
    r"(?<=output=)FOLDER\b": "large",
    r"\bFILE\b": "weights.safetensors",
    r"\bTO\b": "copies",
    r"\bDIR\b": "my_conf",
    r"http://(mlflow|host):5000": "{server}",
    r"(?<=[=\[ ])/(?=data/|a/|b\b)": "",
    r"\bURI\b": "{server}",
    r"device=cuda": "device=cpu",
    r"(?<=lpips\.LPIPS, )": "pnet_rand: true, ",
    r"n_trials=(40|27)": "n_trials=4",
    r"(trainer\.steps=\d+)00\b": r"\g<1>0",
}  # fmt: skip
"""What stands for something else, and what would take long. `{edsr-x2}` is a run of the fixture's, as are these."""

NETWORK = [word for word in TINY if word.startswith("model.")]
OTHERS = [word for word in TINY if not word.startswith("model.")]
_AS_IT_IS = r"--help|--hydra-help|-sc |<TAB>|trainer\.resume=(?!true)"
APPENDED = (
    # Lines, what they must not have, what is appended unless its key is given.
    (r"sr-run\b", _AS_IT_IS, [*OTHERS, "trainer.eval_every=100"]),
    (r"sr-run\b", rf"{_AS_IT_IS}|mine\.Net|model=net|=night|spandrel|swinir_light", NETWORK),
    (r"objective=srgan", "never", ["objective.losses.content.vgg_seed=0", "objective.discriminator.num_filters=4"]),
    (r"python -m sr_runner", "never", ["--version"]),
)  # fmt: skip

TRAINED = {
    "edsr-x2": NETWORK,
    "edsr-x4": ["scale=4", *NETWORK],
    "net-x2": ["model._target_=mine.Net", "+model.width=16"],
    "srresnet-x4": ["scale=4", "model=srresnet", "objective=mse", "data.patch_size=96", *NETWORK],
    "in mlflow": ["seed=8", "checkpoint=mlflow", "tracker.uri={server}", *NETWORK],
}
"""The runs that pages name, and one for `sr-ckpt ls checkpoint=mlflow`."""

_SECONDS = 900


def substituted(line: str, names: Mapping[str, str]) -> str:
    for pattern, by in SUBSTITUTED.items():
        line = re.sub(pattern, by, line)
    return re.sub("|".join(f"{{{name}}}" for name in names), lambda found: names[found[0][1:-1]], line)


def parts_of_ones_own(folder: Path) -> None:
    """`mine.py` and the like and `my_conf/`, as README.md and docs/parts.md show them."""
    pages = README + (ROOT / "docs" / "parts.md").read_text(encoding="utf-8")
    code = re.findall(r"(?s)`(\w+\.py)` in the current folder:\n\n```python\n(.*?)```", pages)
    for name, text in code + re.findall(r"(?s)`(my_conf/[\w/]+\.yaml)`(?:(?!```).)*```yaml\n(.*?)```", pages):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


class Place:
    """A folder with all that the pages take as there, and the servers."""

    def __init__(self, folder: Path, run_server: RunServer) -> None:
        self.folder, self._run_server = folder, run_server
        for name in ("s3", "mlflow"):
            (folder / "servers" / name).mkdir(parents=True)
        self.names: dict[str, str] = {}
        parts_of_ones_own(folder)
        self._images()

    @contextmanager
    def served(self) -> Iterator[None]:
        """With an S3 server that has `bucket`, and an MLflow server."""
        s3 = S3Server(self.folder / "servers" / "s3")
        s3.start()
        mlflow = MlflowArtifactServer(self.folder / "servers" / "mlflow")
        try:
            s3.make_bucket()
            mlflow.start()
            os.environ |= s3.environment()
            self.names["server"] = mlflow.uri
            yield
        finally:
            for name in s3.environment():
                os.environ.pop(name, None)
            mlflow.kill()
            s3.kill()

    def train(self) -> None:
        """The runs and the weights that pages name."""
        for name, words in TRAINED.items():
            # A seed that no page has: what a name means does not change with the commands that have run.
            words = [*OTHERS, "seed=7", *(substituted(word, self.names) for word in words)]
            status, said = self._fork(words)
            assert status == 0, said
            newest = max((self.folder / "outputs/runs").iterdir(), key=lambda path: path.stat().st_mtime)
            self.names[name] = newest.name
        self._weights()

    def run(self, line: str) -> str:
        """What went wrong, nothing where the status is 0."""
        text, bare, words = substituted(line, self.names), line.partition("  #")[0], {}
        for pattern, without, appended in APPENDED:
            if re.search(pattern, bare) and not re.search(without, bare):
                words |= {word.partition("=")[0]: word for word in appended}
        more = " ".join(word for key, word in words.items() if f"{key}=" not in bare)
        # Functions of the commands' names append: the line itself stays as it is, with its comments, pipes and quotes.
        functions = "".join(f'{tool}() {{ command {tool} "$@" {more}; }}\n' for tool in (*TOOLS, "torchrun", "python"))
        began = time.monotonic()
        if re.match(r"sr-run\b[^|&]*$", text.partition("  #")[0]):
            done = self.start(["bash", "-c", f"sr-run() {{ printf '%s\\0' \"$@\" {more}; }}\n{text}"])
            status, said = done.returncode, done.stderr
            if status == 0:
                status, said = self._fork(done.stdout.split("\0")[:-1])
        else:
            done = self.start(["bash", "-c", functions + text])
            status, said = done.returncode, done.stdout + done.stderr
        print(f"{time.monotonic() - began:6.1f} s  {text}  {more}")
        return "" if status == 0 else f"{line}\n  as {text} {more}\n{status}: {said}"

    def _fork(self, words: list[str]) -> tuple[int | None, str]:
        output, errors = (self.folder / "servers" / name for name in ("output", "errors"))
        for stream in (output, errors):
            stream.unlink(missing_ok=True)
        status = self._run_server.start(words, self.folder, output, errors).wait(_SECONDS)
        return status, output.read_text() + errors.read_text()

    def start(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        variables = environment() | {"PATH": path}
        process = subprocess.Popen(
            words, cwd=self.folder, env=variables, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            said = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said = process.communicate()
            return subprocess.CompletedProcess(words, -signal.SIGKILL, said[0], f"{said[1]}\nafter {_SECONDS} s")
        return subprocess.CompletedProcess(words, process.returncode, *said)

    def _weights(self) -> None:
        edsr = sr_runner.load_model(self.folder / "outputs/checkpoints" / self.names["edsr-x4"])
        for name, layout in (("a.pt", "edsr-pytorch"), ("b.pth", "basicsr"), ("EDSR_x4.pt", "edsr-pytorch")):
            export(edsr, self.folder / name, layout)
        shutil.copy(self.folder / "EDSR_x4.pt", self.folder / "EDSR_baseline_x4.pt")
        export(edsr, self.folder / "model.safetensors")
        export(MSRResNet(scale=4, num_filters=8, num_res_blocks=1), self.folder / "model.pth", "basicsr")
        small = {
            "img_size": 32, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "window_size": 8,
            "upsampler": "pixelshuffle",
        }  # fmt: skip
        swin = spandrel_network(scale=4, architecture="SwinIR", arguments=small)
        torch.save({"params": swin.network.state_dict()}, self.folder / "SwinIR_x4.pth")

    def _images(self) -> None:
        coarse = np.random.default_rng(0).integers(0, 256, (13, 13, 3), dtype=np.uint8)
        hr = np.asarray(Image.fromarray(coarse).resize((104, 104), Image.Resampling.BICUBIC))
        for name in ("photograph.png", "photo.jpg", "scan.tif"):
            Image.fromarray(hr).save(self.folder / name)

        def images(folder: str, names: list[str], scale: int = 1) -> None:
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
            first = self.folder / folder / names[0]
            Image.fromarray(hr if scale == 1 else imresize_uint8(hr, 1 / scale)).save(first)
            for name in names[1:]:
                (self.folder / folder / name).hardlink_to(first)

        five = [f"{number}.png" for number in range(5)]
        for folder in ("photos", "more_photos", "HR", "HRv", "a/1/HR", "benchmark/Set5/HR", "benchmark/B100/HR"):
            images(folder, five)
        images("b", [f"{number}.png" for number in range(100)])
        for folder in ("LR", "LRv"):
            images(folder, five, scale=2)
        for name in ("Set5", "B100"):
            images(f"benchmark/{name}/LR_bicubic/X4", [f"{number}x4.png" for number in range(5)], scale=4)
        images("mixed", [f"{number}_HR.png" for number in range(5)])
        images("mixed", [f"{number}_LR.png" for number in range(5)], scale=2)
        images("benchmark/DIV2K/DIV2K_valid_HR", ["0801.png"])
        images("benchmark/DIV2K/DIV2K_valid_LR_bicubic/X4", ["0801x4.png"], scale=4)
        for root, track in (("outputs/div2k", "bicubic"), ("data/DIV2K", "unknown")):
            for part, numbers in (("train", range(1, 801)), ("valid", range(801, 901))):
                images(f"{root}/DIV2K_{part}_HR", [f"{number:04}.png" for number in numbers])
                images(f"{root}/DIV2K_{part}_LR_{track}/X4", [f"{number:04}x4.png" for number in numbers], scale=4)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, run_server: RunServer) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("printed"), run_server)
    with made.served():
        made.train()
        yield made


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("where", PLACES)
def test_the_commands_run_as_they_are_printed(where: str, place: Place) -> None:
    if failed := [said for line in printed()[where] if line not in NOT_RUN and (said := place.run(line))]:
        pytest.fail("\n\n".join(failed), pytrace=False)


@pytest.mark.slow
def test_the_python_of_docs_parts_runs_as_it_is_printed(place: Place) -> None:
    """That of README.md is run by `tests/test_python.py`."""
    blocks = re.findall(r"(?s)```python\n(.*?)```", (ROOT / "docs/parts.md").read_text(encoding="utf-8"))
    assert blocks
    for block in blocks:
        code = re.sub(r"\b(\w+-x\d)-3f9a12c40b1e", lambda found: place.names[found[1]], block)
        code = code.replace('"trainer.steps=100"', ", ".join(repr(word) for word in [*OTHERS, *NETWORK]))
        done = place.start([sys.executable, "-c", code])
        assert done.returncode == 0, done.stderr


COMPOSED = [
    line for line in LINES
    if line not in NOT_RUN and re.match(r"sr-run\b(?!.*(--help|--hydra-help|-sc|<TAB>))", line.partition("  #")[0])
]  # fmt: skip


@pytest.mark.parametrize("line", COMPOSED)
def test_a_command_composes(
    line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    parts_of_ones_own(tmp_path)
    names = {name: f"{name}-3f9a12c40b1e" for name in ("edsr-x2", "edsr-x4", "srresnet-x4", "net-x2")}
    files.begin(tmp_path / "outputs/runs" / names["edsr-x2"] / "a0001-cafe", {}, "", {"request": {"overrides": []}})
    words = shlex.split(substituted(line, names | {"server": "http://host"}), comments=True)[1:]
    words = [word for word in words if word not in ("-m", "--json", "--cfg", "job")]
    # The first job of a sweep; launchers are plugins that need not be there.
    words = [re.sub(r"^([\w.]+=[^,\[{'\"]*),.*", r"\1", word) for word in words if "hydra" not in word]
    words = [word for word in words if not re.match(r"[\w.]+=(tag|range|interval|int)\(", word)]
    assert main([*words, "--cfg", "job"]) == 0, capsys.readouterr().err


def test_what_is_not_run_or_is_substituted_is_still_printed() -> None:
    assert [line for line in NOT_RUN if line not in LINES] == []
    run = [line for line in LINES if line not in NOT_RUN]
    assert [each for each in SUBSTITUTED if not any(re.search(each, line) for line in run)] == []
    assert [each for each, *_ in APPENDED if not any(re.search(each, line) for line in run)] == []
