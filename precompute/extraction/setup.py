"""What an extraction and its forecast begin with: the backbone, what may run it, and the settings that follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

from precompute.backbones.load import Backbone, load_backbone
from precompute.cache import INT8, Layer, channel_axis, storage_dtype
from precompute.engines.base import EngineChoice
from precompute.engines.choice import EXACT, Asked, Candidates, Decision
from precompute.errors import UsageError
from precompute.extraction.begun import begun_with
from precompute.extraction.executors.base import Executor
from precompute.extraction.output import CacheOutput
from precompute.extraction.request import Request
from precompute.sources.base import Source
from precompute.sources.part import PartOfSource


class Prepared:
    """A request for an output, resolved as far as the settings of its file need.

    Images are looked at, and an engine is made, when `decision` is requested; `spec` requests it only where the
    precision is left to the images. A run with nothing to compute need prove nothing.
    """

    def __init__(self, model: Backbone, found: Candidates, choose: Callable[[], Decision]) -> None:
        self.model = model
        self._found = found
        self._choose = choose

    @cached_property
    def decision(self) -> Decision:
        """What runs. Raises BackboneError where an engine that was requested cannot run the network."""
        return self._choose()

    @cached_property
    def precision(self) -> str:
        """Of the computation."""
        return self._found.precision or self.decision.choice.precision

    @property
    def storage(self) -> str:
        """The dtype of the features in the file."""
        return self._found.storage(self.precision)

    @property
    def spec(self) -> dict[str, Any]:
        """Everything that changes a feature's value."""
        return self.model.spec(precision=self.precision, storage=self.storage)

    @property
    def layers(self) -> dict[str, Layer]:
        """What the file holds of each sample."""
        return {
            tap.layer: Layer(tap.shape, storage_dtype(self.storage, tap.axes), tap.axes, tap.pooling)
            for tap in self.model.stored
        }

    @property
    def choice(self) -> EngineChoice:
        """What runs, or would run first where nothing has had to be decided."""
        return self.decision.choice if "decision" in vars(self) else self._found.choices[0]


def load(request: Request) -> Backbone:
    """The backbone that is requested. Raises BackboneError, WeightsError and UsageError."""
    return load_backbone(
        request.backbone,
        weights=request.weights,
        layer=request.layer,
        pooling=request.pooling,
        transform=request.transform,
        views=request.views,
        augment=request.augment,
    )


def prepare(
    request: Request, output: CacheOutput | None, source: Source, executor: Executor, *, model: Backbone | None = None
) -> Prepared:
    """Load the backbone and put what may run it into order: for `output`, or for none.

    executor: who will compute the rows · model: the backbone, where it is loaded already. Raises BackboneError,
    WeightsError, DeviceError and UsageError.
    """
    model = model or load(request)
    asked = Asked(request.engine, request.precision, request.device, request.batch_size, request.compile, request.dtype)
    return prepared_for(model, asked, output, source, executor)


def prepared_for(
    model: Backbone, asked: Asked, output: CacheOutput | None, source: Source, executor: Executor
) -> Prepared:
    """The same for a backbone that is loaded already."""
    if model.exact and (asked.engine, asked.precision) == ("auto", "auto"):
        asked = replace(asked, engine=EXACT[0], precision=EXACT[1])
    if asked.dtype == INT8:
        _check_eight_bits(model)
    begun = None if output is None else begun_with(output, model)
    whole = source.whole if isinstance(source, PartOfSource) else source
    return Prepared(model, *executor.decide(model, asked, begun, whole))


def _check_eight_bits(model: Backbone) -> None:
    """Raise UsageError unless some layers have channels with positions, and all others are vectors."""
    taps = model.taps
    unclear = [tap for tap in taps if len(tap.axes) > 1 and channel_axis(tap.axes) is None]
    if unclear:
        raise UsageError(
            f"Which axis of {unclear[0].layer!r} holds the channels cannot be determined; 8 bits need their ranges.",
            hint="Use --dtype float16, or another layer.",
        )
    if all(channel_axis(tap.axes) is None for tap in taps):
        names = ", ".join(tap.layer for tap in taps)
        raise UsageError(
            f"--dtype int8 is for activations with positions; {names} of {model.name} gives one vector for each "
            f"{model.one}.",
            hint="Use --dtype float16, or a layer with positions, unpooled, such as --layer layer3 --pooling none.",
        )
