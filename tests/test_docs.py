"""What the documentation shows is true: its commands compose, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT

from sr_runner.commands.help import page as help_page
from sr_runner.commands.run import main
from sr_runner.config.settings import config_dir
from sr_runner.runs import folder as files

HELP = ROOT / "sr-run --help"
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"(?s)```python\n(.*?)```", README)
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every `sr-run` line of the pages and of the recipes' first lines: where it stands, its arguments."""
    for path in [HELP, *PAGES, *sorted(ROOT.glob("conf/experiment/*.yaml"))]:
        text = help_page(config_dir()) if path == HELP else path.read_text(encoding="utf-8").replace("\\\n", " ")
        for found in re.finditer(r"(?m)^(?:    |  |# |#   )(sr-run [^`\n]*)", text):
            line = re.sub(r" -- .*| & pid=.*", "", found[1])
            line = re.sub(r"<[^>]*>", "edsr-x2-3f9a12c40b1e", line).rstrip(";")
            words = shlex.split(re.sub("   .*", "", line) if path == HELP else line, comments=True)[1:]
            if not any("..." in word or word.startswith(("[", "-sc", "--help", "--hydra-help")) for word in words):
                yield f"{path.relative_to(ROOT)}: {line}", words


# A command that stands in several places is looked at once.
COMMANDS = dict({str(each[1]): each for each in commands()}.values())


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_composes(
    line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("DIR", "my_conf/experiment", "my_conf/model"):
        (tmp_path / folder).mkdir(parents=True)
    for name, text in re.findall(r"(?s)`(my_conf/[\w/]+\.yaml)`.*?```yaml\n(.*?)```", README):
        (tmp_path / name).write_text(text)
    (tmp_path / "mine.py").write_text(next(each for each in PYTHON if "class Net" in each))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for word in COMMANDS[line]:
        if word.startswith("trainer.resume=") and word not in ("trainer.resume=true", "trainer.resume=false"):
            run = tmp_path / "outputs" / "runs" / word.partition("=")[2] / "a0001-cafe"
            files.begin(run, {}, "", {"request": {"overrides": []}})
    words = [word for word in COMMANDS[line] if word not in ("-m", "--cfg", "job")]
    # The first job of a sweep; launchers are plugins that need not be there.
    words = [re.sub(r"^([\w.]+=[^,\[{'\"]*),.*", r"\1", word) for word in words if "hydra" not in word]
    words = [word for word in words if not re.match(r"[\w.]+=(tag|range|interval|int)\(", word)]
    assert main([*words, "--cfg", "job"]) == 0, capsys.readouterr().err


def test_there_are_commands_to_look_at() -> None:
    assert len(COMMANDS) > 40 and len(re.findall("(?m)^```yaml", README)) == 2


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_a_page_links_to_is_in_the_source_distribution(page: Path) -> None:
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"][
        "include"
    ]
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve().relative_to(ROOT)
        is_page = len(path.parts) == 1 and path.suffix == ".md" and "/*.md" in included
        assert is_page or path.parts[0] in (*included, "LICENSE"), target


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200
