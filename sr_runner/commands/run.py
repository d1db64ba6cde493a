"""`sr-run`: compose, check, instantiate, train, report.

Everything heavy is imported where it is needed: `--help` answers at once, and a signal during start-up finds its
handler.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sr_runner.distributed.processes import is_distributed, is_main_process
from sr_runner.errors import RequestError, RunError
from sr_runner.masking import masked_output
from sr_runner.signals import Stopped, StopSignal

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Hydra's own options that only print something, or that we leave to it.
_TO_HYDRA = ("--hydra-help", "--version", "--info", "-i", "--shell-completion", "-sc", "--cfg", "-c", "--resolve")
_WITH_VALUE = ("--config-dir", "-cd", "--cfg", "-c", "--package", "-p", "--info", "-i", "--config-path", "-cp")


@masked_output()
def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 finished, 2 the request was wrong, 1 it failed, 128+N stopped by signal N."""
    args = list(sys.argv[1:] if argv is None else argv)
    # Threads of PyTorch that wait for each other spin for some microseconds and then give their core away. The default
    # is to spin on: on a machine that does anything else as well, that makes a step many times slower. Read when torch
    # is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if "--help" in args or "-h" in args:
        from sr_runner.commands.help import page
        from sr_runner.config.settings import config_dir

        sys.stdout.write(page(config_dir()) + "\n")
        return 0
    status, said = 0, ""
    try:
        status = _run(args, StopSignal().install())
    except RequestError as error:
        status, said = 2, _said(error)
    except RunError as error:
        status, said = 1, _said(error)
    except Stopped as stopped:
        status = 128 + stopped.signum
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if not is_distributed():
            raise
        traceback.print_exc()
        status, said = 1, f"sr-run: process {os.environ['RANK']} failed: {error!r}\n"
    if is_distributed():
        from sr_runner.distributed.exit import exit_together

        return exit_together(status, said)
    sys.stderr.write(said)
    return status


def _said(error: Exception) -> str:
    from sr_runner.masking import masked_text

    return f"sr-run: {masked_text(str(error))}\n"


def _run(args: list[str], stop: StopSignal) -> int:
    # Networks and losses of one's own lie where one works.
    sys.path.insert(0, str(Path.cwd()))
    overrides, options, extra_dirs = _split(args)
    from sr_runner.attempt import logs
    from sr_runner.config.compose import check_sweep, composed, normalised, parse

    if any(option in _TO_HYDRA for option in options):
        return _hydra([*options, *normalised(overrides)])
    if not is_main_process():
        logs.to_nowhere()
    else:
        logs.to_console()
    parsed = parse(normalised(overrides))
    if "-m" in options or "--multirun" in options:
        if is_distributed():
            raise RequestError("-m: torchrun starts the processes of one run; start it once for each run of a sweep")
        check_sweep(overrides, extra_dirs)
        return _sweep(overrides, options, extra_dirs)
    swept = next((o.input_line for o in parsed if o.is_sweep_override()), None)
    if swept is not None:
        raise RequestError(f"{swept}: several values are a sweep: sr-run -m {' '.join(overrides)}")
    config, choices = composed(overrides, extra_dirs)
    from sr_runner.attempt.execute import execute, preview

    if config.data.get("preview"):
        if not is_main_process():
            return 0
        sys.stdout.write(f"{preview(config, overrides)}\n")
    else:
        execute(config, choices, overrides, stop)
    return 0


def _split(args: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Overrides, options with their values, and the folders after `--config-dir`."""
    overrides, options, extra_dirs = [], [], []
    rest = iter(args)
    for arg in rest:
        name, sign, value = arg.partition("=")
        if not arg.startswith("-"):
            overrides.append(arg)
            continue
        options.append(arg)
        if name in _WITH_VALUE and not sign:
            value = next(rest, "")
            options.append(value)
        if name in ("--config-dir", "-cd"):
            if not Path(value).is_dir():
                raise RequestError(f"--config-dir {value}: there is no such folder")
            extra_dirs.append(value)
        known = (*_TO_HYDRA, *_WITH_VALUE, "-m", "--multirun", "--experimental-rerun")
        if name not in known:
            from sr_runner.errors import nearest

            raise RequestError(f"{arg}: no such option.{nearest(name, [*known, '--help'])} sr-run --help lists them")
    return overrides, options, extra_dirs


def _hydra(args: list[str]) -> int:
    """Hand the command line to Hydra; `job` runs once per combination."""
    import hydra

    from sr_runner.config.schema import register_schema
    from sr_runner.config.settings import config_dir

    register_schema()
    sys.argv = ["sr-run", *args]
    try:
        hydra.main(config_path=str(config_dir()), config_name="config", version_base="1.3")(job)()
    except SystemExit as ended:
        if isinstance(ended, Stopped):
            raise
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def _sweep(overrides: list[str], options: list[str], extra_dirs: list[str]) -> int:
    from sr_runner.commands import sweep as sweeps
    from sr_runner.config.compose import composed, first_of_each, normalised
    from sr_runner.tracking import close_parent

    config, _ = composed(first_of_each(overrides), extra_dirs)
    resume = config.trainer.resume is not False
    folder = sweeps.folder_for(Path(config.outputs), overrides, resume=resume)
    given = next((o for o in overrides if o.startswith("hydra.sweep.dir=")), None)
    if given is not None:
        folder = Path(given.partition("=")[2]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    sweeps.clear_jobs(folder)
    extra = [] if given else [f"hydra.sweep.dir={folder}"]
    status, ended = "FAILED", False
    try:
        code = _hydra([*options, *normalised(overrides), *extra])
        jobs = sweeps.read_jobs(folder)
        failed = any(each.status != "finished" for each in jobs)
        code = code or int(failed)
        status, ended = ("FAILED" if code else "FINISHED"), True
        sys.stdout.write(sweeps.as_text(jobs, folder) + "\n")
        return code
    finally:
        if "MlflowTracker" in str(config.tracker.get("_target_")):
            uri, outputs = config.tracker.get("uri"), config.outputs
            close_parent(folder, status if ended else "KILLED", uri=uri, outputs=outputs, wait=120)  # type: ignore[arg-type]


def job(config: DictConfig) -> float | None:
    """One job of a sweep; its validation PSNR is what a sweeper optimises."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from sr_runner.attempt import logs
    from sr_runner.attempt.execute import execute
    from sr_runner.commands.sweep import Job, mask_record, write_job
    from sr_runner.config import schema as configs
    from sr_runner.config.compose import absolute
    from sr_runner.masking import learn, masked, masked_text
    from sr_runner.tracking import SweepParent

    hydra = HydraConfig.get()
    sweep = Path(hydra.sweep.dir).absolute()
    folder = sweep / str(hydra.job.num)
    overrides = list(hydra.overrides.task)
    shown = masked(overrides)
    learn(OmegaConf.to_container(config))
    mask_record(sweep)
    choices = {str(key): str(value) for key, value in hydra.runtime.choices.items()}
    stop = StopSignal().install()
    logs.to_console()
    path = folder / "job.log"
    failure: BaseException
    with logs.to_file(path):
        try:
            config = absolute(config)
            configs.check(config)
            _check_launcher(hydra.launcher)
            outcome = execute(config, choices, overrides, stop, SweepParent(sweep, sweep.name))
        except Stopped:
            write_job(folder, Job(int(hydra.job.num), shown, "stopped", log=str(path)))
            stop.hand_over()
            raise
        except Exception as error:
            logging.getLogger(__name__).error("job %s failed", " ".join(shown), exc_info=True)
            said = f"{error}" if isinstance(error, RequestError | RunError) else f"{error!r}"
            said = masked_text(re.sub(r"\s+", " ", said))
            write_job(folder, Job(int(hydra.job.num), shown, "failed", log=str(path), error=said))
            failure = error
        else:
            psnr = outcome.metrics.get("valid/psnr")
            write_job(folder, Job(int(hydra.job.num), shown, "finished", outcome.identity, str(path), psnr))
            return psnr
        finally:
            stop.uninstall()
    raise failure


def _check_launcher(launcher: DictConfig) -> None:
    tasks = int(launcher.get("tasks_per_node") or 1) * int(launcher.get("nodes") or 1)
    if tasks > 1:
        raise RequestError(
            f"hydra.launcher: {tasks} tasks (tasks_per_node x nodes), but a job of a sweep is one process: expected 1. "
            "torchrun in a batch script trains one run on several GPUs"
        )


if __name__ == "__main__":
    sys.exit(main())
