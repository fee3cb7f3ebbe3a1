"""How long a rerun over an unchanged folder takes, beside `find` over the same folder.

    python scripts/bench_rerun.py [--files 100000] [--rounds 7] [--folder DIR]

Makes a folder of small images, extracts them once with the backbone tiny, and then measures in turn: GNU find printing
size, time and name of every file; one read of all sample columns; the rerun as a whole command; the rerun as a call
inside a running Python. Also counts, by an audit hook, which files below the folder a rerun opens. Prints medians.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from precompute import extract, open_cache

PER_CLASS = 1000
COUNT_OPENED = """
import os, sys
folder, opened = os.path.abspath("photos"), []
def hook(event, arguments):
    path = arguments[0] if event == "open" else None
    if isinstance(path, (str, bytes)) and os.path.abspath(os.fsdecode(path)).startswith(folder + os.sep):
        opened.append(path)
sys.addaudithook(hook)
from precompute import extract
result = extract("photos", "photos.h5", backbone="tiny")
print(len(opened), result.reused, "torch" in sys.modules)
"""


def make_images(folder: Path, files: int) -> None:
    generator = np.random.default_rng(0)
    for number in range(files):
        place = folder / f"class{number // PER_CLASS:04}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place / f"{number:07}.bmp")


def seconds(task: Callable[[], object]) -> float:
    began = time.perf_counter()
    task()
    return time.perf_counter() - began


def read_columns() -> None:
    cache = open_cache("photos.h5")
    for name in cache.layout.columns:
        if name.startswith("samples/"):
            np.array(cache.column(name))


def measure(files: int, rounds: int) -> None:
    make_images(Path("photos"), files)
    took = seconds(lambda: extract("photos", "photos.h5", backbone="tiny"))
    print(f"{files:,} images, first extraction {took:.1f} s, on {cpu_model()}, {os.cpu_count()} cores")
    find = ["find", "photos", "-type", "f", "-printf", "%s %T@ %p\n"]
    rerun = [sys.executable, "-m", "precompute", "extract", "photos", "-b", "tiny", "-o", "photos.h5"]
    opened = subprocess.run([sys.executable, "-c", COUNT_OPENED], check=True, capture_output=True, text=True).stdout
    count, reused, torch = opened.split()
    print(f"a rerun opens {count} of these files, reuses {int(reused):,} rows; torch is loaded: {torch}")
    tasks: dict[str, Callable[[], object]] = {
        "find": lambda: subprocess.run(find, check=True, stdout=subprocess.DEVNULL),
        "read of the sample columns": read_columns,
        "rerun, whole command": lambda: subprocess.run(rerun, check=True, capture_output=True),
        "rerun, call in Python": lambda: extract("photos", "photos.h5", backbone="tiny"),
    }
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            taken[name].append(seconds(task))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    yardstick = medians["find"] + medians["read of the sample columns"]
    for name, median in medians.items():
        print(f"{name:28} {median * 1000:7.1f} ms   {median / yardstick:5.2f} x (find + read)")


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", help="where to make the images; a temporary folder by default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        os.chdir(folder)
        measure(given.files, given.rounds)
        os.chdir("/")


if __name__ == "__main__":
    main()
