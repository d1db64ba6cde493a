"""Names of images: which LR image belongs to which HR image, and which part of a data set is wanted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sr_runner.errors import RequestError, nearest

LR_PATTERNS = ("{name}", "{name}x{scale}")

Ranges = str | int | Sequence[str | int]


def patterns(key: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """The name patterns asked for; each must hold `{name}` once, may hold `{scale}`, and nothing else in braces."""
    chosen = (given,) if isinstance(given, str) else tuple(given)
    for pattern in chosen:
        if sorted(re.findall(r"{[^}]*}?", pattern)) not in (["{name}"], ["{name}", "{scale}"]):
            raise RequestError(f"{key}={pattern!r}: must hold {{name}}, and may hold {{scale}}: '{{name}}x{{scale}}'.")
    return chosen


def by_name(images: Iterable[str], pattern: str, scale: int) -> dict[str, str]:
    """What `{name}` stands for in each of `images` that fits `pattern`, with the image's own name as value."""
    expression = re.escape(pattern).replace(r"\{name\}", "(.+)").replace(r"\{scale\}", str(scale))
    matches = ((re.fullmatch(expression, image, re.DOTALL), image) for image in images)
    return {match[1]: image for match, image in matches if match}


def match_lr(hr: Iterable[str], lr: Iterable[str], lr_patterns: Sequence[str], scale: int) -> dict[str, str | None]:
    """For each name in `hr` the LR image that one of the patterns makes of it; the first pattern that fits counts."""
    candidates = [by_name(lr, pattern, scale) for pattern in lr_patterns]
    return {name: next((found[name] for found in candidates if name in found), None) for name in hr}


def numbers(key: str, ranges: Ranges, last: int) -> list[int]:
    """`"1-3,7"`, `[1, "2-3", 7]` or `7` as whole numbers from 1 to `last`, in order, each once."""
    parts = list(ranges) if isinstance(ranges, Sequence) and not isinstance(ranges, str) else [ranges]
    chosen: set[int] = set()
    for part in ",".join(str(part) for part in parts).split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first, final = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= final <= last:
            example = f"1-{last}" if last > 1 else "1"
            raise RequestError(
                f"{key}={ranges!r}: {part!r} is not a range of images, which are numbered from 1 to {last}; "
                f"expected {example}."
            )
        chosen.update(range(first, final + 1))
    return sorted(chosen)


def listed(key: str, given: str | Path | Sequence[str], names: Mapping[str, object]) -> set[str]:
    """The names in a list, or in a text file with one a line, with or without extension; all must be in `names`."""
    if isinstance(given, str | Path):
        try:
            lines = Path(given).expanduser().read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"{key}={str(given)!r}: cannot be read as a text file of names ({error}).") from error
        wanted = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    else:
        wanted = [str(name) for name in given]
    chosen: set[str] = set()
    for name in wanted:
        bare = re.sub(r"\.\w+$", "", name)
        if name not in names and bare not in names:
            raise RequestError(f"{key}: no image is called {name!r}.{nearest(bare, names)}")
        chosen.add(name if name in names else bare)
    return chosen
