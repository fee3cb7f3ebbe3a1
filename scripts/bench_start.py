"""How long a few hundred photos take, as whole processes: first run, second folder, and the loop of the tutorials.

    python scripts/bench_start.py SOURCE -b mobilenet_v2 --weights FILE [--pairs 5]

In turn, `--pairs` times: `precompute extract` with empty caches (nothing compiled is known); the loop (torchvision's
ImageFolder, a DataLoader with a worker a core, eager fp32) over the same folder; `precompute extract` of another
folder with as many photos, for which what the first run compiled is there. Prints the seconds of each process, from its
start to its end, and the medians of the ratios within each turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench_extract import copy_distinct
from bench_rerun import cpu_model

LOOP = """
import os, sys
import numpy as np, torch, torchvision
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor
source, out, name, weights = sys.argv[1:]
network = torchvision.models.get_model(name, weights=None)
if weights != "random":
    network.load_state_dict(torch.load(weights, weights_only=True))
last = list(network.named_children())[-1][0]
setattr(network, last, torch.nn.Identity())
network.eval()
steps = Compose([Resize(256), CenterCrop(224), ToTensor(), Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
data = torchvision.datasets.ImageFolder(source, steps)
loader = torch.utils.data.DataLoader(data, batch_size=32, num_workers=len(os.sched_getaffinity(0)))
parts = []
with torch.no_grad():
    for images, _ in loader:
        parts.append(network(images).flatten(1).numpy())
np.save(out, np.concatenate(parts))
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("-b", "--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        report(options, Path(temporary))


def report(options: argparse.Namespace, place: Path) -> None:
    count = sum(path.suffix.lower() in (".jpg", ".jpeg") for path in options.source.rglob("*"))
    second = copy_distinct(options.source, place / "second", count)
    print(f"{options.backbone}, {count} photos, {cpu_model()}, {len(os.sched_getaffinity(0))} cores")
    ratios: list[tuple[float, float]] = []
    for number in range(options.pairs):
        caches = {"XDG_CACHE_HOME": str(place / f"caches{number}")}
        first = extract(options, options.source, place / f"first{number}.h5", caches)
        loop = seconds(
            [sys.executable, "-c", LOOP, options.source, place / "x.npy", options.backbone, options.weights], {}
        )
        again = extract(options, second, place / f"second{number}.h5", caches)
        ratios.append((first / loop, again / loop))
        print(f"first run {first:.2f} s, second folder {again:.2f} s, loop {loop:.2f} s", flush=True)
    for name, values in zip(("first run", "second folder"), zip(*ratios, strict=True), strict=True):
        print(f"{name} / loop: {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")


def extract(options: argparse.Namespace, source: Path, out: Path, caches: dict[str, str]) -> float:
    command = [sys.executable, "-m", "precompute", "extract", source, "-b", options.backbone]
    return seconds([*command, "--weights", options.weights, "-o", out], caches)


def seconds(command: Sequence[object], environment: dict[str, str]) -> float:
    """Of the whole process."""
    began = time.monotonic()
    subprocess.run([str(part) for part in command], env={**os.environ, **environment}, check=True, capture_output=True)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
