"""`sr-ckpt`: look at checkpoints, check them, compare, export, thin out and copy them. Any store.

Imports nothing heavy before there is work to do: `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sr_runner.commands.arguments import Verb, names_and_options, take_verb
from sr_runner.commands.console import help_page, run_command
from sr_runner.commands.options import Places
from sr_runner.config.settings import Retention

HELP = """\
sr-ckpt: look at checkpoints, check them, compare, export, thin out and copy them. Any store.

Usage
  sr-ckpt ls [NAME] [key=value ...]        runs, attempts, steps, metric, size, age
  sr-ckpt verify [NAME...]                 check every hash; of a weights file, that it can be read
  sr-ckpt diff A B                         what differs between two checkpoints, in config and tensors
  sr-ckpt export NAME FILE                 write only the weights
  sr-ckpt prune NAME                       thin out an attempt; without delete=true only show what would go
  sr-ckpt cp NAME TO                       copy to another store: a folder or URL

  NAME is an identity (edsr-x4-3f9a12c40b1e: its newest attempt), identity/attempt, either with /step-N, or a path.

Common commands
  sr-ckpt ls                                                    what there is in outputs/checkpoints
  sr-ckpt ls checkpoint=s3 checkpoint.root=s3://bucket/prefix   in a bucket
  sr-ckpt ls checkpoint=mlflow tracker.uri=http://host:5000     in the runs of an MLflow experiment
  sr-ckpt verify edsr-x4-3f9a12c40b1e
  sr-ckpt export edsr-x4-3f9a12c40b1e edsr.pth layout=basicsr
  sr-ckpt prune edsr-x4-3f9a12c40b1e keep_last=2 delete=true
  sr-ckpt cp edsr-x4-3f9a12c40b1e s3://bucket/prefix
"""


@dataclass(kw_only=True)
class Export(Places):
    """What `sr-ckpt export` can be asked for."""

    layout: Literal["safetensors", "basicsr", "edsr-pytorch"] = "safetensors"
    """Names and file format that other readers expect."""


@dataclass(kw_only=True)
class Prune(Places, Retention):
    """What `sr-ckpt prune` can be asked for: `checkpoint.keep_*` of a run, once more."""

    delete: bool = False
    """Delete; without it nothing is changed."""


_COMMANDS: dict[str, Verb[Places]] = {
    "ls": Verb(Places, 0, 1),
    "verify": Verb(Places, 0, None),
    "diff": Verb(Places, 2, 2),
    "export": Verb(Export, 2, 2),
    "prune": Verb(Prune, 1, 1),
    "cp": Verb(Places, 2, 2),
}


def page() -> str:
    sections = {"Options": Places, "Options of export": Export, "Options of prune": Prune}
    return help_page(HELP, sections, json="the same as a list in JSON", failed="it failed or found damage")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of `sr-ckpt` with these arguments; that of `verify` is 1 where something is damaged."""
    return run_command("sr-ckpt", page, argv, _work)


def _work(words: list[str], as_json: bool) -> int:
    command = take_verb(words, _COMMANDS)
    names, options = names_and_options(words, command, _COMMANDS, HELP)
    from sr_runner.commands.ckpt.actions import run

    return run(command, names, options, as_json=as_json)
