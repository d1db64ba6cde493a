"""What `sr-runs` shows: a list of runs, one run, the difference between two."""

from __future__ import annotations

import math
import shlex
import shutil
import textwrap
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from sr_runner.checkpoint.stores import names_in
from sr_runner.commands.options import Places
from sr_runner.commands.runs import Condition, List
from sr_runner.commands.runs.record import Record, differing, number_of, records
from sr_runner.errors import RequestError, nearest
from sr_runner.evaluation.metrics import digits, title
from sr_runner.runs import folder as files
from sr_runner.runs.catalogue import Catalogue, difference
from sr_runner.runs.resolve import find
from sr_runner.training.result import psnr_of

Report = tuple[list[dict[str, Any]], list[str]]
"""What a command has found or done: rows for `--json`, lines for people."""

_MOST_COLUMNS = 8
_LONGEST, _SHORTEST, _LONGEST_ERROR = 60, 8, 300  # characters
VERSIONS = {
    "sr_run": "sr-run", "commit": "sr-run's code", "folder_commit": "the folder's code", "python": "Python",
    "torch": "PyTorch", "mlflow": "MLflow",
}  # fmt: skip
"""Of the keys of a start, what people call them."""


def list_runs(catalogue: Catalogue, options: List, conditions: Sequence[Condition]) -> Report:
    everything = records(catalogue)
    if not everything:
        return [], [f"no runs in {catalogue.runs}"]
    sort = (options.sort or "").removeprefix("-")
    for key, asked in [(c.key, str(c)) for c in conditions] + ([(sort, f"sort={options.sort}")] if sort else []):
        known = dict.fromkeys(key for record in everything for key in record.known_keys())
        if key not in known:
            raise RequestError(f"{asked}: no run has a key '{key}'.{nearest(key, known)}")
    found = [record for record in everything if all(map(record.fulfils, conditions))]
    if sort:
        with_value = [record for record in found if record.value(sort) is not None]
        others = [record for record in found if record.value(sort) is None]
        with_value.sort(key=lambda record: _order(record.value(sort)), reverse=options.sort != sort)
        found = [*with_value, *others]
    columns = differing(found)
    rows = [_row(record) for record in found]
    if not found:
        return rows, [f"none of {len(everything)} runs fulfils {' '.join(map(str, conditions))}"]
    return rows, list(_table(found, columns, shutil.get_terminal_size((0, 0)).columns))


def _order(value: Any) -> tuple[int, float, str]:
    number = number_of(value)
    return (1, 0.0, str(value)) if number is None or math.isnan(number) else (0, number, "")


def _row(record: Record) -> dict[str, Any]:
    start = record.start
    row = {
        "run": str(record.attempt), "name": start.get("name"), "status": record.status, "step": record.step,
        "steps": start.get("steps"), "started": start.get("time"), "sweep": start.get("sweep"),
        "from": record.parent, "params": record.params, "metrics": record.metrics, "error": record.end.get("error"),
        "folder": str(record.folder) if record.folder.is_dir() else None,
    }  # fmt: skip
    return {key: value for key, value in row.items() if value not in (None, {})}


def _table(found: Sequence[Record], columns: Sequence[str], width: int) -> Iterator[str]:
    """A line for each run, and what did not fit into the columns. Where it would not fit `width` characters, values of
    what runs differ by are cut, then `started`, then keys are left out; 0: there is no terminal."""
    shown = columns[:_MOST_COLUMNS]
    several = {record.attempt.identity for record in found if _is_one_of_several(record)}
    origin = ["from"] if any(record.parent for record in found) else []
    heads = [key if key.count(".") != 1 else key.partition(".")[2] for key in shown]
    others = list(dict.fromkeys(name for record in found if (name := record.best_metric) != "psnr"))
    table = [["run", *origin, *heads, *map(title, others), "PSNR", "gain", "status", "step", "started"]]
    for record in found:
        metrics, steps = record.metrics, record.start.get("steps")
        psnr, gain = psnr_of(metrics), metrics.get("gain")
        table.append([
            _short(str(record.attempt), several), *(_short(record.parent or "", several) for _ in origin),
            *("" if (value := record.value(key)) is None else str(value) for key in shown),
            *("" if (measured := record.final(name)) is None else f"{measured:.{digits(name)}f}" for name in others),
            "" if psnr is None else f"{psnr:.2f}", "" if gain is None else f"{gain:+.2f}", record.status,
            f"{record.step} of {steps}" if steps and record.step != steps else f"{record.step}",
            str(record.start.get("time", ""))[:16].replace("T", " "),
        ])  # fmt: skip
    table = [[_cut(cell, _LONGEST) for cell in row] for row in table]
    count = len(origin) + len(shown)
    fitting, longest = _fitting(table, count, width)
    if fitting < count:  # the runs stand in the order of their starts
        table = [row[:-1] for row in table]
        fitting, longest = _fitting(table, count, width)
    fitting = max(fitting, len(origin))
    for row in table:
        row[1 : count + 1] = [
            *(_cut(cell, longest, at_the_end=False) for cell in row[1 : len(origin) + 1]),
            *(_cut(cell, longest) for cell in row[len(origin) + 1 : fitting + 1]),
        ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row, of in zip(table, [None, *found], strict=True):
        yield "  ".join(cell.ljust(wide) for cell, wide in zip(row, widths, strict=True)).rstrip()
        if of is not None and of.end.get("error"):
            yield from _lines(_cut(str(of.end["error"]), _LONGEST_ERROR), width, "    ")
    if left := columns[fitting - len(origin) :]:
        yield from _lines(f"They differ in {', '.join(left)} too: --json has everything", width)


def _short(name: str, several: Collection[str]) -> str:
    """Of `<identity>/<attempt>/...` the identity, with the attempt if it is one of `several`."""
    identity, _, rest = name.partition("/")
    return f"{identity}/{rest.partition('/')[0]}" if identity in several else identity


def _fitting(table: Sequence[Sequence[str]], count: int, width: int) -> tuple[int, int]:
    """How many of the `count` columns after the first one fit `width` characters, and how many characters of each."""
    lengths = [max(map(len, column)) for column in zip(*table, strict=True)]
    others = [lengths[0], *lengths[count + 1 :]]
    for fitting in range(count, 0, -1) if width else ():
        left = width - sum(others) - 2 * (fitting + len(others) - 1)
        for longest in range(_LONGEST, _SHORTEST - 1, -1):
            if sum(min(length, longest) for length in lengths[1 : fitting + 1]) <= left:
                return fitting, longest
    return (0, _SHORTEST) if width else (count, _LONGEST)


def _cut(text: str, longest: int, *, at_the_end: bool = True) -> str:
    if len(text) <= longest:
        return text
    return f"{text[: longest - 1]}…" if at_the_end else f"…{text[1 - longest :]}"


def _lines(text: str, width: int, indent: str = "") -> list[str]:
    """`text` in as many lines as the terminal needs for it, if there is one."""
    if not width:
        return [indent + text]
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _is_one_of_several(record: Record) -> bool:
    newest = Catalogue(record.catalogue.runs, None, record.catalogue.scratch).named(record.attempt.identity)
    return newest is None or newest.name != record.attempt.name or not newest.name.startswith("a0001-")


def show(catalogue: Catalogue, options: Places, wanted: str) -> Report:
    found = find(wanted, catalogue)
    if found.attempt.step is not None:
        found.names()  # refuses one that is not there
    record = Record.of(found)
    ids, start = files.tracker(record.folder), record.start
    checkpoints = [name.step for name in names_in(found.store, f"{record.attempt}/")] if found.catalogue.store else []
    row = _row(record) | {"starts": record.starts, "end": record.end, "checkpoints": checkpoints, "tracker": ids}

    lines = [str(record.attempt), f"  name         {start.get('name', '')}"]
    steps = f" of {start['steps']}" if "steps" in start else ""
    lines.append(f"  status       {record.status}, step {record.step}{steps}")
    if record.end.get("error"):
        lines.append(f"  reason       {record.end['error']}")
    if record.metrics:
        lines.append("  metrics      " + ", ".join(f"{k} {v:.4g}" for k, v in record.metrics.items()))
    best = record.result.best if record.result is not None else {}
    key = f"valid/{record.best_metric}"
    if key in best and "step" in best:
        lines.append(f"  best         {key} {best[key]:.4g} at step {best['step']:.0f}")
    lines.append("  params       " + ", ".join(f"{key}={value}" for key, value in record.params.items()))
    if "sweep" in start:
        lines.append(f"  sweep        {start['sweep']}")
    if record.parent:
        lines.append(f"  forked from  {record.parent}")
    for number, each in enumerate(record.starts, 1):
        lines.append(
            f"  start {number:<6} {each.get('time', '')} at step {each.get('step', 0)} on {each.get('host', '')}"
        )
        lines.append(f"               cd {shlex.quote(str(each.get('folder', '')))} && {each.get('command', '')}")
        known = (f"{title} {each[key]}" for key, title in VERSIONS.items() if each.get(key))
        lines.append(f"               {', '.join(known)}")
    if record.end:
        lines.append(f"  ended        {record.end.get('time', '')}")
    where = found.catalogue.store.url if found.catalogue.store is not None else ""
    lines.append(f"  checkpoints  {', '.join(map(str, checkpoints)) or 'none'} in {where}")
    if ids.get("run_id"):
        lines.append(
            f"  MLflow       run {ids['run_id']} of {ids.get('experiment', '')} in {ids.get('tracking_uri', '')}"
        )
    if record.folder.is_dir():
        lines.append(f"  folder       {record.folder}")
    return [row], lines


def diff(catalogue: Catalogue, options: Places, *wanted: str) -> Report:
    a, b = (Record.of(find(each, catalogue)) for each in wanted)
    kinds = {
        "config": (_config(a), _config(b)),
        "version": (_versions(a), _versions(b)),
        "code": (_code(a), _code(b)),
        "metric": (a.metrics, b.metrics),
    }
    rows = [
        {"kind": kind, "name": key, "a": x, "b": y}
        for kind, (here, there) in kinds.items()
        for key, (x, y) in difference(here, there).items()
    ]
    lines = [f"{row['kind']:<7}  {row['name']}: {in_words(row['a'])} | {in_words(row['b'])}" for row in rows]
    return rows, lines or ["the same config, versions, code and metrics"]


def _config(record: Record) -> dict[str, Any]:
    """With the digest of the images, under a name of its own: `data` is a group."""
    digest = (record.catalogue.facts(record.attempt) or {}).get("data")
    return record.config | ({"data (digest of the images)": digest} if digest else {})


def _versions(record: Record) -> dict[str, Any]:
    return {title: record.start[key] for key, title in VERSIONS.items() if key in record.start}


def _code(record: Record) -> dict[str, Any]:
    """The digests of the files of own classes and functions."""
    known = record.start.get("code")
    return known if isinstance(known, dict) else {}


def in_words(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "-" if value is None else str(value)
