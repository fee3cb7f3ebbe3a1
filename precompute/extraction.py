"""source x backbone -> cache: plan, lay out, run the backbone over what is missing, finish by one rename."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.backbones import Backbone, load_backbone
from precompute.cache import WriteLock, bytes_needed, key_of
from precompute.decode import DECODER, quiet_pillow
from precompute.engine import EngineChoice, TorchEngine, choose
from precompute.errors import SourceError, Stopped, UsageError
from precompute.kept import drop_kept
from precompute.plan import make_plan, open_olds, partial_path, samples_of, up_to_date
from precompute.provenance import run_record
from precompute.report import Extraction, Progress, count_outcomes, describe
from precompute.rows import RowRun
from precompute.sources import list_folder
from precompute.working_file import check_output, finish, working_file

STORAGES = ("auto", "float16", "float32")
ON_ERROR = ("skip", "stop")


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
    dry_run: bool = False,
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
    dry_run: say what would be reused, read and dropped, and the bytes it takes; write nothing.
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
    layers = {model.layer: (model.shape, np.dtype(storage))}
    with contextlib.nullcontext() if dry_run else WriteLock(path), quiet_pillow():
        olds = open_olds(path, spec, overwrite=overwrite)
        plan = make_plan(listing, path, olds, limit=limit, overwrite=overwrite, rehash=rehash)
        if dry_run:
            result = describe(path, listing, model, choice, storage)
            result.key, result.dropped, result.to_read = key_of(spec), plan.dropped, len(plan.missing)
            result.reused = len(listing) - result.to_read
            result.bytes = bytes_needed(samples_of(listing), layers)
            return result
        if up_to_date(plan, listing, path):
            result = describe(path, listing, model, choice, storage)
            result.reused = len(listing)
            drop_kept(path)  # left by a run that ended between its last two steps
        else:
            with working_file(path, plan, spec, listing, layers) as (writer, missing):
                result = describe(path, listing, model, choice, storage)
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
    count_outcomes(path, result)
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
