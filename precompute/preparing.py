"""What an extraction and its forecast begin with: the backbone, what will run it, and the settings that follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.backbones import Backbone, load_backbone
from precompute.choosing import Decision, Settled, prove, settle_options
from precompute.remembered import Request
from precompute.sources import Listing
from precompute.transform import DECODER


@dataclass
class Prepared:
    """A request, resolved as far as the settings of its file (`spec`) need; `decision` is None until images are."""

    model: Backbone
    spec: dict[str, Any]
    settled: Settled
    decision: Decision | None

    @property
    def storage(self) -> str:
        """The dtype of the features in the file."""
        return str(self.spec["storage"])

    def decide(self, listing: Listing, rows: NDArray[np.int64], *, workers: int | None) -> Decision:
        """Prove the engine on images of `rows`, unless finding the precision has done so already. See `prove`."""
        if self.decision is None:
            self.decision = prove(self.settled, self.model, listing, rows, workers=workers)
        return self.decision


def prepare(request: Request, path: str, listing: Listing, *, workers: int | None) -> Prepared:
    """Load the backbone and settle engine, precision and dtype for the output `path`.

    Images are only looked at where the precision is left to them: a run with nothing to compute need prove nothing.
    Raises BackboneError, WeightsError, DeviceError and UsageError.
    """
    model = load_backbone(
        request.backbone,
        weights=request.weights,
        layer=request.layer,
        pooling=request.pooling,
        transform=request.transform,
    )
    settled = settle_options(
        model,
        path,
        engine=request.engine,
        precision=request.precision,
        device=request.device,
        batch_size=request.batch_size,
        compile=request.compile,
        dtype=request.dtype,
    )
    decision, precision = None, settled.choice.precision
    if precision == "auto":
        decision = prove(settled, model, listing, np.arange(len(listing)), workers=workers)
        precision = decision.choice.precision
    storage = settled.storage(precision)
    return Prepared(model, model.spec(decoder=DECODER, precision=precision, storage=storage), settled, decision)
