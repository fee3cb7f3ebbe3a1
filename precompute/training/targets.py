"""What is to be learned of each sample, in the order of a cache's rows: one class, several labels, or a number."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache
from precompute.errors import TrainingError
from precompute.heads.base.labels import label_strata
from precompute.system.samples import IMAGES, Words

Rows = NDArray[np.int64]

CLASSES, LABELS, NUMBER = "classes", "labels", "number"
TASKS = (CLASSES, LABELS, NUMBER)
AUTO = "auto"
NAMES = {CLASSES: "classes", LABELS: "several labels a sample", NUMBER: "a number"}
BINS = 10  # of numbers, by which a hold-out is stratified; each has BIN_LEAST samples or more on average
BIN_LEAST = 5
SHOWN = 8  # names in a message


@dataclass(frozen=True, eq=False)
class Target:
    """task: one of TASKS · names: the classes or the labels, () of numbers · known: (N,) bool, rows that have a target.

    values: (N,) int32, a place in `names` or -1, for classes; (N, L) uint8 of 0 and 1 for labels; (N,) float64, NaN
    where there is none, for numbers.
    """

    task: str
    names: tuple[str, ...]
    values: NDArray[Any]
    known: NDArray[np.bool_]

    def of(self, rows: Rows) -> NDArray[Any]:
        """What a head is fitted on: names of classes (n,), 0 and 1 (n, L), or numbers (n,)."""
        found: NDArray[Any] = self.values[rows]
        return found if self.task != CLASSES else np.array([*self.names, ""], dtype=np.str_)[found]  # -1: the last

    def codes(self, rows: Rows) -> Rows:
        """(n,) whole numbers that are equal where the targets are: the same class, the same labels, the same number."""
        if self.task == CLASSES:
            return self.values[rows].astype(np.int64)
        values = np.ascontiguousarray(self.values[rows])
        if self.task == LABELS:
            packed = np.ascontiguousarray(np.packbits(values, axis=1))
            values = packed.view(f"V{packed.shape[1]}").ravel()
        return np.unique(values, return_inverse=True)[1].astype(np.int64)

    def strata(self, rows: Rows, groups: Rows | None = None) -> Rows:
        """(n,) what a draw among `rows` keeps the shares of. groups: (n,) what stays together.

        A class; the rarest label of each sample or group, so that rare ones come into both parts (after K. Sechidis et
        al., ECML PKDD 2011); for numbers a tenth of their order, of the means of groups where there are any.
        """
        if self.task == CLASSES:
            return self.values[rows].astype(np.int64)
        unit = np.arange(len(rows)) if groups is None else np.unique(groups, return_inverse=True)[1]
        if self.task == LABELS:
            any_has = np.zeros((len(rows), len(self.names)), bool)
            np.logical_or.at(any_has, unit, self.values[rows] == 1)
            return label_strata(any_has)[unit].astype(np.int64)
        size = np.bincount(unit)
        means = np.bincount(unit, self.values[rows] / size[unit])
        distinct, code = np.unique(means, return_inverse=True)
        below = np.cumsum(np.bincount(code, minlength=len(distinct))) - np.bincount(code, minlength=len(distinct))
        bins = int(np.clip(len(means) // BIN_LEAST, 1, BINS))
        of_value: Rows = below * bins // max(1, len(means))
        return of_value[code][unit]

    def digest(self, into: Any) -> None:
        """Add names and values to a hash of hashlib."""
        dtype = {CLASSES: "<i4", LABELS: "u1", NUMBER: "<f8"}[self.task]
        if self.task != CLASSES:
            into.update(self.task.encode() + self.known.tobytes())
        into.update(np.ascontiguousarray(self.values, dtype=dtype).tobytes())
        into.update("\0".join(self.names).encode("utf-8", "surrogateescape"))

    @property
    def noun(self) -> str:
        """What a sample without a target has none of."""
        return "number" if self.task == NUMBER else "label"


def own_classes(cache: Cache) -> Target:
    """The cache's own labels as classes."""
    labels = cache.labels
    return Target(CLASSES, cache.classes, labels, labels >= 0)


def same_target(one: Target, other: Target) -> bool:
    """Whether the two ask the same thing: task and names, not values."""
    return (one.task, one.names) == (other.task, other.names)


def check_target(target: Target, parts: dict[str, Rows], path: str, words: Words = IMAGES) -> list[str]:
    """Notes on what cannot be learned or scored. words: what the samples are called.

    Raises TrainingError where nothing can be learned: one class, a class that is scored but was never seen, labels that
    all training samples or none have, one number.
    """
    if target.task == CLASSES:
        _check_classes(target, parts, path, words)
        return []
    train = target.values[parts["train"]]
    if target.task == NUMBER:
        if (train == train[0]).all():
            raise TrainingError(
                f"All training samples of {path} have one number, {train[0]:g}; there is nothing to learn.",
                hint="Name another column, or add samples.",
            )
        return []
    counts = train.sum(axis=0, dtype=np.int64)
    constant = (counts == 0) | (counts == len(train))
    if constant.all():
        raise TrainingError(
            f"Each label of {path} ({_listed(target.names)}) is one that all training samples have, or none.",
            hint="Add samples with other labels.",
        )
    if constant.any():
        names = [target.names[place] for place in np.flatnonzero(constant)]
        return [f"labels that all training samples have, or none, and that cannot be learned: {_listed(names)}"]
    return []


def _check_classes(target: Target, parts: dict[str, Rows], path: str, words: Words) -> None:
    present = {split: set(np.unique(target.values[rows]).tolist()) for split, rows in parts.items()}
    amounts = " If these numbers are amounts: --task number." if all(map(_is_whole, target.names)) else ""
    if len(present["train"]) < 2:
        only = target.names[next(iter(present["train"]))]
        raise TrainingError(
            f"All training {words.plural} of {path} have one class, {only!r}; there is nothing to learn.",
            hint=f"Add a folder with {words.plural} of a second class next to it, and extract again; or name another "
            "column.",
        )
    for split, found in present.items():
        if unseen := sorted(target.names[label] for label in found - present["train"]):
            raise TrainingError(
                f"Split {split} of {path} has classes without usable training {words.plural}: {_listed(unseen)}.",
                hint=f"Add training {words.plural} of these classes or take them out of the split, and extract again."
                + amounts,
            )


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def target_digest(cache: Cache, target: Target) -> str:
    """SHA-256 of the ids, images and targets of a cache, in the order of its rows."""
    digest = hashlib.sha256()
    for value in cache.column("samples/id").tolist():
        digest.update(len(value).to_bytes(4, "little") + value)
    digest.update(np.ascontiguousarray(cache.column("samples/digest")).tobytes())
    target.digest(digest)
    return digest.hexdigest()
