"""The page behind `sr-run --help`. Reads the config tree's own comments and imports nothing heavy."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

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


def page(conf: Path) -> str:
    """The help page for the config tree in `conf`."""
    groups = "\n".join(_group(conf, name, what) for name, what in _GROUPS.items() if (conf / name).is_dir())
    keys = "\n".join(_keys(conf / "trainer" / "default.yaml", "trainer"))
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
  sr-run trainer.resume=RUN trainer.allow_changes=true optimizer.lr=1e-4     fork a run under other settings
  sr-run -m model=edsr,wdsr_b optimizer.lr=1e-4,3e-4
  sr-run +experiment=edsr_x4 data=div2k          a paper's recipe

Groups
{groups}

Keys that every run has
  scale                       2, 3, 4 or 8, where model and data allow it
  seed                        everything random follows from it
  outputs                     folder for all that a run writes
{keys}
  data.batch_size, data.patch_size (HR pixels), data.train, data.valid, data.workers, data.valid_images
  optimizer.lr, model.num_filters, model.num_res_blocks, model.res_block_scaling
  checkpoint.root, checkpoint.every, checkpoint.keep_last, checkpoint.keep_best, checkpoint.init_from
  tracker.uri, tracker.experiment, tracker.run_name

More
  sr-run ... --cfg job        print the composed config and exit
  sr-run --config-dir DIR     add your own configs: DIR/model/mine.yaml is model=mine
  sr-run --hydra-help         the options of Hydra itself
Exit status: 0 finished, 2 the request was wrong, 1 it failed, 128+N stopped by signal N after a checkpoint."""


def _group(conf: Path, name: str, what: str) -> str:
    options = sorted((conf / name).glob("*.yaml"))
    width = max((len(option.stem) for option in options), default=0)
    lines = [f"  {name}  ({what}{f'; default {default}' if (default := _default(conf, name)) else ''})"]
    for option in options:
        comment = _first_comment(option)
        if name == "experiment":  # the command that an experiment begins with says its name again
            comment = comment.partition(" -- ")[2] or comment
        comment = textwrap.shorten(comment, 118 - width - 6, placeholder=" ...")
        lines.append(f"    {option.stem:<{width}}  {comment}".rstrip())
    return "\n".join(lines)


def _default(conf: Path, group: str) -> str:
    found = re.search(rf"^\s*- {group}: (\S+)", (conf / "config.yaml").read_text(), re.MULTILINE)
    return found[1] if found and found[1] != "null" else ""


def _first_comment(path: Path) -> str:
    """The first comment of a config; an experiment's begins with its command, which is told apart by `sr-run`."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            text = line.lstrip("# ").strip() if line.startswith("#") else ""
            if text and not text.startswith("@package"):
                return text
    return ""


def _keys(path: Path, prefix: str) -> list[str]:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.match(r"(\w+): ([^#]*?)\s*(?:# (.*))?$", line)
        if match:
            lines.append(f"  {f'{prefix}.{match[1]}={match[2]}':<26}  {match[3] or ''}".rstrip())
    return lines
