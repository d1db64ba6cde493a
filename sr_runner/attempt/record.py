"""What is recorded of a run when it starts or goes on: the files of its folder, and what the tracker gets."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sr_runner.attempt import labels, own_code, scheduler
from sr_runner.attempt.build import Parts
from sr_runner.attempt.resume import Chosen
from sr_runner.config.compose import Request
from sr_runner.files import write_file
from sr_runner.masking import MASK, masked, masked_lines, masked_text
from sr_runner.runs import folder as files
from sr_runner.tracking import SWEEP_TAG, RunRecord
from sr_runner.training.device import device_name

_PACKAGE = Path(__file__).parent.parent
_LONGEST_DIFF = 200_000  # bytes


@dataclass(frozen=True)
class SweepJob:
    """What a job knows of its sweep."""

    folder: Path
    keys: tuple[str, ...]
    """What the sweep sweeps, in the order of its command line."""
    finished: str = ""
    """The run that this job was when it finished before; nothing is done again where it still is."""
    settles: bool = True
    """Whether the job waits until the tracking server has all of it; else the sweep does, once for all jobs."""


def start_of(request: Request, command: str | None, chosen: Chosen) -> dict[str, Any]:
    """What this start is, for `starts.jsonl`, the tags and the checkpoints; secrets are masked.

    `commit` is that of sr-run's own code, `folder_commit` that of the folder one stands in; `+changes` says that files
    were changed since.
    """
    start = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": masked_text(command or request.command()),
        "folder": str(Path.cwd()),
        "host": platform.node(),
        "step": chosen.state.step if chosen.state is not None else 0,
        "parent": chosen.parent,
        "request": masked(asdict(request) | {"overrides": list(request.overrides)}),
        **versions(Path.cwd()),
    }
    return {key: value for key, value in start.items() if value not in (None, "")}


def versions(folder: Path) -> dict[str, str]:
    """Of sr-run and what it runs on, and the commits of its own code and of `folder`; "" where there is none."""
    return {
        "sr_run": _version("sr-run"),
        "commit": _own_commit(),
        "folder_commit": _commit(folder),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mlflow": _version("mlflow"),
    }


def record(
    parts: Parts, chosen: Chosen, folder: Path, start: dict[str, Any], choices: Mapping[str, str],
    sweep: SweepJob | None,
) -> RunRecord:  # fmt: skip
    """Write the files of the run's folder that say what is started; return what the tracker records."""
    overrides, swept = start["request"]["overrides"], sweep.keys if sweep is not None else ()
    name = masked_text(labels.run_name(parts.config, choices, chosen.facts, overrides, swept))
    params = masked(labels.params(parts.config, choices, chosen.facts, overrides, swept))
    start |= {"name": name, "params": params, "steps": parts.trainer.steps}
    if sweep is not None:
        start["sweep"] = sweep.folder.name
    write_record(parts, chosen, folder, start)
    tags = {
        "sr_run.identity": chosen.attempt.identity,
        "sr_run.host": platform.node(),
        "sr_run.device": device_name(parts.device),
        "sr_run.status": "running",
    }
    tags |= {f"sr_run.{key}": str(start[key]) for key in _TAGGED if key in start}
    number = len(files.starts(folder))
    tags[f"sr_run.start.{number}"] = f"{start['time']} {start['command']} (step {start['step']})"
    if "folder_commit" in start:
        tags["mlflow.source.git.commit"] = start["folder_commit"].partition("+")[0]
    if chosen.parent:
        tags["sr_run.forked_from"] = chosen.parent
    if sweep is not None:
        tags[SWEEP_TAG] = "_".join(sweep.folder.name.split())
    tags["sr_run.parameters"] = str(parts.parameters)
    tags["sr_run.steps"] = str(parts.trainer.steps)
    return RunRecord(
        run_dir=folder,
        attempt=str(chosen.attempt),
        run_name=name,
        params={key: str(value) for key, value in params.items()},
        tags=tags,
        dataset=dict(parts.data.summary()) | {"digest": parts.data.fingerprint},
        sweep=sweep.folder if sweep is not None else None,
    )


_TAGGED = ("command", "folder", "commit", "folder_commit", "sr_run", "python", "torch", "mlflow")


def write_record(parts: Parts, chosen: Chosen, folder: Path, start: dict[str, Any]) -> None:
    """The files of the run's folder that say what was started."""
    digests = own_code.digests(parts.config)
    files.begin(folder, chosen.facts, parts.yaml, start | ({"code": digests} if digests else {}))
    number = len(files.starts(folder))
    for code, where in (("sr-run", _PACKAGE), ("folder", Path.cwd())):
        if start.get("commit" if code == "sr-run" else "folder_commit", "").endswith(CHANGED):
            write_file(folder / files.DIFF.format(number=number, code=code), _diff(where))
    scheduler.remember(folder)


CHANGED = "+changes"
"""What a commit ends in where files were changed since."""
CHANGES_IN = "# not committed in "
"""How a patch of such changes begins; the repository follows, and lines with `#` on what the patch lacks."""


@functools.cache
def _own_commit() -> str:
    """The commit of sr-run's own code, where it is a repository; of a package that lies in somebody else's, none."""
    tracked = _git(_PACKAGE, "ls-files", "--error-unmatch", "__init__.py")
    return _commit(_PACKAGE) if tracked else ""


def _commit(folder: Path) -> str:
    """The commit of the repository around `folder`, "" where there is none."""
    commit = _git(folder, "rev-parse", "HEAD").strip()
    return commit + (CHANGED if commit and _git(folder, *_STATUS) else "")


def _diff(folder: Path) -> str:
    """The uncommitted changes of the repository around `folder`, masked, as a patch for `git apply`. Where they are
    long the largest files are left out whole: a patch that ends somewhere is none."""
    names = ("-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false")
    diff = _git(folder, *names, "diff", "--no-ext-diff", "--no-textconv", "--no-color", _WITHIN, "HEAD")
    parts = re.split("(?m)^(?=diff --git )", diff)[1:]
    text = {part for part in parts if "\nBinary files " not in part and "\ufffd" not in part}
    kept, room = set(), _LONGEST_DIFF
    for part in sorted(text, key=len):
        room -= len(part)
        if room >= 0:
            kept.add(part)
    head = [f"{CHANGES_IN}{_git(folder, 'rev-parse', '--show-toplevel').strip()}"]
    for part in (each for each in parts if each not in kept):
        name = part.partition("\n")[0].rpartition(" b/")[2]
        head.append(f"# left out: {name} ({f'{len(part)} characters' if part in text else 'not text'})")
    shown = [_masked(part) for part in parts if part in kept]
    if changed := sum(part.count(MASK) for part in shown) - sum(part.count(MASK) for part in kept):
        head.append(f"# masked: {changed} secrets; git refuses a file where one stood before")
    return "\n".join([*head, "".join(shown)])


def _masked(patch: str) -> str:
    """The first character of a line is git's; the rest is masked as the text that it is."""
    lines = patch.split("\n")
    is_code = lines[0].endswith((".py", ".pyx", ".pyi"))
    text = masked_lines("\n".join(line[1:] for line in lines), is_code=is_code).split("\n")
    return "\n".join(line[:1] + rest for line, rest in zip(lines, text, strict=True))


_WITHIN = "--ignore-submodules=dirty"
"""A repository within the repository has settings of its own."""
_STATUS = ("status", "--porcelain", "--untracked-files=no", _WITHIN)


def _git(folder: Path, *words: str) -> str:
    """What git prints; "" where it fails. No program that the repository's own settings name is started: whoever
    unpacks somebody's archive and starts a run there trusts no more than what it names."""
    return _run_git(folder, *_no_filters(folder), *words)


@functools.cache
def _no_filters(folder: Path) -> tuple[str, ...]:
    """Settings that turn off the filters of the repository around `folder`; those of the user himself stay."""
    listed = _run_git(folder, "config", "--show-scope", "--name-only", "-z", "--get-regexp", r"^filter\.").split("\0")
    own = [key for scope, key in zip(listed[::2], listed[1::2], strict=False) if scope in ("local", "worktree")]
    off = [f"{key}={'false' if key.endswith('.required') else ''}" for key in own]
    return tuple(word for setting in off for word in ("-c", setting))


def _run_git(folder: Path, *words: str) -> str:
    settings = ("-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}")
    command: Sequence[str] = ["git", *settings, "-C", str(folder), *words]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=10, check=True, stdin=subprocess.DEVNULL, env=environment
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
