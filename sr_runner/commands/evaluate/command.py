"""What `sr-eval` does: evaluates what it was asked for, and writes the tables."""

from __future__ import annotations

import logging
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from sr_runner.commands.evaluate import Options
from sr_runner.commands.evaluate.models import common_scale, open_models
from sr_runner.commands.evaluate.record import Record
from sr_runner.commands.evaluate.report import Result, summary, writer_for
from sr_runner.commands.evaluate.report import as_json as to_json
from sr_runner.commands.evaluate.suite import Suite
from sr_runner.data.benchmarks import Benchmark, Finder, read_pair
from sr_runner.data.sample import sample_photographs
from sr_runner.errors import RequestError
from sr_runner.evaluation import efficiency
from sr_runner.evaluation.named import measures
from sr_runner.files import check_writable, write_file
from sr_runner.training.device import resolve_device

log = logging.getLogger(__name__)


def run(sources: Sequence[str], options: Options, *, as_json: bool) -> None:
    """Evaluate the models named by `sources`. Raises `RequestError`, `RunError` and `OSError`."""
    if not sources:
        raise RequestError("no model: expected a run, a checkpoint, a weights file or bicubic. See sr-eval --help.")
    if not options.data:
        raise RequestError("data is not set: expected a folder of HR images or of benchmarks, or data=sample.")
    device, record = resolve_device(options.device, "device"), _record(options)
    writers = [(Path(name), writer_for(Path(name))) for name in options.output]
    for path, _ in writers:
        check_writable(f"output={path}", path.parent)
    folder = Path(options.pictures) if options.pictures else None
    if folder is not None:
        check_writable(f"pictures={folder}", folder)
    models = open_models(list(dict.fromkeys(sources)), options, device)
    if record is not None:
        for model in models:
            record.uri_for(model)
    scale = common_scale(models, options.scale)
    if options.protocol == "ntire_esr":
        _check_efficiency(options, scale)
    benchmarks = _benchmarks(options, scale)
    further = measures(options.metrics, key="metrics", crop=scale, device=device)
    suite = Suite(device, options.tile, options.overlap, further, folder, options.protocol == "ntire_esr")
    results: list[Result] = []
    drawn: dict[str, list[Path]] = defaultdict(list)
    for benchmark in benchmarks:
        for result, pictures in suite.run(models, benchmark):
            results.append(result)
            drawn[result.model] += pictures
    sys.stdout.write(to_json(results) if as_json else summary(results))
    for path, write in writers:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, write(results))
        log.info("written: %s", path)
    if record is not None:
        for model in models:
            theirs = [result for result in results if result.model == model.label]
            log.info("%s is in MLflow: %s", model.label, record.add(model, theirs, drawn[model.label]))


def _record(options: Options) -> Record | None:
    if options.tracker == "mlflow":
        return Record(options.tracker_uri, options.tracker_experiment or "sr-eval", Path(options.outputs))
    if options.tracker_uri is not None and options.checkpoint != "mlflow":
        raise RequestError("tracker.uri is given, but nothing uses it: expected tracker=mlflow as well.")
    return None


def _check_efficiency(options: Options, scale: int) -> None:
    if scale != efficiency.SCALE:
        raise RequestError(f"protocol=ntire_esr is of networks of x{efficiency.SCALE}: expected one, not x{scale}.")
    if options.self_ensemble:
        raise RequestError("protocol=ntire_esr measures one pass of the network: expected self_ensemble=false.")


def _benchmarks(options: Options, scale: int) -> list[Benchmark]:
    """All benchmarks that `data` names, under names that differ."""
    root, lr = Path(options.root), options.lr
    if lr not in (None, "bicubic") and len(options.data) > 1:
        raise RequestError(f"lr={lr}: a folder of LR images goes with one folder of HR images; give one data=….")
    finder = Finder(scale, lr=lr)
    found: list[Benchmark] = []
    for word in options.data:
        folder = root / Path(word).expanduser()
        found += [_sample(scale)] if word == "sample" and not folder.is_dir() else finder.find(folder)
    seen: dict[str, int] = defaultdict(int)
    for index, benchmark in enumerate(found):
        seen[benchmark.name] += 1
        if seen[benchmark.name] > 1:
            found[index] = replace(benchmark, name=f"{benchmark.name} ({seen[benchmark.name]})")
    return found


def _sample(scale: int) -> Benchmark:
    valid = sample_photographs().valid
    return Benchmark([partial(read_pair, each.name, scale, each.hr.read) for each in valid], "sample", scale)
