"""Which rows of a cache train a head and which score it, and what makes such a score doubtful."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from precompute.cache import SPLITS, Cache, Status, verify
from precompute.errors import CacheError, TrainingError
from precompute.heads import holdout
from precompute.heads.base.progress import report
from precompute.system.samples import IMAGES
from precompute.training.layers import JoinedCache
from precompute.training.targets import CLASSES, LABELS, NUMBER, Rows, Target, own_classes

__all__ = ["HOLDOUT", "HOLDOUT_FRACTION", "Rows", "digest_groups", "parts_of", "whole_rows"]

HOLDOUT = "hold-out"
HOLDOUT_FRACTION = 0.2


def whole_rows(cache: Cache, layer: str) -> NDArray[np.bool_]:
    """(N,) bool: rows with features, every one compared with its checksum: all are about to be read anyway.

    Of a `JoinedCache` those of every layer that is joined.
    """
    checked = 0

    def count(rows: int) -> None:
        nonlocal checked
        checked += rows
        report("rows checked", checked, len(cache) * len(stored))

    stored = [one.name for one in cache.inputs] if isinstance(cache, JoinedCache) else [layer]
    found = verify(cache, layers=stored, progress=count)
    if len(found.damaged):
        ids = cache.column("samples/id")
        names = ", ".join(repr(os.fsdecode(ids[row])) for row in found.damaged[:3])
        raise CacheError(
            f"{len(found.damaged)} of {len(cache)} rows in {cache.path} do not match their checksums: {names}"
            f"{', ...' if len(found.damaged) > 3 else ''}.",
            hint=f"Compute them again: precompute verify {cache.path} --source FOLDER --repair (or, for a file in "
            "progress, run its `precompute extract` command again).",
        )
    whole = np.zeros(len(cache), dtype=bool)
    whole[found.good] = True
    whole &= cache.status == Status.OK
    return whole


def parts_of(
    cache: Cache,
    whole: NDArray[np.bool_],
    seed: int,
    groups: NDArray[np.int64] | None = None,
    target: Target | None = None,
) -> tuple[dict[str, Rows], list[str]]:
    """Row numbers of train and of what is scored.

    groups: (N,) what a hold-out must not part, None for digests · target: None for the classes of the cache.
    """
    groups = digest_groups(cache) if groups is None else groups
    target = own_classes(cache) if target is None else target
    labelled, known, words = target.known, cache.known_split, cache.words
    usable = whole & labelled & known
    notes = []
    if foreign := int((~known).sum()):
        notes.append(f"{foreign} samples are in a split that this precompute does not know and are left out")
    if skipped := int((~labelled).sum()):
        notes.append(f"{skipped} samples have no {target.noun} and are left out")
    if broken := int((labelled & known & ~whole).sum()):
        pending = int((labelled & known & (cache.status == Status.PENDING)).sum())
        notes.append(f"{broken} samples have no features ({pending} not computed yet) and are left out")
    if not usable.any():
        examples = "photos/cats, photos/dogs" if words is IMAGES else f"{words.plural}/cats, {words.plural}/dogs"
        raise TrainingError(
            f"{cache.path} holds no labelled features.",
            hint=f"Put the {words.plural} into one folder for each class ({examples}) and extract again, or give "
            "labels by --label-column or --labels.",
        )
    split = cache.split
    parts = {name: np.flatnonzero(usable & (split == name)) for name in SPLITS[1:]}
    for name in [name for name, rows in parts.items() if not len(rows)]:
        del parts[name]
        if (split == name).any():
            notes.append(f"split {name} has no usable {words.one} and is left out")
    if not parts:
        parts["train"] = np.flatnonzero(usable)
    elif "train" not in parts:
        raise TrainingError(
            f"{cache.path} has the splits {', '.join(parts)}, but no usable {words.plural} in train.",
            hint="Add a folder train/ with the same class folders, and extract again.",
        )
    if parts.keys() == {"train"}:
        pool = parts["train"]
        try:
            train, held = holdout(
                target.strata(pool, groups[pool]), groups=groups[pool], fraction=HOLDOUT_FRACTION, seed=seed
            )
        except ValueError as error:
            alike = {CLASSES: "no class has", LABELS: "no label has", NUMBER: "there are no"}[target.task]
            raise TrainingError(
                f"{cache.path} has too few {words.plural} to hold any out for scoring: {alike} two different ones, "
                "or two groups.",
                hint=f"Add {words.plural}, at least two different ones (or groups) for each class.",
            ) from error
        parts = {"train": pool[train], HOLDOUT: pool[held]}
        by = {CLASSES: "", LABELS: " by the rarest label of each sample", NUMBER: " by size"}[target.task]
        notes.append(
            f"no val or test split: scored on a stratified hold-out of {HOLDOUT_FRACTION:.0%} (seed {seed}){by}"
        )
    return parts, notes


def digest_groups(cache: Cache) -> NDArray[np.int64]:
    """(N,) the same number for byte-identical files."""
    digests = np.ascontiguousarray(cache.column("samples/digest")).view("V32").ravel()
    groups: NDArray[np.int64] = np.unique(digests, return_inverse=True)[1]
    return groups
