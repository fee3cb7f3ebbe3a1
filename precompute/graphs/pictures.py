"""The pictures that a graph is compared with `predict` on, calibrated with and scored on."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from precompute.cache import open_cache
from precompute.errors import CacheError, PrecomputeError, SampleError, SourceError
from precompute.finetuning.opening import HeadFile
from precompute.graphs.resize import other_order
from precompute.inputs.images.decode import decode_picture, quiet_pillow
from precompute.inputs.images.formats import IMAGES
from precompute.inputs.images.transform import Transform
from precompute.sources.base import Source
from precompute.sources.registry import open_source

MOST_CHECKED, MOST_CALIBRATING, MOST_SCORED = 32, 100, 2000
MADE_SIZES = ((3, 2), (301, 17), (61, 240), (224, 224), (1600, 1203))
"""(width, height) of pictures that are made: tiny, longer than wide and the other way round, odd, large."""
VAL = 2  # of a table's splits, see sources.base.Table


@dataclass(frozen=True)
class Picture:
    """A decoded picture. pixels: (H, W, 3) uint8, upright, RGB · pillow: whether precompute has Pillow resize it ·
    network_input: (crop, crop, 3) uint8, what precompute makes of it."""

    name: str
    pixels: NDArray[np.uint8]
    pillow: bool
    network_input: torch.Tensor


@dataclass(frozen=True)
class Pictures:
    """Files of pictures: from a `source`, or made and found (`files`, names and bytes) where there is none.

    about: words for them.
    """

    about: str
    source: Source | None = None
    files: tuple[tuple[str, bytes], ...] = ()

    def checked(self, transform: Transform) -> Iterator[Picture]:
        """Those of the source, evenly spaced, or else the files, but for those that cannot be decoded, or that Pillow
        resizes in the other order."""
        if self.source is None:
            found = iter([picture_of(name, raw, transform) for name, raw in self.files])
        else:
            found = self._of(evenly(np.arange(len(self.source)), MOST_CHECKED), transform)
        for picture in found:
            height, width = picture.pixels.shape[:2]
            if not (picture.pillow and other_order(width, height, transform)):
                yield picture

    def calibrating(self, transform: Transform) -> Iterator[Picture]:
        """Pictures that are not scored, where there are such."""
        if self.source is None:
            return
        scored = set(self._scored().tolist())
        others = [row for row in range(len(self.source)) if row not in scored]
        yield from self._of(evenly(np.array(others or range(len(self.source))), MOST_CALIBRATING), transform)

    def labelled(self, transform: Transform, names: Sequence[str]) -> Iterator[tuple[Picture, int]]:
        """Pictures whose class is one of `names`, with its place: of the split val, or of all where there is none."""
        if self.source is None:
            return
        table = self.source.table
        place = {name: number for number, name in enumerate(names)}
        classes = [place.get(os.fsdecode(name), -1) for name in table.classes]
        rows = [row for row in self._scored().tolist() if classes[table.labels[row]] >= 0]
        for row in evenly(np.array(rows, np.intp), MOST_SCORED).tolist():
            for picture in self._of(np.array([row]), transform):
                yield picture, classes[table.labels[row]]

    def _scored(self) -> NDArray[np.intp]:
        assert self.source is not None
        table = self.source.table
        labelled = np.flatnonzero(table.labels >= 0)
        held = labelled[table.splits[labelled] == VAL]
        return held if len(held) else labelled

    def _of(self, rows: NDArray[np.intp], transform: Transform) -> Iterator[Picture]:
        assert self.source is not None
        for row in rows.tolist():
            try:
                yield picture_of(self.source.id_of(row), self.source.read(row).data, transform)
            except SampleError:
                continue


def picture_of(name: str, raw: bytes, transform: Transform) -> Picture:
    """Raises SampleError for what is no picture."""
    with quiet_pillow():
        opened = decode_picture(raw, transform)
        made = opened.plain(transform).permute(1, 2, 0).contiguous()
        if isinstance(opened.pixels, torch.Tensor):
            return Picture(name, opened.pixels.permute(1, 2, 0).contiguous().numpy().copy(), False, made)
        return Picture(name, np.array(opened.pixels), True, made)


def find_pictures(file: HeadFile, check: str | os.PathLike[str] | None) -> Pictures:
    """Those of `check`, a source as `predict` takes it; else those that the head was trained on, where they are still
    available; else photos that scikit-learn brings and pictures that are made.

    Raises SourceError where `check` holds no picture, and what opening it raises.
    """
    if check is not None:
        source = open_source(check, IMAGES)
        if not len(source):
            raise SourceError(f"{os.fspath(check)} holds no pictures.", hint="Name another folder by --check.")
        return Pictures(f"of {os.fspath(check)}", source)
    found = _recorded(file)
    return (
        found
        if found is not None
        else Pictures("that scikit-learn brings, and made ones", files=(*_photos(), *_made()))
    )


def _recorded(file: HeadFile) -> Pictures | None:
    """The source of the cache that the head was trained on, where both are available."""
    training = file.metadata.get("training")
    cache = training.get("cache") if isinstance(training, dict) else None
    source = training.get("source") if isinstance(training, dict) else None
    if isinstance(cache, str):
        for folder in (Path(), Path(file.path).parent):
            if (folder / cache).is_file():
                source = _source_of(folder / cache) or source
    if not isinstance(source, str) or not os.path.isdir(source):
        return None
    try:
        opened = open_source(source, IMAGES)
    except PrecomputeError:
        return None
    return Pictures(f"of {source}, which it was trained on", opened) if len(opened) else None


def _source_of(cache: Path) -> str | None:
    try:
        with open_cache(cache) as opened:
            origin = opened.last_run.get("source")
    except CacheError:
        return None
    return origin if isinstance(origin, str) else None


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
