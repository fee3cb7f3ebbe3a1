"""Some images of a source, spread over it: what engines prove themselves on."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from precompute.engines.guard import IMAGES, Sample, spread
from precompute.extraction.pipeline import decode_threads, read
from precompute.inputs.images.transform import Transform
from precompute.sources.folder import Listing
from precompute.system import cores


def sample_of(listing: Listing, transform: Transform, *, workers: int | None) -> Sample:
    """The images of `listing` that engines are to prove themselves on, read when they are first needed."""
    rows = np.arange(len(listing))
    return Sample(lambda: first_images(listing, rows, transform, workers=workers))


def first_images(
    listing: Listing, rows: NDArray[np.int64], transform: Transform, *, workers: int | None, count: int = IMAGES
) -> list[torch.Tensor]:
    """Up to `count` decoded images, (3, crop, crop) uint8, spread over `rows`; those that cannot be read are left out.

    Where some cannot, others nearby take their place, as far as a second look goes.
    """
    images: list[torch.Tensor] = []
    seen: set[int] = set()
    with decode_threads(workers or cores()) as pool:
        for wanted in (count, 4 * count):
            fresh = [row for row in spread(rows, wanted).tolist() if row not in seen]
            seen.update(fresh)
            for item in pool.map(lambda row: read(listing, row, transform, None), fresh):
                if item.pixels is not None and len(images) < count:
                    images.append(item.pixels)
            if len(images) == count:
                break
    return images
