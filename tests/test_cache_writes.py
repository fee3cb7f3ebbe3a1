"""Batches big enough to be hashed by a thread while they are written: same bytes, same checksums, same order."""

from __future__ import annotations

import errno
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from conftest import resident_kib
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from precompute.cache import Layer, Layout, RowWriter, Samples, create, open_cache, verification, verify
from precompute.cache.checksum import row_checksums
from precompute.cache.writer import HASHED_BESIDE

ROWS, WIDTH = 1500, 2048  # 12 MB


def make(path: Path, rows: int = ROWS) -> Layout:
    samples = Samples(
        ids=np.array([b"%06d.jpg" % row for row in range(rows)]),
        sizes=np.zeros(rows, dtype=np.int64),
        mtimes=np.zeros(rows, dtype=np.int64),
        labels=np.full(rows, -1, dtype=np.int32),
        splits=np.zeros(rows, dtype=np.uint8),
        classes=(),
    )
    spec = {"layers": [{"name": "flatten", "pooling": "none", "axes": ["channel"]}]}
    layers = {"flatten": Layer((WIDTH,), np.dtype("f4"), ("channel",), "none")}
    return create(str(path), spec=spec, samples=samples, layers=layers)


FEATURES = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
DIGESTS = np.random.default_rng(1).integers(0, 256, (ROWS, 32), dtype=np.uint8)
NUMBERS = np.arange(ROWS, dtype=np.int64)


def write(writer: RowWriter, rows: np.ndarray) -> None:
    writer.write(
        rows,
        {"flatten": FEATURES[rows]},
        digests=DIGESTS[rows],
        statuses=np.ones(len(rows), dtype=np.uint8),
        sizes=NUMBERS[rows] + 100,
        mtimes=NUMBERS[rows] + 10**18,
    )


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("one") / "a.h5"
    with RowWriter(str(path), make(path)) as writer:
        for row in range(ROWS):
            write(writer, np.array([row]))
    return path.read_bytes()


@pytest.mark.rotates(3)
def test_a_big_batch_gives_the_file_that_single_rows_give(tmp_path: Path, one_by_one: bytes) -> None:
    assert FEATURES.nbytes > HASHED_BESIDE > FEATURES[0].nbytes
    with RowWriter(str(tmp_path / "a.h5"), make(tmp_path / "a.h5")) as writer:
        write(writer, np.arange(ROWS))
        writer.sync()
    assert (tmp_path / "a.h5").read_bytes() == one_by_one
    assert verify(open_cache(tmp_path / "a.h5")).whole


def test_so_do_rows_with_gaps_between_them(tmp_path: Path, one_by_one: bytes) -> None:
    later = np.random.default_rng(2).random(ROWS) < 0.3
    with RowWriter(str(tmp_path / "a.h5"), make(tmp_path / "a.h5")) as writer:
        for rows in (np.flatnonzero(~later), np.flatnonzero(later), np.flatnonzero(later)[:0]):
            write(writer, rows)
    assert (tmp_path / "a.h5").read_bytes() == one_by_one


def test_another_thread_than_the_one_that_opened_it_may_write(tmp_path: Path, one_by_one: bytes) -> None:
    with RowWriter(str(tmp_path / "a.h5"), make(tmp_path / "a.h5")) as writer:
        for rows in np.array_split(np.arange(ROWS), 3):
            thread = Thread(target=write, args=(writer, rows))
            thread.start()
            thread.join()
    assert (tmp_path / "a.h5").read_bytes() == one_by_one


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_halfway_leaves_no_row_of_its_batch(tmp_path: Path) -> None:
    layout = make(tmp_path / "a.h5")
    rows = np.arange(ROWS)
    limit = layout.columns["features/flatten"].offset + FEATURES.nbytes // 2
    with RowWriter(str(tmp_path / "a.h5"), layout) as writer:
        write(writer, rows[:10])
        with no_file_larger_than(limit), pytest.raises(OSError, match=r"a\.h5") as caught:
            write(writer, rows[10:])
        assert caught.value.errno == errno.EFBIG
        assert verify(open_cache(tmp_path / "a.h5")).good.tolist() == list(range(10))
        write(writer, rows[10:])
    assert verify(open_cache(tmp_path / "a.h5")).whole


@settings(max_examples=50, deadline=None)
@given(count=st.integers(0, 5), width=st.integers(1, 1500), dtype=st.sampled_from(["<f2", "<f4"]), seed=st.integers(0))
def test_checksums_are_those_of_format_md(count: int, width: int, dtype: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(count, width)).astype(dtype)
    digests = generator.integers(0, 256, (count, 32), dtype=np.uint8)
    sizes, mtimes = (generator.integers(-(2**63), 2**63 - 1, count) for _ in range(2))
    statuses = generator.integers(0, 8, count, dtype=np.uint8)
    right = []
    for digest, row, *numbers in zip(digests, rows, sizes, mtimes, statuses, strict=True):
        seed = xxh3_64_intdigest(digest.tobytes() + struct.pack("<qqB", *numbers))
        right.append(xxh3_64_intdigest(row.tobytes(), seed) or 1)
    assert row_checksums(digests, sizes, mtimes, statuses, rows).tolist() == right
    assert row_checksums(digests[::-1], sizes[::-1], mtimes[::-1], statuses[::-1], rows[::-1]).tolist() == right[::-1]


def test_every_row_needs_all_that_is_bound_to_it() -> None:
    with pytest.raises(ValueError, match="3 rows, 1 digests"):
        row_checksums(DIGESTS[:1], NUMBERS[:3], NUMBERS[:3], np.ones(3, np.uint8), FEATURES[:3])


def test_verify_keeps_little_of_a_large_file_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "MAPPED_BYTES", 8 * verification.BLOCK_BYTES)
    make(tmp_path / "a.h5", 8192)
    before, most = resident_kib(), []
    found = verify(open_cache(tmp_path / "a.h5"), progress=lambda _: most.append(resident_kib() - before))
    assert len(found.pending) == 8192
    assert len(most) * verification.BLOCK_BYTES == 8192 * WIDTH * 4
    assert max(most) * 1024 < 8192 * WIDTH * 4 / 2
