"""Every command that the pages, `--help` and the recipes' first lines print."""

from __future__ import annotations

import importlib
import re
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

from support import ROOT

TOOLS = {"sr-run": "run", "sr-runs": "runs", "sr-eval": "evaluate", "sr-upscale": "upscale", "sr-ckpt": "ckpt"}
_TOOL = "|".join(TOOLS)


def of_a_page(path: Path) -> list[str]:
    """The lines of its code blocks, commands or not, and the commands within its sentences."""
    text = re.sub(r"(?ms)^```.*?^```$", "", _joined(path.read_text(encoding="utf-8")))
    found = re.finditer(rf"(?m)^    (?=\S)(.*)|`((?:{_TOOL}|python -m) [^`]*)`", text)
    return [each[1] or " ".join(each[2].split()) for each in found]


def of_help(tool: str) -> list[str]:
    """The commands of its page, without what is said of them."""
    with redirect_stdout(StringIO()) as page:
        importlib.import_module(f"sr_runner.commands.{TOOLS[tool]}").main(["--help"])
    return re.findall(rf"(?m)^  ((?:{_TOOL})\b.*?)(?:   .*)?$", page.getvalue())


def of_a_recipe(path: Path) -> list[str]:
    return re.findall(r"(?m)^#(?: |   )(sr-run .*?)(?: -- .*)?$", _joined(path.read_text(encoding="utf-8")))


@cache
def printed() -> dict[str, list[str]]:
    """Where they stand -> the commands; what stands in several places only at the first."""
    places = {tool + " --help": of_help(tool) for tool in TOOLS}
    pages = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
    places |= {str(path.relative_to(ROOT)): of_a_page(path) for path in pages}
    places |= {path.name: of_a_recipe(path) for path in sorted(ROOT.glob("conf/experiment/*.yaml"))}
    found: dict[str, list[str]] = {}
    seen = set()
    for place, lines in places.items():
        found[place] = []
        for line in lines:
            if (command := line.partition("  #")[0].rstrip()) not in seen:
                seen.add(command)
                found[place].append(line)
    return found


def _joined(text: str) -> str:
    return re.sub(r"\\\n#? *", "", text)
