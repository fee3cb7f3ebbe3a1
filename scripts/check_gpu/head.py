"""Section: the MLP head on the device and on the CPU."""

from __future__ import annotations

import time

from check_gpu.running import Report
from check_gpu.settings import Settings

EPOCHS = 20


def measure(settings: Settings, report: Report) -> None:
    import numpy as np

    from precompute import MLPHead

    rows, width, classes = (1200, 256, 10) if settings.quick else (20_000, 2048, 100)
    generator = np.random.default_rng(0)
    centres = generator.normal(0, 1, (classes, width)).astype(np.float32)
    labels = generator.integers(0, classes, rows + rows // 4)
    noise = generator.normal(0, 1, (len(labels), width)).astype(np.float32)
    features = (0.25 if settings.quick else 0.12) * centres[labels] + noise
    train, test = slice(0, rows), slice(rows, None)
    report.row("data", rows=rows, width=width, classes=classes, epochs=EPOCHS)
    seen: dict[str, np.ndarray] = {}
    for device in dict.fromkeys((settings.device, "cpu")):
        if not report.enough(f"MLPHead on {device}", 3):
            continue
        with report.attempt(f"MLPHead on {device}"):
            MLPHead(device=device, max_epochs=1).fit(features[:256], labels[:256])  # the device's own start
            began = time.perf_counter()
            head = MLPHead(device=device, max_epochs=EPOCHS, patience=EPOCHS).fit(features[train], labels[train])
            seconds = time.perf_counter() - began
            began = time.perf_counter()
            seen[device] = head.predict_proba(features[test])
            report.row(
                f"MLPHead on {device}",
                fit_s=round(seconds, 2),
                predict_s=round(time.perf_counter() - began, 3),
                accuracy=round(float((head.classes_[seen[device].argmax(1)] == labels[test]).mean()), 4),
                best_epoch=head.best_epoch_,
            )
    if len(seen) == 2:
        one, other = seen.values()
        agree = float((one.argmax(1) == other.argmax(1)).mean())
        report.row(
            "same prediction on both", share=round(agree, 4), max_probability_difference=float(abs(one - other).max())
        )
