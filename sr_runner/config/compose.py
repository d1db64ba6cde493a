"""Composing a config, and saying in one sentence what is wrong with a request that does not compose."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sr_runner.config import schema as configs
from sr_runner.config.identity import flatten
from sr_runner.config.settings import config_dir
from sr_runner.errors import RequestError, nearest

# Groups that the defaults list has as `null`. Hydra takes `experiment=x`, refuses `+experiment=x`; people write both.
_OPTIONAL_GROUPS = ("experiment",)
_MOST_CHECKED = 64


def normalised(overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra wants them."""
    return [re.sub(rf"^\+({'|'.join(_OPTIONAL_GROUPS)})=", r"\1=", override) for override in overrides]


def composed(overrides: Sequence[str], extra_dirs: Sequence[str] = ()) -> tuple[DictConfig, dict[str, str]]:
    """The config that `overrides` compose, resolved against the current folder, and the options chosen per group.

    `extra_dirs` are further folders of configs, as after `--config-dir`. Raises `RequestError`.
    """
    overrides = normalised(overrides)
    configs.register_schema()
    urls = ",".join(f"file://{Path(folder).absolute()}" for folder in extra_dirs)
    search = [f"hydra.searchpath=[{urls}]"] if extra_dirs else []
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3", job_name="sr-run"):
            whole = compose("config", [*overrides, *search], return_hydra_config=True)
            HydraConfig.instance().set_config(whole)
            choices = {str(k): str(v) for k, v in whole.hydra.runtime.choices.items()}
            config = absolute(whole)
            OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise RequestError(explain(error, overrides)) from error
    for group, option in choices.items():
        if option.startswith("_"):
            raise RequestError(f"{group}={option}: no such {group}. Options: {', '.join(options_of(group))}")
    configs.check(config)
    return config, choices


def absolute(whole: DictConfig) -> DictConfig:
    """The runner's part of Hydra's config, whose `outputs` no longer depends on the current folder."""
    config: DictConfig = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
    OmegaConf.set_readonly(config, False)
    config.outputs = str(Path(config.outputs).expanduser().absolute())
    return config


def check_sweep(overrides: Sequence[str], extra_dirs: Sequence[str] = ()) -> None:
    """Raises `RequestError` for the first value of a sweep that does not compose, before any job starts.

    Each value is tried once, with the first of all the others: a sweep of many jobs is not composed many times.
    """
    parsed = parse(normalised(overrides))
    values = [_values(override) for override in parsed]
    tried = 0
    for position, options in enumerate(values):
        for option in options[0 if position == 0 else 1 :]:
            job = [option if i == position else others[0] for i, others in enumerate(values) if others]
            composed(job, extra_dirs)
            tried += 1
            if tried >= _MOST_CHECKED:
                return


def first_of_each(overrides: Sequence[str]) -> list[str]:
    """The first job of a sweep."""
    return [values[0] for override in parse(normalised(overrides)) if (values := _values(override))]


def parse(overrides: Sequence[str]) -> list[Override]:
    """Raises `RequestError` where an override is not in Hydra's grammar."""
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise RequestError(explain(error, overrides)) from error


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.input_line)]
    key = override.get_key_element()
    if not (override.is_discrete_sweep() and (override.is_choice_sweep() or override.is_range_sweep())):
        return []  # an interval: whoever samples it decides
    values: Iterator[str] = override.sweep_string_iterator()
    return [f"{key}={value}" for value in itertools.islice(values, _MOST_CHECKED)]


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """One sentence for what Hydra or OmegaConf said: what is wrong, what was expected."""
    text = str(error).strip()
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not of the form key=value ({text.splitlines()[-1].strip()})"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        options = [str(name) for name in error.options or () if not str(name).startswith("_")]
        if not options:
            return f"{error.missing_cfg_file}: no such config"
        return f"{group}={option}: no such {group}.{nearest(option, options)} Options: {', '.join(sorted(options))}"
    if match := re.search(r"Could not find '([\w/.-]+)'", text):
        group, _, option = match[1].rpartition("/")
        options = options_of(group)
        return f"{group}={option}: no such {group}.{nearest(option, options)} Options: {', '.join(options)}"
    cause: BaseException | None = error
    while cause is not None:
        if match := re.search(r"Key '([^']+)' (?:is )?not in ", str(cause)):
            return _unknown_key(match[1], text, overrides)
        if match := re.search(r"Value '(.*?)' .*could not be converted to (\w+)", str(cause), re.DOTALL):
            key = re.search(r"full_key: (\S+)", str(cause))
            kinds = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
            kind = kinds.get(match[2], match[2])
            return f"{key[1] if key else 'a value'}={match[1]}: {kind} is needed"
        cause = cause.__cause__ or cause.__context__
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(match[1].rpartition(".")[2], text, overrides)
    first = " ".join(line.strip() for line in text.splitlines()[:2])
    return f"the config does not compose: {first}"


def options_of(group: str) -> list[str]:
    """The options of a config group, in alphabetical order; what several of them share stands in `_<name>.yaml`."""
    return sorted(path.stem for path in (config_dir() / group).glob("[!_]*.yaml"))


def _unknown_key(key: str, text: str, overrides: Sequence[str]) -> str:
    given = next((o for o in overrides if re.match(rf"[+~]*([\w./@]+\.)?{re.escape(key)}(=|$)", o)), None)
    full = given.lstrip("+~").partition("=")[0] if given else key
    parent = full.rpartition(".")[0]
    known = known_keys(overrides)
    siblings = [k for k in known if k.rpartition(".")[0] == parent]
    guess = nearest(full, siblings) or nearest(full, known)
    which = f" Keys of {parent}: {', '.join(s.rpartition('.')[2] for s in siblings)}." if parent and siblings else ""
    top = "" if which or guess else " sr-run --help lists the groups and keys."
    return f"{given or full}: there is no key {full}.{guess}{which}{top}"


def known_keys(overrides: Sequence[str]) -> list[str]:
    """The groups, and all keys of the config that the choices of groups among `overrides` compose."""
    groups = [entry.name for entry in config_dir().iterdir() if entry.is_dir()]
    choices = [override for override in overrides if override.partition("=")[0] in groups]
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            whole = compose("config", choices)
    except (HydraException, OmegaConfBaseException, ValueError):
        return groups
    return [*flatten(OmegaConf.to_container(whole, resolve=False)), *groups]
