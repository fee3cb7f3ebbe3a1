"""The split that a head was trained on, in its file: one code for each row of its cache.

A split could be made again from its seed, but only with the same code, groups and pictures. The rows themselves can be
asked whatever happened since, and take about a bit each: 200 KB for a million images.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import SPLITS, Cache, difference, plain_spec
from precompute.errors import HeadFormatError, HeadMismatchError
from precompute.heads import SavedHead
from precompute.training.layers import joined_as_saved, saved_inputs
from precompute.training.splits import HOLDOUT
from precompute.training.targets import Rows, Target, target_digest
from precompute.training.views import averaged, check_averaged

PARTS = ("unused", *SPLITS[1:], HOLDOUT)  # a code is a place in it


def split_record(cache: Cache, target: Target, parts: dict[str, Rows]) -> dict[str, Any]:
    """The parts of a cache's rows, JSON-ready."""
    codes = np.zeros(len(cache), np.uint8)
    for name, rows in parts.items():
        codes[rows] = PARTS.index(name)
    return {
        "images": target_digest(cache, target),
        "rows": base64.b64encode(zlib.compress(codes.tobytes(), 9)).decode("ascii"),
    }


def split_codes(metadata: dict[str, Any], cache: Cache, target: Target, head: str) -> NDArray[np.uint8]:
    """(N,) the code of each row of `cache`, as `split_record` had it.

    Raises HeadMismatchError where the head remembers nothing or another cache, HeadFormatError for a damaged memory.
    """
    training = metadata.get("training")
    unit = cache.words.plural
    memory = training.get("split") if isinstance(training, dict) else None
    if not isinstance(memory, dict):
        raise HeadMismatchError(
            f"The head {head} does not say on which {unit} it was trained, so it cannot be scored fairly.",
            hint="Train it again: precompute train-head CACHE -o HEAD.",
        )
    if memory.get("images") != target_digest(cache, target):
        raise HeadMismatchError(
            f"{cache.path} does not hold the {unit} that the head {head} was trained and scored on.",
            hint=f"Give the cache that it was trained on; where {unit} came or went since, train the head again.",
        )
    try:
        packed = base64.b64decode(memory["rows"], validate=True)
        codes = np.frombuffer(zlib.decompressobj().decompress(packed, len(cache) + 1), np.uint8)
        if len(codes) != len(cache) or (codes >= len(PARTS)).any():
            raise ValueError("it has another number of rows")
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise HeadFormatError(
            f"The split stored in the head {head} is damaged: {error}.", hint="Train the head again."
        ) from error
    return codes


def trained_layer(saved: SavedHead, cache: Cache, head: str) -> tuple[Cache, str]:
    """The cache and the layer of it that hold features such as the head was trained on.

    They are `cache` itself, or a `JoinedCache` of it for a head of several layers.
    Raises HeadMismatchError where it holds others, with what differs.
    """
    spec = saved.metadata.get("spec")
    if saved.metadata.get("key") != cache.key and (averaged(saved.metadata) or not _same_plain_view(spec, cache)):
        lines = difference(spec, cache.spec) if isinstance(spec, dict) else []
        raise HeadMismatchError(
            "\n".join([f"The head {head} was trained on other features than {cache.path} holds.", *map(str, lines)]),
            hint="Give a cache of the backbone, layers and transform that it was trained on.",
        )
    check_averaged(saved.metadata, cache, head)
    if inputs := saved_inputs(saved.metadata, head, int(saved.head.n_features_in_)):
        several = joined_as_saved(inputs, cache, head)
        return several, several.name
    layer = str(saved.metadata.get("layer"))
    width = int(np.prod(cache.plain_features(layer).shape[1:]))
    if width != int(saved.head.n_features_in_):
        raise HeadMismatchError(
            f"The head {head} takes {saved.head.n_features_in_} features; {layer} of {cache.path} has {width}.",
            hint="Train the head again.",
        )
    return cache, layer


def _same_plain_view(spec: Any, cache: Cache) -> bool:
    """Whether a head's settings are those of the cache, except for views that the plain one has next to it."""
    if not isinstance(spec, dict) or (cache.views == 1 and spec.get("views", 1) == 1):
        return False
    return plain_spec(spec) == plain_spec(cache.spec)
