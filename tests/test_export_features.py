"""`precompute export`: features in the files of other programs, read back by those programs' own readers."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stranger
from conftest import Command, make_image, make_photos

from precompute import export_features, extract, open_cache
from precompute.errors import CacheError, UsageError

NAMES = ("plain.h5", "stranger.h5", "wide.h5")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plain.h5: 24 photos and a broken one, a name with a comma, a quote and a line's end, one that is no UTF-8, one
    that no folder labels, float16; stranger.h5: a further column; wide.h5: maps of several axes, float32."""
    folder = tmp_path_factory.mktemp("export")
    photos = make_photos(folder / "photos")
    make_image(100).save(photos / "train" / "cats" / 'a, "b"\nc.png')
    shutil.copy(photos / "train" / "cats" / 'a, "b"\nc.png', os.fsencode(photos / "val" / "dogs") + b"/\xff.png")
    make_image(101).save(photos / "train" / "alone.png")
    (photos / "val" / "cats" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    extract(photos, folder / "plain.h5", backbone="tiny", dtype="float16")
    stranger.write(str(folder / "stranger.h5"))
    extract(
        photos, folder / "wide.h5", backbone="resnet18", weights="random", layer="layer4",
        transform={"resize": 64, "crop": 64}, precision="fp32", engine="torch",
    )  # fmt: skip
    return folder


def expected(path: Path) -> dict[str, Any]:
    cache = open_cache(path)
    rows = np.flatnonzero(cache.ok)
    names = [*cache.classes, ""]
    return {
        "id": [cache.ids[row] for row in rows],
        "label": [names[cache.labels[row]] for row in rows],
        "split": cache.split[rows].tolist(),
        **{name: cache.column(f"columns/{name}")[rows].tolist() for name in cache.columns},
        "features": np.array(cache.features()[rows]),
    }


@pytest.mark.rotates(3)
@pytest.mark.parametrize("name", NAMES)
def test_npz_is_read_by_numpy_alone(name: str, place: Path, tmp_path: Path) -> None:
    done = export_features(place / name, tmp_path / "out.npz")
    wanted = expected(place / name)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert set(found.files) == set(wanted)
        assert found["features"].dtype == wanted["features"].dtype
        assert np.array_equal(found["features"], wanted.pop("features"))
        for column, values in wanted.items():
            assert found[column].tolist() == values
    assert done.rows + done.left_out == len(open_cache(place / name))
    assert done.columns == tuple(wanted)


@pytest.mark.parametrize("name", NAMES)
def test_csv_gives_the_same_numbers_back(name: str, place: Path, tmp_path: Path) -> None:
    export_features(place / name, tmp_path / "out.csv")
    wanted = expected(place / name)
    features = wanted.pop("features")
    with open(tmp_path / "out.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        head, *rows = csv.reader(file)
    columns = dict(zip(head, zip(*rows, strict=True), strict=True))
    width = features[0].size
    assert head == [*wanted, *(f"f{k}" for k in range(width))]
    numbers = np.array([columns[f"f{k}"] for k in range(width)]).T.astype(features.dtype)
    assert np.array_equal(numbers, features.reshape(len(features), width))
    for column, values in wanted.items():
        assert list(columns[column]) == [str(value) for value in values]


@pytest.mark.parametrize("name", NAMES)
def test_parquet_is_read_by_pyarrow(name: str, place: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    export_features(place / name, tmp_path / "out.parquet")
    wanted = expected(place / name)
    features = wanted.pop("features")
    found = parquet.read_table(tmp_path / "out.parquet")
    assert found.column_names == [*wanted, "features"]
    assert np.array_equal(np.array(found["features"].to_pylist(), features.dtype), features.reshape(len(features), -1))
    for column, values in wanted.items():
        readable = [
            value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value for value in values
        ]
        assert found[column].to_pylist() == readable


def test_many_blocks_are_one_file(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precompute.export.BLOCK_BYTES", 1)
    seen: list[tuple[int, int]] = []
    export_features(place / "stranger.h5", tmp_path / "a.npz", progress=lambda *given: seen.append(given))
    assert seen == [(row, 24) for row in range(1, 25)]
    assert np.array_equal(np.load(tmp_path / "a.npz")["features"], open_cache(place / "stranger.h5").features())


def test_damaged_rows_write_nothing(place: Path, tmp_path: Path) -> None:
    stranger.write(str(tmp_path / "damaged.h5"), "checksum")
    with pytest.raises(CacheError, match="do not match their checksums"):
        export_features(tmp_path / "damaged.h5", tmp_path / "out.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.h5"]


def test_nothing_is_replaced_unasked(place: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("mine")
    with pytest.raises(CacheError, match="exists"):
        export_features(place / "stranger.h5", tmp_path / "mine.csv")
    assert (tmp_path / "mine.csv").read_text() == "mine"
    export_features(place / "stranger.h5", tmp_path / "mine.csv", overwrite=True)
    assert (tmp_path / "mine.csv").read_text().startswith("id,label,split,site,f0,")
    with pytest.raises(UsageError, match="is not clear"):
        export_features(place / "stranger.h5", tmp_path / "out.txt")
    link = tmp_path / "link.npz"
    link.symlink_to(place / "stranger.h5")
    with pytest.raises(UsageError, match="same file"):
        export_features(place / "stranger.h5", link, overwrite=True)


def test_text_too_long_for_npz_is_refused(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precompute.export.TEXT_BYTES", 100)
    with pytest.raises(CacheError, match="The column 'id' has 24 texts of up to 10 characters, .* 960 bytes"):
        export_features(place / "stranger.h5", tmp_path / "out.npz")
    assert not any(tmp_path.iterdir())


def test_the_command_says_what_it_wrote(place: Path, tmp_path: Path, precompute: Command) -> None:
    done = precompute("export", place / "plain.h5", "-o", "plain.npz", "--json")
    found = json.loads(done.stdout)
    assert (found["rows"], found["left_out"], found["columns"]) == (27, 1, ["id", "label", "split"])
    done = precompute("export", place / "plain.h5", "-o", "plain.npz")
    assert done.returncode == 1
    assert "Add --overwrite" in done.stderr or "--overwrite" in done.stderr
