"""Which rows of a cache train a head and which score it, and what makes such a score doubtful."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from precompute.cache import SPLITS, Cache, Status, verify
from precompute.errors import CacheError, TrainingError
from precompute.heads import holdout
from precompute.heads.base.progress import report

Rows = NDArray[np.int64]

HOLDOUT = "hold-out"
HOLDOUT_FRACTION = 0.2


def whole_rows(cache: Cache, layer: str) -> NDArray[np.bool_]:
    """(N,) bool: rows with features, every one compared with its checksum: all are about to be read anyway."""
    checked = 0

    def count(rows: int) -> None:
        nonlocal checked
        checked += rows
        report("rows checked", checked, len(cache))

    found = verify(cache, layers=[layer], progress=count)
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
    cache: Cache, whole: NDArray[np.bool_], seed: int, groups: NDArray[np.int64] | None = None
) -> tuple[dict[str, Rows], list[str]]:
    """Row numbers of train and of what is scored; groups: (N,) what a hold-out must not part, None for digests."""
    groups = digest_groups(cache) if groups is None else groups
    labelled, known = cache.labels >= 0, cache.known_split
    usable = whole & labelled & known
    notes = []
    if foreign := int((~known).sum()):
        notes.append(f"{foreign} samples are in a split that this precompute does not know and are left out")
    if skipped := int((~labelled).sum()):
        notes.append(f"{skipped} samples have no label and are left out")
    if broken := int((labelled & known & ~whole).sum()):
        pending = int((labelled & known & (cache.status == Status.PENDING)).sum())
        notes.append(f"{broken} samples have no features ({pending} not computed yet) and are left out")
    if not usable.any():
        raise TrainingError(
            f"{cache.path} holds no labelled features.",
            hint="Put the images into one folder for each class (photos/cats, photos/dogs) and extract again.",
        )
    split = cache.split
    parts = {name: np.flatnonzero(usable & (split == name)) for name in SPLITS[1:]}
    for name in [name for name, rows in parts.items() if not len(rows)]:
        del parts[name]
        if (split == name).any():
            notes.append(f"split {name} has no usable image and is left out")
    if not parts:
        parts["train"] = np.flatnonzero(usable)
    elif "train" not in parts:
        raise TrainingError(
            f"{cache.path} has the splits {', '.join(parts)}, but no usable images in train.",
            hint="Add a folder train/ with the same class folders, and extract again.",
        )
    if parts.keys() == {"train"}:
        pool = parts["train"]
        try:
            train, held = holdout(cache.labels[pool], groups=groups[pool], fraction=HOLDOUT_FRACTION, seed=seed)
        except ValueError as error:
            raise TrainingError(
                f"{cache.path} has too few images to hold any out for scoring: no class has two different ones, "
                "or two groups.",
                hint="Add images, at least two different ones (or groups) for each class.",
            ) from error
        parts = {"train": pool[train], HOLDOUT: pool[held]}
        notes.append(f"no val or test split: scored on a stratified hold-out of {HOLDOUT_FRACTION:.0%} (seed {seed})")
    return parts, notes


def digest_groups(cache: Cache) -> NDArray[np.int64]:
    """(N,) the same number for byte-identical files."""
    digests = np.ascontiguousarray(cache.column("samples/digest")).view("V32").ravel()
    groups: NDArray[np.int64] = np.unique(digests, return_inverse=True)[1]
    return groups


def check_classes(cache: Cache, parts: dict[str, Rows]) -> None:
    """Raise TrainingError for one class, or for a class that is scored but was never seen."""
    labels = cache.labels
    present = {split: set(np.unique(labels[rows]).tolist()) for split, rows in parts.items()}
    if len(present["train"]) < 2:
        only = cache.classes[next(iter(present["train"]))]
        raise TrainingError(
            f"All training images of {cache.path} have one class, {only!r}; there is nothing to tell apart.",
            hint="Add a folder with images of a second class beside it, and extract again.",
        )
    for split, found in present.items():
        if unseen := sorted(cache.classes[label] for label in found - present["train"]):
            raise TrainingError(
                f"Split {split} of {cache.path} has classes without usable training images: {', '.join(unseen[:8])}"
                f"{', ...' if len(unseen) > 8 else ''}.",
                hint="Add training images of these classes or take them out of the split, and extract again.",
            )
