"""source x backbone -> cache: plan, lay out, run the backbone over what is missing, finish by one rename."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.backbones import Backbone, load_backbone
from precompute.cache import Status, WriteLock, open_cache
from precompute.decode import DECODER, quiet_pillow
from precompute.engine import EngineChoice, TorchEngine, choose
from precompute.errors import SourceError, Stopped, UsageError
from precompute.plan import make_plan, open_olds, partial_path, up_to_date
from precompute.provenance import run_record
from precompute.rows import RowRun
from precompute.sources import Listing, ascii_name, list_folder
from precompute.working_file import check_output, finish, working_file

STORAGES = ("auto", "float16", "float32")
ON_ERROR = ("skip", "stop")


@dataclass(frozen=True)
class Progress:
    """How far a run is. done and total count samples; computed counts forward passes; seconds since they began."""

    done: int
    total: int
    computed: int
    failures: int
    seconds: float

    @property
    def rate(self) -> float:
        """Images through the backbone each second."""
        return self.computed / self.seconds if self.seconds > 0 else 0.0

    @property
    def remaining(self) -> float | None:
        """Estimated seconds to go; None as long as there is nothing to go by."""
        return (self.total - self.done) / self.rate if self.rate else None


@dataclass
class Extraction:
    """What a run did.

    rows: samples in the file · computed: forward passes · reused: rows taken from an older file unopened ·
    copied: rows whose bytes were already known (duplicates, moved files) · dropped: rows that left · failures: count
    by status name · failed: the first of them as (id, status name, detail) · seconds: of the whole call.
    """

    path: str
    key: str
    rows: int
    layer: str
    shape: tuple[int, ...]
    dtype: str
    device: str
    precision: str
    batch_size: int
    why: str
    notes: tuple[str, ...]
    passed: list[str]
    classes: int
    splits: dict[str, int]
    computed: int = 0
    reused: int = 0
    copied: int = 0
    dropped: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    seconds: float = 0.0
    forward_seconds: float = 0.0
    bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        failed = [{"id": name, "reason": reason, "detail": detail} for name, reason, detail in self.failed]
        return {**asdict(self), "failed": failed}


def extract(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    backbone: str,
    weights: str = "DEFAULT",
    layer: str | None = None,
    pooling: str = "auto",
    transform: dict[str, Any] | None = None,
    precision: str = "auto",
    dtype: str = "auto",
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    on_error: str = "skip",
    limit: int | None = None,
    overwrite: bool = False,
    rehash: bool = False,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], int] | None = None,
) -> Extraction:
    """Run a frozen backbone once over the images below `source` and keep its features in the HDF5 file `out`.

    Only what `out` does not hold yet is computed; an interrupted run goes on where it was. The file appears under
    `out` when it is whole; until then it is `out` + ".partial", which `open_cache` can read meanwhile.

    backbone, weights, layer, pooling, transform: see `load_backbone`.
    precision: "fp32", "bf16", "fp16", or "auto" (fp32 on a CPU, bf16 on CUDA).
    dtype: stored as "float32", "float16", or "auto" (float32 for fp32, else float16).
    workers: decode threads, by default one for each core. limit: only the first so many images by id.
    on_error: "skip" records a broken image and goes on; "stop" raises at the first one.
    rehash: read every file again and recognise it by its SHA-256, also where size and mtime are unchanged.
    progress: called after each batch. stop: asked after each batch; a signal's number ends the run, resumable.

    Raises SourceError, BackboneError, WeightsError, DeviceError, CacheError and its kinds, UsageError, Stopped.
    """
    began = time.monotonic()
    _check_options(dtype, on_error, limit, workers)
    path = os.path.realpath(out) if os.path.islink(out) else os.fspath(out)  # a link stays a link
    check_output(path)
    if os.path.isfile(source):
        raise SourceError(f"{source} is a file.", hint="Name the folder that holds the images.")
    listing = list_folder(source, limit=limit)
    model = load_backbone(backbone, weights=weights, layer=layer, pooling=pooling, transform=transform)
    choice = choose(device=device, precision=precision, batch_size=batch_size)
    storage = ("float32" if choice.precision == "fp32" else "float16") if dtype == "auto" else dtype
    spec = model.spec(decoder=DECODER, precision=choice.precision, storage=storage)
    with WriteLock(path), quiet_pillow():
        olds = open_olds(path, spec, overwrite=overwrite)
        plan = make_plan(listing, path, olds, limit=limit, overwrite=overwrite, rehash=rehash)
        if up_to_date(plan, listing, path):
            result = _describe(path, listing, model, choice, storage)
            result.reused = len(listing)
        else:
            layers = {model.layer: (model.shape, np.dtype(storage))}
            with working_file(path, plan, spec, listing, layers) as (writer, missing):
                result = _describe(path, listing, model, choice, storage)
                result.dropped = plan.dropped
                run = RowRun(
                    listing,
                    plan.olds,
                    partial_path(path),
                    writer,
                    shape=model.shape,
                    layer=model.layer,
                    storage=storage,
                )
                if len(missing):
                    record = run_record(choice, model.source, listing.root)
                    _fill(run, missing, model, choice, workers, on_error, progress, stop, record, result)
                result.reused = len(listing) - len(missing)
            finish(path)
    _count_outcomes(path, result)
    result.seconds = time.monotonic() - began
    return result


def _check_options(dtype: str, on_error: str, limit: int | None, workers: int | None) -> None:
    for name, value, known in (("dtype", dtype, STORAGES), ("on_error", on_error, ON_ERROR)):
        if value not in known:
            raise UsageError(f"{name} must be one of {', '.join(known)}. Got {value!r} instead.", hint=f"See --{name}.")
    for name, number in (("limit", limit), ("workers", workers)):
        if number is not None and number < 1:
            raise UsageError(f"{name} must be at least 1. Got {number} instead.", hint=f"See --{name}.")


def _fill(
    run: RowRun,
    missing: NDArray[np.int64],
    model: Backbone,
    choice: EngineChoice,
    workers: int | None,
    on_error: str,
    progress: Callable[[Progress], None] | None,
    stop: Callable[[], int] | None,
    record: dict[str, Any],
    result: Extraction,
) -> None:
    """Compute the missing rows, telling how it goes, until done, stopped, or an image breaks a strict run."""
    engine = TorchEngine(model.module, model.transform, choice)
    began = time.monotonic()
    done, failures = result.rows - len(missing), 0
    run.writer.append_provenance([record])
    for step in run.steps(missing, engine, model.transform, workers or len(os.sched_getaffinity(0))):
        done += step.done
        failures += len(step.failed)
        result.computed += step.computed
        result.copied += step.copied
        result.failed.extend(step.failed[: max(0, 20 - len(result.failed))])
        result.forward_seconds = time.monotonic() - began
        if progress is not None:
            progress(Progress(done, result.rows, result.computed, failures, result.forward_seconds))
        if step.failed and on_error == "stop":
            identity, reason, detail = step.failed[0]
            run.writer.sync()
            raise SourceError(
                f"{identity}: {reason.lower().replace('_', ' ')} ({detail}).",
                hint="Everything computed so far is kept. Mend or remove the file and run the same command again, "
                "or use --on-error skip.",
            )
        if stop is not None and (signum := stop()) and done < result.rows:
            run.writer.sync()
            raise Stopped(
                f"Stopped with {done:,} of {result.rows:,} samples done.",
                signum=signum,
                hint="Everything computed so far is kept. Run the same command again to go on.",
            )


def _describe(path: str, listing: Listing, model: Backbone, choice: EngineChoice, storage: str) -> Extraction:
    names = ("none", "train", "val", "test")
    counts = Counter(names[code] for code in listing.splits.tolist())
    return Extraction(
        path=path,
        key="",
        rows=len(listing),
        layer=model.layer,
        shape=model.shape,
        dtype=storage,
        device=choice.device,
        precision=choice.precision,
        batch_size=choice.batch_size,
        why=choice.why,
        notes=(*model.notes, *listing.notes),
        passed=listing.passed.lines(),
        classes=len(listing.classes),
        splits={name: counts[name] for name in names if counts[name]},
    )


def _count_outcomes(path: str, result: Extraction) -> None:
    """What the finished file itself says, so that the summary cannot claim anything else."""
    cache = open_cache(path)
    values, counts = np.unique(cache.status, return_counts=True)
    result.failures = {
        Status(value).name: int(count) for value, count in zip(values, counts, strict=True) if value != Status.OK
    }
    if not result.failed:
        broken = np.flatnonzero(cache.status != Status.OK)[:20]
        ids = cache.column("samples/id")
        result.failed = [
            (ascii_name(os.fsdecode(ids[row])), Status(cache.status[row]).name, "as in an earlier run")
            for row in broken
        ]
    result.key = cache.key
    result.bytes = cache.layout.file_size
