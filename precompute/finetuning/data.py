"""What a tail is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from precompute.backbones.load import Backbone
from precompute.cache import Cache
from precompute.finetuning.activations import Activations


@dataclass(frozen=True)
class Data:
    """What a tail is trained on, whichever way it comes.

    cache: of the ids, labels, splits and digests, whose rows are those of the activations · cache_layer: the layer of
    it whose rows must be whole · backbone, layer: where it is cut · activations: of that layer · frozen: (N, d) what
    the frozen tail makes of the plain views, where that is there already; None to compute it · spec, key,
    weights_source: of the activations, for the file · name: of the record · notes: what the reader should know.
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
