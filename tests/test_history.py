"""Any history of edits: after each, the cache equals a fresh extraction, and nothing known is computed again."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import make_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_extraction import assert_same

from precompute import extract, open_cache
from precompute.errors import Stopped

pytestmark = pytest.mark.usefixtures("tiny_made_once")
BATCH = 4  # the same for all: results are equal to the last bit for one batch shape
FEWEST = 4

Edit = tuple[str, int, int, bool]
"""What is done; to which two photos (modulo how many there are); whether the cache is brought up to date then."""

KINDS = "add edit unseen touch rename rename_class swap duplicate delete stop stop".split()
number = st.integers(0, 30)
edits = st.tuples(st.sampled_from(KINDS), number, number, st.sampled_from([True, True, False]))


class History:
    """A folder, what is done to it, and the cache `a.h5` that follows it.

    All photos have one size in bytes, so that only name and time tell that one was edited; every change but `unseen`
    gives a time of its own. known: photos whose features exist, in the finished file or by interrupted runs since.
    """

    def __init__(self, place: Path) -> None:
        self.place, self.photos = place, place / "photos"
        self.made = 0
        self.done: Counter[str] = Counter()
        self.known: set[str] = set()
        self.rehash = False
        for name in ("train/anchors/0.bmp", *(f"{split}/{label}/{n}.bmp" for split, label, n in CROSS)):
            self._paint(self.photos / name)
        self.sync()

    def _files(self) -> list[Path]:
        """Of the folder's photos all but one, by which a renamed folder is told from a wrong one."""
        return sorted(path for path in self.photos.rglob("*.bmp") if path.parent.name != "anchors")

    def _digests(self) -> set[str]:
        return {hashlib.sha256(path.read_bytes()).hexdigest() for path in self.photos.rglob("*.bmp")}

    def _touch(self, path: Path) -> None:
        self.made += 1
        os.utime(path, ns=(0, 10**18 + self.made))

    def _paint(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image(self.made, (24, 20)).save(path)
        self._touch(path)

    def _fresh_name(self, number: int) -> Path:
        """In one of the class folders, before or behind the photos that are there."""
        folders = sorted({path.parent for path in self._files()})
        return folders[number % len(folders)] / f"{'abxy'[number % 4]}{self.made}.bmp"

    def apply(self, edit: Edit) -> None:
        kind, one, other, then_sync = edit
        files = self._files()
        first, second = files[one % len(files)], files[other % len(files)]
        getattr(self, kind)(first, second, other)
        self.done[kind] += 1
        if then_sync:
            self.sync()

    def add(self, first: Path, second: Path, number: int) -> None:
        self._paint(self._fresh_name(number))

    def edit(self, first: Path, second: Path, number: int) -> None:
        self._paint(first)

    def unseen(self, first: Path, second: Path, number: int) -> None:
        """Another picture of the same size, and the time as before."""
        before = first.stat()
        self._paint(first)
        os.utime(first, ns=(0, before.st_mtime_ns))
        assert first.stat().st_size == before.st_size
        self.rehash = True

    def touch(self, first: Path, second: Path, number: int) -> None:
        self._touch(first)

    def rename(self, first: Path, second: Path, number: int) -> None:
        target = self._fresh_name(number)
        self.made += 1
        first.rename(target)

    def rename_class(self, first: Path, second: Path, number: int) -> None:
        self.made += 1
        first.parent.rename(first.parent.with_name(f"{'abxy'[number % 4]}{self.made}"))

    def swap(self, first: Path, second: Path, number: int) -> None:
        first.rename(spare := self.place / "spare")
        (second if second != first else spare).rename(first)
        if spare.exists():
            spare.rename(second)

    def duplicate(self, first: Path, second: Path, number: int) -> None:
        copy = shutil.copy(first, self._fresh_name(number))
        self._touch(copy)

    def delete(self, first: Path, second: Path, number: int) -> None:
        if len(self._files()) > FEWEST:
            first.unlink()

    def stop(self, first: Path, second: Path, number: int) -> None:
        """A run that ends after one batch or two, unless it is done by then."""
        computed, stopped = self._run(after=1 + number % 2)
        if not stopped:
            self._check(computed)
            return
        there = open_cache(self.place / "a.h5.partial")
        found = {digest.tobytes().hex() for digest in there.column("samples/digest")[there.ok]}
        assert computed == len(found - self.known), "computed again by a run that was interrupted"
        self.known |= found

    def sync(self) -> None:
        computed, _ = self._run()
        self._check(computed)

    def _run(self, after: int = 0) -> tuple[int, bool]:
        """The number of forward passes, and whether the run was stopped after so many batches."""
        passes = [0]
        calls = []

        def stop() -> int:
            calls.append(1)
            return 15 if len(calls) == after else 0

        try:
            extract(
                self.photos,
                self.place / "a.h5",
                backbone="tiny",
                batch_size=BATCH,
                rehash=self.rehash,
                progress=lambda progress: passes.append(progress.computed),
                stop=stop,
            )
        except Stopped:
            return passes[-1], True
        return passes[-1], False

    def _check(self, computed: int) -> None:
        """The run is finished: what was new has been computed, no more, and the file is as if made today."""
        now = self._digests()
        assert computed == len(now - self.known), "computed again, or not at all"
        self.known, self.rehash = now, False
        assert [path.name for path in self.place.glob("a.h5*")] == ["a.h5"]
        fresh = self.place / "fresh.h5"
        fresh.unlink(missing_ok=True)
        extract(self.photos, fresh, backbone="tiny", batch_size=BATCH)
        assert_same(open_cache(self.place / "a.h5"), open_cache(fresh))


CROSS = [(split, label, number) for split in ("train", "val") for label in ("cats", "dogs") for number in range(3)]


def check(place: Path, history: list[Edit]) -> None:
    replayed = History(place)
    for edit in history:
        replayed.apply(edit)
    replayed.sync()
    sys.stdout.write(f"\n{len(history)} edits: {dict(replayed.done)}\n")  # pytest -s shows it


# The same histories on every machine; `derandomize=False` looks for others.
REPLAY = settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.rotates(2)
@settings(REPLAY, max_examples=5)
@given(history=st.lists(edits, max_size=12))
def test_a_short_history(tmp_path_factory: pytest.TempPathFactory, history: list[Edit]) -> None:
    check(tmp_path_factory.mktemp("short"), history)


@pytest.mark.slow
@pytest.mark.daily(2)
@settings(REPLAY, max_examples=6)
@given(history=st.lists(edits, min_size=50, max_size=50))
def test_a_history_of_fifty_edits(tmp_path_factory: pytest.TempPathFactory, history: list[Edit]) -> None:
    check(tmp_path_factory.mktemp("fifty"), history)


@pytest.mark.rotates(3)
@settings(REPLAY, max_examples=4)
@given(
    batches=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    between=st.lists(st.tuples(st.sampled_from("rename rename_class swap touch delete".split()), number)),
)
def test_two_interruptions_with_renames_between(
    tmp_path_factory: pytest.TempPathFactory, batches: tuple[int, int], between: list[tuple[str, int]]
) -> None:
    """Of a run that has much to do."""
    new = [("add", number, number, False) for number in range(16)]
    renamed = [(kind, number, number + 1, False) for kind, number in between]
    first, second = (("stop", 0, number, False) for number in batches)
    check(tmp_path_factory.mktemp("twice"), [*new, first, *renamed, second, *renamed[::-1]])
