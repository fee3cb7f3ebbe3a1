"""Several layers in one pass against one: whole extractions in turn, in one process, after one of each as a start.

    python scripts/bench_layers.py SOURCE -b resnet50 [--weights random] [--images 200] [--turns 5] [--precision auto]

Prints the medians and the ratio, and whether each layer equals, byte for byte, that of a file made for it alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from precompute import extract, open_cache

LAYERS = ["layer1:mean", "layer2:mean", "layer3:mean", "layer4:mean", "flatten"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("-b", "--backbone", default="resnet50")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--layer", action="append", help="by default the stages of a ResNet and what enters `fc`")
    options = parser.parse_args()
    layers = options.layer or LAYERS
    settings: dict[str, Any] = {
        "backbone": options.backbone,
        "weights": options.weights,
        "precision": options.precision,
        "engine": options.engine,
        "limit": options.images,
    }
    seconds: dict[str, list[float]] = {"one": [], "several": []}
    with tempfile.TemporaryDirectory() as place:
        for turn in range(options.turns + 1):
            for name, wanted in (("one", layers[-1:]), ("several", layers)):
                began = time.perf_counter()
                found = extract(options.source, f"{place}/{name} {turn}.h5", layer=wanted, **settings)
                if turn:
                    seconds[name].append(time.perf_counter() - began)
        print(f"{options.backbone}, {found.rows} images, {found.engine} {found.precision}, {len(layers)} layers")
        one, several = (statistics.median(seconds[name]) for name in seconds)
        ratios = [b / a for a, b in zip(seconds["one"], seconds["several"], strict=True)]
        print(
            f"one layer {one:.2f} s, {len(layers)} layers {several:.2f} s: {statistics.median(ratios):.3f} x "
            f"({min(ratios):.3f} to {max(ratios):.3f})"
        )
        whole = open_cache(f"{place}/several 0.h5")
        for layer in layers:
            extract(options.source, f"{place}/alone.h5", layer=layer, overwrite=True, **settings)
            name = layer.partition(":")[0]
            same = open_cache(f"{place}/alone.h5").features(name).tobytes() == whole.features(name).tobytes()
            print(f"{name}: {'the same bytes' if same else 'other bytes'} as in a file made for it alone")


if __name__ == "__main__":
    main()
