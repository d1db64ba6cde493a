"""`sr-eval`: models on benchmarks, measured by the field's protocol and set beside published numbers.

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
sr-eval: PSNR and SSIM of super-resolution models by the field's protocol, beside bicubic and published numbers.

Usage
  sr-eval MODEL... data=FOLDER[,FOLDER...] [key=value ...]

  MODEL is a run (edsr-x4-3f9a12c40b1e, also with /ATTEMPT and /step-1000 behind it, or its MLflow id), a checkpoint's
  folder or URL, a weights file or its URL, or the word bicubic. Several models are set side by side.

Common commands
  sr-eval edsr-x2-3f9a12c40b1e data=sample            the photographs that are already here
  sr-eval bicubic data=benchmark/Set5 scale=4         reproduces the published row
  sr-eval a.pt b.pth data=Set5,B100 root=benchmark output=table.csv,table.md
  sr-eval edsr-x4-3f9a12c40b1e data=benchmark self_ensemble=true pictures=pictures

Options
  data=...            folders of HR images or of a benchmark (HR and LR_bicubic/X4, GTmod12 and LRbicx4, image_SRF_4,
                      DIV2K_valid_HR and DIV2K_valid_LR_bicubic/X4), or a folder of such folders; sample: photographs
                      that come with scikit-image and scikit-learn
  root=.              where data's folders are
  scale=4             left out: the models'
  lr=...              a folder of LR images, or bicubic: make them from the HR images even where there are some
  metrics=lpips,dists LPIPS and DISTS as well (pip install 'sr-run[lpips]', 'sr-run[dists]')
  output=table.csv    also .json, .md, .txt, or several; in CSV a row per image: image, psnr, ssim, psnr_y, ssim_y
  pictures=FOLDER     the best and the worst image of each benchmark, with maps of the error
  tracker=mlflow      log into the run that a checkpoint belongs to, or into one of the experiment tracker.experiment
  tracker.uri=...     ... on this server or database
  self_ensemble=true  mean over the eight flips and rotations: better, and eight times as slow
  device=auto         auto, cpu, cuda or cuda:N
  precision=fp32      fp32, bf16 or fp16
  tile=256 overlap=40 LR pixels per tile and around it: bounds the memory
  outputs=outputs     where runs are; checkpoint.root=FOLDER or URL: where their checkpoints are, if elsewhere
  model.KEY=VALUE     what a weights file cannot tell, such as model.res_block_scaling=0.1
  network=mine.Net    the class of a network of your own; its arguments come from the run's config and model.KEY=VALUE
Exit status: 0 done, 2 the request was wrong, 1 it failed.
"""


def main(argv: Sequence[str] | None = None, load: Load = load_model) -> int:
    """The exit status of `sr-eval` with these arguments; `load` makes networks of weights files."""
    words = list(sys.argv[1:] if argv is None else argv)

    def work() -> None:
        from sr_runner.commands.evaluate.command import run

        run(words, load)

    return run_command("sr-eval", HELP, words, work)
