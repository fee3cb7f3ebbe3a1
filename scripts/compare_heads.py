"""All heads beside scikit-learn's LogisticRegressionCV, on the rows of caches: accuracy with its interval, and seconds.

    python scripts/compare_heads.py CACHE [CACHE ...]

Each head is trained by `train_head` with its defaults (the MLP also with its search), and scored on val or, without
splits, on the same hold-out; LogisticRegressionCV (10 values of C, 5 stratified folds, lbfgs, 1,000 steps at most) is
fitted on the same training rows as they are stored. The last column says whether a head is below it by more than its
own 95% interval. Seconds are CPU seconds of fitting; those of `train_head` also hold checking the rows and scoring.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence

import numpy as np
from bench_rerun import cpu_model
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegressionCV

from precompute import open_cache, train_head
from precompute.heads.scoring.scores import wilson_interval
from precompute.training.kinds import HEADS
from precompute.training.splits import parts_of, whole_rows

OPTIONS = {"use_legacy_attributes": False, "l1_ratios": (0,)}  # as later releases of scikit-learn have them


def reference(path: str) -> tuple[int, int, float]:
    """Images that LogisticRegressionCV gets right, of how many, and its CPU seconds."""
    cache = open_cache(path)
    parts, _ = parts_of(cache, whole_rows(cache, cache.layers[0]), 0)
    X, y = cache.features().reshape(len(cache), -1), cache.labels
    (scored,) = (parts[split] for split in parts if split != "train")
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegressionCV(Cs=10, cv=5, max_iter=1000, scoring="accuracy", **OPTIONS)
        model.fit(np.asarray(X[parts["train"]], np.float32), y[parts["train"]])
    seconds = time.process_time() - began
    hits = int((model.predict(np.asarray(X[scored], np.float32)) == y[scored]).sum())
    return hits, len(scored), seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("caches", nargs="+", metavar="CACHE")
    options = parser.parse_args(arguments)
    print(cpu_model())
    for path in options.caches:
        hits, n, seconds = reference(path)
        low, high = wilson_interval(hits, n)
        print(f"\n{path}, {n} images scored")
        print(f"{'LogisticRegressionCV':22} {hits / n:6.1%}  ({low:.1%} to {high:.1%})  {seconds:8.2f} s")
        for head, search in [*((head, False) for head in HEADS), ("mlp", True)]:
            began = time.process_time()
            trained = train_head(path, head=head, search=search)
            seconds = time.process_time() - began
            (scores,) = trained.scores.values()
            low, high = scores.accuracy_interval
            verdict = "below by more than its interval" if high < hits / n else "as good within its interval"
            name = f"{head}, searched" if search else head
            print(
                f"{name:22} {scores.accuracy:6.1%}  ({low:.1%} to {high:.1%})  {seconds:8.2f} s  {verdict}", flush=True
            )


if __name__ == "__main__":
    main()
