"""What an extraction will take, before it runs: measured on some of the images, through the engine it will use."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from precompute.cache import bytes_needed
from precompute.engines.guard import spread
from precompute.errors import SourceError, UsageError
from precompute.extraction.conduct import Conduct
from precompute.extraction.executors.base import Work
from precompute.extraction.executors.local import LocalExecutor
from precompute.extraction.extract import check_options, modality_for
from precompute.extraction.matching import make_plan, open_olds, samples_of
from precompute.extraction.output import CacheOutput
from precompute.extraction.request import Request
from precompute.extraction.setup import prepare
from precompute.extraction.timing import StageClock
from precompute.inputs.images.augmentation import augment_names
from precompute.inputs.kinds import files_of
from precompute.sources.base import Reading, Source
from precompute.sources.part import part_of
from precompute.sources.registry import open_source
from precompute.system import peak_memory

SECONDS = 10.0
MEASURED = 512


@dataclass(frozen=True)
class Forecast:
    """What running `extract` with the same arguments would take, measured on this machine.

    images: in the source · to_read: of them, those no older file at the output has rows for; all others are copied ·
    views: of each image · windows: how many of these are windows of it, behind their mean · passes: inputs of the
    network for those to read, at most; of clips, whose windows differ in number, so many as those measured lead to ·
    bytes: of the finished file · free: on its disk, next to it while it is made · rate: images a
    second, with all of their views · measured, measured_seconds: what the rate is on · start_seconds: to load and
    to prove the engine ·
    memory: bytes of RAM at most, so far as measured · device_memory: bytes on the GPU, 0 without one ·
    stages: where the time went (see `Stages`) · failed: images that could not be read among those measured · unit: what
    the samples are called where they are no images.
    """

    images: int
    to_read: int
    layers: dict[str, tuple[int, ...]]
    dtype: str
    bytes: int
    free: int
    engine: str
    device: str
    precision: str
    batch_size: int
    why: str
    rate: float
    measured: int
    measured_seconds: float
    start_seconds: float
    failed: int
    memory: int
    device_memory: int
    stages: str
    warnings: tuple[str, ...]
    views: int = 1
    windows: int = 0
    unit: str = "images"
    passes: int = 0

    @property
    def seconds(self) -> float:
        """The whole run."""
        return self.start_seconds + (self.to_read / self.rate if self.rate else 0.0)

    @property
    def fits(self) -> bool:
        """Whether the disk has room."""
        return self.bytes <= self.free

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds, "fits": self.fits}


def forecast(
    source: str | os.PathLike[str] | Source,
    out: str | os.PathLike[str] | None = None,
    *,
    backbone: str,
    weights: str = "DEFAULT",
    layer: str | Sequence[str] | None = None,
    pooling: str = "auto",
    transform: dict[str, Any] | None = None,
    engine: str = "auto",
    precision: str = "auto",
    compile: str = "auto",  # noqa: A002 - torch's word for it
    dtype: str = "auto",
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    root: str | None = None,
    columns: Mapping[str, str] | None = None,
    keep: Sequence[str] = (),
    views: int = 1,
    augment: str | Sequence[str] | None = None,
    part: str | None = None,
) -> Forecast:
    """Run some images of `source`, spread over it, through the engine that `extract` would use; write nothing.

    out: the output that is planned; rows that it holds need not be computed. Without it the disk is that of the
    working folder, and everything is to be computed. The arguments are those of `extract`, and so are the errors.
    """
    began = time.monotonic()
    check_options(dtype)
    conduct = Conduct(workers)
    request = Request(
        *(backbone, weights, layer, pooling, transform or {}, engine, precision, compile, dtype, device, batch_size),
        *(views, augment_names(augment)),
    )
    output = None if out is None else CacheOutput(os.path.realpath(out))
    modality, loaded = modality_for(request, output, source)
    samples = open_source(source, files_of(modality), reading=Reading.of(root, columns, keep), alone=False)
    if part is not None:
        samples = part_of(samples, part)
    folder = "." if output is None else os.path.dirname(output.path)
    if not os.path.isdir(folder):
        raise UsageError(f"The output folder {folder} does not exist.", hint=f"Make it first: mkdir -p {folder}")
    everything = np.arange(len(samples))
    executor = LocalExecutor(conduct.workers)
    prepared = prepare(request, output, samples, executor, model=loaded)
    model = prepared.model
    with model.preprocess.session():
        decision = prepared.decision
        choice, views = decision.choice, model.preprocess.views
        missing = everything
        if output is not None:
            missing = make_plan(samples, output, open_olds(output, prepared.spec), refuse=False).missing
        clock = StageClock(on_cpu=choice.kind == "cpu")
        start = time.monotonic()
        moments, failed, counts = list[float](), 0, list[int]()
        inputs = list[int]()
        over = start + SECONDS
        for block in executor.blocks(
            Work(samples, model, decision),
            spread(everything, MEASURED),
            stop=lambda: bool(moments) and time.monotonic() > over,
            clock=clock,
        ):
            moments.append(time.monotonic())
            counts.append(len(block))
            failed += len(block.failed)
            inputs += [views if item.weights is None else len(item.weights) for item in block.decoded]
        stages = clock.stages(model.unit)
    if failed == sum(counts):
        raise SourceError(
            f"None of the {failed} {model.unit} looked at can be read.",
            hint="Check the source, or extract to see each reason.",
        )
    # The first block waits for the first images and for the engine's first pass: that is counted once, as start.
    later = sum(counts[1:])
    seconds = moments[-1] - moments[0] if later else moments[-1] - start
    return Forecast(
        images=len(samples),
        to_read=len(missing),
        layers={tap.layer: tap.shape for tap in model.stored},
        dtype=prepared.storage,
        bytes=bytes_needed(samples_of(samples.table), prepared.layers, samples.table.columns),
        free=shutil.disk_usage(folder).free,
        engine=choice.engine,
        device=choice.device,
        precision=choice.precision,
        batch_size=choice.batch_size,
        why=choice.why,
        rate=(later or sum(counts)) / seconds,
        measured=later or sum(counts),
        measured_seconds=seconds,
        start_seconds=moments[0] - began if later else start - began,
        failed=failed,
        memory=peak_memory(),
        device_memory=torch.cuda.max_memory_allocated(choice.device) if choice.kind == "cuda" else 0,
        stages=stages.words,
        warnings=tuple(decision.warnings),
        views=views,
        windows=model.windows,
        unit=model.unit,
        passes=math.ceil(len(missing) * (sum(inputs) / len(inputs) if inputs else views)),
    )
