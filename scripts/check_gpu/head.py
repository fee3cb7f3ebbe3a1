"""Section: the heads that compute on a device, there and on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from check_gpu.running import Report
from check_gpu.settings import Settings

EPOCHS = 20


def measure(settings: Settings, report: Report) -> None:
    import numpy as np

    from precompute import KNNHead, LogisticHead, MLPHead

    rows, width, classes = (1200, 256, 10) if settings.quick else (20_000, 2048, 100)
    generator = np.random.default_rng(0)
    centres = generator.normal(0, 1, (classes, width)).astype(np.float32)
    labels = generator.integers(0, classes, rows + rows // 4)
    noise = generator.normal(0, 1, (len(labels), width)).astype(np.float32)
    features = (0.25 if settings.quick else 0.12) * centres[labels] + noise
    train, test = slice(0, rows), slice(rows, None)
    report.row("data", rows=rows, width=width, classes=classes, epochs=EPOCHS)
    heads: dict[str, Callable[[str], Any]] = {
        "MLPHead": lambda device: MLPHead(device=device, max_epochs=EPOCHS, patience=EPOCHS),
        "LogisticHead": lambda device: LogisticHead(C=0.01, device=device),
        "KNNHead": lambda device: KNNHead(device=device),
    }
    for name, make in heads.items():
        seen: dict[str, np.ndarray] = {}
        for device in dict.fromkeys((settings.device, "cpu")):
            if not report.enough(f"{name} on {device}", 3):
                continue
            with report.attempt(f"{name} on {device}"):
                # the device's own start
                make(device).fit(features[:256], labels[:256]).predict(features[:256])
                began = time.perf_counter()
                head = make(device).fit(features[train], labels[train])
                seconds = time.perf_counter() - began
                began = time.perf_counter()
                seen[device] = head.predict_proba(features[test])
                report.row(
                    f"{name} on {device}",
                    fit_s=round(seconds, 2),
                    predict_s=round(time.perf_counter() - began, 3),
                    accuracy=round(float((head.classes_[seen[device].argmax(1)] == labels[test]).mean()), 4),
                    **({"best_epoch": head.best_epoch_} if name == "MLPHead" else {}),
                    **({"steps": head.n_iter_, "objective": head.objective_} if name == "LogisticHead" else {}),
                )
        if len(seen) == 2:
            one, other = seen.values()
            report.row(
                f"{name}, same prediction on both",
                share=round(float((one.argmax(1) == other.argmax(1)).mean()), 4),
                max_probability_difference=float(abs(one - other).max()),
            )
