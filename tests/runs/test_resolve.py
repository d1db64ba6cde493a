from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from saved_runs import FACTS, IDENTITY, damage, network, parts_of, save, value_of

import sr_runner
from sr_runner import weights
from sr_runner.attempt.pretrained import initialise
from sr_runner.attempt.resume import choose
from sr_runner.checkpoint import LocalStore
from sr_runner.commands import ckpt
from sr_runner.errors import RequestError, RunError
from sr_runner.models import EDSR, SRResNet
from sr_runner.runs import folder as files
from sr_runner.runs.catalogue import Catalogue
from sr_runner.runs.network import load_network
from sr_runner.runs.resolve import Source, find_source

IN_FOLDER, IN_CHECKPOINT = "f" * 32, "c" * 32


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two folders of outputs; no two checkpoints have the same step."""
    place = tmp_path_factory.mktemp("shelf")
    for outputs, attempts in (
        ("outputs", {"a0001-aaaa": (10, 20), "a0002-bbbb": (30, 40)}),
        ("other", {"a0001-cccc": (50, 60)}),
    ):
        store = LocalStore(place / outputs / "checkpoints")
        for attempt, steps in attempts.items():
            ids = {"run_id": IN_CHECKPOINT if attempt == "a0002-bbbb" else None}
            save(store, f"{IDENTITY}/{attempt}", *steps, tracker=ids)
            (place / outputs / "runs" / IDENTITY / attempt).mkdir(parents=True)
    ids = json.dumps({"run_id": IN_FOLDER, "tracking_uri": "http://host"})
    (place / "outputs" / "runs" / IDENTITY / "a0001-aaaa" / "tracker.json").write_text(ids)
    shutil.copytree(place / "other" / "checkpoints" / IDENTITY / "a0001-cccc" / "step-00000050", place / "best")
    return place


@pytest.fixture
def here(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder: the shelf, in a copy of its own."""
    place = tmp_path / "here"
    shutil.copytree(shelf, place)
    monkeypatch.chdir(place)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield place


def catalogue(place: Path) -> Catalogue:
    return Catalogue(place / "outputs" / "runs", LocalStore(place / "outputs" / "checkpoints"), place / "scratch")


def resumed(name: str, place: Path) -> float:
    """trainer.resume"""
    known = catalogue(place)
    parts = parts_of(place / "outputs", known.store, resume=name)
    chosen = choose(parts, known, FACTS, lambda facts: IDENTITY, lambda attempt, fresh: None)
    assert chosen.state is not None
    return next(iter(chosen.state.model.values())).flatten()[0].item()


def initialised(name: str, place: Path) -> float:
    """checkpoint.init_from"""
    settings = parts_of(place / "outputs", None).checkpoint
    settings.init_from, made = name, network()
    assert initialise(made, settings, catalogue(place))
    return value_of(made)


def evaluated(name: str, place: Path) -> float:
    """sr-eval, sr-upscale"""
    source = find_source(name, outputs=Path("outputs"))
    return value_of(load_network(source, None, {}))


def exported(name: str, place: Path) -> float:
    """sr-ckpt"""
    assert ckpt.main(["export", name, "exported.safetensors"]) == 0
    return value_of(weights.load_model("exported.safetensors"))


def loaded(name: str, place: Path) -> float:
    """sr_runner.load_model"""
    return value_of(sr_runner.load_model(name))


CONSUMERS: dict[str, Callable[[str, Path], float]] = {
    "resume": resumed, "init_from": initialised, "eval": evaluated, "ckpt": exported, "load_model": loaded,
}  # fmt: skip

A, B, C = f"{IDENTITY}/a0001-aaaa", f"{IDENTITY}/a0002-bbbb", f"{IDENTITY}/a0001-cccc"
NAMES = {
    IDENTITY: 40,
    f"{IDENTITY}/step-30": 30,
    A: 20,
    f"{IDENTITY}/a0001": 20,
    f"{IDENTITY}/a0001/step-10": 10,
    f"outputs/checkpoints/{IDENTITY}/a0001/step-10": 10,
    f"{A}/step-10": 10,
    f"{A}/step-00000010": 10,
    f"outputs/runs/{IDENTITY}": 40,
    f"outputs/runs/{A}": 20,
    f"outputs/runs/{A}/": 20,
    f"outputs/runs/{A}/step-10": 10,
    f"HERE/outputs/runs/{A}": 20,
    f"outputs/checkpoints/{IDENTITY}": 40,
    f"outputs/checkpoints/{A}": 20,
    f"outputs/checkpoints/{A}/step-00000010": 10,
    f"outputs/checkpoints/{A}/step-10/": 10,
    f"HERE/outputs/checkpoints/{A}/step-00000010": 10,
    f"other/runs/{IDENTITY}": 60,
    f"other/runs/{C}/step-50": 50,
    f"other/checkpoints/{C}": 60,
    f"other/checkpoints/{C}/step-00000050": 50,
    f"file://HERE/other/checkpoints/{C}": 60,
    f"file://HERE/other/checkpoints/{C}/step-00000050": 50,
    f"file://HERE/outputs/checkpoints/{B}/step-30": 30,
    "best": 50,
    "HERE/best": 50,
    IN_FOLDER: 20,
    IN_CHECKPOINT: 40,
}


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_a_name_means_the_same_checkpoint_to_every_command_and_key(here: Path, consumer: str) -> None:
    wrong = {}
    for name, step in NAMES.items():
        (here / "exported.safetensors").unlink(missing_ok=True)
        try:
            got: object = CONSUMERS[consumer](name.replace("HERE", str(here)), here)
        except (RequestError, RunError) as error:
            got = str(error)
        if got != step:
            wrong[name] = got
        for fork in (here / "outputs" / "runs" / IDENTITY).glob("a0003-*"):  # that a resume has opened
            fork.rmdir()
    assert not wrong


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_a_damaged_newest_checkpoint_is_passed_over_by_everybody(
    here: Path, consumer: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage(here / "outputs" / "checkpoints" / B / "step-00000040" / "model.safetensors")
    assert CONSUMERS[consumer](IDENTITY, here) == 30
    assert f"{B}/step-00000040 is damaged: model.safetensors does not match its checksum" in caplog.text


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_a_damaged_checkpoint_that_was_asked_for_by_its_step_is_refused(
    here: Path, consumer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(here / "outputs" / "checkpoints" / A / "step-00000010" / "model.safetensors")
    if consumer == "ckpt":
        assert ckpt.main(["export", f"{A}/step-10", "exported.safetensors"]) == 1
        assert "model.safetensors does not match its checksum" in capsys.readouterr().err
    else:
        with pytest.raises(RunError, match=r"step-00000010 is damaged|none of the 1 checkpoints"):
            CONSUMERS[consumer](f"{A}/step-10", here)


KEYS = {"resume": "trainer.resume=", "init_from": "checkpoint.init_from=", "eval": "", "load_model": ""}


@pytest.mark.parametrize("consumer", KEYS)
def test_what_is_not_there_is_refused_with_the_key_the_places_the_nearest_name_and_known_ones(
    here: Path, consumer: str
) -> None:
    for wrong, expected in {
        "edsr-x2-012345678": f"no such file, .*no such run.*checkpoints.*Did you mean '{IDENTITY}'.*Known: {IDENTITY}",
        f"{A}/step-11": f"{A} has no checkpoint in .*checkpoints at step 11, only at 10, 20",
        f"{IDENTITY}/a0009-aaaa": f"no such attempt in .*, or several of that number; expected {A} or {B}$",
        f"{IDENTITY}/a0001/step-11": f"{A} has no checkpoint in .*checkpoints at step 11, only at 10, 20",
        "edsr-x2-0123456789ab/a0001-aaaa/nothing": "no such run, attempt or checkpoint",
        "other": "a folder, but not of a run, an attempt or a whole checkpoint",
        "file:///nowhere/edsr-x2-01": "no such run, attempt or checkpoint in that store",
        "sr://bucket/edsr-x2-01": "sr:// is not supported",
        "0" * 32: "no such run",
        "../*": "no such run",
        "x" * 300: "no such run",
    }.items():
        with pytest.raises(RequestError, match=expected) as error:
            CONSUMERS[consumer](wrong, here)
        assert str(error.value).startswith(f"{KEYS[consumer]}{wrong}: ")


RECORDED = """
checkpoint:
  root: {root}
  store: {{_target_: sr_runner.checkpoint.{kind}, uri: {uri}, experiment: nightly}}
outputs: /where/it/was
"""


def record(place: Path, attempt: str, kind: str, root: str = "null", uri: str = "null") -> None:
    folder = place / "outputs" / "runs" / attempt
    files.begin(folder, FACTS, RECORDED.format(root=root, kind=kind, uri=uri), {"folder": str(place)})


@pytest.mark.parametrize("consumer", [each for each in CONSUMERS if each != "resume"])
def test_the_checkpoints_of_a_run_are_where_its_folder_says_if_no_option_does(here: Path, consumer: str) -> None:
    attempt = f"{IDENTITY}/a0003-eeee"
    save(LocalStore(here / "elsewhere" / "ckpt"), attempt, 80)
    record(here, attempt, "LocalStore", "elsewhere/ckpt")
    for name in (IDENTITY, attempt, f"{IDENTITY}/a0003", f"outputs/runs/{attempt}"):
        (here / "exported.safetensors").unlink(missing_ok=True)
        assert CONSUMERS[consumer](name, here) == 80
    record(here, B, "LocalStore", "gone/since")
    (here / "exported.safetensors").unlink(missing_ok=True)
    assert CONSUMERS[consumer](B, here) == 40


def test_an_option_that_names_a_place_counts_and_the_message_without_one_names_what_is_recorded(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt = f"{IDENTITY}/a0003-eeee"
    save(LocalStore(here / "elsewhere"), attempt, 80)
    record(here, attempt, "LocalStore", "elsewhere")
    assert ckpt.main(["verify", IDENTITY]) == 0
    assert ckpt.main(["verify", IDENTITY, "checkpoint.root=outputs/checkpoints"]) == 2
    assert f"has no checkpoint in {here}/outputs/checkpoints" in capsys.readouterr().err
    shutil.rmtree(here / "elsewhere")
    assert ckpt.main(["verify", IDENTITY]) == 2
    assert f"has no checkpoint in {here}/elsewhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "root", "uri", "place"),
    [
        ("LocalStore", "/where/it/was/checkpoints", "null", None),
        ("LocalStore", "/mnt/disk", "null", "/mnt/disk"),
        ("stores.RemoteStore", "s3://bucket/prefix", "null", "s3://bucket/prefix"),
        ("stores.MlflowStore", "null", "http://host:5000", "mlflow:http://host:5000#nightly"),
        ("stores.MlflowStore", "null", "null", "mlflow:sqlite:///HERE/outputs/mlflow.db#nightly"),
        ("stores.mlflow.MlflowStore", "null", "http://host:5000", "mlflow:http://host:5000#nightly"),
        ("stores.own.MlflowStore", "null", "http://host:5000", None),
        ("stores.own.Bucket", "s3://bucket/prefix", "null", None),
    ],
)
def test_the_place_of_each_kind_of_store_is_known_from_the_folder_of_a_run(
    here: Path, kind: str, root: str, uri: str, place: str | None
) -> None:
    record(here, B, kind, root, uri)
    found = files.store(here / "outputs" / "runs" / B, here / "outputs")
    assert found == (place and place.replace("HERE", str(here)))


def test_the_number_of_an_attempt_is_not_enough_where_two_machines_have_started_one_each(here: Path) -> None:
    save(LocalStore(here / "outputs" / "checkpoints"), f"{IDENTITY}/a0001-dddd", 70)
    with pytest.raises(RequestError, match=f"expected {A} or {IDENTITY}/a0001-dddd$"):
        loaded(f"{IDENTITY}/a0001", here)


def test_of_the_known_runs_the_nearest_is_named_first_and_then_the_newest(here: Path) -> None:
    for age, name in enumerate(["wdsr_a-x4-01", "wdsr_a-x4-02", "wdsr_b-x4-03", "wdsr_b-x4-04", "zdsr-x4-05"]):
        (here / "outputs" / "runs" / name / "a0001-aaaa").mkdir(parents=True)
        os.utime(here / "outputs" / "runs" / name, (2_000_000_000 - age,) * 2)
    with pytest.raises(RequestError, match=f"Known: {IDENTITY}, wdsr_a-x4-01, wdsr_a-x4-02, wdsr_b-x4-03"):
        loaded("edsr-x2-01234", here)


def test_a_run_without_a_checkpoint_is_refused(here: Path) -> None:
    shutil.rmtree(here / "outputs" / "checkpoints")
    with pytest.raises(RequestError, match=rf"{IDENTITY}: {B} has no checkpoint in "):
        evaluated(IDENTITY, here)


def test_a_checkpoint_without_a_manifest_is_none(here: Path) -> None:
    (here / "best" / "manifest.json").unlink()
    with pytest.raises(RequestError, match=r"best: a folder, but not of .* a whole checkpoint"):
        loaded("best", here)
    (here / "outputs" / "checkpoints" / A / "step-00000020" / "manifest.json").unlink()
    assert loaded(A, here) == 10


@pytest.mark.parametrize("manifest", ["", "[]", '{"files": 3}', "[" * 100_000])
def test_a_manifest_that_says_nothing_useful_is_a_damage(here: Path, manifest: str) -> None:
    (here / "best" / "manifest.json").write_text(manifest)
    with pytest.raises(RunError, match=r"best is damaged: manifest.json"):
        loaded("best", here)


def test_weights_files_and_their_urls_stand_for_themselves(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "edsr_x4.pt")

    def source(name: str) -> Source:
        return find_source(name, outputs=tmp_path, checkpoints=tmp_path / "checkpoints")

    assert source(str(tmp_path / "edsr_x4.pt")) == Source(str(tmp_path / "edsr_x4.pt"), "edsr_x4")
    assert source("https://host/w/edsr.pth?raw=1") == Source("https://host/w/edsr.pth?raw=1", "edsr")


def test_a_weights_file_is_no_checkpoint_to_resume_or_to_look_into(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("edsr.pt", "https://host/edsr.pt"):
        (here / "edsr.pt").touch()
        with pytest.raises(RequestError, match=rf"trainer.resume={name}: a weights file; expected a run"):
            resumed(name, here)
        assert ckpt.main(["diff", name, name]) == 2
        assert f"{name}: a weights file; expected a run or a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("trained", "rule"),
    [(EDSR(scale=4, num_filters=8, num_res_blocks=1), "matching takes what fits"),
     (EDSR(scale=2, num_filters=4, num_res_blocks=1), "body keeps the scale and leaves the upsampler new"),
     (SRResNet(scale=4, num_filters=4, num_res_blocks=2), "")],
)  # fmt: skip
def test_weights_that_do_not_fit_point_to_another_rule_where_there_is_one(
    here: Path, trained: torch.nn.Module, rule: str
) -> None:
    settings, mine = parts_of(here / "outputs", None).checkpoint, EDSR(scale=4, num_filters=4, num_res_blocks=1)
    settings.init_from = str(weights.export(trained, "trained.safetensors"))
    with pytest.raises(RequestError) as refused:
        initialise(mine, settings, catalogue(here))
    assert str(refused.value).endswith(f". checkpoint.init_rule={rule}") if rule else "rule" not in str(refused.value)
    with pytest.raises(RequestError) as refused:
        load_network(find_source(settings.init_from, outputs=Path("outputs")), mine, {})
    assert "init_rule" not in str(refused.value)


def test_a_source_knows_its_step_its_config_and_its_run_in_mlflow(here: Path) -> None:
    def source(name: str) -> Source:
        return find_source(name, outputs=Path("outputs"), checkpoints="outputs/checkpoints")

    first, second = source(f"{A}/step-10"), source(B)
    assert (first.step, first.label, first.config) == (10, f"{IDENTITY} step 10", {"model": {"num_filters": 4}})
    assert first.tracker == {"run_id": IN_FOLDER, "tracking_uri": "http://host"}
    assert second.tracker == {"run_id": IN_CHECKPOINT}


def test_the_weights_of_a_checkpoint_are_had_without_its_optimizer(here: Path) -> None:
    training = here / "outputs" / "checkpoints" / B / "step-00000040" / "training.safetensors"
    damage(training)
    assert loaded(IDENTITY, here) == 40 and resumed(IDENTITY, here) == 30


def test_a_password_in_a_name_reaches_no_message(here: Path) -> None:
    for name in ("sr://me:hush@host/edsr-x2-01", "file://me:hush@host/edsr-x2-01"):
        with pytest.raises(RequestError) as error:
            loaded(name, here)
        assert "hush" not in str(error.value)


def test_the_tracking_server_tells_whose_an_mlflow_id_is(here: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{here}/outputs/mlflow.db")
    run = client.create_run(client.create_experiment("sr-run"), tags={"sr_run.attempt": A})
    assert loaded(run.info.run_id, here) == exported(run.info.run_id, here) == 20
