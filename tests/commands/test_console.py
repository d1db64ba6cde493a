"""How the small tools begin and end."""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from support import ROOT

from sr_runner.commands.console import run_command
from sr_runner.errors import RequestError, RunError

TOOLS = ["ckpt", "evaluate", "upscale", "runs"]


def ended(work: Callable[[], object], *words: str) -> int:
    def status(words: list[str], as_json: bool) -> int:
        work()
        return 0

    return run_command("sr-test", lambda: "page", words, status)


def fail(error: BaseException) -> Callable[[], object]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status"), [(RequestError("scale=x"), 2), (RunError("scale=x"), 1), (OSError("scale=x"), 1)]
)
def test_wrong_requests_end_with_2_and_failures_with_1_in_one_sentence(
    error: Exception, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(fail(error)) == status
    assert capsys.readouterr() == ("", "sr-test: scale=x\n")


def test_a_fault_of_the_code_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        ended(fail(ZeroDivisionError()))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_ends_a_tool_with_128_and_its_number(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    assert ended(lambda: os.kill(os.getpid(), signum)) == 128 + signum
    assert signal.getsignal(signum) == before


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_that_nohup_has_ignored_stays_ignored(signum: signal.Signals) -> None:
    before = signal.signal(signum, signal.SIG_IGN)
    try:
        assert ended(lambda: os.kill(os.getpid(), signum)) == 0
        assert signal.getsignal(signum) == signal.SIG_IGN
    finally:
        signal.signal(signum, before)


def test_secrets_stay_out_of_messages(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(fail(RequestError("tracker.uri=http://me:hunter2@host?token=abc1: no server"))) == 2
    error = capsys.readouterr().err
    assert "hunter2" not in error and "abc1" not in error and "no server" in error


def test_json_is_told_apart_from_the_words() -> None:
    seen: list[tuple[list[str], bool]] = []

    def work(words: list[str], as_json: bool) -> int:
        seen.append((words, as_json))
        return 0

    assert run_command("sr-test", lambda: "", ["a", "--json", "b=c"], work) == 0
    assert seen == [(["a", "b=c"], True)]


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_has_a_help_page_of_the_same_sections_a_version_and_refuses_no_words(
    tool: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module(f"sr_runner.commands.{tool}").main
    assert main(["anything", "-h"]) == 0
    page = capsys.readouterr().out
    sections = ["\nUsage\n", "\nCommon commands\n", "\nOptions\n", "\n  --json ", "\n  --version ", "\nExit status: 0 "]
    places = [page.find(section) for section in sections]
    assert places == sorted(places) and -1 not in places and max(map(len, page.splitlines())) <= 120
    for key in ("outputs=outputs", "checkpoint.root=null", "tracker.uri=null"):
        assert page.count(f"\n  {key} ") == 1

    assert main(["--version"]) == 0
    versions = capsys.readouterr().out
    assert all(f"{name} " in versions for name in ("sr-run", "torch", "hydra-core", "mlflow"))

    assert main([]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_can_be_started_as_a_module(tool: str) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["tool", "--version"])
        runpy.run_module(f"sr_runner.commands.{tool}", run_name="__main__")
    assert ended.value.code == 0


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(tool: str, option: str) -> None:
    program = (
        f"from sr_runner.commands.{tool} import main; import sys; main(['{option}']); "
        "sys.exit(not {'torch', 'hydra', 'omegaconf', 'numpy', 'yaml', 'mlflow'}.isdisjoint(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_reader_that_goes_away_is_no_failure() -> None:
    program = "from sr_runner.commands.ckpt import main; import sys; sys.exit(main(['--help']))"
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", program], env=buffered | {"PYTHONPATH": str(ROOT)}, stdout=writing,
        stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
