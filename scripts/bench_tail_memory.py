"""Peak memory of `fine_tune` on a file of many activations, each size in a process of its own.

    python scripts/bench_tail_memory.py FOLDER [--gigabytes 0.2,2,20] [--epochs 1]

Makes caches of random activations of resnet18's `layer1` (64 x 56 x 56 float16, 401 kB a sample) in FOLDER, one at a
time, and trains a small tail of this script's own on each, so that reading is what takes the time. Peak memory is the
process's own (VmHWM), pages of the mapped file included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from precompute import load_backbone
from precompute.cache import Layer, RowWriter, Samples, Status, create

LAYER = "layer1"
HERE = Path(__file__).resolve().parent
AT_ONCE = 128  # rows


def pooled(shape: tuple[int, ...]) -> nn.Module:
    """A tail of two layers."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * shape[0], 64), nn.ReLU())


TRAIN = """
import json, sys, time
from precompute.finetuning.fine_tune import fine_tune
path, epochs = sys.argv[1:]
began = time.monotonic()
result = fine_tune(path, path + ".safetensors", tail="bench_tail_memory:pooled", epochs=int(epochs),
                   batch_size=32, checkpoint_seconds=5)
status = open("/proc/self/status").read().split()
print(json.dumps({"seconds": time.monotonic() - began, "peak": int(status[status.index("VmHWM:") + 1]) * 1024,
                  "rows": sum(result.rows.values()), "parameters": result.choices["parameters"]}))
"""


def make(path: Path, gigabytes: float) -> int:
    """A whole cache of about so many bytes at `path`; its rows."""
    backbone = load_backbone("resnet18", weights="random:0", layer=LAYER)
    (tap,) = backbone.taps
    rows = max(64, int(gigabytes * 1e9 / (2 * np.prod(tap.shape))))
    random = np.random.default_rng(0)
    labels = (np.arange(rows) % 2).astype(np.int32)
    samples = Samples(
        ids=np.array([b"%09d.jpg" % row for row in range(rows)]),
        sizes=np.ones(rows, dtype=np.int64),
        mtimes=np.arange(rows, dtype=np.int64),
        labels=labels,
        splits=np.zeros(rows, dtype=np.uint8),
        classes=(b"a", b"b"),
    )
    layout = create(
        str(path),
        spec=backbone.spec(precision="fp32", storage="float16"),
        samples=samples,
        layers={LAYER: Layer(tap.shape, np.dtype("f2"), tap.axes, "none")},
        records=[{"weights": backbone.source}],
    )
    noise = random.random((AT_ONCE, *tap.shape), np.float32).astype(np.float16)
    with RowWriter(str(path), layout) as writer:
        for start in range(0, rows, AT_ONCE):
            places = np.arange(start, min(start + AT_ONCE, rows))
            features = np.roll(noise, start // AT_ONCE, axis=-1)[: len(places)]
            features[:, 0] += labels[places, None, None].astype(np.float16) / 4
            digests = np.zeros((len(places), 32), np.uint8)
            digests[:, :8] = places[:, None].view(np.uint8)
            writer.write(
                places,
                {LAYER: features},
                digests=digests,
                statuses=np.full(len(places), Status.OK, dtype=np.uint8),
                sizes=samples.sizes[places],
                mtimes=samples.mtimes[places],
            )
    return rows


def measured(path: Path, epochs: int = 1) -> dict[str, float]:
    """What a process that trains on the cache says of itself."""
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(path), str(epochs)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", default="0.2,2,20")
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args(arguments)
    for gigabytes in map(float, options.gigabytes.split(",")):
        path = options.folder / "activations.h5"
        rows = make(path, gigabytes)
        found = measured(path, options.epochs)
        print(f"{gigabytes:6.1f} GB, {rows:,} rows: {found['seconds']:.0f} s, peak {found['peak'] / 2**20:,.0f} MiB")
        for left in (path, Path(f"{path}.safetensors")):
            os.unlink(left)


if __name__ == "__main__":
    main()
