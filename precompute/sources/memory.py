"""Samples that a program holds: arrays, lists of encoded images, and datasets such as those of torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from precompute.errors import SampleError, SourceError
from precompute.sources.array_files import Columns
from precompute.sources.array_table import table_of
from precompute.sources.base import Raw, Source, Table
from precompute.sources.images_array import bmp, images_of

NO_CLASS = -1  # what data sets write for an item without a label


class HeldSource(Source):
    """Samples of a program, which says by a function what the bytes of each are.

    order: (N,) the program's number of each row of `table`.
    """

    def __init__(self, name: str, table: Table, data: Callable[[int], bytes], order: NDArray[Any]) -> None:
        self.name, self.table = name, table
        self._data, self._order = data, order

    def read(self, row: int) -> Raw:
        """See `Source`."""
        data = self._data(int(self._order[row]))
        return Raw(data, int(self.table.sizes[row]), int(self.table.mtimes[row]))


def is_paths(samples: Any) -> bool:
    """Whether it is a list of paths of files."""
    return (
        isinstance(samples, list | tuple) and bool(samples) and all(isinstance(one, str | PathLike) for one in samples)
    )


def is_texts(samples: Any) -> bool:
    """Whether it is a list of texts, where those are what is requested: paths of files are then objects of Path."""
    return isinstance(samples, list | tuple) and bool(samples) and all(isinstance(one, str) for one in samples)


def texts_of(
    texts: Sequence[str], *, ids: Any = None, labels: Any = None, splits: Any = None, name: str = "a list of texts"
) -> HeldSource:
    """A source of texts in memory, for `extract`. ids, labels, splits: (n,), see `images_of`; by default numbered."""
    data = [text.encode("utf-8", "surrogatepass") for text in texts]
    return encoded_samples(data, Columns(name, len(data), main="texts", ids=ids, labels=labels, splits=splits), name)


def source_of(samples: Any) -> Source:
    """The source that `samples` are: an array (n, h, w) or (n, h, w, 3) of uint8; a list of the bytes of image files;
    or anything with a length that gives (image, label) by number, as torch's datasets do, without a transform.

    Raises SourceError for anything else.
    """
    if isinstance(samples, np.ndarray):
        return images_of(samples)
    if isinstance(samples, list | tuple) and samples and all(isinstance(one, bytes) for one in samples):
        return encoded_images(samples)
    if hasattr(samples, "__getitem__") and hasattr(samples, "__len__") and not isinstance(samples, list | tuple | dict):
        return dataset(samples)
    raise SourceError(
        f"A {type(samples).__name__} is not a source.",
        hint="Give a path, a list of paths, an array of uint8, a list of the bytes of images, or a dataset of "
        "(image, label).",
    )


def encoded_images(
    images: Sequence[bytes], *, ids: Any = None, labels: Any = None, splits: Any = None, name: str = "a list of images"
) -> HeldSource:
    """A source of the bytes of image files. ids, labels, splits: (n,), see `images_of`."""
    return encoded_samples(images, Columns(name, len(images), ids=ids, labels=labels, splits=splits), name)


def encoded_samples(samples: Sequence[bytes], columns: Columns, name: str) -> HeldSource:
    """A source of the bytes of samples, with what is known of them."""
    table, order = table_of(columns)
    for row, place in enumerate(order.tolist()):
        table.sizes[row] = len(samples[place])
        table.mtimes[row] = xxhash.xxh3_64_intdigest(samples[place]) >> 1
    return HeldSource(name, table, samples.__getitem__, order)


def dataset(samples: Any, *, ids: Any = None, splits: Any = None, name: str | None = None) -> HeldSource:
    """A source of a map-style dataset of (image, label), such as `torchvision.datasets.FashionMNIST(root)`.

    Images are PIL's, or arrays or tensors of uint8 (h, w), (h, w, 3) or (3, h, w); so it has no transform that makes
    floats. Labels are its `targets` where it has them, named by its `classes`; else each item is requested once more.
    None is no label, nor is -1 where there are `classes`.
    It does not say whether an item has changed, so a second run reads all of them again, and computes what is new.
    Raises SourceError.
    """
    name = name or f"a {type(samples).__name__}"
    count = len(samples)
    targets = getattr(samples, "targets", None)
    labels = [_label(samples, number) for number in range(count)] if targets is None else _plain(targets)
    classes = getattr(samples, "classes", None)
    if classes is not None and all(label is None or isinstance(label, int) for label in labels):
        labels = [None if label == NO_CLASS else label for label in labels]
        if all(label is None or 0 <= label < len(classes) for label in labels):
            labels = [None if label is None else str(classes[label]) for label in labels]
    labels = ["" if label is None else label for label in labels]
    table, order = table_of(Columns(name, count, ids=ids, labels=labels, splits=splits))
    table.mtimes[:] = time.time_ns()  # another number in every run: nothing is taken for unchanged
    return HeldSource(name, table, partial(_item_bytes, samples), order)  # a lambda could not go to other processes


def _item_bytes(samples: Any, number: int) -> bytes:
    return _encoded(_item(samples, number))


def _item(samples: Any, number: int) -> Any:
    try:
        return samples[number]
    except Exception as error:  # the program's own code, which may fail in any way for one item
        raise SampleError(f"{type(error).__name__}: {error}", reason="UNREADABLE") from error


def _plain(values: Any) -> list[Any]:
    found = values.tolist() if hasattr(values, "tolist") else list(values)
    return [value.item() if hasattr(value, "item") else value for value in found]


def _label(samples: Any, number: int) -> Any:
    """None where the item has none or cannot be had, which is reported when it is read."""
    try:
        item = _item(samples, number)
    except SampleError:
        return None
    if not isinstance(item, tuple | list) or len(item) < 2:
        return None
    return item[1].item() if hasattr(item[1], "item") else item[1]


def _encoded(item: Any) -> bytes:
    image = item[0] if isinstance(item, tuple | list) else item
    if isinstance(image, bytes):
        return image
    if hasattr(image, "convert"):  # PIL's, also of a palette or with an alpha channel
        pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    else:
        pixels = np.asarray(image)
        if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3):
            pixels = np.moveaxis(pixels, 0, -1)
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[:, :, 0]
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise SampleError(
            f"an image of {pixels.dtype} {pixels.shape}; leave transforms out of the dataset", reason="UNDECODABLE"
        )
    return bmp(pixels)
