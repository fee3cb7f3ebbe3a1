"""The main job on scikit-learn's digits: 1,797 real handwritten digits of 8x8 pixels that need no download."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache, open_cache
from precompute.extraction.extract import extract
from precompute.extraction.output import check_cache_output
from precompute.heads import LogisticHead, holdout
from precompute.heads.persistence.head_file import HEAD
from precompute.system.output import check_output
from precompute.training.head import train_head

SHOTS = 5  # labelled images of each class: 50 in all
DRAWS = 20
SEED = 0
Array = NDArray[Any]


@dataclass(frozen=True)
class DemoRow:
    """Accuracies of a logistic head on one kind of features; few: mean over draws, few_spread: standard deviation."""

    features: str
    width: int
    few: float
    few_spread: float
    all: float


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured. labels: labelled images in the small case · tested: images no head has seen."""

    rows: tuple[DemoRow, ...]
    labels: int
    draws: int
    trained: int
    tested: int
    extract_seconds: float
    train_seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_demo(
    folder: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] | None = None,
) -> DemoResult:
    """Write the digits as PNG files, extract them with `tiny`, train heads on 50 labels and on all.

    The embedded backbone stands beside raw pixels and beside itself with random weights; all three get the same
    logistic head, the same draws and the same half of the images for the test. Files stay in `folder` where one is
    given; overwrite: files of that name that precompute did not make are replaced, images never are. `say` gets a line
    before each step.
    """
    say = say or (lambda _: None)
    with contextlib.ExitStack() as stack:
        place = os.fspath(folder) if folder is not None else stack.enter_context(tempfile.TemporaryDirectory())
        os.makedirs(place, exist_ok=True)
        images = os.path.join(place, "digits")
        caches, head = (
            [os.path.join(place, name) for name in ("tiny.h5", "random.h5")],
            os.path.join(place, "digits.safetensors"),
        )
        for cache in caches:  # before the work, not after it
            check_cache_output(cache, overwrite=overwrite)
        check_output(head, HEAD, overwrite=overwrite)
        say(f"1. Writing 1,797 digits as PNG files below {images}")
        write_digits(images)
        say("2. Extracting them: precompute extract digits -b tiny -o tiny.h5")
        done = extract(images, caches[0], backbone="tiny", overwrite=overwrite)
        say("3. And with random weights: precompute extract digits -b tiny --weights random -o random.h5")
        extract(images, caches[1], backbone="tiny", weights="random", overwrite=overwrite)
        say("4. Training a head: precompute train-head tiny.h5 -o digits.safetensors")
        training = train_head(caches[0], head, overwrite=overwrite)
        say(f"5. Training heads on {10 * SHOTS} labels, {DRAWS} draws, for three kinds of features")
        tiny, random = map(open_cache, caches)
        kinds = (
            ("tiny, trained", tiny.features()),
            ("raw pixels", raw_pixels(images, tiny)),
            ("tiny, random weights", random.features()),
        )
        rows = tuple(compare(name, np.array(values, dtype=np.float32), tiny) for name, values in kinds)
    return DemoResult(
        rows=rows,
        labels=10 * SHOTS,
        draws=DRAWS,
        trained=training.rows["train"],
        tested=training.rows["test"],
        extract_seconds=done.seconds,
        train_seconds=training.seconds,
    )


def write_digits(folder: str) -> None:
    """`folder`/train/DIGIT/NUMBER.png for one half and test/ for the other; files that are there are left alone."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    train, _ = holdout(digits.target, fraction=0.5, seed=SEED)
    split = np.full(len(digits.target), "test ")
    split[train] = "train"
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = os.path.join(folder, split[number].strip(), str(label), f"{number:04}.png")
        if not os.path.lexists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8)).save(path)  # counts of 0 to 16


def raw_pixels(folder: str, cache: Cache) -> Array:
    """(N, 64) float32, the pixels of the same files, 0 to 1."""
    from PIL import Image

    rows = []
    for identity in cache.ids:
        with Image.open(os.path.join(folder, identity)) as image:
            rows.append(np.asarray(image, dtype=np.float32).ravel() / 255)
    return np.stack(rows)


def compare(name: str, features: Array, cache: Cache) -> DemoRow:
    """Score one kind of features on the test half, after training on a few labels and on all."""
    labels, split = cache.labels, cache.split
    train, test = np.flatnonzero(split == "train"), np.flatnonzero(split == "test")

    def accuracy(rows: NDArray[np.int64]) -> float:
        head = LogisticHead(random_state=SEED).fit(features[rows], labels[rows])
        return float((head.predict(features[test]) == labels[test]).mean())

    few = [accuracy(draw_shots(labels, train, seed)) for seed in range(DRAWS)]
    return DemoRow(name, features.shape[1], float(np.mean(few)), float(np.std(few)), accuracy(train))


def draw_shots(labels: Array, rows: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """SHOTS of `rows` for each class, at random."""
    generator = np.random.default_rng(seed)
    chosen = [generator.choice(rows[labels[rows] == label], SHOTS, replace=False) for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))
