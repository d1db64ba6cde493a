"""What `sr-eval` does: reads its arguments, evaluates, and writes the tables."""

from __future__ import annotations

import logging
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sr_runner.commands.arguments import Arguments
from sr_runner.commands.evaluate.models import Setting, common_scale, open_models
from sr_runner.commands.evaluate.record import Record
from sr_runner.commands.evaluate.report import Result, summary, writer_for
from sr_runner.commands.evaluate.suite import Suite
from sr_runner.commands.network import PRECISIONS, device_named
from sr_runner.data.benchmarks import Benchmark, Finder, PairReader
from sr_runner.data.sample import SamplePhotographs
from sr_runner.errors import RequestError
from sr_runner.evaluation.perceptual import PERCEPTUAL, perceptual_distance
from sr_runner.inference.tiling import OVERLAP, TILE
from sr_runner.runs.network import Load

log = logging.getLogger(__name__)

KEYS = (
    "data", "root", "scale", "lr", "metrics", "output", "pictures", "tracker", "tracker.uri", "tracker.experiment",
    "self_ensemble", "device", "precision", "tile", "overlap", "outputs", "checkpoint.root",
    "network",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What was asked for, checked."""

    sources: list[str]
    setting: Setting
    scale: int | None
    tile: int
    overlap: int
    metrics: list[str]
    outputs: list[Path]
    pictures: Path | None
    record: Record | None


def run(words: Sequence[str], load: Load) -> None:
    """`sr-eval` with these arguments. Raises `RequestError`, `RunError` and `OSError`."""
    arguments = Arguments(words, KEYS, open_groups=("model.",))
    plan = _plan(arguments)
    writers = [(path, writer_for(path)) for path in plan.outputs]
    models = open_models(plan.sources, plan.setting, load)
    scale = common_scale(models, plan.scale)
    benchmarks = _benchmarks(arguments, scale)
    device = plan.setting.device
    distances = {name: perceptual_distance(name, crop=scale, device=device) for name in plan.metrics}
    suite = Suite(device, plan.tile, plan.overlap, distances, plan.pictures)
    results: list[Result] = []
    drawn: dict[str, list[Path]] = defaultdict(list)
    for benchmark in benchmarks:
        for result, pictures in suite.run(models, benchmark):
            results.append(result)
            drawn[result.model] += pictures
    sys.stdout.write(summary(results))
    for path, write in writers:
        _write(path, write(results))
    if plan.record is not None:
        for model in models:
            theirs = [result for result in results if result.model == model.label]
            log.info("%s is in MLflow: %s", model.label, plan.record.add(model, theirs, drawn[model.label]))


def _plan(arguments: Arguments) -> Plan:
    if not arguments.sources:
        raise RequestError("no model: name a run, a checkpoint, a weights file or bicubic. sr-eval --help tells more.")
    if not arguments.words("data"):
        raise RequestError("data=… is needed: a folder of HR images or of benchmarks, or data=sample.")
    outputs = Path(arguments.text("outputs", "outputs"))
    pictures = arguments.text("pictures", "")
    return Plan(
        sources=list(dict.fromkeys(arguments.sources)),
        setting=Setting(
            device=device_named(arguments.text("device", "auto")),
            precision=arguments.choice("precision", PRECISIONS),
            self_ensemble=arguments.flag("self_ensemble"),
            outputs=outputs,
            checkpoints=arguments.text("checkpoint.root", str(outputs / "checkpoints")),
            network=arguments.text("network", ""),
            arguments=arguments.group("model."),
        ),
        scale=arguments.optional_integer("scale", least=1),
        tile=arguments.integer("tile", TILE, least=1),
        overlap=arguments.integer("overlap", OVERLAP, least=0),
        metrics=arguments.choices("metrics", PERCEPTUAL),
        outputs=[Path(word) for word in arguments.words("output")],
        pictures=Path(pictures) if pictures else None,
        record=_record(arguments, outputs),
    )


def _record(arguments: Arguments, outputs: Path) -> Record | None:
    uri = arguments.text("tracker.uri", "")
    if arguments.choice("tracker", ("none", "mlflow")) == "none" and not uri:
        return None
    return Record(uri or None, arguments.text("tracker.experiment", "sr-eval"), outputs)


def _benchmarks(arguments: Arguments, scale: int) -> list[Benchmark]:
    """All benchmarks that `data` names, under names that differ."""
    root, words, lr = Path(arguments.text("root", ".")), arguments.words("data"), arguments.text("lr", "") or None
    if (root / Path(arguments.text("data", "")).expanduser()).is_dir():
        words = [arguments.text("data", "")]  # one folder with commas in its name
    if lr not in (None, "bicubic") and len(words) > 1:
        raise RequestError(f"lr={lr}: a folder of LR images goes with one folder of HR images; give one data=….")
    finder = Finder(scale, lr=lr)
    found: list[Benchmark] = []
    for word in words:
        folder = root / Path(word).expanduser()
        found += [_sample(scale)] if word == "sample" and not folder.is_dir() else finder.find(folder)
    seen: dict[str, int] = defaultdict(int)
    for index, benchmark in enumerate(found):
        seen[benchmark.name] += 1
        if seen[benchmark.name] > 1:
            found[index] = replace(benchmark, name=f"{benchmark.name} ({seen[benchmark.name]})")
    return found


def _sample(scale: int) -> Benchmark:
    readers = tuple(PairReader(source.name, source.hr.read) for source in SamplePhotographs().valid)
    return Benchmark("sample", scale, readers)


def _write(path: Path, content: str) -> None:
    """Whole or not at all: a table that is cut off looks like one of fewer images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(content, encoding="utf-8")
    draft.replace(path)
    log.info("written: %s", path)
