"""Heads on a cache larger than memory: seconds and peak memory of training, each in a process of its own.

    python scripts/bench_large.py FOLDER [--gigabytes 20] [--width 2048] [--classes 10] [--heads logistic,mlp]
    python scripts/bench_large.py FOLDER --rows 200000 --classes 1000 --heads logistic

Makes a cache of synthetic rows in FOLDER (normal around the mean of each class, float16, 5% of labels wrong so that no
head separates them) and trains `train_head` on it, every row held against its checksum first. The logistic head is
given C = 0.01, the MLP three epochs: enough to see what memory and one pass take. Peak memory is the process's own
(VmHWM), pages of the mapped file included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from bench_rerun import cpu_model

from precompute.cache import Layer, RowWriter, Samples, Status, create

AT_ONCE = 4096  # rows
WRONG = 0.05

TRAIN = """
import json, sys
from precompute import train_head
path, head, settings = sys.argv[1:]
result = train_head(path, head=head, **json.loads(settings))
status = open("/proc/self/status").read().split()
print(json.dumps({"seconds": result.seconds, "accuracy": next(iter(result.scores.values())).accuracy,
                  "peak": int(status[status.index("VmHWM:") + 1]) * 1024, "summary": result.head.summary()}))
"""
SETTINGS = {"logistic": {"C": 0.01}, "mlp": {"max_epochs": 3}}


def make(path: Path, rows: int, width: int, classes: int) -> None:
    """A whole cache of `rows` synthetic rows at `path`."""
    random = np.random.default_rng(0)
    means = random.normal(0, 0.1, (classes, width)).astype(np.float16)
    noise = random.normal(0, 1, (AT_ONCE + 997, width)).astype(np.float16)
    truth = np.arange(rows) % classes
    labels = np.where(random.random(rows) < WRONG, random.integers(0, classes, rows), truth).astype(np.int32)
    samples = Samples(
        ids=np.array([b"%09d.jpg" % row for row in range(rows)]),
        sizes=np.ones(rows, dtype=np.int64),
        mtimes=np.arange(rows, dtype=np.int64),
        labels=labels,
        splits=np.zeros(rows, dtype=np.uint8),
        classes=tuple(b"%06d" % number for number in range(classes)),
    )
    layout = create(
        str(path),
        spec={"layers": [{"name": "features", "pooling": "none", "axes": ["channel"]}]},
        samples=samples,
        layers={"features": Layer((width,), np.dtype("f2"), ("channel",), "none")},
    )
    with RowWriter(str(path), layout) as writer:
        for start in range(0, rows, AT_ONCE):
            places = np.arange(start, min(start + AT_ONCE, rows))
            shift = int(random.integers(997))  # no two blocks have the same noise beside the same class
            digests = np.zeros((len(places), 32), np.uint8)
            digests[:, :8] = places[:, None].view(np.uint8)
            writer.write(
                places,
                {
                    "features": means[truth[places]]
                    + np.roll(noise, start // AT_ONCE, axis=1)[shift : shift + len(places)]
                },
                digests=digests,
                statuses=np.full(len(places), Status.OK, dtype=np.uint8),
                sizes=samples.sizes[places],
                mtimes=samples.mtimes[places],
            )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--gigabytes", type=float, default=20.0)
    size.add_argument("--rows", type=int)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--heads", default="logistic,mlp")
    options = parser.parse_args(arguments)
    rows = options.rows or int(options.gigabytes * 1e9 / (2 * options.width))
    path = options.folder / "large.h5"
    make(path, rows, options.width, options.classes)
    print(
        f"{cpu_model()}; {rows:,} x {options.width} float16, {options.classes} classes: {path.stat().st_size:,} bytes"
    )
    try:
        for head in options.heads.split(","):
            command = [sys.executable, "-c", TRAIN, path, head, json.dumps(SETTINGS[head])]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{head:10} fitted in {found['seconds']:,.0f} s, peak memory {found['peak'] / 1e9:.2f} GB, "
                f"accuracy {found['accuracy']:.3f} ({found['summary']})",
                flush=True,
            )
    finally:
        path.unlink()


if __name__ == "__main__":
    main()
