"""Tables of labels that are joined by id or by path."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from conftest import make_photos

from precompute import extract, open_cache, train_head
from precompute.cache import Cache
from precompute.errors import UsageError
from precompute.training.relabelling import Relabelling


def write(path: Path, key: str, rows: list[tuple[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([(key, "label"), *rows])
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos; a.h5 of the folder, t.h5 of a table in sub/ with photos as --root."""
    place = tmp_path_factory.mktemp("tables")
    make_photos(place / "photos")
    (place / "link").symlink_to("photos")
    extract(place / "photos", place / "a.h5", backbone="tiny")
    ids = open_cache(place / "a.h5").ids
    write(place / "sub" / "t.csv", "path", [(name, "x") for name in ids])
    extract(place / "sub" / "t.csv", place / "t.h5", backbone="tiny", root=str(place / "photos"))
    return place


def numbers_of(cache: Cache, table: Path) -> tuple[list[float], str]:
    _, target, notes = Relabelling.of(table=table, task="number").apply(cache)
    return target.values.tolist(), notes[0]


@pytest.mark.rotates(3)
@pytest.mark.parametrize("name", ["a.h5", "t.h5"])
@pytest.mark.parametrize(
    ("where", "written"),
    [
        ("labels.csv", "{}"),
        ("labels.csv", "./{}"),
        ("labels.csv", "photos/{}"),
        ("photos/labels.csv", "{}"),
        ("photos/train/labels.csv", "../{}"),
        ("elsewhere/labels.csv", "../photos/{}"),
        ("elsewhere/labels.csv", "{root}/photos/{}"),
        ("elsewhere/labels.csv", "{root}/link/{}"),
        ("elsewhere/labels.csv", "../link/{}"),
    ],
)
def test_paths_are_ids_or_lead_to_the_files(name: str, where: str, written: str, place: Path) -> None:
    cache = open_cache(place / name)
    rows = [(written.format(one, root=place), str(number)) for number, one in enumerate(cache.ids)]
    table = write(place / where, "path", [*rows, ("no/such.jpg", "7")])
    try:
        values, note = numbers_of(cache, table)
    finally:
        table.unlink()
    assert values == list(range(len(cache)))
    assert note == f"24 of 24 samples are in {table.name}, which has 25 rows, by path"


def test_a_path_that_is_no_sample_s_is_said(place: Path) -> None:
    cache = open_cache(place / "a.h5")
    table = write(place / "other" / "labels.csv", "path", [("somewhere/else.jpg", "1")])
    with pytest.raises(UsageError, match=r"No path in .*labels\.csv \('somewhere/else.jpg', \.\.\.\) is one of"):
        numbers_of(cache, table)
    twice = write(place / "twice.csv", "path", [("./train/cats/0.jpg", "1"), ("train/cats/0.jpg", "2")])
    with pytest.raises(UsageError, match=r"gives 'train/cats/0.jpg' two values, '1' and '2'"):
        numbers_of(cache, twice)


def test_ids_come_before_paths_and_empty_cells_have_no_label(place: Path) -> None:
    cache = open_cache(place / "a.h5")
    with open(place / "both.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [
                ("path", "id", "label"),
                *(("x", name, "" if row < 4 else f"{row}.5") for row, name in enumerate(cache.ids)),
            ]
        )
    values, note = numbers_of(cache, place / "both.csv")
    assert np.isnan(values[:4]).all()
    assert values[4:] == [row + 0.5 for row in range(4, 24)]
    assert "20 of 24 samples are in" in note
    assert "by path" not in note
    found = train_head(place / "a.h5", labels=place / "both.csv", expect=20, alpha=1.0)
    assert found.task == "number"
    assert sum(found.rows.values()) == 20
    assert any("4 samples have no number and are left out" in line for line in found.notes)
