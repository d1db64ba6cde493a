"""`sr-upscale`: a model on images and folders of images of any size.

Imports nothing heavy before there is work to do: `--help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sr_runner import load_model
from sr_runner.commands.console import run_command

if TYPE_CHECKING:
    from sr_runner.runs.network import Load

HELP = """\
sr-upscale: enlarge images of any size with a super-resolution model.

Usage
  sr-upscale MODEL IMAGE-OR-FOLDER... output=FOLDER [key=value ...]

  MODEL is a run (edsr-x4-3f9a12c40b1e, also with /ATTEMPT and /step-1000 behind it, or its MLflow id), a checkpoint's
  folder, a weights file or a URL. IMAGE is PNG, JPEG, WebP, TIFF or BMP; of a folder, all images in it and below it.

Common commands
  sr-upscale edsr-x4-3f9a12c40b1e photo.jpg output=large       makes large/photox4.png
  sr-upscale model.safetensors photos output=large self_ensemble=true
  sr-upscale model.pth scan.tif output=large tile=128 device=cuda

Options
  output=FOLDER       where the SR images go; folders below a folder are kept
  format=png          png, webp (both lossless) or jpg
  existing=replace    skip: leave SR images that are there already, to go on where a long job was stopped
  self_ensemble=true  mean over the eight flips and rotations: better, and eight times as slow
  device=auto         auto, cpu, cuda or cuda:N
  precision=fp32      fp32, bf16 or fp16
  tile=256 overlap=40 LR pixels per tile and around it: bounds the memory
  outputs=outputs     where runs are; checkpoint.root=FOLDER or URL: where their checkpoints are, if elsewhere
  model.KEY=VALUE     what a weights file cannot tell, such as model.res_block_scaling=0.1
  network=mine.Net    the class of a network of your own; its arguments come from the run's config and model.KEY=VALUE
Colours are 8-bit RGB: grey becomes RGB, 16 bits become 8, alpha is dropped, EXIF orientation is applied.
Exit status: 0 done, 2 the request was wrong, 1 some image failed.
"""


def main(argv: Sequence[str] | None = None, load: Load = load_model) -> int:
    """The exit status of `sr-upscale` with these arguments; `load` makes networks of weights files."""
    words = list(sys.argv[1:] if argv is None else argv)

    def work() -> None:
        from sr_runner.commands.upscale.upscaling import run

        run(words, load)

    return run_command("sr-upscale", HELP, words, work)
