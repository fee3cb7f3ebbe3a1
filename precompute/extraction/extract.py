"""source x backbone -> cache. The light part: what is asked for, what is in the folder, is there anything to do?"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

from precompute.cache import WriteLock
from precompute.errors import SourceError, UsageError
from precompute.extraction.output import check_cache_output
from precompute.extraction.request import Request, unchanged
from precompute.extraction.result import Extraction, Progress, count_outcomes, describe
from precompute.inputs.images.formats import EXTENSIONS
from precompute.sources.folder import Listing, list_folder, mtime_ns

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
    engine: str = "auto",
    precision: str = "auto",
    compile: str = "auto",  # noqa: A002 - torch's word for it
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
    engine: "torch", "openvino", or "auto" (OpenVINO where it is installed and the device is a CPU).
    precision: "fp32", "bf16", "fp16", or "auto": the first of a list (`precompute.engines.machine`) whose features keep
    a cosine of at least 0.999 to those of fp32 eager torch on the worst of 32 images of the source. compile: use
    torch.compile, "on", "off", or "auto" (from so many images on that they repay it). `auto` follows from machine and
    images alone, never from a clock; it is decided once for an output and stays with its file. While it runs, an engine
    other than fp32 torch is compared with it on one image in a thousand (see `Extraction.audit`).
    dtype: stored as "float32", "float16", or "auto" (float32 for fp32, else float16).
    workers: decode threads, by default one for each core. limit: only the first so many images by id.
    on_error: "skip" records a broken image and goes on; "stop" raises at the first one.
    rehash: read every file again and recognise it by its SHA-256, also where size and mtime are unchanged.
    overwrite: `out` may be a file made with other settings, from other images, or by another program.
    dry_run: say what would be reused, read and dropped, and the bytes it takes; write nothing.
    progress: called after each batch. stop: asked after each batch; a signal's number ends the run, resumable.

    Raises SourceError, BackboneError, WeightsError, DeviceError, CacheError and its kinds, UsageError, Stopped.
    """
    began = time.monotonic()
    check_options(dtype, workers, on_error=on_error, limit=limit)
    request = Request(
        backbone, weights, layer, pooling, transform or {}, engine, precision, compile, dtype, device, batch_size
    )
    path = check_cache_output(out, overwrite=overwrite, inputs=(weights,)).path
    if os.path.isfile(source):
        raise SourceError(f"{source} is a file.", hint="Name the folder that holds the images.")
    listing = list_folder(source, limit=limit)
    _refuse_image(path, listing)
    with contextlib.nullcontext() if dry_run else WriteLock(path):
        result = None if dry_run or rehash or overwrite else _recognise(path, listing, request)
        if result is None:
            from precompute.extraction.run import run  # loads torch

            result = run(
                path,
                listing,
                request,
                workers=workers,
                on_error=on_error,
                limit=limit,
                overwrite=overwrite,
                rehash=rehash,
                dry_run=dry_run,
                progress=progress,
                stop=stop,
            )
    if not dry_run:
        count_outcomes(path, result)
    result.seconds = time.monotonic() - began
    return result


def _refuse_image(path: str, listing: Listing) -> None:
    """Raise UsageError where the output is an image of the source, under whatever name, or would be one next time."""
    name = os.fsencode(os.path.realpath(path))
    inside = name.startswith(os.path.join(os.path.realpath(listing.root), b""))
    if inside and os.path.splitext(name)[1].lower() in EXTENSIONS:
        raise _is_image(path, "would be")
    if not os.path.exists(path):
        return
    status = os.stat(path)
    alike = (listing.sizes == status.st_size) & (listing.mtimes == mtime_ns(status))
    for row in alike.nonzero()[0]:
        with contextlib.suppress(OSError):  # an image that is gone is not the output
            if os.path.samestat(status, os.stat(listing.path(row))):
                raise _is_image(path, "is")


def _is_image(path: str, verb: str) -> UsageError:
    return UsageError(
        f"The output {path} {verb} one of the images of the source.",
        hint="It is left as it is. Choose another output, such as features.h5.",
    )


def _recognise(path: str, listing: Listing, request: Request) -> Extraction | None:
    """What to tell where the finished file is already what this call would make."""
    found = unchanged(path, listing, request)
    if found is None:
        return None
    cache, record = found
    layer = cache.layers[0]
    features = cache.features(layer)
    result = describe(
        path,
        listing,
        layer=layer,
        shape=features.shape[1:],
        dtype=str(features.dtype),
        notes=tuple(map(str, record.get("notes", ()))),
    )
    result.engine, result.device = str(record.get("engine")), str(record.get("device"))
    result.precision, result.batch_size = str(cache.spec.get("precision")), int(record.get("batch_size", 0))
    result.compiled = bool(record.get("compiled"))
    result.why, result.reused = f"as in the run of {record.get('started')}", len(listing)
    return result


def check_options(dtype: str, workers: int | None, *, on_error: str = "skip", limit: int | None = None) -> None:
    """Raise UsageError for what no run could do; the engine's own options are checked where it is chosen."""
    for name, value, known in (("dtype", dtype, STORAGES), ("on_error", on_error, ON_ERROR)):
        if value not in known:
            raise UsageError(f"{name} must be one of {', '.join(known)}. Got {value!r} instead.", hint=f"See --{name}.")
    for name, number in (("limit", limit), ("workers", workers)):
        if number is not None and number < 1:
            raise UsageError(f"{name} must be at least 1. Got {number} instead.", hint=f"See --{name}.")
