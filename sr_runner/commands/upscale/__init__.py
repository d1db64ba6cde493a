"""`sr-upscale`: a model on images and folders of images of any size.

Imports nothing heavy before there is work to do: `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sr_runner.commands.arguments import parse
from sr_runner.commands.console import help_page, run_command
from sr_runner.commands.options import Inference

HELP = """\
sr-upscale: enlarge images of any size with a super-resolution model.

Usage
  sr-upscale MODEL IMAGE-OR-FOLDER... output=FOLDER [key=value ...]

  MODEL is a run (edsr-x4-3f9a12c40b1e, also with /ATTEMPT and /step-1000 behind it, or its MLflow id), a checkpoint's
  folder, a weights file or a URL. IMAGE is PNG, JPEG, WebP, TIFF or BMP; of a folder, all images in it and below it.
  Colours are 8-bit RGB: grey becomes RGB, 16 bits become 8, alpha is dropped, EXIF orientation is applied.

Common commands
  sr-upscale edsr-x4-3f9a12c40b1e photo.jpg output=large       makes large/photox4.png
  sr-upscale model.safetensors photos output=large self_ensemble=true
  sr-upscale model.pth scan.tif output=large tile=128 device=cuda
"""


@dataclass(kw_only=True)
class Options(Inference):
    """What `sr-upscale` can be asked for."""

    output: str | None = None
    """The folder that the SR images go to; folders below a folder are kept."""
    format: Literal["png", "webp", "jpg"] = "png"
    """png and webp are lossless."""
    existing: Literal["replace", "skip"] = "replace"
    """skip: leave SR images that are there already, to go on where a long job was stopped."""


def page() -> str:
    return help_page(HELP, {"Options": Options}, json="a list of the files that were made", failed="some image failed")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of `sr-upscale` with these arguments."""

    def work(words: list[str], as_json: bool) -> int:
        sources, options = parse(words, Options)
        from sr_runner.commands.upscale.upscaling import run

        run(sources, options, as_json=as_json)
        return 0

    return run_command("sr-upscale", page, argv, work)
