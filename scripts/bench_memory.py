"""How much memory a million samples take, and how long listing them does beside `find`.

    python scripts/bench_memory.py [--files 1000000] [--flat] [--rounds 5] [--folder DIR]

Makes a folder of 1,000 small images and one of `--files`, no two files alike. Runs over each, every run in a process of
its own: the first; one with nothing changed; one with an image renamed, where all other rows are copied to a new file;
and one that reads every image again and knows it by its bytes. Then, in turn, GNU find prints size, time and name of
every file, and `list_folder` lists them. Prints the peak of resident memory, in which pages of mapped files count, and
medians of seconds.

Two stand-ins, since a million forward passes say nothing about memory: the decoder gives one grey level, and the
network of the backbone tiny is the mean of each channel. Files are read and hashed, rows written, checked and copied as
ever.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_rerun import seconds

FEW = 1000
PER_CLASS = 1000
PROMISED = 300e6  # bytes of memory that a million samples may add

BMP = (
    b"BM\x3a\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\1\0\0\0\1\0\0\0\1\0\x18\0\0\0\0\0\4\0\0\0"
    + bytes(16)
    + b"\x80\x80\x80\0"
)
"""One grey pixel. A number behind it, where no decoder looks, makes every file another."""

RUN = """
import json, sys
import precompute.extraction.extract

def stand_in():
    # Before anything imports these; a run that has nothing to do never does, and loads no torch.
    import torch
    from precompute.inputs.images import decode
    from precompute.backbones import tiny
    def grey(data, transform):
        return torch.full((3, transform.crop, transform.crop), data[-1], dtype=torch.uint8)
    def mean(self, images):
        return self.classifier(images.mean(dim=(2, 3)).repeat(1, 43)[:, : tiny.NUM_FEATURES])
    decode.decode, tiny.TinyBackbone.forward = grey, mean

if "compute" in sys.argv:
    stand_in()
settings = {"backbone": "tiny", "dtype": "float16", "batch_size": 256, "compile": "off", "rehash": "rehash" in sys.argv}
result = precompute.extraction.extract.extract(sys.argv[1], sys.argv[2], **settings)
# Not ru_maxrss, which begins with the memory of the process that started this one.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
told = {name: getattr(result, name) for name in ("rows", "computed", "reused", "copied", "dropped", "seconds")}
print(json.dumps({**told, "peak": int(peak.split()[1]) * 1024, "torch": "torch" in sys.modules}))
"""


def make_images(folder: Path, files: int, *, flat: bool = False) -> None:
    for number in range(files):
        place = folder if flat else folder / f"train/class{number // PER_CLASS:04}"
        if flat or number % PER_CLASS == 0:
            place.mkdir(parents=True, exist_ok=True)
        with open(f"{place}/image_{number:08}.bmp", "wb") as file:
            file.write(BMP + number.to_bytes(4, "little"))


def run(folder: Path, *options: str) -> dict[str, Any]:
    """One extraction of `folder` in a process of its own: what it did, seconds, and `peak` bytes of memory."""
    command = [sys.executable, "-c", RUN, str(folder), f"{folder}.h5", *options]
    told: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return told


def runs(folder: Path) -> dict[str, dict[str, Any]]:
    """What happens to a folder in its life, a run for each."""
    told = {"first": run(folder, "compute"), "nothing changed": run(folder)}
    image = next(folder.rglob("*.bmp"))
    image.rename(image.with_name("a_name_longer_than_those_of_the_others.bmp"))
    told["one renamed"] = run(folder, "compute")
    told["all read again"] = run(folder, "compute", "rehash")
    return told


def list_beside_find(folder: Path, rounds: int) -> tuple[float, float]:
    """Median seconds of GNU find and of `list_folder`, in turn."""
    from precompute.inputs.images.formats import IMAGES
    from precompute.sources.folder import list_folder

    find = ["find", str(folder), "-type", "f", "-printf", "%s %T@ %p\n"]
    taken = [
        (
            seconds(lambda: subprocess.run(find, check=True, stdout=subprocess.DEVNULL)),
            seconds(lambda: list_folder(folder, IMAGES)),
        )
        for _ in range(rounds)
    ]
    return statistics.median(pair[0] for pair in taken), statistics.median(pair[1] for pair in taken)


def measure(files: int, rounds: int, *, flat: bool) -> None:
    few, many = Path("few"), Path("many")
    make_images(few, FEW, flat=flat)
    make_images(many, files, flat=flat)
    print(f"peak resident memory, MB {FEW:>18,} {files:>12,}   difference (at most {PROMISED / 1e6:.0f} a million)")
    base, told = runs(few), runs(many)
    for name, run_ in told.items():
        first, second = base[name]["peak"] / 1e6, run_["peak"] / 1e6
        print(f"{name:24} {first:18.1f} {second:12.1f}   {second - first:6.1f}", end="")
        print(f"   {run_['seconds']:7.1f} s, {run_['computed']:,} computed, {run_['copied']:,} copied by their bytes")
    find, listing = list_beside_find(many, rounds)
    print(f"find {find:.2f} s, list_folder {listing:.2f} s: {listing / find:.2f} x (at most 2)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--flat", action="store_true", help="all images in one folder, not a thousand in each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to make the images; a temporary folder by default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        os.chdir(folder)
        measure(given.files, given.rounds, flat=given.flat)
        os.chdir("/")


if __name__ == "__main__":
    main()
