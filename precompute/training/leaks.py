"""What a scored split shares with the training images: the same bytes, the same group, nearly the same picture."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache
from precompute.heads import RowView
from precompute.heads.base.progress import report
from precompute.heads.scoring.scores import wilson_interval
from precompute.system.samples import AUDIO, IMAGE, IMAGES, TEXT, Words, modality_of_spec
from precompute.training.similarity import nearest
from precompute.training.targets import CLASSES, LABELS, NUMBER, Rows, Target, own_classes

# Cosine between features, less the mean of the training features: all features of one backbone have a large part in
# common, which says nothing. Copies of flower photos at half their size, or with a twentieth cut off, reach it in 62 to
# 100 of 100 cases, and 0.3 to 5 in 100 photos without a copy do (docs/scores.md, by backbone): its pairs are suspects.
# Another take of a word by the same speaker reaches 0.9 in 11 to 93 of 100 clips, and 0.98 in none to 13; there all
# copies as OGG still do.
SIMILARITY = {IMAGE: 0.9, TEXT: 0.9, AUDIO: 0.98}
# The cost of a search is scored images x training images x (features + PASSES); beyond SEARCH_MOST only a sample of the
# scored images is searched unasked. That is ten times 10,000 x 50,000 x 2,048: minutes on two cores, where all of
# ImageNet's validation set would take the better part of an hour.
SEARCH_MOST = 10**13
PASSES = 32  # finding the highest of a block's products takes as long as this many more features would
SAMPLE_LEAST = 400  # images in a sample, at any cost: the interval for a rate is then 10 points wide at most
SHOWN = 8  # pictures that a note names; --json has all
SEVERAL = {CLASSES: "under more than one class", LABELS: "with different labels", NUMBER: "with different numbers"}


@dataclass(frozen=True)
class Near:
    """A scored image, the training image most like it, their similarity, and whether their targets agree."""

    id: str
    train_id: str
    similarity: float
    same_class: bool


@dataclass(frozen=True)
class Sample:
    """What a search of a sample says of all images that it was drawn from.

    searched : images that were compared with every training image · of : images they were drawn from, in the
    proportions of the classes · interval : (low, high), Wilson's 95% interval for the share of suspects among those
    """

    searched: int
    of: int
    interval: tuple[float, float]


@dataclass(frozen=True)
class Leaks:
    """What one scored split shares with the training images.

    identical: images with the bytes of a training image · grouped: images whose group has training images (where
    groups are given) · near: suspects among the others, most similar first · similarity: the one that makes a
    suspect · sample: where only some of the others were searched, which share, else None; the rest may have copies that
    nobody saw · clean: (n,) the images that are none of these, in the order of the split's rows.
    """

    identical: int
    grouped: int
    near: tuple[Near, ...]
    similarity: float
    sample: Sample | None
    clean: NDArray[np.bool_]

    @property
    def left(self) -> int:
        """How many images are left."""
        return int(self.clean.sum())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        sample = self.sample and {**asdict(self.sample), "interval": list(self.sample.interval)}
        return {**vars(self), "near": [vars(pair) for pair in self.near], "sample": sample, "clean": self.left}


def find_leaks(
    cache: Cache,
    layer: str | None,
    parts: dict[str, Rows],
    digests: NDArray[np.int64],
    groups: NDArray[np.int64],
    similarity: float | None = None,
    target: Target | None = None,
    features: Any = None,
) -> dict[str, Leaks]:
    """Leaks of every scored split; of several views it is the plain ones that are compared.

    features: (N, ...) what is compared, an array or what a `RowView` takes, None for those of `layer`.

    similarity: what makes a suspect; all images are then searched, at any cost. None for SIMILARITY, and a sample of
    the images where all of them would cost more than SEARCH_MOST. target: None for the classes of the cache.
    """
    train, target = parts["train"], own_classes(cache) if target is None else target
    splits = [split for split in parts if split != "train"]
    identical = {split: np.isin(digests[parts[split]], digests[train]) for split in splits}
    grouped = {split: np.isin(groups[parts[split]], groups[train]) & ~identical[split] for split in splits}
    clean = {split: ~identical[split] & ~grouped[split] for split in splits}
    features = cache.plain_features(layer) if features is None else features
    width = math.prod(features.shape[1:])
    searched = {}
    for split in splits:
        others = np.flatnonzero(clean[split])
        size = len(others) if similarity is not None else _affordable(len(train), width)
        searched[split] = others[_sample(target.strata(parts[split][others]), size)]
    bar = SIMILARITY[modality_of_spec(cache.spec)] if similarity is None else similarity
    total, before, found = sum(map(len, searched.values())), 0, {}
    for split in splits:
        chosen, n_others = searched[split], int(clean[split].sum())
        rows = parts[split][chosen]
        counted = partial(_report, cache.words.plural, before, total)
        best, which = nearest(RowView(features, rows), RowView(features, train), bar, counted)
        before += len(rows)
        hit = np.flatnonzero(best > -math.inf)
        hit = hit[np.argsort(-best[hit], kind="stable")]
        same = _same(target, rows[hit], train[which[hit]])
        near = tuple(
            _pair(cache, rows[i], train[which[i]], float(best[i]), alike)
            for i, alike in zip(hit.tolist(), same.tolist(), strict=True)
        )
        clean[split][chosen[hit]] = False
        sample = None
        if len(chosen) < n_others:
            sample = Sample(len(chosen), n_others, wilson_interval(len(hit), len(chosen)))
        counts = int(identical[split].sum()), int(grouped[split].sum())
        found[split] = Leaks(*counts, near, bar, sample, clean[split])
    return found


def _report(unit: str, before: int, total: int, done: int, _: int) -> None:
    report(f"{unit} compared with those of train", before + done, total)


def _affordable(n_train: int, width: int) -> int:
    """How many images may be compared with `n_train` others of `width` features."""
    return max(SAMPLE_LEAST, SEARCH_MOST // (n_train * (width + PASSES)))


def _same(target: Target, rows: Rows, others: Rows) -> NDArray[np.bool_]:
    """(n,) which pairs of rows have the same target."""
    codes = target.codes(np.concatenate([rows, others]))
    same: NDArray[np.bool_] = codes[: len(rows)] == codes[len(rows) :]
    return same


def _pair(cache: Cache, row: np.int64, train: np.int64, similarity: float, same: bool) -> Near:
    names = cache.column("samples/id")
    return Near(os.fsdecode(bytes(names[row])), os.fsdecode(bytes(names[train])), similarity, same)


def _sample(labels: NDArray[np.integer[Any]], size: int) -> Rows:
    """Which `size` of the images with these labels are searched, in order, in the proportions of the classes.

    Every image has the same chance: they are put in order by class, at random inside each, and taken at equal steps
    from a random start (systematic sampling: W. G. Cochran, Sampling Techniques, 3rd edition, 1977, chapter 8).
    """
    n, rng = len(labels), np.random.default_rng(0)
    if size >= n:
        return np.arange(n)
    order = np.lexsort((rng.random(n), labels))
    steps = ((np.arange(size) + rng.random()) * n / size).astype(np.int64)
    chosen: Rows = np.sort(order[np.minimum(steps, n - 1)])  # rounding may take the last step to n
    return chosen


def two_labels(cache: Cache, target: Target, rows: Rows, digests: NDArray[np.int64]) -> list[list[str]]:
    """The ids of each picture that occurs with several targets, such as classes, byte for byte, among `rows`."""
    pairs = np.unique(np.stack([digests[rows], target.codes(rows)]), axis=1)
    doubtful, count = np.unique(pairs[0], return_counts=True)
    names = cache.column("samples/id")
    return [[os.fsdecode(bytes(names[row])) for row in rows[digests[rows] == digest]] for digest in doubtful[count > 1]]


def leak_notes(
    leaks: dict[str, Leaks], doubtful: list[list[str]], task: str = CLASSES, words: Words = IMAGES
) -> list[str]:
    """Notes about optimistic scores and doubtful labels. words: what the samples are called."""
    notes, many, one = [], words.plural, words.one
    for split, found in leaks.items():
        if found.identical:
            notes.append(
                f"{found.identical} {many} of {split} are byte-identical to training {many}: its score is optimistic"
            )
        if found.grouped:
            notes.append(
                f"{found.grouped} {many} of {split} share a group with training {many}: its score is optimistic"
            )
        if found.near:
            notes.append(
                f"{len(found.near)} {many} of {split} look nearly like a training {one} "
                f"(cosine {found.similarity:g} or more)"
            )
        if found.sample:
            low, high = found.sample.interval
            notes.append(
                f"only a sample of {split} was searched for near-duplicates, {found.sample.searched:,} of "
                f"{found.sample.of:,} {many}: {low:.2%} to {high:.2%} of all look nearly like a training {one} (95%); "
                f"those outside it are not known; --similarity {found.similarity:g} searches all, however long"
            )
    if doubtful:
        notes.append(
            f"{len(doubtful)} {words.things} occur {SEVERAL[task]}, byte for byte: "
            + "; ".join(" = ".join(ids) for ids in doubtful[:SHOWN])
            + ("; ..." if len(doubtful) > SHOWN else "")
        )
    return notes
