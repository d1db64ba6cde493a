"""`sr-run`: compose, check, instantiate, train, report.

Everything heavy is imported where it is needed: `--help` answers at once, and a signal during start-up finds its
handler. Single runs and sweeps both go through Hydra's own application (`config.compose.Application`).
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sr_runner.commands.console import ended, print_page
from sr_runner.commands.help import own_folder, page
from sr_runner.config.settings import CheckpointSettings, RunSettings, TrainerSettings, config_dir
from sr_runner.distributed.processes import is_distributed, is_main_process
from sr_runner.errors import RequestError, nearest
from sr_runner.masking import masked_output
from sr_runner.signals import StopSignal, exit_with
from sr_runner.streams import standard_streams

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from omegaconf import DictConfig

    from sr_runner.attempt.report import Shown
    from sr_runner.config.compose import Application

_ONE_OF = ("run", "multirun", "cfg", "info", "shell_completion")


@standard_streams()
@masked_output()
def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 finished, 2 the request was wrong, 1 it failed, 128+N stopped by signal N."""
    args = list(sys.argv[1:] if argv is None else argv)
    # Threads of PyTorch that wait for each other spin for some microseconds and then give their core away. The default
    # is to spin on: on a machine that does anything else as well, that makes a step many times slower. Read when torch
    # is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    with _as_before():
        return _status(args, is_whole_process=argv is None)


def _status(args: list[str], *, is_whole_process: bool) -> int:
    stop = StopSignal().install()
    try:
        status, message = ended("sr-run", lambda: _run(args, stop))
    except Exception as error:
        if not is_distributed():
            raise
        traceback.print_exc()
        status, message = 1, f"sr-run: process {os.environ['RANK']} failed: {error!r}\n"
    finally:
        if not is_distributed():  # those have to hold out until all have exited
            stop.uninstall()
    if is_distributed():
        from sr_runner.distributed.exit import exit_with_peers

        return exit_with_peers(status, message)
    sys.stderr.write(message)
    if is_whole_process:
        exit_with(status)  # Python takes some tenths of a second to end
    return status


@contextmanager
def _as_before() -> Iterator[None]:
    """Afterwards the log goes where it went before: `main` may be called many times in one process."""
    root = logging.getLogger()
    handlers, levels = root.handlers[:], {logger: logger.level for logger in _loggers()}
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for logger in _loggers():
            if logger in levels or logger.level == logging.DEBUG:  # others are of packages that were imported meanwhile
                logger.setLevel(levels.get(logger, logging.NOTSET))


def _loggers() -> list[logging.Logger]:
    known = list(logging.root.manager.loggerDict.values())
    return [logging.root, *(each for each in known if isinstance(each, logging.Logger))]


def _run(args: list[str], stop: StopSignal) -> int:
    if print_page(args, lambda: page(config_dir(), own_folder(args))):
        return 0
    # Networks and losses of one's own lie where one works.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    options, parser = _parse(args)
    from hydra.core.global_hydra import GlobalHydra

    from sr_runner.attempt import logs
    from sr_runner.config.compose import CONFIG, Application, Request
    from sr_runner.config.overrides import normalised

    if not (options.cfg or options.info):
        logs.to_console() if is_main_process() else logs.to_nowhere()
    request = Request(
        normalised(options.overrides), options.config_name or CONFIG, options.config_path, options.config_dir
    )
    names_a_run = any(each.lstrip("+").startswith("trainer.resume=") for each in request.overrides)
    if names_a_run and not (options.hydra_help or options.shell_completion):
        from sr_runner.attempt.base import with_recorded

        request = with_recorded(request)
    app = Application(request.config_path, request.config_dir)
    name = request.config_name
    overrides = options.overrides = list(request.overrides)
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().hydra = app
    try:
        if options.hydra_help:
            app.hydra_help(name, parser, options)
        elif options.shell_completion:
            _complete(app, name, overrides)
        elif options.cfg or options.info:
            _show(app, name, options)
        else:
            composed = None if options.multirun else app.single_run(name, overrides)
            if composed is None:
                if is_distributed():
                    raise RequestError(
                        "-m: torchrun starts the processes of one run; start it once for each run of a sweep"
                    )
                from sr_runner.commands.sweep import sweep

                return sweep(app, name, overrides, stop, args, in_json=options.json)
            command = shlex.join(["sr-run", *args])
            shown: Shown = "json" if options.json else "table"
            app.run_composed(composed, name, lambda config: _job(config, stop, command, shown))
    finally:
        GlobalHydra.instance().hydra = before
    return 0


def _job(config: DictConfig, stop: StopSignal, command: str, shown: Shown) -> float | None:
    """What Hydra runs in the place that it has prepared."""
    from sr_runner.attempt.execute import execute, preview
    from sr_runner.config.compose import job_config, job_request

    config, choices = job_config(config)
    request = job_request()
    if config.data.get("preview"):
        if is_main_process():
            sys.stdout.write(f"{preview(config, request.overrides)}\n")
        return None
    outcome = execute(config, choices, request, stop, command=command, shown=shown)
    return outcome.metrics.get("valid/psnr")


def _parse(args: list[str]) -> tuple[Namespace, ArgumentParser]:
    """Hydra's own options, and its parser. Raises `RequestError` for what none of them has a use for."""
    from hydra._internal.utils import get_args_parser

    from sr_runner.config.hydra_keys import check_package

    def refuse(message: str) -> None:
        raise RequestError(message.removeprefix("argument "))

    parser = get_args_parser()
    parser.add_argument("--json", action="store_true", help="Print the outcome of a run or a sweep as JSON")
    parser.allow_abbrev = False
    parser.error = refuse  # type: ignore[assignment, method-assign]
    options, unknown = parser.parse_known_intermixed_args(args)
    names = [name for action in parser._actions for name in action.option_strings]
    if unknown:
        word, _, value = unknown[0].partition("=")
        groups = (("", RunSettings), ("trainer.", TrainerSettings), ("checkpoint.", CheckpointSettings))
        for key, field in ((f"{prefix}{each.name}", each) for prefix, kind in groups for each in fields(kind)):
            if word.lstrip("-").replace("-", "_") == field.name:  # as other programs have it
                value = value or ("true" if field.default is False else "VALUE")
                raise RequestError(f"{unknown[0]}: no such option; expected {key}={value}")
        guess = nearest(word, names)
        raise RequestError(f"{unknown[0]}: no such option.{guess} sr-run --help lists them")
    given = [arg.partition("=")[0] for arg in args]
    for action in parser._actions:
        if action.nargs != 0 and sum(given.count(name) for name in action.option_strings) > 1:
            raise RequestError(f"{'/'.join(action.option_strings)}: given more than once; expected once")
    for action in parser._actions:
        if action.option_strings and getattr(options, action.dest, None) == "":
            raise RequestError(f"{'/'.join(action.option_strings)}: expected a value, not an empty one")
    if options.json and (options.cfg or options.info or options.shell_completion or options.hydra_help):
        raise RequestError(
            "--json: expected a run or a sweep, whose outcome it prints; --cfg, --info and the like print no outcome"
        )
    if sum(bool(getattr(options, name)) for name in _ONE_OF) > 1:
        raise RequestError("only one of --run, --multirun, --cfg, --info and --shell-completion can be asked for")
    if options.hydra_help and options.overrides:
        raise RequestError(f"--hydra-help {' '.join(options.overrides)}: expected no overrides")
    for name in ("resolve", "package"):
        if getattr(options, name) and not options.cfg:
            raise RequestError(f"--{name}: expected together with --cfg")
    if options.experimental_rerun is not None:
        raise RequestError(
            f"--experimental-rerun {options.experimental_rerun}: not supported: it reads a pickle, "
            "which can run any code. sr-run trainer.resume=RUN goes on with a run, "
            "the commands in its starts.jsonl start it again"
        )
    for name in ("config_path", "config_dir"):
        folder = getattr(options, name)
        if folder is not None and folder.startswith("pkg://"):
            check_package(f"--{name.replace('_', '-')} ", folder.removeprefix("pkg://"))
        elif folder is not None:
            if not Path(folder).is_dir():
                raise RequestError(f"--{name.replace('_', '-')} {folder}: there is no such folder")
            setattr(options, name, str(Path(folder).absolute()))
    return options, parser


def _show(app: Application, name: str, options: Namespace) -> None:
    """Print what was asked for, of a config that a run would accept."""
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError, ConfigTypeError

    from sr_runner.config.fitting import fitted

    whole = app.compose_config(name, options.overrides, RunMode.RUN)
    if options.info:
        app.show_info(options.info, name, options.overrides)
        return
    shown: Any = app.get_sanitized_cfg(whole, options.cfg)
    if options.cfg != "hydra":
        with app.explained(name, options.overrides):
            shown = fitted(shown, options.overrides, resolve=options.resolve)
    if options.package not in (None, "_global_"):
        with app.explained(name, options.overrides):
            try:
                shown = OmegaConf.select(shown, options.package, default=options)
            except (ConfigKeyError, ConfigTypeError):  # `..model`, `optimizer.betas.x`
                shown = options
        if shown is options:
            raise RequestError(f"--package {options.package}: there is no such key in --cfg {options.cfg}")
    if not OmegaConf.is_config(shown):
        sys.stdout.write(f"{json.dumps(shown) if isinstance(shown, bool | None) else shown}\n")
        return
    if options.resolve:
        with app.explained(name, options.overrides):
            OmegaConf.resolve(shown)
    header = f"# @package {options.package}\n" if options.package not in (None, "_global_") else ""
    sys.stdout.write(header + OmegaConf.to_yaml(shown))


def _complete(app: Application, name: str, arguments: list[str]) -> None:
    shells = sorted(app.get_shell_to_plugin_map(app.config_loader))
    verb, _, shell = arguments[0].partition("=") if len(arguments) == 1 else ("", "", "")
    if verb not in ("install", "uninstall", "query") or shell not in shells:
        raise RequestError(
            f"{' '.join(['--shell-completion', *arguments])}: expected install=SHELL or uninstall=SHELL, SHELL one of "
            f"{', '.join(shells)}"
        )
    if verb != "query":
        app.shell_completion(name, arguments)
        return
    # A line that cannot be completed is no reason to write into the terminal.
    with redirect_stderr(None), suppress(Exception, SystemExit):
        app.shell_completion(name, arguments)


if __name__ == "__main__":
    sys.exit(main())
