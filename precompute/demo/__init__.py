"""The main job on scikit-learn's digits: 1,797 real handwritten digits of 8x8 pixels that need no download.

`text` and `audio` have the same for questions and sounds that they make themselves.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.cache import open_cache
from precompute.evaluation.learning_curve import few_shot
from precompute.extraction.extract import extract
from precompute.extraction.output import check_cache_output
from precompute.heads import holdout
from precompute.heads.persistence.head_file import HEAD
from precompute.system.output import check_output
from precompute.training.head import train_head

if TYPE_CHECKING:
    from torch import nn

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny, trained": ("tiny", {"backbone": "tiny"}),
    "raw pixels": (
        "pixels",
        {
            "backbone": "precompute.demo:pixels",
            "transform": {"resize": 8, "crop": 8, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
        },
    ),
    "tiny, random weights": ("random", {"backbone": "tiny", "weights": "random"}),
}
"""Kinds of features: the name of their cache, and how it is made."""
SHOTS = 5  # labelled images of each class: 50 in all
DRAWS = 20
SEED = 0


@dataclass(frozen=True)
class DemoRow:
    """Accuracies of a logistic head on one kind of features.

    few: mean over draws (see `few_shot`) · few_spread: their standard deviation · all: after training on every label.
    """

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

    The embedded backbone stands next to raw pixels and next to itself with random weights; all three get the same
    logistic head, the same draws and the same half of the images for the test. Files stay in `folder` where one is
    given; overwrite: files of that name that precompute did not make are replaced, images never are. `say` gets a line
    before each step.
    """
    say = say or (lambda _: None)
    with contextlib.ExitStack() as stack:
        place = os.fspath(folder) if folder is not None else stack.enter_context(tempfile.TemporaryDirectory())
        os.makedirs(place, exist_ok=True)
        images, head = os.path.join(place, "digits"), os.path.join(place, "digits.safetensors")
        caches = {os.path.join(place, f"{name}.h5"): options for name, options in KINDS.values()}
        for cache in caches:  # before the work, not after it
            check_cache_output(cache, overwrite=overwrite)
        check_output(head, HEAD, overwrite=overwrite)
        say(f"1. Writing 1,797 digits as PNG files below {images}")
        write_digits(images)
        say("2. Extracting them: precompute extract digits -b tiny -o tiny.h5")
        done, *_ = (extract(images, cache, overwrite=overwrite, **options) for cache, options in caches.items())
        say("3. Training a head: precompute train-head tiny.h5 -o digits.safetensors")
        training, *others = (
            train_head(cache, None if number else head, overwrite=overwrite, seed=SEED)
            for number, cache in enumerate(caches)
        )
        say(f"4. Training heads on {10 * SHOTS} labels: precompute few-shot *.h5 --shots {SHOTS} --draws {DRAWS}")
        curves = few_shot(list(caches), shots=[SHOTS], draws=DRAWS, seed=SEED)
        rows = tuple(
            DemoRow(
                name,
                int(open_cache(cache).features().shape[1]),
                curve.points[0].accuracy,
                float(np.std(curve.points[0].accuracies)),
                everything.scores["test"].accuracy,
            )
            for name, cache, curve, everything in zip(KINDS, caches, curves, (training, *others), strict=True)
        )
    return DemoResult(
        rows=rows,
        labels=10 * SHOTS,
        draws=DRAWS,
        trained=training.rows["train"],
        tested=training.rows["test"],
        extract_seconds=done.seconds,
        train_seconds=training.seconds,
    )


def pixels() -> nn.Module:
    """A backbone that computes nothing: the features of a grey image are its pixels."""
    from torch import Tensor, nn

    class Grey(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images[:, 0].flatten(1)

    return Grey()


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
