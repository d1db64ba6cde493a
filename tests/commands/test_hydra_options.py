"""Hydra's options and keys, and what each does here: each row of the tables of docs/command_line.md is tried."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import reduce
from importlib.metadata import version
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf
from support import TINY, environment

from sr_runner.commands.run import main

ROOT = Path(__file__).resolve().parents[2]
RUN = (*TINY, "trainer.steps=1", "trainer.log_every=1", "trainer.eval_every=1", "trainer.pictures=0", "tracker=none")

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(tmp_path: Path, image_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """`ask("--option", "key=value", ...)` in `tmp_path`: exit status, standard output and standard error of `main`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    own = tmp_path / "own"
    (own / "model").mkdir(parents=True)
    (own / "model" / "mine.yaml").write_text("_target_: own.Net\nscale: ${scale}\n")
    (own / "short.yaml").write_text("defaults:\n  - config\n  - _self_\ntrainer:\n  steps: 7\n")
    (own / "swept.yaml").write_text(
        "defaults:\n  - config\n  - _self_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 1,2\n"
    )

    def call(*arguments: str) -> tuple[int, str, str]:
        cache = [f"data.cache_dir={image_cache}"] if "trainer.steps=1" in arguments else []
        status = main([*arguments, *cache])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return status, said.out, said.err

    return call


PRINTED = {
    "--cfg job": ["steps: 800", "_target_: sr_runner.models.EDSR", "scale: ${scale}"],
    "-c job seed=3": ["seed: 3"],
    "--cfg hydra": ["hydra:", "name: sr-run", "output_subdir: null"],
    "--cfg all": ["hydra:", "steps: 800"],
    "--cfg job --resolve seed=3 scale=4": ["data:", "  scale: 4", "  seed: 3"],
    "--cfg hydra --resolve": ["name: sr-run"],
    "--cfg job --package trainer": ["# @package trainer", "steps: 800"],
    "-c job -p trainer.steps": ["800"],
    "-c job -p checkpoint.keep_every": ["null"],
    "-c job -p trainer.compile": ["false"],
    "--config-dir own model=mine --cfg job": ["own.Net"],
    "-cd own model=mine --cfg job": ["own.Net"],
    "hydra.searchpath=[file://own] model=mine --cfg job": ["own.Net"],
    "-cd own --config-name short --cfg job": ["steps: 7"],
    "-cd own -cn short --cfg job": ["steps: 7"],
    f"--config-path {ROOT / 'conf'} --cfg job": ["steps: 800"],
    f"-cp {ROOT / 'conf'} --cfg job": ["steps: 800"],
    "--info": ["Config search path", "Defaults List", "Installed Hydra Plugins"],
    "-i config": ["Defaults List", "steps: 800"],
    "--info defaults": ["Defaults List", "model/edsr"],
    "--info defaults-tree": ["Defaults Tree", "model: edsr"],
    "--info plugins": ["Installed Hydra Plugins", "BasicLauncher"],
    "-cd own --info searchpath": ["Config search path", "own"],
    "--hydra-help": ["hydra.cc", "hydra/launcher", "--config-name"],
    "data/degradation=bicubic --cfg job -p data.degradation": ["bicubic"],
    "--help": ["sr-run -m", "Exit status"],
    "-h": ["sr-run -m", "Exit status"],
    "--shell-completion install=bash": ["hydra_bash_completion", "complete"],
    "-sc install=zsh": ["hydra_bash_completion"],
    "-sc install=fish": ["hydra_fish_completion"],
    "-sc uninstall=bash": ["unset hydra_bash_completion"],
}


def test_a_printed_config_shows_what_the_named_class_takes_and_nothing_else(ask: Ask) -> None:
    sgd = "optimizer._target_=torch.optim.SGD"
    for resolved in ([], ["--resolve"]):
        for cfg, package in (("job", "optimizer"), ("all", "optimizer")):
            shown = yaml.safe_load(ask(sgd, "optimizer.lr=0.02", "--cfg", cfg, "-p", package, *resolved)[1])
            assert shown.keys() == {"lr", "weight_decay", "_target_", "fused"} and shown["fused"] is None
    assert ask(sgd, "optimizer.eps=1", "-c", "job", "-p", "optimizer.eps")[1] == "1\n"  # given: a run refuses it
    status, _, err = ask("model._target_=no.Such", "--cfg", "job")
    assert status == 2 and "model._target_=no.Such: there is no module 'no'" in err


@pytest.mark.parametrize("line", PRINTED, ids=lambda line: line.replace(str(ROOT), ""))
def test_an_option_that_prints_prints_what_hydra_says_and_nothing_is_run(line: str, ask: Ask, tmp_path: Path) -> None:
    status, out, err = ask(*line.split())
    assert status == 0 and err == ""
    assert all(words in out for words in PRINTED[line]), out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own"]


REFUSED = {
    "scheduler=null --cfg job": ["scheduler=null", "constant"],
    "model=edsrr --cfg job": ["model=edsrr", "Did you mean 'edsr'?"],
    "trainer.stps=1 --info config": ["trainer.stps", "Did you mean 'trainer.steps'?"],
    "trainer.steps=0 --cfg hydra": ["trainer.steps=0", "at least 1"],
    "--cfg nonsense": ["--cfg", "nonsense", "job"],
    "--cfg": ["--cfg", "expected one argument"],
    "--info nonsense": ["--info", "nonsense", "searchpath"],
    "--cfg job --package trainr": ["--package trainr", "no such key"],
    "--cfg job --package ..model": ["--package ..model", "no such key"],
    "--cfg job --package optimizer.betas.x": ["--package optimizer.betas.x", "no such key"],
    "--cfg job --package scale.x": ["--package scale.x", "no such key"],
    "--package trainer": ["--package", "--cfg"],
    "--resolve": ["--resolve", "--cfg"],
    "--run --multirun": ["only one of"],
    "--multirun --cfg job": ["only one of"],
    "--config-name nope": ["--config-name nope", "no such config", "config"],
    "--config-name /etc/passwd": ["--config-name /etc/passwd", "no such config", "Configs: config"],
    "--config-name model/edsr": ["--config-name model/edsr", "expected a config with `config` in its defaults list"],
    "hydra.job.env_set={A:b}": ["hydra.job.env_set={A:b}", "no key A", "+hydra.job.env_set.A"],
    "hydra.job.env_set.A=b": ["hydra.job.env_set.A=b", "no key A", "+hydra.job.env_set.A"],
    "hydra.callbacks.mine._target_=a.B": ["hydra.callbacks.mine._target_=a.B", "+hydra.callbacks.mine"],
    "--config-dir nope": ["--config-dir nope", "no such folder"],
    "-cd own -cd own": ["--config-dir", "once"],
    "--config-path nope": ["--config-path nope", "no such folder"],
    "--config-path own": ["--config-name config", "no such config", "short"],
    "--experimental-rerun config.pickle": ["--experimental-rerun config.pickle", "trainer.resume=RUN"],
    "--shell-completion": ["--shell-completion", "install=SHELL"],
    "-sc install=tcsh": ["install=tcsh", "bash, fish, zsh"],
    "--hydra-help seed=1": ["--hydra-help", "no overrides"],
    "--nonsense": ["--nonsense", "no such option"],
    "--config-name=": ["--config-name", "not an empty one"],
    "--json --cfg job": ["--json", "expected a run"],
    "--json --info": ["--json", "expected a run"],
    "~optimizer.lr": ["~optimizer.lr", "scheduler.max_lr", "expected optimizer.lr to stay"],
    "hydra.mode=FOO": ["hydra.mode=FOO", "expected RUN or MULTIRUN"],
    "hydra.run=null": ["hydra.run=null", "expected a mapping"],
    "hydra.run.dir=null": ["hydra.run.dir=null", "expected text"],
    "hydra.run.dir=${nope}": ["hydra.run.dir", "'nope' not found"],
    "hydra.run.dir=${oc.env:NOPE} --cfg job": ["hydra.run.dir", "'NOPE' not found"],
    "hydra.run.dir=${hydra.job.num}": ["hydra.run.dir", "expected a value"],
    "hydra.run.dir=there hydra.job.name=a/b hydra/job_logging=default": ["Unable to configure handler 'file'"],
    "-m seed=1,2 hydra.sweep.subdir=same": ["hydra.sweep.subdir=same", "a folder for each job"],
    "hydra.runtime.cwd=/": ["hydra.runtime.cwd=/", "expected to be left to Hydra"],
    "-m model=glob(zzz*)": ["model=glob(zzz*)", "fits no option", "edsr"],
    "optimizer=sgd optimizer.betas=[0.9,0.99]": ["optimizer.betas", "optimizer=adam or", "has it"],
    "--config-name ../config": ["--config-name ../config", "no such config"],
    "hydra.callbacks=null": ["hydra.callbacks=null", "expected a mapping"],
    "hydra.job.env_copy=5": ["hydra.job.env_copy=5", "expected a list"],
    "hydra.sweep=[1]": ["hydra.sweep=[1]", "expected a mapping"],
    "hydra.verbose=5": ["hydra.verbose=5", "expected true, false"],
    "hydra.verbose=null": ["hydra.verbose=null", "expected true, false"],
    "hydra.searchpath=null": ["hydra.searchpath=null", "expected file:///folder"],
    "-m hydra.sweeper.max_batch_size=0 seed=1": ["hydra.sweeper.max_batch_size=0", "at least 1"],
    "hydra.sweeper=null": ["hydra.sweeper._target_=null", "expected hydra/sweeper=OPTION", "basic"],
    "-m hydra.launcher=null seed=1": ["hydra.launcher._target_=null", "expected hydra/launcher=OPTION", "basic"],
    "-m hydra.sweeper._target_=sys.exit seed=1": ["hydra.sweeper._target_=sys.exit", "basic"],
    "hydra.output_subdir=/proc/x": ["hydra.output_subdir=/proc/x", "expected the name of a folder"],
    "-m hydra.output_subdir=../x seed=1": ["hydra.output_subdir=../x", "expected the name of a folder"],
    "hydra.job.env_copy=[NOPE]": ["hydra.job.env_copy", "no variable 'NOPE'"],
    "hydra.sweeper.params={seed:1}": ["hydra.sweeper.params={seed:1}", "expected in a config file", "-m"],
    "+hydra.sweeper.params.seed=1": ["+hydra.sweeper.params.seed=1", "expected in a config file"],
    "~hydra": ["~hydra", "expected hydra to stay"],
    "+scheduler=constant": ["+scheduler=constant", "expected scheduler=constant"],
    "optimizer._target_=torch.optim.SGD optimizer.momentum=0.9": ["torch.optim.SGD", "+optimizer.momentum=0.9"],
    "hydra.searchpath=[pkg://nope]": ["hydra.searchpath=pkg://nope", "expected one that can be imported"],
    "--config-path pkg://nope": ["--config-path pkg://nope", "no such package"],
    "-m hydra.sweep.subdir=../x seed=1": ["hydra.sweep.subdir=../x", "expected the name of a folder"],
    "hydra.output_subdir=own/short.yaml": ["hydra.output_subdir=own/short.yaml", "nothing can be written"],
    "hydra.nonsense=1": ["hydra.nonsense", "there is no key"],
    "hydra.job.chdir=abc": ["hydra.job.chdir=abc", "true or false"],
    "hydra.callbacks.masking._target_=no.Such": ["hydra.callbacks.masking", "expected to be there"],
    "~hydra.callbacks.masking hydra.output_subdir=.hydra": ["hydra.callbacks.masking", "expected to be there"],
    "hydra.run.dir=/proc/nope": ["hydra.run.dir=/proc/nope", "nothing can be written"],
    "-m hydra.sweep.dir=/proc/nope seed=1": ["hydra.sweep.dir=/proc/nope", "nothing can be written"],
    "-m hydra/launcher=nonsense seed=1": ["hydra/launcher=nonsense", "basic"],
    "+hydra.callbacks.mine._target_=no.Such": ["no.Such", "expected a class that can be imported"],
    "+hydra.callbacks.mine=1": ["hydra.callbacks.mine._target_=null", "expected a class"],
    "+hydra.callbacks.mine._target_=sys.exit": ["hydra.callbacks.mine._target_=sys.exit", "expected a class"],
}
# What test_run_dir_... and test_a_sweep_... show, and that sr-run's own tests do.
RUNS = "--run --multirun -m --json --version"


def table(title: str) -> dict[str, list[str]]:
    """The table below that title of docs/command_line.md: what stands in `...` in the first cell of a row -> cells."""
    page = (ROOT / "docs" / "command_line.md").read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    return {name: row for row in rows for name in re.findall(r"`([^`]+)`", row[0])}


def test_the_table_of_options_has_all_options_of_hydra_and_each_is_tried() -> None:
    listed = {name for name in table("Options") if name.startswith("-")}
    theirs = {name for action in get_args_parser()._actions for name in action.option_strings}
    assert listed == theirs | {"--json", "--version"}
    tried = {word.partition("=")[0] for line in (*PRINTED, *REFUSED, RUNS) for word in line.split()}
    assert listed - tried == {"-r"}  # as --run


KEYS: dict[str, object] = {
    "hydra.mode": "MULTIRUN", "hydra.run.dir": "there", "hydra.verbose": ["PIL"], "hydra.searchpath": ["file://own"],
    "hydra.sweep.dir": "swept", "hydra.sweep.subdir": "job ${hydra.job.num}", "hydra.job.chdir": True,
    "hydra.output_subdir": ".hydra", "hydra.job.name": "mine", "hydra.job.env_set": {"A": "b"},
    "hydra.job.env_copy": ["HOME"], "hydra.callbacks": {"mine": {"_target_": "hydra.experimental.callback.Callback"}},
    "hydra.sweeper.params": {"seed": "1,2"}, "hydra/sweeper": "basic", "hydra/launcher": "submitit_local",
    "hydra/job_logging": "default", "hydra/hydra_logging": "default",
}  # fmt: skip


def test_the_table_of_keys_has_their_defaults_and_each_takes_another_value(ask: Ask) -> None:
    rows = table("Hydra's keys")
    assert rows.keys() == KEYS.keys()

    def composed(*overrides: str) -> dict[str, Any]:
        config = yaml.safe_load(ask(*overrides, "--cfg", "hydra")[1])["hydra"]
        paths = {key: ["runtime", "choices", key] if "/" in key else key.split(".")[1:] for key in KEYS}
        return {key: reduce(getitem, path, config) for key, path in paths.items()}

    defaults = composed()
    assert [*defaults.pop("hydra.callbacks")] == [rows.pop("hydra.callbacks")[1].strip("`")]
    assert defaults == {key: yaml.safe_load(default.strip("`")) for key, (_, default, _) in rows.items()}

    in_file = ["hydra.mode", "hydra.sweeper.params"]  # own/swept.yaml
    given = [f"{'' if '/' in key else '++'}{key}={value}" for key, value in KEYS.items() if key not in in_file]
    values = composed("-cd", "own", "-cn", "swept", *(each.replace("'", "") for each in given))
    values["hydra.callbacks"].pop("masking")  # stays beside it
    assert values["hydra.job.env_set"].pop("HOME") == os.environ["HOME"]  # by env_copy
    assert values == KEYS


@pytest.mark.parametrize("line", REFUSED)
def test_a_wrong_use_of_an_option_is_one_sentence_and_status_2(line: str, ask: Ask, tmp_path: Path) -> None:
    status, out, err = ask(*line.split())
    assert status == 2 and out == "" and len(err.splitlines()) == 1, err
    assert all(words in err for words in REFUSED[line]), err
    assert not (tmp_path / "outputs" / "runs").exists()


def test_version_is_that_of_sr_run_torch_hydra_and_mlflow_and_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from sr_runner.commands.run import main; status = main(['--version']);"
        "heavy = {'torch', 'hydra', 'mlflow', 'omegaconf'} & set(sys.modules);"
        "sys.exit(status or str(heavy or '') or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [f"{name} {version(name)}" in done.stdout for name in ("torch", "hydra-core", "mlflow")] == [True] * 3


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sr-run model=ed", "model=edsr model=edsr_large"),
        ("sr-run trainer.resu", "trainer.resume="),
        ("sr-run -m schedu", "scheduler. scheduler="),
        ("sr-run trainer.stps=1 trainer.resu", ""),
    ],
)
def test_a_shell_is_told_how_a_word_can_go_on(
    line: str, expected: str, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    status, out, err = ask("-sc", "query=bash")
    assert (status, out.strip(), err) == (0, expected, "")


RECORDER = """
from pathlib import Path
from hydra.experimental.callback import Callback
class Recorder(Callback):
    def __init__(self, to): self.to = Path(to).absolute()
    def note(self, what):
        with self.to.open("a") as file: file.write(what + "\\n")
    def on_run_start(self, config, **_): self.note("run_start")
    def on_run_end(self, config, **_): self.note("run_end")
    def on_multirun_start(self, config, **_): self.note("multirun_start")
    def on_multirun_end(self, config, **_): self.note("multirun_end")
    def on_job_start(self, config, **_): self.note("job_start")
    def on_job_end(self, config, job_return, **_): self.note(f"job_end {job_return.status.name}")
"""


def test_a_callback_that_is_not_there_is_one_sentence_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Hydra's own search logs what it does not find, unless something else has silenced it."""
    command = [sys.executable, "-m", "sr_runner.commands.run", "+hydra.callbacks.mine._target_=no.Such", "--cfg", "job"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr


def test_a_single_run_leaves_nothing_of_hydras_and_logs_debug_messages_where_that_is_asked(
    ask: Ask, tmp_path: Path
) -> None:
    status, out, _ = ask("--run", *RUN, "trainer.parameters={*.bias: {weight_decay: 0}}", "hydra.verbose=true")
    assert status == 0 and "Identity" in out
    (log,) = (tmp_path / "outputs" / "runs").glob("*/*/run.log")
    assert re.search(r"DEBUG +sr_runner\.objectives\.parameter_groups: \S+\.bias: ", log.read_text())
    assert logging.DEBUG not in (logging.getLogger().level, logging.getLogger("sr_runner").level)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs", "own"]
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["checkpoints", "runs"]


def test_run_dir_chdir_output_subdir_env_set_and_callbacks_do_what_hydra_says(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "recorder_of_one.py").write_text(RECORDER)
    (tmp_path / "net_that_looks.py").write_text(
        "import logging, os, pathlib, torch\n"
        "class Net(torch.nn.Sequential):\n"
        "    def __init__(self, scale):\n"
        "        pathlib.Path(os.environ['SEEN']).write_text(f'{os.getcwd()} {logging.getLogger(\"looked\").level}')\n"
        "        super().__init__(torch.nn.Conv2d(3, 3 * scale ** 2, 3, padding=1), torch.nn.PixelShuffle(scale))\n"
    )
    run = [argument for argument in RUN if not argument.startswith("model.")]
    hydra = (
        "hydra.run.dir=${hydra.job.name}", "hydra.job.name=there", "hydra.verbose=[looked]", "hydra.job.chdir=true",
        "hydra/job_logging=default", "hydra.output_subdir=.hydra", "+hydra.job.env_set.SEEN=seen.txt",
        "+hydra.callbacks.mine._target_=recorder_of_one.Recorder", "+hydra.callbacks.mine.to=callbacks.txt",
    )  # fmt: skip
    assert ask(*run, "model._target_=net_that_looks.Net", "+tracker.password=hunter2", *hydra)[0] == 0
    assert Path.cwd() == tmp_path and "SEEN" not in os.environ
    assert logging.getLogger("looked").level == logging.NOTSET
    assert (tmp_path / "there" / "seen.txt").read_text() == f"{tmp_path / 'there'} {logging.DEBUG}"
    assert (tmp_path / "there" / "there.log").exists()
    record = tmp_path / "there" / ".hydra"
    assert sorted(path.name for path in record.iterdir()) == ["config.yaml", "hydra.yaml", "overrides.yaml"]
    assert OmegaConf.load(record / "config.yaml").trainer.steps == 1
    assert "hunter2" not in "".join(path.read_text() for path in record.iterdir())
    assert len(list((tmp_path / "outputs" / "runs").glob("*/a0001-*"))) == 1, "outputs follows the current folder"
    said = (tmp_path / "callbacks.txt").read_text().split("\n")
    assert said[:-1] == ["run_start", "job_start", "job_end COMPLETED", "run_end"]


def test_a_callback_sees_that_a_run_failed_and_the_message_stays_one_sentence(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "recorder_of_failures.py").write_text(RECORDER)
    mine = ("+hydra.callbacks.mine._target_=recorder_of_failures.Recorder", "+hydra.callbacks.mine.to=callbacks.txt")
    status, _, err = ask(*RUN, "checkpoint.init_from=nosuchrun", *mine)
    assert status == 2 and "no such run" in err and len(err.splitlines()) == 1
    assert "job_end FAILED" in (tmp_path / "callbacks.txt").read_text()


@pytest.mark.parametrize(
    ("asked", "second"),
    [
        (("-m", "objective=glob([l1,mse*])"), "objective=mse"),
        pytest.param(("hydra.mode=MULTIRUN", "seed=1,2"), "seed=2", marks=pytest.mark.slow),
        (("-cd", "own", "-cn", "swept"), "seed=2"),
    ],
    ids=["option, of all options that fit a pattern", "mode", "params"],
)
def test_a_sweep_runs_by_option_by_mode_and_by_the_sweepers_params_in_the_folders_that_hydra_is_given(
    asked: tuple[str, ...], second: str, ask: Ask, tmp_path: Path
) -> None:
    (tmp_path / "recorder_of_sweeps.py").write_text(RECORDER)
    hydra = (
        "hydra.sweep.dir=swept here", "hydra.sweep.subdir=job ${hydra.job.num}", "hydra.output_subdir=.hydra",
        "+hydra.callbacks.mine._target_=recorder_of_sweeps.Recorder", "+hydra.callbacks.mine.to=callbacks.txt",
    )  # fmt: skip
    status, out, err = ask(*asked, *RUN, *hydra)
    assert status == 0 and "2 of 2 jobs finished" in out, err
    folder = tmp_path / "swept here"
    assert sorted(path.name for path in folder.iterdir()) == [
        "job 0", "job 1", "multirun.yaml", "sweep.csv", "sweep.html", "sweep.json", "sweep.lock",
    ]  # fmt: skip
    assert sorted(path.name for path in (folder / "job 1").iterdir()) == [".hydra", "job.json", "job.log"]
    assert second in json.loads((folder / "job 1" / "job.json").read_text())["overrides"]
    said = (tmp_path / "callbacks.txt").read_text().split("\n")
    assert said[:-1] == ["multirun_start", *2 * ["job_start", "job_end COMPLETED"], "multirun_end"]
    assert len(list((tmp_path / "outputs" / "runs").glob("*/a0001-*"))) == 2
