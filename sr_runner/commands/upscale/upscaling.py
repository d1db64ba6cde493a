"""What `sr-upscale` does: finds the images, enlarges and saves them."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from sr_runner.commands.network import open_network
from sr_runner.commands.upscale import Options
from sr_runner.data.images import EXTENSIONS, read_image
from sr_runner.data.scan import files_below
from sr_runner.errors import RequestError, RunError
from sr_runner.files import check_writable, draft_of, own_folder
from sr_runner.inference.tiling import upscale_image
from sr_runner.training.device import resolve_device

log = logging.getLogger(__name__)

_SAVING: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG", "compress_level": 4},
    "webp": {"format": "WebP", "lossless": True},
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}


def run(sources: Sequence[str], options: Options, *, as_json: bool) -> None:
    """Enlarge `sources[1:]` with the model `sources[0]`. Raises `RequestError`, `RunError` and `OSError`."""
    if len(sources) < 2:
        raise RequestError("expected a model and at least one image or folder. sr-upscale --help lists the options.")
    if not options.output:
        raise RequestError("output is not set: expected the folder that the SR images go to.")
    check_writable(f"output={options.output}", Path(options.output))
    device = resolve_device(options.device, "device")
    images = _images(sources[1:])
    opened = open_network(sources[0], options, device)
    jobs = _jobs(images, Path(options.output), f"x{opened.scale}.{options.format}")
    failed, made = 0, []
    for target, image in tqdm(jobs.items(), unit="image", disable=not sys.stderr.isatty()):
        if options.existing == "skip" and target.exists():
            continue
        start = time.perf_counter()
        try:
            sr = upscale_image(
                opened.upscale, read_image(image),
                scale=opened.scale, device=device, tile=options.tile, overlap=options.overlap, grid=opened.grid,
            )  # fmt: skip
        except RequestError as error:
            log.error("%s", error)
            failed += 1
            continue
        own_folder(Path(options.output), target.parent).mkdir(parents=True, exist_ok=True)
        with draft_of(target) as draft:
            Image.fromarray(sr).save(draft, **_SAVING[options.format])
        height, width, seconds = *sr.shape[:2], time.perf_counter() - start
        log.info("%s: %d x %d in %.1f s", target, width, height, seconds)
        made.append({"file": str(target), "image": str(image), "width": width, "height": height})
    if as_json:
        sys.stdout.write(json.dumps(made, indent=1) + "\n")
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
    images = sorted(path for path in files_below(folder) if path.suffix.lower() in EXTENSIONS)
    if not images:
        raise RequestError(f"{folder}: no image in this folder or below it (looked for {' '.join(EXTENSIONS)}).")
    return {path: path.relative_to(folder).with_suffix("").as_posix() for path in images}


def _jobs(images: dict[Path, str], output: Path, ending: str) -> dict[Path, Path]:
    """The image of each SR image. Raises `RequestError` where two images would go to one file, or one onto itself
    or a folder."""
    taken: dict[Path, Path] = {}
    for image, name in images.items():
        target = output / f"{name}{ending}"
        if target in taken:
            raise RequestError(f"{image} and {taken[target]} would both become {target}; enlarge them separately.")
        if target.is_dir():
            raise RequestError(f"{target}: there is a folder where the SR image of {image} would go.")
        if target.exists() and target.samefile(image):
            raise RequestError(f"{image}: its SR image would overwrite it; choose another output folder.")
        taken[target] = image
    return taken
