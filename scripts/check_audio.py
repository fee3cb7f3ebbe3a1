"""How well do features of sound tell spoken digits apart, of speakers known and unknown, and how fast do they come?

    python scripts/check_audio.py DIGITS [--resemblyzer FILE] [--repeats 3] [--only-speed]

DIGITS: folders train and test with a folder for each digit, files named DIGIT_SPEAKER_TAKE.wav (Free Spoken Digit
Dataset). Extracts them by the real library with mel-statistics, where FILE is given with resemblyzer, and where
transformers is installed with a small wav2vec 2.0 of random weights, in a folder that is made here. Trains
logistic heads on train and scores them on test, with intervals that draw clips, then with intervals that draw speakers
(all of whom are in train). Then each speaker in turn is left out: trained on the clips of all others (train and test),
scored on all of his; the interval is Student's over speakers. Last, clips a second of a run, without and with its
start, and of a plain loop in one thread over the same clips, the model loaded before: soundfile.read, soxr.resample,
the same torch module (of wav2vec 2.0 transformers' own feature extractor and network), one clip at a time. Runs and
loops take turns; both tables are printed at the end. --only-speed takes about a minute.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
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
Feature = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("digits", type=Path)
    parser.add_argument("--resemblyzer", help="Its weights.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only-speed", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        backbones = {"mel-statistics": ("mel-statistics", "DEFAULT")}
        if options.resemblyzer:
            backbones["resemblyzer"] = ("resemblyzer", options.resemblyzer)
        if find_spec("transformers"):
            backbones["random wav2vec2"] = (f"hf:{random_wav2vec2(Path(place) / 'wav2vec2')}", "DEFAULT")
        scores, speeds = list[str](), list[str]()
        for title, (name, weights) in backbones.items():
            if not options.only_speed:
                out = Path(place) / f"{title}.h5"
                made = extract(options.digits, out, backbone=name, weights=weights)
                print(f"{title}: {made.rows} clips, {made.layers}, {made.engine} in {made.precision}", flush=True)
                scores.append(f"| {title} | " + " | ".join(accuracies(out)) + " |")
            speeds.append(
                f"| {title} | "
                + " | ".join(speed(options.digits, Path(place) / "again.h5", name, weights, options.repeats))
                + " |"
            )
    if scores:
        print("\n| features | test, clips drawn | test, speakers drawn | a speaker left out | C | of each |")
        print("|---|---|---|---|---|---|", *scores, sep="\n")
    print(
        "\n| features | extract, clips/s once started | with start | start | plain loop | times | least cosine | by |"
    )
    print("|---|---|---|---|---|---|---|---|", *speeds, sep="\n")
    return 0


def random_wav2vec2(folder: Path) -> Path:
    """A folder with a wav2vec 2.0 that has learnt nothing, of wav2vec2-base's form and narrower."""
    import transformers as library

    transformers: Any = library
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=192,
        conv_dim=(96,) * 7,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=4,
    )
    transformers.utils.logging.disable_progress_bar()
    transformers.Wav2Vec2Model(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    return folder


def accuracies(path: Path) -> list[str]:
    """Cells of the table; C is what cross-validation chooses on train."""
    cells, C = list[str](), None
    for groups in (None, SPEAKER):
        chosen: dict[str, Any] = {} if C is None else {"C": C}
        training = train_head(path, groups=groups, **chosen)
        C, scores = float(training.choices["C"]) if C is None else C, training.scores["test"]
        low, high = scores.intervals["accuracy"]
        cells.append(f"{scores.accuracy:.1%} ({low:.1%} to {high:.1%})")
    found = left_out(open_cache(path), C or 1.0)
    values = np.array(list(found.values()))
    mean, half = values.mean(), student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    each = ", ".join(f"{name} {value:.0%}" for name, value in found.items())
    return [*cells, f"{mean:.1%} ({mean - half:.1%} to {mean + half:.1%})", f"{C:g}", each]


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


def speed(source: Path, out: Path, name: str, weights: str, repeats: int) -> list[str]:
    """Cells of the table: clips a second, the best of some repeats, which take turns."""
    model = load_backbone(name, weights=weights)
    feature = library_feature(name.removeprefix("hf:")) if name.startswith("hf:") else own_feature(model)
    paths = sorted(source.rglob("*.wav"))
    ours, plain, whole = list[float](), list[float](), list[float]()
    for _ in range(repeats):
        out.unlink(missing_ok=True)
        made = extract(source, out, backbone=name, weights=weights)
        ours.append(made.computed / made.forward_seconds)
        whole.append(made.computed / made.seconds)
        began = time.perf_counter()
        features = plain_loop(paths, feature)
        plain.append(len(paths) / (time.perf_counter() - began))
    stored = np.asarray(open_cache(out).features(), dtype=np.float64)
    order = [os.fsdecode(bytes(one)) for one in open_cache(out).column("samples/id")]
    place = {str(path.relative_to(source)): number for number, path in enumerate(paths)}
    rows = features[[place[one] for one in order]]
    cosine = (stored * rows).sum(1) / np.linalg.norm(stored, axis=1) / np.linalg.norm(rows, axis=1)
    return [
        *(f"{max(one):,.0f}" for one in (ours, whole)),
        f"{made.start_seconds:.1f} s",
        f"{max(plain):,.0f}",
        f"{max(ours) / max(plain):.2f}",
        f"{cosine.min():.6f}",
        f"{made.engine} in {made.precision}",
    ]


def plain_loop(paths: Sequence[Path], feature: Feature) -> NDArray[np.float64]:
    """What somebody would write: no batches, no threads."""
    threads, found = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for path in paths:
                values, rate = soundfile.read(io.BytesIO(path.read_bytes()), dtype="float32", always_2d=True)
                found.append(feature(soxr.resample(values.mean(axis=1), rate, 16_000)))
    finally:
        torch.set_num_threads(threads)
    return np.array(found, dtype=np.float64)


def own_feature(model: Backbone) -> Feature:
    """By the torch module of a backbone of ours: the windows of a clip together."""
    preprocess, body = model.preprocess, model.body()

    def feature(wave: NDArray[np.float32]) -> NDArray[np.float32]:
        made = preprocess.windows_of(wave)  # type: ignore[attr-defined]  # of audio
        (features,) = body(*(torch.stack(one) for one in zip(*made.tensors, strict=True)))
        return preprocess.merge(features.numpy(), made.weights or ())

    return feature


def library_feature(folder: str) -> Feature:
    """By transformers alone: the mean over the positions of a clip."""
    import transformers as library

    transformers: Any = library
    network = transformers.AutoModel.from_pretrained(folder).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)

    def feature(wave: NDArray[np.float32]) -> NDArray[np.float32]:
        given = extractor(wave, sampling_rate=16_000, return_tensors="pt")
        found: NDArray[np.float32] = network(**given).last_hidden_state[0].mean(0).numpy()
        return found

    return feature


if __name__ == "__main__":
    sys.exit(main())
