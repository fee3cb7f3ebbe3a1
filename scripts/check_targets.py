"""Several labels and a number of real photos: every head beside scikit-learn's on the same features.

    python scripts/check_targets.py PLAYING_CARDS --weights mobilenet_v2_imagenet.pth [--cache cards.h5]

PLAYING_CARDS holds images/ and labels.csv, with the columns path, split (train, test), labels (names separated by
blanks) and card_count. MobileNetV2 runs once; each head is then trained by `train_head` with its defaults, from the
cache alone, and scored on test with its 95% bootstrap interval. The same rows, as they are stored, go to scikit-learn:
OneVsRestClassifier of LogisticRegressionCV and of RidgeClassifierCV, RidgeCV, KNeighbors* and MLP*, with and without
StandardScaler. The last column says whether a head is below the better of the two by more than its interval.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegressionCV, RidgeClassifierCV, RidgeCV
from sklearn.metrics import average_precision_score, r2_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from precompute import Cache, extract, open_cache, train_head
from precompute.training.relabelling import Relabelling
from precompute.training.targets import LABELS, NUMBER, Target

ALPHAS = np.logspace(-3, 6, 10)
NEIGHBOURS = 20  # as the kNN head has them
OPTIONS = {"use_legacy_attributes": False, "l1_ratios": (0,)}  # as later releases of scikit-learn have them
TARGETS: dict[str, dict[str, Any]] = {
    LABELS: {"label_column": "labels", "label_separator": " "},
    NUMBER: {"label_column": "card_count", "task": NUMBER},
}
METRICS = {LABELS: "mean_average_precision", NUMBER: "r2"}


def theirs(task: str, head: str) -> Any:
    """scikit-learn's estimator of that kind."""
    if task == NUMBER:
        return {
            "ridge": RidgeCV(ALPHAS),
            "knn": KNeighborsRegressor(NEIGHBOURS, weights="distance", metric="cosine"),
            "mlp": MLPRegressor(hidden_layer_sizes=(256,), early_stopping=True, random_state=0, max_iter=1000),
        }[head]
    return {
        "logistic": OneVsRestClassifier(
            LogisticRegressionCV(Cs=10, cv=5, max_iter=1000, scoring="neg_log_loss", **OPTIONS)
        ),
        "ridge": OneVsRestClassifier(RidgeClassifierCV(ALPHAS)),
        "knn": KNeighborsClassifier(NEIGHBOURS, weights="distance", metric="cosine"),
        "mlp": MLPClassifier(hidden_layer_sizes=(256,), early_stopping=True, random_state=0, max_iter=1000),
    }[head]


def score_of(task: str, model: Any, X: NDArray[Any], y: NDArray[Any]) -> float:
    """Mean average precision of labels, R2 of numbers."""
    if task == NUMBER:
        return float(r2_score(y, model.predict(X)))
    if hasattr(model, "predict_proba"):
        found = model.predict_proba(X)
        # kNN gives the two probabilities of each label
        said = np.stack([one[:, 1] for one in found], axis=1) if isinstance(found, list) else found
    else:
        said = model.decision_function(X)
    return float(average_precision_score(y, said, average="macro"))


def references(task: str, head: str, cache: Cache, target: Target) -> Iterator[float]:
    """What scikit-learn's reaches on the features as they are, and standardised."""
    X = np.asarray(cache.features().reshape(len(cache), -1), np.float32)
    train, test = (np.flatnonzero(cache.split == split) for split in ("train", "test"))
    for steps in ((theirs(task, head),), (StandardScaler(), theirs(task, head))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = make_pipeline(*steps).fit(X[train], target.of(train))
        yield score_of(task, model, X[test], target.of(test))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="PLAYING_CARDS")
    parser.add_argument("--weights", default="DEFAULT")
    parser.add_argument("--cache", type=Path, help="Keep the features there, or use those that lie there.")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        path = options.cache or Path(place) / "cards.h5"
        made = extract(
            options.folder / "labels.csv",
            path,
            backbone="mobilenet_v2",
            weights=options.weights,
            columns={"label": "labels"},
            keep=["labels", "card_count"],
        )
        print(f"{made.computed} images computed; the heads below read the cache alone")
        for task in TARGETS:
            table(task, path)


def table(task: str, path: Path) -> None:
    cache = open_cache(path)
    _, target, (note,) = Relabelling.of(
        TARGETS[task]["label_column"], task=task, separator=TARGETS[task].get("label_separator")
    ).apply(cache)
    metric = METRICS[task]
    print(f"\n{note}\n{metric.replace('_', ' ')} on test, 95% interval; scikit-learn as stored, standardised")
    for head in ("logistic", "ridge", "knn", "mlp") if task == LABELS else ("ridge", "knn", "mlp"):
        scores = train_head(path, head=head, **TARGETS[task]).scores["test"]
        value, (low, high) = getattr(scores, metric), scores.intervals[metric]
        plain, scaled = references(task, head, cache, target)
        verdict = "below by more than its interval" if high < max(plain, scaled) else "as good within its interval"
        print(f"{head:9} {value:6.3f}  ({low:.3f} to {high:.3f})   {plain:6.3f} {scaled:6.3f}  {verdict}", flush=True)


if __name__ == "__main__":
    main()
