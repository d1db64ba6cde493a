"""How command lines begin and end. Imports nothing heavy, so that help pages come at once."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sr_runner.commands.arguments import options_help
from sr_runner.errors import RequestError, RunError
from sr_runner.masking import masked_output
from sr_runner.signals import Stopped, StopSignal
from sr_runner.streams import ReaderGone, drop, standard_streams

_PACKAGES = ("sr-run", "torch", "hydra-core", "mlflow")
_ENDING = """
Values are written as for sr-run: null, [a,b], {{key: value}}, quotes where there are commas in a list; +key= is key=.
  --json                    {json}
  --version                 sr-run's version, and those of torch, hydra and mlflow
  --help                    this page
Exit status: 0 done, 2 the request was wrong, 1 {failed}, 128+N stopped by signal N.
"""


@standard_streams()
@masked_output()
def run_command(
    name: str, page: Callable[[], str], argv: Sequence[str] | None, work: Callable[[list[str], bool], int]
) -> int:
    """The exit status of the tool `name`: that of `work`, 2 (wrong request), 1 (failed) or 128+N (stopped by signal N).

    `work` gets the words after the tool's name without dashed options, and whether `--json` was among them. A wrong
    request and a failure that is no fault of the code end in one sentence on standard error, without secrets.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(
        lambda record: record.levelno > logging.INFO or record.name.split(".")[0] in ("root", "sr_runner")
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])

    def answer() -> int:
        if print_page(words, page):
            return 0
        return work([word for word in words if word != "--json"], "--json" in words)

    stop = StopSignal().install()
    try:
        status, message = ended(name, answer, failures=(RunError, OSError))
    finally:
        stop.uninstall()
    sys.stderr.write(message)
    return status


def print_page(words: Sequence[str], page: Callable[[], str]) -> bool:
    """Print what `--help` or `--version` asks for, if one of them is among `words`."""
    if "--help" in words or "-h" in words:
        sys.stdout.write(page())
    elif "--version" in words:
        sys.stdout.write(", ".join(f"{name} {_version(name)}" for name in _PACKAGES) + "\n")
    else:
        return False
    return True


def ended(
    name: str, work: Callable[[], int], *, failures: tuple[type[Exception], ...] = (RunError,)
) -> tuple[int, str]:
    """The exit status of `work`, and what is to be printed on standard error: one sentence for a wrong request (2) and
    for `failures` (1), nothing after a signal (128+N). Anything else is a fault of the code and is raised."""
    try:
        status = work()
        sys.stdout.flush()
        return status, ""
    except ReaderGone:
        drop(sys.stdout)
        return 0, ""
    except RequestError as error:
        return 2, f"{name}: {error}\n"
    except failures as error:
        return 1, f"{name}: {error}\n"
    except Stopped as stopped:
        return 128 + stopped.signum, ""


def help_page(head: str, options: Mapping[str, type[Any]], *, json: str, failed: str = "it failed") -> str:
    """`head` (what the tool does, Usage, Common commands), the options by section (of the
    second and later ones what the first has not), the ending."""
    first, *_ = options.values()
    sections = [
        f"{title}\n{options_help(kind, but=object if kind is first else first)}" for title, kind in options.items()
    ]
    return "\n\n".join([head.strip(), *sections]) + "\n" + _ENDING.format(json=json, failed=failed)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout on the path
        return "(not installed)"
