"""Where the server is, absolutely and without its password."""

from __future__ import annotations

from pathlib import Path

import pytest

from sr_runner.errors import RequestError
from sr_runner.mlflow_server import Server, sqlite_file, tracking_uri, ui_hint
from sr_runner.tracking import MlflowTracker


def test_the_default_is_a_database_in_the_outputs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(None, Path("outputs")) == f"sqlite:///{tmp_path}/outputs/mlflow.db"


def test_the_environment_counts_where_the_config_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert tracking_uri(None, tmp_path) == "http://host:5000"
    assert tracking_uri("http://other:5000", tmp_path) == "http://other:5000"


def test_a_relative_database_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking_uri("sqlite:///a/b.db?timeout=5", tmp_path) == f"sqlite:///{tmp_path}/a/b.db?timeout=5"
    assert sqlite_file(f"sqlite:///{tmp_path}/a#1/b.db?timeout=5") == tmp_path / "a#1" / "b.db"


@pytest.mark.parametrize(
    "uri", ["htp://host:5000", "mlruns", "./mlruns", "file:./mlruns", "sqlite://", "sqlite:///:memory:"]
)
def test_what_mlflow_has_no_store_for_is_refused_by_name(uri: str) -> None:
    with pytest.raises(RequestError, match=r"tracker\.uri="):
        MlflowTracker(uri=uri)


def test_a_file_that_is_no_database_is_refused_and_nothing_is_made_beside_it(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("root:x:0:0\n")
    for name in ("passwd", "."):
        with pytest.raises(RequestError, match="is no SQLite database"):
            MlflowTracker(uri=f"sqlite:///{tmp_path / name}")
    assert [path.name for path in tmp_path.iterdir()] == ["passwd"]


def test_a_misspelt_scheme_is_recognised() -> None:
    with pytest.raises(RequestError, match="Did you mean 'http'"):
        MlflowTracker(uri="htp://ann:secret@host:5000")
    with pytest.raises(RequestError, match=r"^(?!.*secret)"):
        MlflowTracker(uri="htp://ann:secret@host:5000")


def test_a_database_whose_driver_is_missing_is_refused_with_its_name() -> None:
    with pytest.raises(RequestError, match=r"^(?!.*secret).*expected the Python package nosuchdriver,"):
        MlflowTracker(uri="postgresql+nosuchdriver://ann:secret@host/db")


def test_the_tables_are_made_beside_an_empty_database_which_a_kill_amid_them_would_break(tmp_path: Path) -> None:
    (database := tmp_path / "mlflow.db").touch()
    with database.open("rb") as empty:
        server = Server(f"sqlite:///{database}", tmp_path / "artifacts")
        assert server.ask(lambda client: len(client.search_experiments())) == 1
        assert empty.read() == b""


def test_an_experiment_needs_a_name() -> None:
    with pytest.raises(RequestError, match=r"tracker\.experiment"):
        MlflowTracker(experiment=" ")


def test_the_hint_is_a_command_for_a_database_and_an_address_for_a_server() -> None:
    command, page = ui_hint("sqlite:////data/my runs/mlflow.db", "3", "abc")
    assert command == "mlflow ui --backend-store-uri 'sqlite:////data/my runs/mlflow.db'"
    assert page == "http://127.0.0.1:5000/#/experiments/3/runs/abc?workflowType=machine_learning"
    assert ui_hint("https://ann:pass@host/mlflow/", "3", "abc") == (
        "",
        "https://host/mlflow/#/experiments/3/runs/abc?workflowType=machine_learning",
    )
    assert ui_hint("https://host") == ("", "https://host/")
