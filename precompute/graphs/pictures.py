"""The pictures that a graph is compared with `predict` on, calibrated with and scored on."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from precompute.cache import SPLITS
from precompute.errors import PrecomputeError, SampleError, SourceError
from precompute.finetuning.opening import HeadFile
from precompute.graphs.resize import other_order
from precompute.graphs.training_rows import HELD, TrainingRows, training_rows
from precompute.inputs.images.decode import decode_picture, quiet_pillow
from precompute.inputs.images.formats import IMAGES
from precompute.inputs.images.transform import Transform
from precompute.sources.base import Source
from precompute.sources.registry import open_source
from precompute.training.membership import PARTS

MOST_CHECKED, MOST_CALIBRATING, MOST_SCORED = 32, 100, 2000
MADE_SIZES = ((3, 2), (301, 17), (61, 240), (224, 224), (1600, 1203))
"""(width, height) of pictures that are made: tiny, longer than wide and the other way round, odd, large."""
HELD_SPLITS = ("val", "test")
NEW = 255  # in place of a code: a picture that the feature file of the training does not have
UNKNOWN = "pictures that it may have been trained on, so there is no accuracy"


@dataclass(frozen=True)
class Picture:
    """A decoded picture. pixels: (H, W, 3) uint8, upright, RGB · pillow: whether precompute has Pillow resize it ·
    network_input: (crop, crop, 3) uint8, what precompute makes of it · other_order: whether Pillow resizes it in
    another order than a graph."""

    name: str
    pixels: NDArray[np.uint8]
    pillow: bool
    network_input: torch.Tensor
    other_order: bool = False


@dataclass(frozen=True)
class Roles:
    """Rows of a source for a network of 8 bits, none of them in both. calibrating: to find ranges on · compared: to
    compare both networks on · scored: whether the accuracy on these says something · about: words for `compared`."""

    calibrating: NDArray[np.intp]
    compared: NDArray[np.intp]
    scored: bool
    about: str


@dataclass(frozen=True)
class Pictures:
    """Files of pictures: from a `source`, or made and found (`files`, names and bytes) where there is none.

    about: words for them · trained: what is known of the training · own: whether only pictures of the training count,
    unchanged since.
    """

    about: str
    source: Source | None = None
    files: tuple[tuple[str, bytes], ...] = ()
    trained: TrainingRows | None = None
    own: bool = False

    def checked(self, transform: Transform) -> Iterator[Picture]:
        """Those of the source, evenly spaced, or else the files, but for those that cannot be decoded."""
        if self.source is None:
            yield from (picture_of(name, raw, transform) for name, raw in self.files)
        else:
            rows = np.arange(len(self.source))
            yield from self._of(evenly(rows[self._known() >= 0] if self.own else rows, MOST_CHECKED), transform)

    def calibrating(self, transform: Transform) -> Iterator[Picture]:
        """Pictures that are neither scored nor compared."""
        if self.source is not None:
            yield from self._of(self.roles.calibrating, transform)

    def compared(self, transform: Transform, names: Sequence[str]) -> Iterator[tuple[Picture, int]]:
        """Pictures to compare two networks on, each with the place of its class in `names`, -1 where it is not one of
        them, or where the head may have been trained on the pictures. Where some have such a class, they are all."""
        if self.source is None:
            return
        table, rows = self.source.table, self.roles.compared
        place = {name: number for number, name in enumerate(names)}
        classes = np.array([*(place.get(os.fsdecode(name), -1) for name in table.classes), -1], np.intp)
        true = classes[table.labels] if self.roles.scored else np.full(len(table), -1, np.intp)
        if (true[rows] >= 0).any():
            rows = rows[true[rows] >= 0]
        for row in evenly(rows, MOST_SCORED).tolist():
            for picture in self._of(np.array([row]), transform, unseen=self.roles.scored):
                yield picture, int(true[row])

    @cached_property
    def roles(self) -> Roles:
        """By what is known of the training; else by the splits of the source."""
        assert self.source is not None
        table, known = self.source.table, self._known()
        rows = np.flatnonzero(known >= 0) if self.own else np.arange(len(table))
        by_split = rows[np.isin(table.splits[rows], [SPLITS.index(name) for name in HELD_SPLITS])]
        if self.trained is not None and (known >= 0).any():
            codes = np.where(known >= 0, self.trained.codes[known], NEW)
            parts = {name: rows[codes[rows] == PARTS.index(name)] for name in HELD} | {"new": rows[codes[rows] == NEW]}
            parts = {name: found for name, found in parts.items() if len(found)}
            held = np.sort(np.concatenate([*parts.values(), np.zeros(0, np.intp)]))
            about = f"pictures that it was not trained on ({', '.join(parts)})"
        elif len(by_split):
            held, about = by_split, "pictures of the splits val and test"
        elif self.trained is not None:
            held, about = rows, "other pictures, none of which it was trained on"
        else:
            held, about = rows[:0], ""
        if not len(held):
            calibrating = evenly(rows, min(MOST_CALIBRATING, len(rows) // 2))
            return Roles(calibrating, np.setdiff1d(rows, calibrating), False, UNKNOWN)
        others = np.setdiff1d(rows, held)
        calibrating = evenly(others, MOST_CALIBRATING)
        if not len(others):
            calibrating = evenly(held, min(MOST_CALIBRATING, len(held) // 2))
        return Roles(calibrating, np.setdiff1d(held, calibrating), True, about)

    def _known(self) -> NDArray[np.intp]:
        """(n,) the row of each picture of the source in the feature file of the training, -1 for none."""
        assert self.source is not None
        ids = self.source.table.ids
        return np.full(len(ids), -1, np.intp) if self.trained is None else self.trained.of(ids)

    def _of(self, rows: NDArray[np.intp], transform: Transform, *, unseen: bool = False) -> Iterator[Picture]:
        """unseen: but for those with the bytes of a picture of the training."""
        assert self.source is not None
        for row in rows.tolist():
            try:
                raw = self.source.read(row).data
                if self.trained is not None and (self.own or unseen):
                    digest = hashlib.sha256(raw).digest()
                    if unseen and digest in self.trained.trained:
                        continue
                    if self.own and digest != self.trained.digest_of(bytes(self.source.table.ids[row])):
                        continue
                yield picture_of(self.source.id_of(row), raw, transform)
            except SampleError:
                continue


def picture_of(name: str, raw: bytes, transform: Transform) -> Picture:
    """Raises SampleError for what is no picture."""
    with quiet_pillow():
        opened = decode_picture(raw, transform)
        made = opened.plain(transform).permute(1, 2, 0).contiguous()
        if isinstance(opened.pixels, torch.Tensor):
            return Picture(name, opened.pixels.permute(1, 2, 0).contiguous().numpy().copy(), False, made)
        return Picture(name, np.array(opened.pixels), True, made, other_order(*opened.pixels.size, transform))


def find_pictures(file: HeadFile, check: str | os.PathLike[str] | None) -> Pictures:
    """Those of `check`, a source as `predict` takes it; else those that the head was trained on, where they are still
    available; else `any_pictures`.

    Raises SourceError where `check` holds no picture, and what opening it raises.
    """
    trained = training_rows(file)
    if check is not None:
        source = open_source(check, IMAGES)
        if not len(source):
            raise SourceError(f"{os.fspath(check)} holds no pictures.", hint="Name another folder by --check.")
        return Pictures(f"of {os.fspath(check)}", source, trained=trained)
    return _recorded(trained) or any_pictures()


def any_pictures() -> Pictures:
    """Photos that scikit-learn brings, and pictures that are made."""
    return Pictures("that scikit-learn brings, and made ones", files=(*_photos(), *_made()))


def _recorded(trained: TrainingRows | None) -> Pictures | None:
    """The folder that the head was trained on, where that is still there with some of its pictures."""
    if trained is None or trained.source is None or not os.path.isdir(trained.source):
        return None
    try:
        opened = open_source(trained.source, IMAGES)
    except PrecomputeError:
        return None
    found = Pictures(f"of {trained.source}, which it was trained on", opened, trained=trained, own=True)
    return found if (trained.of(opened.table.ids) >= 0).any() else None


def _photos() -> Iterator[tuple[str, bytes]]:
    """Two photos, JPEG."""
    import sklearn.datasets

    folder = Path(sklearn.datasets.__file__).parent / "images"
    for path in sorted(folder.glob("*.jpg")):
        yield path.name, path.read_bytes()


def _made() -> Iterator[tuple[str, bytes]]:
    """Noise over a gradient, of several sizes, as JPEG and as PNG."""
    generator = np.random.default_rng(0)
    for width, height in MADE_SIZES:
        grade = np.linspace(0, 200, width)[None, :, None] * np.linspace(0, 1, height)[:, None, None]
        pixels = (grade + generator.uniform(0, 55, (height, width, 3))).astype(np.uint8)
        for kind in ("JPEG", "PNG"):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, kind)
            yield f"{width} x {height} {kind}", file.getvalue()


def evenly(rows: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """At most so many of `rows`, evenly spaced."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).round().astype(np.intp)]
