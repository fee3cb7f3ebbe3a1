"""Features that others made: into a cache, through heads and out again; what is wrong with a file is said."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command, make_photos

from precompute import (
    Cache,
    export_features,
    extract,
    import_features,
    load_head,
    open_cache,
    predict,
    train_head,
    verify,
)
from precompute.errors import CacheError, HeadMismatchError, PrecomputeError, SourceError, UsageError

ROWS = 60


def arrays(seed: int = 0, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Three classes, most of them labelled, shuffled ids, a number and two numbers for each row."""
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 3, ROWS)
    features = (generator.normal(size=(ROWS, 12)) + 4 * np.eye(3, 12)[label]).astype(dtype)
    names = np.array(["ants", "bees", "wäsps"])[label]
    names[-1] = ""
    return {
        "features": features,
        "id": np.array([f"photo {number:03d}" for number in generator.permutation(ROWS)]),
        "label": names,
        "split": np.array(["train", "train", "val", "test"])[np.arange(ROWS) % 4],
        "age": generator.integers(0, 99, ROWS),
        "box": generator.normal(size=(ROWS, 2)),
        "site": np.array(["north", "süd"])[np.arange(ROWS) % 2],
    }


def assert_holds(cache: Cache, given: dict[str, np.ndarray]) -> None:
    order = np.argsort([os.fsencode(str(one)) for one in given["id"]])
    assert cache.ids == given["id"][order].tolist()
    assert np.array_equal(cache.features(), given["features"][order])
    assert [cache.classes[label] if label >= 0 else "" for label in cache.labels] == given["label"][order].tolist()
    assert cache.split.tolist() == given["split"][order].tolist()
    assert np.array_equal(cache.column("columns/age"), given["age"][order])
    assert np.array_equal(cache.column("columns/box"), given["box"][order])
    assert [os.fsdecode(one) for one in cache.column("columns/site").tolist()] == given["site"][order].tolist()
    assert len(verify(cache).damaged) == 0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ">f4"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_become_a_cache(save: Any, dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precompute.sources.array_files.BLOCK_BYTES", 7 * 12 * 2)  # several blocks
    save(tmp_path / "a.npz", **arrays(dtype=dtype))
    seen: list[tuple[int, int]] = []
    done = import_features(tmp_path / "a.npz", tmp_path / "a.h5", progress=lambda *given: seen.append(given))
    assert (done.rows, done.shape, done.not_finite, done.narrowed) == (ROWS, (12,), 0, False)
    assert done.columns == ("age", "box", "site")
    assert seen == sorted(seen)
    assert seen[-1] == (2 * ROWS, 2 * ROWS)
    assert_holds(open_cache(tmp_path / "a.h5"), arrays(dtype=dtype))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "a.npz"]


def test_what_was_exported_is_imported_again(tmp_path: Path) -> None:
    extract(make_photos(tmp_path / "photos"), tmp_path / "a.h5", backbone="tiny")
    kinds = [".npz", ".parquet"] if find_spec("pyarrow") else [".npz"]
    before = open_cache(tmp_path / "a.h5")
    for kind in kinds:
        export_features(tmp_path / "a.h5", tmp_path / f"a{kind}")
        import_features(tmp_path / f"a{kind}", tmp_path / f"b{kind}.h5")
        after = open_cache(tmp_path / f"b{kind}.h5")
        assert np.array_equal(before.features(), after.features())
        assert (before.ids, before.classes) == (after.ids, after.classes)
        assert np.array_equal(before.labels, after.labels)
        assert np.array_equal(before.split, after.split)


def test_parquet_with_lists_and_empty_labels(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
    from pyarrow import parquet

    given = arrays()
    columns = {name: values.tolist() for name, values in given.items()}
    columns["label"] = [name or None for name in columns["label"]]
    table = pa.table({**columns, "features": pa.array(columns["features"], pa.list_(pa.float32()))})
    parquet.write_table(table.set_column(2, "label", table["label"].dictionary_encode()), tmp_path / "a.parquet")
    import_features(tmp_path / "a.parquet", tmp_path / "a.h5")
    assert_holds(open_cache(tmp_path / "a.h5"), given)
    ragged = pa.table({"features": pa.array([[1.0, 2.0], [3.0]])})
    parquet.write_table(ragged, tmp_path / "ragged.parquet")
    with pytest.raises(SourceError, match="lists of 2 and of 1 numbers"):
        import_features(tmp_path / "ragged.parquet", tmp_path / "b.h5")
    (tmp_path / "broken.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(SourceError, match="cannot be read"):
        import_features(tmp_path / "broken.parquet", tmp_path / "b.h5")
    assert not (tmp_path / "b.h5").exists()


def test_heads_train_on_them_and_predict_where_the_name_is_the_same(tmp_path: Path) -> None:
    for number, name in enumerate(("model 1", "model 1", None, "model 2")):
        np.savez(tmp_path / f"{number}.npz", **arrays(number))
        import_features(tmp_path / f"{number}.npz", tmp_path / f"{number}.h5", name=name)
    train_head(tmp_path / "0.h5", tmp_path / "head", C=1.0)
    assert load_head(tmp_path / "head").head.classes_.tolist() == ["ants", "bees", "wäsps"]
    assert (predict(tmp_path / "head", tmp_path / "1.h5").accuracy or 0) > 0.9
    for other in ("2.h5", "3.h5"):
        with pytest.raises(HeadMismatchError, match="other features"):
            predict(tmp_path / "head", tmp_path / other)
    with pytest.raises(HeadMismatchError, match="imported features"):
        predict(tmp_path / "head", make_photos(tmp_path / "photos"))


def test_features_alone_get_numbers(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(12, 2, 3))
    np.save(tmp_path / "a.npy", features)
    done = import_features(tmp_path / "a.npy", tmp_path / "a.h5")
    cache = open_cache(tmp_path / "a.h5")
    assert done.narrowed
    assert cache.ids[:2] == ["row/00", "row/01"]
    assert np.array_equal(cache.features(), features.astype(np.float32))
    assert cache.classes == ()


def test_whole_numbers_are_labels_and_rows_that_are_not_finite_count_as_failed(tmp_path: Path) -> None:
    features = np.ones((4, 3), np.float32)
    features[1, 2], features[3, 0] = np.nan, np.inf
    np.savez(tmp_path / "a.npz", features=features, label=np.array([7, 0, 7, 12]))
    assert import_features(tmp_path / "a.npz", tmp_path / "a.h5").not_finite == 2
    cache = open_cache(tmp_path / "a.h5")
    assert cache.classes == ("0", "12", "7")
    assert cache.ok.tolist() == [True, False, True, False]
    assert len(verify(cache).damaged) == 0


def one(**changed: Any) -> dict[str, Any]:
    return {**{name: values for name, values in arrays().items() if name in ("features", "id", "label")}, **changed}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no features": ({"x": np.ones(3)}, "has no array `features`; it has 'x'"),
    "one axis": ({"features": np.ones(3, np.float32)}, r"the shape \(3,\)"),
    "no rows": ({"features": np.ones((0, 3), np.float32)}, r"the shape \(0, 3\)"),
    "whole numbers": ({"features": np.ones((3, 3), np.int32)}, "of the type int32"),
    "complex": ({"features": np.ones((3, 3), np.complex64)}, "of the type complex64"),
    "Fortran": ({"features": np.asfortranarray(np.ones((3, 4), np.float32))}, "in Fortran's order"),
    "another length": (one(label=np.array(["a"])), r"60 rows of features, and 'label' has the shape \(1,\)"),
    "an id twice": (one(id=np.array(["a", "b"] * (ROWS // 2))), "the id 'a' in row 0 and in row 2"),
    "a number as id": (one(id=np.arange(ROWS) / 2), "has 'id' of the type float64"),
    "a split of its own": (one(split=np.array(["mine"] * ROWS)), "has the split 'mine'"),
    "long id": (one(id=np.array([f"{n}{'x' * 65_540}" for n in range(ROWS)])), "longer than 65,536 bytes"),
    "NUL": (one(label=np.array([["a", "b\0c"][n % 2] for n in range(ROWS)])), "has a NUL in it"),
    "objects": (one(label=np.array([None] * ROWS, dtype=object)), "Python objects, which are not loaded"),
    "pairs": (one(more=np.zeros(ROWS, [("a", "f4"), ("b", "i4")])), "has 'more' of the type"),
    "times": (one(more=np.zeros(ROWS, "M8[s]")), "has 'more' of the type"),
    "three axes": (one(more=np.zeros((ROWS, 2, 2))), "has 'more' of the type"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_and_nothing_is_written(case: str, tmp_path: Path) -> None:
    given, message = WRONG[case]
    np.savez(tmp_path / "a.npz", **given)
    with pytest.raises(SourceError, match=message) as caught:
        import_features(tmp_path / "a.npz", tmp_path / "a.h5")
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


class Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def hostile(place: Path) -> dict[str, bytes]:
    """Files that claim more than they hold, that hold code, that are truncated or no files of arrays."""

    def npy(shape: tuple[int, ...], data: bytes = b"", descr: str = "<f4") -> bytes:
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        return file.getvalue() + data

    def zipped(content: bytes, name: str = "features.npy") -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)
        return file.getvalue()

    good = io.BytesIO()
    np.savez(good, **arrays())
    objects = io.BytesIO()
    np.save(objects, np.array([Touch(str(place / "touched"))], dtype=object), allow_pickle=True)
    return {
        "huge.npy": npy((10**12, 1000)),
        "huge.npz": zipped(npy((10**12, 1000))),
        "more rows than bytes.npz": zipped(npy((ROWS, 12), bytes(100))),
        "negative.npy": npy((-4, -5), bytes(80)),
        "objects.npy": objects.getvalue(),
        "objects.npz": zipped(objects.getvalue()),
        "pickle.npy": pickle.dumps(Touch(str(place / "touched"))),
        "cut.npz": good.getvalue()[:-30],
        "flipped.npz": good.getvalue()[:300] + bytes(50) + good.getvalue()[350:],
        "no zip.npz": b"PK\3\4" + bytes(100),
        "empty.npy": b"",
        "header.npy": b"\x93NUMPY\1\0" + struct.pack("<H", 60_000) + b"{" * 60_000,
        "text.npz": b"features\n1,2\n",
    }


def test_hostile_files_are_refused_and_run_nothing(tmp_path: Path) -> None:
    for name, content in hostile(tmp_path).items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PrecomputeError) as caught:
            import_features(tmp_path / name, tmp_path / "a.h5")
        assert name in str(caught.value), name
    assert not (tmp_path / "touched").exists()
    assert not (tmp_path / "a.h5").exists()


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays())
    np.savez(tmp_path / "b.npz", **arrays(1))
    import_features(tmp_path / "a.npz", tmp_path / "a.h5")
    before = (tmp_path / "a.h5").read_bytes()
    with pytest.raises(CacheError, match="exists"):
        import_features(tmp_path / "b.npz", tmp_path / "a.h5")
    with pytest.raises(PrecomputeError):
        extract(make_photos(tmp_path / "photos"), tmp_path / "a.h5", backbone="tiny")
    assert (tmp_path / "a.h5").read_bytes() == before
    import_features(tmp_path / "b.npz", tmp_path / "a.h5", overwrite=True)
    assert_holds(open_cache(tmp_path / "a.h5"), arrays(1))
    with pytest.raises(UsageError, match="same file"):
        import_features(tmp_path / "b.npz", tmp_path / "b.npz", overwrite=True)
    with pytest.raises(SourceError, match="does not exist"):
        import_features(tmp_path / "c.npz", tmp_path / "c.h5")
    with pytest.raises(SourceError, match=r"none of \.npz, \.npy, \.parquet"):
        import_features(tmp_path / "a.h5", tmp_path / "c.h5")


@pytest.mark.rotates(3)
def test_the_command(tmp_path: Path, precompute: Command) -> None:
    np.savez(tmp_path / "a.npz", **arrays(dtype=np.float64))
    done = precompute("import", "a.npz", "-o", "a.h5", "--name", "somebody's", "--json")
    assert json.loads(done.stdout)["classes"] == ["ants", "bees", "wäsps"]
    done = precompute("import", "a.npz", "-o", "b.h5")
    assert "precompute train-head b.h5" in done.stdout + done.stderr
    assert "float64 became float32" in done.stderr
    assert precompute("info", "a.h5").returncode == 0
    assert precompute("verify", "a.h5").returncode == 0
    assert precompute("train-head", "a.h5", "-o", "head").returncode == 0
    done = precompute("verify", "a.h5", "--source", ".", "--repair")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
