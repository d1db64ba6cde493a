from __future__ import annotations

import importlib
import json
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import safetensors.torch
import torch

import sr_runner
from sr_runner.attempt.build import build
from sr_runner.checkpoint import CheckpointManager, LocalStore, MlflowStore, TrainingState
from sr_runner.commands.arguments import parse
from sr_runner.commands.ckpt import main
from sr_runner.commands.options import Places
from sr_runner.config.compose import composed
from sr_runner.errors import RequestError
from sr_runner.models import EDSR
from sr_runner.runs import folder as files
from sr_runner.runs.resolve import catalogue_at
from sr_runner.weights import describe, export

IDENTITY = "edsr-x2-0123456789ab"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two attempts of one run; four checkpoints in the first, best at step 20."""
    store = LocalStore(tmp_path / "store")
    for attempt, steps in (("a0001-00aa", (10, 20, 30, 40)), ("a0002-00bb", (10,))):
        manager = CheckpointManager(store, f"{IDENTITY}/{attempt}", keep=[_All()], scratch=tmp_path)
        for step in steps:
            facts = {"facts": {"optimizer.lr": 1e-3 if attempt == "a0001-00aa" else 1e-4}}
            weights = {"weight": torch.full((3,), float(step))}
            manager.save(TrainingState(step, weights, facts, "", {}, {"valid/psnr": 30 - abs(step - 20)}), wait=True)
    return tmp_path / "store"


class _All:
    def keeps(self, checkpoints: object) -> set[int]:
        return {info.step for info in checkpoints}  # type: ignore[attr-defined]


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(arguments) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 or captured.out else captured.err


def test_ls_tells_runs_attempts_steps_metric_size_and_age(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "ls", f"checkpoint.root={root}")
    assert f"{IDENTITY}/a0001-00aa" in text and "step        20  PSNR  30.00" in text
    rows = json.loads(run(capsys, "ls", f"checkpoint.root={root}", "--json", f"{IDENTITY}/a0001-00aa"))
    assert [row["step"] for row in rows] == [10, 20, 30, 40] and rows[0]["bytes"] > 0


def test_verify_finds_the_damaged_one_and_changes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "verify", f"checkpoint.root={root}").count("ok ") == 5
    broken = root / IDENTITY / "a0001-00aa" / "step-00000030" / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    before = sorted(path for path in root.rglob("*"))
    text = run(capsys, "verify", f"checkpoint.root={root}", code=1)
    assert "DAMAGED" in text and "step-00000030  model.safetensors has" in text
    assert sorted(path for path in root.rglob("*")) == before


def test_diff_names_config_keys_and_tensors(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "diff", f"checkpoint.root={root}", f"{IDENTITY}/a0001-00aa/step-20", f"{IDENTITY}/a0002-00bb")
    assert "optimizer.lr: 0.001 | 0.0001" in text and "weight: differs by up to 10" in text


def test_export_writes_a_file_that_other_readers_read(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "export", f"checkpoint.root={root}", f"{IDENTITY}/a0001-00aa", str(tmp_path / "w.safetensors"))
    assert safetensors.torch.load_file(tmp_path / "w.safetensors")["weight"].tolist() == [40, 40, 40]
    again = run(
        capsys, "export", f"checkpoint.root={root}", f"{IDENTITY}/a0001-00aa", str(tmp_path / "w.safetensors"), code=2
    )
    assert "exists already" in again
    run(capsys, "export", str(tmp_path / "w.safetensors"), str(tmp_path / "copy.safetensors"))
    assert (tmp_path / "copy.safetensors").read_bytes() == (tmp_path / "w.safetensors").read_bytes()


def test_a_network_of_ones_own_is_built_again_from_its_exported_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    Path("exported_net.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Conv2d):\n"
        "    def __init__(self, scale, width=4):\n        super().__init__(3, width * scale**2, 3)\n"
    )
    network = importlib.import_module("exported_net").Net(scale=2, width=5).half()
    config = "model: {_target_: exported_net.Net, scale: 2, width: 5}\n"
    manager = CheckpointManager(LocalStore(tmp_path / "store"), f"{IDENTITY}/a0001-00aa", keep=[], scratch=tmp_path)
    manager.save(TrainingState(1, network.state_dict(), {}, config, describe(network)), wait=True)
    run(capsys, "export", "checkpoint.root=store", IDENTITY, "net.safetensors")
    again = sr_runner.load_model("net.safetensors", network="exported_net.Net")
    assert torch.equal(again.weight, network.weight.float())  # type: ignore[arg-type, union-attr]
    assert safetensors.torch.load_file("net.safetensors")["weight"].dtype == torch.float16
    with pytest.raises(RequestError, match="fits the network"):
        sr_runner.load_model("net.safetensors", network="exported_net.Net", width=4)


@pytest.mark.parametrize("layout", ["basicsr", "edsr-pytorch"])
def test_a_network_of_ones_own_has_no_layout_of_other_projects(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = export(torch.nn.Conv2d(3, 3, 1), tmp_path / "own.safetensors")
    said = run(capsys, "export", str(file), str(tmp_path / "own.pth"), f"layout={layout}", code=2)
    assert f"layout={layout}: it has only EDSR" in said and "use safetensors" in said
    assert not (tmp_path / "own.pth").exists()


def test_prune_only_says_what_would_go_until_it_is_told_to(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("prune", f"checkpoint.root={root}", f"{IDENTITY}/a0001-00aa", "keep_last=1")
    steps = root / IDENTITY / "a0001-00aa"
    assert run(capsys, *arguments).count("would delete") == 2 and len(list(steps.iterdir())) == 4
    run(capsys, *arguments, "delete=true")
    assert sorted(path.name for path in steps.iterdir()) == ["step-00000020", "step-00000040"]


def test_prune_keeps_by_the_words_of_a_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{IDENTITY}/a0001-00aa"

    def gone(*words: str) -> list[str]:
        rows = json.loads(run(capsys, "prune", f"checkpoint.root={root}", name, "--json", *words))
        return [row["name"][-2:] for row in rows if not row["deleted"]]

    assert gone("keep_last=1", "keep_best=0") == ["10", "20", "30"]
    assert gone("keep_last=1", "keep_best=2") == ["30"]
    assert gone("keep_last=1", "keep_best=0", "keep_every=20") == ["10", "30"]
    assert gone("keep_last=1", "keep_best=0", "keep_minutes=1e7") == ["20", "30"]
    run(capsys, "prune", f"checkpoint.root={root}", name, "best_metric=train/loss", code=2)  # none would be best


def test_cp_copies_whole_checkpoints_and_refuses_damaged_ones(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "cp", f"checkpoint.root={root}", f"{IDENTITY}/a0001-00aa", str(tmp_path / "copy"))
    assert run(capsys, "verify", f"checkpoint.root={tmp_path / 'copy'}").count("ok ") == 4
    broken = root / IDENTITY / "a0001-00aa" / "step-00000030" / "state.json"
    broken.write_text("{}")
    assert "step-00000030 is damaged (state.json" in run(
        capsys, "cp", f"checkpoint.root={root}", f"{IDENTITY}/a0001-00aa", str(tmp_path / "other"), code=1
    )


def test_a_name_that_is_not_there_gets_one_sentence(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "edsr-x9: no such file, and no such run" in run(
        capsys, "verify", f"checkpoint.root={root}", "edsr-x9", code=2
    )


def test_where_the_runs_keep_their_checkpoints_is_said_if_it_is_another_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local, remote = "sr_runner.checkpoint.LocalStore", "sr_runner.checkpoint.RemoteStore"
    for number, (kind, root) in enumerate(((local, "/disk/my runs"), (remote, "s3://bucket/x"))):
        config = {"outputs": str(tmp_path), "checkpoint": {"root": root, "store": {"_target_": kind}}}
        files.begin(tmp_path / "runs" / f"edsr-x2-{number:012}" / "a0001-cafe", {}, json.dumps(config), {})
    error = run(capsys, "ls", f"outputs={tmp_path}", code=2)
    ways = "checkpoint.root='/disk/my runs' or checkpoint=s3 checkpoint.root='s3://bucket/x'"
    assert error == (
        f"sr-ckpt: {tmp_path}/checkpoints: there is no such folder; expected one of checkpoints. "
        f"Runs of {tmp_path} have theirs elsewhere: {ways}\n"
    )


def test_an_empty_place_is_named_and_one_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "ls", f"checkpoint.root={tmp_path}") == f"no checkpoints in {tmp_path}\n"
    assert json.loads(run(capsys, "verify", "--json", f"checkpoint.root={tmp_path}")) == []
    for command in ("ls", "verify"):
        error = run(capsys, command, f"checkpoint.root={tmp_path}/nope", code=2)
        assert f"{tmp_path}/nope: there is no such folder" in error


def test_a_weights_file_is_read_by_verify_as_by_export(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "w.safetensors"
    run(capsys, "export", f"checkpoint.root={root}", f"{IDENTITY}/a0001-00aa", str(file))
    words = ("verify", f"checkpoint.root={root}", str(file), f"{IDENTITY}/a0002-00bb")
    assert run(capsys, *words).count("ok ") == 2
    file.write_bytes(file.read_bytes()[:-1])
    assert f"DAMAGED  {file}" in run(capsys, *words, code=1)


@pytest.mark.parametrize("to", ["/proc/nope/x", "a file/x"])
@pytest.mark.parametrize("command", ["export", "cp"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(
    command: str, to: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("a file").touch()
    damaged = root / IDENTITY / "a0002-00bb" / "step-00000010" / "model.safetensors"
    damaged.write_bytes(b"")
    error = run(capsys, command, f"checkpoint.root={root}", f"{IDENTITY}/a0002-00bb", to, code=2)
    assert error.startswith(f"sr-ckpt: {to}: nothing can be written there (") and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no command: expected one of ls, verify"),
        (["lss"], "lss: expected one of ls, verify, diff, export, prune, cp. Did you mean 'ls'?"),
        (["diff", "a"], "diff a: expected sr-ckpt diff A B\n"),
        (["ls", "a", "b"], "ls a b: expected sr-ckpt ls [NAME]"),
        (["prune", "a", "keep_last=-1"], "keep_last=-1"),
        (["prune", "a", "keep_minutes=0"], "keep_minutes=0"),
        (["prune", "a", "--yes"], "--yes: options are written key=value."),
        (["prune", "a", "keep_lst=1"], "Did you mean 'keep_last'?"),
        (["ls", "keep_last=1"], "there is no option 'keep_last'"),
        (["ls", "checkpoint=mflow"], "expected one of local, s3, mlflow. Did you mean 'mlflow'?"),
        (["ls", "checkpoint=s3"], "checkpoint=s3: expected a URL, checkpoint.root=s3://bucket/prefix, not null."),
        (["ls", "checkpoint=s3", "checkpoint.root=x"], "not x"),
        (["ls", "checkpoint=mlflow", "checkpoint.root=x"], "checkpoint.root=x: checkpoint=mlflow keeps"),
        (["ls", "checkpoint=mlflow", "tracker.uri=ftp://x"], "tracker.uri='ftp://x'"),
        (["ls", "checkpoint=mlflow", "tracker.uri=sqlite:////proc/nope/x.db"], "nothing can be written there"),
    ],
)
def test_a_wrong_request_ends_with_status_2_and_one_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = run(capsys, *words, code=2)
    assert message in error and len(error.splitlines()) == 1


def test_the_store_is_the_one_that_a_run_with_the_same_words_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for words in (["outputs=else"], ["checkpoint.root=kept"], ["checkpoint=mlflow", "outputs=else"]):
        config, _ = composed([*words, "tracker.experiment=mine"])
        store = build(config.checkpoint.store, "checkpoint.store", root=config.checkpoint.root)
        _, options = parse([*words, "tracker.experiment=mine"], Places)
        found = catalogue_at(Path(options.outputs), options.store, tmp_path).store
        assert found is not None and found.url == store.url


def test_checkpoints_in_mlflow_are_found_by_the_words_of_the_run_that_wrote_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    store = MlflowStore(uri=uri, experiment="mine", outputs=tmp_path, wait_for_run=0)
    manager = CheckpointManager(store, f"{IDENTITY}/a0001-00aa", keep=[_All()], scratch=tmp_path)
    manager.save(TrainingState(10, {"weight": torch.ones(3)}, {}, "", {}, {}), wait=True)
    words = ("checkpoint=mlflow", f"tracker.uri={uri}", "tracker.experiment=mine")
    assert [row["step"] for row in json.loads(run(capsys, "ls", "--json", *words))] == [10]
    assert run(capsys, "verify", IDENTITY, *words).startswith("ok ")


def test_a_damaged_checkpoint_that_is_compared_stays_where_it_is_and_so_says_the_message(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = root / IDENTITY / "a0001-00aa" / "step-00000030"
    (broken / "more").write_text("x")
    error = run(capsys, "diff", f"checkpoint.root={root}", f"{IDENTITY}/a0001-00aa/step-30", IDENTITY, code=1)
    assert "is intact (see above)\n" in error and "started" not in error and broken.is_dir()


def test_weights_on_the_web_are_verified_and_exported_as_those_of_a_file_are(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    (tmp_path / "www").mkdir()
    export(EDSR(scale=2, num_filters=4, num_res_blocks=1), tmp_path / "www" / "edsr.safetensors")
    web = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path / "www"))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{web.server_port}"
    assert run(capsys, "verify", f"{url}/edsr.safetensors").startswith("ok ")
    run(capsys, "export", f"{url}/edsr.safetensors", str(tmp_path / "copy.safetensors"))
    assert (tmp_path / "copy.safetensors").read_bytes() == (tmp_path / "www" / "edsr.safetensors").read_bytes()
    assert "nope.pth: cannot be downloaded" in run(capsys, "verify", f"{url}/nope.pth", code=2)
    web.shutdown()
    web.server_close()
