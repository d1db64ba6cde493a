"""`sr-runs` on real runs: listed, compared, made again from what it prints, copied to another server, deleted."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from run_server import RunServer
from support import TINY, SrRun, wait_until

from sr_runner.attempt.record import CHANGED, _commit, _diff
from sr_runner.commands.runs import main
from sr_runner.runs import folder as files

OUTPUTS = "outputs=outputs"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, image_cache: Path, run_server: RunServer) -> Path:
    """A folder with the outputs of a finished run with the rate 1e-3, and of a killed one with 3e-4."""
    folder = tmp_path_factory.mktemp("made")
    arguments = [*TINY, f"data.cache_dir={image_cache}"]
    assert run_server.start([*arguments, "optimizer.lr=1e-3"], folder, folder / "out", folder / "err").wait() == 0
    endless = ["optimizer.lr=3e-4", "trainer.steps=100000", "checkpoint.every=3", "trainer.eval_every=3"]
    killed = run_server.start([*arguments, *endless, "data.seed=0"], folder, folder / "out2", folder / "err2")
    wait_until(lambda: list((folder / "outputs" / "checkpoints").glob("*/*/step-00000009")))
    killed.kill()
    wait_until(lambda: "KILLED" in {run.info.status for run in runs_in(folder / "outputs" / "mlflow.db").values()})
    return folder


def runs_in(database: Path) -> dict[str, Run]:
    """By their identities."""
    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("sr-run")
    found = client.search_runs([experiment.experiment_id]) if experiment is not None else []
    return {run.data.tags["sr_run.identity"]: run for run in found}


@pytest.fixture
def outputs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them in the present folder."""
    shutil.copytree(made / "outputs", tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs"


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> object:
    def ask(*words: str, code: int | None = 0) -> tuple[str, str]:
        assert main(words) in ((0, 1, 2) if code is None else (code,)), capsys.readouterr().err
        captured = capsys.readouterr()
        return captured.out, captured.err

    return ask


def names(outputs: Path) -> tuple[str, str]:
    """The finished and the killed one."""
    by_end = {bool(files.ended(path)): path.parent.name for path in (outputs / "runs").glob("*/*")}
    return by_end[True], by_end[False]


def test_runs_are_listed_with_what_they_differ_by(outputs: Path, ask) -> None:
    finished, killed = names(outputs)
    head, *lines = ask("ls")[0].splitlines()
    assert head.split() == ["run", "lr", "PSNR", "gain", "status", "step", "started"]
    cells = {line.split()[0]: line.split() for line in lines}
    assert cells[finished][1] == "0.001" and cells[finished][4] == "finished"
    assert cells[killed][1] == "0.0003" and "killed" in cells[killed] and "100000" in cells[killed]
    rows = {row["run"].split("/")[0]: row for row in json.loads(ask("ls", "--json")[0])}
    result = json.loads(next((outputs / "runs" / finished).glob("*/result.json")).read_text())
    assert rows[finished]["metrics"]["valid/psnr"] == result["metrics"]["valid/psnr"]
    assert rows[killed]["step"] >= 9 and rows[killed]["params"]["model"] == "edsr"


def test_the_metric_that_a_run_keeps_its_best_by_has_a_column_and_is_its_best(outputs: Path, ask) -> None:
    finished, killed = names(outputs)
    (folder,) = outputs.glob(f"runs/{finished}/*")
    start, *rest = (folder / files.STARTS).read_text().splitlines()
    known = json.loads(start)
    known["params"]["checkpoint.best_metric"] = "valid/lpips"
    (folder / files.STARTS).write_text("\n".join([json.dumps(known), *rest, ""]))
    result = json.loads((folder / files.RESULT).read_text())
    result["metrics"] |= {"valid/lpips": 0.25, "final/lpips": 0.125}
    result["best"] = {"valid/psnr": 20.0, "valid/lpips": 0.5, "step": 3}
    (folder / files.RESULT).write_text(json.dumps(result))
    head, *lines = ask("ls")[0].splitlines()
    assert head.split()[2:6] == ["best_metric", "LPIPS", "PSNR", "gain"]
    cells = {line.split()[0]: line.split() for line in lines}
    assert cells[finished][2:4] == ["valid/lpips", "0.1250"] and cells[killed][2] == "valid/psnr"
    assert "best         valid/lpips 0.5 at step 3" in ask("show", finished)[0]


def test_a_fork_is_listed_with_the_run_that_it_is_one_of(outputs: Path, ask) -> None:
    finished, killed = names(outputs)
    assert "from" not in ask("ls")[0].split()
    (parent,), (starts,) = outputs.glob(f"runs/{finished}/*"), outputs.glob(f"runs/{killed}/*/{files.STARTS}")
    checkpoint = f"{finished}/{parent.name}/step-00000006"
    starts.write_text(json.dumps(json.loads(starts.read_text()) | {"parent": checkpoint}) + "\n")
    head, *lines = ask("ls")[0].splitlines()
    at = head.index("from")
    cells = {line.split()[0]: line[at : at + len(finished)].strip() for line in lines}
    assert cells == {finished: "", killed: finished}
    (row,) = json.loads(ask("ls", f"from={finished}*", "--json")[0])
    assert row["run"].startswith(killed) and row["from"] == checkpoint


def test_a_table_that_is_wider_than_the_terminal_is_cut_and_says_what_it_lacks(
    outputs: Path, ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, starts in enumerate(outputs.glob(f"runs/*/*/{files.STARTS}")):
        start = json.loads(starts.read_text().splitlines()[0])
        start["params"] |= {"data.train": f"{number}/photographs/" * 10, "mine.a": str(number), "mine.b": str(number)}
        ended = {"end": "failed", "error": "what went wrong " * 10}
        starts.write_text(f"{json.dumps(start)}\n{json.dumps(ended)}\n")
    whole = ask("ls")[0].splitlines()
    assert max(map(len, whole)) > 160 and whole[0].split()[1:5] == ["lr", "train", "a", "b"]
    for width, heads in ((140, ["lr", "train", "a", "b", "PSNR"]), (72, ["lr", "train", "PSNR"])):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = ask("ls")[0].splitlines()
        assert max(map(len, lines)) <= width and lines[0].split()[1 : len(heads) + 1] == heads
        assert "phot" in "".join(lines) and "…" in "".join(lines)
        assert " ".join(line.strip() for line in lines).count("what went wrong") == 20
        assert ("They differ in mine.a, mine.b too" in lines[-1]) == (width == 72)
    assert "0/photographs/" * 10 in ask("ls", "--json")[0]


@pytest.mark.parametrize(
    ("words", "which"),
    [
        (["optimizer.lr=1e-3"], "finished"),
        (["optimizer.lr<1e-3"], "killed"),
        (["status=killed,failed"], "killed"),
        (["status!=killed"], "finished"),
        (["name=*lr=3e-4*"], "killed"),
        (["model=edsr", "trainer.steps>=6", "step<=6"], "finished"),
        (["checkpoint.every=3", "data.flip=true"], "killed"),
        (["sort=-optimizer.lr"], "finished killed"),
        (["sort=optimizer.lr", "model.scale=2"], "killed finished"),
        (["valid/psnr>900"], ""),
    ],
)
def test_runs_are_chosen_and_sorted_by_keys_and_metrics(words: list[str], which: str, outputs: Path, ask) -> None:
    known = dict(zip(("finished", "killed"), names(outputs), strict=True))
    rows = json.loads(ask("ls", *words, "--json")[0])
    assert [row["run"].split("/")[0] for row in rows] == [known[each] for each in which.split()]


def test_a_run_is_shown_with_every_start_and_two_are_compared(outputs: Path, ask) -> None:
    finished, killed = names(outputs)
    text = ask("show", killed)[0]
    assert "killed, step" in text and "start 1" in text and "sr-run model.num" in text and "checkpoints" in text
    text = ask("diff", finished, killed)[0]
    assert "optimizer.lr: 0.001 | 0.0003" in text and "metric" in text
    assert ask("diff", finished, finished)[0] == "the same config, versions, code and metrics\n"


def test_the_command_of_a_run_makes_it_again(outputs: Path, sr_run: SrRun, ask) -> None:
    finished, _ = names(outputs)
    (row,) = json.loads(ask("reproduce", finished, "--json")[0])
    folder, words = shlex.split(row["command"])[1], shlex.split(row["command"])[4:]
    assert Path(folder).is_dir() and not any("config and images" in change for change in row["changes"])
    sr_run(*words)
    one, other = (outputs / "checkpoints" / finished).glob("*/step-00000006/model.safetensors")
    assert one.read_bytes() == other.read_bytes()


def test_what_has_changed_since_a_run_is_named(outputs: Path, ask) -> None:
    _, killed = names(outputs)
    (folder,) = (outputs / "runs" / killed).iterdir()
    record, starts = folder / files.RECORD, folder / files.STARTS
    facts = json.loads(record.read_text())["facts"]
    record.write_text(json.dumps({"facts": facts | {"data": "0" * 64, "optimizer.eps": 1e-7}}))
    starts.write_text(starts.read_text().replace('"torch": "', '"torch": "1.'))
    changes = json.loads(ask("reproduce", killed, "--json")[0])[0]["changes"]
    assert any(change.startswith("PyTorch was 1.") for change in changes)
    assert any(change.startswith("the images (their digest) was 000") for change in changes)
    assert any(change.startswith("optimizer.eps was 1e-07, is 1e-08") for change in changes)


def test_no_record_decides_which_code_runs_to_look_at_it(outputs: Path, ask) -> None:
    _, killed = names(outputs)
    (folder,) = (outputs / "runs" / killed).iterdir()
    starts = folder / files.STARTS
    start = json.loads(starts.read_text())
    start["request"]["overrides"] += ["optimizer._target_=evil.Code"]
    starts.write_text(json.dumps(start) + "\n")
    Path("evil.py").write_text("open('ran', 'w')\ndef Code(*a, **b): pass\n")
    (row,) = json.loads(ask("reproduce", killed, "--json")[0])
    assert any("not checked: optimizer._target_=evil.Code can name code" in change for change in row["changes"])
    assert not Path("ran").exists()


@pytest.mark.parametrize("request_", [{"overrides": ["experiment=../e/evil"]}, {"config_name": "../e/evil"}])
def test_no_record_names_a_config_outside_the_tree(request_: dict[str, object], outputs: Path, ask) -> None:
    _, killed = names(outputs)
    (folder,) = (outputs / "runs" / killed).iterdir()
    starts = folder / files.STARTS
    start = json.loads(starts.read_text())
    start["request"] |= request_
    starts.write_text(json.dumps(start) + "\n")
    out, err = ask("reproduce", killed, "--json", code=None)
    assert "expected an option of experiment" in out or "expected the name of a config" in err


def test_no_record_decides_where_git_looks(outputs: Path, ask) -> None:
    """The settings of a repository name programs."""
    _, killed = names(outputs)
    (folder,) = (outputs / "runs" / killed).iterdir()
    place, ran = Path("evil").absolute(), Path("ran").absolute()
    place.mkdir()
    (place / "f.txt").write_text("f")
    (place / ".gitattributes").write_text("f.txt filter=x")
    me = ["-c", "user.name=a", "-c", "user.email=a@b"]
    trap = ["config", "filter.x.clean", f"touch {ran}; cat"]
    for words in (["init", "-q"], ["add", "."], [*me, "commit", "-qm", "f"], trap):
        subprocess.run(["git", "-C", str(place), *words], check=True)
    (place / "f.txt").write_text("g")
    starts = folder / files.STARTS
    start = json.loads(starts.read_text()) | {"folder": str(place), "folder_commit": "0" * 40}
    starts.write_text(json.dumps(start) + "\n")
    ask("reproduce", killed)
    assert not ran.exists()


def test_a_start_in_somebodys_repository_starts_no_program_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "inner"
    me = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always")

    def git(where: Path, *words: str) -> None:
        subprocess.run(["git", "-C", str(where), *me, *words], check=True, capture_output=True)

    for place in (inner, tmp_path):
        git(tmp_path, "init", "-q", str(place))
        (place / "f.txt").write_text("f")
        (place / ".gitattributes").write_text("f.txt filter=x diff=x")
        if place == tmp_path:
            git(place, "submodule", "add", "-q", str(inner), "within")
        git(place, "add", "f.txt", ".gitattributes")
        git(place, "commit", "-qm", "f")
    for place in (tmp_path, tmp_path / "within"):
        for key in (
            "filter.x.clean", "filter.x.process", "diff.x.command", "diff.x.textconv", "diff.external",
            "core.fsmonitor",
        ):  # fmt: skip
            git(place, "config", key, f"touch {tmp_path}/ran-{key}; cat")
        git(place, "config", "filter.x.required", "true")
        (place / "f.txt").write_text("g")
    for name in ("post-index-change", "post-checkout", "fsmonitor-watchman"):
        hook = tmp_path / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran-{name}\n")
        hook.chmod(0o755)
    assert _commit(tmp_path).endswith(CHANGED)
    assert "+g" in _diff(tmp_path)
    assert not list(tmp_path.glob("ran-*"))


BOMB = "a: &a {x: 1}\n" + "".join(
    f"{y}: &{y} {{p: *{x}, q: *{x}, r: *{x}}}\n" for x, y in pairwise("abcdefghijklmnopqrstuv")
)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            files.RESULT,
            '{"step": "x", "metrics": {"valid/psnr": "a"}, "images": [], "bicubic": [], "best": {"step": []}}',
        ),
        (files.RESULT, '{"step": 1, "metrics": {"valid/psnr": 1}, "images": [{"image": 1}], "bicubic": 3}'),
        (files.RESULT, '{"step": 1, "metrics": {}, "images": [], "bicubic": [], "best": {"step": []}}'),
        (files.RESULT, '{"step": 1, "metrics": null, "images": [], "bicubic": [], "best": {"a": 1}}'),
        (files.RESULT, json.dumps({"step": 1, "metrics": {"valid/psnr": 10**400}, "images": [], "bicubic": []})),
        (files.RESULT, json.dumps({"step": 10**400, "metrics": {}, "images": [], "bicubic": []})),
        (files.RESULT, "[" * 100_000),
        (files.CONFIG, "scale: " + "9" * 100_000),
        (files.CONFIG, BOMB),
        (files.CONFIG, "{" * 100_000),
        (
            files.CONFIG,
            BOMB + "outputs: *v\ncheckpoint: {root: /tmp/zz, store: {_target_: sr_runner.checkpoint.LocalStore}}",
        ),
        (files.CONFIG, "checkpoint: {root: a, store: {_target_: sr_runner.checkpoint.MlflowStore, uri: 5}}"),
        (files.CONFIG, "optimizer: {lr: !!binary aGVsbG8=, eps: 2026-01-01}"),
        (files.STARTS, json.dumps({"params": {"optimizer.lr": 10**400}}) + "\n"),
        (files.CONFIG, "- a list"),
        (files.RECORD, '{"facts": ' + '{"a": ' * 100_000),
        (files.LOCK, "process 99999999999 on " + "x" * 1000),
        (files.STARTS, '{"time": 3, "steps": [], "params": [], "name": {}, "code": 1, "request": {"overrides": 5}}\n'),
        (files.STARTS, json.dumps({"params": {"a\x1b[2J": "b\x1b[2J" * 500}, "request": {"config_name": 1}}) + "\n"),
        (files.STARTS, '{"commit": 5, "folder_commit": [], "folder": "a\\u0000b", "parent": {}, "request": {}}\n'),
        (files.STARTS, '{"commit": 5, "folder_commit": [], "folder": "a\\u0000b", "request": {"overrides": []}}\n'),
        (files.STARTS, '{"end": {"a": 1}, "error": ["x"]}\n[]\n\x00\n'),
        (files.TRACKER, '{"run_id": 7, "tracking_uri": []}'),
    ],
)
def test_whatever_stands_in_the_folder_of_a_run_it_is_no_traceback(name: str, content: str, outputs: Path, ask) -> None:
    finished, killed = names(outputs)
    for run in (finished, killed):
        (folder,) = (outputs / "runs" / run).iterdir()
        (folder / name).write_text(content)
    again = [["reproduce", killed]] if name in (files.RECORD, files.STARTS) else []
    for words in (
        ["ls", "sort=step"], ["ls", "optimizer.lr>1"], ["show", killed], ["diff", finished, killed],
        ["diff", finished, killed, "--json"], *again,
    ):  # fmt: skip
        out, err = ask(*words, code=None)
        assert "\x1b" not in out + err and max(map(len, out.splitlines()), default=0) < 100_000


def test_runs_are_copied_to_another_server_once(outputs: Path, ask, caplog: pytest.LogCaptureFixture) -> None:
    finished, killed = names(outputs)
    caplog.set_level("INFO")
    seen: list[dict[str, int]] = []

    def synced(uri: str) -> list[str]:
        caplog.clear()
        assert "2 of 2 runs are in sqlite:///" in ask("sync", uri)[0]
        files_there = (path for path in Path("artifacts").rglob("*") if path.is_file())
        seen.append({str(path): path.stat().st_mtime_ns for path in files_there})
        said = (record.getMessage() for record in caplog.records)
        return [text.partition(" edsr-")[2].partition(" ")[2] for text in said if " of 2: " in text]

    assert synced("sqlite:///other.db") == ["copied"] * 2
    shutil.rmtree(next(outputs.glob(f"runs/{killed}/*/copy-*")))  # as in another copy of these outputs
    assert synced("sqlite:///other.db") == ["up to date"] * 2
    assert synced("sqlite:///outputs/mlflow.db") == ["up to date"] * 2  # the one that recorded them
    assert len(seen[0]) > 4 and seen == seen[:1] * 3
    databases = (outputs / "mlflow.db", Path("other.db").absolute())
    clients, (own, copies) = [MlflowClient(f"sqlite:///{path}") for path in databases], map(runs_in, databases)
    assert copies[finished].info.status == "FINISHED" and copies[killed].info.status == "KILLED"
    assert own.keys() == copies.keys() == {finished, killed}
    for name in (finished, killed):
        assert own[name].data.params == copies[name].data.params
        assert own[name].info.start_time == copies[name].info.start_time <= copies[name].info.end_time
        pairs = list(zip(clients, (own[name].info.run_id, copies[name].info.run_id), strict=True))
        for key in own[name].data.metrics:
            mine, its = (
                [(p.step, str(p.value), p.timestamp) for p in c.get_metric_history(run, key)] for c, run in pairs
            )
            assert set(mine) <= set(its) and len({step for step, *_ in its}) == len(its), key
        mine, its = ({file.path for file in client.list_artifacts(run)} for client, run in pairs)
        assert mine <= its and (name == killed or "config.yaml" in its)
    assert files.tracker(next((outputs / "runs" / finished).iterdir()))["run_id"] == own[finished].info.run_id


def test_a_deleted_run_is_gone_everywhere_and_the_others_stay(outputs: Path, ask) -> None:
    finished, killed = names(outputs)
    assert "nobody can be asked here; expected delete=true" in ask("rm", finished, code=2)[1]
    assert names(outputs) == (finished, killed)
    assert "deleted" in ask("rm", finished, "delete=true")[0]
    assert [path.name for path in (outputs / "runs").iterdir()] == [killed]
    assert [path.name for path in (outputs / "checkpoints").iterdir()] == [killed]
    assert runs_in(outputs / "mlflow.db").keys() == {killed}


def test_a_run_that_is_at_work_is_not_deleted(outputs: Path, ask) -> None:
    _, killed = names(outputs)
    (lock,) = (outputs / "runs" / killed).glob(f"*/{files.LOCK}")
    lock.write_text(f"process {os.getpid()} on {os.uname().nodename}")
    assert "running" in ask("ls", "status=running")[0]
    assert "it is running" in ask("rm", killed, "delete=true", code=2)[1]
    lock.write_text("process 1 on another-machine")
    assert "it is running" in ask("rm", killed, "delete=true", code=2)[1] and lock.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no command: expected one of ls, show"),
        (["lst"], "Did you mean 'ls'?"),
        (["ls", "statsu=killed"], "no run has a key 'statsu'. Did you mean 'status'?"),
        (["ls", "sort=valid/pnsr"], "Did you mean 'valid/psnr'?"),
        (["ls", "some-name"], "expected sr-runs ls [KEY=VALUE ...]"),
        (["ls", "--sort=psnr"], "--sort=psnr: options are written key=value. Did you mean 'sort'?"),
        (["show"], "expected sr-runs show RUN"),
        (["diff", "a"], "expected sr-runs diff A B"),
        (["show", "edsr-x2-000000000000"], "no such run"),
        (["sync", "nonsense"], "is not a tracking URI"),
        (["rm", "delete=true"], "expected sr-runs rm RUN"),
        (["rm", "x", "dlete=true"], "Did you mean 'delete'?"),
    ],
)
def test_wrong_requests_are_one_sentence(words: list[str], said: str, outputs: Path, ask) -> None:
    error = ask(*words, code=2)[1]
    assert said in error and len(error.splitlines()) == 1
