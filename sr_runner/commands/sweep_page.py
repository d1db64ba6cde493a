"""`sweep.html`: one page on which a sweep's jobs are compared. One file, which needs no server and no network."""

from __future__ import annotations

import base64
import io
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sr_runner.errors import printable
from sr_runner.files import read_file

_PAGE = 8_000_000
"""Characters of the page, beyond which no further picture is put in."""
_HEIGHT = 256
"""Pixels that a picture has at most from top to bottom."""
_POINTS = 400
"""Points of a curve at most: more than these are not seen."""
_MARGIN, _GAP, _CAPTION = 12, 10, 52
"""Where `evaluation.strip` puts the three panels of its pictures."""
_PANELS = ("bicubic", "SR", "HR")


@dataclass(frozen=True)
class JobRow:
    """What the page says of one job."""

    name: str
    """`edsr lr=0.003 seed=1`"""
    values: dict[str, str]
    """Swept key to its value as written: `{"model": "edsr", "optimizer.lr": "0.003", "seed": "1"}`."""
    status: str
    """finished, pruned, failed, stopped or left."""
    psnr: float | None
    """The last validation PSNR in dB."""
    gain: float | None
    """That, less the PSNR of bicubic, in dB."""
    seconds: float | None
    """How long it ran."""
    run: str
    """`edsr-x2-d599204d48d5/a0001-1ba26a4b`; empty before it has one."""
    error: str
    """Why it failed, in one line; else empty."""
    curve: list[tuple[int, float]]
    """Steps and the validation PSNR there, in dB."""
    pictures: dict[str, Path]
    """Name of a validation image to a PNG: a strip of `evaluation.strip`, or only what the network made of it."""


@dataclass(frozen=True)
class SweepRows:
    """What the page says of a sweep."""

    name: str
    """That of its folder."""
    command: str
    """The command line that started it."""
    keys: list[str]
    """What is swept, in the order of the columns."""
    jobs: list[JobRow]
    """In any order."""
    best: str = ""
    """What is best in words, where it is more than one job: `lr=0.003, PSNR 27.40 ± 0.14 dB over 2 seeds`."""


def page(sweep: SweepRows) -> str:
    """The whole text of the page, in ASCII. A picture that cannot be read, or for which there is no room, is left out,
    and the page says so."""
    jobs = sorted(sweep.jobs, key=_rank)
    best = jobs[0] if jobs and jobs[0].status == "finished" and _finite(jobs[0].psnr) is not None else None
    data: dict[str, Any] = {
        "name": printable(sweep.name),
        "command": printable(sweep.command),
        "headline": _headline(jobs, best, sweep.best),
        "best": best is not None,
        "keys": [printable(key) for key in sweep.keys],
        "jobs": [_job(job, sweep.keys) for job in jobs],
        "seeds": _over_seeds(jobs, sweep.keys),
    }
    head, tail = Path(__file__).with_name("sweep_page.html").read_text(encoding="utf-8").split("{{data}}")
    data |= _pictures(jobs, _PAGE - len(head) - len(tail) - len(_json(data)))
    return head + _json(data) + tail


def _json(data: Any) -> str:
    """JSON in which nothing ends the script element that it stands in."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _finite(number: float | None) -> float | None:
    return round(number, 4) if number is not None and math.isfinite(number) else None


def _rank(job: JobRow) -> tuple[bool, bool, float]:
    """Best first. What a job had reached when it was stopped comes after what others have come to."""
    psnr = _finite(job.psnr)
    return psnr is None, job.status != "finished", -(psnr or 0.0)


def _headline(jobs: Sequence[JobRow], best: JobRow | None, words: str) -> list[str]:
    """The sentence that begins the page, in two parts: which job is best, and how all of them ended."""
    many = Counter(job.status for job in jobs)
    ended = f"{many['finished']} of {len(jobs)} job{'s' * (len(jobs) != 1)} finished"
    ended += "".join(f", {many[status]} {status}" for status in ("pruned", "failed", "stopped", "left") if many[status])
    if best is None:
        return ["No job has finished with a PSNR", f": {ended}"]
    if words:
        return [f"Best: {printable(words)}", f", {ended}"]
    gain = _finite(best.gain)
    over = "" if gain is None else f" ({gain:+.2f} dB over bicubic)"
    return [f"Best: {printable(best.name)}, {best.psnr:.2f} dB", f"{over}, {ended}"]


def _job(job: JobRow, keys: Sequence[str]) -> dict[str, Any]:
    points = sorted((step, round(psnr, 3)) for step, psnr in job.curve if math.isfinite(psnr))
    stride = math.ceil(len(points) / _POINTS) or 1
    return {
        "name": printable(job.name),
        "values": [printable(job.values.get(key, "")) for key in keys],
        "status": printable(job.status),
        "psnr": _finite(job.psnr),
        "gain": _finite(job.gain),
        "seconds": _finite(job.seconds),
        "run": printable(job.run),
        "error": printable(job.error),
        "curve": points[::-1][::stride][::-1],  # from the end, so that the last point stays
    }


def _over_seeds(jobs: Sequence[JobRow], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Mean and deviation of finished jobs that differ in nothing but `seed`, best first; none where no seeds repeat."""
    others = [key for key in keys if key != "seed"]
    groups: dict[tuple[str, ...], list[float]] = {}
    for job in jobs if "seed" in keys else ():
        if job.status == "finished" and (psnr := _finite(job.psnr)) is not None:
            groups.setdefault(tuple(printable(job.values.get(key, "")) for key in others), []).append(psnr)
    if all(len(group) < 2 for group in groups.values()):
        return []
    rows = [
        {
            "values": values,
            "mean": statistics.fmean(group),
            "deviation": statistics.stdev(group) if len(group) > 1 else None,
            "count": len(group),
        }
        for values, group in groups.items()
    ]
    return sorted(rows, key=lambda row: -row["mean"])


def _pictures(jobs: Sequence[JobRow], room: int) -> dict[str, Any]:
    """Image by image, best job first, so that what there is room for can be compared; `room` in characters."""
    names = list(dict.fromkeys(name for job in jobs for name in job.pictures))
    images, unreadable, left_out = [], 0, 0
    for name in names:
        image: dict[str, Any] = {"name": printable(name), "references": {}, "jobs": {}}
        for number, job in enumerate(jobs):
            if name not in job.pictures:
                continue
            if left_out:
                left_out += 1
                continue
            try:
                shown = dict(_shown(job.pictures[name], references=not image["references"]))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow makes of bad files
                unreadable += 1
                continue
            room -= sum(map(len, shown.values())) + 200
            if room < 0:
                left_out += 1
                continue
            image["jobs"][number] = shown.pop("SR")
            image["references"] |= shown
        if image["jobs"]:
            images.append(image)
    return {"pictures": images, "unreadable": unreadable, "left_out": left_out}


def _shown(path: Path, *, references: bool) -> Iterator[tuple[str, str]]:
    """What the network made of an image, as `SR`; with `references`, what a strip has beside it too. data: URLs."""
    with Image.open(io.BytesIO(read_file(path)), formats=["PNG"]) as opened:
        image = opened.convert("RGB")
    side = image.height - 2 * _MARGIN - _CAPTION
    if side < 1 or image.width != 2 * _MARGIN + 3 * side + 2 * _GAP:
        yield "SR", _url(image, exact=False)
        return
    lefts = [_MARGIN + number * (side + _GAP) for number in range(3)]
    panels = [image.crop((left, _MARGIN, left + side, _MARGIN + side)) for left in lefts]
    # A strip enlarges pixels as they are: one for each is stored without loss, and enlarged by the browser.
    factors = (factor for factor in range(side, 1, -1) if side % factor == 0)
    factor = next((factor for factor in factors if all(_is_enlarged(panel, factor) for panel in panels)), 1)
    for name, panel in zip(_PANELS, panels, strict=True):
        if references or name == "SR":
            yield name, _url(panel.resize((side // factor,) * 2, Image.Resampling.NEAREST), exact=factor > 1)


def _is_enlarged(panel: Image.Image, factor: int) -> bool:
    small = panel.resize((panel.width // factor,) * 2, Image.Resampling.NEAREST)
    return small.resize(panel.size, Image.Resampling.NEAREST).tobytes() == panel.tobytes()


def _url(image: Image.Image, *, exact: bool) -> str:
    image.thumbnail((8 * _HEIGHT, _HEIGHT))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=90, lossless=exact)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
