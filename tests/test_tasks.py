"""Heads for several labels and for numbers at every command: trained, scored, predicted with, compared, drawn."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command, make_photos
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score

from precompute import (
    compare,
    export_features,
    extract,
    few_shot,
    import_features,
    load_head,
    open_cache,
    predict,
    predict_each,
    train_head,
)
from precompute.errors import HeadMismatchError, TrainingError, UsageError
from precompute.evaluation.draws import spread_of
from precompute.extraction.executors.local import LocalExecutor
from precompute.heads import RidgeRegressionHead, choose_thresholds
from precompute.training.kinds import HEADS_OF, task_of
from precompute.training.relabelling import Relabelling

RANKS = ("ace", "jack", "king", "nine", "queen", "ten")
QUICK: dict[str, dict[str, Any]] = {
    "logistic": {"C": 1.0},
    "ridge": {"alpha": 100.0},
    "mlp": {"max_epochs": 3},
    "knn": {},
}


@pytest.fixture(scope="module")
def cards(playing_cards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cards.h5 by `tiny`: the ranks are its labels, and all of the table its columns."""
    place = tmp_path_factory.mktemp("cards")
    keep = ["labels", *RANKS, "card_count"]
    extract(
        *(playing_cards / "labels.csv", place / "cards.h5"), backbone="tiny", columns={"label": "labels"}, keep=keep
    )
    return place / "cards.h5"


ROWS = 240


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features that know three labels and a number; splits train, val and test in `part`; every 4 rows a patient."""
    place = tmp_path_factory.mktemp("made")
    generator = np.random.default_rng(3)
    X = generator.normal(size=(ROWS, 8)).astype(np.float32)
    noisy = X[:, :3] + generator.normal(scale=0.7, size=(ROWS, 3))
    Y = noisy > [0.0, 0.5, 1.2]
    texts = [";".join(np.array(["a", "b", "c"])[row]) or ";" for row in Y]
    columns = {
        "several": texts,
        "size": 3 * X[:, 3] - X[:, 4] + generator.normal(scale=0.3, size=ROWS),
        "part": np.array(["train", "train", "val", "test"])[np.arange(ROWS) % 4],
        "other": [text.replace("a", "d") for text in texts],
        "few": np.array(["train", "train", "val", ""])[np.arange(ROWS) % 4],
        "patient": np.arange(ROWS) // 4,
    }
    np.savez(place / "made.npz", features=X, **{name: np.array(values) for name, values in columns.items()})
    import_features(place / "made.npz", place / "made.h5", name="made")
    return place / "made.h5"


@pytest.mark.rotates(3)
@pytest.mark.parametrize("head", sorted(HEADS_OF["labels"]))
def test_labels_of_real_photos_are_scored_as_scikit_learn_scores_them(head: str, cards: Path, tmp_path: Path) -> None:
    found = train_head(cards, tmp_path / "head", head=head, label_separator=" ", **QUICK[head])
    assert (found.task, found.labels, found.classes) == ("labels", list(RANKS), [])
    assert set(found.scores) == {"test"}
    assert found.rows == {"train": 296, "test": 67}
    cache = open_cache(cards)
    test = np.flatnonzero(cache.split == "test")
    Y = np.stack([cache.column(f"columns/{rank}")[test] for rank in RANKS], axis=1)
    X, scores = cache.features()[test], found.scores["test"]
    proba = found.head.predict_proba(X)
    assert scores.mean_average_precision == pytest.approx(average_precision_score(Y, proba, average="macro"))
    assert scores.macro_f1 == pytest.approx(f1_score(Y, found.head.predict(X), average="macro", zero_division=0))
    low, high = scores.intervals["mean_average_precision"]
    assert low < scores.mean_average_precision < high
    saved = load_head(tmp_path / "head")
    assert task_of(saved.head) == "labels"
    assert np.array_equal(saved.predict_proba(X), proba)
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("head", sorted(HEADS_OF["number"]))
def test_numbers_of_real_photos_are_scored_as_scikit_learn_scores_them(head: str, cards: Path) -> None:
    found = train_head(cards, head=head, label_column="card_count", task="number", **QUICK[head])
    assert (found.task, found.labels, found.classes) == ("number", [], [])
    cache = open_cache(cards)
    X, y = cache.features(), cache.column("columns/card_count")
    train, test = (np.flatnonzero(cache.split == split) for split in ("train", "test"))
    said, scores = found.head.predict(X[test]), found.scores["test"]
    assert scores.r2 == pytest.approx(r2_score(y[test], said))
    assert scores.mae == pytest.approx(mean_absolute_error(y[test], said))
    assert set(scores.intervals) == {"r2", "mae", "rmse", "spearman"}
    if head == "ridge":
        theirs = Ridge(alpha=100.0).fit(X[train].astype(np.float64), y[train]).predict(X[test].astype(np.float64))
        np.testing.assert_allclose(said, theirs, rtol=1e-4)
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.rotates(3)
def test_text_columns_and_a_table_give_the_same_head(cards: Path, playing_cards: Path, tmp_path: Path) -> None:
    own = train_head(cards, C=1.0, label_separator=" ")
    text = train_head(cards, C=1.0, label_column="labels", label_separator=" ")
    columns = train_head(cards, C=1.0, label_column=RANKS)
    with open(playing_cards / "labels.csv", newline="") as file, open(tmp_path / "t.csv", "w", newline="") as out:
        rows = [(row["path"], row["labels"].replace(" ", ";")) for row in csv.DictReader(file)]
        csv.writer(out).writerows([("path", "label"), *rows])
    table = train_head(cards, C=1.0, labels=tmp_path / "t.csv", expect=363)
    assert any("363 of 363 samples are in" in note and "by path" in note for note in table.notes)
    for other in (text, columns, table):
        assert np.array_equal(other.head.coef_, own.head.coef_)
        assert other.labels == own.labels
        assert other.scores["test"].to_dict() == own.scores["test"].to_dict()


@pytest.mark.parametrize("labels", [("king;", "king;"), ("king;", "ace;")])
def test_a_file_that_a_table_names_in_two_ways_has_one_label(
    labels: tuple[str, str], cards: Path, playing_cards: Path, tmp_path: Path
) -> None:
    photo = playing_cards / open_cache(cards).ids[0]
    names = str(photo), os.path.relpath(photo, tmp_path)
    rows = "".join(f"{name},{label}\n" for name, label in zip(names, labels, strict=True))
    (tmp_path / "labels.csv").write_text(f"path,label\n{rows}")
    agree = (
        contextlib.nullcontext() if labels[0] == labels[1] else pytest.raises(UsageError, match="two values, 'king;'")
    )
    with agree:
        Relabelling.of(table=tmp_path / "labels.csv").apply(open_cache(cards))


@pytest.mark.parametrize("head", sorted(HEADS_OF["labels"]))
def test_thresholds_are_chosen_on_val_where_test_is_left(head: str, made: Path, tmp_path: Path) -> None:
    options = {"label_column": "several", "head": head, **QUICK[head]}
    found = train_head(made, tmp_path / "head", split_column="part", **options)
    cache = open_cache(made)
    val = np.flatnonzero(np.arange(ROWS) % 4 == 2)
    Y = np.array(
        [[name in text.decode().split(";") for name in "abc"] for text in cache.column("columns/several")[val]]
    )
    assert set(found.scores) == {"val", "test"}
    assert found.selected_on == "val"
    expected = choose_thresholds(Y, found.head.predict_proba(cache.features()[val]))
    assert list(found.thresholds.values()) == expected.tolist() == found.choices["thresholds"]
    assert load_head(tmp_path / "head").head.thresholds_.tolist() == expected.tolist()
    assert any("val chose the threshold of each label" in note for note in found.notes)
    kept = train_head(made, split_column="few", **options)
    assert set(kept.thresholds.values()) == {0.5}
    assert kept.selected_on is None
    assert any("above the probability 0.5" in note for note in kept.notes)


def test_alpha_of_a_number_is_chosen_on_val_where_test_is_left(made: Path) -> None:
    found = train_head(made, label_column="size", split_column="part")
    assert (found.kind, found.selected_on) == ("ridge", "val")
    assert set(found.scores) == {"val", "test"}
    assert found.scores["test"].r2 > 0.9


@pytest.mark.rotates(3)
def test_groups_and_pictures_with_other_targets(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    X = generator.normal(size=(120, 40)).astype(np.float32)
    X[60:63] = X[:3]  # the same pictures, of which the second has another target
    size, several = generator.normal(size=120), np.array(["a", "b", "a;b", ";"])[generator.integers(0, 4, 120)]
    size[60:63], several[60:63] = size[:3], several[:3]
    size[61], several[61] = size[1] + 1, "a" if several[1] != "a" else "b"
    patient = np.array([f"p{row % 30}" for row in range(120)])
    part = np.array(["train"] * 60 + ["test"] * 60)
    ids = np.array([f"r{row:03d}" for row in range(120)])
    np.savez(tmp_path / "a.npz", features=X, id=ids, size=size, several=several, patient=patient, part=part)
    import_features(tmp_path / "a.npz", tmp_path / "a.h5")
    for column, words in (("size", "with different numbers"), ("several", "with different labels")):
        found = train_head(tmp_path / "a.h5", label_column=column, split_column="part")
        assert found.two_labels == [["r001", "r061"]]
        assert any(words in note for note in found.notes)
        assert found.leaks["test"].identical == 3
        assert found.without_leaks["test"].n == 57
        grouped = train_head(tmp_path / "a.h5", label_column=column, groups_column="patient")
        assert grouped.groups is not None
        assert grouped.leaks["hold-out"].identical == grouped.leaks["hold-out"].grouped == 0


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "logistic of a number": (
        {"head": "logistic", "label_column": "size"},
        "no logistic head for --task number. It has ",
    ),
    "centroid of labels": ({"head": "centroid", "label_column": "several"}, "It has logistic, mlp, knn, ridge"),
    "calibrated": ({"calibrated": True, "label_column": "size"}, "--calibrate is for --task classes, .* a number"),
    "a protocol": ({"protocol": "simclr", "label_column": "several"}, "--protocol is for --task classes, .* several"),
    "a search": ({"head": "mlp", "search": True, "label_column": "size"}, "A search is for --task classes"),
    "a parameter": ({"C": 1.0, "label_column": "size"}, "C is not a parameter of the ridge head"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_task_has_not_is_a_usage_error(case: str, made: Path) -> None:
    options, message = REFUSED[case]
    with pytest.raises(UsageError, match=message):
        train_head(made, **options)


@pytest.mark.rotates(6)
def test_predictions_of_a_cache_and_of_its_photos_agree(cards: Path, playing_cards: Path, tmp_path: Path) -> None:
    labels = train_head(cards, tmp_path / "ranks", label_separator=" ", C=1.0)
    number = train_head(cards, tmp_path / "count", label_column="card_count", task="number")
    both = [tmp_path / "ranks", tmp_path / "count"]
    of_cache = predict_each(both, cards)
    of_photos = predict_each(both, playing_cards / "labels.csv", columns={"label": "labels"})
    for one, other in zip(of_cache, of_photos, strict=True):
        assert [item.id for item in one.items] == [item.id for item in other.items]
        assert one.task == other.task
    said = [np.array([item.probabilities for item in found[0].items]) for found in (of_cache, of_photos)]
    np.testing.assert_allclose(*said, atol=1e-4)
    test = open_cache(cards).split == "test"
    assert of_cache[0].scored == of_photos[0].scored == 363
    truth = np.array([[rank in item.true for rank in RANKS] for item in of_photos[0].items])
    assert labels.scores["test"].mean_average_precision == pytest.approx(
        average_precision_score(truth[test], said[0][test], average="macro")
    )
    items = [item for item, chosen in zip(of_cache[1].items, test, strict=True) if chosen]
    assert number.scores["test"].r2 == pytest.approx(r2_score([i.true for i in items], [i.number for i in items]))
    assert of_cache[1].scored == 363
    assert of_photos[1].scored == 0  # ranks are no numbers
    counted = predict(tmp_path / "count", playing_cards / "labels.csv", columns={"label": "card_count"})
    assert counted.scored == 363
    assert (counted.scores.r2, counted.scores.mae) == pytest.approx(
        (of_cache[1].scores.r2, of_cache[1].scores.mae), abs=1e-3
    )
    assert predict(tmp_path / "count", playing_cards / "labels.csv").scores is None  # nobody says what its labels are


@pytest.mark.rotates(3)
def test_names_of_folders_are_no_truth_of_labels_and_numbers(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos")
    extract(tmp_path / "photos", tmp_path / "a.h5", backbone="tiny")
    ids = open_cache(tmp_path / "a.h5").ids
    for name, values in (("l", ["cats;old", "dogs", ";"]), ("n", ["1.5", "2", "3"])):
        rows = [(one, values[row % 3]) for row, one in enumerate(ids)]
        with open(tmp_path / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("id", "label"), *rows])
        train_head(tmp_path / "a.h5", tmp_path / name, labels=tmp_path / f"{name}.csv", head="ridge", alpha=1.0)
        for source in ("photos", "a.h5"):
            found = predict(tmp_path / name, tmp_path / source)
            assert (found.scored, found.scores, found.accuracy) == (0, None, None)
            assert len(found.items) == 24


def test_a_column_that_is_something_else_in_another_cache_is_no_truth_and_that_is_said(
    made: Path, tmp_path: Path
) -> None:
    train_head(made, tmp_path / "size", label_column="size", alpha=1.0)
    X = np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32)
    np.savez(tmp_path / "other.npz", features=X, size=np.array(["small", "large", ""] * 3))
    import_features(tmp_path / "other.npz", tmp_path / "other.h5", name="made")
    found = predict(tmp_path / "size", tmp_path / "other.h5")
    assert (len(found.items), found.scored) == (9, 0)
    (warning,) = found.warnings
    assert "is not scored" in warning
    assert "'small' in column size" in warning or "'large' in column size" in warning


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos, a.h5 of two layers of `tiny`, b.h5 of one of them, and heads of both and of other features."""
    place = tmp_path_factory.mktemp("layers")
    make_photos(place / "photos")
    extract(place / "photos", place / "b.h5", backbone="tiny")
    layer = open_cache(place / "b.h5").layers[0]
    extract(place / "photos", place / "a.h5", backbone="tiny", layer=[layer, "embed.1"])
    extract(place / "photos", place / "random.h5", backbone="tiny", weights="random")
    for name, cache, of_layer in (("first", "a", layer), ("second", "a", "embed.1"), ("alone", "b", layer)):
        train_head(place / f"{cache}.h5", place / name, layer=of_layer, C=1.0)
    train_head(place / "random.h5", place / "random", C=1.0)
    return place


@pytest.mark.rotates(3)
def test_several_heads_take_one_pass(two_layers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [two_layers / name for name in ("first", "second", "alone")]
    alone = [predict(name, two_layers / "photos") for name in names]
    passes = []
    blocks = LocalExecutor.blocks

    def counted(self: LocalExecutor, work: Any, rows: Any, **options: Any) -> Any:
        passes.append(len(rows))
        return blocks(self, work, rows, **options)

    monkeypatch.setattr(LocalExecutor, "blocks", counted)
    together = predict_each(names, two_layers / "photos")
    assert passes == [24]
    for one, other in zip(alone, together, strict=True):
        assert [(item.id, item.label, item.true) for item in other.items] == [
            (item.id, item.label, item.true) for item in one.items
        ]
        np.testing.assert_allclose(
            [item.probability for item in other.items], [item.probability for item in one.items], atol=1e-6
        )
        assert one.accuracy == other.accuracy
    of_cache = predict_each(names[:2], two_layers / "a.h5")
    assert [[item.label for item in found.items] for found in of_cache] == [
        [item.label for item in found.items] for found in alone[:2]
    ]
    with pytest.raises(HeadMismatchError, match=r"(?s)first and .*random were trained on different features.*weights"):
        predict_each([two_layers / "first", two_layers / "random"], two_layers / "photos")
    with pytest.raises(HeadMismatchError, match=r"random was trained on other features than"):
        predict_each([two_layers / "first", two_layers / "random"], two_layers / "a.h5")
    with pytest.raises(UsageError, match="one head or more"):
        predict_each([], two_layers / "photos")


@pytest.mark.rotates(3)
def test_heads_are_compared_in_pairs_by_the_score_of_their_task(made: Path, tmp_path: Path) -> None:
    for name, options in {
        "good": {"label_column": "several", "C": 1.0},
        "bad": {"label_column": "several", "head": "knn", "k": 1},
        "near": {"label_column": "size", "alpha": 1.0},
        "far": {"label_column": "size", "alpha": 1e5},
    }.items():
        train_head(made, tmp_path / name, split_column="part", **options)
    labels = compare(tmp_path / "good", tmp_path / "bad", made)
    assert (labels.task, labels.split, labels.result.n) == ("labels", "test", 60)
    assert labels.result.metric == "mean_average_precision"
    assert labels.result.difference > 0
    numbers = compare(tmp_path / "far", tmp_path / "near", made)
    assert numbers.result.difference > 0  # a larger error, so the other one is the better
    assert numbers.words.startswith(f"{tmp_path / 'near'} is significantly better")
    json.dumps([labels.to_dict(), numbers.to_dict()], allow_nan=False)
    with pytest.raises(TrainingError, match=r"good predicts labels and .*near numbers"):
        compare(tmp_path / "good", tmp_path / "near", made)
    train_head(made, tmp_path / "others", split_column="part", label_column="other", head="ridge")
    with pytest.raises(TrainingError, match="know different labels"):
        compare(tmp_path / "good", tmp_path / "others", made)


@pytest.mark.rotates(3)
def test_few_shot_draws_images_of_each_label_or_in_all(made: Path) -> None:
    (numbers,) = few_shot([made], shots=[20], draws=2, label_column="size", split_column="part", head="ridge", seed=5)
    cache = open_cache(made)
    X, y, part = cache.features(), cache.column("columns/size"), np.arange(ROWS) % 4
    train, test = np.flatnonzero(part < 2), np.flatnonzero(part == 3)
    for draw, score in enumerate(numbers.points[0].scores):
        rows = np.sort(np.random.default_rng((5, draw)).permutation(train)[:20])
        scale = spread_of(X[rows])
        head = RidgeRegressionHead().fit(X[rows] / scale, y[rows])
        assert score == pytest.approx(r2_score(y[test], head.predict(X[test] / scale)))
    assert (numbers.metric, numbers.task, numbers.by_chance, numbers.tested) == ("r2", "number", 0, 60)
    (labels,) = few_shot([made], shots=[2, 20], draws=2, label_column="several", split_column="part", head="ridge")
    assert (labels.metric, labels.n_classes, labels.head) == ("mean_average_precision", 3, "ridge")
    assert labels.points[1].score > labels.points[0].score > labels.by_chance
    point = labels.to_dict()["points"][0]
    assert set(point) == {"shots", "scores", "score", "interval"}
    np.savez(made.parent / "own.npz", features=X, label=np.array(["a", "b"] * (ROWS // 2)))
    import_features(made.parent / "own.npz", made.parent / "own.h5", name="own")
    np.savez(made.parent / "half.npz", features=X, label=np.array(["0.5", "1"] * (ROWS // 2)))
    import_features(made.parent / "half.npz", made.parent / "half.h5", name="half")
    with pytest.raises(UsageError, match=r"own\.h5 predicts classes and .*half\.h5 a number"):
        few_shot([made.parent / "own.h5", made.parent / "half.h5"], shots=[5], draws=1)
    with pytest.raises(TrainingError, match="only 120 different training images, and 500 are requested"):
        few_shot([made], shots=[2, 500], label_column="size", split_column="part")


@pytest.mark.rotates(3)
def test_the_commands(cards: Path, tmp_path: Path, precompute: Command) -> None:
    several = ("--label-separator", " ")
    done = precompute("train-head", cards, *several, "--head", "ridge", "-o", "ranks", "--per-class")
    assert done.returncode == 0, done.stderr
    for words in ("mean average precision", "Hamming loss", "test, by label", "ridge on embed.4, 6 labels"):
        assert words in done.stdout
    assert "several a sample by ' ': 6 labels: ace (102)" in done.stderr
    arguments = ("--label-column", "card_count", "--task", "number")
    done = precompute("train-head", cards, *arguments, "-o", "count", "--json")
    found = json.loads(done.stdout)
    assert (found["task"], found["head"], found["classes"]) == ("number", "ridge", [])
    assert set(found["scores"]["test"]) >= {"r2", "mae", "rmse", "spearman", "intervals"}
    table = precompute("train-head", cards, *arguments)
    for words in ("R2", "mean absolute error", "Spearman", "a number"):
        assert words in table.stdout
    done = precompute("train-head", cards, *(word for rank in RANKS for word in ("--label-column", rank)), "--json")
    assert json.loads(done.stdout)["labels"] == list(RANKS)
    assert set(json.loads(done.stdout)["thresholds"].values()) == {0.5}
    wrong = precompute("train-head", cards, *arguments, "--head", "centroid")
    assert (wrong.returncode, "no centroid head for --task number" in wrong.stderr) == (2, True)
    assert precompute("train-head", cards, *arguments, "--C", "1").returncode == 2

    rows = list(csv.DictReader(io.StringIO(precompute("predict", "ranks", cards, "--format", "csv").stdout)))
    assert len(rows) == 363
    assert set(rows[0]) == {"id", "labels", *(f"probability of {rank}" for rank in RANKS)}
    rows = list(csv.DictReader(io.StringIO(precompute("predict", "ranks", "count", cards, "--format", "csv").stdout)))
    assert {"id", "ranks: labels", "count: number"} <= set(rows[0])
    done = precompute("predict", "ranks", "count", cards, "--json")
    heads = json.loads(done.stdout)["heads"]
    assert [head["task"] for head in heads] == ["labels", "number"]
    assert [head["scored"] for head in heads] == [363, 363]
    done = precompute("predict", "ranks", "count", cards)
    assert "count: R2 " in done.stderr
    lines = precompute("predict", "count", cards, "--format", "jsonl").stdout.splitlines()
    assert set(json.loads(lines[0])) == {"id", "number"}
    assert len(lines) == 363

    assert json.loads(precompute("info", "ranks", "--json").stdout)["labels"] == list(RANKS)
    assert "R2 0." in precompute("info", "count").stdout
    done = precompute("compare", "ranks", "ranks", cards)
    assert "Both are equally good." in done.stdout
    done = precompute("few-shot", cards, *arguments, "--shots", "20,60", "--draws", "2")
    assert done.returncode == 0, done.stderr
    assert "images in all" in done.stdout
    done = precompute("few-shot", cards, "--label-separator", " ", "--shots", "2", "--draws", "1", "--json")
    assert (json.loads(done.stdout)["task"], json.loads(done.stdout)["head"]) == ("labels", "logistic")
    done = precompute("few-shot", cards, *arguments, "--shots", "2000")
    assert "has only 296 different training images" in done.stderr
    assert "--shots 296" in done.stderr
    exported = export_features(cards, tmp_path / "cards.csv")
    assert exported.columns[3:] == ("ace", "card_count", "jack", "king", "labels", "nine", "queen", "ten")
    with open(tmp_path / "cards.csv", newline="") as file:
        first = next(csv.DictReader(file))
    assert [first[rank] for rank in RANKS] == [str(int(rank in first["labels"].split())) for rank in RANKS]


@pytest.mark.rotates(3)
@pytest.mark.parametrize("column", ["several", "size"])
def test_pictures_of_curves_are_drawn(column: str, made: Path, tmp_path: Path, precompute: Command) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'precompute[plot]'")
    arguments = ("--label-column", column, "--split-column", "part")
    done = precompute("few-shot", made, *arguments, "--shots", "5,20", "--head", "ridge", "--plot", "few.svg")
    assert done.returncode == 0, done.stderr
    done = precompute("train-head", made, *arguments, "--head", "mlp", "--max-epochs", "4", "--plot", "mlp.svg")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "few.svg").stat().st_size > 1000 < (tmp_path / "mlp.svg").stat().st_size
