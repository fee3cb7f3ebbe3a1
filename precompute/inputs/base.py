"""What preprocessing is: the bytes of one sample become tensors of a fixed shape, then the network's input.

A new kind of input is one package beside this file: a subclass of `Preprocess`. A factory of the user's own may return
one beside its network.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    Tensors = tuple[torch.Tensor, ...]


class Preprocess(ABC):
    """Deterministic: the same bytes give the same tensors, in every process and on every machine of one kind.

    modality: such as "image" · views: how many different inputs `host` makes of one sample; view 0 is the plain one.
    """

    modality: str
    views: int = 1

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """JSON-ready: everything that changes the result, the decoder and its version included. Part of the key."""

    @abstractmethod
    def host(self, raw: bytes, view: int = 0) -> Tensors:
        """The tensors of one sample, in the shapes and dtypes of `example`; called from several threads at once.

        Raises SampleError with the reason why these bytes are no sample.
        """

    @abstractmethod
    def example(self) -> Tensors:
        """What `host` gives for one sample, with any values: it says shapes and dtypes."""

    @abstractmethod
    def device(self) -> nn.Module:
        """The rest, in front of the network: a batch of what `host` gives -> the network's input, fp32."""

    def session(self) -> contextlib.AbstractContextManager[object]:
        """Entered around a whole run, in one thread, before `host` is called."""
        return contextlib.nullcontext()
