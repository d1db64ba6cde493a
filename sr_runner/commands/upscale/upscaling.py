"""What `sr-upscale` does: reads its arguments, finds the images, enlarges and saves them."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from sr_runner.commands.arguments import Arguments
from sr_runner.commands.network import PRECISIONS, device_named, network_at_work, scale_of
from sr_runner.data.images import EXTENSIONS, read_image
from sr_runner.errors import RequestError, RunError
from sr_runner.inference.tiling import OVERLAP, TILE, upscale_image
from sr_runner.runs.network import Load, load_network
from sr_runner.runs.resolve import find_source

log = logging.getLogger(__name__)

KEYS = (
    "output", "format", "existing", "self_ensemble", "device", "precision", "tile", "overlap", "outputs",
    "checkpoint.root", "network",
)  # fmt: skip

_SAVING: dict[str, dict[str, Any]] = {
    "png": {"compress_level": 4},
    "webp": {"lossless": True},
    "jpg": {"quality": 95, "subsampling": 0},
}


@dataclass(frozen=True)
class Job:
    """One image and where its SR image goes."""

    image: Path
    target: Path


def run(words: Sequence[str], load: Load) -> None:
    """`sr-upscale` with these arguments. Raises `RequestError`, `RunError` and `OSError`."""
    arguments = Arguments(words, KEYS, open_groups=("model.",))
    if len(arguments.sources) < 2:
        raise RequestError("a model and at least one image or folder are needed. sr-upscale --help tells more.")
    output = arguments.text("output", "")
    if not output:
        raise RequestError("output=… is needed: the folder that the SR images go to.")
    file_format = arguments.choice("format", tuple(_SAVING))
    skip = arguments.choice("existing", ("replace", "skip")) == "skip"
    tile, overlap = arguments.integer("tile", TILE, least=1), arguments.integer("overlap", OVERLAP, least=0)
    device = device_named(arguments.text("device", "auto"))
    outputs = Path(arguments.text("outputs", "outputs"))
    checkpoints = arguments.text("checkpoint.root", str(outputs / "checkpoints"))
    images = _images(arguments.sources[1:])
    source = find_source(arguments.sources[0], outputs=outputs, checkpoints=checkpoints)
    upscale = network_at_work(
        load_network(source, load, arguments.text("network", ""), arguments.group("model.")),
        device,
        precision=arguments.choice("precision", PRECISIONS),
        ensemble=arguments.flag("self_ensemble"),
    )
    scale = scale_of(upscale, device)
    jobs = _jobs(images, Path(output), f"x{scale}.{file_format}")
    enlarge = partial(upscale_image, upscale, scale=scale, device=device, tile=tile, overlap=overlap)
    failed = 0
    for job in tqdm(jobs, unit="image", disable=not sys.stderr.isatty()):
        if skip and job.target.exists():
            continue
        start = time.perf_counter()
        try:
            sr = enlarge(read_image(job.image))
        except RequestError as error:
            log.error("%s", error)
            failed += 1
            continue
        _save(Image.fromarray(sr), job.target, file_format)
        log.info("%s: %d x %d in %.1f s", job.target, sr.shape[1], sr.shape[0], time.perf_counter() - start)
    if failed:
        raise RunError(f"{failed} of {len(jobs)} images could not be enlarged; the messages above say why.")


def _images(words: Sequence[str]) -> dict[Path, str]:
    """Image files, each with its name below the folder that was named, without ending."""
    found: dict[Path, str] = {}
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir():
            found |= _images_below(path)
        elif not path.is_file():
            raise RequestError(f"{word}: there is no such image or folder.")
        elif path.suffix.lower() not in EXTENSIONS:
            raise RequestError(f"{word}: not a kind of image that is read ({' '.join(EXTENSIONS)}).")
        else:
            found[path] = path.stem
    return found


def _images_below(folder: Path) -> dict[Path, str]:
    hidden = [path for path in folder.rglob(".*") if path.is_dir()]
    images = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and not set(hidden) & set(path.parents)
    ]
    if not images:
        raise RequestError(f"{folder}: no image in this folder or below it (looked for {' '.join(EXTENSIONS)}).")
    return {path: path.relative_to(folder).with_suffix("").as_posix() for path in images}


def _jobs(images: dict[Path, str], output: Path, ending: str) -> list[Job]:
    """Raises `RequestError` where two images would go to one file, or one onto itself."""
    taken: dict[Path, Path] = {}
    for image, name in images.items():
        target = output / f"{name}{ending}"
        if target in taken:
            raise RequestError(f"{image} and {taken[target]} would both become {target}; enlarge them separately.")
        if target.exists() and target.samefile(image):
            raise RequestError(f"{image} would be written over by its own SR image; choose another output folder.")
        taken[target] = image
    return [Job(image, target) for target, image in taken.items()]


def _save(image: Image.Image, target: Path, file_format: str) -> None:
    """Whole or not at all, so that what is there after a kill is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    kind = {"jpg": "JPEG"}.get(file_format, file_format.upper())
    try:
        image.save(draft, format=kind, **_SAVING[file_format])
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
