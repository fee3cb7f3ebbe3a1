"""A run opens each feature file once, and compares the table of an older file with its digest once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from precompute import extract, open_cache, verify
from precompute.cache import creation, reader
from precompute.errors import Stopped
from precompute.extraction.repair import repair


class Counts:
    """How often a file was read with libhdf5, and a table was hashed by whoever reads or makes a file."""

    def __init__(self) -> None:
        self.opened: Counter[str] = Counter()
        self.hashed: Counter[tuple[str, bytes]] = Counter()

    def check(self, opened: set[str]) -> None:
        assert set(self.opened) == opened
        assert set(self.opened.values()) <= {1}
        assert set(self.hashed.values()) <= {1}
        self.opened.clear()
        self.hashed.clear()


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counts]:
    counts = Counts()
    for module in (reader, creation):
        real_layout, real_digest = module.read_layout, module.table_digest

        def read_layout(path: str, real: Any = real_layout) -> Any:
            counts.opened[Path(path).name] += 1
            return real(path)

        def table_digest(ids: Any, *others: Any, real: Any = real_digest, who: str = module.__name__) -> Any:
            counts.hashed[who, ids.tobytes()] += 1
            return real(ids, *others)

        monkeypatch.setattr(module, "read_layout", read_layout)
        monkeypatch.setattr(module, "table_digest", table_digest)
    yield counts


@pytest.mark.rotates(3)
def test_each_file_once(photos: Path, tmp_path: Path, counts: Counts) -> None:
    out = tmp_path / "a.h5"
    with pytest.raises(Stopped):
        extract(photos, out, backbone="tiny", batch_size=4, stop=lambda: 2)
    counts.check({"a.h5.precompute.new"})
    with pytest.raises(Stopped):
        extract(photos, out, backbone="tiny", batch_size=4, stop=lambda: 2)
    counts.check({"a.h5.partial"})
    (photos / "val/dogs/0.jpg").rename(photos / "val/dogs/renamed.jpg")
    with pytest.raises(Stopped):
        extract(photos, out, backbone="tiny", batch_size=4, stop=lambda: 2)
    counts.check({"a.h5.partial", "a.h5.precompute.new"})
    extract(photos, out, backbone="tiny", batch_size=4)
    counts.check({"a.h5.partial"})
    assert extract(photos, out, backbone="tiny", batch_size=4).computed == 0  # known without the network
    counts.check({"a.h5"})
    assert extract(photos, out, backbone="tiny", batch_size=4, rehash=True).computed == 0
    counts.check({"a.h5", "a.h5.precompute.new"})
    (photos / "val/dogs/renamed.jpg").unlink()
    assert extract(photos, out, backbone="tiny", batch_size=4).dropped == 1
    counts.check({"a.h5", "a.h5.precompute.new"})
    extract(photos, out, backbone="tiny", batch_size=4, dry_run=True)
    counts.check({"a.h5"})


@pytest.mark.rotates(3)
def test_each_file_once_in_a_repair(photos: Path, tmp_path: Path, counts: Counts) -> None:
    out = tmp_path / "a.h5"
    extract(photos, out, backbone="tiny")
    with h5py.File(out, "r+") as file:
        file["features/embed.4"][3] = np.float32(7)
    counts.check({"a.h5.precompute.new"})
    assert repair(out, photos).computed == 1
    counts.check({"a.h5", "a.h5.precompute.new"})
    assert verify(open_cache(out)).whole
