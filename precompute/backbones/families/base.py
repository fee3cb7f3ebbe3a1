"""What a family of backbones is: names of one form, and how a name becomes a network with weights."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precompute.errors import BackboneError, WeightsError

if TYPE_CHECKING:
    import torch
    from torch import fx, nn

    from precompute.backbones.layers import Tap, Truncated
    from precompute.backbones.tracing import Tracing
    from precompute.inputs.base import Preprocess
    from precompute.inputs.images.transform import Transform

DEFAULT = "DEFAULT"
MAX_SEED = 2**63 - 1  # of torch.manual_seed


@dataclass(frozen=True)
class Entry:
    """One backbone with its default weights, as it is listed.

    width: features of the default layer · params: parameters of the whole network; both None in a long list, where they
    would take building each · input_size: pixels a side, None for what are no images · gflops: 10^9 multiply-adds for
    one image, None where unpublished · accuracy: published ImageNet-1K top-1 in percent, None where there is none ·
    layer: the default layer · weights: entries, the default one first · modality: of its samples.
    """

    name: str
    width: int | None
    input_size: int | None
    params: int | None
    gflops: float | None
    accuracy: float | None
    layer: str
    weights: tuple[str, ...]
    modality: str = "image"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Loaded:
    """A network with weights.

    name: of the backbone in messages and in the key, whatever name it was requested by · model: in eval mode, on the
    CPU · source: where the weights came from, as JSON, enough to load them again · base: its own transform or
    preprocessing · notes: choices worth telling · file: of the weights, see `checkpoints.identity_of`, None where they
    are no file · settings: what else decides the features, such as the release of the library that the network's code
    comes from, by the names that it bears in the key.
    """

    name: str
    model: nn.Module
    source: dict[str, Any]
    base: Transform | Preprocess
    notes: tuple[str, ...] = ()
    file: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)


class Family(ABC):
    """Backbones whose names have one form. One object for all of them, without a state."""

    exact: bool = False
    """Whether nothing is computed that another engine or precision would be faster at."""

    packages: tuple[str, ...] = ()
    """Whose releases decide what a name, DEFAULT or a layer stands for, besides torch and torchvision."""

    poolings: tuple[str, ...] = ("none", "mean")
    """The words of `--pooling`, and behind a layer's name, that its networks may know, besides auto."""

    def names(self) -> list[str]:
        """The backbones that can be listed, in the order in which they are; without a download."""
        return []

    @abstractmethod
    def check(self, name: str) -> None:
        """Raise BackboneError, with close matches, where `name` is no backbone of this family."""

    @abstractmethod
    def load(self, name: str, weights: str) -> Loaded:
        """The network of `name` with `weights`, see `load_backbone`. Raises BackboneError and WeightsError."""

    @abstractmethod
    def build(self, name: str, *, seed: int | None) -> nn.Module:
        """The network of `name` in eval mode; with random parameters for `seed`, or with none (meta device) for None.

        Raises BackboneError where the family cannot do so.
        """

    @abstractmethod
    def describe(self, name: str, *, quick: bool = False) -> Entry:
        """What is known of a backbone without a download, and without memory for its parameters.

        quick: what takes longer than looking it up may be left out.
        """

    def canonical(self, name: str) -> str:
        """The name that `load` gives to a backbone with its DEFAULT weights. Raises as `check` does."""
        return name

    def loading_code(self, name: str, outputs: int) -> str:
        """The Python expression that makes the module which the weights of a whole network are loaded into."""
        return f"the network of {name}, its classifier replaced by one of {outputs} outputs"

    # How its networks are cut. By torch.fx, as torchvision does it.

    @property
    def tracing(self) -> Tracing:
        """What torch.fx takes for one operation."""
        from precompute.backbones.tracing import TORCHVISION

        return TORCHVISION

    def trace(self, model: nn.Module) -> tuple[fx.Graph, dict[fx.Node, str]]:
        """See `tracing.trace`."""
        from precompute.backbones.tracing import trace

        return trace(model, self.tracing)

    def default_layer(self, name: str, model: nn.Module) -> tuple[str, str, tuple[str, ...]]:  # noqa: ARG002
        """(layer, pooling, notes) of the features that `model` is used for; the pooling is auto where it must be asked
        for. Raises BackboneError."""
        from precompute.backbones import layers

        layer, pooling, _ = layers.default_layer(model, self.tracing)
        return layer, pooling, ()

    def own_pooling(self, model: nn.Module, layer: str) -> str:  # noqa: ARG002
        """What `auto` stands for at a layer that is named. Raises BackboneError where it must be requested."""
        return "none"

    def final_classifier(self, model: nn.Module) -> str:
        """The name of the module behind these features. Raises BackboneError where there is none."""
        from precompute.backbones import layers

        return layers.final_classifier(model, self.tracing)

    def layer_names(self, model: nn.Module) -> list[str]:
        """Every available layer, in the order of execution. Raises BackboneError where none can."""
        from precompute.backbones import layers

        return layers.layer_names(model, self.tracing)

    def blocks(self, model: nn.Module) -> list[str]:
        """What `all-blocks` stands for, in the order of execution. Raises BackboneError where there are none."""
        from precompute.backbones import layers

        return layers.blocks(model, self.tracing)

    def cut(
        self, model: nn.Module, wanted: Sequence[tuple[str, str]], inputs: tuple[torch.Tensor, ...]
    ) -> tuple[Truncated, tuple[Tap, ...]]:
        """See `layers.cut`."""
        from precompute.backbones import layers

        return layers.cut(model, wanted, inputs, self.tracing)


def random_seed(choice: str) -> int | None:
    """The seed of `random` or `random:SEED`, None for other weights. Raises WeightsError where it is not a number."""
    word, _, seed = choice.partition(":")
    if word != "random":
        return None
    if seed and not (seed.isdecimal() and len(seed) <= len(str(MAX_SEED)) and int(seed) <= MAX_SEED):
        raise WeightsError(
            f"The seed in random:{seed:.40} is not a whole number from 0 to {MAX_SEED}.",
            hint="For example --weights random:1.",
        )
    return int(seed or 0)


def path_of(name: str, choice: str, known: Sequence[str] = ()) -> str:
    """`choice`, which names no weights that are known, as a path. Raises WeightsError where it looks like none."""
    if os.sep in choice or Path(choice).suffix != "" or Path(choice).exists():
        return choice
    options = ", ".join([DEFAULT, *known, "random"])
    raise WeightsError(f"{name} has no weights {choice!r}.", hint=f"Use one of {options}, or the path of a file.")


def with_file(
    family: Family,
    name: str,
    model: nn.Module,
    path: str,
    base: Transform | Preprocess,
    notes: tuple[str, ...] = (),
) -> Loaded:
    """`model`, whose parameters may be on the meta device, with the state dict in the file `path`.

    Raises WeightsError where it cannot be read or does not fit.
    """
    from precompute.backbones import checkpoints, weights

    file = checkpoints.identity_of(path)
    fitted = weights.fit_into(
        model,
        checkpoints.load_file(path),
        source=path,
        model_name=name,
        find_classifier=family.final_classifier,
    )
    source = {"kind": "file", "path": str(Path(path).absolute())}
    return Loaded(name, model, source, base, (*notes, *fitted), file)


def unlisted(name: str) -> BackboneError:
    """For a family that has no list of backbones."""
    return BackboneError(
        f"Nothing is known of {name} without running its code.", hint="See those that are with `precompute backbones`."
    )
