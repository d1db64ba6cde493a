"""What tests share: how the real `sr-run` is started, and how small a run can be."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

TINY = (
    "model.num_res_blocks=1", "model.num_filters=8", "data.batch_size=2", "data.patch_size=32", "data.valid_images=1",
    "trainer.threads=1", "trainer.steps=6", "trainer.log_every=2", "trainer.eval_every=3", "trainer.pictures=1",
    "tracker.system_metrics=false", "trainer.precision=fp32",
)  # fmt: skip
"""A run of a second or two, beside its start-up. In fp32: `auto` is bf16 on some machines."""

SrRun = Callable[..., "subprocess.CompletedProcess[str]"]


def options_of(group: str) -> list[str]:
    """The options of a config group; what several of them share stands in `_<name>.yaml`."""
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("[!_]*.yaml"))


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # One thread each: tests run beside each other.
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def wait_until(condition: Callable[[], object], what: str = "", seconds: float = 120) -> None:
    """Fails after so many seconds, which are no promise of anything: on a machine with other work all takes longer."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds:.0f} s in vain for {what or 'the condition'}"
        time.sleep(0.01)


def started(module: str) -> list[str]:
    """The beginning of the command line of `module`, as its installed script starts it."""
    return [sys.executable, "-c", f"import sys; from {module} import main; sys.exit(main())"]


def command(*arguments: str, module: str = "sr_runner.commands.run") -> list[str]:
    return [sys.executable, "-m", module, *arguments]
