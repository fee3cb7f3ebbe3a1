"""What a tail is trained on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from precompute.backbones.load import Backbone
from precompute.cache import Cache, open_cache
from precompute.errors import CacheFormatError, HeadMismatchError
from precompute.extraction.rebuild import Origin, rebuild_backbone
from precompute.finetuning.activations import Activations, CachedActivations


@dataclass(frozen=True)
class Data:
    """What a tail is trained on, whichever way it comes.

    cache: of the ids, labels, splits and digests, whose rows are those of the activations · cache_layer: the layer of
    it whose rows must be whole · backbone, layer: where it is cut · activations: of that layer · frozen: (N, d) what
    the frozen tail makes of the plain views, where that is there already; None to compute it · spec, key,
    weights_source: of the activations, for the file · name: of the record · notes: what the reader should know
    · skipped: how many images have no features.
    """

    cache: Cache
    cache_layer: str
    backbone: Backbone
    layer: str
    activations: Activations
    spec: dict[str, Any]
    key: str
    weights_source: dict[str, Any]
    name: str
    frozen: Any | None = None
    notes: tuple[str, ...] = ()
    skipped: int = 0


def open_cached(
    source: Cache | str | os.PathLike[str],
    layer: str | None,
    *,
    backbone: str | None = None,
    weights: str | None = None,
) -> Data:
    """A cache's layer, with the backbone that made it, found again by the digest of its weights."""
    cache = source if isinstance(source, Cache) else open_cache(source)
    activations = CachedActivations(cache, layer)
    layer = layer or cache.layers[0]
    origin = Origin(f"The cache {cache.path}", "was made", "with", HeadMismatchError, CacheFormatError)
    found = cache.last_run.get("weights", {})
    model, _ = rebuild_backbone(
        cache.spec, found, origin, backbone=backbone, weights=weights, layers={layer}, plain=True
    )
    name = os.path.basename(cache.path)
    return Data(cache, layer, model, layer, activations, cache.spec, cache.key, found, name)
