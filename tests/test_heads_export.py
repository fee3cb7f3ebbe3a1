"""Exported heads: scikit-learn's own classes that predict as the head does, in a process without precompute."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from conftest import Command
from sklearn.base import is_classifier
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError

from precompute.errors import HeadError
from precompute.heads import (
    AttentiveHead,
    CentroidHead,
    KNNHead,
    KNNRegressionHead,
    LogisticHead,
    MLPHead,
    MLPRegressionHead,
    MultilabelKNNHead,
    MultilabelLogisticHead,
    MultilabelMLPHead,
    MultilabelRidgeHead,
    RidgeHead,
    RidgeRegressionHead,
    SelectedHead,
    load_head,
    save_head,
    to_sklearn,
)
from precompute.heads.persistence.export import write_joblib

DIGITS, LABELS = load_digits(return_X_y=True)
NAMES = np.array([f"digit {number}" for number in range(10)])
MADE = {
    "logistic": lambda: LogisticHead(C=1.0),
    "mlp": lambda: MLPHead(hidden=(16,), max_epochs=5),
    "deep": lambda: MLPHead(hidden=(12, 8), max_epochs=5),
    "linear mlp": lambda: MLPHead(hidden=(), max_epochs=5),
    "knn": lambda: KNNHead(k=7),
    "warm knn": lambda: KNNHead(temperature=10),
    "ridge": RidgeHead,
    "mahalanobis": CentroidHead,
    "cosine": lambda: CentroidHead(metric="cosine"),
    "euclidean": lambda: CentroidHead(metric="euclidean"),
    "selected": lambda: SelectedHead(fraction=0.3, C=0.1, layers=(20, 44)),
    "regression": RidgeRegressionHead,
    "multilabel logistic": lambda: MultilabelLogisticHead(C=0.1),
    "multilabel ridge": MultilabelRidgeHead,
    "multilabel knn": lambda: MultilabelKNNHead(k=7),
    "multilabel mlp": lambda: MultilabelMLPHead(hidden=(16,), max_epochs=5),
    "knn regression": lambda: KNNRegressionHead(k=7),
    "mlp regression": lambda: MLPRegressionHead(hidden=(12, 8), max_epochs=5),
}


def indicators(labels: np.ndarray) -> np.ndarray:
    """Three labels, of which all have the last one."""
    return np.stack([labels % 2 == 0, labels > 4, labels >= 0], axis=1)


def fitted(name: str, n_classes: int = 10) -> Any:
    kept = np.flatnonzero(n_classes > LABELS)[:400]
    head = MADE[name]()
    if name.startswith("multilabel"):
        return head.fit(DIGITS[kept], indicators(LABELS[kept]))
    return head.fit(DIGITS[kept], NAMES[LABELS[kept]] if is_classifier(head) else LABELS[kept].astype(float))


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("n_classes", [2, 10])
def test_an_export_predicts_as_its_head(name: str, n_classes: int, tmp_path: Path) -> None:
    head = fitted(name, n_classes)
    write_joblib(tmp_path / "model.joblib", head)
    model = joblib.load(tmp_path / "model.joblib")
    X = DIGITS[1000:]
    if name.startswith("multilabel"):
        assert_same_labels(model, head, X)
        return
    if not is_classifier(head):
        np.testing.assert_allclose(model.predict(X), head.predict(X), atol=1e-4)
        return
    sure = np.sort(head.predict_proba(X))[:, -2:] @ [-1, 1] > 1e-4
    assert sure.mean() > 0.9
    assert np.array_equal(model.predict(X)[sure], head.predict(X)[sure])
    assert model.classes_.tolist() == head.classes_.tolist()
    assert to_sklearn(MADE[name]().fit(DIGITS[:200], LABELS[:200])).predict(X).dtype == LABELS.dtype
    if name != "ridge":
        np.testing.assert_allclose(model.predict_proba(X), head.predict_proba(X), atol=1e-4)
    if hasattr(head, "decision_function"):
        np.testing.assert_allclose(model.decision_function(X), head.decision_function(X), atol=1e-3)


def assert_same_labels(model: Any, head: Any, X: np.ndarray) -> None:
    found, expected = model.predict_proba(X), head.predict_proba(X)
    found = np.stack([part[:, 1] for part in found], axis=1) if isinstance(found, list) else found
    np.testing.assert_allclose(found, expected, atol=1e-4)
    sure = abs(expected - head.thresholds_) > 1e-4
    assert sure.mean() > 0.9
    assert np.array_equal(model.predict(X)[sure], head.predict(X)[sure])


@pytest.mark.parametrize("name", ["multilabel logistic", "multilabel ridge", "multilabel mlp"])
@pytest.mark.parametrize("thresholds", [[0.2, 0.9, 0.5], [0.5, 0.5, 0.0]])
def test_thresholds_are_exported(name: str, thresholds: list[float], tmp_path: Path) -> None:
    head = fitted(name).set_thresholds(thresholds)
    write_joblib(tmp_path / "model.joblib", head)
    assert b"precompute" not in (tmp_path / "model.joblib").read_bytes()
    assert_same_labels(joblib.load(tmp_path / "model.joblib"), head, DIGITS[1000:])


@pytest.mark.parametrize("name", [name for name in MADE if name.startswith("multilabel")])
def test_a_single_label_is_exported(name: str) -> None:
    head = MADE[name]().fit(DIGITS[:300], LABELS[:300, None] > 4)
    assert_same_labels(to_sklearn(head), head, DIGITS[1000:])


def test_several_targets_are_exported() -> None:
    head = RidgeRegressionHead().fit(DIGITS, DIGITS[:, 2:5] + 1)
    np.testing.assert_allclose(to_sklearn(head).predict(DIGITS), head.predict(DIGITS), atol=1e-4)


@pytest.mark.rotates(3)
@pytest.mark.parametrize("name", MADE)
def test_an_export_needs_nothing_of_precompute(name: str, tmp_path: Path) -> None:
    """No module of precompute is named in the pickle, and scikit-learn alone loads it."""
    write_joblib(tmp_path / "model.joblib", fitted(name))
    assert b"precompute" not in (tmp_path / "model.joblib").read_bytes()
    if name not in ("knn", "mlp"):  # a process each takes a second
        return
    code = (
        "import sys, joblib, numpy; model = joblib.load('model.joblib'); model.predict(numpy.ones((1, 64)))\n"
        "print(type(model).__module__, [name for name in sys.modules if name.split('.')[0] in ('precompute', 'torch')])"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "sklearn.pipeline []\n", done.stderr


def test_what_scikit_learn_has_no_equal_of_is_named() -> None:
    with pytest.raises(HeadError, match="a temperature below 0.0029 gives distances no weight in float64"):
        to_sklearn(KNNHead(temperature=0.001).fit(DIGITS, LABELS))
    opposite = CentroidHead(metric="cosine").fit([[1.0, 0], [-1, 0], [0, 1], [0, 1]], [0, 0, 1, 1])
    with pytest.raises(HeadError, match="the mean of a class is zero"):
        to_sklearn(opposite)
    with pytest.raises(HeadError, match=r"KNeighborsClassifier predicts above 0.5, and has no other thresholds"):
        to_sklearn(fitted("multilabel knn").set_thresholds([0.2, 0.5, 0.5]))
    with pytest.raises(NotFittedError):
        to_sklearn(RidgeHead())


def test_a_head_that_predicts_otherwise_than_its_parts_say_is_refused() -> None:
    """For example one that learns to do more than the class of scikit-learn that stands for it."""

    class ScaledHead(LogisticHead):
        def predict_proba(self, X: object) -> np.ndarray:
            return super().predict_proba(np.asarray(X) * 2)

    ScaledHead.__module__, ScaledHead.__name__ = LogisticHead.__module__, "LogisticHead"
    with pytest.raises(HeadError, match="does not predict as scikit-learn's class of that kind does"):
        to_sklearn(ScaledHead(C=1.0).fit(DIGITS, LABELS))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    head = fitted("ridge")
    (tmp_path / "model.joblib").write_bytes(b"old")
    with pytest.raises(HeadError, match="model.joblib' exists, and a joblib file cannot be recognised"):
        write_joblib(tmp_path / "model.joblib", head)
    assert (tmp_path / "model.joblib").read_bytes() == b"old"
    write_joblib(tmp_path / "model.joblib", head, overwrite=True)
    assert joblib.load(tmp_path / "model.joblib").predict(DIGITS[:1]) == head.predict(DIGITS[:1])
    with pytest.raises(HeadError, match="nowhere/model.joblib' cannot be written: the folder"):
        write_joblib(tmp_path / "nowhere" / "model.joblib", head)
    (tmp_path / "folder").mkdir()
    with pytest.raises(HeadError, match="cannot be written"):
        write_joblib(tmp_path / "folder", head)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "model.joblib"]


def test_the_command_warns_and_tells_what_it_wrote(tmp_path: Path, precompute: Command) -> None:
    save_head(tmp_path / "a.safetensors", fitted("mlp"), metadata={})
    done = precompute("export-head", "a.safetensors", "-o", "a.joblib")
    assert done.returncode == 0, done.stderr
    assert "loading it runs the code in it" in done.stderr
    assert "StandardScaler -> MLPClassifier" in done.stdout
    report = json.loads(precompute("export-head", "a.safetensors", "-o", "b.joblib", "--json").stdout)
    assert report["methods"] == ["predict", "predict_proba"]
    head = load_head(tmp_path / "a.safetensors").head
    assert np.array_equal(joblib.load(tmp_path / "b.joblib").predict(DIGITS), head.predict(DIGITS))
    save_head(tmp_path / "cold.safetensors", KNNHead(temperature=0.001).fit(DIGITS, LABELS), metadata={})
    refused = precompute("export-head", "cold.safetensors", "-o", "cold.joblib")
    assert refused.returncode == 1
    assert "cannot be exported to scikit-learn" in refused.stderr
    assert not (tmp_path / "cold.joblib").exists()
    assert "Loading one runs the code in it" in precompute("export-head", "--help").stdout


def test_attention_over_positions_has_no_equal() -> None:
    head = AttentiveHead(tokens=8, max_epochs=2).fit(DIGITS[:60], LABELS[:60])
    with pytest.raises(HeadError, match="cannot be exported to scikit-learn: scikit-learn has no attention"):
        to_sklearn(head)


def test_what_the_head_of_several_layers_was_given_multiplied_is_multiplied_in_the_pipeline() -> None:
    factors = np.repeat([0.25, 4.0], [20, 44])
    head = SelectedHead(fraction=0.3, C=0.1, layers=(20, 44)).fit((DIGITS * factors)[:300], LABELS[:300])
    pipeline = to_sklearn(head, multiplied=factors)
    assert [type(step).__name__ for _, step in pipeline.steps] == ["StandardScaler", "LogisticRegression"]
    np.testing.assert_allclose(pipeline.predict_proba(DIGITS), head.predict_proba(DIGITS * factors), atol=1e-5)
