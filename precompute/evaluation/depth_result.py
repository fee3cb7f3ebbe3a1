"""What `depth` found, and the answer to "what should I do with my data?"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from precompute.evaluation.learning_curve import point_of
from precompute.evaluation.probes import separated
from precompute.heads import Paired, paired
from precompute.heads.scoring.scores import wilson_interval
from precompute.heads.scoring.strata import mean_interval

ALL = "all"
HEAD = "head"
BLIND = ("pixels", "random", "scratch")  # what does without the pretrained weights
PHRASES = {
    "pixels": "raw pixels",
    "random": "a head on random weights",
    "scratch": "training everything from random weights",
    "head": "a head",
    "all-layers": "a head on all layers",
    "attentive": "an attentive head",
    "everything": "fine-tuning everything",
}


@dataclass(frozen=True)
class DepthPoint:
    """One method after `shots` labelled images of each class, or all.

    labels: images that it was fitted on, the most of any draw · scores: an accuracy for each draw · score: their mean
    · interval: at 95%, over draws: Student's, of the mean; of a single draw, which all labels are, over the scored
    images · over: "draws" or "images" · seconds: of one fit with its predictions, the mean over draws.
    """

    method: str
    shots: int | str
    labels: int
    scores: tuple[float, ...]
    score: float
    interval: tuple[float, float]
    over: str
    seconds: float


@dataclass(frozen=True)
class DepthMethod:
    """What a method costs once.

    pretrained: whether it uses the backbone's weights · seconds: to make the feature file that it is on, None where
    this folder has no record of it · bytes: of that file · command: that does it with all labels.
    """

    name: str
    pretrained: bool
    seconds: float | None
    bytes: int
    command: str

    @property
    def phrase(self) -> str:
        """For a sentence."""
        kind, _, layer = self.name.partition(":")
        return f"fine-tuning behind {layer}" if kind == "tail" else PHRASES.get(kind, self.name)


@dataclass(frozen=True)
class OverDraws:
    """The difference of two methods over the same draws, a less b: Student's t test of paired samples.

    difference: the mean · interval: its 95% interval · p_value: two-sided · distinct: whether it is more than chance.
    """

    difference: float
    interval: tuple[float, float]
    p_value: float
    distinct: bool

    @classmethod
    def of(cls, one: Sequence[float], other: Sequence[float]) -> OverDraws:
        """(n,) scores each, n at least 2."""
        more = np.subtract(one, other)
        n, mean, error = len(more), float(more.mean()), float(more.std(ddof=1) / np.sqrt(len(more)))
        half = float(stdtrit(n - 1, 0.975)) * error
        same = 0.0 if mean else 1.0  # of a difference that is the same in every draw
        p_value = float(2 * stdtr(n - 1, -abs(mean) / error)) if error else same
        return cls(mean, (mean - half, mean + half), p_value, p_value < 0.05)


def interval_of(rights: Sequence[NDArray[np.bool_]], groups: NDArray[np.int64]) -> tuple[tuple[float, float], str]:
    """The 95% interval of the mean accuracy, and what it is over.

    rights: (n,) for each draw · groups: (n,) what is one observation among the images. Over several draws Student's.
    Over the images of one Wilson's, or where groups hold several of them, that of a bootstrap of groups.
    """
    found = point_of(0, [float(right.mean()) for right in rights]).interval
    if found is not None:
        return found, "draws"
    (right,) = rights
    group = np.unique(groups, return_inverse=True)[1]
    if group.max() + 1 < len(right):
        return mean_interval(right.astype(np.float64), group), "images"
    return wilson_interval(int(right.sum()), len(right)), "images"


@dataclass(frozen=True)
class Standing:
    """Methods at one number of shots, the best first; tied: not significantly different from it, itself included."""

    shots: int | str
    order: tuple[str, ...]
    tied: tuple[str, ...]
    cheapest: str
    hurts: tuple[str, ...]


@dataclass(frozen=True)
class Depth:
    """Accuracy over labels a class for each method, on the same draws and the same test images.

    methods: what they cost, the cheapest kind first · points: by shots, then method · standings: one for each number of
    shots · tested: images of split `split` · labels: that there are to draw from · notes: what the reader should know.
    """

    source: str
    backbone: str
    weights: str
    n_classes: int
    split: str
    tested: int
    labels: int
    draws: int
    methods: tuple[DepthMethod, ...]
    points: tuple[DepthPoint, ...]
    standings: tuple[Standing, ...]
    notes: tuple[str, ...]
    folder: str
    seed: int

    def method(self, name: str) -> DepthMethod:
        """By its name."""
        return next(one for one in self.methods if one.name == name)

    def point(self, name: str, shots: int | str) -> DepthPoint | None:
        """None where that method was not tried at so many."""
        return next((one for one in self.points if (one.method, one.shots) == (name, shots)), None)

    @property
    def words(self) -> str:
        """The recommendation for all labels that there are, or for the most that were tried."""
        last = self.standings[-1]
        best, cheapest = self.method(last.order[0]), self.method(last.cheapest)
        point = self.point(cheapest.name, last.shots)
        assert point is not None
        amount = f"all {self.labels:,} labels" if last.shots == ALL else f"{last.shots} labels a class"
        found = f"With {amount}: {cheapest.phrase} ({point.score:.1%})"
        if len(last.order) == 1:
            return f"{found}; nothing else was tried. {self.transfer}"
        if cheapest.name == best.name and len(last.tied) == 1:
            found += " is significantly better than the others"
        elif cheapest.name == best.name:
            found += f" is the best, and the cheapest of {len(last.tied)} methods without a significant difference"
        else:
            top = self.point(best.name, last.shots)
            assert top is not None
            found += f" is the cheapest without a significant difference from the best, {best.phrase} ({top.score:.1%})"
        return f"{found}. {self.transfer}"

    @property
    def transfer(self) -> str:
        """Whether the pretrained weights hurt, by the head on them."""
        if not any(one.name == HEAD for one in self.methods) or not any(one.name in BLIND for one in self.methods):
            return "Whether transfer hurts was not tested: that needs the method head, and pixels, random or scratch."
        hurting = [one for one in self.standings if one.hurts]
        if not hurting:
            return "Transfer does not hurt: nothing without the pretrained weights beats the head on them."
        last = hurting[-1]
        which = " and ".join(self.method(name).phrase for name in last.hurts)
        at = ", ".join(str(one.shots) for one in hurting)
        beat = "beat" if last.hurts[0] == "pixels" or len(last.hurts) > 1 else "beats"
        return f"Transfer hurts: {which} {beat} the pretrained head (at {at} a class)."

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        phrases = [{**asdict(one), "phrase": one.phrase} for one in self.methods]
        return {**asdict(self), "methods": phrases, "notes": list(self.notes), "verdict": self.words}


def standing(
    shots: int | str,
    rights: dict[str, list[NDArray[np.bool_]]],
    groups: NDArray[np.int64],
) -> Standing:
    """Which methods are ahead. rights: by method, the cheapest kind first, for each draw which of the test images were
    right, (n,) · groups: (n,) what is one observation among the test images.

    Over several draws by Student's t of the paired differences, and for a single one by McNemar's test on the images;
    corrected after Holm for the number of methods.
    """

    def compared(one: str, other: str) -> OverDraws | Paired:
        a, b = rights[one], rights[other]
        if len(a) == 1:
            return paired(a[0], b[0], groups=groups)
        return OverDraws.of([right.mean() for right in a], [right.mean() for right in b])

    mean = {name: float(np.mean([right.mean() for right in found])) for name, found in rights.items()}
    order = sorted(rights, key=lambda name: -mean[name])  # of equal ones the first, which is the cheaper kind
    best, rest = order[0], order[1:]
    behind = separated([compared(best, other) for other in rest])
    tied = (best, *(name for name, lost in zip(rest, behind, strict=True) if not lost))
    hurts: tuple[str, ...] = ()
    if HEAD in rights and (blind := [name for name in BLIND if name in rights]):
        wins = separated([compared(name, HEAD) for name in blind])
        hurts = tuple(name for name, won in zip(blind, wins, strict=True) if won)
    return Standing(shots, tuple(order), tied, next(name for name in rights if name in tied), hurts)
