"""Which methods `depth` knows, by name, the cheapest first; a new one is a class and a line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from precompute.backbones.crossing import Crossings
from precompute.backbones.families import is_factory
from precompute.backbones.load import Backbone, load_backbone
from precompute.backbones.proposals import positions_of, propose
from precompute.cache import Cache
from precompute.cache.key import spec_layers
from precompute.errors import BackboneError, UsageError
from precompute.evaluation.deep_methods import AllLayers, Attentive, Everything, Tail
from precompute.evaluation.methods import Ground, HeadOnFeatures, Method
from precompute.finetuning.device import device_of

PIXELS = {"backbone": "torch.nn:Flatten", "weights": "DEFAULT", "transform": {"resize": 32, "crop": 32}}
TAIL = "tail:"
NAMES = ("pixels", "random", "head", "all-layers", "attentive", "tails", "everything", "scratch")
OPTIONAL = ("scratch",)
RANDOM = ("random", "scratch")  # these need weights that the user's code does not make


def names_of(asked: Sequence[str]) -> list[str]:
    """Those requested, in the order of NAMES; all but OPTIONAL where none are. `tail:LAYER` is where tails do.

    Raises UsageError for unknown ones.
    """
    if strange := [name for name in asked if name not in NAMES and (name == TAIL or not name.startswith(TAIL))]:
        raise UsageError(f"There is no method {strange[0]!r}.", hint=f"Methods are {', '.join(NAMES)}, and tail:LAYER.")
    cuts = list(dict.fromkeys(name for name in asked if name.startswith(TAIL)))
    found: list[str] = []
    for name in NAMES:
        if name in asked or (not asked and name not in OPTIONAL):
            found.append(name)
        if name == "tails":
            found += cuts
    return found


def methods_of(
    names: Sequence[str], ground: Ground, reference: Cache, training: dict[str, Any], augment: str | None
) -> tuple[list[Method], list[str]]:
    """The methods, in order, and notes on those that this backbone does not allow.

    Raises UsageError where a tail was requested by a layer and cannot be cut there: by that layer's error.
    """
    return _Registry(ground, reference, training, augment).of(names)


class _Registry:
    def __init__(self, ground: Ground, reference: Cache, training: dict[str, Any], augment: str | None) -> None:
        self._ground, self._reference, self._training, self._augment = ground, reference, training, augment
        self._device = device_of(ground.run["device"])
        self._loaded: Backbone | None = None
        self._notes: list[str] = []

    def of(self, names: Sequence[str]) -> tuple[list[Method], list[str]]:
        makers: dict[str, Callable[[], list[Method]]] = {
            "pixels": lambda: [HeadOnFeatures("pixels", self._ground, pretrained=False, **PIXELS)],
            "random": lambda: [HeadOnFeatures("random", self._ground, pretrained=False, weights="random")],
            "head": lambda: [HeadOnFeatures("head", self._ground)],
            "all-layers": self._all_layers,
            "attentive": self._attentive,
            "tails": self._tails,
            "everything": lambda: [self._everything(pretrained=True)],
            "scratch": lambda: [self._everything(pretrained=False)],
        }
        found: dict[str, Method] = {}
        for name in names:
            if name in RANDOM and is_factory(self._ground.backbone):
                self._notes.append(f"{name}: a factory chooses its own weights, so there are no random ones")
                continue
            try:
                made = [self._tail(name)] if name.startswith(TAIL) else makers[name]()
            except BackboneError as error:
                if name.startswith(TAIL):
                    raise
                self._notes.append(f"{name}: {error.message}")
                continue
            found |= {one.name: one for one in made}
        if not found:
            raise UsageError(
                f"{self._ground.backbone} allows none of these methods: {'; '.join(self._notes)}", hint="See --methods."
            )
        return list(found.values()), self._notes

    @property
    def _backbone(self) -> Backbone:
        if self._loaded is None:
            ground = self._ground
            self._loaded = load_backbone(ground.backbone, weights=ground.weights, transform=ground.transform)
        return self._loaded

    def _all_layers(self) -> list[Method]:
        names, crossings = self._backbone.family.blocks(self._backbone.network), Crossings.of(self._backbone)
        default = self._reference.layers[0]
        _, pooling = spec_layers(self._reference.spec)[default]
        there = {crossings.node_of(name) for name in names}  # a block's name stands for its last node
        return [
            AllLayers(self._ground, names if crossings.node_of(default) in there else [*names, f"{default}:{pooling}"])
        ]

    def _attentive(self) -> list[Method]:
        places = [place for place in Crossings.of(self._backbone).places if prod(place.shape[1:]) > 1]
        if places:
            layer = places[-1].layer
            taps = load_backbone(
                self._ground.backbone,
                weights=self._ground.weights,
                layer=layer,
                pooling="none",
                transform=self._ground.transform,
            ).taps
            if "axis1" not in taps[0].axes and prod(positions_of(taps[0])) > 1:
                return [Attentive(self._ground, layer)]
        self._notes.append("attentive: the network has no map or tokens whose positions are known")
        return []

    def _tails(self) -> list[Method]:
        return [self._tail(f"{TAIL}{one.layer}") for one in propose(self._backbone)]

    def _tail(self, name: str) -> Method:
        return Tail(name.removeprefix(TAIL), self._ground, self._training, self._device)

    def _everything(self, *, pretrained: bool) -> Method:
        return Everything(self._ground, self._training, self._device, self._augment, pretrained=pretrained)
