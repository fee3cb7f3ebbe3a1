"""How well do features of sound tell spoken digits apart, of speakers known and unknown, and how fast do they come?

    python scripts/check_audio.py DIGITS [--resemblyzer FILE] [--repeats 3] [--only-speed]

DIGITS: folders train and test with a folder for each digit, files named DIGIT_SPEAKER_TAKE.wav (Free Spoken Digit
Dataset). Extracts them by the real library with mel-statistics and, where FILE is given, with resemblyzer; trains
logistic heads on train and scores them on test, with intervals that draw clips, then with intervals that draw speakers
(all of whom are in train). Then each speaker in turn is left out: trained on the clips of all others (train and test),
scored on all of his; the interval is Student's over speakers. Last, clips a second of a run, without and with its
start, and of a plain loop in one thread over the same clips, the model loaded before: soundfile.read, soxr.resample,
the same torch module, one clip at a time.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from scipy.stats import t as student

from precompute import Backbone, Cache, LogisticHead, extract, load_backbone, open_cache, train_head

SPEAKER = r"/\d_([a-z]+)_\d+"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("digits", type=Path)
    parser.add_argument("--resemblyzer", help="Its weights.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only-speed", action="store_true")
    options = parser.parse_args(arguments)
    backbones = {"mel-statistics": "DEFAULT"}
    if options.resemblyzer:
        backbones["resemblyzer"] = options.resemblyzer
    with tempfile.TemporaryDirectory() as place:
        for name, weights in backbones.items():
            out = Path(place) / f"{name}.h5"
            made = extract(options.digits, out, backbone=name, weights=weights)
            print(f"\n{name}: {made.rows} clips, {made.layers}, {made.engine} in {made.precision}")
            if not options.only_speed:
                accuracies(out)
            speed(options.digits, Path(place) / "again.h5", name, weights, options.repeats)
    return 0


def accuracies(path: Path, C: float | None = None) -> None:
    """C: that of all heads; by default what cross-validation chooses on train."""
    for words, groups in (("clips drawn", None), ("speakers drawn", SPEAKER)):
        settings: dict[str, Any] = {} if C is None else {"C": C}
        training = train_head(path, groups=groups, **settings)
        C, scores = float(training.choices["C"]) if C is None else C, training.scores["test"]
        low, high = scores.intervals["accuracy"]
        print(f"  test, the same speakers, {words}: {scores.accuracy:.1%} ({low:.1%} to {high:.1%})")
    found = left_out(open_cache(path), C or 1.0)
    mean = float(np.mean(list(found.values())))
    values = np.array(list(found.values()))
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    print(
        f"  C = {C:g}; a speaker left out, mean of {len(values)}: {mean:.1%} ({mean - half:.1%} to {mean + half:.1%})"
    )
    print("    " + ", ".join(f"{name} {value:.1%}" for name, value in found.items()))


def left_out(cache: Cache, C: float) -> dict[str, float]:
    """Accuracy on each speaker's clips of a head that has heard none of them."""
    ids = [os.fsdecode(bytes(one)) for one in cache.column("samples/id")]
    speakers = np.array([Path(one).stem.split("_")[1] for one in ids])
    features, labels = np.asarray(cache.features(), dtype=np.float32), np.asarray(cache.labels)
    found = {}
    for speaker in np.unique(speakers).tolist():
        mine = speakers == speaker
        head = LogisticHead(C=C).fit(features[~mine], labels[~mine])
        found[speaker] = float((head.predict(features[mine]) == labels[mine]).mean())
    return found


def speed(source: Path, out: Path, name: str, weights: str, repeats: int) -> None:
    """Clips a second, the best of some repeats, which take turns."""
    model = load_backbone(name, weights=weights)
    paths = sorted(source.rglob("*.wav"))
    ours, plain, whole = list[float](), list[float](), list[float]()
    for _ in range(repeats):
        out.unlink(missing_ok=True)
        made = extract(source, out, backbone=name, weights=weights)
        ours.append(made.computed / made.forward_seconds)
        whole.append(made.computed / made.seconds)
        began = time.perf_counter()
        features = plain_loop(paths, model)
        plain.append(len(paths) / (time.perf_counter() - began))
    stored = np.asarray(open_cache(out).features(), dtype=np.float64)
    order = [os.fsdecode(bytes(one)) for one in open_cache(out).column("samples/id")]
    place = {str(path.relative_to(source)): number for number, path in enumerate(paths)}
    rows = features[[place[one] for one in order]]
    cosine = (stored * rows).sum(1) / np.linalg.norm(stored, axis=1) / np.linalg.norm(rows, axis=1)
    print(
        f"  extract: {max(ours):,.0f} clips/s once started, {max(whole):,.0f} with its start, "
        f"which took {made.start_seconds:.1f} s"
    )
    print(
        f"  plain loop in one thread: {max(plain):,.0f} clips/s; extract is {max(ours) / max(plain):.2f} times as fast"
    )
    print(f"  cosine of the two, at worst: {cosine.min():.6f}")


def plain_loop(paths: Sequence[Path], model: Backbone) -> NDArray[np.float64]:
    """What somebody would write: no batches, no threads; the windows of a clip together."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    preprocess, body, found = model.preprocess, model.body(), []
    try:
        with torch.inference_mode():
            for path in paths:
                values, rate = soundfile.read(io.BytesIO(path.read_bytes()), dtype="float32", always_2d=True)
                wave = soxr.resample(values.mean(axis=1), rate, 16_000)
                made = preprocess.windows_of(wave)  # type: ignore[attr-defined]  # of audio
                (features,) = body(*(torch.stack(one) for one in zip(*made.tensors, strict=True)))
                found.append(preprocess.merge(features.numpy(), made.weights or ()))
    finally:
        torch.set_num_threads(threads)
    return np.array(found, dtype=np.float64)


if __name__ == "__main__":
    sys.exit(main())
