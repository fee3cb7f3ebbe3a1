"""How well `train-head` tells near-duplicates from other photos, for one backbone: the table of docs/scores.md.

    python scripts/bench_near_duplicates.py photos -b mobilenet_v2 --weights mobilenet_v2_imagenet.pth

Extracts the folder, and changed copies of 150 of its photos, and prints for some similarities how many photos have
another one that is as similar, and how many of the copies are found.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from precompute import Cache, extract, open_cache
from precompute.training.splits import digest_groups

Features = NDArray[np.floating[Any]]
Rows = NDArray[np.int64]

COPIES, BARS = 150, (0.8, 0.85, 0.9, 0.95)


def changed(image: Image.Image) -> dict[str, tuple[Image.Image, int]]:
    """Name of the change -> the picture and the quality it is saved with."""
    width, height = image.size
    less = image.crop((width // 40, height // 40, width - width // 40, height - height // 40))
    return {
        "JPEG quality 75": (image, 75),
        "half the size": (image.resize((max(1, width // 2), max(1, height // 2))), 90),
        "a twentieth cut off": (less, 90),
        "mirrored": (ImageOps.mirror(image), 90),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-b", "--backbone", default="tiny")
    parser.add_argument("--weights", default="DEFAULT")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        extract(given.folder, place / "all.h5", backbone=given.backbone, weights=given.weights)
        cache = open_cache(place / "all.h5")
        whole = np.flatnonzero(cache.ok)
        originals = whole[:: max(1, len(whole) // COPIES)][:COPIES]
        for number, row in enumerate(originals):
            with Image.open(given.folder / cache.ids[row]) as image:
                for kind, (copy, quality) in changed(image.convert("RGB")).items():
                    (place / "copies" / kind).mkdir(parents=True, exist_ok=True)
                    copy.save(place / "copies" / kind / f"{number:03}.jpg", quality=quality)
        extract(place / "copies", place / "copies.h5", backbone=given.backbone, weights=given.weights)
        report(cache, whole, originals, open_cache(place / "copies.h5"))


def report(cache: Cache, whole: Rows, originals: Rows, copies: Cache) -> None:
    """For each similarity the share of photos with another one as similar, and of copies as similar to their photo."""
    _, first = np.unique(digest_groups(cache)[whole], return_index=True)  # byte-identical files are another matter
    others = whole[np.sort(first)]
    mean = np.array(cache.features()[others], dtype=np.float64).mean(axis=0)

    def unit(features: Any, rows: Rows) -> Features:
        centred: Features = np.array(features[rows], dtype=np.float64) - mean
        centred /= np.linalg.norm(centred, axis=1, keepdims=True)
        return centred

    def show(what: str, similarity: Features) -> None:
        print(f"{what:22}" + "".join(f"{(similarity >= bar).mean():8.1%}" for bar in BARS))

    print(f"{'cosine of at least':22}" + "".join(f"{bar:8}" for bar in BARS))
    cosine = unit(cache.features(), others) @ unit(cache.features(), others).T
    np.fill_diagonal(cosine, -1)
    show("another photo", cosine.max(axis=1))
    kinds = np.array([name.split("/")[0] for name in copies.ids])
    numbers = np.array([int(Path(name).stem) for name in copies.ids])
    for kind in dict.fromkeys(kinds.tolist()):
        rows = np.flatnonzero(kinds == kind)
        pairs = unit(copies.features(), rows) * unit(cache.features(), originals[numbers[rows]])
        show(kind, pairs.sum(axis=1))


if __name__ == "__main__":
    main()
