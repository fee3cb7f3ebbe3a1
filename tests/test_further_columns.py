"""Further columns of a table go into the file, follow their rows, and cost no forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command, make_image
from listings import TABLES, needs_pyarrow, rows_of_folder, write_listing
from test_extraction import assert_same

from precompute import extract, open_cache, repair, verify
from precompute.errors import SourceError, Stopped, UsageError
from precompute.inputs.images.formats import IMAGES
from precompute.sources import further
from precompute.sources.base import Reading
from precompute.sources.registry import open_source

pytestmark = pytest.mark.usefixtures("tiny_made_once")


def columns_of(path: Path) -> dict[str, list[Any]]:
    cache = open_cache(path)
    return {name: cache.column(f"columns/{name}").tolist() for name in cache.columns}


def with_columns(photos: Path, form: str, **columns: Any) -> Path:
    """A table of all photos with further columns, each of which is a function of the row's number."""
    rows = rows_of_folder(photos)
    return write_listing(
        photos / f"all.{form}", [{**row, **{name: f(n) for name, f in columns.items()}} for n, row in enumerate(rows)]
    )


@pytest.mark.parametrize("form", TABLES)
def test_columns_follow_their_rows(photos: Path, tmp_path: Path, form: str) -> None:
    listing = with_columns(photos, form, patient="{:03}".format, note=lambda n: "ä, b" * (n % 3), unused=str)
    extract(listing, tmp_path / "a.h5", backbone="tiny", keep=["patient", "note"])
    cache = open_cache(tmp_path / "a.h5")
    assert cache.columns == ("note", "patient")
    place = {row["path"]: number for number, row in enumerate(rows_of_folder(photos))}
    numbers = [place[name] for name in cache.ids]
    assert cache.column("columns/patient").tolist() == [f"{number:03}".encode() for number in numbers]
    assert cache.column("columns/note").tolist() == [("ä, b" * (number % 3)).encode() for number in numbers]
    assert verify(cache).whole
    plain = extract(listing, tmp_path / "plain.h5", backbone="tiny")
    assert plain.key == cache.key
    assert_same(cache, open_cache(tmp_path / "plain.h5"))


@pytest.mark.rotates(3)
@pytest.mark.parametrize("form", TABLES)
def test_other_columns_or_values_cost_no_forward_pass(photos: Path, tmp_path: Path, form: str) -> None:
    listing = with_columns(photos, form, group="g{}".format, other=str)
    for keep, computed in (([], 24), (["group"], 0), (["group", "other"], 0), (["other"], 0)):
        assert extract(listing, tmp_path / "a.h5", backbone="tiny", keep=keep).computed == computed
        assert set(open_cache(tmp_path / "a.h5").columns) == set(keep)
        before = (tmp_path / "a.h5").stat().st_ino
        extract(listing, tmp_path / "a.h5", backbone="tiny", keep=keep)
        assert (tmp_path / "a.h5").stat().st_ino == before, "nothing had changed"
    with_columns(photos, form, other=lambda n: str(2 * n))
    assert extract(listing, tmp_path / "a.h5", backbone="tiny", keep=["other"]).computed == 0
    assert sorted(map(int, columns_of(tmp_path / "a.h5")["other"])) == list(range(0, 48, 2))


def test_a_stopped_run_goes_on_with_its_columns(photos: Path, tmp_path: Path) -> None:
    listing = with_columns(photos, "csv", age=str)
    out = tmp_path / "a.h5"
    with pytest.raises(Stopped):
        extract(listing, out, backbone="tiny", keep=["age"], batch_size=4, stop=lambda: 15)
    assert columns_of(tmp_path / "a.h5.partial")["age"]
    made = extract(listing, out, backbone="tiny", keep=["age"], batch_size=4)
    assert 0 < made.computed < 24
    extract(listing, tmp_path / "fresh.h5", backbone="tiny", keep=["age"], batch_size=4)
    assert_same(open_cache(out), open_cache(tmp_path / "fresh.h5"))
    assert columns_of(out) == columns_of(tmp_path / "fresh.h5")


@pytest.mark.parametrize("source", ["folder", "table"])
def test_a_repaired_file_has_its_columns(photos: Path, tmp_path: Path, source: str) -> None:
    listing = with_columns(photos, "csv", age=str)
    extract(listing, tmp_path / "a.h5", backbone="tiny", keep=["age"], batch_size=4)
    before = columns_of(tmp_path / "a.h5")
    column = open_cache(tmp_path / "a.h5").layout.columns["samples/digest"]
    with (tmp_path / "a.h5").open("r+b") as file:
        file.seek(column.offset)
        file.write(b"\0" * column.row_bytes)
    assert repair(tmp_path / "a.h5", photos if source == "folder" else listing).computed == 1
    assert columns_of(tmp_path / "a.h5") == before


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "-20", "0"], np.array([1, -20, 0], dtype=np.int64)),
        (["1", "", "2.5"], np.array([1, np.nan, 2.5])),
        (["1e-3", "nan", "-7"], np.array([0.001, np.nan, -7])),
        (["007", "1", "2"], np.array([b"007", b"1", b"2"])),
        (["1", "2", "x"], np.array([b"1", b"2", b"x"])),
        (["", "", ""], np.array([b"", b"", b""])),
        (["9223372036854775808", "1", "2"], np.array([b"9223372036854775808", b"1", b"2"])),
        (["1_0", "2", "3"], np.array([b"1_0", b"2", b"3"])),
        (["inf", "2", "3"], np.array([b"inf", b"2", b"3"])),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_column_of_text_holds(tmp_path: Path, values: list[str], expected: np.ndarray) -> None:
    make_image(1).save(tmp_path / "a.png")
    rows = [{"path": "a.png", "id": str(number), "value": value} for number, value in enumerate(values)]
    listing = write_listing(tmp_path / "all.csv", rows)
    extract(listing, tmp_path / "a.h5", backbone="tiny", keep=["value"])
    found = open_cache(tmp_path / "a.h5").column("columns/value")
    assert found.dtype.kind == expected.dtype.kind
    np.testing.assert_array_equal(found, expected)


@needs_pyarrow
def test_types_of_parquet_are_kept(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    make_image(1).save(tmp_path / "a.png")
    table = {
        "path": ["a.png"] * 3,
        "id": ["a", "b", "c"],
        "text": ["1", "2", "3"],
        "whole": pyarrow.array([3, 2, 1], pyarrow.int8()),
        "gaps": pyarrow.array([3, None, 1]),
        "real": [0.1, 1e20, None],
        "flag": [True, False, True],
        "group": pyarrow.array(["x", "y", "x"]).dictionary_encode(),
    }
    parquet.write_table(pyarrow.table(table), tmp_path / "all.parquet")
    keep = ["text", "whole", "gaps", "real", "flag", "group"]
    extract(tmp_path / "all.parquet", tmp_path / "a.h5", backbone="tiny", keep=keep)
    cache = open_cache(tmp_path / "a.h5")
    found = {name: cache.column(f"columns/{name}") for name in keep}
    assert "".join(found[name].dtype.kind for name in keep) == "SiffiS"
    assert found["real"][:2].tolist() == [0.1, 1e20]
    assert np.isnan(found["gaps"][1]) and np.isnan(found["real"][2])
    assert found["flag"].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("rows", "keep", "message"),
    [
        ([{"path": "a.png"}], ["age"], "no column 'age'; its columns are: path"),
        ([{"path": "a.png", "a/b": "1"}], ["a/b"], "which is not allowed in a feature file"),
        ([{"path": "a.png", "x": "y" * 65 * 1024}], ["x"], r"(a value of 'x' of|has a string of) 66,560 bytes"),
        ([{"path": "a.png", "x": "y\0"}], ["x"], "NUL"),
    ],
    ids=["missing", "name", "65 KB", "nul"],
)
@pytest.mark.parametrize("form", TABLES)
def test_a_column_that_cannot_be_kept_is_refused(
    tmp_path: Path, form: str, rows: list[dict[str, str]], keep: list[str], message: str
) -> None:
    make_image(1).save(tmp_path / "a.png")
    listing = write_listing(tmp_path / f"all.{form}", rows)
    with pytest.raises(SourceError, match=message) as caught:
        open_source(listing, IMAGES, reading=Reading(keep=tuple(keep)))
    assert caught.value.hint


def test_one_long_value_does_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(further, "PADDED_BYTES", 2**20)
    make_image(1).save(tmp_path / "a.png")
    rows = [{"path": "a.png", "id": str(number), "x": "y" * (4000 if number == 7 else 1)} for number in range(1000)]
    with pytest.raises(SourceError, match="1,000 values of 'x' so far, the longest of 4,000 bytes"):
        open_source(write_listing(tmp_path / "all.csv", rows), IMAGES, reading=Reading(keep=("x",)))


def test_the_command_keeps_columns_and_says_how(photos: Path, tmp_path: Path, precompute: Command) -> None:
    with_columns(photos, "csv", age=str, patient=str)
    keep = ["--keep-column", "age", "--keep-column", "patient"]
    done = precompute("extract", "photos/all.csv", *keep, "-b", "tiny", "-o", "a.h5")
    assert done.returncode == 0, done.stderr
    told = " ".join(precompute("info", "a.h5").stdout.split())
    assert "columns age, patient" in told
    assert "--keep-column age --keep-column patient" in told
    assert precompute("plan", "photos/all.csv", *keep, "-b", "tiny").returncode == 0
    with pytest.raises(UsageError, match="--keep-column cannot be used with a folder"):
        extract(photos, tmp_path / "b.h5", backbone="tiny", keep=["age"])
