"""Results of several models on several benchmarks, as text, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sr_runner.commands.evaluate.published import Published, images_of
from sr_runner.errors import RequestError
from sr_runner.evaluation.protocol import Evaluation, finite_or_text

Row = dict[str, str | float]


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
    extra: dict[str, list[float]] = field(default_factory=dict)
    """Further metrics (`lpips`, `dists`), one value per image."""
    asked_for: bool = True
    """False for the bicubic baseline that stands beside the models."""

    @property
    def mean(self) -> dict[str, float]:
        """Means over the images of all metrics."""
        extra = {name: sum(values) / len(values) for name, values in self.extra.items()}
        return self.evaluation.mean | extra

    def rows(self) -> list[Row]:
        """One row per image, with all metrics."""
        extra: list[Row] = [{name: values[i] for name, values in self.extra.items()} for i in range(len(self._images))]
        return [row | more for row, more in zip(self.evaluation.rows(), extra, strict=True)]

    @property
    def _images(self) -> list[str]:
        return [score.image for score in self.evaluation.scores]


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
        for row in result.rows()
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


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
            "mean": finite_or_text(result.mean),
            "images": [finite_or_text(row) for row in result.rows()],
        }
        for result in results
    ]
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def summary(results: Sequence[Result]) -> str:
    """A table per benchmark, for a terminal."""
    return "\n".join(f"{title}\n\n{_aligned(header, rows)}" for title, header, rows in _tables(results))


def as_text(results: Sequence[Result]) -> str:
    """The summary, and a table of the images for each model and benchmark."""
    details = [f"{_image_title(result)}\n\n{_aligned(*_image_table(result))}" for result in results]
    return "\n".join([summary(results), *details])


def as_markdown(results: Sequence[Result]) -> str:
    """The summary and the images as Markdown tables."""
    tables = [f"## {title}\n\n{_piped(header, rows)}" for title, header, rows in _tables(results)]
    images = [f"### {_image_title(result)}\n\n{_piped(*_image_table(result))}" for result in results]
    return "\n".join([*tables, *images])


FORMATS: dict[str, Callable[[Sequence[Result]], str]] = {
    ".csv": as_csv,
    ".json": as_json,
    ".md": as_markdown,
    ".txt": as_text,
}


def writer_for(path: Path) -> Callable[[Sequence[Result]], str]:
    """The format that the ending of `path` asks for. Raises `RequestError` for another ending."""
    if path.suffix.lower() not in FORMATS:
        raise RequestError(f"output={path}: the name must end in one of {' '.join(FORMATS)}.")
    return FORMATS[path.suffix.lower()]


def _tables(results: Sequence[Result]) -> list[tuple[str, list[str], list[list[str]]]]:
    tables = []
    for name in dict.fromkeys(result.benchmark for result in results):
        here = [result for result in results if result.benchmark == name]
        first = here[0]
        count = len(first.evaluation.scores)
        title = (
            f"{name}, scale {first.scale}: {count} image{'s' * (count != 1)}{_other_count(here)}, {first.degradation}, "
            f"{first.scale} border pixels cropped"
        )
        tables.append((title, *_columns(here)))
    return tables


def _other_count(results: Sequence[Result]) -> str:
    """A warning where published means are of another number of images than those of `results`."""
    images = images_of(results[0].benchmark)
    if images == len(results[0].evaluation.scores) or not any(result.published for result in results):
        return ""
    return f" (published: of {images})"


def _columns(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    extra = list(results[0].extra)
    has_published = any(result.published is not None for result in results)
    header = ["model", "PSNR-Y", "SSIM-Y", "PSNR", "SSIM", *(name.upper() for name in extra)]
    header += ["published"] * has_published + ["parameters", "s/Mpx"]
    rows = []
    for result in results:
        mean = result.mean
        row = [result.model, _db(mean["psnr_y"]), _unit(mean["ssim_y"]), _db(mean["psnr"]), _unit(mean["ssim"])]
        row += [_unit(mean[name]) for name in extra]
        if has_published:
            row.append("" if result.published is None else str(result.published))
        row.append("" if result.parameters is None else f"{result.parameters:,}")
        row.append(f"{result.evaluation.seconds_per_megapixel:.3f}")
        rows.append(row)
    return header, rows


def _image_table(result: Result) -> tuple[list[str], list[list[str]]]:
    extra = list(result.extra)
    header = ["image", "PSNR-Y", "SSIM-Y", "PSNR", "SSIM", *(name.upper() for name in extra)]
    rows = [
        [
            str(row["image"]),
            _db(float(row["psnr_y"])),
            _unit(float(row["ssim_y"])),
            _db(float(row["psnr"])),
            _unit(float(row["ssim"])),
            *(_unit(float(row[name])) for name in extra),
        ]
        for row in result.rows()
    ]
    return header, rows


def _image_title(result: Result) -> str:
    return f"{result.benchmark}, {result.model}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _db(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else str(value)


def _unit(value: float) -> str:
    return f"{value:.4f}"


def _aligned(header: list[str], rows: list[list[str]]) -> str:
    """Columns of one width, the first to the left and the rest to the right."""
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(cells)).rstrip()
        for cells in (list(zip(row, widths, strict=True)) for row in table)
    ]
    return "\n".join(lines) + "\n"


def _piped(header: list[str], rows: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(header) - 1)
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    return "\n".join(f"| {' | '.join(row)} |" for row in [escaped[0], rule, *escaped[1:]]) + "\n"
