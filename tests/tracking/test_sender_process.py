"""The training process' end of the sender: with senders of a few words, which do what the real one may do."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support import ROOT, environment, wait_until

from sr_runner.tracking import sender_process as module
from sr_runner.tracking.sender_process import SenderProcess, Served

Make = Callable[[str], SenderProcess]

SAYS = """'{"run": "'$0'", "done": true}'"""
DELIVERS = f"""read -r begin; read -r word; case "$word" in '{{"end": '*) echo {SAYS};; esac"""


class Pauses(threading.Event):
    """Pauses that take no time. `first`: what happens in the first."""

    def __init__(self, first: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.first, self.taken = first, list[float | None]()

    def wait(self, timeout: float | None = None) -> bool:
        self.taken.append(timeout)
        if len(self.taken) == 1:
            self.first()
        return self.is_set()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    def make(script: str) -> SenderProcess:
        monkeypatch.setattr(module, "sender_command", lambda *arguments: ["sh", "-c", script, *arguments])
        return SenderProcess(module.sender_environment("http://127.0.0.1:9"), tmp_path)

    monkeypatch.chdir(tmp_path)
    return make


def begun(sender: SenderProcess) -> Served:
    return sender.begin(Path.cwd(), system_metrics=False)


def settled(sender: SenderProcess, served: Served, wait: float = 60) -> bool:
    return sender.settle(served, wait, stays=False)


def test_what_a_sender_reports_is_known_and_its_messages_are_logged(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sender = make(
        f"""run='"run": "'$0'"'
        echo "{{$run, "'"run_id": "7", "trouble": "away", "message": "a start"}}'; echo no report
        echo "{{$run, "'"trouble": null, "message": "a worry", "level": "warning"}}'
        session=$(cut -d" " -f6 /proc/self/stat)
        echo "{{$run, "'"pid": "'$$'", "session": "'$session'", "uri": "'$MLFLOW_TRACKING_URI'"}}'
        {DELIVERS}"""
    )
    served = begun(sender)
    sender.end(served)
    assert settled(sender, served)
    pid = served.reports.pop("pid")
    assert served.reports == {
        "run_id": "7", "trouble": None, "done": True, "uri": "http://127.0.0.1:9",
        "session": pid,  # out of the reach of a Ctrl-C in the terminal
    }  # fmt: skip
    assert [(r.levelname, r.getMessage()) for r in caplog.records if "tracking: a" in r.getMessage()] == [
        ("INFO", "tracking: a start"), ("WARNING", "tracking: a worry"),
    ]  # fmt: skip


def test_a_sender_that_keeps_dying_is_started_five_more_times_after_ever_longer_pauses(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sender = make("echo died >&2; exit 3")
    sender._hurry = pauses = Pauses()
    served = begun(sender)
    assert served.done_with.wait(60)
    assert pauses.taken == [2, 4, 8, 16, 32] and (tmp_path / "sender.log").read_text() == "died\n" * 6
    assert caplog.text.count("the sender ended 6 times; points are kept in the journal") == 1
    assert not settled(sender, served)


def test_a_sender_that_was_started_again_hears_that_training_is_done_meanwhile(make: Make) -> None:
    sender = make(f"if mkdir once; then exit 3; fi; {DELIVERS}")
    ended: list[Served] = []
    sender._hurry = Pauses(first=lambda: sender.end(ended[0]))
    with sender._lock:  # it is begun before its first life ends
        ended.append(begun(sender))
    assert settled(sender, ended[0])


def test_a_sender_that_was_started_again_is_not_told_of_an_end_that_has_not_come(make: Make) -> None:
    sender = make(f"if mkdir once; then exit 3; fi; read -r begin; touch again; read -r word; echo {SAYS}")
    sender._hurry = Pauses()
    served = begun(sender)
    wait_until(Path("again").exists)
    assert not served.done_with.wait(0.2)
    sender.end(served)
    assert settled(sender, served)


def test_a_sender_that_ends_undone_at_the_end_is_started_again_while_it_is_waited_for(
    make: Make, tmp_path: Path
) -> None:
    sender = make(f"if mkdir once; then read -r begin; read -r end; echo died >&2; exit 3; fi; {DELIVERS}")
    served = begun(sender)
    sender.end(served)
    assert settled(sender, served) and (tmp_path / "sender.log").read_text().startswith("died\n")


@pytest.mark.parametrize("trap", ["exit 0", ""], ids=["heeds", "ignores"])
def test_a_sender_that_is_waited_for_in_vain_is_told_to_end_and_made_to(
    trap: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "_GRACE", 60.0 if trap else 0.1)
    sender = make(
        f"""trap '{trap and "echo heard >&2; " + trap}' TERM; echo '{{"run": "'$0'", "trouble": "refused"}}'
        while :; do sleep 0.02; done"""
    )
    served = begun(sender)
    wait_until(lambda: served.reports)
    sender.end(served)
    real = served.done_with.wait
    served.done_with.wait = lambda timeout=None: real(min(timeout or 0, 0.01))  # type: ignore[method-assign]
    assert not settled(sender, served, 0.1)
    process = sender._process
    assert process is not None and process.stdin is not None and process.stdin.closed
    assert process.returncode == (0 if trap else -9)
    assert (tmp_path / "sender.log").read_text() == ("heard\n" if trap else "")
    assert "tracking: waiting for the server: refused (up to 0 s more)" in caplog.text


def test_a_sender_that_is_done_may_end_by_itself(make: Make, tmp_path: Path) -> None:
    sender = make(f"{DELIVERS}; sleep 0.2; echo bye >&2")
    served = begun(sender)
    sender.end(served)
    wait_until(lambda: served.reports.get("done"))
    assert settled(sender, served, 0) and (tmp_path / "sender.log").read_text() == "bye\n"


def test_a_sender_stays_for_the_next_job_and_forgets_what_was_waited_for_in_vain(make: Make, tmp_path: Path) -> None:
    sender = make("while read -r word; do echo $word >> words; done; echo bye >&2")
    first = sender.begin(tmp_path / "a", system_metrics=True)
    sender.end(first)
    assert not sender.settle(first, 0, stays=True) and not sender.is_over
    second = sender.begin(tmp_path / "b", system_metrics=False)
    wait_until(lambda: Path("words").exists() and Path("words").read_text().count("\n") == 4)
    heard = [json.loads(line) for line in Path("words").read_text().splitlines()]
    assert heard == [
        {"begin": f"{tmp_path}/a", "system_metrics": True}, {"end": f"{tmp_path}/a"}, {"drop": f"{tmp_path}/a"},
        {"begin": f"{tmp_path}/b", "system_metrics": False},
    ]  # fmt: skip
    second.done_with.set()
    assert not sender.settle(second, 0, stays=False) and sender.is_over
    assert (tmp_path / "sender.log").read_text() == "bye\n"


def test_a_run_that_goes_on_before_its_earlier_life_is_sent_is_delivered_with_it(make: Make) -> None:
    sender = make(f"read -r begin; read -r end; {DELIVERS}")
    first = begun(sender)
    sender.end(first)
    second = begun(sender)
    sender.end(second)
    assert sender.settle(first, 60, stays=True) and settled(sender, second)


def test_a_sender_that_ended_with_nothing_to_do_is_started_for_the_next_run(make: Make) -> None:
    sender = make(f"if mkdir once 2> /dev/null; then exit 0; fi; {DELIVERS}")
    first = begun(sender)
    sender._served.clear()
    wait_until(lambda: sender.is_over)
    second = begun(sender)
    sender.end(second)
    assert settled(sender, second) and not first.done_with.is_set()


def test_runs_of_one_server_share_a_sender_until_it_is_over(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_senders", [])
    first = module.sender_for("sqlite:///a", tmp_path)
    assert module.sender_for("sqlite:///a", tmp_path / "b") is first
    assert module.sender_for("sqlite:///b", tmp_path) is not first
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "another")
    assert module.sender_for("sqlite:///a", tmp_path) is not first
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
    first.process = 0  # it belongs to the process that this one was forked from
    assert module.sender_for("sqlite:///a", tmp_path) is not first


def test_a_sender_finds_the_package_of_a_clone_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def path() -> str | None:
        return module.sender_environment("sqlite:///x").get("PYTHONPATH")

    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert path() == str(ROOT)
    monkeypatch.setenv("PYTHONPATH", "own")
    assert path() == f"own:{ROOT}"
    monkeypatch.setattr(module, "_ROOT", Path("/lib/site-packages"))
    assert path() == "own"


ENDS_WITHOUT_SETTLING = """
import sys
from pathlib import Path
from sr_runner.tracking import sender_process

sender_process.sender_command = lambda *_: ["cat"]
sender = sender_process.sender_for("http://127.0.0.1:9", Path(sys.argv[1]))
sender.begin(Path(sys.argv[1]), system_metrics=False)
raise SystemExit(3)
"""


def test_a_process_that_ends_without_a_word_does_not_wait_for_its_sender(tmp_path: Path) -> None:
    """The sender waits for that end in turn."""
    ends = [sys.executable, "-c", ENDS_WITHOUT_SETTLING, str(tmp_path)]
    assert subprocess.run(ends, env=environment(), timeout=60, check=False).returncode == 3
