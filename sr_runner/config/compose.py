"""Composing a config with Hydra, and one sentence for whatever is wrong with a request that does not compose."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override, ValueType
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sr_runner.config import hydra_keys
from sr_runner.config import schema as configs
from sr_runner.config.explain import Explainer
from sr_runner.config.options import network_name
from sr_runner.config.overrides import LONGEST_NAME, normalised, parse, refuse_sweep
from sr_runner.config.settings import config_dir
from sr_runner.errors import RequestError, RunError
from sr_runner.files import folder_named
from sr_runner.masking import digested, masked

CONFIG = "config"
GRID = f"{BasicSweeper.__module__}.{BasicSweeper.__qualname__}"
"""Hydra's own sweeper. A name, since Hydra loads the module again when it looks for plugins, and the class is another
then."""
_SEARCH_PATH, _SWEPT = "hydra.searchpath", "hydra.sweeper.params."


@dataclass(frozen=True)
class Request:
    """What a config is composed from."""

    overrides: Sequence[str] = ()
    config_name: str = CONFIG
    config_path: str | None = None
    """Replaces sr-run's own config tree."""
    config_dir: str | None = None
    """Adds to the config tree."""

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Request:
        """The inverse of `asdict`, less keys that it does not know. Raises `ValueError` where a value is no text."""
        known = {field.name: record[field.name] for field in fields(cls) if field.name in record}
        request = cls(**known)
        overrides, texts = request.overrides, (request.config_path, request.config_dir)
        if not isinstance(overrides, list | tuple) or not all(isinstance(each, str) for each in overrides):
            raise ValueError("expected overrides as a list of text")
        if not isinstance(request.config_name, str) or not all(isinstance(each, str | None) for each in texts):
            raise ValueError("expected names of configs as text")
        if not re.fullmatch(r"\w[\w-]*(/\w[\w-]*)*", request.config_name):  # Hydra follows ".." anywhere
            raise ValueError("expected the name of a config")
        return request

    def command(self) -> str:
        """The command line that asks for this, as a shell takes it."""
        options = {"config-name": self.config_name, "config-path": self.config_path, "config-dir": self.config_dir}
        given = [f"--{name}={value}" for name, value in options.items() if value not in (None, CONFIG)]
        return shlex.join(["sr-run", *given, *self.overrides])


def job_request() -> Request:
    """What asks for the job that Hydra runs now. Overrides are as they were written: `a=${..b}` is no reference from
    the list in which Hydra keeps them."""
    hydra = HydraConfig.get()
    written = OmegaConf.to_container(hydra.overrides)
    assert isinstance(written, dict)
    searched = [each for each in written["hydra"] if each.startswith(_SEARCH_PATH)]
    sources = hydra.runtime.config_sources
    places = {each.provider: f"{'pkg://' * (each.schema == 'pkg')}{each.path}" for each in sources}
    own = places.get("main")
    return Request(
        [*searched, *written["task"]],
        hydra.job.config_name or CONFIG,
        None if own == str(config_dir()) else own,
        places.get("command-line"),
    )


class Application(Hydra):
    """Hydra's application for sr-run: whatever it composes is checked, whatever is wrong is a `RequestError`.

    `config_path` replaces sr-run's own config tree, `config_dir` adds to it.
    """

    def __init__(self, config_path: str | None = None, extra_dir: str | None = None) -> None:
        configs.register_schema()
        OmegaConf.register_new_resolver("folder_named", _as_folder, replace=True)
        version.setbase("1.3")
        search_path = create_config_search_path(config_path or str(config_dir()))
        if extra_dir is not None:
            url = f"file://{Path(extra_dir).absolute()}"
            search_path.prepend(provider="command-line", path=url, anchor=SearchPathQuery(provider="schema"))
        loader = ConfigLoaderImpl(config_search_path=search_path)
        self._explainer = Explainer(loader)
        super().__init__(task_name="sr-run", config_loader=loader)

    def compose_config(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode, *arguments: Any, **keywords: Any
    ) -> DictConfig:
        """The whole config, Hydra's part included. Raises `RequestError`. Of a sweep, only its jobs are checked."""
        with self.explained(config_name, overrides):
            parsed = parse(overrides)
            self._check_choices(parsed)
            whole = super().compose_config(config_name, overrides, run_mode, *arguments, **keywords)
            target = f"{Masking.__module__}.{Masking.__qualname__}"
            if config_name is not None and OmegaConf.select(whole, "hydra.callbacks.masking._target_") != target:
                if config_name != CONFIG:
                    raise RequestError(
                        f"--config-name {config_name}: expected a config with `{CONFIG}` in its defaults list, from "
                        "which it has hydra.callbacks.masking, which keeps secrets from Hydra"
                    )
                raise RequestError(
                    "hydra.callbacks.masking: expected to be there, as in conf/config.yaml; it keeps secrets from Hydra"
                )
            if config_name is not None:
                hydra_keys.check(whole.hydra, self._explainer.options)
            if config_name is not None and run_mode is RunMode.RUN:
                HydraConfig.instance().set_config(whole)
                _check_booleans(parsed, whole)
                if (wrong := self._explainer.without_effect(parsed, whole)) is not None:
                    raise RequestError(wrong)
                configs.check(job_config(whole)[0])
                OmegaConf.set_readonly(whole.hydra, None)
        return whole

    @contextmanager
    def explained(
        self, config_name: str | None, overrides: Sequence[str], but: type[Exception] = RequestError
    ) -> Iterator[None]:
        """Within, nothing but the request is at work: whatever is raised, `but` excepted, becomes a `RequestError`."""
        try:
            yield
        except (RequestError, RunError, but):
            raise
        except Exception as error:
            raise RequestError(self._explainer.sentence(error, config_name, overrides)) from error

    def single_run(self, config_name: str | None, overrides: list[str]) -> DictConfig | None:
        """The config of the one run that is asked for; None where a config asks for a sweep. Raises `RequestError`."""
        try:
            refuse_sweep(overrides)
            whole = self.compose_config(config_name, overrides, RunMode.RUN)
        except RequestError:
            # A config of one's own may ask for a sweep, and sweep what is missing here.
            if self.get_mode(config_name, overrides) is RunMode.MULTIRUN:
                return None
            raise
        return None if whole.hydra.mode is RunMode.MULTIRUN else whole

    def run_composed(self, config: DictConfig, config_name: str | None, task_function: TaskFunction) -> JobReturn:
        """Hydra's own steps; a folder that cannot be written is the request's fault."""
        config.hydra.mode = RunMode.RUN
        folder_named("hydra.run.dir", config.hydra.run.dir)
        with self.explained(config_name, config.hydra.overrides.task):
            configure_log(config.hydra.hydra_logging, config.hydra.verbose)
            callbacks = Callbacks(config)
        callbacks.on_run_start(config=config, config_name=config_name)
        context = HydraContext(config_loader=self.config_loader, callbacks=callbacks)
        try:  # the job's own errors are in what it returns
            with self.explained(config_name, config.hydra.overrides.task, but=OSError):
                done = run_job(task_function, config, "hydra.run.dir", None, context)
        except OSError as error:
            key = "output_subdir" if Path(config.hydra.run.dir).is_dir() else "run.dir"
            raise RequestError(
                f"hydra.{key}={OmegaConf.select(config.hydra, key)}: nothing can be written there ({error.strerror})"
            ) from error
        callbacks.on_run_end(config=config, config_name=config_name, job_return=done)
        _ = done.return_value
        return done

    def run_sweep(
        self, config_name: str | None, task_function: TaskFunction, overrides: list[str],
        launcher: Callable[[Launcher], Launcher],
    ) -> None:  # fmt: skip
        """Hydra's own steps, with what `launcher` makes of the launcher."""
        config = self.compose_config(config_name, overrides, RunMode.MULTIRUN, with_log_configuration=True)
        callbacks = Callbacks(config)
        callbacks.on_multirun_start(config=config, config_name=config_name)
        context = HydraContext(config_loader=self.config_loader, callbacks=callbacks)
        if hydra_keys.is_plugin(config.hydra.sweeper._target_):
            setup = Plugins.instance().instantiate_sweeper
            sweeper: Any = setup(config=config, hydra_context=context, task_function=task_function)
        else:
            with self.explained(config_name, overrides):
                sweeper = instantiate(config.hydra.sweeper, _recursive_=False)
            sweeper.setup(config=config, hydra_context=context, task_function=task_function)
        sweeper.launcher = launcher(sweeper.launcher)
        if config.hydra.sweeper._target_ == GRID:
            # It would compose every job once more than is needed; their values were checked.
            sweeper.validate_batch_is_legal = lambda batch: None
        sweeper.sweep(arguments=OmegaConf.to_container(config.hydra.overrides.task, resolve=False))
        callbacks.on_multirun_end(config=config, config_name=config_name)

    def _check_choices(self, overrides: Sequence[Override]) -> None:
        """Hydra takes the option of a group for a name, whatever it is."""
        for override in overrides:
            group = override.key_or_group
            if not group:
                raise RequestError(f"{override.input_line}: expected key=value")
            if override.is_delete() and group in ("hydra", "sweep"):
                raise RequestError(f"{override.input_line}: expected {group} to stay; {group}.KEY=VALUE changes a key")
            if f"{group}.".startswith(_SWEPT) and not (override.is_delete() or override.value() is None):
                raise RequestError(
                    f"{override.input_line}: expected in a config file; on the command line it is -m KEY=VALUE,VALUE"
                )
            if group.startswith(("hydra.runtime.", "hydra.overrides.")):
                raise RequestError(f"{override.input_line}: expected to be left to Hydra, which sets it")
            if group == _SEARCH_PATH:
                hydra_keys.check_search_path(override)
            options = self._explainer.options(group)
            if options and ".." in re.split(r"[^\w.-]", str(override.input_line)):  # Hydra would follow it anywhere
                raise RequestError(f"{override.input_line}: expected an option of {group}: {', '.join(options)}")
            pattern: Any = override.value() if override.value_type is ValueType.GLOB_CHOICE_SWEEP else None
            if pattern is not None and not pattern.filter(options):
                raise RequestError(f"{override.input_line}: fits no option of {group}: {', '.join(options)}")
            if override.is_delete() or override.is_sweep_override() or not options:
                continue
            value = override.value()
            for name in value if isinstance(value, list) else [value]:
                if not isinstance(name, str):
                    hint = " (constant: the same learning rate throughout)" if group == "scheduler" else ""
                    raise RequestError(
                        f"{override.input_line}: expected an option of {group}: {', '.join(options)}{hint}"
                    )
                if len(name) > LONGEST_NAME or name.startswith("_"):
                    raise RequestError(self._explainer.no_such_option(group, name))


def _check_booleans(overrides: Sequence[Override], whole: DictConfig) -> None:
    """OmegaConf takes any whole number for a boolean, and the words of YAML 1.1: `off`, `no`, `n`."""
    for override in overrides:
        value = None if override.is_delete() else override.value()
        if isinstance(value, bool) or not isinstance(value, int | str) or "${" in str(value):
            continue
        if isinstance(OmegaConf.select(whole, override.key_or_group), bool):
            raise RequestError(f"{override.input_line}: expected true or false")


def _as_folder(text: str) -> str:
    """The name of a folder for a job that sweeps `text`, another for each text; without secrets."""
    text = digested({"": text})[""]
    name = re.sub(r"[^\w.,=+-]", "_", str(text))[:LONGEST_NAME]
    return name or "job" if name == text else f"{name[:120]}-{hashlib.sha256(str(text).encode()).hexdigest()[:8]}"


class Returned(JobReturn):
    """What Hydra learns of a job: where it failed, its error without a line of Hydra's, a second message."""

    @property  # type: ignore[misc]
    def return_value(self) -> Any:
        if self.status is JobStatus.FAILED:
            raise self._return_value
        return self._return_value


class Masking(Callback):
    """Keeps secrets out of what Hydra writes into a job's or a sweep's folder."""

    def __init__(self) -> None:
        self._is_sweep_clean = False

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        hydra, written = config.hydra, list[Path]()
        if hydra.mode is RunMode.MULTIRUN and not self._is_sweep_clean:  # the same file for all jobs
            written.append(Path(hydra.sweep.dir) / "multirun.yaml")
            self._is_sweep_clean = True
        plain = OmegaConf.to_container(config)
        if hydra.output_subdir is not None and masked(plain) != plain:  # what is written of the job are parts of that
            written += Path(hydra.runtime.output_dir, hydra.output_subdir).glob("*.yaml")
        for path in written:
            if path.is_file():
                plain = OmegaConf.to_container(OmegaConf.load(path))
                if (clean := masked(plain)) != plain:
                    path.write_text(OmegaConf.to_yaml(OmegaConf.create(clean)))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        job_return.overrides = masked(list(job_return.overrides or ()))
        job_return.__class__ = Returned


def composed(
    overrides: Sequence[str], config_name: str = CONFIG, config_path: str | None = None, config_dir: str | None = None
) -> tuple[DictConfig, dict[str, str]]:
    """The checked config that a `Request` composes, and the options chosen per group. Raises `RequestError`."""
    overrides = normalised(overrides)
    refuse_sweep(overrides)
    return job_config(Application(config_path, config_dir).compose_config(config_name, overrides, RunMode.RUN))


def job_config(config: DictConfig) -> tuple[DictConfig, dict[str, str]]:
    """The runner's part of the config that Hydra has set, and the options chosen per group; for `model`, what the
    network is called.

    `outputs` depends no longer on the current folder, which Hydra may change.
    """
    hydra = HydraConfig.get()
    config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    OmegaConf.set_readonly(config, False)
    outputs = config.get("outputs")
    if not isinstance(outputs, str):
        raise RequestError(f"outputs={outputs}: expected a folder")
    config.outputs = str(Path(hydra.runtime.cwd) / folder_named("outputs", outputs))
    choices = {str(key): str(value) for key, value in hydra.runtime.choices.items()}
    return config, choices | {"model": network_name(config)}
