"""Plant one small fault at a time, and see whether the default suite finds it.

    python tests/tools/mutants.py --count 150 --seed 0
    python tests/tools/mutants.py --count 20 --reach reach.txt sr_runner/checkpoint/lease.py

A fault is one change to the syntax tree of one of the files below: another comparison, operator or number, a condition
that is turned round, a call that is left out, a value that is not returned. `--count` faults are drawn at random,
spread evenly over the files; each is planted in a copy of the repository, where those tests run that reach its block of
code, in whatever process they reach it, until one fails. Which these are is measured first, by a run of the default
suite; `--reach` keeps that until a file changes. With `--nearest` so many tests run for each, those of the mirrored
folder first: quick, and a lower bound. Faults in messages, logging and type annotations are not planted: no test has to
find them.

Every survivor is printed as a difference of one line: some change nothing that anybody could see (they are equivalent),
the others are holes in the suite.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path

import fork_server

ROOT = Path(__file__).resolve().parents[2]
CORE = (
    "training/orchestrator.py", "training/validation.py", "training/window.py", "objectives/*.py", "checkpoint/**/*.py",
    "data/sampling.py", "data/counter.py", "data/crops.py", "data/batches.py", "data/loader.py", "tracking/*.py",
    "config/identity.py", "attempt/resume.py", "attempt/execute.py", "attempt/record.py", "attempt/lock.py",
)  # fmt: skip
"""Where promises are kept: faults are planted in these files of `sr_runner`."""

_COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_UNSEEN = {"debug", "info", "warning", "error", "exception", "critical"}
_SECONDS = 900
_DEFAULTS = "tests/config/test_defaults.py::test_config_and_class_have_the_same_defaults_or_only_one_of_them_has"
"""Reads the arguments' defaults of every part, and runs none of its code."""
_IGNORED = shutil.ignore_patterns(".git", "outputs", "__pycache__", ".*_cache")
# In the copy that the reach is measured in. A test's name is in the environment, and so in that of what it starts.
_RECORDER = """
import contextlib, os
seen = set()
def hit(place):
    test = os.environ.get("PYTEST_CURRENT_TEST", "")
    if test and (test, place) not in seen:
        seen.add((test, place))
        # Some tests have no room for any file.
        with contextlib.suppress(OSError), open(os.environ["SR_REACH"], "ab", 0) as file:
            file.write(f"{place}\\t{test}\\n".encode())
"""


@dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    what: str
    source: str


def core() -> list[str]:
    found = (path for pattern in CORE for path in sorted((ROOT / "sr_runner").glob(pattern)))
    return [str(path.relative_to(ROOT)) for path in found]


def mutant(file: str, number: int) -> Mutant:
    """One fault of a file."""
    tree = ast.parse((ROOT / file).read_text())
    line, what, change = next(islice(_places(tree), number, None))
    change()
    return Mutant(file, line, what, ast.unparse(ast.fix_missing_locations(tree)))


def _places(tree: ast.Module) -> Iterator[tuple[int, str, Callable[[], object]]]:
    """Line, kind and doing of each change that can be made in `tree`."""
    for node in _worth_it(tree):
        match node:
            case ast.Compare(ops=[op]) if type(op) in _COMPARISONS:
                yield (
                    node.lineno,
                    "comparison",
                    lambda node=node, op=op: setattr(node, "ops", [_COMPARISONS[type(op)]()]),
                )
            case ast.BinOp(op=op) if type(op) in _OPERATORS and not _is_text(node):
                yield node.lineno, "operator", lambda node=node, op=op: setattr(node, "op", _OPERATORS[type(op)]())
            case ast.BoolOp(op=op):
                other = ast.Or() if isinstance(op, ast.And) else ast.And()
                yield node.lineno, "and/or", lambda node=node, other=other: setattr(node, "op", other)
            case ast.Constant(value=bool() as value):
                yield node.lineno, "constant", lambda node=node, value=value: setattr(node, "value", not value)
            case ast.Constant(value=int() | float() as value):
                yield node.lineno, "number", lambda node=node, value=value: setattr(node, "value", value + 1)
            case ast.If() | ast.While() | ast.IfExp():
                turned = ast.UnaryOp(ast.Not(), node.test)
                yield node.lineno, "condition", lambda node=node, turned=turned: setattr(node, "test", turned)
            case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Delete():
                yield node.lineno, "statement", lambda node=node: _leave_out(tree, node)
            case ast.Return(value=ast.expr() as value) if not _is_none(value):
                yield node.lineno, "return", lambda node=node: setattr(node, "value", ast.Constant(None))


def _worth_it(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below, but those that nobody sees the effect of."""
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or name in ("annotation", "returns", "decorator_list"):
                continue
            if isinstance(child, ast.JoinedStr | ast.Raise | ast.Assert) or _is_logging(child) or _is_typing(child):
                continue
            yield child
            yield from _worth_it(child)


def _is_logging(node: ast.AST) -> bool:
    match node:
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="log" | "logger"), attr=attr))):
            return attr in _UNSEEN
    return False


def _is_typing(node: ast.AST) -> bool:
    """Such as `if TYPE_CHECKING:` and module-level aliases, `A = B | C`."""
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Assign(targets=[ast.Name()], value=ast.BinOp(op=ast.BitOr())) if node.col_offset == 0:
            return True
        case ast.Call(func=ast.Name(id="isinstance")):
            return True
    return False


def _is_text(node: ast.BinOp) -> bool:
    return any(isinstance(n, ast.JoinedStr) or isinstance(getattr(n, "value", 0), str | bytes) for n in ast.walk(node))


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _leave_out(tree: ast.Module, statement: ast.stmt) -> None:
    for node in ast.walk(tree):
        for body in (getattr(node, part, None) for part in ("body", "orelse", "finalbody")):
            if isinstance(body, list) and statement in body:
                body[body.index(statement)] = ast.copy_location(ast.Pass(), statement)


def draw(files: list[str], count: int, seed: int) -> list[Mutant]:
    """`count` faults, in turn from each file as long as it has any."""
    chance = random.Random(seed)
    numbers = {file: range(sum(1 for _ in _places(ast.parse((ROOT / file).read_text())))) for file in files}
    piles = [[(file, number) for number in chance.sample(known, len(known))] for file, known in numbers.items()]
    chance.shuffle(piles)
    in_turn = (each for row in zip_longest(*piles) for each in row if each is not None)
    return [mutant(*each) for each in islice(in_turn, count)]


# -- which tests reach a line ------------------------------------------------------------------------------------------


def _blocks(tree: ast.Module) -> list[list[ast.stmt]]:
    """What runs together: bodies of functions, branches and loops."""
    return [
        body
        for node in ast.walk(tree)
        if not isinstance(node, ast.Module | ast.ClassDef)
        for body in (getattr(node, part, None) for part in ("body", "orelse", "finalbody"))
        if isinstance(body, list) and body
    ]


def measure(reach: Path, *tests: str) -> None:
    """Run `tests` (none: the default suite), and add to `reach` the blocks of code that each gets to."""
    with tempfile.TemporaryDirectory() as place:
        copy_of = _copied(Path(place))
        (copy_of / "sr_reach.py").write_text(_RECORDER)
        for file in core():
            tree = ast.parse((copy_of / file).read_text())
            for body in _blocks(tree):
                mark = ast.parse(f"__import__('sr_reach').hit('{file}:{body[0].lineno}')").body[0]
                body.insert(1 if _is_docstring(body[0]) and len(body) > 1 else 0, ast.copy_location(mark, body[0]))
            (copy_of / file).write_text(ast.unparse(ast.fix_missing_locations(tree)))
        environment = _environment(copy_of) | {"SR_REACH": str(reach.absolute())}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        subprocess.run(command, cwd=copy_of, env=os.environ | environment, stdin=subprocess.DEVNULL, check=False)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


class Reach:
    """The tests that reach a line, by what `measure` wrote."""

    def __init__(self, path: Path) -> None:
        self._tests: dict[str, set[str]] = defaultdict(set)
        for line in path.read_text().splitlines():
            place, _, test = line.partition("\t")
            test, _, when = test.rpartition(" (")
            # What a fixture does, all tests of its file may look at.
            self._tests[place].add(test if when == "call)" else test.partition("::")[0])
        self._width = Counter(test for tests in self._tests.values() for test in tests)

    def tests(self, mutant: Mutant) -> list[str]:
        """The nearest first: those of the mirrored folder, and then those that reach least."""
        blocks = [
            (body[0].lineno, body[-1].end_lineno or 0) for body in _blocks(ast.parse((ROOT / mutant.file).read_text()))
        ]
        block = max((first for first, last in blocks if first <= mutant.line <= last), default=None)
        found: Iterable[str]
        if block is None:  # of the module, or a class: whoever reaches anything of it
            found = {_DEFAULTS} | {test for first, _ in blocks for test in self._tests[f"{mutant.file}:{first}"]}
        else:
            found = self._tests[f"{mutant.file}:{block}"]
        whole = {test for test in found if "::" not in test}
        own = f"tests/{mutant.file.split('/')[1]}/"
        found = (test for test in found if test in whole or test.partition("::")[0] not in whole)
        return sorted(found, key=lambda test: (not test.startswith(own), self._width[test], test))


# -- planting ----------------------------------------------------------------------------------------------------------


def _copied(place: Path) -> Path:
    copy_of = place / "sr-run"
    shutil.copytree(ROOT, copy_of, ignore=_IGNORED)
    (copy_of / "tmp").mkdir()
    return copy_of


def _environment(copy_of: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(copy_of), "TMPDIR": str(copy_of / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}


def warm_up() -> None:
    """Import what all tests import, and nothing of this repository: a test run is a fork of this process."""
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401

    fork_server.warm_up()
    for name, module in list(sys.modules.items()):
        if name != "__main__" and str(getattr(module, "__file__", "")).startswith(str(ROOT)):
            del sys.modules[name]
    gc.collect()
    gc.freeze()  # or each fork copies all of it, when its own collector looks at it


def found_by(mutant: Mutant, copy_of: Path, tests: list[str]) -> str:
    """The test that fails with it; empty where all pass."""
    if not tests:
        return ""
    file, log = copy_of / mutant.file, copy_of / "log"
    original = file.read_text()
    file.write_text(mutant.source)
    log.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        fork_server.be_child(log, log, partial(_test, copy_of, tests))
    child = fork_server.Child(pid, log)
    try:
        code = child.wait(_SECONDS)
        if code is None:  # a single test that hangs has failed long before
            child.kill()
            return ""
        said = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(("FAILED", "ERROR"))]
        return (said or [f"pytest: {code}"])[-1] if code else ""
    finally:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        fork_server.end_orphans(0)
        file.write_text(original)
        shutil.rmtree(copy_of / "tmp", ignore_errors=True)
        (copy_of / "tmp").mkdir(exist_ok=True)  # somebody's last file may have kept it


def _test(copy_of: Path, tests: list[str]) -> int:
    import pytest

    os.chdir(copy_of)
    os.environ.update(_environment(copy_of))
    tempfile.tempdir = None
    sys.dont_write_bytecode = True
    sys.path[:] = [str(copy_of), *(path for path in sys.path if path and not path.startswith(str(ROOT)))]
    return int(pytest.main(["-n", "0", "-x", "-q", "--timeout", "120", "-p", "no:cacheprovider", "--tb=line", *tests]))


def difference(mutant: Mutant) -> str:
    before = ast.unparse(ast.parse((ROOT / mutant.file).read_text())).splitlines()
    lines = difflib.unified_diff(before, mutant.source.splitlines(), n=0, lineterm="")
    return "\n".join(line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="only these")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nearest", type=int, help="run at most so many tests for each fault")
    parser.add_argument("--reach", type=Path, help="which tests reach what; measured where there is none yet")
    args = parser.parse_args()
    alive = 0
    with tempfile.TemporaryDirectory() as place:
        path = args.reach or Path(place, "reach.txt")
        if not path.exists():
            measure(path)
        reach = Reach(path)
        copy_of = _copied(Path(place))
        drawn = draw(args.files or core(), args.count, args.seed)
        warm_up()
        for number, mutant in enumerate(drawn, 1):
            tests = reach.tests(mutant)[: args.nearest]
            test = found_by(mutant, copy_of, tests)
            alive += not test
            said = test or f"survives {len(tests)} tests\n{difference(mutant)}"
            print(f"{number} {mutant.file}:{mutant.line} ({mutant.what}) {said}", flush=True)
    print(f"seed {args.seed}: {len(drawn) - alive} of {len(drawn)} faults found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
