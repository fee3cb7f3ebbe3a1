"""MNIST's files (or Fashion-MNIST's) as PNG in class folders: OUT/train/3/00007.png, OUT/test/...

    python scripts/make_digits.py data/MNIST/raw digits --per-class 200

RAW holds the four idx .gz files of Y. LeCun's page (the format stands there too: a magic number, big-endian sizes, then
bytes). They are read as files from anyone: no more than the sizes they name is ever unpacked.
"""

from __future__ import annotations

import argparse
import gzip
import math
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FILES = {"train": "train", "test": "t10k"}
IMAGES, LABELS = 0x00000803, 0x00000801  # unsigned bytes (08) in three dimensions and in one
MAX_BYTES = 1 << 30  # MNIST has 47 million


class IdxError(ValueError):
    """A file that is no idx file of bytes, or not a whole one."""


def read_idx(path: Path, magic: int) -> NDArray[np.uint8]:
    """The array in an idx .gz file that starts with `magic`. Raises IdxError, and OSError where it cannot be read."""
    try:
        with gzip.open(path, "rb") as file:
            n_dimensions = magic & 0xFF
            head = file.read(4 + 4 * n_dimensions)
            if len(head) != 4 + 4 * n_dimensions or struct.unpack(">I", head[:4])[0] != magic:
                raise IdxError(f"{path} does not begin as an idx file of {n_dimensions}-dimensional bytes does.")
            shape = struct.unpack(f">{n_dimensions}I", head[4:])
            size = math.prod(shape)
            if not 0 < size <= MAX_BYTES:
                raise IdxError(f"{path} names the sizes {shape}; at least 1 and at most {MAX_BYTES} bytes are read.")
            data = file.read(size + 1)  # one more, to see that it ends there
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise IdxError(f"{path} is no whole gzip file: {error}") from error
    if len(data) != size:
        raise IdxError(f"{path} does not hold the {size} bytes that its sizes {shape} name.")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def write_folders(raw: Path, out: Path, per_class: int | None) -> int:
    """Write the first `per_class` images of each class (None: all) of both parts; how many were written."""
    written = 0
    for part, prefix in FILES.items():
        images = read_idx(raw / f"{prefix}-images-idx3-ubyte.gz", IMAGES)
        labels = read_idx(raw / f"{prefix}-labels-idx1-ubyte.gz", LABELS)
        if len(images) != len(labels):
            raise IdxError(f"{raw} holds {len(images)} images and {len(labels)} labels of {part}.")
        for label in np.unique(labels):
            folder = out / part / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            for number in np.flatnonzero(labels == label)[:per_class]:
                Image.fromarray(images[number]).save(folder / f"{number:05}.png")
                written += 1
    return written


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, help="folder with the four .gz files")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--per-class", type=int, help="images of each class and part (default: all)")
    given = parser.parse_args()
    if given.per_class is not None and given.per_class < 1:
        parser.error(f"--per-class must be at least 1. Got {given.per_class} instead.")
    try:
        written = write_folders(given.raw, given.out, given.per_class)
    except (OSError, IdxError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(f"Wrote {written:,} images below {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
