"""Random command lines of sr-run, most of them wrong: each ends in one message and status 2, or with status 0.

    python tests/tools/command_lines.py --count 5000 --seed 0

They are made of the config's own keys and groups: typos, values of other types, null for any key, huge numbers, NaN,
Unicode, control characters, brackets that do not close, interpolations, duplicates, options of other groups, places
where nothing can be written, devices that are not there, classes that are no part, Hydra's own keys and those that it
takes beside the arguments of a class. Most are only composed (`--cfg job`); the others build every part of a run and
end before a run is started: they resume one that is not there. Each runs in this process, in a scratch folder below
which all made-up paths lie.

Exit status 0 if nothing was found.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from omegaconf import OmegaConf

from sr_runner.commands.run import main
from sr_runner.config.compose import composed
from sr_runner.config.identity import flatten

ROOT = Path(__file__).resolve().parents[2]
GROUPS = ("model", "objective", "optimizer", "scheduler", "data", "checkpoint", "tracker", "trainer", "experiment")
# Before anything is trained: of the parts that a run is made of the last one says no.
NEVER_STARTS = "trainer.resume=no-such-run"
FIXED = ("trainer.resume", "data.preview", "hydra.verbose")
"""Keys whose value has to stay, or what is asked for is done; they are spoilt where the line is only composed."""
PLACES = ("outputs", "data.cache_dir", "checkpoint.root", "hydra.run.dir", "hydra.sweep.dir", "hydra.output_subdir")
PATHS = (
    "null", "''", "5", "true", "[a]", "{a:1}", "abc", "nope/deep/er", "/proc/nope", "/dev/null", "/etc/passwd", "é",
    "/etc/passwd/x", "a file", "a file/x", "a link", "a link/x", "a loop/x", "\x1b[31mred", "a\\nb", "\x00", "x://y",
    "x" * 5000, "${seed}", "${nope}", "${outputs}",
)  # fmt: skip
DEVICES = ("cuda", "cuda:0", "cuda:99", "cuda:", "cuda:-1", "cpu:0", "mps", "meta", "tpu", "CUDA", "cuda:9999999999999")
TARGETS = (
    "builtins.print", "builtins.dict", "builtins.object", "builtins.Exception", "builtins.type", "builtins.quit",
    "torch", "sys.exit", "sys.path", "math.pi", "os.getcwd", "os.system", "pathlib.Path", "collections.OrderedDict",
    "torch.nn", "functools.partial", "json.loads", "logging.getLogger", "subprocess.getoutput", "torch.nn.Conv2d",
    "torch.nn.Identity", "torch.optim.LBFGS", "torch.optim.Optimizer", "torch.optim.lr_scheduler.StepLR",
    "sr_runner.data.SampleData", "sr_runner.models.EDSR", "sr_runner.signals.Stopped", "unittest.mock.Mock",
    "argparse.ArgumentParser",
)  # fmt: skip
HYDRAS = ("_target_", "_recursive_", "_partial_", "_convert_", "_args_")
HYDRA = (
    "mode", "verbose", "sweeper", "launcher", "callbacks", "callbacks.mine", "callbacks.mine._target_", "job",
    "job.name", "job.chdir", "job.env_set", "run", "sweep", "sweep.subdir", "runtime", "overrides", "help",
    "searchpath", "defaults", "sweeper.params", "sweeper._target_", "launcher._target_", "job_logging",
    "hydra_logging",
)  # fmt: skip
TYPED = (
    "null", "true", "false", "yes", "no", "on", "off", "0", "1", "-1", "3", "0.5", "-0.5", "1e-3", "1e400", "-1e400",
    "nan", "inf", "-inf", "''", '""', "[]", "{}", "[1,2]", "[a,b]", "{a:1}", "[[1],[2]]", "{a:{b:1}}", "abc",
    "null null", "1 2", "2147483648", "9223372036854775807", "9223372036854775808", "-9223372036854775809",
    "99999999999999999999999", "0x10", "1_000", "007", "1e5", "/etc/passwd", "scratch/nothing", "../x",
    "torch.nn.Conv2d", "[null]", "[nan]", "[1e400]", "None", "True", "~", "?", "???",
)  # fmt: skip
UNICODE = (
    "é",
    "日本",
    "\u202eabc",
    "\u2028",
    "\x1b[31mred",
    "a\nb",
    "a\rok",
    "\x07",
    "\x9b1m",
    "\x00",
    "\ud800",
    "'\t'",
)
BROKEN = ("[", "]", "{", "}", "[1", "{a:", "'", '"', "(", "\\", "=", ",", "[1,,2]", "{a:1", "a'b", "$", "${", "$}")
POINTERS = (
    "${seed}", "${nope}", "${model}", "${oc.env:NO_SUCH_NAME}", "${oc.decode:abc}", "${oc.decode:'['}", "${.lr}",
    "${..scale}", "${oc.env:HOME,}", "${oc.create:{a:1}}", "${oc.select:nope}", "${no.such:1}", "${}",
)  # fmt: skip


class Lines:
    """Command lines from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        config = OmegaConf.to_container(composed([])[0])
        self.parts = ["objective.losses.pixel", "checkpoint.store", "data.degradation", *GROUPS[:5], "tracker"]
        hydra = [f"hydra.{key}" for key in HYDRA]
        inner = [f"{part}.{key}" for part in self.parts for key in HYDRAS]
        self.keys = sorted({*flatten(config), *PLACES, *hydra, *inner, "objective.losses.pixel", "model", "trainer"})
        self.options = {group: sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml")) for group in GROUPS}

    def line(self) -> tuple[list[str], bool]:
        """The words of a command line, and whether parts are built."""
        builds = self.random.random() < 0.4
        words = [self._word() for _ in range(self.random.choice((1, 1, 1, 2, 2, 3)))]
        if self.random.random() < 0.1:
            words.append(self.random.choice(words))  # twice
        if not builds:
            return ["--cfg", "job", *words], False
        words = [each for each in words if each.lstrip("+~").partition("=")[0] not in FIXED]
        words = [each for each in words if each != "-m"]  # whose jobs end with a status of their own
        # Nothing large is built, and nothing downloaded.
        small = ["model.num_filters=4", "model.num_res_blocks=1", "data.patch_size=32", "trainer.threads=1"]
        return [*small, *words, NEVER_STARTS], True

    def _word(self) -> str:
        kind = self.random.random()
        if kind < 0.2:
            return self._group()
        if kind < 0.3:
            return self.random.choice(("--no-such", "-m", "=1", "", "@a=1", "+=", "~", "a b", "~~x", "-cn nope", "é"))
        key = self.random.choice(self.keys)
        if self.random.random() < 0.2:
            key = self._typo(key)
        prefix = self.random.choice(("", "", "", "", "+", "++", "~"))
        if key.endswith("_") and self.random.random() < 0.7:
            prefix = "++"  # most parts have no such key
        return f"{prefix}{key}={self._value_of(key)}"

    def _value_of(self, key: str) -> str:
        for belongs, values in (
            (key in PLACES, PATHS), (key == "trainer.device", DEVICES), (key.endswith("_target_"), TARGETS),
        ):  # fmt: skip
            if belongs and (values is PATHS or self.random.random() < 0.7):
                return self.random.choice(values)
        return self._value()

    def _group(self) -> str:
        group = self.random.choice(GROUPS)
        options = self.options[self.random.choice((group, group, *GROUPS))]
        option = self.random.choice((*options, "nope", "_blocks", "[a,b]", "1", "null", "../config", "x" * 5000))
        option = self._typo(option) if self.random.random() < 0.3 else option
        return f"{self.random.choice(('', '', '+', '~'))}{group}={option}"

    def _typo(self, word: str) -> str:
        place = self.random.randrange(len(word) or 1)
        return self.random.choice((word[:place] + word[place + 1 :], f"{word[:place]}é{word[place:]}", word + ".x"))

    def _value(self) -> str:
        values = self.random.choice((TYPED, TYPED, TYPED, UNICODE, BROKEN, POINTERS))
        value = self.random.choice(values)
        return value * self.random.choice((1, 1, 1, 1, 1, 400))


@contextmanager
def inside(scratch: Path) -> Iterator[None]:
    before = Path.cwd(), sys.path[:]
    os.chdir(scratch)
    Path("a file").touch()
    for name, target in (("a link", "nothing"), ("a loop", "a loop")):
        Path(name).is_symlink() or Path(name).symlink_to(target)
    try:
        yield
    finally:
        os.chdir(before[0])
        sys.path[:] = before[1]


def fault(words: list[str], builds: bool, scratch: Path) -> str:
    """What is wrong with how sr-run answers `words`; empty where nothing is."""
    output, errors = io.StringIO(), io.StringIO()
    place = [f"outputs={scratch}/outputs"] if builds and not any("outputs=" in word for word in words) else []
    with inside(scratch), redirect_stdout(output), redirect_stderr(errors):
        try:
            status = main([*words, *place])
        except BaseException:
            return traceback.format_exc()
    said = errors.getvalue()
    if status not in (0, 2) or (status == 0) is (said.startswith("sr-run: ")):
        return f"status {status}: {said}"
    message = [line for line in said.splitlines() if line.startswith("sr-run: ")]
    if "Traceback" in said or len(message) > 1 or len(said) > 4000 or any(c in said for c in "\x1b\x07\x9b\u202e"):
        return f"not one message: {said!r}"
    if status == 2 and (output.getvalue() or len(said.splitlines()) > 8):
        return f"more than a message: {output.getvalue()}{said}"
    return ""


def search(count: int, seed: int, scratch: Path) -> Iterator[tuple[list[str], str]]:
    """Each of `count` command lines and its fault."""
    made = Lines(seed)
    for _ in range(count):
        words, builds = made.line()
        yield words, fault(words, builds, scratch)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="command-lines-") as folder:
        place = Path(folder) / "below"
        place.mkdir()
        seen = Counter[bool]()
        for words, what in search(asked.count, asked.seed, place):
            seen[bool(what)] += 1
            if what:
                sys.stdout.write(f"{words!a}\n    {what[-1500:]!a}\n")
                sys.stdout.flush()
        left = [path.name for path in Path(folder).iterdir() if path != place]
    sys.stdout.write(f"{asked.count} command lines, {seen[True]} faults, left outside: {left}\n")
    sys.exit(bool(seen[True] or left))
