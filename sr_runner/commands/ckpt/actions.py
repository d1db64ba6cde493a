"""What the commands of `sr-ckpt` do."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sr_runner.attempt.build import policies
from sr_runner.checkpoint import Origin, format
from sr_runner.checkpoint.format import FILES, MANIFEST, Blob, DamagedError, Manifest, Name
from sr_runner.checkpoint.reader import read_manifest
from sr_runner.checkpoint.retention import Info, doomed
from sr_runner.checkpoint.stores import LocalStore, Store, names_in, store_at
from sr_runner.checkpoint.tensors import TensorFile, parse
from sr_runner.commands.ckpt import Export, Prune
from sr_runner.commands.options import Places
from sr_runner.config.overrides import as_override
from sr_runner.errors import RequestError, RunError, check_choice, printable
from sr_runner.evaluation.metrics import METRICS
from sr_runner.files import check_writable, scratch_folder, write_file
from sr_runner.masking import masked_text
from sr_runner.runs import folder as files
from sr_runner.runs.catalogue import Catalogue, difference
from sr_runner.runs.network import arguments_of_run
from sr_runner.runs.resolve import catalogue_at, find, is_weights_file, source
from sr_runner.weights import read, shown


@dataclass(frozen=True)
class Checkpoints:
    """Some checkpoints of one store: all of it, or what a name means."""

    store: Store
    names: list[Name]
    scratch: Path

    def manifest(self, name: Name) -> Manifest:
        return read_manifest(self.store, str(name), self.scratch)

    def folder(self, name: Name) -> Path:
        return self.store.get(str(name), self.scratch)


def _checkpoints(catalogue: Catalogue, wanted: str | None = None) -> Checkpoints:
    """The checkpoints that `wanted` names (see `runs.resolve`); those of the whole store without it."""
    if wanted is not None:
        found = find(wanted, catalogue)
        return Checkpoints(found.store, found.names(), catalogue.scratch)
    assert catalogue.store is not None
    if isinstance(catalogue.store, LocalStore) and not catalogue.store.root.is_dir():
        raise RequestError(
            f"{catalogue.store.url}: there is no such folder; expected one of checkpoints{_elsewhere(catalogue)}"
        )
    return Checkpoints(catalogue.store, names_in(catalogue.store), catalogue.scratch)


def _elsewhere(catalogue: Catalogue) -> str:
    """Where the runs beside the missing folder keep their checkpoints, in words for this command line."""
    outputs = catalogue.runs.parent
    places = {place for folder in catalogue.runs.glob("*/*") if (place := files.store(folder, outputs)) is not None}
    words = (
        "checkpoint=mlflow" if place.startswith("mlflow:")
        else f"checkpoint=s3 {as_override('checkpoint.root', place)}" if "://" in place
        else as_override("checkpoint.root", place)
        for place in sorted(places)
    )  # fmt: skip
    return f". Runs of {outputs} have theirs elsewhere: {' or '.join(words)}" if places else ""


Report = tuple[list[dict[str, Any]], list[str]]
"""What a command has found or done: rows for `--json`, lines for people."""


def run(command: str, names: list[str], options: Places, *, as_json: bool) -> int:
    """The exit status of `command`: 1 where it found damage. Raises `RequestError`, `RunError` and `OSError`."""
    commands: dict[str, Callable[..., Report]] = {
        "ls": _ls, "verify": _verify, "diff": _diff, "export": _export, "prune": _prune, "cp": _copy,
    }  # fmt: skip
    with scratch_folder(Path(options.outputs)) as scratch:
        try:
            catalogue = catalogue_at(Path(options.outputs), options.store, scratch)
            rows, lines = commands[command](catalogue, options, *names)
        except DamagedError as damage:
            raise RunError(str(damage)) from damage
    # Whoever wrote a checkpoint chose what its files and tensors are called: that makes no line of its own.
    assert catalogue.store is not None
    lines = lines or [f"no checkpoints in {masked_text(catalogue.store.url)}"]
    sys.stdout.write((json.dumps(rows, indent=1) if as_json else "\n".join(map(printable, lines))) + "\n")
    return int(any(row.get("ok") is False for row in rows))


def _ls(catalogue: Catalogue, options: Places, wanted: str | None = None) -> Report:
    """The run that wrote last comes last."""
    attempts: dict[str, tuple[list[dict[str, Any]], list[str]]] = {}
    checkpoints = _checkpoints(catalogue, wanted)
    for name in checkpoints.names:
        row: dict[str, Any] = {"identity": name.identity, "attempt": name.attempt, "step": name.step}
        attempt = f"{name.identity}/{name.attempt}"
        rows, lines = attempts.setdefault(attempt, ([], [attempt]))
        try:
            manifest = checkpoints.manifest(name)
            size, age = sum(size for size, _ in manifest.files.values()), round(time.time() - manifest.created)
            row |= {"metrics": dict(manifest.metrics), "bytes": size, "age_seconds": age}
            quality = f"PSNR {row['metrics']['valid/psnr']:6.2f}" if "valid/psnr" in row["metrics"] else " " * 11
            lines.append(f"  step {name.step:>9}  {quality}  {size / 2**20:8.1f} MiB  {_age(age)} ago")
        except DamagedError as damage:
            row["damage"] = str(damage)
            lines.append(f"  step {name.step:>9}  damaged: {damage}")
        rows.append(row)

    def age_of(of: tuple[list[dict[str, Any]], list[str]]) -> float:
        return min((row.get("age_seconds", math.inf) for row in of[0]), default=math.inf)

    ordered = sorted(attempts.values(), key=lambda each: -age_of(each))
    return [row for rows, _ in ordered for row in rows], [line for _, lines in ordered for line in lines]


def _verify(catalogue: Catalogue, options: Places, *wanted: str) -> Report:
    rows: list[dict[str, Any]] = []

    def verify(name: str, look: Callable[[], object]) -> None:
        try:
            look()
            rows.append({"name": name, "ok": True, "reason": ""})
        except (DamagedError, RequestError) as damage:
            rows.append({"name": name, "ok": False, "reason": str(damage)})

    for each in wanted or (None,):
        if each is not None and is_weights_file(each):
            verify(shown(each), partial(read, source(each, catalogue).path()))
            continue
        checkpoints = _checkpoints(catalogue, each)
        for name in checkpoints.names:
            verify(str(name), lambda: format.load(checkpoints.folder(name), expected_step=name.step))  # noqa: B023
    return rows, [f"{'ok     ' if row['ok'] else 'DAMAGED'}  {row['name']}  {row['reason']}" for row in rows]


def _diff(catalogue: Catalogue, options: Places, *wanted: str) -> Report:
    a, b = (find(each, catalogue).restored() for each in wanted)
    rows: list[dict[str, Any]] = []
    facts = [dict(Origin.of(state.training).facts) | {"step": state.step} for state in (a, b)]
    rows += [{"kind": "config", "name": k, "a": x, "b": y} for k, (x, y) in difference(*facts).items()]
    for name in sorted(a.model.keys() | b.model.keys()):
        x, y = a.model.get(name), b.model.get(name)
        if x is None or y is None or x.shape != y.shape or x.dtype != y.dtype:
            shapes = [f"{tuple(t.shape)} {t.dtype}" if t is not None else None for t in (x, y)]
            rows.append({"kind": "tensor", "name": name, "a": shapes[0], "b": shapes[1]})
        elif not x.equal(y):
            gap = float((x.double() - y.double()).abs().max())
            rows.append({"kind": "tensor", "name": name, "largest_difference": gap})

    lines = [
        f"{row['kind']:<6}  {row['name']}: "
        + (f"{row['a']} | {row['b']}" if "a" in row else f"differs by up to {row['largest_difference']:.3g}")
        for row in rows
    ]
    return rows, lines or ["the same config, step and weights"]


def _export(catalogue: Catalogue, options: Export, wanted: str, to: str) -> Report:
    file = Path(to)
    if os.path.lexists(file):
        raise RequestError(f"{file} exists already; choose another name")
    check_writable(to, file.parent)
    found = source(wanted, catalogue)
    model = found.path()
    file.parent.mkdir(parents=True, exist_ok=True)
    if options.layout == "safetensors":
        is_own = found.config and read(model).target
        content = model.read_bytes()
        write_file(file, _with_arguments(content, arguments_of_run(found)) if is_own else content)
    else:
        from sr_runner.weights import check_layout, export, load_model

        check_layout(options.layout, read(model).network, f"{model.name} of {shown(wanted)}")
        export(load_model(model), file, options.layout)
    return [{"file": str(file)}], [f"wrote {file}"]


def _with_arguments(model: bytes, arguments: dict[str, Any]) -> bytes:
    """The weights of a network of one's own with its `arguments` in the header, as its config stays behind."""
    tensors, metadata = parse(model)
    described = json.loads(metadata["sr_run"]) | {"arguments": arguments}
    return b"".join(TensorFile.of(tensors, metadata | {"sr_run": json.dumps(described, default=str)}).chunks())


def _prune(catalogue: Catalogue, options: Prune, wanted: str) -> Report:
    checkpoints = _checkpoints(catalogue, wanted)
    names, infos = {name.step: name for name in checkpoints.names}, []
    for step, name in names.items():
        try:
            manifest = checkpoints.manifest(name)
            infos.append(Info(step, manifest.created, manifest.metrics))
        except DamagedError as damage:
            sys.stderr.write(f"sr-ckpt: {name} is damaged ({damage}) and stays\n")
    known = dict.fromkeys([f"valid/{name}" for name in METRICS] + [key for info in infos for key in info.metrics])
    check_choice("best_metric", options.best_metric, known)
    gone = [names[step] for step in doomed(infos, policies(options))]
    for name in gone if options.delete else []:
        checkpoints.store.delete(str(name))
    verb = "deleted" if options.delete else "would delete"
    rows = [{"name": str(name), "deleted": options.delete} for name in gone]
    return rows, [f"{verb} {name}" for name in gone] or ["nothing to delete"]


def _copy(catalogue: Catalogue, options: Places, wanted: str, to: str) -> Report:
    target, rows, checkpoints = store_at(to), [], _checkpoints(catalogue, wanted)
    if isinstance(target, LocalStore):
        check_writable(to, target.root)
    else:
        target.check()
    for name in checkpoints.names:
        try:
            folder = checkpoints.folder(name)
            format.load(folder, expected_step=name.step)
        except DamagedError as damage:
            raise RunError(f"{name} is damaged ({damage}) and was not copied") from damage
        target.put(str(name), [Blob.of_file(folder / file) for file in (*FILES, MANIFEST)])
        rows.append({"name": str(name), "to": target.url})
    return rows, [f"copied {row['name']} to {row['to']}" for row in rows]


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
