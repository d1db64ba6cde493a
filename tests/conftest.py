"""What every test may use: the real `sr-run` in a process of its own, and photographs."""

from __future__ import annotations

import os

# The environment that pytest was started in is no part of any test: an allocation of Slurm, somebody's tracking
# server, a proxy before the loopback, the repository whose hook runs pytest. Before anything reads it.
_PREFIXES = ("MLFLOW_", "AWS_", "SLURM_", "SUBMITIT_", "TORCHELASTIC_", "HYDRA_", "GIT_", "FSSPEC_")
_NAMES = {
    "RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "HTTP_PROXY",
    "HTTPS_PROXY", "ALL_PROXY", "COLUMNS", "LINES", "FORCE_COLOR", "CUBLAS_WORKSPACE_CONFIG", "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT", "TORCH_HOME", "PYTHONOPTIMIZE", "PYTHONWARNINGS",
}  # fmt: skip
for _name in list(os.environ):
    if (_name.startswith(_PREFIXES) and _name != "SLURM_CONF") or _name.upper() in _NAMES:  # that is where Slurm is
        del os.environ[_name]
os.environ |= {
    "OMP_NUM_THREADS": "1",  # tests run beside each other; before torch is imported
    "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip

import signal
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_server import RunServer
from support import SrRun

for _signal in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(_signal, signal.SIG_DFL)  # `nohup pytest` has them ignored, and so would every run


@pytest.fixture(scope="session")
def image_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoded photographs, shared by the tests of one worker."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def run_server() -> Iterator[RunServer]:
    """Made by the first test of a worker that runs something."""
    server = RunServer()
    yield server
    server.close()


@pytest.fixture
def sr_run(tmp_path: Path, image_cache: Path, run_server: RunServer, tmp_path_factory: pytest.TempPathFactory) -> SrRun:
    """`sr_run("key=value", ..., code=0)` in `tmp_path`; fails the test where the exit status is another."""
    said, number = tmp_path_factory.mktemp("said"), count()

    def run(*arguments: str, code: int | None = 0, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        known = {argument.lstrip("+").partition("=")[0] for argument in arguments}
        cache = () if "data.cache_dir" in known else (f"data.cache_dir={image_cache}",)
        output, errors = (said / f"{next(number)}-{stream}" for stream in ("output", "errors"))
        status = run_server.start([*arguments, *cache], tmp_path, output, errors).wait(timeout)
        assert status is not None, f"{timeout} s were not enough: {errors.read_text()}"
        done = subprocess.CompletedProcess(arguments, status, output.read_text(), errors.read_text())
        if code is not None:
            assert done.returncode == code, f"{done.returncode}: {done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder with three small pictures that have structure at every scale."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index, size in enumerate([(96, 80), (64, 100), (72, 72)]):
        coarse = generator.integers(0, 256, (size[0] // 8 + 1, size[1] // 8 + 1, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder
