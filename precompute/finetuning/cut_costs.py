"""What the proposed cuts of a backbone cost for the samples of a source, before anything is computed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from precompute.backbones.crossing import Crossings
from precompute.backbones.load import load_backbone
from precompute.backbones.proposals import Price, price, propose
from precompute.engines.devices import check_device
from precompute.errors import UsageError
from precompute.extraction.output import is_hdf5
from precompute.inputs.images.formats import IMAGES
from precompute.sources.base import Reading
from precompute.sources.registry import open_source


@dataclass(frozen=True)
class CutCosts:
    """The cuts that are proposed, in the order of execution, each with its price.

    commands: what to run next, for the last of them, which stores and trains least · name: of the backbone · weights:
    as they were given.
    """

    source: str
    name: str
    weights: str
    samples: int
    batch_size: int
    device: str
    prices: tuple[Price, ...]

    @property
    def commands(self) -> tuple[str, str]:
        layer = self.prices[-1].proposal.layer
        weights = () if self.weights == "DEFAULT" else ("--weights", self.weights)
        stored = f"{os.path.basename(os.path.normpath(self.source)) or 'samples'}-{layer}.h5"
        extract = ("precompute", "extract", self.source, "-b", self.name, *weights, "--layer", layer, "-o", stored)
        return shlex.join(extract), shlex.join(("precompute", "fine-tune", stored, "-o", "tail.safetensors"))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "source": self.source,
            "backbone": self.name,
            "weights": self.weights,
            "samples": self.samples,
            "batch_size": self.batch_size,
            "device": self.device,
            "cuts": [one.to_dict() for one in self.prices],
            "commands": list(self.commands),
        }


def cut_costs(
    source: str | os.PathLike[str],
    backbone: str,
    *,
    weights: str = "DEFAULT",
    transform: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    device: str = "cpu",
    root: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> CutCosts:
    """The proposed cuts of `backbone` and their costs for all samples of `source`; nothing is computed or written.

    A few samples of random numbers run through the network, to find where it can be cut, and a few training steps of
    each tail are timed. The arguments are those of `fine_tune`, and so are the errors.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size must be 1 or more. Got {batch_size!r} instead.", hint="See --batch-size.")
    check_device(device)
    if is_hdf5(source):
        raise UsageError(
            f"{os.fspath(source)} holds features already; cuts are proposed before they are computed.",
            hint="Name the images that it was made of, and the backbone: fine-tune SOURCE -b NAME --cut auto.",
        )
    samples = len(open_source(source, IMAGES, reading=Reading.of(root, columns, ()), alone=False))
    model = load_backbone(backbone, weights=weights, transform=transform)
    crossings = Crossings.of(model)
    proposals = propose(model, crossings=crossings)
    prices = price(model, proposals, samples=samples, batch_size=batch_size, device=device, crossings=crossings)
    return CutCosts(os.fspath(source), backbone, weights, samples, batch_size, device, prices)
