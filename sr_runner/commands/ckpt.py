"""`sr-ckpt`: look at checkpoints, check them, compare, export, thin out and copy them. Any store."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sr_runner.checkpoint import format
from sr_runner.checkpoint.format import FILES, MANIFEST, Blob, DamagedError, Manifest, Name
from sr_runner.checkpoint.retention import BestN, EverySteps, Info, LastN, Policy, doomed
from sr_runner.checkpoint.stores import Store, store_at
from sr_runner.errors import RequestError, RunError
from sr_runner.runs.catalogue import Catalogue, difference

_EPILOG = """\
NAME is an identity (edsr-x4-3f9a12c40b1e: its newest attempt), identity/attempt, either with /step-N, or a path.
ROOT is a folder, a URL (s3://bucket/prefix) or the runs of an MLflow experiment (mlflow:http://host:5000#sr-run);
outputs/checkpoints where none is given.

  sr-ckpt ls                                    what there is
  sr-ckpt verify edsr-x4-3f9a12c40b1e           every hash of every checkpoint of its newest attempt
  sr-ckpt diff A B                              in config and tensors
  sr-ckpt export NAME model.safetensors         the weights alone; --layout basicsr or edsr-pytorch for other readers
  sr-ckpt prune NAME --keep-last 2 --yes        without --yes it only says what would go
  sr-ckpt cp NAME s3://bucket/prefix            copy between stores

Nothing but export, cp and prune --yes writes. Exit status: 0 fine, 1 something is damaged, 2 the request was wrong."""


@dataclass
class Shelf:
    """One store, and what is needed to read in it."""

    store: Store
    scratch: Path

    def names(self, wanted: str | None) -> list[Name]:
        """The checkpoints that `wanted` names, all of them without it, by identity, attempt and step."""
        if wanted is None:
            return self._all("")
        attempt = Catalogue(self.scratch / "none", self.store, self.scratch).find(wanted)
        names = [name for name in self._all(f"{attempt}/") if attempt.step in (None, name.step)]
        if not names:
            raise RequestError(f"{wanted}: there is no such checkpoint in {self.store.url}")
        return names

    def newest(self, wanted: str) -> Name:
        return self.names(wanted)[-1]

    def manifest(self, name: Name) -> Manifest:
        return Manifest.read(self.store.get(str(name), self.scratch, only=[MANIFEST]))

    def folder(self, name: Name) -> Path:
        return self.store.get(str(name), self.scratch)

    def _all(self, prefix: str) -> list[Name]:
        return sorted(name for text in self.store.list(prefix) if (name := Name.parse(text)) is not None)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status."""
    arguments = _parser().parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="sr-ckpt-") as scratch:
            shelf = Shelf(store_at(arguments.root), Path(scratch))
            return int(arguments.run(shelf, arguments))
    except (RequestError, RunError, DamagedError, OSError) as error:
        sys.stderr.write(f"sr-ckpt: {error}\n")
        return 2 if isinstance(error, RequestError) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sr-ckpt", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Any, what: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=what, description=what)
        command.set_defaults(run=run)
        command.add_argument("--root", default="outputs/checkpoints", help="folder or URL of the store")
        command.add_argument("--json", action="store_true", help="machine-readable output")
        return command

    add("ls", _ls, "runs, attempts, steps, metric, size, age").add_argument("name", nargs="?")
    add("verify", _verify, "check every hash").add_argument("name", nargs="*")
    compare = add("diff", _diff, "what differs between two checkpoints")
    compare.add_argument("a")
    compare.add_argument("b")
    export = add("export", _export, "write the weights alone")
    export.add_argument("name")
    export.add_argument("file", type=Path)
    export.add_argument("--layout", default="safetensors", choices=["safetensors", "basicsr", "edsr-pytorch"])
    prune = add("prune", _prune, "thin out an attempt")
    prune.add_argument("name")
    prune.add_argument("--keep-last", type=int, default=3)
    prune.add_argument("--keep-best", type=int, default=1)
    prune.add_argument("--keep-every", type=int, default=None)
    prune.add_argument("--metric", default="valid/psnr")
    prune.add_argument("--mode", default="max", choices=["max", "min"])
    prune.add_argument("--yes", action="store_true", help="delete; without it nothing is changed")
    copy = add("cp", _copy, "copy to another store")
    copy.add_argument("name")
    copy.add_argument("to", help="folder or URL")
    return parser


def _say(arguments: argparse.Namespace, rows: list[dict[str, Any]], lines: Iterator[str] | list[str]) -> None:
    text = json.dumps(rows, indent=1) if arguments.json else "\n".join(lines)
    sys.stdout.write(text + "\n" if text else "")


def _ls(shelf: Shelf, arguments: argparse.Namespace) -> int:
    rows: list[dict[str, Any]] = []
    for name in shelf.names(arguments.name):
        row: dict[str, Any] = {"identity": name.identity, "attempt": name.attempt, "step": name.step}
        try:
            manifest = shelf.manifest(name)
            row |= {
                "metrics": dict(manifest.metrics),
                "bytes": sum(size for size, _ in manifest.files.values()),
                "age_seconds": round(time.time() - manifest.created),
            }
        except DamagedError as damage:
            row["damage"] = str(damage)
        rows.append(row)

    def lines() -> Iterator[str]:
        last = ""
        for row in rows:
            attempt = f"{row['identity']}/{row['attempt']}"
            if attempt != last:
                yield attempt
                last = attempt
            if "damage" in row:
                yield f"  step {row['step']:>9}  damaged: {row['damage']}"
                continue
            psnr = row["metrics"].get("valid/psnr")
            quality = f"PSNR {psnr:6.2f}" if psnr is not None else " " * 11
            yield f"  step {row['step']:>9}  {quality}  {row['bytes'] / 2**20:8.1f} MiB  {_age(row['age_seconds'])} ago"

    _say(arguments, rows, lines())
    return 0


def _verify(shelf: Shelf, arguments: argparse.Namespace) -> int:
    names = [name for wanted in arguments.name or [None] for name in shelf.names(wanted)]
    rows = []
    for name in names:
        try:
            format.load(shelf.folder(name), expected_step=name.step)
            rows.append({"name": str(name), "ok": True, "reason": ""})
        except DamagedError as damage:
            rows.append({"name": str(name), "ok": False, "reason": str(damage)})
    _say(arguments, rows, [f"{'ok     ' if row['ok'] else 'DAMAGED'}  {row['name']}  {row['reason']}" for row in rows])
    return 0 if all(row["ok"] for row in rows) else 1


def _diff(shelf: Shelf, arguments: argparse.Namespace) -> int:
    from sr_runner.checkpoint.reader import read

    a, b = (read(_folder_of(shelf, wanted)) for wanted in (arguments.a, arguments.b))
    rows: list[dict[str, Any]] = []
    facts = [dict(state.training.get("facts", {})) | {"step": state.step} for state in (a, b)]
    rows += [{"kind": "config", "name": k, "a": x, "b": y} for k, (x, y) in difference(*facts).items()]
    for name in sorted(a.model.keys() | b.model.keys()):
        x, y = a.model.get(name), b.model.get(name)
        if x is None or y is None or x.shape != y.shape or x.dtype != y.dtype:
            shapes = [f"{tuple(t.shape)} {t.dtype}" if t is not None else None for t in (x, y)]
            rows.append({"kind": "tensor", "name": name, "a": shapes[0], "b": shapes[1]})
        elif not x.equal(y):
            gap = float((x.double() - y.double()).abs().max())
            rows.append({"kind": "tensor", "name": name, "largest_difference": gap})

    def lines() -> Iterator[str]:
        for row in rows:
            gap = row.get("largest_difference")
            what = f"differs by up to {gap:.3g}" if gap is not None else f"{row['a']} | {row['b']}"
            yield f"{row['kind']:<6}  {row['name']}: {what}"
        if not rows:
            yield "the same config, step and weights"

    _say(arguments, rows, lines())
    return 0


def _export(shelf: Shelf, arguments: argparse.Namespace) -> int:
    folder = _folder_of(shelf, arguments.name)
    format.load(folder)
    if arguments.file.exists():
        raise RequestError(f"{arguments.file} exists already; choose another name")
    if arguments.layout == "safetensors":
        arguments.file.write_bytes((folder / format.MODEL).read_bytes())
    else:
        from sr_runner.weights import export, load_model

        export(load_model(folder), arguments.file, arguments.layout)
    _say(arguments, [{"file": str(arguments.file)}], [f"wrote {arguments.file}"])
    return 0


def _prune(shelf: Shelf, arguments: argparse.Namespace) -> int:
    names = {name.step: name for name in shelf.names(arguments.name)}
    keep: list[Policy] = [LastN(arguments.keep_last)]
    if arguments.keep_best:
        keep.append(BestN(arguments.keep_best, arguments.metric, arguments.mode))
    if arguments.keep_every:
        keep.append(EverySteps(arguments.keep_every))
    infos = []
    for step, name in names.items():
        try:
            manifest = shelf.manifest(name)
            infos.append(Info(step, manifest.created, manifest.metrics))
        except DamagedError as damage:
            sys.stderr.write(f"sr-ckpt: {name} is damaged ({damage}) and left alone\n")
    gone = [names[step] for step in doomed(infos, keep)]
    for name in gone if arguments.yes else []:
        shelf.store.delete(str(name))
    verb = "deleted" if arguments.yes else "would delete"
    rows = [{"name": str(name), "deleted": arguments.yes} for name in gone]
    _say(arguments, rows, [f"{verb} {name}" for name in gone] or ["nothing to delete"])
    return 0


def _copy(shelf: Shelf, arguments: argparse.Namespace) -> int:
    target, rows = store_at(arguments.to), []
    for name in shelf.names(arguments.name):
        folder = shelf.folder(name)
        format.load(folder, expected_step=name.step)  # what is damaged is not spread
        target.put(str(name), [Blob.of_file(folder / file) for file in (*FILES, MANIFEST)])
        rows.append({"name": str(name), "to": target.url})
    _say(arguments, rows, [f"copied {row['name']} to {row['to']}" for row in rows])
    return 0


def _folder_of(shelf: Shelf, wanted: str) -> Path:
    path = Path(wanted).expanduser()
    return path if (path / MANIFEST).is_file() else shelf.folder(shelf.newest(wanted))


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
