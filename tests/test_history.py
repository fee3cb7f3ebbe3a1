"""Any history of edits: after each, the cache equals a fresh extraction, and nothing known is computed again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
from pathlib import Path

import pytest
from conftest import make_image, make_photos
from test_extraction import assert_same

from precompute import extract, open_cache
from precompute.errors import Stopped

BATCH = 4  # the same for all: results are equal to the last bit for one batch shape


def digests(folder: Path) -> set[str]:
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


class Editor:
    """Makes one random edit of a folder at a time; the same seed makes the same history."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.chance = random.Random(seed)
        self.made = 1000 * (seed + 1)

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def fresh_name(self) -> Path:
        self.made += 1
        split, label = self.chance.choice(["train", "val"]), self.chance.choice(["cats", "dogs", "owls"])
        place = self.folder / split / label
        place.mkdir(parents=True, exist_ok=True)
        return place / f"{self.made}.png"

    def edit(self) -> str:
        kind = self.chance.choice(["add", "edit", "rename", "swap", "duplicate", "delete"])
        first, second = self.chance.sample(self.files(), 2)
        if kind == "add":
            path = self.fresh_name()
            make_image(self.made).save(path)
        elif kind == "edit":
            self.made += 1
            make_image(self.made).save(first)
        elif kind == "rename":
            first.rename(self.fresh_name())
        elif kind == "swap":
            spare = self.folder / "spare"
            first.rename(spare)
            second.rename(first)
            spare.rename(second)
        elif kind == "duplicate":
            shutil.copy(first, self.fresh_name())
        elif len(self.files()) > 4:
            first.unlink()
        return kind


def computed_by(folder: Path, out: str, *, stopped: bool = False) -> int:
    """Bring `out` up to date, or stop after the first batch; the number of forward passes."""
    passes = [0]
    with contextlib.suppress(Stopped):
        extract(
            folder / "photos",
            folder / out,
            backbone="tiny",
            batch_size=BATCH,
            progress=lambda progress: passes.append(progress.computed),
            stop=lambda: 15 if stopped else 0,
        )
    return passes[-1]


def check(folder: Path, edits: int, seed: int) -> None:
    make_photos(folder / "photos", per_class=3)
    editor = Editor(folder / "photos", seed)
    computed_by(folder, "a.h5")
    known = digests(folder / "photos")
    for number in range(edits):
        kind = editor.edit()
        if editor.chance.random() < 0.3:  # several edits at once, and a run that does not get far
            kinds = [kind, *(editor.edit() for _ in range(6))]
            kind = " ".join(kinds)
            done = computed_by(folder, "a.h5", stopped=True)
        else:
            done = 0
        now = digests(folder / "photos")
        done += computed_by(folder, "a.h5")
        assert done == len(now - known), (number, kind)
        known = now
        (folder / "fresh.h5").unlink(missing_ok=True)
        computed_by(folder, "fresh.h5")
        assert_same(open_cache(folder / "a.h5"), open_cache(folder / "fresh.h5"))
        assert not os.path.exists(folder / "a.h5.partial")


def test_a_short_history(tmp_path: Path) -> None:
    check(tmp_path, edits=12, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_a_history_of_fifty_edits(tmp_path: Path, seed: int) -> None:
    check(tmp_path, edits=50, seed=seed)
