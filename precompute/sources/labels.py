"""What the folders above an image say of it: its split and its class; and what names of files say of a split."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from precompute.sources.base import ascii_name

SPLIT_NAMES = {
    **dict.fromkeys((b"train", b"training", b"trn"), 1),
    **dict.fromkeys((b"val", b"valid", b"validation", b"dev"), 2),
    **dict.fromkeys((b"test", b"testing", b"tst", b"eval", b"evaluation"), 3),
}
"""Folder names (in any case) that mean a split, with the split's code: 1 train, 2 val, 3 test."""

SPLIT_IN_NAME = re.compile(rb"([a-z]+)(?:[-_.]?[0-9]+(?:[-_.](?:of[-_.])?[0-9]+)*)?")
"""`train`, `train-000`, `val_00000-of-00100`; what else follows the word may make it mean something else."""

Tops = tuple[bytes, ...]


@dataclass(frozen=True)
class Labels:
    """split: code by key of `tops` · label: index into `classes` or -1, by key · mixed: splits' names among classes."""

    split: dict[int, int]
    label: dict[int, int]
    classes: tuple[bytes, ...]
    mixed: tuple[bytes, ...]


def tops_of(folder: bytes) -> Tops:
    """The first two levels of a path relative to the root that ends with `/` or is empty; no more of it matters."""
    return tuple(folder.split(b"/", 2)[: min(2, folder.count(b"/"))])


def label_folders(tops: Mapping[int, Tops], taken: Collection[int]) -> Labels:
    """Split and class of the folders `taken`, which may be some of `tops`: all that hold images, up to two levels each.

    Which names are splits is decided by the whole source: its first few images may all be in a class named `test`.
    """
    first = {levels[0] for levels in tops.values() if levels}
    splits_on_top = bool(first) and all(tops.values()) and all(name.lower() in SPLIT_NAMES for name in first)
    mixed = () if splits_on_top else tuple(sorted(name for name in first if name.lower() in SPLIT_NAMES))
    depth = 1 if splits_on_top else 0
    named = {key: tops[key][depth] for key in taken if len(tops[key]) > depth}
    classes = tuple(sorted(set(named.values())))
    index = {name: number for number, name in enumerate(classes)}
    return Labels(
        split={key: SPLIT_NAMES[tops[key][0].lower()] if splits_on_top else 0 for key in taken},
        label={key: index[named[key]] if key in named else -1 for key in taken},
        classes=classes,
        mixed=mixed,
    )


def splits_in_names(names: Sequence[bytes]) -> tuple[NDArray[np.uint8], list[str]]:
    """(files,) split codes from the names of files; none where they do not say one all alike, with a note."""
    codes = [_split_code(name) for name in names]
    notes = []
    if any(codes) and not all(codes):
        one, other = (ascii_name(os.fsdecode(name)) for name in (names[codes.index(max(codes))], names[codes.index(0)]))
        notes.append(f"no splits: {one} is named after one, {other} is not")
        codes = [0] * len(names)
    return np.array(codes, dtype=np.uint8), notes


def _split_code(name: bytes) -> int:
    folder, slash, _ = name.lower().partition(b"/")
    found = SPLIT_IN_NAME.fullmatch(folder)
    return SPLIT_NAMES.get(folder if slash else found[1] if found else b"", 0)
