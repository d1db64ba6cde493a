"""`sr-eval`: models on benchmarks, measured by the field's protocol and set beside published numbers.

Imports nothing heavy before there is work to do: `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from sr_runner.commands.arguments import option, parse
from sr_runner.commands.console import help_page, run_command
from sr_runner.commands.options import Inference

HELP = """\
sr-eval: PSNR and SSIM of super-resolution models by the field's protocol, beside bicubic and published numbers.

Usage
  sr-eval MODEL... data=FOLDER[,FOLDER...] [key=value ...]

  MODEL is a run (edsr-x4-3f9a12c40b1e, also with /ATTEMPT and /step-1000 behind it, or its MLflow id), a checkpoint's
  folder or URL, a weights file or its URL, or the word bicubic. Several models are set side by side.

Common commands
  sr-eval edsr-x2-3f9a12c40b1e data=sample            the photographs that are already here
  sr-eval bicubic data=benchmark/Set5 scale=4         reproduces the published row
  sr-eval a.pt b.pth model.res_block_scaling=1.0 data=Set5,B100 root=benchmark output=table.csv,table.md
  sr-eval edsr-x4-3f9a12c40b1e data=benchmark self_ensemble=true pictures=pictures
  sr-eval edsr-x4-3f9a12c40b1e data=benchmark protocol=ntire_esr    what the network costs, too
"""


@dataclass(kw_only=True)
class Options(Inference):
    """What `sr-eval` can be asked for."""

    data: list[str] = field(default_factory=list)
    """Folders of HR images or of a benchmark (HR and LR_bicubic/X4, GTmod12 and LRbicx4, image_SRF_4, DIV2K_valid_HR
    and DIV2K_valid_LR_bicubic/X4), or a folder of such folders; sample: photographs that come with scikit-image and
    scikit-learn."""
    root: str = "."
    """Where data's folders are."""
    scale: int | None = option(None, least=1)
    """null: the models'."""
    lr: str | None = None
    """A folder of LR images, or bicubic: make them from the HR images even where there are some."""
    metrics: list[str] = field(default_factory=list)
    """Further metrics: lpips, dists (pip install 'sr-run[lpips]', 'sr-run[dists]'), one of pyiqa's by its name, such as
    niqe ('sr-run[pyiqa]'), or package.Class."""
    protocol: Literal["papers", "ntire_esr"] = "papers"
    """ntire_esr: RGB, and what NTIRE's challenge on efficient x4 networks measures: parameters, FLOPs and activations
    for an LR image of 256x256, memory and runtime for whole images, and its score (lower is better)."""
    output: list[str] = field(default_factory=list)
    """Files: table.csv (a row per image: image, psnr, ssim, psnr_y, ssim_y), also .json and .md."""
    pictures: str | None = None
    """A folder for the best and the worst image of each benchmark, with maps of the error."""
    tracker: Literal["none", "mlflow"] = "none"
    """mlflow: log into the run that a checkpoint belongs to, or into a new one of tracker.experiment."""
    tracker_experiment: str | None = option(None, key="tracker.experiment")
    """The MLflow experiment; null: sr-eval for new results, sr-run for the checkpoints of checkpoint=mlflow."""


def page() -> str:
    return help_page(HELP, {"Options": Options}, json="the results as JSON instead of the table")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of `sr-eval` with these arguments."""

    def work(words: list[str], as_json: bool) -> int:
        models, options = parse(words, Options)
        from sr_runner.commands.evaluate.command import run

        run(models, options, as_json=as_json)
        return 0

    return run_command("sr-eval", page, argv, work)
