"""Some images of a source, spread over it: what engines prove themselves on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from precompute.engines.base import Tensors
from precompute.engines.guard import IMAGES, Sample, spread
from precompute.extraction.pipeline import decode_threads, read
from precompute.inputs.base import Preprocess, Shape, shape_of
from precompute.sources.base import Source
from precompute.system import cores


def sample_of(source: Source, preprocess: Preprocess, *, workers: int | None) -> Sample:
    """The samples of `source` that engines are to prove themselves on, read when they are first needed."""
    rows, plain = np.arange(len(source)), preprocess.plain()  # what `auto` is does not depend on the views

    def samples() -> list[Tensors]:
        found = first_samples(source, rows, plain, workers=workers)
        return [*found, *plain.between(found)]

    return Sample(samples)


def first_samples(
    source: Source, rows: NDArray[np.int64], preprocess: Preprocess, *, workers: int | None, count: int = IMAGES
) -> list[Tensors]:
    """Up to `count` samples of each shape as `Preprocess.host` gives them, spread over `rows`; those that fail are
    left out.

    Where some cannot be read, others nearby take their place, as far as a second look goes. Where samples have several
    shapes they are also spread over the samples in the order of their sizes, so that the shortest and the longest are
    among them.
    """
    shapes = len(preprocess.examples())
    by_size = rows[np.argsort(source.table.sizes[rows], kind="stable")] if shapes > 1 else rows[:0]
    samples: dict[Shape, list[Tensors]] = {}
    seen: set[int] = set()
    with decode_threads(workers or cores()) as pool:
        for wanted in (count, 4 * count):
            looked = [*spread(rows, wanted), *_ends(by_size, wanted, shapes)]
            fresh = [row for row in dict.fromkeys(map(int, looked)) if row not in seen]
            seen.update(fresh)
            for item in pool.map(lambda row: read(source, row, preprocess, None), fresh):
                if item.tensors is not None:
                    found = samples.setdefault(shape_of(item.tensors), [])
                    if len(found) < count:
                        found.append(item.tensors)
            if len(samples) == shapes and all(len(found) == count for found in samples.values()):
                break
    return [one for found in samples.values() for one in found]


def _ends(rows: NDArray[np.int64], wanted: int, shapes: int) -> NDArray[np.int64]:
    """Of `rows`, ordered by size: some at equal distances, and the first and the last, which may be of a rare shape."""
    if not len(rows):
        return rows
    return np.concatenate([rows[-wanted:], rows[:wanted], spread(rows, shapes * wanted)])
