"""A training without the training: logs, draws pictures, writes checkpoints, and goes on where the newest one stands.

Run as a process by the tests, which kill it. Values are functions of the step, except the time-based one.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import time
from pathlib import Path

from PIL import Image

from sr_runner.tracking import MlflowTracker, RunRecord


def loss(step: int) -> float:
    return float("nan") if step % 7 == 3 else 1 / (step + 1)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("outputs", type=Path)
    parser.add_argument("--uri")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("--pause", type=float, default=0.01, help="seconds a step")
    parser.add_argument("--wait", type=float, default=150.0)
    parser.add_argument("--checkpoint", type=Path, help="where it is, if not in the run's folder")
    parser.add_argument("--attempt", default="tiny-x2-0123456789ab/1")
    parser.add_argument("--sweep", type=Path)
    parser.add_argument("--system", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
    run_dir: Path = arguments.run_dir
    checkpoint: Path = arguments.checkpoint or run_dir / "checkpoint.json"
    saved = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"step": 0, "tracker": None}

    tracker = MlflowTracker(
        uri=arguments.uri, outputs=arguments.outputs, experiment="tests", system_metrics=arguments.system, nested=True
    )
    record = RunRecord(
        run_dir=run_dir,
        attempt=arguments.attempt,
        run_name="tiny",
        params={"optimizer.lr": "0.0001", "trainer.steps": str(arguments.steps)},
        tags={"identity": "tiny-x2-0123456789ab"},
        dataset={"name": "sample", "source": "scikit-image", "digest": "0" * 64, "train_images": 5},
        resumed_at=saved["step"],
        state=saved["tracker"],
        sweep=arguments.sweep,
    )
    tracker.start(record)
    for step in range(saved["step"] + 1, arguments.steps + 1):
        time.sleep(arguments.pause)
        tracker.log(step, {"train/loss": loss(step), "train/images_per_second": 100 * random.random()})
        if step % arguments.every == 0:
            picture = run_dir / f"step-{step:06}.png"
            Image.new("RGB", (600, 200), (step % 256, 0, 0)).save(picture)
            tracker.log(step, {"valid/psnr": 20 + step / 100})
            tracker.picture(step, "valid/chelsea", picture)
            tracker.sync()
            draft = checkpoint.with_suffix(".tmp")
            draft.write_text(json.dumps({"step": step, "tracker": tracker.state()}))
            draft.replace(checkpoint)
    assert "mlflow" not in sys.modules
    return 0 if tracker.finish("FINISHED", {"status": "finished"}, wait=arguments.wait) else 3


if __name__ == "__main__":
    sys.exit(main())
