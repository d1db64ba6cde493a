"""How the small tools begin and end. Imports nothing heavy, so that their help pages come at once."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sr_runner.commands.arguments import options_help
from sr_runner.commands.version import versions
from sr_runner.errors import RequestError, RunError
from sr_runner.masking import masked_output
from sr_runner.signals import Stopped, StopSignal

_ENDING = """
Values are written as for sr-run: null, [a,b], {{key: value}}, quotes where there are commas in a list; +key= is key=.
  --json                    {json}
  --version                 sr-run's version, and those of torch, hydra and mlflow
  --help                    this page
Exit status: 0 done, 2 the request was wrong, 1 {failed}, 128+N stopped by signal N.
"""


@masked_output()
def run_command(
    name: str, page: Callable[[], str], argv: Sequence[str] | None, work: Callable[[list[str], bool], int]
) -> int:
    """The exit status of the tool `name`: that of `work`, 2 (wrong request), 1 (failed) or 128+N (stopped by signal N).

    `work` gets the words after the tool's name without dashed options, and whether `--json` was among them. A wrong
    request and a failure that is no fault of the code end in one sentence on standard error, without secrets.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    stop = StopSignal().install()
    try:
        if "--help" in words or "-h" in words:
            sys.stdout.write(page())
            status = 0
        elif "--version" in words:
            sys.stdout.write(f"{versions()}\n")
            status = 0
        else:
            status = work([word for word in words if word != "--json"], "--json" in words)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `sr-eval ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        return 0
    except (RequestError, RunError, OSError) as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 2 if isinstance(error, RequestError) else 1
    except Stopped as stopped:
        return 128 + stopped.signum
    finally:
        stop.uninstall()


def help_page(head: str, options: Mapping[str, type[Any]], *, json: str, failed: str = "it failed") -> str:
    """`head` (what the tool does, Usage, Common commands), the options by section (of the
    second and later ones what the first has not), the ending."""
    first, *_ = options.values()
    sections = [
        f"{title}\n{options_help(kind, but=object if kind is first else first)}" for title, kind in options.items()
    ]
    return "\n\n".join([head.strip(), *sections]) + "\n" + _ENDING.format(json=json, failed=failed)
