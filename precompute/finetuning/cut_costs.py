"""What the proposed cuts of a backbone cost for the samples of a source, before anything is computed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from precompute.backbones.crossing import Crossings
from precompute.backbones.load import load_backbone
from precompute.backbones.proposals import Price, price, propose
from precompute.errors import UsageError
from precompute.extraction.output import is_hdf5
from precompute.finetuning.device import device_of
from precompute.inputs.images.formats import IMAGES
from precompute.inputs.kinds import check_images
from precompute.sources.base import Reading
from precompute.sources.registry import open_source

CUTTING = "Cuts are proposed for networks of"
STORED = ("--dtype", "float16")
"""Half of what fp32 on a CPU would store; the bytes that are shown."""


@dataclass(frozen=True)
class CutCosts:
    """The cuts that are proposed, in the order of execution, each with its price.

    name: of the backbone · options: what else `extract` must be given, as on the command line · commands: what to run
    next, for the last of them, which stores and trains least.
    """

    source: str
    name: str
    options: tuple[str, ...]
    samples: int
    batch_size: int
    device: str
    prices: tuple[Price, ...]

    @property
    def commands(self) -> tuple[str, str]:
        layer = self.prices[-1].proposal.layer
        stored = f"{os.path.basename(os.path.normpath(self.source)) or 'samples'}-{layer}.h5"
        extract = ("extract", self.source, "-b", self.name, *self.options, "--layer", layer, *STORED, "-o", stored)
        train = ("fine-tune", stored, "-o", "tail.safetensors")
        return shlex.join(("precompute", *extract)), shlex.join(("precompute", *train))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "source": self.source,
            "backbone": self.name,
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
    weights: str | None = None,
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
    if is_hdf5(source):
        raise UsageError(
            f"{os.fspath(source)} holds features already; cuts are proposed before they are computed.",
            hint="Name the images that it was made of, and the backbone: fine-tune SOURCE -b NAME --cut auto.",
        )
    device = device_of(device)
    check_images(backbone, CUTTING)
    reading = Reading.of(root, columns, ())
    model = load_backbone(backbone, weights=weights or "DEFAULT", transform=transform)
    check_images(backbone, CUTTING, model.preprocess.modality)  # before a source of others is listed as images
    samples = len(open_source(source, IMAGES, reading=reading, alone=False))
    crossings = Crossings.of(model)
    proposals = propose(model, crossings=crossings)
    prices = price(model, proposals, samples=samples, batch_size=batch_size, device=device, crossings=crossings)
    options = _options(weights, transform or {}, reading)
    return CutCosts(os.fspath(source), backbone, options, samples, batch_size, device, prices)


def _options(weights: str | None, transform: Mapping[str, Any], reading: Reading) -> tuple[str, ...]:
    found = [] if weights is None else ["--weights", weights]
    for name, value in transform.items():
        option = f"--{name.replace('_', '-')}"
        words = map(str, value) if isinstance(value, Sequence) and not isinstance(value, str) else [str(value)]
        found += [option] if value is True else [option, ",".join(words)]
    for option, value in reading.given().items():
        found += [option, value]
    return tuple(found)
