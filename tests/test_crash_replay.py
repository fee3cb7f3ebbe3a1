"""Wherever a run is cut off, by a kill or by the power, no file is broken, no row wrong, and no finished work lost.

One real run is recorded; each state in which a crash could have left its files is laid out, looked at, and resumed (see
crash_replay). A kill leaves what was written so far; a power cut loses any part of what was not synced.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_image, make_photos
from crash_replay import Point, Recorder, kills, power_cuts, read_folder
from test_extraction import assert_same
from xxhash import xxh3_64_intdigest

from precompute import extract, open_cache, verify
from precompute.cache import Cache, RowWriter
from precompute.errors import CacheFormatError, PrecomputeError, Stopped

OUT = "a.h5"
Scene = Callable[[Path, Path], Path]
Row = tuple[bytes, bytes]  # id, digest: which picture it is
ANYWHERE = b"*"  # instead of an id
OPTIONS: dict[str, Any] = {}  # of every run
VIEWS = {"views": 3, "augment": "flip,crop"}
INT8 = {"layer": "body", "pooling": "none", "dtype": "int8"}


def run(photos: Path, out: Path, *, stop: Callable[[], int] | None = None) -> None:
    # One thread: always the same recording
    extract(photos, out, backbone="tiny", batch_size=4, workers=1, stop=stop, **OPTIONS)


def interrupted(photos: Path, out: Path, batches: int) -> None:
    calls = iter([0] * (batches - 1) + [1])
    with pytest.raises(Stopped):
        run(photos, out, stop=lambda: next(calls))


@pytest.fixture
def place(tmp_path: Path, tiny_made_once: None) -> Path:
    """14 photos, among them a broken one, two identical ones, and one whose size is the same whatever it shows."""
    photos = make_photos(tmp_path / "photos", per_class=3)
    make_image(50).save(photos / "train/cats/0.bmp")
    (photos / "train/cats/0.jpg").unlink()
    (photos / "train/dogs/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    shutil.copy(photos / "train/cats/2.jpg", photos / "val/dogs/same.jpg")
    (tmp_path / "out").mkdir()
    return tmp_path


def fresh(photos: Path, out: Path) -> Path:
    """Nothing is there. (Each scene returns the folder as it was, for which rows may still stand.)"""
    return photos


def resumed(photos: Path, out: Path) -> Path:
    """Half of the rows are there, and one of them was being computed again: the file is continued in place."""
    interrupted(photos, out, 2)
    with RowWriter(f"{out}.partial", open_cache(f"{out}.partial").layout) as writer:
        writer.forget(np.array([2]))
    return photos


def edited(photos: Path, out: Path) -> Path:
    """Half of the rows are there, and a photo of one was edited since: another file is laid out."""
    interrupted(photos, out, 2)
    before = shutil.copytree(photos, photos.with_name("before"))
    make_image(99).save(photos / "train/cats/0.bmp")
    return before


def renamed(photos: Path, out: Path) -> Path:
    """Half of the rows are there, and only there, for photos that were renamed, touched or swapped since."""
    interrupted(photos, out, 2)
    before = shutil.copytree(photos, photos.with_name("before"))
    (photos / "train/cats").rename(photos / "train/lions")
    os.utime(photos / "train/dogs/0.jpg")
    (photos / "train/dogs/1.png").rename(photos / "spare")
    (photos / "val/cats/1.png").rename(photos / "train/dogs/1.png")
    (photos / "spare").rename(photos / "val/cats/1.png")
    return before


def synced(photos: Path, out: Path) -> Path:
    """A finished file, and a folder in which photos were edited, added, deleted, moved and copied since."""
    run(photos, out)
    before = shutil.copytree(photos, photos.with_name("before"))
    make_image(99).save(photos / "train/cats/0.bmp")
    make_image(98).save(photos / "val/cats/new.png")
    (photos / "train/dogs/1.png").unlink()
    (photos / "train/dogs/2.jpg").rename(photos / "val/cats/moved.jpg")
    shutil.copy(photos / "val/cats/0.jpg", photos / "val/dogs/another.jpg")
    return before


def taken_back(photos: Path, out: Path) -> Path:
    """A finished file, a sync to edited photos that was interrupted, and then the edits undone, times and all."""
    run(photos, out)
    originals = shutil.copytree(photos, photos.with_name("originals"))
    for number, photo in enumerate(sorted(photos.rglob("[012].*"))[::2][:5]):
        make_image(90 + number).save(photo)
    interrupted(photos, out, 1)
    before = shutil.copytree(photos, photos.with_name("before"))
    shutil.copytree(originals, photos, dirs_exist_ok=True)
    return before


@dataclass
class Tally:
    """What was tried, and what broke a promise; one example for each kind."""

    points: int = 0
    states: int = 0
    resumed: int = 0
    unreadable: int = 0
    wrong: int = 0
    lost: int = 0
    not_resumed: int = 0
    examples: dict[str, str] = field(default_factory=dict)

    def fault(self, kind: str, example: str, count: int = 1) -> None:
        setattr(self, kind, getattr(self, kind) + count)
        self.examples.setdefault(kind, example)


class Judge:
    """Holds points of one recording against what every row must be."""

    def __init__(self, photos: Path, recorder: Recorder, references: list[Path], scratch: Path) -> None:
        self.tally = Tally()
        self._photos, self._scratch = photos, scratch
        scratch.mkdir()
        self._whole = open_cache(references[0])
        rows = [row for path in references for row in rows_of(open_cache(path))]
        self._truth = {row[:2]: (row[2], row[5]) for row in rows}
        self._truth |= {(row[1].hex().encode(), row[1]): (row[2], row[5]) for row in rows}  # as in a file of kept rows
        self._today = {row[0]: (row[1], *row[3:5]) for row in rows[: len(self._whole)]}
        self._wanted = {row[0] for row in self._today.values()}
        self._known: dict[bytes, frozenset[Row]] = {}
        self._resumed = set[frozenset[tuple[str, bytes]]]()
        self._committed = self._commitments(recorder)

    def _commitments(self, recorder: Recorder) -> list[frozenset[Row]]:
        """For each number of events the rows that must outlive any cut: synced once, and of today's photos.

        A photo that was renamed since has no such row yet; its features must outlive the cut wherever they are.
        """
        disk = recorder.first.after()
        found = [frozenset[Row]().union(*(self._believed(data, "at first") for data in disk.files.values()))]
        for event in recorder.events:
            disk.apply(event)
            synced = self._believed(disk.files[event.file], "synced") if event.kind == "sync" else frozenset[Row]()
            found.append(found[-1] | synced)
        return found

    def look(self, point: Point) -> None:
        self.tally.points += 1
        there = frozenset[Row]()
        for name in point.contents.keys() & {OUT, f"{OUT}.partial", f"{OUT}.partial.kept"}:
            there |= self._believed(point.contents[name], point.what)
        if missing := self._committed[point.done] - there:
            self.tally.fault("lost", f"{point.what} ({point.done}): {missing}", len(missing))

    def _believed(self, data: bytes, what: str) -> frozenset[Row]:
        """Rows a resumed run would keep: whole, with size and time as the photo has them today, or known by digest."""
        if (key := hashlib.sha256(data).digest()) not in self._known:
            self._known[key] = self._judge(data, what)
            self.tally.states += 1
        return self._known[key]

    def _judge(self, data: bytes, what: str) -> frozenset[Row]:
        (path := self._scratch / "judged.h5").write_bytes(data)
        try:
            cache = open_cache(path)
        except CacheFormatError as error:
            self.tally.fault("unreadable", f"{what}: {error}")
            return frozenset()
        good = verify(cache).good
        believed = set()
        for row, (identity, digest, status, size, mtime, features, checksum) in enumerate(rows_of(cache)):
            seed = xxh3_64_intdigest(digest + struct.pack("<qqB", size, mtime, status))  # as FORMAT.md says it
            whole = bool(status) and checksum == (xxh3_64_intdigest(features, seed) or 1)
            current = (size, mtime) == self._today.get(identity, ())[1:]
            as_computed = self._truth.get((identity, digest)) == (status, features)
            stale = current and self._today[identity][0] != digest
            if whole != (row in good) or (whole and (stale or not as_computed)):
                self.tally.fault("wrong", f"{what}: {identity!r} {whole=} {as_computed=} {stale=}")
            elif whole and digest in self._wanted:
                believed |= {(ANYWHERE, digest), *([(identity, digest)] if current else [])}
        return frozenset(believed)

    def resume(self, point: Point) -> None:
        """The same run again must end with the same file, and with nothing beside it."""
        state = frozenset((name, hashlib.sha256(data).digest()) for name, data in point.contents.items())
        if state in self._resumed:
            return
        self._resumed.add(state)
        self.tally.resumed = len(self._resumed)
        shutil.rmtree(self._scratch)
        self._scratch.mkdir()
        for name, data in point.contents.items():
            (self._scratch / name).write_bytes(data)
        try:
            run(self._photos, self._scratch / OUT)
            assert_same(open_cache(self._scratch / OUT), self._whole)
            assert [path.name for path in self._scratch.glob(f"{OUT}*")] == [OUT]
        except (PrecomputeError, AssertionError) as error:
            self.tally.fault("not_resumed", f"{point.what} ({point.done}): {error}")


def rows_of(cache: Cache) -> Iterator[tuple[bytes, bytes, int, int, int, bytes, int]]:
    names = [f"samples/{name}" for name in ("id", "digest", "status", "size", "mtime_ns")]
    names += [f"{kind}/{cache.layers[0]}" for kind in ("features", "checksums")]
    scales = f"scales/{cache.layers[0]}"  # of 8 bits, behind the codes
    behind = cache.column(scales) if scales in cache.layout.columns else np.zeros((len(cache), 0))
    for identity, digest, *numbers, features, checksum, more in zip(*map(cache.column, names), behind, strict=True):
        yield bytes(identity), digest.tobytes(), *map(int, numbers), features.tobytes() + more.tobytes(), int(checksum)


def record(place: Path, scene: Scene, sync_seconds: float) -> tuple[Recorder, Judge]:
    photos, out = place / "photos", place / "out" / OUT
    run(scene(photos, out), old := place / "before.h5")
    run(photos, whole := place / "whole.h5")
    recorder = Recorder(place / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("precompute.cache.writer.SYNC_SECONDS", sync_seconds)
        recorder.install(patch)
        run(photos, out)
    assert_same(open_cache(out), open_cache(whole))
    assert recorder.first.after(*recorder.events).contents() == read_folder(place / "out")
    return recorder, Judge(photos, recorder, [whole, old], place / "scratch")


def replay(recorder: Recorder, judge: Judge, *, cuts: float = 1.0, resumed_cuts: float = 1.0) -> None:
    """Look at every kill and resume from it; the same for these shares of the power cuts."""
    first, events, chance = recorder.first, recorder.events, random.Random(0)
    for share, points in ((1.0, kills(first, events)), (resumed_cuts, power_cuts(first, events, chance, share=cuts))):
        for point in points:
            judge.look(point)
            if chance.random() < share:
                judge.resume(point)
    sys.stdout.write(f"\n{judge.tally}\n")  # pytest -s shows it
    assert not judge.tally.examples


@pytest.mark.rotates(6)
@pytest.mark.parametrize(
    ("scene", "seconds"),
    [
        (fresh, 0.0),
        (resumed, 20.0),
        pytest.param(renamed, 20.0, marks=pytest.mark.slow),
        pytest.param(synced, 20.0, marks=pytest.mark.slow),
    ],
)
def test_a_run_cut_off_anywhere_goes_on_where_it_was(place: Path, scene: Scene, seconds: float) -> None:
    replay(*record(place, scene, seconds), cuts=0.1, resumed_cuts=0.02)


@pytest.mark.slow
@pytest.mark.daily(3)
@pytest.mark.parametrize("options", [VIEWS, INT8, {**VIEWS, **INT8}], ids=["views", "int8", "views of int8"])
@pytest.mark.parametrize("scene", [fresh, synced])
def test_a_run_with_other_rows_cut_off_anywhere_goes_on_where_it_was(
    place: Path, scene: Scene, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_crash_replay.OPTIONS", options)
    replay(*record(place, scene, 0.0), cuts=0.1, resumed_cuts=0.02)


@pytest.mark.slow
@pytest.mark.daily(3)
@pytest.mark.parametrize("seconds", [20.0, 0.0])
@pytest.mark.parametrize("scene", [fresh, resumed, edited, renamed, synced, taken_back])
def test_every_power_cut_can_be_resumed(place: Path, scene: Scene, seconds: float) -> None:
    # Every state is looked at; of some kinds there are so many that a share is resumed (all of them, once, by hand).
    shares = {taken_back: 0.2, edited: 0.5, renamed: 0.5, synced: 0.5}
    replay(*record(place, scene, seconds), resumed_cuts=shares.get(scene, 1.0))


def test_lost_wrong_and_unreadable_would_be_seen(place: Path) -> None:
    recorder, judge = record(place, fresh, 20.0)
    whole = swapped = (place / "whole.h5").read_bytes()
    judge.look(Point(len(recorder.events), "all gone", {}))
    judge.look(Point(0, "truncated", {OUT: whole[:-5000]}))
    for name, column in open_cache(place / "whole.h5").layout.columns.items():
        if name.startswith(("features", "checksums", "samples/digest", "samples/size", "samples/mtime_ns")):
            first, second, third = (column.offset + place * column.row_bytes for place in range(3))
            swapped = swapped[:first] + swapped[second:third] + swapped[second:]
    judge.look(Point(0, "second photo in the first row", {OUT: swapped}))
    assert (judge.tally.lost, judge.tally.unreadable, judge.tally.wrong) == (14 + 13, 1, 1)  # 13 different pictures
