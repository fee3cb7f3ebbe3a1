"""Labels, splits and groups from further columns or a joined table: features stay, only the training differs."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import Command

from precompute import Training, compare, few_shot, import_features, load_head, open_cache, predict, train_head
from precompute.cache import RelabelledCache
from precompute.errors import HeadMismatchError, UsageError

ROWS = 120


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """own.h5: labels of its own that mean little, and columns with kind, age, part, patient and others.

    plain.h5: the same features, with `kind` as labels and `part` as splits.
    """
    generator = np.random.default_rng(0)
    kind = generator.integers(0, 3, ROWS)
    features = (generator.normal(size=(ROWS, 10)) + 2 * np.eye(3, 10)[kind]).astype(np.float32)
    names, part = (
        np.array(["ants", "bees", "wäsps"])[kind],
        np.array(["train", "train", "val", ""])[np.arange(ROWS) % 4],
    )
    ids = np.array([f"p{row:03d}" for row in range(ROWS)])
    columns = {
        "kind": names,
        "number": kind,
        "part": part,
        "odd": np.array(["dev"] * ROWS),
        "patient": np.array([f"patient{row // 4}" for row in range(ROWS)]),
        "weight": generator.normal(size=ROWS),
        "box": generator.integers(0, 9, (ROWS, 2)),
    }
    np.savez(
        tmp_path / "own.npz", features=features, id=ids, label=np.array(["x", "y"])[np.arange(ROWS) % 2], **columns
    )
    np.savez(tmp_path / "plain.npz", features=features, id=ids, label=names, split=part)
    for name in ("own", "plain"):
        import_features(tmp_path / f"{name}.npz", tmp_path / f"{name}.h5", name="made")
    with open(tmp_path / "labels.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([("id", "label"), *zip(ids[:100], names[:100], strict=True), ("stranger", "ants")])
    return tmp_path


def same(one: Training, other: Training) -> None:
    assert one.rows == other.rows
    assert one.head.classes_.tolist() == other.head.classes_.tolist()
    assert np.array_equal(one.head.coef_, other.head.coef_)
    assert {name: scores.accuracy for name, scores in one.scores.items()} == {
        name: scores.accuracy for name, scores in other.scores.items()
    }


def test_columns_give_the_head_that_labels_of_the_file_would(place: Path) -> None:
    before = (place / "own.h5").read_bytes()
    wanted = train_head(place / "plain.h5", C=1.0)
    found = train_head(place / "own.h5", C=1.0, label_column="kind", split_column="part")
    same(found, wanted)
    assert any("labels from column kind: 3 classes" in note for note in found.notes)
    assert any("splits from column part" in note for note in found.notes)
    by_number = train_head(place / "own.h5", C=1.0, label_column="number", split_column="part")
    assert by_number.head.classes_.tolist() == ["0", "1", "2"]
    assert np.array_equal(by_number.head.coef_, wanted.head.coef_)
    assert (place / "own.h5").read_bytes() == before


def test_a_table_is_joined_by_id(place: Path) -> None:
    found = train_head(place / "own.h5", C=1.0, labels=place / "labels.csv", expect=100)
    assert sum(found.rows.values()) == 100
    assert any("100 of 120 samples are in" in note and "which has 101 rows" in note for note in found.notes)
    assert any("20 samples have no label" in note for note in found.notes)
    own = train_head(place / "own.h5", C=1.0, label_column="kind")
    assert found.head.classes_.tolist() == own.head.classes_.tolist()


def test_groups_of_a_column_are_those_of_a_file(place: Path) -> None:
    with open(place / "groups.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("id", "group"), *((f"p{row:03d}", row // 4) for row in range(ROWS))])
    found = train_head(place / "own.h5", C=1.0, label_column="kind", groups_column="patient")
    wanted = train_head(place / "own.h5", C=1.0, label_column="kind", groups_file=place / "groups.csv")
    same(found, wanted)
    assert found.groups == wanted.groups == ROWS // 4


def test_compare_and_predict_take_the_column_that_a_head_was_trained_on(place: Path) -> None:
    for name, C in (("a", 1.0), ("b", 1e-4)):
        train_head(place / "own.h5", place / name, C=C, label_column="kind", split_column="part")
        train_head(place / "plain.h5", place / f"plain {name}", C=C)
    found = compare(place / "a", place / "b", place / "own.h5")
    wanted = compare(place / "plain a", place / "plain b", place / "plain.h5")
    assert found.result == wanted.result
    of_column, of_labels = predict(place / "a", place / "own.h5"), predict(place / "plain a", place / "plain.h5")
    assert of_column.accuracy == of_labels.accuracy
    assert of_column.scored == ROWS
    assert load_head(place / "a").metadata["training"]["relabelling"] == {
        "label_column": "kind",
        "split_column": "part",
    }
    train_head(place / "own.h5", place / "t", C=1.0, labels=place / "labels.csv")
    with pytest.raises(HeadMismatchError, match=r"labels from the table labels\.csv"):
        compare(place / "t", place / "a", place / "own.h5")


@pytest.mark.rotates(3)
def test_few_shot_takes_columns_too(place: Path) -> None:
    (found,) = few_shot([place / "own.h5"], shots=[2, 5], draws=3, label_column="kind", split_column="part")
    (wanted,) = few_shot([place / "plain.h5"], shots=[2, 5], draws=3)
    assert (found.points, found.n_classes, found.split, found.tested) == (
        wanted.points, wanted.n_classes, wanted.split, wanted.tested
    )  # fmt: skip
    assert any("labels from column kind" in note for note in found.notes)


WRONG = {
    "no such column": ({"label_column": "kinds"}, "no column 'kinds' for --label-column. Its further columns: 'box'"),
    "fractions of splits": ({"label_column": "kind", "split_column": "weight"}, "holds float64"),
    "two numbers": ({"label_column": "box"}, "needs text or numbers"),
    "unknown splits": ({"label_column": "kind", "split_column": "odd"}, "splits that are not known: 'dev'"),
    "two sources": ({"label_column": "kind", "labels": "labels.csv"}, "contradict each other"),
    "two kinds of groups": ({"groups": "(p)", "groups_column": "patient"}, "--groups and --groups-column contradict"),
    "too few": ({"labels": "labels.csv", "expect": 101}, "names 100 of the 120 samples .* fewer than the 101"),
    "nothing to expect": ({"expect": 3}, "there is none"),
    "no table": ({"labels": "nowhere.csv"}, "cannot be read"),
    "other ids": ({"labels": "other.csv"}, r"No id in .*other\.csv \('q000', 'q001'\, \.\.\.\) is one of"),
    "no label": ({"labels": "empty.csv", "expect": 2}, "names 1 of the 120 samples"),
    "no cell": ({"labels": "short.csv"}, "line 3: 'p001' has no label"),
    "two labels": ({"labels": "twice.csv"}, "line 3: 'p000' has two labels, 'a' and 'b'"),
    "a comma too many": ({"labels": "comma.csv"}, "line 3: 'p001' has more fields than the first line"),
    "two columns of labels": ({"labels": "columns.csv"}, "has two columns 'label'"),
    "another header": ({"labels": "header.csv"}, "must have the columns id and label"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_said_and_nothing_is_written(
    case: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    (place / "other.csv").write_text("id,label\nq000,a\nq001,b\n")
    (place / "empty.csv").write_text("id,label\np000,a\np001,\n")
    (place / "short.csv").write_text("id,label\np000,a\np001\n")
    (place / "twice.csv").write_text("id,label\np000,a\np000,b\n")
    (place / "comma.csv").write_text("id,label\np000,2\np001,1,5\n")
    (place / "columns.csv").write_text("id,label,label\np000,a,b\np001,b,a\n")
    (place / "header.csv").write_text("name,label\np000,a\n")
    options, message = WRONG[case]
    with pytest.raises(UsageError, match=message):
        train_head(place / "own.h5", place / "head", C=1.0, **options)  # type: ignore[arg-type]
    assert not (place / "head").exists()


def test_a_relabelled_cache_is_pickled_with_its_labels(place: Path) -> None:
    cache = open_cache(place / "own.h5")
    split = np.arange(ROWS, dtype=np.uint8) % 3
    one = RelabelledCache(cache, {"samples/split": split})
    other = pickle.loads(pickle.dumps(one))
    assert np.array_equal(other.column("samples/split"), split)
    assert np.array_equal(other.features(), cache.features())
    assert other.classes == cache.classes == ("x", "y")
    assert cache.split.tolist() == ["none"] * ROWS


@pytest.mark.rotates(3)
def test_the_command(place: Path, precompute: Command) -> None:
    done = precompute("train-head", "own.h5", "--label-column", "kind", "--split-column", "part", "--json")
    assert json.loads(done.stdout)["classes"] == ["ants", "bees", "wäsps"]
    done = precompute("train-head", "own.h5", "--labels", "labels.csv", "--expect", "120")
    assert done.returncode == 2
    assert "fewer than the 120" in done.stderr
