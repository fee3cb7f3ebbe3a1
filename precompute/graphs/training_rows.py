"""Which pictures a head was trained on: by its feature file, where that is there and the one that it was trained on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from precompute.cache import open_cache
from precompute.errors import PrecomputeError
from precompute.finetuning.opening import HeadFile
from precompute.training.membership import PARTS, split_codes
from precompute.training.relabelling import Relabelling
from precompute.training.splits import HOLDOUT

HELD = ("val", "test", HOLDOUT)


@dataclass(frozen=True)
class TrainingRows:
    """source: where the pictures were, None where the file does not say · places: rows by id · codes: (N,) uint8, what
    the head used a row for, places in `membership.PARTS` · digests: (N, 32) uint8, SHA-256 of the pictures' files."""

    source: str | None
    places: dict[bytes, int]
    codes: NDArray[np.uint8]
    digests: NDArray[np.uint8]

    @cached_property
    def trained(self) -> frozenset[bytes]:
        """The digests of pictures that the head was trained on."""
        return frozenset(self.digests[row].tobytes() for row in np.flatnonzero(self.codes == PARTS.index("train")))

    def of(self, ids: NDArray[np.bytes_]) -> NDArray[np.intp]:
        """(n,) the row of each id, -1 for those that are not there."""
        return np.array([self.places.get(name, -1) for name in ids.tolist()], np.intp)

    def digest_of(self, name: bytes) -> bytes | None:
        """That of the picture with this id."""
        row = self.places.get(name)
        return None if row is None else self.digests[row].tobytes()


def training_rows(file: HeadFile) -> TrainingRows | None:
    """Those of the feature file with the name that `file` records, next to it or in the current folder.

    None where it is not there, or holds other features or pictures than the head was trained on. A network that was
    trained from images has the features next to it of another layer; the pictures decide there.
    """
    training = file.metadata.get("training")
    name = training.get("cache") if isinstance(training, dict) else None
    if not isinstance(name, str) or os.path.basename(name) != name:
        return None
    for folder in (Path(file.path).parent, Path()):
        if (folder / name).is_file() and (found := _read(folder / name, file)) is not None:
            return found
    return None


def _read(path: Path, file: HeadFile) -> TrainingRows | None:
    try:
        with open_cache(path) as opened:
            if not file.is_tail and opened.key != file.metadata.get("key"):
                return None
            cache, target, _ = Relabelling.of_head(file.metadata, file.path, file.task).apply(opened)
            codes = split_codes(file.metadata, cache, target, file.path)
            places = {name: row for row, name in enumerate(opened.column("samples/id").tolist())}
            source = opened.last_run.get("source")
            digests = np.array(opened.column("samples/digest"), np.uint8)
    except PrecomputeError:
        return None
    return TrainingRows(source if isinstance(source, str) else None, places, codes.copy(), digests)
