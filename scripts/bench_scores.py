"""How long the scores of many test rows take, with their intervals, and how much memory.

    python scripts/bench_scores.py [--rows 1000000] [--classes 10] [--replicates 1000] [--grouped 0.02]

Made probabilities that know something of the labels, float32; `--grouped` of the rows are there twice, as files with
the same bytes are. Prints seconds of the scores alone and with `--replicates` of the bootstrap, the memory they add,
and each score with its interval.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
from bench_leaks import Peak
from bench_rerun import cpu_model

from precompute.heads import evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--grouped", type=float, default=0.02)
    given = parser.parse_args()
    print(f"{cpu_model()}, {os.cpu_count()} cores")
    rng = np.random.default_rng(0)
    true = rng.integers(0, given.classes, given.rows)
    proba = np.exp(rng.normal(size=(given.rows, given.classes)).astype(np.float32))
    proba[np.arange(given.rows), true] *= 5
    proba /= proba.sum(axis=1, keepdims=True)
    groups, twice = np.arange(given.rows), int(given.rows * given.grouped)
    groups[:twice] //= 2
    for replicates in (0, given.replicates):
        began, cpu = time.perf_counter(), time.process_time()
        with Peak() as peak:
            scores = evaluate(true, proba, np.arange(given.classes), groups=groups, replicates=replicates)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        print(
            f"{given.rows:,} rows, {given.classes} classes, {replicates:,} replicates: "
            f"{seconds:.1f} s ({cpu:.1f} s of CPU), {peak.added / 2**20:,.0f} MiB",
            flush=True,
        )
    for name, ends in scores.intervals.items():
        print(f"{name:20} {getattr(scores, name):.5f}   {ends[0]:.5f} to {ends[1]:.5f}")
    chance = scores.calibration_error_by_chance
    print(f"{'calibration error':20} {scores.calibration_error:.5f}   by chance to {chance:.5f}")
    for name, reason in scores.undefined.items():
        print(f"{name}: {reason}")


if __name__ == "__main__":
    main()
