"""What is predicted: found from labels, columns and tables, or given; and what cannot be, with the wrong sample."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.multiclass import type_of_target

from precompute import import_features, open_cache
from precompute.cache import Cache
from precompute.errors import TrainingError, UsageError
from precompute.heads.base.labels import label_strata
from precompute.training.relabelling import Relabelling
from precompute.training.splits import HOLDOUT, parts_of, whole_rows
from precompute.training.targets import CLASSES, LABELS, NUMBER, Target, check_target

ROWS = 12


def cache_of(place: Path, **columns: Any) -> Cache:
    """A cache of ROWS rows, `r00` and so on, with these columns; `label` becomes its own labels."""
    features = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
    ids = np.array([f"r{row:02d}" for row in range(ROWS)])
    np.savez(place / "a.npz", features=features, id=ids, **{name: np.array(v) for name, v in columns.items()})
    import_features(place / "a.npz", place / "a.h5", overwrite=True)
    return open_cache(place / "a.h5")


def found(cache: Cache, *columns: str, **options: Any) -> tuple[Target, str]:
    _, target, notes = Relabelling.of(columns or None, **options).apply(cache)
    return target, "; ".join(notes)


def rows_of(*values: Any) -> list[Any]:
    """ROWS of them, by turns."""
    return [values[row % len(values)] for row in range(ROWS)]


def labels_of(target: Target) -> list[set[str] | None]:
    return [
        {name for name, value in zip(target.names, values, strict=True) if value} if known else None
        for values, known in zip(target.values, target.known, strict=True)
    ]


AUTO_CASES: dict[str, tuple[list[Any], str]] = {
    "names": (rows_of("ants", "bees", ""), CLASSES),
    "names with a semicolon": (rows_of("ants", "ants;bees", ""), LABELS),
    "a lone semicolon": (rows_of("ants", ";", "bees"), LABELS),
    "whole numbers": (rows_of(1, 2, 3), CLASSES),
    "whole floats with gaps": (rows_of(1.0, 2.0, np.nan), CLASSES),
    "fractions": (rows_of(1.0, 2.5, np.nan), NUMBER),
    "fractions as text": (rows_of("1", "2.5", ""), NUMBER),
    "fractions with blanks around": (rows_of(" 1", " 2.5 ", ""), NUMBER),
    "names that look like numbers": (rows_of("007", "2.5"), CLASSES),
    "fractions and a name": (rows_of("1.5", "tall"), CLASSES),
    "0 and 1": (rows_of(0, 1), CLASSES),
}


@pytest.mark.parametrize("case", AUTO_CASES)
@pytest.mark.parametrize("own", [False, True], ids=["column", "own labels"])
def test_the_task_is_found_from_the_values(case: str, own: bool, tmp_path: Path) -> None:
    values, task = AUTO_CASES[case]
    if own and not isinstance(values[0], str):
        pytest.skip("own labels are strings")
    cache = cache_of(tmp_path, **{"label" if own else "x": values})
    target, note = found(cache, *([] if own else ["x"]))
    assert target.task == task
    assert own or "column x" in note
    empty = [(isinstance(v, str) and not v) or (isinstance(v, float) and np.isnan(v)) for v in values]
    assert target.known.tolist() == [not one for one in empty]


def test_a_gap_that_is_written_as_nan_is_none_among_numbers_alone(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, x=rows_of("nan", "2.5", "NaN", "3"), y=rows_of("nan", "aish", "roti"))
    target, _ = found(cache, "x")
    assert (target.task, target.known.tolist()) == (NUMBER, rows_of(False, True, False, True))
    assert found(cache, "y")[0].names == ("aish", "nan", "roti")


@pytest.mark.rotates(3)
@given(st.lists(st.one_of(st.integers(-5, 5), st.floats(-5, 5).map(lambda x: round(x, 2))), min_size=2, max_size=20))
def test_numbers_are_told_from_classes_as_scikit_learn_does(values: list[float]) -> None:
    from precompute.training.columns import Values, find_target

    distinct = sorted({repr(float(v)) if float(v) != int(v) else str(int(v)) for v in values})
    column = Values(
        tuple(distinct), np.arange(len(distinct)), np.array(distinct, "S"), numbers=True, path="", origin=""
    )
    continuous = type_of_target(np.array(values, np.float64)) == "continuous"
    assert find_target(column, "auto", None)[0].task == (NUMBER if continuous else CLASSES)


def test_whole_numbers_are_classes_and_the_note_says_how_else(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, age=rows_of(30, 4, 100))
    target, note = found(cache, "age")
    assert target.names == ("100", "30", "4")
    assert "--task number" in note
    number, note = found(cache, "age", task="number")
    assert number.values.tolist() == rows_of(30.0, 4.0, 100.0)
    assert "numbers from column age, 4 to 100" in note
    assert target.of(np.array([0, 1])).tolist() == ["30", "4"]


def test_labels_are_separated_and_a_lone_separator_has_none(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, x=rows_of("a; b", "b", "", ";", "  ", "c;;a"), y=rows_of("a b", "b", "", " "))
    target, note = found(cache, "x")
    assert target.names == ("a", "b", "c")
    assert labels_of(target)[:6] == [{"a", "b"}, {"b"}, None, set(), None, {"a", "c"}]
    assert "several a sample by ';': 3 labels: a (4), b (4), c (2)" in note
    blanks, _ = found(cache, "y", separator=" ")
    assert labels_of(blanks)[:4] == [{"a", "b"}, {"b"}, None, set()]
    assert found(cache, "y")[0].names == (" ", "a b", "b")  # classes, unless somebody says what separates


@pytest.mark.parametrize("form", ["ints", "floats", "text"])
def test_several_columns_of_0_and_1_are_labels(form: str, tmp_path: Path) -> None:
    zero, one, none = {"ints": (0, 1, 1), "floats": (0.0, 1.0, np.nan), "text": ("0", "1", "")}[form]
    cache = cache_of(tmp_path, king=rows_of(one, zero, none), ace=rows_of(one, one, zero, zero))
    target, note = found(cache, "king", "ace")
    assert (target.task, target.names) == (LABELS, ("king", "ace"))
    third = {"king"} if form == "ints" else None
    assert labels_of(target)[:3] == [{"king", "ace"}, {"ace"}, third]
    assert "2 columns" in note
    only, _ = found(cache, "ace", task="labels") if form != "text" else (target, "")
    assert form == "text" or labels_of(only)[:3] == [{"ace"}, {"ace"}, set()]


def test_the_target_does_not_depend_on_how_it_is_written(tmp_path: Path) -> None:
    texts = rows_of("a;b", "b", "c", ";")
    columns = {name: [int(name in text) for text in texts] for name in "abc"}
    cache = cache_of(tmp_path, x=texts, blank=[text.replace(";", " ") for text in texts], label=texts, **columns)
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([("id", "label"), *zip(cache.ids, texts, strict=True)])
    wanted, _ = found(cache, "x")
    for other in (
        found(cache, "a", "b", "c")[0],
        found(cache, "blank", separator=" ")[0],
        found(cache)[0],
        found(cache, table=tmp_path / "t.csv")[0],
    ):
        assert other.names == wanted.names
        assert np.array_equal(other.values, wanted.values)
        assert np.array_equal(other.known, wanted.known)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no number": ({"columns": ["kind"], "task": "number"}, r"'r00' has 'ants' in column kind, which is not a number"),
    "overflow": (
        {"columns": ["huge"], "task": "number"},
        r"'r01' has '1e999' in column huge, which is not a number of up",
    ),
    "infinite": ({"columns": ["endless"]}, r"'r01' has 'inf' in column endless"),
    "neither 0 nor 1": ({"columns": ["one", "two"]}, r"'r01' has '2' in column two, and a label's own column holds 0"),
    "names as columns": ({"columns": ["one", "kind"]}, r"'r00' has 'ants' in column kind"),
    "twice": ({"columns": ["one", "one"]}, "named twice"),
    "columns as a number": ({"columns": ["one", "two"], "task": "number"}, "not --task number"),
    "columns with a separator": ({"columns": ["one", "two"], "separator": ";"}, "need no separator"),
    "classes with a separator": ({"columns": ["kind"], "separator": ";", "task": "classes"}, "one value a sample"),
    "numbers with a separator": ({"columns": ["one"], "separator": ";"}, "a column of numbers has none"),
    "no separator": ({"columns": ["kind"], "separator": ""}, "separator of labels is empty"),
    "another task": ({"columns": ["kind"], "task": "boxes"}, "task must be one of auto, classes, labels, number"),
    "no label at all": ({"columns": ["none"]}, "No sample of .* has a label in column none"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_target_cannot_be_is_said_with_the_sample(case: str, tmp_path: Path) -> None:
    options, message = WRONG[case]
    cache = cache_of(
        tmp_path,
        kind=rows_of("ants", "bees"),
        huge=rows_of("1", "1e999"),
        endless=rows_of(0.5, np.inf),
        one=rows_of(0, 1),
        two=rows_of(1, 2),
        none=rows_of(";", ""),
    )
    with pytest.raises(UsageError, match=message):
        found(cache, *options["columns"], **{name: value for name, value in options.items() if name != "columns"})


def test_more_labels_than_memory_holds_are_refused_before_it_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_of(tmp_path, x=[f"a{row};b{row}" for row in range(ROWS)])
    assert len(found(cache, "x")[0].names) == 2 * ROWS
    monkeypatch.setattr("precompute.training.columns.physical_memory", lambda: 1000)
    with pytest.raises(UsageError, match=r"24 labels in column x, and 600 bytes .* more than a quarter"):
        found(cache, "x")


def test_nothing_to_learn_is_an_error_and_some_labels_a_note(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, same=rows_of(2.5), all=rows_of("a;b"), some=rows_of("a;b", "a"))
    parts = {"train": np.arange(8), HOLDOUT: np.arange(8, ROWS)}
    with pytest.raises(TrainingError, match="have one number, 2.5"):
        check_target(found(cache, "same")[0], parts, cache.path)
    with pytest.raises(
        TrainingError, match=r"Each label of .* \(a, b\) is one that all training samples have, or none"
    ):
        check_target(found(cache, "all")[0], parts, cache.path)
    (note,) = check_target(found(cache, "some")[0], parts, cache.path)
    assert note.endswith("cannot be learned: a")


@pytest.mark.parametrize("task", ["labels", "number"])
def test_a_hold_out_keeps_pictures_together_and_has_every_label_on_both_sides(task: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    n = 400
    rare = (generator.random((n, 4)) < [0.5, 0.3, 0.05, 0.02]).astype(int)
    number = generator.exponential(size=n)
    pictures = generator.normal(size=(n // 2, 3)).astype(np.float32)[np.arange(n) % (n // 2)]  # each of them twice
    np.savez(tmp_path / "a.npz", features=pictures, number=number, **{f"l{k}": rare[:, k] for k in range(4)})
    import_features(tmp_path / "a.npz", tmp_path / "a.h5")
    cache = open_cache(tmp_path / "a.h5")
    target, _ = found(cache, *(["number"] if task == "number" else [f"l{k}" for k in range(4)]))
    digests = cache.column("samples/digest")
    for seed in range(5):
        parts, notes = parts_of(cache, whole_rows(cache, "features"), seed, target=target)
        train, held = parts["train"], parts[HOLDOUT]
        assert not {bytes(d) for d in digests[train]} & {bytes(d) for d in digests[held]}
        assert 0.15 < len(held) / n < 0.25
        assert "stratified hold-out" in notes[-1]
        if task == "labels":
            assert all(target.values[rows].any(axis=0).all() for rows in (train, held))
        else:
            assert abs(target.values[held].mean() - number.mean()) < 0.2
        again, _ = parts_of(cache, whole_rows(cache, "features"), seed, target=target)
        assert np.array_equal(again[HOLDOUT], held)


def test_a_hold_out_of_numbers_is_a_fifth_of_the_groups_too(tmp_path: Path) -> None:
    """Groups are stratified by their means: the numbers in each would put every group into a stratum of its own."""
    n = 120
    number = np.random.default_rng(0).permutation(n) + 0.5
    np.savez(tmp_path / "a.npz", features=np.random.default_rng(1).normal(size=(n, 3)), number=number)
    import_features(tmp_path / "a.npz", tmp_path / "a.h5")
    cache = open_cache(tmp_path / "a.h5")
    target, _ = found(cache, "number")
    patient = np.arange(n) // 6
    for seed in range(5):
        parts, _ = parts_of(cache, whole_rows(cache, "features"), seed, patient, target)
        assert len(parts[HOLDOUT]) == n // 5
        assert not set(patient[parts["train"]]) & set(patient[parts[HOLDOUT]])


def test_samples_of_which_each_has_a_label_of_its_own_are_held_out_too(tmp_path: Path) -> None:
    n = 60
    for text in ("own{0}", "own{0};{1}"):  # no label that two samples have, and two such labels
        tags = [text.format(row, "ab"[row % 2]) + ";" for row in range(n)]
        np.savez(tmp_path / "b.npz", features=np.random.default_rng(1).normal(size=(n, 3)), tags=np.array(tags))
        import_features(tmp_path / "b.npz", tmp_path / "b.h5", overwrite=True)
        cache = open_cache(tmp_path / "b.h5")
        target, _ = found(cache, "tags")
        parts, _ = parts_of(cache, whole_rows(cache, "features"), 0, target=target)
        assert len(parts[HOLDOUT]) == n // 5
    Y = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 1], [0, 0, 1]], dtype=bool)
    assert label_strata(Y).tolist() == [1, 1, 2, 2]
    assert label_strata(Y[1:]).tolist() == [2, 2, 2]
    assert label_strata(Y[:2]).tolist() == [1, 1]
    assert label_strata(np.array([[1, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 0]], dtype=bool)).tolist() == [0, 3, 3, 0]
