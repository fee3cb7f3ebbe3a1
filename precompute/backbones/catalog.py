"""What is known of each backbone without downloading anything."""

from __future__ import annotations

import fnmatch
from dataclasses import asdict, dataclass
from typing import Any

from precompute.backbones import families, layers
from precompute.backbones.families import TINY
from precompute.backbones.ngram_hash import NGRAM_HASH
from precompute.errors import BackboneError
from precompute.inputs.images.transform import Transform
from precompute.inputs.text.ngrams import WIDTH


@dataclass(frozen=True)
class Entry:
    """One backbone with its default weights.

    width: features of the default layer · input_size: pixels a side · params: parameters of the whole network ·
    gflops: 10^9 multiply-adds for one image, None where unpublished · accuracy: published ImageNet-1K top-1 in
    percent, None where there is none · layer: the default layer · weights: entries, the default one first · modality:
    what it takes, "image" or "text"; for a text there is no size of the input.
    """

    name: str
    width: int
    input_size: int | None
    params: int
    gflops: float | None
    accuracy: float | None
    layer: str
    weights: tuple[str, ...]
    modality: str = "image"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def catalog(pattern: str | None = None) -> list[Entry]:
    """The backbones whose name matches `pattern` (shell wildcards, or a part of the name); all for None.

    Figures come from torchvision's own metadata; width and layer from the network itself, built without memory.
    Raises BackboneError where nothing matches.
    """
    chosen = [*families.names(), NGRAM_HASH]
    if pattern is not None:
        chosen = [name for name in chosen if fnmatch.fnmatch(name, pattern) or pattern in name]
    if not chosen:
        families.check_name(str(pattern))
        raise BackboneError(f"No backbone matches {pattern!r}.", hint="See all with `precompute backbones`.")
    return [describe(name) for name in chosen]


def describe(name: str) -> Entry:
    """The entry of one backbone."""
    if name == NGRAM_HASH:
        return Entry(name, WIDTH, None, 0, None, None, layers.OUTPUT, ("DEFAULT",), "text")
    model = families.build(name, seed=None)
    layer, _, width = layers.default_layer(model)
    params = sum(parameter.numel() for parameter in model.parameters())
    if name == TINY:
        from precompute.backbones import tiny

        return Entry(name, width, tiny.SIZE, params, None, None, layer, ("DEFAULT",))
    default = families.default_entry(name)
    meta = default.meta
    others = [other for other in families.entries(name) if other != default.name]
    return Entry(
        name=name,
        width=width,
        input_size=Transform.from_preset(default.transforms()).crop,
        params=meta["num_params"],
        gflops=meta["_ops"],
        accuracy=meta["_metrics"].get("ImageNet-1K", {}).get("acc@1"),
        layer=layer,
        weights=(default.name, *others),
    )


def layer_names(name: str) -> list[str]:
    """Every layer of `name` whose features can be had, in the order of execution, from `input` on."""
    families.check_name(name)
    if name == NGRAM_HASH:
        return [layers.OUTPUT]
    model = families.run_factory(name)[0] if families.is_factory(name) else families.build(name, seed=None)
    return layers.layer_names(model)
