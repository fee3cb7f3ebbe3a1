"""What decoding and preprocessing cost on one core, beside Pillow with the preset of torchvision's weights.

    python scripts/bench_decode.py [--photos DIR] [--rounds 9] [--limit 80]

Takes the JPEG photos of about 500 x 375 below DIR and measures in turn, as CPU time of one thread: Pillow with the
preset (resize, crop, float, normalise), Pillow up to the crop, and `decode`. Then the same for photos of 12 megapixels,
made from these, upright and turned by EXIF, with and without fast_decode. Prints medians, and how far `decode` is from
Pillow's 8-bit pixels over all photos. The bytes are in memory before the clock starts.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from bench_rerun import cpu_model
from PIL import Image, ImageOps
from torchvision.models import ResNet50_Weights

from precompute.inputs.images.decode import decode
from precompute.inputs.images.transform import Transform

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "hymenoptera"
PRESET = ResNet50_Weights.IMAGENET1K_V1.transforms()
TRANSFORM = Transform.from_preset(PRESET)
FAST = dataclasses.replace(TRANSFORM, fast_decode=True)
LARGE = (4000, 3000)
Task = Callable[[bytes], torch.Tensor]


def opened(data: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


TASKS: dict[str, Task] = {
    "Pillow + preset": lambda data: PRESET(Image.open(io.BytesIO(data)).convert("RGB")),
    "Pillow, 8-bit part": lambda data: TRANSFORM.apply_pil(Image.open(io.BytesIO(data)).convert("RGB")),
    "decode": lambda data: decode(data, TRANSFORM),
}
LARGE_TASKS: dict[str, Task] = {
    "Pillow + preset": lambda data: PRESET(opened(data)),
    "decode": lambda data: decode(data, TRANSFORM),
    "decode, fast_decode": lambda data: decode(data, FAST),
}


def measure(tasks: dict[str, Task], photos: list[bytes], rounds: int) -> None:
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            began = time.thread_time()
            for data in photos:
                task(data)
            taken[name].append((time.thread_time() - began) / len(photos) * 1000)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    yardstick = next(iter(medians.values()))
    for name, median in medians.items():
        print(f"  {name:20} {median:7.2f} ms an image   {yardstick / median:5.2f} x")


def differences(task: Task, photos: list[bytes]) -> tuple[int, float]:
    """(worst, largest mean of a photo) difference from Pillow's 8-bit pixels, in grey levels."""
    worst, mean = 0, 0.0
    for data in photos:
        difference = (task(data).int() - TRANSFORM.apply_pil(opened(data)).int()).abs()
        worst, mean = max(worst, int(difference.max())), max(mean, float(difference.float().mean()))
    return worst, mean


def about_500(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        return sorted(image.size) in ([374, 500], [375, 500], [376, 500])


def enlarged(data: bytes, orientation: int) -> bytes:
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    opened(data).resize(LARGE, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90, exif=exif)
    return stream.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--limit", type=int, default=80, help="so many photos at most are timed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    paths = sorted(path for path in given.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    everything = [path.read_bytes() for path in paths]
    photos = [data for data in everything if about_500(data)][: given.limit]
    print(f"{cpu_model()}, one thread, {given.rounds} rounds")
    print(f"{len(photos)} photos of about 500 x 375, {np.mean([len(data) for data in photos]) / 1000:.0f} kB each")
    measure(TASKS, photos, given.rounds)
    worst, mean = differences(TASKS["decode"], everything)
    print(f"  from Pillow over {len(everything)} photos: {worst} grey level at most, mean at most {mean:.4f}")
    for orientation, name in ((1, "upright"), (6, "turned by EXIF")):
        large = [enlarged(data, orientation) for data in photos[:6]]
        print(f"{len(large)} photos of {LARGE[0]} x {LARGE[1]}, {name}")
        measure(LARGE_TASKS, large, max(1, given.rounds // 3))
        for task in list(LARGE_TASKS)[1:]:
            worst, mean = differences(LARGE_TASKS[task], large)
            print(f"  {task} from Pillow: {worst} grey levels at most, mean at most {mean:.4f}")


if __name__ == "__main__":
    main()
