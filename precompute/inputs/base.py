"""What preprocessing is: the bytes of one sample become tensors of a fixed shape, then the network's input.

Samples of different lengths, such as texts, are padded to one of a few shapes (`Preprocess.examples`). A batch holds
samples of one of them, so a row depends on its sample alone: not on its neighbours, nor on how many there are.

A new kind of input is one package next to this file: a subclass of `Preprocess`. A factory of the user's own may return
one next to its network.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from precompute.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    Tensors = tuple[torch.Tensor, ...]

Shape = tuple[tuple[int, ...], ...]
"""The shape of each tensor of a sample."""

MOST_SHAPES = 16
"""Of one preprocessing: for each there is memory for some batches, and with some engines a compiled network."""


def shape_of(tensors: Tensors, *, batched: bool = False) -> Shape:
    """Which of the shapes of its preprocessing a sample has, or each sample of a batch."""
    return tuple(tuple(one.shape[batched:]) for one in tensors)


@dataclass(frozen=True)
class Inputs:
    """What the network is run on for one sample.

    tensors: its inputs in order, in the shapes and dtypes of `example` · weights: what each counts in
    `Preprocess.merge`; None where the inputs are the sample's views, and so are their features · cut: whether the end
    of the sample was left out, since it is longer than its preprocessing takes; such samples are counted.
    """

    tensors: tuple[Tensors, ...]
    weights: tuple[float, ...] | None = None
    cut: bool = False


class Preprocess(ABC):
    """Deterministic: the same bytes give the same tensors, in every process and on every machine of one kind.

    modality: such as "image" · views: how many different inputs `host` makes of one sample; view 0 is the plain one,
    and view k follows from the sample's bytes and k alone.
    """

    modality: str
    views: int = 1
    most_inputs: int | None = None
    """Of a forward pass, unless `--batch-size` says otherwise; where one input takes far more memory than a picture."""
    uses_device: bool = False
    """Whether `host` computes on the accelerator, so that a processor's cores have little to do."""
    merges: bool = False
    """Whether a sample may be several inputs of the network, whose features `merge` makes one of."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """JSON-ready: everything that changes the result, the decoder and its version included. Part of the key."""

    @abstractmethod
    def host(self, raw: bytes, view: int = 0) -> Tensors:
        """The tensors of one sample, in the shapes and dtypes of one of `examples`, the same for all of its views.

        Called from several threads at once.

        Raises SampleError with the reason why these bytes are no sample.
        """

    def all_views(self, raw: bytes, digest: bytes | None = None) -> tuple[Tensors, ...]:
        """What `host` gives for each view of one sample, in order; for anyone who makes all of them from one decoding.

        digest: SHA-256 of `raw`, where the caller has it already.
        """
        del digest
        return tuple(self.host(raw, view) for view in range(self.views))

    def inputs(self, raw: bytes, digest: bytes | None = None) -> Inputs:
        """What the network is run on for one sample: its views, or as many inputs as it takes (windows of a clip)."""
        return Inputs(self.all_views(raw, digest))

    def merge(self, features: NDArray[np.floating], weights: Sequence[float]) -> NDArray[np.float32]:
        """Features (n, *shape) of the inputs of one sample -> its own, (*shape), or (views, *shape) for several views.

        For preprocessing that `merges`, whose `inputs` have weights. A function of its arguments alone, each value of
        the result of those at its place, or of all of them in no order.
        """
        del features, weights
        raise NotImplementedError(f"{type(self).__name__} does not merge")

    def with_options(self, options: Mapping[str, Any]) -> Preprocess:
        """The same with some settings changed, by the names that `extract` has for them. Raises UsageError."""
        raise UsageError(
            f"The backbone has its own preprocessing, so {', '.join(options)} cannot be set.",
            hint="Leave these options out.",
        )

    def augment_spec(self) -> dict[str, Any] | None:
        """JSON-ready: what makes the views but the first, part of the key; None where `spec` says it."""
        return None

    def plain(self) -> Preprocess:
        """The same with the plain view alone."""
        return self if self.views == 1 else PlainView(self)

    @abstractmethod
    def example(self) -> Tensors:
        """What `host` gives for one sample, with any values: it says shapes and dtypes."""

    def examples(self) -> tuple[Tensors, ...]:
        """One for each of the shapes that samples come in, at most MOST_SHAPES; the values need not differ.

        The network must make features of the same shape of all of them.
        """
        return (self.example(),)

    def between(self, samples: Sequence[Tensors]) -> list[Tensors]:
        """Samples of shapes that none of `samples` has and others of their source may have, made of `samples`; an
        engine proves itself on these too. None, by default."""
        del samples
        return []

    def tried(self) -> tuple[Tensors, ...]:
        """Those of `examples` whose features are compared in shape when a network is cut; all of them, by default."""
        return self.examples()

    @abstractmethod
    def device(self) -> nn.Module:
        """The rest, in front of the network: a batch of what `host` gives -> the network's input, fp32."""

    def session(self) -> contextlib.AbstractContextManager[object]:
        """Entered around a whole run, in one thread, before `host` is called."""
        return contextlib.nullcontext()


class PlainView(Preprocess):
    """The first view of `whole`, and no other."""

    def __init__(self, whole: Preprocess) -> None:
        self._whole = whole
        self.modality = whole.modality

    def spec(self) -> dict[str, Any]:
        return self._whole.spec()

    def host(self, raw: bytes, view: int = 0) -> Tensors:
        return self._whole.host(raw, view)

    def inputs(self, raw: bytes, digest: bytes | None = None) -> Inputs:
        del digest
        return Inputs((self._whole.host(raw),))

    def example(self) -> Tensors:
        return self._whole.example()

    def examples(self) -> tuple[Tensors, ...]:
        return self._whole.examples()

    def device(self) -> nn.Module:
        return self._whole.device()

    def session(self) -> contextlib.AbstractContextManager[object]:
        return self._whole.session()
