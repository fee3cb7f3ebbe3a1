"""How long the logistic head takes beside scikit-learn's LogisticRegression, to which objective.

    python scripts/bench_heads.py [--rows 20000] [--rounds 3] [--path-rows 5000] [--shared ../shared]

CPU seconds of one process with one BLAS thread, everything included: scikit-learn as a user would call it (lbfgs,
float32, features as they are, tol 1e-6), the head with its default tol, and the head with the loosest tol, out of
1e-7 to 1e-3 in steps of about 3, whose objective is still no higher than scikit-learn's. Both see the same arrays in
turn; medians are printed. The objective is computed anew from the coefficients in float64.

Three comparisons: one fit at C = 0.1 and 10; ten values of C from 1e-4 to 1e2 with one held-out fifth, against
LogisticRegressionCV with the same split and values; and both again on flowers_small through MobileNetV2, which is
skipped where the folder that holds them is missing.

The made features resemble those of a pooled ReLU layer: a class has a centre in a latent space whose axes get smaller
as 1/sqrt(axis), a sample adds noise there, four positions add more, and each becomes d features by a random matrix,
offsets, gains that vary by a factor of e, and a ReLU; the mean over positions is kept. So they are never negative, half
of them are zero, their mean is half their deviation, and their spectrum falls over six decades. --signal sets how far
apart the classes are.

Expected before measuring: centring alone cuts scikit-learn's steps 4 to 5 times; with second moments as first metric,
float32 products and starts along the path, 6 to 8 times less CPU time at a lower objective; and a path at
scikit-learn's default tol 1e-4 that stands still at large C.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is loaded: threads that wait are counted as CPU time

import numpy as np
from bench_rerun import cpu_model
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV

from precompute.heads import LogisticHead

TOLS = (1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7, 1e-7)
PATH = np.logspace(-4, 2, 10)
LATENT, POSITIONS = 256, 4


def relu_features(rows: int, features: int, classes: int, signal: float) -> tuple[np.ndarray, np.ndarray]:
    """(rows, features) float32 and labels, as the docstring above says."""
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.arange(rows) % classes)
    size = (1 + np.arange(LATENT)) ** -0.5
    centres = generator.normal(size=(classes, LATENT)) * size * signal
    mixing = generator.normal(size=(LATENT, features)) / np.sqrt((size**2).sum())
    gain, offset = np.exp(0.5 * generator.normal(size=features)), generator.normal(size=features) - 1.0
    found = np.zeros((rows, features), np.float32)
    for start in range(0, rows, 2000):
        part = slice(start, start + 2000)
        latent = centres[labels[part]] + generator.normal(size=(len(labels[part]), LATENT)) * size
        for _ in range(POSITIONS):
            here = latent + generator.normal(size=latent.shape) * size
            response = here @ mixing + offset + 0.3 * generator.normal(size=found[part].shape)
            found[part] += (np.maximum(response * gain, 0) / POSITIONS).astype(np.float32)
    return found, labels


def flowers(shared: Path) -> tuple[np.ndarray, np.ndarray]:
    from precompute import extract, open_cache

    with tempfile.TemporaryDirectory() as folder:
        weights = shared / "weights/mobilenet_v2_imagenet.pth"
        extract(shared / "data/flowers_small/flowers", f"{folder}/a.h5", backbone="mobilenet_v2", weights=str(weights))
        cache = open_cache(f"{folder}/a.h5")
        return np.array(cache.features(), dtype=np.float32), np.array(cache.labels)


def objective(model: Any, X: np.ndarray, y: np.ndarray, C: float) -> float:
    """scikit-learn's, in float64; y in 0..K-1, K above 2."""
    logits = X.astype(np.float64) @ model.coef_.T.astype(np.float64) + model.intercept_
    logits -= logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]
    return float((model.coef_.astype(np.float64) ** 2).sum() / 2 + C * losses.sum())


def timed(task: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    result = task()
    return time.process_time() - began, result


def single(X: np.ndarray, y: np.ndarray, C: float, rounds: int) -> None:
    seconds: dict[str, list[float]] = {}
    models: dict[str, Any] = {}

    def measure(name: str, model: Any) -> None:
        took, models[name] = timed(lambda: model.fit(X, y))
        seconds.setdefault(name, []).append(took)

    loosest = None
    for _ in range(rounds):
        measure("scikit-learn", LogisticRegression(C=C, tol=1e-6, max_iter=100_000))
        measure("head", LogisticHead(C=C))
        if loosest is None:
            bound = objective(models["scikit-learn"], X, y, C)
            heads = (LogisticHead(C=C, tol=tol) for tol in TOLS)
            loosest = next((h.tol for h in heads if objective(h.fit(X, y), X, y, C) <= bound), TOLS[-1])
        measure(f"head, tol {loosest:g}", LogisticHead(C=C, tol=loosest))
    reference = statistics.median(seconds["scikit-learn"])
    for name, taken in seconds.items():
        model, took = models[name], statistics.median(taken)
        print(
            f"C {C:<6g} {name:20} {took:8.2f} s  {reference / took:5.1f} x  {np.max(model.n_iter_):5} steps  "
            f"objective {objective(model, X, y, C):.8g}",
            flush=True,
        )


def path(X: np.ndarray, y: np.ndarray) -> None:
    """Ten values, one held-out fifth, then the fit at the chosen one; and the objective at each, without the fifth."""
    held = np.random.default_rng(1).permutation(len(y)) < len(y) // 5
    train, test = np.flatnonzero(~held), np.flatnonzero(held)
    folds = [(train, test)]
    given: dict[str, Any] = {"Cs": PATH, "cv": folds, "scoring": "neg_log_loss", "max_iter": 100_000}
    given |= {"use_legacy_attributes": False, "l1_ratios": (0,)}
    print(f"path of {len(PATH)}, {len(train):,} rows to train on and {len(test):,} to choose on, then all of them")
    took_cv, cv = timed(lambda: LogisticRegressionCV(tol=1e-6, **given).fit(X, y))
    took, head = timed(lambda: LogisticHead(C=PATH.tolist()).fit(X[train], y[train], validation=(X[test], y[test])))
    print(f"LogisticRegressionCV {took_cv:8.2f} s, chose {np.ravel(cv.C_)[0]:g}")
    print(f"head                 {took:8.2f} s, chose {head.C_:g}, {took_cv / took:.1f} x", flush=True)
    # LogisticRegressionCV keeps no coefficients that were fitted without the fifth: its path once more, with warm
    # starts.
    warm = LogisticRegression(tol=1e-6, max_iter=100_000, warm_start=True)
    for trial in head.trials_:
        C = trial["C"]
        warm.set_params(C=C).fit(X[train], y[train])
        theirs = objective(warm, X[train], y[train], C)
        print(
            f"   C {C:<9.3g} {trial['n_iter']:5} steps, objective {trial['objective']:.8g}; "
            f"scikit-learn {np.max(warm.n_iter_):5}, {theirs:.8g}, {(trial['objective'] - theirs) / theirs:+.1e}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--signal", type=float, default=0.35)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--path-rows", type=int, default=5000, help="of the made features, for the path")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="with data/ and weights/")
    given = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(f"{cpu_model()}, {os.cpu_count()} cores, {os.environ['OMP_NUM_THREADS']} BLAS thread")
    X, y = relu_features(given.rows, given.features, given.classes, given.signal)
    print(f"made features {X.shape[0]:,} x {X.shape[1]:,}, {given.classes} classes", flush=True)
    for C in (0.1, 10.0):
        single(X, y, C, given.rounds)
    path(X[: given.path_rows], y[: given.path_rows])
    if not (given.shared / "weights").exists():
        print(f"no real features: {given.shared} is missing")
        return
    X, y = flowers(given.shared)
    print(f"flowers {X.shape[0]:,} x {X.shape[1]:,}, {y.max() + 1} classes", flush=True)
    for C in (0.1, 10.0):
        single(X, y, C, given.rounds)
    path(X, y)


if __name__ == "__main__":
    main()
