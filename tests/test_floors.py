"""The plan of the house: no package imports from its own floor or from one above."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from sr_runner.checkpoint import RunState

ROOT = Path(__file__).resolve().parents[1]

# Top floor first. docs/architecture.md explains them, with the same lines.
FLOORS = """\
commands
__init__
attempt
training
objectives, distributed, runs
data, checkpoint, tracking, evaluation, weights
inference, models, config
imresize, mlflow_server
masking, signals, streams
files
errors"""

FLOOR_OF = {room.strip(): number for number, floor in enumerate(FLOORS.splitlines()) for room in floor.split(",")}
MODULES = sorted(Path("sr_runner").joinpath(p.relative_to(ROOT / "sr_runner")) for p in ROOT.glob("sr_runner/**/*.py"))


def room_of(module: str) -> str:
    """`checkpoint` for `sr_runner.checkpoint.format`; `__init__` for what stands in `sr_runner/__init__.py`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOOR_OF else "__init__"


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Line number and module of each import of sr_runner's own: those inside functions and those by name (a `_target_`,
    `import_module("sr_runner....")`, `python -m`) included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "sr_runner")
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "sr_runner.commands, or anything: a relative import"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sr_runner":
            if node.module == "sr_runner":
                yield from ((node.lineno, f"sr_runner.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, str(node.module)
        elif isinstance(node, ast.Constant) and (named := re.match(r"sr_runner\.(\w+)[\w.]*$", str(node.value))):
            yield node.lineno, named[0]


def upward(path: Path, source: str) -> list[str]:
    """The imports in `source`, the module at `path`, that do not run downwards."""
    here = path.parts[1].removesuffix(".py")
    rooms = [(line, module, room_of(module)) for line, module in imports(source)]
    return [
        f"{path}:{line} imports {module}"
        for line, module, room in rooms
        if room != here and FLOOR_OF[room] <= FLOOR_OF[here]
    ]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_run_downwards_only(path: Path) -> None:
    assert not upward(path, (ROOT / path).read_text(encoding="utf-8"))


def test_an_import_that_runs_upwards_or_sideways_is_found() -> None:
    below = Path("sr_runner/checkpoint/format.py")
    assert upward(below, "def late():\n    from sr_runner.runs import resolve\n")
    assert upward(below, "from sr_runner import load_model\n")
    assert upward(below, "import sr_runner.weights\n")
    assert upward(below, "from ..commands import run\n") and upward(below, "from . import codec\n")
    assert upward(below, 'import_module("sr_runner.runs.resolve")\nimport_module(f"sr_runner.commands.{name}")\n')
    assert upward(below, 'config = {"_target_": "sr_runner.objectives.PixelObjective"}\n')
    assert not upward(below, 'import_module("sr_runner.errors")\n')
    assert not upward(below, "from sr_runner.checkpoint import stores\nfrom sr_runner.errors import RequestError\n")


def test_only_the_command_lines_the_attempt_and_config_know_hydra() -> None:
    known = {
        path.parts[1]
        for path in MODULES
        if re.search(r"(?m)^ *(from|import) (omegaconf|hydra)\b", (ROOT / path).read_text())
    }
    assert known == {"commands", "attempt", "config"}


def test_only_the_file_of_its_types_knows_the_keys_of_a_checkpoint() -> None:
    own = {each.name for each in fields(RunState)} - {
        "step",
        "best",
        "window",
        "random",
        "networks",
    }  # others use these words
    by_key = re.compile(rf"""(\[|\.get\()["']({"|".join(own)})["']|\.training(\[|\.get\()""")
    texts = {path: (ROOT / path).read_text() for path in MODULES if path.name != "state.py"}
    assert [str(path) for path, text in texts.items() if by_key.search(text)] == []


def test_every_room_is_on_a_floor() -> None:
    rooms = {path.parts[1].removesuffix(".py") for path in MODULES}
    assert rooms == set(FLOOR_OF)


def test_no_more_than_eight_modules_stand_loose() -> None:
    loose = [path for path in MODULES if len(path.parts) == 2 and path.name != "__init__.py"]
    assert len(loose) <= 8


def test_the_architecture_page_names_every_module_but_those_of_single_networks() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    own = {p.stem for p in MODULES if len(p.parts) == 3 and p.parts[1] != "models"} - {"__init__", "__main__"}
    assert {name for name in own if f"`{name}`" not in page} == set()


def test_the_architecture_page_shows_the_same_floors() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown = re.search(r"```floors\n(.*?)```", page, re.DOTALL)
    assert shown is not None and shown[1].strip() == FLOORS
