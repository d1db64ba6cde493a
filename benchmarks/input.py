"""Pairs per second and core, against the field's loader of PNG sub-images; and the memory that a data set takes.

    python benchmarks/input.py                         HR patch 192, x4, images of DIV2K's size
    python benchmarks/input.py --memory 2000           peak memory of sr-run on 100 and on 2,000 images
    python benchmarks/input.py --degradation           the second-order degradation as well

The images are mosaics of the photographs that ship with scikit-image and scikit-learn. Both loaders run in this
process, one after the other and again, on one thread; figures are per second of CPU time. The field's loader reads, for
each pair, a 480 px PNG sub-image and its LR PNG with OpenCV, crops, flips and makes float tensors, as BasicSR does.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from sr_runner.data import FolderData, Loader, SampleData, to_batch
from sr_runner.evaluation.metrics import score
from sr_runner.imresize import imresize_uint8

SUB_IMAGE, STEP = 480, 240


def photographs(cache: Path) -> list[np.ndarray]:
    data = SampleData(scale=2, patch_size=2, batch_size=1, seed=0, cache_dir=cache)
    data.prepare(progress=False)
    return [pair.hr.pixels() for pair in data._ready.train]


def mosaic(parts: list[np.ndarray], height: int, width: int, seed: int) -> np.ndarray:
    """Photographs side by side, turned at random."""
    chosen = random.Random(seed)
    page = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, 380):
        for left in range(0, width, 380):
            part = np.rot90(chosen.choice(parts), chosen.randrange(4))[:380, :380]
            cell = page[top : top + 380, left : left + 380]
            cell[:] = np.pad(part, [(0, max(0, 380 - n)) for n in part.shape[:2]] + [(0, 0)], "symmetric")[
                : cell.shape[0], : cell.shape[1]
            ]
    return page


def make_images(folder: Path, count: int, height: int, width: int) -> None:
    folder.mkdir()
    parts = photographs(folder.parent / "photographs")
    for number in range(count):
        Image.fromarray(mosaic(parts, height, width, number)).save(folder / f"{number:04}.png", compress_level=1)


# -- the field's loader ------------------------------------------------------------------------------------------------


def make_sub_images(images: Path, folder: Path, scale: int) -> list[tuple[Path, Path]]:
    folder.mkdir()
    made = []
    for path in sorted(images.iterdir()):
        image = np.asarray(Image.open(path))
        for top in range(0, image.shape[0] - SUB_IMAGE + 1, STEP):
            for left in range(0, image.shape[1] - SUB_IMAGE + 1, STEP):
                hr = image[top : top + SUB_IMAGE, left : left + SUB_IMAGE]
                names = [folder / f"{path.stem}_{top}_{left}{suffix}.png" for suffix in ("", "_lr")]
                Image.fromarray(hr).save(names[0])
                Image.fromarray(imresize_uint8(hr, 1 / scale)).save(names[1])
                made.append((names[0], names[1]))
    return made


def sub_image_pair(paths: tuple[Path, Path], patch: int, scale: int) -> tuple[torch.Tensor, torch.Tensor]:
    encoded = (np.frombuffer(path.read_bytes(), np.uint8) for path in paths)
    hr, lr = (cv2.imdecode(data, cv2.IMREAD_COLOR).astype(np.float32) / 255 for data in encoded)
    small = patch // scale
    top, left = random.randrange(lr.shape[0] - small + 1), random.randrange(lr.shape[1] - small + 1)
    lr = lr[top : top + small, left : left + small]
    hr = hr[top * scale : top * scale + patch, left * scale : left * scale + patch]
    flip, upside_down, turn = (random.random() < 0.5 for _ in range(3))
    tensors = []
    for image in (lr, hr):
        image = image[:, ::-1] if flip else image
        image = image[::-1] if upside_down else image
        image = image.transpose(1, 0, 2) if turn else image
        image = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2RGB)
        tensors.append(torch.from_numpy(image.transpose(2, 0, 1)))
    return tensors[0], tensors[1]


def sub_image_batch(made: list[tuple[Path, Path]], batch: int, patch: int, scale: int) -> None:
    pairs = [sub_image_pair(random.choice(made), patch, scale) for _ in range(batch)]
    torch.stack([lr for lr, _ in pairs]), torch.stack([hr for _, hr in pairs])


# -- measuring ---------------------------------------------------------------------------------------------------------


def rate(draw: Callable[[], object], batch: int, seconds: float) -> float:
    """Pairs per second of CPU time."""
    draw()
    batches, started, began = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - began < seconds:
        draw()
        batches += 1
    return batches * batch / (time.process_time() - started)


def speed(arguments: argparse.Namespace, work: Path) -> None:
    patch, scale, batch = arguments.patch, arguments.scale, arguments.batch
    make_images(work / "hr", arguments.images, 1350, 2040)
    made = make_sub_images(work / "hr", work / "sub", scale)
    options = {"train": work / "hr", "valid_fraction": 0, "scale": scale, "patch_size": patch, "batch_size": batch}
    data = FolderData(**options, seed=0, cache_dir=work / "cache", workers=0)
    data.prepare(progress=True)

    def floats() -> None:
        for part in next(loader):
            to_batch(torch.from_numpy(part), "cpu")

    loader = Loader(lambda number: data.samples(number * batch, batch), workers=0)
    contestants: dict[str, Callable[[], object]] = {
        "field's loader, PNG sub-images": lambda: sub_image_batch(made, batch, patch, scale),
        "sr-run, uint8 batches": lambda: next(loader),
        "sr-run, float batches": floats,
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, draw in contestants.items():
            rates[name].append(rate(draw, batch, arguments.seconds))
    field = statistics.median(rates["field's loader, PNG sub-images"])
    print(f"HR patch {patch}, x{scale}, batch {batch}, {arguments.images} images of 2040 x 1350")
    for name, measured in rates.items():
        median = statistics.median(measured)
        print(f"  {name:34} {median:8,.0f} pairs/s and core   {median / field:6.1f} x")
    ready(data)
    one_image("imresize of 2040 x 1350 to x4", lambda image: imresize_uint8(image, 1 / 4))
    one_image("PSNR and SSIM, RGB and Y, of 2040 x 1350", lambda image: score("", image, image[::-1], crop=4))


def one_image(what: str, work: Callable[[np.ndarray], object]) -> None:
    """Milliseconds that `work` takes for an image of DIV2K's size."""
    image = np.random.default_rng(0).integers(0, 256, (1350, 2040, 3), dtype=np.uint8)
    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        work(image)
        seconds.append(time.perf_counter() - began)
    print(f"  {what} on one core: {statistics.median(seconds) * 1e3:.0f} ms (best {min(seconds) * 1e3:.0f})")


def ready(data: FolderData) -> None:
    """What a batch that is ready costs the consumer."""
    data._workers = 1
    seconds = []
    with data.stream(0) as loader:
        for _ in range(40):
            time.sleep(0.02)
            began = time.perf_counter()
            next(loader)
            seconds.append(time.perf_counter() - began)
    print(f"  a batch that is ready costs the consumer {statistics.median(seconds) * 1e6:.0f} us")


def degradation(arguments: argparse.Namespace) -> None:
    import hydra
    from hydra import compose, initialize_config_dir

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hr = torch.rand(arguments.batch, 3, arguments.patch, arguments.patch, device=device)
    for name in ("realesrgan", "bsrgan"):
        with initialize_config_dir(str(Path(__file__).parents[1] / "conf" / "data" / "degradation"), version_base=None):
            pipeline = hydra.utils.instantiate(compose(name), _convert_="all")
        seconds = []
        for number in range(arguments.rounds + 1):
            n = np.arange(number * arguments.batch, (number + 1) * arguments.batch)
            began = time.perf_counter()
            pipeline(hr, scale=arguments.scale, seed=0, n=n)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        median = statistics.median(seconds[1:])
        figure = f"{arguments.batch / median:,.0f} pairs/s on {device}"
        print(f"  {name:12} {median * 1e3:8.1f} ms a batch of {arguments.batch}, {figure}")


def memory(arguments: argparse.Namespace, work: Path) -> None:
    """Peak memory of training on few and on many images, decoding and validation included."""
    make_images(work / "hr", arguments.memory, 512, 768)
    print(f"sr-run on images of 768 x 512 ({arguments.memory * 768 * 512 * 3 / 2**20:,.0f} MiB decoded), MiB")
    print("  images   exit  seconds     peak  anonymous  file-backed  helpers, anonymous")
    for count in (min(100, arguments.memory), arguments.memory):
        train(arguments, work, count)


def train(arguments: argparse.Namespace, work: Path, count: int) -> None:
    """Two epochs of the first `count` images, a tenth of them held out and all of those evaluated."""
    steps = 2 * count // arguments.batch
    command = [sys.executable, "-m", "sr_runner.commands.run", "data=folder"]
    command += [f"data.train=[{{path: '{work / 'hr'}', subset: 1-{count}}}]", "data.valid_images=null"]
    command += [f"data.batch_size={arguments.batch}", f"scale={arguments.scale}"]  # HR patch 96, the default
    command += ["model.num_res_blocks=1", "model.num_filters=8", "trainer.device=cpu"]
    command += [f"trainer.steps={steps}", f"trainer.eval_every={steps}", f"outputs={work / 'outputs'}"]
    peak = dict.fromkeys(("VmHWM", "RssAnon", "RssFile", "helpers"), 0.0)
    began = time.perf_counter()
    with (work / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        while process.poll() is None:
            now = {field: resident(field, process.pid) for field in ("VmHWM", "RssAnon", "RssFile")}
            now["helpers"] = sum(resident("RssAnon", child) for child in children(process.pid))
            peak = {field: max(peak[field], now[field]) for field in peak}
            time.sleep(0.1)
    figures = "  ".join(f"{value:9,.0f}" for value in peak.values())
    print(f"  {count:6}  {process.returncode:5}  {time.perf_counter() - began:7.0f}  {figures}")
    if process.returncode:
        print((work / "log").read_text()[-2000:])


def resident(field: str, process: int) -> float:
    """VmHWM (the peak), RssAnon or RssFile (now) of a process in MiB; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), 0)


def children(process: int) -> list[int]:
    try:
        found = [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []
    return [each for child in found for each in (child, *children(child))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, default=192)
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--memory", type=int, metavar="IMAGES", help="measure memory instead of speed")
    parser.add_argument("--degradation", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(prefix="sr-run-input-") as work:
        if arguments.memory:
            memory(arguments, Path(work))
        else:
            speed(arguments, Path(work))
        if arguments.degradation:
            degradation(arguments)


if __name__ == "__main__":
    main()
