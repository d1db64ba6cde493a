"""The page behind `sr-run --help`: comments of the config tree, docstrings of the settings. Imports nothing heavy."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from sr_runner.commands.arguments import options_help
from sr_runner.config.settings import CheckpointSettings, RunSettings, SweepSettings, TermSettings, TrainerSettings

_GROUPS = {
    "model": "the network",
    "objective": "what a train step minimises",
    "optimizer": "torch.optim",
    "scheduler": "torch.optim.lr_scheduler",
    "data": "images to train and validate on",
    "data/degradation": "LR made from every HR crop anew",
    "checkpoint": "where checkpoints live",
    "tracker": "where the run is recorded",
    "trainer": "the loop",
    "experiment": "whole recipes",
}


def page(conf: Path, own: Path | None = None) -> str:
    """The help page for the config tree in `conf`, and what `own` (`--config-dir`) adds to it."""
    groups = "\n".join(_group(conf, own, name, what) for name, what in _GROUPS.items() if (conf / name).is_dir())
    settings = (
        ("", RunSettings), ("trainer.", TrainerSettings), ("checkpoint.", CheckpointSettings),
        ("sweep.", SweepSettings),
    )  # fmt: skip
    keys = "\n".join(options_help(kind, prefix=prefix, indent=38) for prefix, kind in settings)
    return f"""\
sr-run: train super-resolution networks. Every run is composed from config groups, recorded in MLflow, and can be
killed and resumed without changing a bit of its result.

Usage
  sr-run [group=option ...] [key=value ...]      one run
  sr-run -m [group=a,b ...] [key=x,y ...]        a sweep: one run per combination

Common commands
  sr-run                                         EDSR x2 on photographs that are already here, some minutes on a CPU
  sr-run model=wdsr_b scale=4 data=folder data.train=photos
  sr-run trainer.resume=true                     go on where the newest run of this config stopped
  sr-run trainer.resume=RUN                      go on with exactly that run, as it was started
  sr-run trainer.resume=RUN trainer.steps=2000   make it longer
  sr-run trainer.resume=RUN trainer.allow_changes=true optimizer.lr=1e-5 trainer.steps=2000     fork it
  sr-run -m model=edsr,wdsr_b optimizer.lr=1e-4,3e-4
  sr-run +experiment=edsr_x4 data=div2k          a paper's recipe
Without a recipe, a run is experiment=quick: 800 steps, on any data set. experiment=none takes the defaults below.

Groups
{groups}

Keys that every run has, with their defaults
{keys}

Of each term of the loss, beside the arguments of its class
{options_help(TermSettings, prefix="objective.losses.TERM.", indent=44)}

Common keys of the other groups; sr-run group=option --cfg job -p group prints all of them
  data.batch_size, data.patch_size (HR pixels), data.train, data.valid, data.workers, data.valid_images
  optimizer.lr, model.num_filters, model.num_res_blocks, model.res_block_scaling
  tracker.uri, tracker.experiment, tracker.run_name

More
  sr-run ... --cfg job        print the composed config and exit
  sr-run ... --json           print the outcome of a run or a sweep as JSON instead of the table
  sr-run --config-dir DIR     add your own configs: DIR/model/mine.yaml is model=mine
  sr-run --hydra-help         the options of Hydra itself
Exit status: 0 finished, 2 the request was wrong, 1 it failed, 128+N stopped by signal N after a checkpoint.
"""


def own_folder(args: Sequence[str]) -> Path | None:
    """What `--config-dir` names among the words of a command line."""
    for word, following in zip(args, [*args[1:], ""], strict=True):
        option, _, value = word.partition("=")
        if option in ("--config-dir", "-cd"):
            return Path(value or following)
    return None


def _group(conf: Path, own: Path | None, name: str, what: str) -> str:
    added = [*(own / name).glob("[!_]*.yaml")] if own is not None else []
    options = sorted([*(conf / name).glob("[!_]*.yaml"), *added], key=lambda path: path.stem)
    width = max((len(option.stem) for option in options), default=0)
    lines = [f"  {name}  ({what}{f'; default {default}' if (default := _default(conf, name)) else ''})"]
    for option in options:
        comments = re.findall(r"(?m)^# *(?!@package)(\S.*)", option.read_text(encoding="utf-8", errors="replace"))
        comment = (comments or [""])[0].rpartition(" -- ")[2]  # an experiment's begins with its command
        if option in added:
            comment = f"{comment} [--config-dir]".lstrip()
        comment = textwrap.shorten(comment, 118 - width - 6, placeholder=" ...")
        lines.append(f"    {option.stem:<{width}}  {comment}".rstrip())
    return "\n".join(lines)


def _default(conf: Path, group: str) -> str:
    found = re.search(rf"^\s*- {group}: (\S+)", (conf / "config.yaml").read_text(), re.MULTILINE)
    return found[1] if found and found[1] != "null" else ""
