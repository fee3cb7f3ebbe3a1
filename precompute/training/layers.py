"""Several layers of a cache as the features of one: pooled where they hold positions, scaled, side by side.

A layer that is stored with positions is averaged over them as it is read, so no pooled copy is written. Every layer is
divided by the length of its spread over the training images, so that each has the total variance 1: neither a loud nor
a wide layer outweighs the others where a distance or a penalty adds up over features. These numbers are in the head's
file, and `predict` makes the same features of images, in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache
from precompute.cache.key import spec_layers
from precompute.errors import HeadFormatError, HeadMismatchError, UsageError
from precompute.heads import RowView
from precompute.heads.base.inputs import check_number
from precompute.heads.base.rows import BLOCK_BYTES

__all__ = [
    "ALL",
    "JoinedCache",
    "JoinedFeatures",
    "LayerInput",
    "joined",
    "joined_as_saved",
    "lengths_of",
    "saved_inputs",
    "with_layers",
]

ALL = "all"
JOIN = " + "  # between the names of layers, where the features of several stand for one layer
# Tokens in front of those of an image's patches: none, a class token, one for distillation too, four registers more.
PREFIXES = (0, 1, 2, 5)
LEAST_SPREAD = 1e-30  # of a layer that is the same for all images; it stays as it is
MOST_LAYERS, MOST_VALUES = 1000, 2**31  # of a head's file

Array = NDArray[Any]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class LayerInput:
    """One layer: how its activation becomes features.

    shape: of the activation of one sample · positions: axes of it that are averaged over · prefix: tokens in front of
    the first of these that are left out · scale: what the mean is multiplied by.
    """

    name: str
    shape: tuple[int, ...]
    positions: tuple[int, ...] = ()
    prefix: int = 0
    scale: float = 1.0

    @property
    def width(self) -> int:
        return math.prod(size for axis, size in enumerate(self.shape) if axis not in self.positions)

    def features(self, stored: Array) -> NDArray[np.float32]:
        """Features (n, width) float32 of activations (n, *shape), or (n, prod(shape))."""
        values = stored.reshape(len(stored), *self.shape).astype(np.float32, copy=False)
        if self.positions:
            axes = tuple(axis + 1 for axis in self.positions)
            first = [slice(None)] * values.ndim
            first[axes[0]] = slice(self.prefix, None)
            values = values[tuple(first)].mean(axis=axes, dtype=np.float32)
        found: NDArray[np.float32] = values.reshape(len(stored), self.width) * np.float32(self.scale)
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "shape": list(self.shape), "positions": list(self.positions)}

    @classmethod
    def from_dict(cls, value: Any) -> LayerInput:
        """Raises ValueError for what is none."""
        if not isinstance(value, dict) or set(value) != {"name", "shape", "positions", "prefix", "scale"}:
            raise ValueError("a layer must have a name, shape, positions, prefix and scale")
        shape, positions = value["shape"], value["positions"]
        if not isinstance(value["name"], str) or not isinstance(shape, list) or not isinstance(positions, list):
            raise ValueError("a layer must have a name, and lists of sizes and positions")
        for size in shape:
            check_number("every size of a layer", size, whole=True, low=1, high=MOST_VALUES)
        for axis in positions:
            check_number("every position of a layer", axis, whole=True, low=0, high=len(shape))
        if positions != sorted(set(positions)) or math.prod(shape) > MOST_VALUES:
            raise ValueError("a layer's positions must be ascending, and its activation of a possible size")
        check_number("the prefix of a layer", value["prefix"], whole=True, low=0, high=MOST_VALUES)
        if value["prefix"] and (not positions or value["prefix"] >= shape[positions[0]]):
            raise ValueError("the prefix of a layer must leave positions to average over")
        check_number("the scale of a layer", value["scale"], low=0, open_low=True)
        return cls(value["name"], tuple(shape), tuple(positions), value["prefix"], float(value["scale"]))


def joined(inputs: Sequence[LayerInput], activations: Sequence[Array]) -> NDArray[np.float32]:
    """The features (n, d) of the activations (n, ...) of each of the layers, side by side."""
    return np.concatenate([one.features(stored) for one, stored in zip(inputs, activations, strict=True)], axis=1)


class JoinedFeatures:
    """The features (N, d), or (N, views, d), of several layers, float32, computed from the file as rows are requested.

    It replaces an array of features in a `RowView`: shape, dtype, `reshape` of what is in front of d, and
    indexing by a slice or by row numbers.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, inputs: Sequence[LayerInput], stored: Sequence[Any], lead: tuple[int, ...]) -> None:
        self.inputs, self._stored, self._lead = tuple(inputs), tuple(stored), lead
        self._views = [RowView(array) for array in stored]
        self.shape = (*lead, sum(one.width for one in inputs))
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self._lead[0]

    @property
    def strides(self) -> tuple[int, ...]:
        """Those of an array of this shape."""
        return tuple(self.dtype.itemsize * math.prod(self.shape[axis + 1 :]) for axis in range(self.ndim))

    def __getitem__(self, key: Any) -> Any:
        """Rows (k, ...) by a slice or an array of numbers; `[:, view]` gives a `JoinedFeatures` of one view."""
        if isinstance(key, tuple):
            every, view = key
            if every != slice(None) or len(self._lead) != 2:
                raise IndexError("joined features are indexed by rows, or as [:, view]")
            return JoinedFeatures(self.inputs, [array[:, view] for array in self._stored], self._lead[:1])
        rows = np.arange(len(self))[key]
        found = np.empty((len(rows), *self.shape[1:]), np.float32)
        flat = found.reshape(len(rows), math.prod(self._lead[1:]), self.shape[-1])
        column = 0
        for one, view in zip(self.inputs, self._views, strict=True):
            columns = slice(column, column + one.width)
            column = columns.stop
            size = max(1, BLOCK_BYTES // (4 * view.shape[1]))
            for start in range(0, len(rows), size):
                block = view[rows[start : start + size]]
                values = one.features(block.reshape(-1, math.prod(one.shape)))
                flat[start : start + size, :, columns] = values.reshape(len(block), -1, one.width)
        return found

    def reshape(self, *shape: Any) -> JoinedFeatures:
        """The same with other axes in front of d, such as (N * views, d)."""
        sizes = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        total = math.prod(self._lead)
        known = math.prod(size for size in sizes[:-1] if size != -1)
        lead = tuple(total // known if size == -1 else int(size) for size in sizes[:-1])
        if sizes[-1] != self.shape[-1] or math.prod(lead) != total:
            raise ValueError(f"features of the shape {self.shape} cannot be reshaped to {sizes}")
        stored = [array.reshape(*lead, *one.shape) for one, array in zip(self.inputs, self._stored, strict=True)]
        return JoinedFeatures(self.inputs, stored, lead)


class JoinedCache(Cache):
    """`cache`, which has one layer more: the joined features of several others, under `name`."""

    def __init__(self, cache: Cache, inputs: Sequence[LayerInput]) -> None:
        self.__dict__.update(vars(cache))
        self.cache, self.inputs = cache, tuple(inputs)
        self.name = JOIN.join(one.name for one in inputs)

    def __reduce__(self) -> tuple[Any, ...]:
        return JoinedCache, (self.cache, self.inputs)

    def column(self, name: str) -> NDArray[Any]:
        """As that of the cache below."""
        return self.cache.column(name)

    def features(self, layer: str | None = None) -> Any:
        """As `Cache.features`; of `name` the `JoinedFeatures`."""
        if layer != self.name:
            return self.cache.features(layer)
        stored: list[Any] = [self.cache.features(one.name) for one in self.inputs]
        lead = stored[0].shape[: 2 if self.views > 1 else 1]
        return JoinedFeatures(self.inputs, stored, lead)

    def scaled(self, rows: Rows) -> JoinedCache:
        """The same with each layer divided by the length of its spread over the plain view of these rows."""
        plain = _replaced(self.inputs, [1.0] * len(self.inputs))
        view = RowView(JoinedCache(self.cache, plain).plain_features(self.name), rows)
        total, squares = np.zeros(view.shape[1]), np.zeros(view.shape[1])
        first: Array | None = None
        for _, block in view.blocks():
            wide = block.astype(np.float64)
            first = wide[0] if first is None else first
            wide -= first  # differences: a large offset costs no digits
            total += wide.sum(axis=0)
            squares += (wide**2).sum(axis=0)
        variance = np.maximum(squares / len(view) - (total / len(view)) ** 2, 0)
        return JoinedCache(self.cache, _replaced(plain, [1 / length for length in lengths_of(variance, plain)]))


def lengths_of(variance: Array, inputs: Sequence[LayerInput]) -> list[float]:
    """The length of each layer's spread, by the variance (d,) of each feature; 1 where nothing varies."""
    ends = np.cumsum([0, *(one.width for one in inputs)])
    lengths = [math.sqrt(variance[start:stop].sum()) for start, stop in pairwise(ends)]
    return [length if length > LEAST_SPREAD else 1.0 for length in lengths]


def _replaced(inputs: Sequence[LayerInput], scales: Sequence[float]) -> list[LayerInput]:
    """The same layers with other scales."""
    return [replace(one, scale=scale) for one, scale in zip(inputs, scales, strict=True)]


def with_layers(cache: Cache, layer: str | Sequence[str] | None) -> tuple[Cache, str | None, list[str]]:
    """The cache and the name of its layer that holds the features of `layer`, and what there is to say of them.

    layer: a name, several, "all", or None for the only one. Of several it is a `JoinedCache`, not scaled.
    Raises UsageError for layers that cannot be joined, CacheError for one that is not there.
    """
    names = _chosen(cache, layer)
    if len(names) < 2:
        return cache, names[0] if names else None, []
    inputs, notes = _inputs_of(cache, names)
    several = JoinedCache(cache, inputs)
    return several, several.name, notes


def pooled_features(cache: Cache, layer: str) -> Any:
    """The plain features (N, d) of a layer, averaged over its positions where it has such; see `RowView`.

    For callers that read features and fit nothing. Axes of which nothing is known are left as they are.
    """
    features: Any = cache.plain_features(layer)
    if len(features.shape) < 3 or layer not in cache.layers:
        return features
    try:
        inputs, _ = _inputs_of(cache, [layer])
    except UsageError:
        return features
    return JoinedFeatures(inputs, [features], features.shape[:1])


def _chosen(cache: Cache, layer: str | Sequence[str] | None) -> tuple[str, ...]:
    """The layers that are meant: all for "all"; none where None leaves it to the cache, which must hold one.

    Raises UsageError where "all" are one, where one is named twice, or "all" next to others.
    """
    names = (layer,) if isinstance(layer, str) else tuple(layer or ())
    if ALL not in names or ALL in cache.layers:
        if len(set(names)) < len(names):
            raise UsageError(f"The layers {', '.join(names)} name one twice.", hint="Name each layer once.")
        return names
    if len(names) > 1:
        raise UsageError(f"--layer {ALL} selects every layer, and others are named too.", hint="Give one of both.")
    if len(cache.layers) == 1:
        raise UsageError(
            f"{cache.path} holds one layer, {cache.layers[0]}, so there is nothing to choose from.",
            hint="Leave --layer out, or make a file of many: precompute extract SOURCE -o OUT.h5 --layer all-blocks.",
        )
    return cache.layers


def _inputs_of(cache: Cache, names: Sequence[str]) -> tuple[list[LayerInput], list[str]]:
    """How each of these layers becomes features, and what there is to say of it.

    Raises UsageError where it cannot be determined which axes are positions, CacheError for a layer that is not there.
    """
    described, inputs, notes = spec_layers(cache.spec), [], []
    for name in names:
        shape = cache.plain_features(name).shape[1:]
        axes = described[name][0][-len(shape) :] if shape else ()
        if "channel" not in axes and len(shape) > 1:
            raise UsageError(
                f"Which of the axes of {name} in {cache.path}, {' x '.join(map(str, shape))}, are positions is not "
                "known, so there is no mean over them.",
                hint="Name other layers (--layer A --layer B), or extract again with --pooling mean.",
            )
        positions = tuple(axis for axis, word in enumerate(axes) if word != "channel") if len(shape) > 1 else ()
        prefix = _prefix(cache, tuple(axes), shape)
        if prefix:
            notes.append(f"the first {prefix} of {shape[positions[0]]} tokens of {name} have no position: left out")
        inputs.append(LayerInput(name, tuple(shape), positions, prefix))
    return inputs, notes


def _prefix(cache: Cache, axes: tuple[str, ...], shape: tuple[int, ...]) -> int:
    """Tokens in front of those of an image's patches, which are a square of them."""
    if axes.count("token") != 1 or not {"crop", "resize"} <= set(cache.spec.get("transform", {})):
        return 0
    tokens = shape[axes.index("token")]
    return next((extra for extra in PREFIXES if 1 < tokens - extra == math.isqrt(tokens - extra) ** 2), 0)


def saved_inputs(metadata: dict[str, Any], head: str, n_features: int) -> tuple[LayerInput, ...]:
    """The layers of a saved head of several; none for one of one layer.

    Raises HeadFormatError where what its file says of them cannot be, or does not add up to `n_features`.
    """
    described = metadata.get("layers")
    if described is None:
        return ()
    try:
        if not isinstance(described, list) or not 1 < len(described) <= MOST_LAYERS:
            raise ValueError("layers must be a list of two or more")
        inputs = tuple(LayerInput.from_dict(one) for one in described)
        if len({one.name for one in inputs}) < len(inputs):
            raise ValueError("a layer is named twice")
        if (width := sum(one.width for one in inputs)) != n_features:
            raise ValueError(f"they have {width} features, and the head takes {n_features}")
    except ValueError as error:
        raise HeadFormatError(
            f"The list of layers in the head {head} is damaged: {error}.", hint="Train the head again."
        ) from error
    return inputs


def joined_as_saved(inputs: Sequence[LayerInput], cache: Cache, head: str) -> JoinedCache:
    """`cache` with the features that a saved head takes.

    Raises HeadMismatchError where its layers have other shapes.
    """
    for one in inputs:
        shape = cache.plain_features(one.name).shape[1:] if one.name in cache.layers else None
        if shape != one.shape:
            has = "does not hold it" if shape is None else f"has {' x '.join(map(str, shape))}"
            raise HeadMismatchError(
                f"The head {head} takes {one.name} of {' x '.join(map(str, one.shape))}; {cache.path} {has}.",
                hint="Train the head again.",
            )
    return JoinedCache(cache, inputs)
