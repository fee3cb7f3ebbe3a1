"""How long heads take on one device and another: the same fits in turn, seconds and CPU seconds of one thread, medians.

    python scripts/bench_devices.py [--devices cpu,cpu:0] [--rounds 3] [--rows 20000] [--cache FILE --C 1,1000]

"cpu" is NumPy, every other name a device of torch ("cpu:0" is torch on the CPU). The features are made as in
bench_heads.py, or those of a cache. Expected on a CPU before measuring: torch takes 1.2 times as long where there are
many classes, as its matrix product does on an AMD (NumPy's OpenBLAS 121 GFLOPS on one core, torch's MKL 101).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is loaded: threads that wait are counted as CPU time

import numpy as np
from bench_heads import relu_features
from bench_rerun import cpu_model

from precompute import KNNHead, LogisticHead, open_cache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", default="cpu,cpu:0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--cache", type=Path, help="features and labels of this file instead")
    parser.add_argument("--C", default="0.1,10")
    options = parser.parse_args()
    if options.cache is None:
        X, y = relu_features(options.rows, options.features, options.classes, 0.35)
    else:
        with open_cache(options.cache) as cache:
            kept = cache.ok & (cache.labels >= 0)
            X = np.asarray(cache.features(), np.float32).reshape(len(cache), -1)[kept]
            y = cache.labels[kept]
    print(f"{cpu_model()}, {len(X):,} x {X.shape[1]:,}, {len(np.unique(y))} classes")
    devices = options.devices.split(",")
    jobs = [(f"LogisticHead C={C}", C) for C in options.C.split(",")] + [("KNNHead, 2,000 rows", None)]
    for name, C in jobs:
        wall: dict[str, list[float]] = {device: [] for device in devices}
        busy: dict[str, list[float]] = {device: [] for device in devices}
        about: dict[str, str] = {}
        for _ in range(options.rounds):
            for device in devices:
                began, used = time.perf_counter(), time.process_time()
                if C is None:
                    found = KNNHead(device=device).fit(X, y).predict(X[:2000])
                    about[device] = f"accuracy {np.mean(found == y[:2000]):.4f}"
                else:
                    head = LogisticHead(C=float(C), device=device).fit(X, y)
                    about[device] = f"{head.n_iter_} steps, objective {head.objective_:.8g}"
                wall[device].append(time.perf_counter() - began)
                busy[device].append(time.process_time() - used)
        for device in devices:
            seconds, cpu = statistics.median(wall[device]), statistics.median(busy[device])
            print(f"{name:22} {device:8} {seconds:7.2f} s {cpu:7.2f} CPU s  {about[device]}", flush=True)


if __name__ == "__main__":
    main()
