"""Some images of a source, spread over it: what engines prove themselves on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from precompute.engines.base import Tensors
from precompute.engines.guard import IMAGES, Sample, spread
from precompute.extraction.pipeline import decode_threads, read
from precompute.inputs.base import Preprocess
from precompute.sources.base import Source
from precompute.system import cores


def sample_of(source: Source, preprocess: Preprocess, *, workers: int | None) -> Sample:
    """The samples of `source` that engines are to prove themselves on, read when they are first needed."""
    rows, plain = np.arange(len(source)), preprocess.plain()  # what `auto` is does not depend on the views
    return Sample(lambda: first_samples(source, rows, plain, workers=workers))


def first_samples(
    source: Source, rows: NDArray[np.int64], preprocess: Preprocess, *, workers: int | None, count: int = IMAGES
) -> list[Tensors]:
    """Up to `count` samples as `Preprocess.host` gives them, spread over `rows`; those that fail are left out.

    Where some cannot be read, others nearby take their place, as far as a second look goes.
    """
    samples: list[Tensors] = []
    seen: set[int] = set()
    with decode_threads(workers or cores()) as pool:
        for wanted in (count, 4 * count):
            fresh = [row for row in spread(rows, wanted).tolist() if row not in seen]
            seen.update(fresh)
            for item in pool.map(lambda row: read(source, row, preprocess, None), fresh):
                if item.tensors is not None and len(samples) < count:
                    samples.append(item.tensors)
            if len(samples) == count:
                break
    return samples
