"""Training on caches: which rows are used, what is held out, what is reported, and that scores are what they claim."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from conftest import make_image, make_photos
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score

from precompute import LogisticHead, extract, load_head, open_cache, predict, save_head, train_head
from precompute.errors import CacheError, HeadError, HeadFormatError, TrainingError, UsageError
from precompute.heads import RidgeRegressionHead, folds
from precompute.training.kinds import HEADS
from precompute.training.splits import HOLDOUT, digest_groups, parts_of, whole_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 photos in train and val of two classes, and a.h5."""
    place = tmp_path_factory.mktemp("training")
    make_photos(place / "photos", per_class=10)
    extract(place / "photos", place / "a.h5", backbone="tiny")
    return place


@pytest.mark.rotates(3)
@pytest.mark.parametrize(
    ("head", "settings"),
    [
        ("logistic", {}),
        ("mlp", {"hidden": (16,), "max_epochs": 20}),
        ("knn", {"k": 5}),
        ("ridge", {}),
        ("centroid", {}),
        ("centroid", {"metric": "euclidean"}),
    ],
)
def test_scores_are_those_of_scikit_learn_on_rows_that_were_not_trained_on(
    folder: Path, head: str, settings: dict[str, object]
) -> None:
    training = train_head(folder / "a.h5", head=head, **settings)
    cache = open_cache(folder / "a.h5")
    val = np.flatnonzero(cache.split == "val")
    true = np.array(cache.classes)[cache.labels[val]]
    predicted = training.head.predict(np.array(cache.features()[val]))
    scores = training.scores["val"]
    assert training.rows == {"train": 20, "val": 20}
    assert scores.accuracy == accuracy_score(true, predicted)
    assert scores.balanced_accuracy == pytest.approx(balanced_accuracy_score(true, predicted))
    assert scores.macro_f1 == pytest.approx(f1_score(true, predicted, average="macro"))
    np.testing.assert_array_equal(scores.confusion, confusion_matrix(true, predicted, labels=training.classes))
    assert scores.accuracy_interval[0] <= scores.accuracy <= scores.accuracy_interval[1]
    assert training.selected_on is None


@pytest.mark.rotates(3)
def test_val_does_not_choose_anything_unless_there_is_a_test_split(folder: Path, tmp_path: Path) -> None:
    alone = train_head(folder / "a.h5")
    assert alone.choices["C_source"] == "5-fold cross-validation"
    shutil.copytree(folder / "photos", tmp_path / "photos")
    for label in ("cats", "dogs"):
        (tmp_path / "photos/test" / label).mkdir(parents=True)
        for number in range(4):
            make_image(500 + number).save(tmp_path / "photos/test" / label / f"{number}{label}.png")
    extract(tmp_path / "photos", tmp_path / "b.h5", backbone="tiny")
    for head in ("logistic", "mlp", "ridge"):
        training = train_head(tmp_path / "b.h5", head=head)
        refitted = head == "logistic"  # on val too, which can then score nothing
        assert training.selected_on == (None if refitted else "val")
        assert list(training.scores) == (["test"] if refitted else ["val", "test"])
        assert any("val chose C and was then trained on" in line for line in training.notes) == refitted
    assert train_head(tmp_path / "b.h5", C=1.0).selected_on is None
    assert train_head(tmp_path / "b.h5", head="ridge", alpha=1.0).selected_on is None
    assert train_head(tmp_path / "b.h5", head="knn").selected_on is None


@pytest.mark.rotates(3)
def test_the_same_bytes_never_stand_on_both_sides_of_a_hold_out(flowers: Path, tmp_path: Path) -> None:
    extract(flowers, tmp_path / "flowers.h5", backbone="tiny")
    cache = open_cache(tmp_path / "flowers.h5")
    assert len(cache) == 4317
    digests = [digest.tobytes() for digest in cache.column("samples/digest")]
    assert len(set(digests)) < len(digests)
    for seed in range(5):
        parts, _ = parts_of(cache, whole_rows(cache, cache.layers[0]), seed)
        train, held = ({digests[row] for row in parts[name]} for name in ("train", HOLDOUT))
        assert not train & held
        assert len(parts["train"]) + len(parts[HOLDOUT]) == 4317
        assert len(parts[HOLDOUT]) == pytest.approx(4317 / 5, rel=0.02)
        for inside, out in folds(cache.labels, groups=digest_groups(cache), n_folds=5, seed=seed):
            assert not {digests[row] for row in inside} & {digests[row] for row in out}
    training = train_head(cache, C=0.1)
    assert any("under more than one class" in line for line in training.notes)
    assert training.leaks[HOLDOUT].identical == 0
    # By the files themselves: every picture that lies in two classes is listed, with all its names
    same = defaultdict(set)
    for path in flowers.rglob("*.jpg"):
        same[path.read_bytes()].add(path.relative_to(flowers).as_posix())
    doubtful = {frozenset(ids) for ids in same.values() if len({name.split("/")[0] for name in ids}) > 1}
    assert {frozenset(ids) for ids in training.two_labels} == doubtful
    assert len(doubtful) == len(training.two_labels) > 0
    assert training.scores[HOLDOUT].accuracy > 0.3  # of five classes


@pytest.mark.rotates(3)
def test_duplicates_across_given_splits_are_reported(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "photos", tmp_path / "photos")
    shutil.copy(tmp_path / "photos/train/cats/0.jpg", tmp_path / "photos/val/cats/again.jpg")
    extract(tmp_path / "photos", tmp_path / "a.h5", backbone="tiny")
    assert any(line.startswith("1 images of val are byte-identical") for line in train_head(tmp_path / "a.h5").notes)


@pytest.mark.rotates(3)
def test_rows_without_features_or_labels_are_left_out_and_counted(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "photos", tmp_path / "photos")
    (tmp_path / "photos/train/cats/broken.jpg").write_bytes(b"\xff\xd8\xff")
    shutil.copy(tmp_path / "photos/train/cats/0.jpg", tmp_path / "photos/train/loose.jpg")
    extract(tmp_path / "photos", tmp_path / "a.h5", backbone="tiny")
    training = train_head(tmp_path / "a.h5")
    assert training.rows["train"] == 20
    assert "1 samples have no label and are left out" in training.notes
    assert "1 samples have no features (0 not computed yet) and are left out" in training.notes


def test_a_split_without_a_usable_image_is_left_out_and_named(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", per_class=3)
    (photos / "test/cats").mkdir(parents=True)
    (photos / "test/cats/broken.jpg").write_bytes(b"\xff\xd8\xff")
    extract(photos, tmp_path / "a.h5", backbone="tiny")
    training = train_head(tmp_path / "a.h5", C=1.0)
    assert list(training.scores) == ["val"]
    assert "split test has no usable image and is left out" in training.notes


def test_a_split_of_one_class_is_scored_and_says_what_is_undefined(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", per_class=4)
    shutil.rmtree(photos / "val/dogs")
    extract(photos, tmp_path / "a.h5", backbone="tiny")
    scores = train_head(tmp_path / "a.h5", C=1.0).scores["val"]
    assert scores.n == 4
    assert scores.auc is None
    assert scores.undefined["auc"] == "needs samples of two classes or more"
    assert scores.per_class[1]["recall"] is None


class Unsure(LogisticHead):
    """A head whose probabilities are not numbers."""

    def predict_proba(self, X: object) -> np.ndarray:
        return super().predict_proba(X) * np.nan


def test_probabilities_that_are_not_numbers_are_an_error_that_shows_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HEADS, "unsure", Unsure)
    with pytest.raises(TrainingError, match=r"Unsure cannot be scored on val: .*Row 0 holds \[nan nan\]"):
        train_head(folder / "a.h5", head="unsure", C=1.0)


@pytest.mark.rotates(3)
def test_maps_are_flattened(folder: Path, tmp_path: Path) -> None:
    extract(folder / "photos", tmp_path / "maps.h5", backbone="tiny", layer="body", dtype="float16")
    cache = open_cache(tmp_path / "maps.h5")
    assert cache.features().shape[1:] == (192, 4, 4)
    training = train_head(cache)
    assert training.head.n_features_in_ == 192 * 16


@pytest.mark.rotates(3)
@pytest.mark.parametrize("head", ["knn", "ridge", "centroid"])
def test_a_saved_head_needs_no_cache(head: str, photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "a.h5", backbone="tiny", dtype="float16")
    training = train_head(tmp_path / "a.h5", tmp_path / "a.safetensors", head=head)
    X = np.array(open_cache(tmp_path / "a.h5").features())
    expected = training.head.predict_proba(X)
    (tmp_path / "a.h5").unlink()
    np.testing.assert_array_equal(load_head(tmp_path / "a.safetensors").head.predict_proba(X), expected)
    predicted = predict(tmp_path / "a.safetensors", photos)
    assert [item.probability for item in predicted.items] == pytest.approx(expected.max(axis=1), abs=1e-3)


def test_a_regression_head_predicts_numbers_and_one_that_knows_no_features_nothing(
    folder: Path, tmp_path: Path
) -> None:
    cache = open_cache(folder / "a.h5")
    X = cache.features().reshape(len(cache), -1)
    head = RidgeRegressionHead(alpha=1.0).fit(X, np.arange(len(X)))
    save_head(tmp_path / "bare", head, metadata={})
    with pytest.raises(HeadFormatError, match="does not say which features"):
        predict(tmp_path / "bare", folder / "photos")
    metadata = {"spec": cache.spec, "key": cache.key, "layer": cache.layers[0], "weights_source": {"kind": "embedded"}}
    save_head(tmp_path / "age", head, metadata=metadata)
    found = predict(tmp_path / "age", folder / "photos")
    assert (found.task, found.scored, found.accuracy) == ("number", 0, None)
    np.testing.assert_allclose([item.number for item in found.items], head.predict(X), atol=1e-2)


def test_the_saved_head_carries_what_predict_needs_and_what_was_measured(folder: Path, tmp_path: Path) -> None:
    training = train_head(folder / "a.h5", tmp_path / "a.safetensors")
    saved = load_head(tmp_path / "a.safetensors")
    cache = open_cache(folder / "a.h5")
    assert saved.metadata["spec"] == cache.spec
    assert saved.metadata["key"] == cache.key
    assert saved.metadata["weights_source"] == {"kind": "embedded"}
    assert saved.metadata["training"]["scores"]["val"]["accuracy"] == training.scores["val"].accuracy
    X = np.array(cache.features())
    np.testing.assert_array_equal(saved.head.predict_proba(X), training.head.predict_proba(X))


def test_bad_requests(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="head must be one of"):
        train_head(folder / "a.h5", head="forest")
    with pytest.raises(UsageError, match="k is not a parameter of the logistic head"):
        train_head(folder / "a.h5", k=3)
    with pytest.raises(CacheError, match="avgpool"):
        train_head(folder / "a.h5", layer="avgpool")
    with pytest.raises(TrainingError, match="C must be"):
        train_head(folder / "a.h5", C=-1.0)
    with pytest.raises(HeadError, match="cannot be written"):
        train_head(folder / "a.h5", tmp_path / "no" / "a.safetensors")


@pytest.mark.rotates(3)
def test_damaged_rows_are_never_trained_on(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    extract(photos, out, backbone="tiny")
    cache = open_cache(out)
    column = cache.layout.columns[f"features/{cache.layers[0]}"]
    data = bytearray(out.read_bytes())
    data[column.offset + 3 * column.row_bytes] ^= 1
    out.write_bytes(data)
    with pytest.raises(CacheError, match=r"1 of 24 rows .*train/cats/3\.png.*(\n.*)*--repair"):
        train_head(out)


@pytest.mark.parametrize("budget", [float("nan"), float("inf"), 0, -1.0, "1 min", True])
@pytest.mark.parametrize("settings", [{}, {"head": "mlp", "search": True}, {"head": "mlp"}])
def test_a_time_budget_that_is_none_is_refused_before_the_work(budget: object, settings: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="time_budget must be a finite number above 0"):
        train_head("a file that nobody opens.h5", time_budget=budget, **settings)
