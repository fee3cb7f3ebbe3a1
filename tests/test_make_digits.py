"""scripts/make_digits.py: idx files become class folders, and files that are none are refused."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import make_digits

    return make_digits


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x0800 | array.ndim, *array.shape) + array.tobytes()


def test_images_come_back_in_the_folders_of_their_labels(script: Any, tmp_path: Path) -> None:
    rng, expected = np.random.default_rng(0), {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = rng.integers(0, 256, (12, 5, 4), dtype=np.uint8), (np.arange(12) % 3).astype(np.uint8)
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
        expected |= {f"{part}/{label}/{n:05}.png": images[n] for n, label in enumerate(labels) if n < 6}
    assert script.write_folders(tmp_path, tmp_path / "out", 2) == 12
    found = {str(path.relative_to(tmp_path / "out")): path for path in (tmp_path / "out").rglob("*.png")}
    assert found.keys() == expected.keys()
    for name, path in found.items():
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), expected[name])


GOOD = idx(np.zeros((2, 3, 3), np.uint8))


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"", "does not begin"),
        (GOOD, "no whole gzip file"),
        (gzip.compress(GOOD, mtime=0)[:-9], "no whole gzip file"),
        (gzip.compress(GOOD[:-1], mtime=0), "does not hold the 18 bytes"),
        (gzip.compress(GOOD + b"\0", mtime=0), "does not hold the 18 bytes"),
        (gzip.compress(idx(np.zeros(4, np.uint8)), mtime=0), "does not begin"),
        (gzip.compress(b"\0\0\x0d\x03" + GOOD[4:], mtime=0), "does not begin"),
        (gzip.compress(struct.pack(">4I", 0x803, 2**31, 2**31, 2**31), mtime=0), "names the sizes"),
        (gzip.compress(struct.pack(">4I", 0x803, 0, 3, 3), mtime=0), "names the sizes"),
        (gzip.compress(struct.pack(">4I", 0x803, 1, 28, 28) + bytes(10**8), mtime=0), "does not hold the 784 bytes"),
    ],
)
def test_files_that_are_no_idx_file_are_refused(script: Any, tmp_path: Path, blob: bytes, message: str) -> None:
    (tmp_path / "a.gz").write_bytes(blob)
    with pytest.raises(script.IdxError, match=message):
        script.read_idx(tmp_path / "a.gz", script.IMAGES)
