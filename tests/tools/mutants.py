"""Plant one small fault at a time, and see whether the default suite finds it.

    python tests/tools/mutants.py --count 100 --seed 0
    python tests/tools/mutants.py --count 20 sr_runner/checkpoint/lease.py

A fault is one change to the syntax tree of one of the files below: another comparison, operator or number, a condition
that is turned round, a call that is left out, a value that is not returned. `--count` faults are drawn at random,
spread evenly over the files; each is planted in a copy of the repository, where the tests that belong to its file run
until one fails. Only those tests: a fault that survives here may still be found by another of the suite. Faults in
messages, logging and type annotations are not planted: no test has to find them.

Every survivor is printed as a difference of one line: some change nothing that anybody could see (they are equivalent),
the others are holes in the suite.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[2]
TESTS = {
    "sr_runner/training/orchestrator.py": "tests/training",
    "sr_runner/training/validation.py": "tests/training",
    "sr_runner/training/window.py": "tests/training",
    "sr_runner/objectives/learner.py": "tests/objectives/test_learner.py tests/training",
    "sr_runner/objectives/gan.py": "tests/objectives/test_gan.py",
    "sr_runner/objectives/ema.py": "tests/objectives/test_ema.py tests/training",
    "sr_runner/checkpoint/manager.py": "tests/checkpoint/test_manager.py tests/checkpoint/test_spool.py tests/training",
    "sr_runner/checkpoint/writer.py": "tests/checkpoint/test_manager.py tests/checkpoint/test_spool.py tests/training",
    "sr_runner/checkpoint/reader.py": "tests/attempt/test_resume.py tests/attempt/test_damage.py",
    "sr_runner/checkpoint/lease.py": "tests/checkpoint/test_lease.py",
    "sr_runner/checkpoint/retention.py": "tests/checkpoint/test_retention.py tests/checkpoint/test_manager.py",
    "sr_runner/checkpoint/format.py": "tests/checkpoint/test_manager.py tests/attempt/test_damage.py",
    "sr_runner/checkpoint/codec.py": "tests/checkpoint/test_codec.py tests/attempt/test_damage.py",
    "sr_runner/checkpoint/stores/local.py": "tests/checkpoint/test_manager.py tests/attempt/test_commit.py",
    "sr_runner/data/sampling.py": "tests/data/test_sampling.py tests/data/test_dataset.py",
    "sr_runner/data/counter.py": "tests/data/test_counter.py tests/data/test_sampling.py",
    "sr_runner/tracking/journal.py": "tests/tracking/test_journal.py tests/tracking/test_tracker.py",
    "sr_runner/tracking/delivery.py": "tests/tracking/test_delivery.py tests/tracking/test_journal_damage.py",
    "sr_runner/config/identity.py": "tests/config/test_identity.py",
    "sr_runner/attempt/resume.py": "tests/attempt/test_resume.py",
}
"""The files, and the tests that are theirs, the quickest first."""

_COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_UNSEEN = {"debug", "info", "warning", "error", "exception"}
_SECONDS = 600


@dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    what: str
    source: str


def mutants(file: str) -> list[Mutant]:
    """All faults of one file."""
    original = (ROOT / file).read_text()
    found = []
    for number in range(sum(1 for _ in _places(ast.parse(original)))):
        tree = ast.parse(original)
        line, what, change = next(each for at, each in enumerate(_places(tree)) if at == number)
        change()
        found.append(Mutant(file, line, what, ast.unparse(ast.fix_missing_locations(tree))))
    return found


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
    piles = [chance.sample(pile, len(pile)) for pile in map(mutants, files)]
    drawn: list[Mutant] = []
    while len(drawn) < count and any(piles):
        drawn += [pile.pop() for pile in piles if pile]
    return drawn[:count]


def survives(mutant: Mutant, copy_of: Path, tests: str) -> bool:
    """Whether the tests pass with it."""
    file = copy_of / mutant.file
    original = file.read_text()
    file.write_text(mutant.source)
    command = [sys.executable, "-B", "-m", "pytest", "-n", "0", "-x", "-q", "-p", "no:cacheprovider", *tests.split()]
    environment = os.environ | {"PYTHONPATH": str(copy_of), "TMPDIR": str(copy_of / "tmp")}
    try:
        with subprocess.Popen(
            command, cwd=copy_of, env=environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            try:
                return process.wait(_SECONDS) == 0
            except subprocess.TimeoutExpired:
                return False  # it hangs: that is noticed
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    finally:
        file.write_text(original)
        shutil.rmtree(copy_of / "tmp", ignore_errors=True)
        (copy_of / "tmp").mkdir()


def difference(mutant: Mutant) -> str:
    before = ast.unparse(ast.parse((ROOT / mutant.file).read_text())).splitlines()
    lines = difflib.unified_diff(before, mutant.source.splitlines(), n=0, lineterm="")
    return "\n".join(line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="only these")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    files = args.files or list(TESTS)
    drawn = draw(files, args.count, args.seed)
    alive: list[Mutant] = []
    with tempfile.TemporaryDirectory() as place:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(args.jobs):
            copy_of = Path(place, str(number))
            ignored = shutil.ignore_patterns(".git", "outputs", "__pycache__", ".*_cache")
            shutil.copytree(ROOT, copy_of, ignore=ignored)
            (copy_of / "tmp").mkdir()
            copies.put(copy_of)

        def look(mutant: Mutant) -> bool:
            copy_of = copies.get()
            try:
                return survives(mutant, copy_of, TESTS[mutant.file])
            finally:
                copies.put(copy_of)

        def report(mutant: Mutant) -> None:
            if look(mutant):
                alive.append(mutant)
                print(f"{mutant.file}:{mutant.line} ({mutant.what}) survives\n{difference(mutant)}", flush=True)

        with ThreadPoolExecutor(args.jobs) as pool:
            each_once = {TESTS[each.file]: each.file for each in drawn}.values()
            sound = [Mutant(file, 0, "none", (ROOT / file).read_text()) for file in each_once]
            broken = [each.file for each, passes in zip(sound, pool.map(look, sound), strict=True) if not passes]
            if broken:
                print(f"without any fault, the tests fail that belong to {', '.join(broken)}", file=sys.stderr)
                return 1
            for done, _ in enumerate(pool.map(report, drawn), 1):
                print(f"{done} of {len(drawn)}, {len(alive)} survive", file=sys.stderr, flush=True)
    print(f"seed {args.seed}: {len(drawn) - len(alive)} of {len(drawn)} faults found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
