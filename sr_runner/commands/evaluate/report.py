"""Results of several models on several benchmarks, as a table, Markdown, CSV and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sr_runner.commands.evaluate.published import Published, images_of
from sr_runner.errors import RequestError, printable
from sr_runner.evaluation import protocol
from sr_runner.evaluation.efficiency import Cost
from sr_runner.evaluation.metrics import digits, title
from sr_runner.evaluation.protocol import Evaluation, finite_or_text


@dataclass(frozen=True)
class Result:
    """One model on one benchmark."""

    model: str
    benchmark: str
    scale: int
    degradation: str
    evaluation: Evaluation
    parameters: int | None = None
    """None for bicubic."""
    published: Published | None = None
    asked_for: bool = True
    """False for the bicubic baseline that stands beside the models."""
    with_cost: bool = False
    """It stands in a table of what networks cost, which has no metrics of Y."""
    cost: Cost | None = None
    """None for bicubic, too."""


def as_csv(results: Sequence[Result]) -> str:
    """One row per image; columns `benchmark` and `model` at the end where there are several of them."""
    asked = [result for result in results if result.asked_for]
    names = {
        "benchmark": len({result.benchmark for result in asked}) > 1,
        "model": len({result.model for result in asked}) > 1,
    }
    rows = [
        row | {name: str(getattr(result, name)) for name, several in names.items() if several}
        for result in asked
        for row in result.evaluation.rows()
    ]
    return protocol.as_csv(rows, list(rows[0]))


def as_json(results: Sequence[Result]) -> str:
    """A list with one object per model and benchmark, bicubic included; the PSNR of identical images is "inf"."""
    content = [
        {
            "model": result.model,
            "benchmark": result.benchmark,
            "scale": result.scale,
            "border_crop": result.scale,
            "degradation": result.degradation,
            "parameters": result.parameters,
            "seconds_per_megapixel": _finite(result.evaluation.seconds_per_megapixel),
            "published": None if result.published is None else vars(result.published),
            **({"cost": result.cost.by_name()} if result.cost is not None else {}),
            "mean": finite_or_text(result.evaluation.mean),
            "images": [finite_or_text(row) for row in result.evaluation.rows()],
        }
        for result in results
    ]
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def summary(results: Sequence[Result]) -> str:
    """A table per benchmark, for a terminal."""
    return "\n".join(f"{title}\n\n{_aligned(rows)}" for title, rows in _tables(results))


def as_markdown(results: Sequence[Result]) -> str:
    """The summary, and a table of the images for each model and benchmark."""
    parts = [f"## {title}\n\n{_piped(rows)}" for title, rows in _tables(results)]
    for result in results:
        rows = [
            ["image", *_header(result)],
            *([printable(str(row["image"])), *_figures(row, result)] for row in result.evaluation.rows()),
        ]
        parts.append(f"### {printable(result.benchmark)}, {printable(result.model)}\n\n{_piped(rows)}")
    return "\n".join(parts)


FORMATS: dict[str, Callable[[Sequence[Result]], str]] = {".csv": as_csv, ".json": as_json, ".md": as_markdown}


def writer_for(path: Path) -> Callable[[Sequence[Result]], str]:
    """The format that the ending of `path` asks for. Raises `RequestError` for another ending."""
    if path.suffix.lower() not in FORMATS or path.is_dir():
        raise RequestError(f"output={path}: expected the name of a file that ends in one of {' '.join(FORMATS)}.")
    return FORMATS[path.suffix.lower()]


def _tables(results: Sequence[Result]) -> list[tuple[str, list[list[str]]]]:
    """A title and rows of cells, the header among them, for each benchmark."""
    # Whoever made a folder or a file chose its name: that makes no line of its own.
    tables = []
    for name in dict.fromkeys(result.benchmark for result in results):
        here = [result for result in results if result.benchmark == name]
        first, count = here[0], len(here[0].evaluation.scores)
        heading = (
            f"{printable(name)}, scale {first.scale}: {count} image{'s' * (count != 1)}{_other_count(here)}, "
            f"{first.degradation}, {first.scale} border pixels cropped"
        )
        has_published = any(result.published is not None for result in here)
        costs = [*_COSTS] if first.with_cost else []
        rows = [["model", *_header(first), *["published"] * has_published, "parameters", "s/Mpx", *costs]]
        for result in here:
            row = [printable(result.model), *_figures(result.evaluation.mean, result)]
            row += [str(result.published or "")] * has_published
            row += ["" if result.parameters is None else f"{result.parameters:,}"]
            row += [f"{result.evaluation.seconds_per_megapixel:.3f}"]
            rows.append([*row, *(_cell(result.cost, *of) for of in (_COSTS.values() if costs else ()))])
        tables.append((heading, rows))
    return tables


def _other_count(results: Sequence[Result]) -> str:
    """A warning where published means are of another number of images than those of `results`."""
    images = images_of(results[0].benchmark)
    if images == len(results[0].evaluation.scores) or not any(result.published for result in results):
        return ""
    return f" (published: of {images})"


def _header(result: Result) -> list[str]:
    return [title(name) for name in _columns(result)]


def _figures(row: Mapping[str, Any], result: Result) -> list[str]:
    """The cells below `_header`."""
    return [f"{row[name]:.{digits(name)}f}" for name in _columns(result)]


def _columns(result: Result) -> list[str]:
    """Papers give those of Y, which come first; who compares costs goes by RGB."""
    of_y = ["psnr_y", "ssim_y"]
    return [*(of_y if not result.with_cost else ()), *(name for name in result.evaluation.metrics if name not in of_y)]


_COSTS = {
    "FLOPs": ("flops", 1e9, "G"), "activations": ("activations", 1e6, "M"), "convs": ("convolutions", 1, ""),
    "memory": ("memory_mib", 1, "MiB"), "runtime": ("milliseconds", 1, "ms"), "score": ("score", 1, ""),
}  # fmt: skip
"""Column to the number of a `Cost`, its unit and the name of that."""


def _cell(cost: Cost | None, name: str, unit: float, unit_name: str) -> str:
    value = getattr(cost, name, None)
    if value is None:
        return ""
    return f"{value / unit:.2f} {unit_name}" if unit_name else f"{value:.4g}"  # far from the baseline the score is huge


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _aligned(rows: list[list[str]]) -> str:
    """Columns of one width, the first to the left and the rest to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return "\n".join(lines) + "\n"


def _piped(rows: list[list[str]]) -> str:
    header, *escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *escaped]) + "\n"
