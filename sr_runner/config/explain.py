"""One sentence for whatever is wrong with a request that does not compose: what is wrong, and what was expected."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigTypeError,
    GrammarParseError,
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from sr_runner.config import hydra_keys, tree
from sr_runner.config.identity import flatten
from sr_runner.config.overrides import LONGEST_NAME, parse
from sr_runner.errors import nearest


class Explainer:
    """What there is in a config tree, and what a request that does not fit it should have said."""

    def __init__(self, loader: ConfigLoaderImpl) -> None:
        self._loader = loader

    def options(self, group: str) -> list[str]:
        # What several options of a group share stands in `_<name>.yaml`.
        found = self._loader.repository.get_group_options(group, ObjectType.CONFIG)
        return sorted(name for name in found if not name.startswith("_"))

    def without_effect(self, overrides: Sequence[Override], whole: DictConfig) -> str | None:
        """One sentence for the first option among `overrides` whose class a recipe replaces: it names the run, and what
        runs is another."""
        given = {override.key_or_group for override in overrides}
        recipes = tree.read(
            self._folders, [("experiment", OmegaConf.select(whole, "hydra.runtime.choices.experiment"))]
        )
        for override in overrides:
            group, option = override.key_or_group, None if override.is_delete() else override.value()
            if group == "experiment" or not isinstance(option, str) or not self.options(group):
                continue
            place = group.replace("/", ".")
            for file in tree.read(self._folders, [(group, option)])[:1]:
                for key, target in flatten(file.content, place).items():
                    now = OmegaConf.select(whole, key) if key.endswith("._target_") else target
                    by = next((each for each in recipes if key in flatten(each.content)), None)
                    if now != target and key not in given and by is not None:
                        return (
                            f"{override.input_line} has no effect: {by} sets {key}={now}; expected 'override /{group}: "
                            f"OPTION' in its defaults instead, or {key}={target} here"
                        )
        return None

    def _groups(self, parent: str = "") -> Iterator[str]:
        for name in self._loader.repository.get_group_options(parent, ObjectType.GROUP):
            group = f"{parent}/{name}".lstrip("/")
            yield group
            yield from self._groups(group)

    def no_such_option(self, group: str, option: str) -> str:
        options = self.options(group)
        shown = option if len(option) <= LONGEST_NAME else f"{option[:60]}..."
        near, searched = nearest(option, options), self._loader.get_search_path().get_path()
        is_given = any(each.provider == "command-line" for each in searched)
        own = "" if is_given or (near and group != "experiment") else "; --config-dir FOLDER adds those of your own"
        return f"{group}={shown}: no such {group}.{near} Options: {', '.join(options)}{own}"

    def sentence(self, error: Exception, config_name: str | None, overrides: Sequence[str]) -> str:
        """One sentence for what Hydra or OmegaConf raised: what is wrong, what was expected."""
        text, files = str(error).strip(), self._chosen_files(config_name, overrides)
        if (wrong := tree.without_package(files)) is not None:
            return wrong
        in_recipe = re.search(r"Could not (?:find|override) 'experiment/([\w/-]+?)(?:/\w+)?['@]", text)
        if in_recipe and (wrong := tree.not_overridden(in_recipe[1], files)) is not None:
            return wrong
        if isinstance(error, MissingConfigException) and error.missing_cfg_file:
            group, _, option = str(error.missing_cfg_file).rpartition("/")
            is_named = config_name is not None and str(error.missing_cfg_file) == config_name.lstrip("/")
            if group and not is_named:
                return self.no_such_option(group, option)
            known = [name for name in self.options("") if name != "schema"]
            found = f" Configs: {', '.join(known)}" if known else ""
            shown = f"--config-name {config_name}" if is_named else option
            return f"{shown}: there is no such config.{nearest(option, known)}{found}"
        if match := re.search(r"Could not find '([\w/.-]+)'", text):
            group, _, option = match[1].rpartition("/")
            return self.no_such_option(group, option)
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
            if isinstance(cause, GrammarParseError) and (match := re.search("at input '(.*)'", message)):
                file = next((each for each in files if match[1] in each.path.read_text(errors="replace")), None)
                where = f"{file}: {key}" if file is not None else key or "the config"
                return f"{where}: {match[1]} is no whole interpolation; expected ${{KEY}} or ${{RESOLVER:VALUE}}"
            if isinstance(cause, MissingMandatoryValue):
                options = self.options(key)
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
        for each in overrides:
            if added := re.match(rf"(hydra\.job\.env_set|hydra\.callbacks)(=|\.{re.escape(key)}\b)", each):
                return f"{each}: there is no key {key} yet; expected +{added[1]}.{key}, which adds it"
        given = next((o for o in overrides if re.match(rf"[+~]*([\w./@]+\.)?{re.escape(key)}(=|$)", o)), None)
        for one in parse(overrides):
            value = None if one.is_delete() or one.is_sweep_override() or one.is_add() or given else one.value()
            if isinstance(value, dict) and any(key in each.split(".") for each in flatten(value)):
                return f"{one.input_line}: there is no key {key} yet; expected ++{one.input_line}, which adds it"
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
        having = [
            f"{group}={name}"
            for name in (self.options(group) if group else [])
            if any(key in each.content for each in tree.read(self._folders, [(group, name)]))
        ]
        return f" {' or '.join(having)} has it." if having else ""

    @property
    def _folders(self) -> list[Path]:
        return [Path(each.path) for each in self._loader.repository.get_sources() if each.scheme() == "file"]

    def _chosen_files(self, config_name: str | None, overrides: Sequence[str]) -> list[tree.File]:
        """The config itself and the options among `overrides` that are files, with what each of them is based on."""
        wanted: list[tuple[str, Any]] = [("", config_name or "config")]
        for override in parse(overrides):
            if self.options(override.key_or_group) and not override.is_delete() and not override.is_sweep_override():
                value = override.value()
                wanted += [(override.key_or_group, each) for each in (value if isinstance(value, list) else [value])]
        return tree.read(self._folders, wanted)

    def _known_keys(self, config_name: str | None, overrides: Sequence[str]) -> list[str]:
        """The groups, and all keys of the config that the choices of groups among `overrides` compose."""
        groups = list(self._groups())
        choices = [override for override in overrides if override.partition("=")[0] in groups]
        for chosen in (choices, [each for each in choices if not each.startswith("experiment=")]):
            with suppress(HydraException, OmegaConfBaseException, ValueError):
                whole = self._loader.load_configuration(config_name, chosen, RunMode.RUN)
                return [*flatten(OmegaConf.to_container(whole, resolve=False)), *groups]
        return groups
