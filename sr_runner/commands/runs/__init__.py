"""`sr-runs`: list runs, compare two, repeat one, bring them to another tracking server, delete them.

Imports nothing heavy before there is work to do: `--help` answers at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sr_runner.commands.arguments import Verb, keys_of, names_and_options, take_verb
from sr_runner.commands.console import help_page, run_command
from sr_runner.commands.options import Places

HELP = """\
sr-runs: list runs, compare two, repeat one, bring them to another tracking server, delete them.

Usage
  sr-runs ls [KEY=VALUE ...] [key=value ...]   the runs for which all of that is true; what they differ by as columns
  sr-runs show RUN                             what is known of it: status, metrics, params, every start
  sr-runs diff A B                             what differs between two runs: config, versions, code, metrics
  sr-runs reproduce RUN                        the command that makes it again, and what has changed since
  sr-runs sync URI [RUN...]                    copy runs (else all, and the sweeps) to another MLflow server or database
  sr-runs rm RUN...                            delete their folders, checkpoints and MLflow runs, after a question

  RUN is an identity (edsr-x4-3f9a12c40b1e: its newest attempt), identity/attempt, a path, or MLflow's id of the run.
  KEY is a key of the config, a group, a metric, or psnr, status, step, name, sweep, from or run;
  = != < <= > >= compare it, and VALUE can be a list (model=edsr,wdsr_b) or a pattern (name=*lr=0.0003*).

Common commands
  sr-runs ls                                   all runs in outputs/runs, the newest last
  sr-runs ls model=edsr 'psnr>30' sort=-psnr
  sr-runs ls status=failed,killed
  sr-runs diff edsr-x4-3f9a12c40b1e edsr-x2-3f9a12c40b1e
  sr-runs sync http://host:5000                runs that were made without a network, now that there is one
"""

_CONDITION = re.compile(r"(?!-)([\w./@-]+)(!=|<=|>=|=|<|>)(.*)", re.DOTALL)


@dataclass(kw_only=True)
class List(Places):
    """What `sr-runs ls` can be asked for."""

    sort: str | None = None
    """A KEY; -KEY begins with the largest value; null: by the time of the last start."""


@dataclass(kw_only=True)
class Remove(Places):
    """What `sr-runs rm` can be asked for."""

    delete: bool = False
    """Delete without a question."""


_COMMANDS: dict[str, Verb[Places]] = {
    "ls": Verb(List, 0, 0),
    "show": Verb(Places, 1, 1),
    "diff": Verb(Places, 2, 2),
    "reproduce": Verb(Places, 1, 1),
    "sync": Verb(Places, 1, None),
    "rm": Verb(Remove, 1, None),
}


@dataclass(frozen=True)
class Condition:
    """What has to be true of a run that is listed."""

    key: str
    operator: str
    value: str

    def __str__(self) -> str:
        return f"{self.key}{self.operator}{self.value}"


def page() -> str:
    sections = {"Options": Places, "Options of ls": List, "Options of rm": Remove}
    return help_page(HELP, sections, json="the same as a list in JSON", failed="it failed, or not all of it was copied")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of `sr-runs` with these arguments; that of `sync` is 1 where something is left."""
    return run_command("sr-runs", page, argv, _work)


def _work(words: list[str], as_json: bool) -> int:
    command = take_verb(words, _COMMANDS)
    conditions = _conditions(words) if command == "ls" else []
    names, options = names_and_options(words, command, _COMMANDS, HELP)
    from sr_runner.commands.runs.actions import run

    return run(command, names, options, conditions, as_json=as_json)


def _conditions(words: list[str]) -> list[Condition]:
    """Takes the conditions out of `words`: what is not an option of the command."""
    own, found = keys_of(List), []
    for word in list(words):
        match = _CONDITION.fullmatch(word)
        if match is not None and not (match[2] == "=" and match[1] in own):
            found.append(Condition(*match.groups()))
            words.remove(word)
    return found
