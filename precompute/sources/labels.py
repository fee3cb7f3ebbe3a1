"""What the folders above an image say of it: its split and its class."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

SPLIT_NAMES = {
    **dict.fromkeys((b"train", b"training", b"trn"), 1),
    **dict.fromkeys((b"val", b"valid", b"validation", b"dev"), 2),
    **dict.fromkeys((b"test", b"testing", b"tst", b"eval", b"evaluation"), 3),
}
"""Folder names (in any case) that mean a split, with the split's code: 1 train, 2 val, 3 test."""

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

    What is a split is decided by the whole source: its first few images may all lie in a class named `test`.
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
