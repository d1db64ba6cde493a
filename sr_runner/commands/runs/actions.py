"""What the commands of `sr-runs` do."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, suppress
from pathlib import Path
from typing import Any

from hydra.types import RunMode

from sr_runner.attempt.base import names_code, reads_environment
from sr_runner.attempt.execute import facts_now
from sr_runner.attempt.record import CHANGED, CHANGES_IN, versions
from sr_runner.checkpoint import LocalStore
from sr_runner.checkpoint.lease import in_use
from sr_runner.checkpoint.stores import names_in
from sr_runner.commands.options import Places
from sr_runner.commands.runs import Condition, List, Remove
from sr_runner.commands.runs.look import VERSIONS, Report, diff, in_words, list_runs, show
from sr_runner.commands.runs.record import Record, records
from sr_runner.config.compose import Application, Request, job_config
from sr_runner.config.overrides import as_override, parse
from sr_runner.errors import RequestError, RunError, printable
from sr_runner.files import Busy, file_lock, own_folder, scratch_folder
from sr_runner.masking import MASK, masked_text
from sr_runner.mlflow_server import (
    ARTIFACTS,
    ATTEMPT_TAG,
    Refused,
    Server,
    Unreachable,
    sqlite_file,
    tracking_uri,
)
from sr_runner.runs import folder as files
from sr_runner.runs.catalogue import Catalogue, difference
from sr_runner.runs.resolve import Found, catalogue_at, find
from sr_runner.tracking.journal import JOURNAL
from sr_runner.tracking.sender import Copied, copy


def run(command: str, names: list[str], options: Places, conditions: Sequence[Condition], *, as_json: bool) -> int:
    """The exit status of `command`: 1 where something was not done. Raises `RequestError`, `RunError`, `OSError`."""
    commands: dict[str, Callable[..., Report]] = {
        "show": show, "diff": diff, "reproduce": _reproduce, "sync": _sync, "rm": _remove,
    }  # fmt: skip
    with scratch_folder(Path(options.outputs)) as scratch:
        catalogue = catalogue_at(Path(options.outputs), options.store, scratch)
        if isinstance(options, List):
            rows, lines = list_runs(catalogue, options, conditions)
        else:
            rows, lines = commands[command](catalogue, options, *names)
    # Whoever made a run chose what its keys and values are called: that makes no line of its own.
    sys.stdout.write((json.dumps(rows, indent=1) if as_json else "\n".join(map(printable, lines))) + "\n")
    return int(any(row.get("ok") is False for row in rows))


def _reproduce(catalogue: Catalogue, options: Places, wanted: str) -> Report:
    record = Record.of(find(wanted, catalogue))
    request, start = record.catalogue.request(record.attempt), record.start
    if request is None:
        raise RunError(f"{wanted}: no command is recorded for {record.attempt}; expected a run of sr-run")
    try:
        known = Request.of(request)
    except ValueError as error:
        raise RunError(f"{wanted}: its record is damaged; {error}") from error
    parent = record.parent
    overrides = [each for each in known.overrides if parse([each])[0].key_or_group != "trainer.resume"]
    overrides += [as_override("trainer.resume", parent)] if parent else []
    again = Request(overrides, known.config_name, known.config_path, known.config_dir)
    folder = Path(str(start.get("folder", ".")))
    command = f"cd {shlex.quote(str(folder))} && {again.command()}"
    changes = list(_changes(record, again, folder, None if parent else _facts(again, folder, record)))
    if parent:
        store = record.catalogue.store
        place = f"{store.url}/{parent}" if store is not None else parent
        changes.append(
            "it is a fork, and the same command goes on with it; to make it again, give "
            f"{as_override('trainer.resume', place)} and another folder of outputs"
        )
    for change in changes:
        logging.warning("%s", printable(change))
    if not changes:
        logging.info("nothing that is recorded of the run has changed since")
    return [{"run": str(record.attempt), "command": command, "changes": changes}], [command]


def _changes(
    record: Record, request: Request, folder: Path, now: Mapping[str, Any] | str | None
) -> Iterator[str]:  # fmt: skip
    """What is not as it was when the run was started last: a sentence each."""
    start = record.start
    # Git may run what the settings of a repository name, and no record decides in which folder.
    here = versions(Path.cwd())
    if folder != Path.cwd():
        here["folder_commit"] = start.get("folder_commit", "")
        if here["folder_commit"]:
            yield f"whether the code in {folder} is as it was is only looked at from there"
    for key, title in VERSIONS.items():
        if key in start and start[key] != here[key]:
            yield f"{title} was {start[key]}, is {here[key] or 'not there'}"
    for patch in sorted(record.folder.glob(files.DIFF.format(number=len(record.starts), code="*"))):
        which = "sr-run's code" if patch.stem.endswith("sr-run") else f"the code in {folder}"
        head = files.head_of(patch) or [f"{CHANGES_IN}{folder}"]
        command = shlex.join(["git", "-C", head[0].removeprefix(CHANGES_IN), "apply", str(patch.absolute())])
        yield f"{which} had changes that were not committed: {command}"
        yield from (f"of these changes, {line[2:]}" for line in head[1:])
    if any(str(start.get(key)).endswith(CHANGED) and here[key] == start[key] for key in ("commit", "folder_commit")):
        yield "there are uncommitted changes now as well: whether they are the same is not checked"
    if any(MASK in override for override in request.overrides):
        yield f"a secret is not recorded: write it where {MASK} stands"
    if isinstance(now, str):
        yield f"whether config and images are as they were was not checked: {now}"
    elif now is not None:
        then = record.catalogue.facts(record.attempt) or {}
        for key, (old, new) in difference(then, now).items():
            name = "the images (their digest)" if key == "data" else key
            yield f"{name} was {in_words(old)}, is {in_words(new)}"


def _facts(request: Request, folder: Path, record: Record) -> dict[str, Any] | str:
    """What determines the identity of the run that `request` describes today, or why that is not known."""
    given = parse(request.overrides)
    own = [each for each in (request.config_path, request.config_dir) if each is not None]
    if code := [*own, *names_code(given), *reads_environment(given)]:
        return f"{' '.join(code)} can name code or read the environment, and no record is believed about that"
    try:
        with chdir(folder):
            app = Application()
            config, _ = job_config(app.compose_config(request.config_name, list(request.overrides), RunMode.RUN))
            return facts_now(config, request.overrides)
    except (RequestError, RunError, OSError, ValueError) as error:
        return str(error)


def _sync(catalogue: Catalogue, options: Places, uri: str, *wanted: str) -> Report:
    outputs = Path(options.outputs)
    target = tracking_uri(uri, outputs)
    database, shown = sqlite_file(target), masked_text(target)
    artifacts = (database.parent if database is not None else outputs) / ARTIFACTS
    if wanted:
        known = [Record.of(find(each, catalogue)) for each in wanted]
        folders = {record.folder: record.status == "killed" for record in known}
    else:  # the sweeps' runs first: jobs can lie below them
        known = [record for record in records(catalogue) if (record.folder / JOURNAL).is_file()]
        folders = {path.parent: False for path in sorted(outputs.glob(f"sweeps/*/{JOURNAL}"))}
        folders |= {record.folder: record.status == "killed" for record in known}
    for name in ("mlflow", "sr_runner.tracking", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)  # of each run it is said here
    rows: list[dict[str, Any]] = []
    for number, (folder, was_killed) in enumerate(folders.items(), 1):
        name = "/".join(folder.parts[-2:])
        if not (folder / JOURNAL).is_file():
            raise RequestError(f"{name}: nothing was recorded (tracker=none); expected a run with {JOURNAL}")
        came, troubles = _copied(folder, target, artifacts, was_killed)
        for trouble in troubles:
            logging.warning("%s: %s", name, printable(trouble))
        logging.info("%d of %d: %s %s", number, len(folders), name, came)
        rows.append({"run": name, "ok": came != "not all of it", "result": came, "to": shown})
        if came == "not all of it":
            break
    done = sum(row["ok"] is True for row in rows)
    more = "" if done == len(folders) else "; the same command goes on"
    return rows, [f"{done} of {len(folders)} runs are in {shown}{more}"]


def _copied(folder: Path, uri: str, artifacts: Path, was_killed: bool) -> tuple[Copied, list[str]]:
    """What became of the copy of the run in `folder` to the server at `uri`, and what went wrong."""
    own_folder(folder.parents[1], folder)
    troubles: dict[str, None] = {}

    def tell(report: dict[str, object]) -> None:
        if report.get("trouble") or report.get("level") == "warning":
            troubles[str(report.get("trouble") or report.get("message"))] = None

    return copy(folder, uri, artifacts, tell, was_killed=was_killed), list(troubles)


def _remove(catalogue: Catalogue, options: Remove, *wanted: str) -> Report:
    found = [find(each, catalogue) for each in wanted]
    for each in found:
        if each.attempt.step is not None:
            raise RequestError(f"{each.asked}: a checkpoint; expected a run, sr-ckpt prune thins out its checkpoints")
    everything = [(Record.of(each), each) for each in found]
    for record, each in everything:
        if record.status == "elsewhere":
            raise RequestError(f"{each.asked}: its folder is on another machine; delete it there")
        if record.status == "running":
            raise RequestError(f"{each.asked}: it is running; stop it first, or delete {record.folder / files.LOCK}")
    told = [
        f"{record.attempt}  {record.start.get('name', '')}, {record.status}, step {record.step}"
        for record, _ in everything
    ]
    if not options.delete and not _confirmed(told):
        return [{"run": str(record.attempt), "deleted": False} for record, _ in everything], ["nothing was deleted"]
    rows, lines = [], []
    for record, each in everything:
        left = _delete(record, each, tracking_uri(options.tracker_uri, Path(options.outputs)))
        rows.append({"run": str(record.attempt), "deleted": True, "ok": not left} | ({"left": left} if left else {}))
        lines.append(f"deleted {record.attempt}{f'; left is {left}' if left else ''}")
    return rows, lines


def _confirmed(told: Sequence[str]) -> bool:
    if not sys.stdin.isatty():
        raise RequestError("rm: nobody can be asked here; expected delete=true")
    sys.stderr.write("".join(f"  {printable(each)}\n" for each in told))
    sys.stderr.write("Delete the folder, the checkpoints and the MLflow run of each? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().casefold() in ("y", "yes")


def _delete(record: Record, found: Found, uri: str) -> str:
    """Delete the run, also in MLflow if that is at `uri`; what is left of it."""
    ids = files.tracker(record.folder)
    own_folder(found.catalogue.runs, record.folder)
    store = found.catalogue.store
    try:
        with file_lock(record.folder / files.LOCK, wait=False):
            for name in names_in(store, f"{record.attempt}/") if store is not None else []:
                found.store.delete(str(name))
            if isinstance(store, LocalStore):  # what killed processes left, and damaged checkpoints
                shutil.rmtree(own_folder(store.root, store.root / str(record.attempt)), ignore_errors=True)
            left = _delete_in_mlflow(record, uri, ids) if ids.get("run_id") else ""
            shutil.rmtree(record.folder)
    except Busy as holder:
        raise in_use(str(record.attempt), holder) from None
    for root in (found.catalogue.runs, *([store.root] if isinstance(store, LocalStore) else [])):
        with suppress(OSError):  # there are other attempts
            (root / record.attempt.identity).rmdir()
    return left


def _delete_in_mlflow(record: Record, uri: str, ids: Mapping[str, Any]) -> str:
    """Put the run into MLflow's bin; what is left there. A record does not decide which server is asked."""
    run_id, where = ids["run_id"], ids.get("tracking_uri")
    server = Server(uri, record.catalogue.runs.parent / ARTIFACTS)
    try:
        there = server.run(run_id) if server.is_made else None
        if there is not None and there.data.tags.get(ATTEMPT_TAG) == str(record.attempt):
            server.ask(lambda client: client.delete_run(run_id))
        elif masked_text(uri) != where:
            return f"its run {run_id} in {where}: tracker.uri=... names that server"
    except (Refused, Unreachable) as fault:
        return f"its run {run_id} in {where} ({fault})"
    return ""
