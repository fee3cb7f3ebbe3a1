"""Make the hostile set: caches, heads, tails, weights, images and photos, as a stranger with bad intent sends them.

    python scripts/make_hostile.py FOLDER

FOLDER must not exist. It takes about 300 MB of disk, and claims some terabytes more. Nothing in it may be read but
through precompute: `canary.*` beside the sub-folders is what the files try to reach, and code in them would make
the folder `ran`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hostile.caches import make_caches
from hostile.good import CANARY, make_cache, samples
from hostile.heads import hostile_heads
from hostile.images import make_images, make_largest
from hostile.photos import make_photos
from hostile.tails import hostile_tails
from hostile.weights import hostile_weights


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--largest", action="store_true", help="only pictures of a hundred million pixels")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    folder.mkdir(parents=True)
    if options.largest:
        make_largest(folder / "images")
        return 0
    canary, fifo, ran = folder / "canary.h5", folder / "canary.fifo", folder / "ran"
    make_cache(canary, samples(CANARY))
    os.mkfifo(fifo)  # whoever opens it waits for ever
    (folder / "canary.txt").write_text(CANARY.decode())
    make_caches(folder / "caches", canary, fifo)
    hostile_heads(folder / "heads", ran)
    hostile_tails(folder / "tails", ran)
    hostile_weights(folder / "weights", ran)
    make_images(folder / "images")
    make_photos(folder / "photos", folder / "canary.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
