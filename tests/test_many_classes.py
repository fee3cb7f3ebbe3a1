"""Thousands of classes with two images each: trained, scored, saved, loaded and printed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import run_command
from sklearn.metrics import confusion_matrix, f1_score, recall_score

from precompute import load_head, train_head
from precompute.cache import Layer, RowWriter, Samples, Status, create
from precompute.heads import CentroidHead, evaluate, save_head, to_sklearn
from precompute.heads.scoring.scores import MOST_DENSE
from precompute.training.splits import HOLDOUT

CLASSES, WIDTH = 3000, 16
HEADS = {"logistic": (), "mlp": ("--max-epochs", 2), "ridge": (), "knn": (), "centroid": ()}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.h5: 3,000 classes of two rows each."""
    path, rows = tmp_path_factory.mktemp("many") / "a.h5", 2 * CLASSES
    table = Samples(
        ids=np.array([b"class_%04d/%d.jpg" % divmod(row, 2) for row in range(rows)]),
        sizes=np.full(rows, 1000, np.int64),
        mtimes=np.full(rows, 10**18, np.int64),
        labels=np.arange(rows, dtype=np.int32) // 2,
        splits=np.zeros(rows, np.uint8),
        classes=tuple(b"class_%04d" % number for number in range(CLASSES)),
    )
    generator = np.random.default_rng(0)
    features = np.repeat(generator.normal(size=(CLASSES, WIDTH)), 2, axis=0) + generator.normal(size=(rows, WIDTH)) / 5
    layout = create(
        str(path),
        spec={
            "backbone": "tiny",
            "layers": [{"name": "flatten", "pooling": "none", "axes": ["channel"]}],
            "storage": "float32",
        },
        samples=table,
        layers={"flatten": Layer((WIDTH,), np.dtype("f4"), ("channel",), "none")},
        records=[{"run": 1}],
    )
    with RowWriter(str(path), layout) as writer:
        writer.write(
            np.arange(rows),
            {"flatten": features.astype(np.float32)},
            digests=np.stack([np.frombuffer(hashlib.sha256(b"%d" % row).digest(), np.uint8) for row in range(rows)]),
            statuses=np.full(rows, Status.OK, np.uint8),
            sizes=table.sizes,
            mtimes=table.mtimes,
        )
    return path


@pytest.mark.slow
@pytest.mark.daily(4)
@pytest.mark.parametrize("kind", HEADS)
def test_every_head_trains_on_many_classes_and_is_saved(kind: str, cache: Path, tmp_path: Path) -> None:
    # A UserWarning of a library, such as "more than 50% unique classes", is an error.
    environment = {"PYTHONWARNINGS": "error::UserWarning"}
    done = run_command(
        tmp_path, "train-head", cache, "--head", kind, "-o", "head.safetensors", *HEADS[kind], env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "class" not in done.stderr
    assert len(done.stdout.splitlines()) < 60, "a table of all classes"
    saved = load_head(tmp_path / "head.safetensors")
    assert saved.head.classes_.tolist() == [f"class_{number:04}" for number in range(CLASSES)]
    scores = saved.metadata["training"]["scores"][HOLDOUT]
    assert scores["n"] == CLASSES
    assert not {"confusion", "per_class"} & set(scores)
    to_sklearn(saved.head)


@pytest.mark.slow
def test_json_holds_the_confusions_that_there_are(cache: Path) -> None:
    done = run_command(cache.parent, "train-head", cache, "--head", "centroid", "--json")
    scores = json.loads(done.stdout)["scores"][HOLDOUT]
    cells = scores["confusion"]
    assert sum(cells["count"]) == CLASSES
    right = [count for i, j, count in zip(*cells.values(), strict=True) if i == j]
    assert sum(right) / CLASSES == pytest.approx(scores["accuracy"])
    assert len(done.stdout) < 3 * 10**6
    assert len(scores["per_class"]) == CLASSES


@pytest.mark.rotates(3)
def test_a_head_of_a_hundred_thousand_classes_is_saved_and_loaded(tmp_path: Path) -> None:
    names = np.array([f"Länger als ein Name sein müßte {number:06}" for number in range(10**5)])
    head = CentroidHead(metric="euclidean").fit(np.arange(4 * 10**5, dtype=np.float32).reshape(-1, 4), names)
    save_head(tmp_path / "head", head, metadata={"training": {"classes": names.tolist()}})
    loaded = load_head(tmp_path / "head")
    assert np.array_equal(loaded.head.classes_, names)
    assert loaded.metadata == {"training": {"classes": names.tolist()}}
    assert np.array_equal(loaded.head.centroids_, head.centroids_)


def test_scores_of_many_classes_are_scikit_learns() -> None:
    k, n = MOST_DENSE + 1, 3000
    generator = np.random.default_rng(0)
    true, proba = generator.integers(0, k, n), generator.dirichlet(np.ones(k), n)
    proba[np.arange(n), true] += generator.integers(0, 2, n)
    proba /= proba.sum(axis=1, keepdims=True)
    scores, predicted = evaluate(true, proba, np.arange(k), replicates=5), proba.argmax(axis=1)
    assert np.array_equal(scores.confusion.toarray(), confusion_matrix(true, predicted, labels=np.arange(k)))
    recalls = recall_score(true, predicted, average="macro", labels=np.unique(true), zero_division=0)
    assert scores.balanced_accuracy == pytest.approx(recalls)
    assert scores.macro_f1 == pytest.approx(
        f1_score(true, predicted, average="macro", labels=np.unique(true), zero_division=0)
    )
    images = [row["images"] for row in scores.per_class]
    assert images == np.bincount(true, minlength=k).tolist()
    i, j, count = scores.confusions()
    assert np.array_equal(scores.confusion.toarray()[i, j], count)
    assert count.min() > 0
    assert count.sum() == n


def test_few_samples_of_a_hundred_thousand_classes_are_scored() -> None:
    """A confusion matrix of 80 GB is never made."""
    k, n = 10**5, 40
    proba = np.full((n, k), 0.5 / k, np.float32)
    true = np.arange(n) * 7
    proba[np.arange(n), true + (np.arange(n) % 2)] += 0.5
    scores = evaluate(true, proba, np.arange(k))
    assert scores.accuracy == 0.5
    assert scores.confusion.shape == (k, k)
    assert json.dumps(scores.to_dict())


@pytest.mark.slow
def test_one_image_a_class_warns_of_nothing(cache: Path) -> None:
    """scikit-learn asks whether labels that are nearly all different are no classes; here warnings are errors."""
    for kind in ("centroid", "ridge"):
        assert train_head(cache, head=kind).rows["train"] == CLASSES
