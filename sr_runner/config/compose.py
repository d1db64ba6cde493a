"""Composing a config with Hydra, and one sentence for whatever is wrong with a request that does not compose."""

from __future__ import annotations

import hashlib
import itertools
import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigTypeError,
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from sr_runner.config import hydra_keys, tree
from sr_runner.config import schema as configs
from sr_runner.config.identity import flatten
from sr_runner.config.options import network_name
from sr_runner.config.settings import config_dir
from sr_runner.errors import RequestError, RunError, nearest
from sr_runner.files import folder_named
from sr_runner.masking import masked

CONFIG = "config"
_MOST_CHECKED = 64
_LONGEST_NAME = 200  # a file system has no room for longer ones
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
        super().__init__(task_name="sr-run", config_loader=ConfigLoaderImpl(config_search_path=search_path))

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
                raise RequestError(
                    "hydra.callbacks.masking: expected to be there, as in conf/config.yaml; it keeps secrets from Hydra"
                )
            if config_name is not None:
                hydra_keys.check(whole.hydra, self._options)
            if config_name is not None and run_mode is RunMode.RUN:
                HydraConfig.instance().set_config(whole)
                _check_booleans(parsed, whole)
                configs.check(job_config(whole)[0])
                OmegaConf.set_readonly(whole.hydra, None)
        return whole

    @contextmanager
    def explained(self, config_name: str | None, overrides: Sequence[str]) -> Iterator[None]:
        """Within, nothing but the request is at work: whatever is raised becomes a `RequestError`."""
        try:
            yield
        except (RequestError, RunError):
            raise
        except Exception as error:
            raise RequestError(self._explain(error, config_name, overrides)) from error

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
        try:
            done = run_job(task_function, config, "hydra.run.dir", None, context)
        except OSError as error:  # the job's own are in what it returns
            key = "output_subdir" if Path(config.hydra.run.dir).is_dir() else "run.dir"
            raise RequestError(
                f"hydra.{key}={OmegaConf.select(config.hydra, key)}: nothing can be written there ({error.strerror})"
            ) from error
        callbacks.on_run_end(config=config, config_name=config_name, job_return=done)
        _ = done.return_value
        return done

    def _check_choices(self, overrides: Sequence[Override]) -> None:
        """Hydra takes the option of a group for a name, whatever it is."""
        for override in overrides:
            group = override.key_or_group
            if not group:
                raise RequestError(f"{override.input_line}: expected key=value")
            if override.is_delete() and group == "hydra":
                raise RequestError(f"{override.input_line}: expected hydra to stay; hydra.KEY=VALUE changes a key")
            if f"{group}.".startswith(_SWEPT) and not (override.is_delete() or override.value() is None):
                raise RequestError(
                    f"{override.input_line}: expected in a config file; on the command line it is -m KEY=VALUE,VALUE"
                )
            if group == _SEARCH_PATH:
                hydra_keys.check_search_path(override)
            if override.is_delete() or override.is_sweep_override() or not self._options(group):
                continue
            value = override.value()
            for name in value if isinstance(value, list) else [value]:
                if not isinstance(name, str):
                    hint = " (constant: the same learning rate throughout)" if group == "scheduler" else ""
                    raise RequestError(
                        f"{override.input_line}: expected an option of {group}: {', '.join(self._options(group))}{hint}"
                    )
                if len(name) > _LONGEST_NAME or name.startswith("_"):
                    raise RequestError(self._no_such_option(group, name))

    def _options(self, group: str) -> list[str]:
        # What several options of a group share stands in `_<name>.yaml`.
        assert isinstance(self.config_loader, ConfigLoaderImpl)
        found = self.config_loader.repository.get_group_options(group, ObjectType.CONFIG)
        return sorted(name for name in found if not name.startswith("_"))

    def _groups(self, parent: str = "") -> Iterator[str]:
        assert isinstance(self.config_loader, ConfigLoaderImpl)
        for name in self.config_loader.repository.get_group_options(parent, ObjectType.GROUP):
            group = f"{parent}/{name}".lstrip("/")
            yield group
            yield from self._groups(group)

    def _no_such_option(self, group: str, option: str) -> str:
        options = self._options(group)
        shown = option if len(option) <= _LONGEST_NAME else f"{option[:60]}..."
        near, searched = nearest(option, options), self.config_loader.get_search_path().get_path()
        is_given = any(each.provider == "command-line" for each in searched)
        own = "" if is_given or (near and group != "experiment") else "; --config-dir FOLDER adds those of your own"
        return f"{group}={shown}: no such {group}.{near} Options: {', '.join(options)}{own}"

    def _explain(self, error: Exception, config_name: str | None, overrides: Sequence[str]) -> str:
        """One sentence for what Hydra or OmegaConf raised: what is wrong, what was expected."""
        text, files = str(error).strip(), self._chosen_files(config_name, overrides)
        if (wrong := tree.without_package(files)) is not None:
            return wrong
        in_recipe = re.search(r"Could not (?:find|override) 'experiment/([\w/-]+?)(?:/\w+)?['@]", text)
        if in_recipe and (wrong := tree.not_overridden(in_recipe[1], files)) is not None:
            return wrong
        if isinstance(error, MissingConfigException) and error.missing_cfg_file:
            group, _, option = str(error.missing_cfg_file).rpartition("/")
            if group:
                return self._no_such_option(group, option)
            known = [name for name in self._options("") if name != "schema"]
            found = f" Configs: {', '.join(known)}" if known else ""
            shown = f"--config-name {option}" if option == config_name else option
            return f"{shown}: there is no such config.{nearest(option, known)}{found}"
        if match := re.search(r"Could not find '([\w/.-]+)'", text):
            group, _, option = match[1].rpartition("/")
            return self._no_such_option(group, option)
        if isinstance(error, KeyError) and any("hydra.job.env_copy" in each for each in overrides):
            return f"hydra.job.env_copy: the environment has no variable {text}; expected the names of variables"
        if match := re.search(r"Multiple values for ([\w/]+)\.", text):
            added = next((each for each in overrides if each.startswith(f"+{match[1]}=")), None)
            if added is None and (wrong := tree.not_overridden(match[1], files)) is not None:
                return wrong
            added = added or f"+{match[1]}"
            return f"{added}: {match[1]} has an option already; expected {added[1:]}"
        key, kind = "", None
        cause: BaseException | None = error
        while cause is not None:
            message = str(cause)
            full_key = re.search(r"full_key: (\S+)", message)
            key, kind = full_key[1] if full_key else key, getattr(cause, "object_type", None) or kind
            if match := re.search(r"Key '([^']+)' (?:is )?not in ", message):
                return self._unknown_key(match[1], config_name, overrides)
            given = re.search(r"Value '(.*?)' .*(?:could not be converted to|not a valid)", message, re.DOTALL)
            given = given or re.search(r"Error merging override [^=]+=(.*)", text, re.DOTALL)
            if isinstance(cause, ValidationError | ConfigTypeError) and given and key:
                return f"{key}={given[1]}: expected {hydra_keys.expected(kind, key.rpartition('.')[2])}"
            if isinstance(cause, InterpolationKeyError) and (match := re.search(r"key '(.+)' not found", message)):
                for deleted in [each for each in overrides if each[:1] == "~"]:
                    if f"{match[1]}.".startswith(f"{deleted[1:].partition('=')[0]}."):
                        return f"{deleted}: {key} is ${{{match[1]}}}; expected {match[1]} to stay, or another {key}"
            if isinstance(cause, MissingMandatoryValue):
                options = self._options(key)
                what = f"an option of {key}: {', '.join(options)}" if options else "a value"
                return f"{key} is missing: expected {what}"
            cause = cause.__cause__ or cause.__context__
        if match := re.search(r"Could not override '([^']+)'", text):
            return self._unknown_key(match[1].rpartition(".")[2], config_name, overrides)
        first = " ".join(
            line.strip() for line in text.splitlines() if "full_key:" not in line and "object_type=" not in line
        )
        where = f"{key}: " if key else "the config does not compose: "
        return f"{where}{textwrap.shorten(first or type(error).__name__, 500)}"

    def _unknown_key(self, key: str, config_name: str | None, overrides: Sequence[str]) -> str:
        given = next((o for o in overrides if re.match(rf"[+~]*([\w./@]+\.)?{re.escape(key)}(=|$)", o)), None)
        full, file = given.lstrip("+~").partition("=")[0] if given else key, None
        if given is None:
            full, file = next(
                ((found, file) for file in self._chosen_files(config_name, overrides) if (found := file.find(key))),
                (full, None),
            )
        parent = full.rpartition(".")[0]
        known = self._known_keys(config_name, overrides)
        below = [k.removeprefix(f"{parent}.").partition(".")[0] for k in known if k.startswith(f"{parent}.")]
        siblings = [f"{parent}.{name}" for name in dict.fromkeys(below)] if parent else []
        below = [] if parent else [each for each in known if re.fullmatch(rf"(?!hydra).*\.{re.escape(key)}", each)]
        in_groups = " or ".join(f"'{each}'" for each in below)
        guess = f" Did you mean {in_groups}?" if in_groups else nearest(full, siblings)
        guess = self._other_options(parent, key) or guess or nearest(full, known)
        names = ", ".join(s.rpartition(".")[2] for s in siblings)
        which = f" Keys of {parent}: {names}." if parent and siblings else ""
        top = "" if which or guess else " sr-run --help lists the groups and keys."
        own = next((o.partition("=")[2] for o in overrides if o.startswith(f"{parent}._target_=")), None)
        if own is not None:
            top += f" If {own} takes it: +{given}."
        where = f"{file}: " if file is not None else ""
        return f"{where}{given or full}: there is no key {full}.{guess}{which}{top}"

    def _other_options(self, group: str, key: str) -> str:
        """Which options of `group` have a `key`."""
        options = [(group, name) for name in (self._options(group) if group else [])]
        having = [f"{group}={each.path.stem}" for each in tree.read(self._folders, options) if key in each.content]
        return f" {' or '.join(having)} has it." if having else ""

    @property
    def _folders(self) -> list[Path]:
        assert isinstance(self.config_loader, ConfigLoaderImpl)
        return [Path(each.path) for each in self.config_loader.repository.get_sources() if each.scheme() == "file"]

    def _chosen_files(self, config_name: str | None, overrides: Sequence[str]) -> list[tree.File]:
        """The config itself and the options among `overrides` that are files, with what each of them is based on."""
        groups = list(self._groups())
        wanted: list[tuple[str, Any]] = [("", config_name or CONFIG)]
        for override in parse(overrides):
            if override.key_or_group in groups and not override.is_delete() and not override.is_sweep_override():
                value = override.value()
                wanted += [(override.key_or_group, each) for each in (value if isinstance(value, list) else [value])]
        return tree.read(self._folders, wanted)

    def _known_keys(self, config_name: str | None, overrides: Sequence[str]) -> list[str]:
        """The groups, and all keys of the config that the choices of groups among `overrides` compose."""
        groups = list(self._groups())
        choices = [override for override in overrides if override.partition("=")[0] in groups]
        for chosen in (choices, [each for each in choices if not each.startswith("experiment=")]):
            with suppress(HydraException, OmegaConfBaseException, ValueError):
                whole = self.config_loader.load_configuration(config_name, chosen, RunMode.RUN)
                return [*flatten(OmegaConf.to_container(whole, resolve=False)), *groups]
        return groups


def _check_booleans(overrides: Sequence[Override], whole: DictConfig) -> None:
    """OmegaConf takes any whole number for a boolean, and the words of YAML 1.1: `off`, `no`, `n`."""
    for override in overrides:
        value = None if override.is_delete() else override.value()
        if isinstance(value, bool) or not isinstance(value, int | str) or "${" in str(value):
            continue
        if isinstance(OmegaConf.select(whole, override.key_or_group), bool):
            raise RequestError(f"{override.input_line}: expected true or false")


def _as_folder(text: str) -> str:
    """The name of a folder for a job that sweeps `text`, another for each text."""
    name = re.sub(r"[^\w.,=+-]", "_", str(text))[:_LONGEST_NAME]
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

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        hydra = config.hydra
        written = [Path(hydra.sweep.dir) / "multirun.yaml"] if hydra.mode is RunMode.MULTIRUN else []
        if hydra.output_subdir is not None:
            written += Path(hydra.runtime.output_dir, hydra.output_subdir).glob("*.yaml")
        for path in written:
            if path.is_file():
                plain = OmegaConf.to_container(OmegaConf.load(path))
                if (clean := masked(plain)) != plain:
                    path.write_text(OmegaConf.to_yaml(OmegaConf.create(clean)))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        job_return.overrides = masked(list(job_return.overrides or ()))
        job_return.__class__ = Returned


def normalised(overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra wants them: `experiment` is in the defaults list, but people write `+experiment=x` too;
    null is the natural word for none of a group within another (`data/degradation`), which Hydra writes `~group`."""
    overrides = [re.sub(r"^\+experiment=", "experiment=", override) for override in overrides]
    return [re.sub(r"^((?!hydra/)\w+/[\w/]+)=(?i:null)$", r"~\1", override) for override in overrides]


def as_override(key: str, value: Any, sign: str = "") -> str:
    """`key=value` in Hydra's grammar, for a value of a config: null, a bool, number, text, list or mapping.

    Raises `RequestError` for a key that has no place in it.
    """
    override = f"{sign}{key}={_quoted(value)}"
    parse([override])
    return override


def _quoted(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_quoted(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(_quoted, value)) + "]"
    if isinstance(value, bool | None):
        return {True: "true", False: "false", None: "null"}[value]
    if not isinstance(value, str):
        return repr(value)
    # Backslashes are themselves but before a quote.
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value) + "'"


def refuse_sweep(overrides: Sequence[str]) -> None:
    """Raises `RequestError` where `overrides` describe more than one run."""
    for override in parse(overrides):
        if override.is_sweep_override():
            raise RequestError(f"{override.input_line}: several values are a sweep: sr-run -m {' '.join(overrides)}")


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


def parse(overrides: Sequence[str]) -> list[Override]:
    """Raises `RequestError` where an override is not in Hydra's grammar."""
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise RequestError(f"{error.override}: not of the form key=value ({reason})") from error
    except ValueError as error:  # Python reads no number of more than 4,300 digits
        raise RequestError(f"{max(overrides, key=len)}: expected a number that can be read ({error})") from error


def jobs_to_check(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Jobs of a sweep in which each value occurs, beside the first of all the others: the first job, then one for
    every further value, at most 64 in all, so that a sweep of many jobs is not composed many times."""
    values = [found for override in parse(overrides) if (found := _values(override))]
    first = [options[0] for options in values]
    others = (
        [*first[:position], option, *first[position + 1 :]]
        for position, options in enumerate(values)
        for option in options[1:]
    )
    return itertools.islice(itertools.chain([first], others), _MOST_CHECKED)


def swept_values(overrides: Sequence[str], most: int) -> dict[str, list[str]]:
    """What is swept: per key its values, as a job is given them; none where they are not known beforehand, or more than
    `most`."""
    swept: dict[str, list[str]] = {}
    for override in parse(overrides):
        if override.is_sweep_override():
            found = [each.partition("=")[2].strip("'\"") for each in _values(override, most + 1)]
            swept[override.key_or_group] = found if len(found) <= most else []
    return swept


def _values(override: Override, most: int = _MOST_CHECKED) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.input_line)]
    key = override.get_key_element()
    if not (override.is_discrete_sweep() and (override.is_choice_sweep() or override.is_range_sweep())):
        return []  # an interval: whoever samples it decides
    values: Iterator[str] = override.sweep_string_iterator()
    return [f"{key}={value}" for value in itertools.islice(values, most)]
