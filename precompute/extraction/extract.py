"""source x backbone -> cache. The light part: what is requested, what is in the folder, is there anything to do?"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from precompute.errors import CacheFormatError, UsageError
from precompute.extraction.conduct import Conduct, Progress
from precompute.extraction.output import CacheOutput, check_cache_output
from precompute.extraction.request import Request, unchanged
from precompute.extraction.result import Extraction, Outcome, Run, Settings, summary
from precompute.inputs.images.augmentation import augment_names
from precompute.inputs.kinds import IMAGE, files_of, modality_of_name, modality_of_spec
from precompute.sources.base import Reading, Source
from precompute.sources.part import part_of
from precompute.sources.registry import open_source
from precompute.system.steps import step

if TYPE_CHECKING:
    from precompute.backbones.load import Backbone  # which loads torch
    from precompute.cache import Cache
    from precompute.extraction.executors.base import Executor  # which loads torch

STORAGES = ("auto", "float16", "float32", "int8")


def extract(
    source: str | os.PathLike[str] | Source | Any,
    out: str | os.PathLike[str],
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
    on_error: str = "skip",
    limit: int | None = None,
    overwrite: bool = False,
    rehash: bool = False,
    dry_run: bool = False,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], int] | None = None,
    executor: Executor | str | None = None,
    exact: bool = False,
    root: str | None = None,
    columns: Mapping[str, str] | None = None,
    keep: Sequence[str] = (),
    reuse: Sequence[str | os.PathLike[str]] = (),
    part: str | None = None,
    views: int = 1,
    augment: str | Sequence[str] | None = None,
    join: bool = False,
) -> Extraction:
    """Run a frozen backbone once over the images below `source` and keep its features in the HDF5 file `out`.

    source: a folder; a table of files (.csv, .tsv, .parquet); a list of files (.txt, "@NAME", "-" for standard input);
    tar shards ("shards/*.tar"); any of these in an object store ("s3://bucket/prefix"); a .npz or .npy file of images;
    a Hugging Face data set (a folder of save_to_disk or of Parquet files, "hf-dataset:NAME") or of torchvision
    ("torchvision:NAME" with `root`); a list of paths, an array, a list of encoded images or a dataset of (image, label)
    (see `precompute.sources.memory.source_of`); or a
    `precompute.sources.base.Source` of your own, with a backbone whose preprocessing reads it.

    Only rows that `out` does not hold yet are computed; an interrupted run resumes. The file appears under
    `out` when it is complete; until then it is `out` + ".partial", which `open_cache` can read in the meantime.

    backbone, weights, layer, pooling, transform: see `load_backbone`.
    engine: "torch", "openvino", or "auto" (OpenVINO where it is installed and the device is a CPU).
    precision: "fp32", "bf16", "fp16", or "auto": the first of a list (`precompute.engines.machine`) whose features keep
    a cosine of at least 0.999 to those of fp32 eager torch on the worst of 32 images of the source. compile: use
    torch.compile, "on", "off", or "auto" (if there are enough images to repay it). `auto` depends only on machine and
    images, never on a clock; it is decided once for an output and stays with its file. During the run, an engine
    other than fp32 torch is compared with it on one image in a thousand (see `Extraction.audit`).
    dtype: stored as "float32", "float16", or "auto" (float32 for fp32, else float16); as "int8" layers with positions
    in 8 bits, with a range for each channel of each sample, and vectors next to them in float16.
    workers: decode threads, by default one for each core. limit: only the first so many images by id.
    on_error: "skip" records a broken image and continues; "stop" raises at the first one.
    rehash: read every file again and recognise it by its SHA-256, also where size and mtime are unchanged.
    overwrite: `out` may be a file made with other settings, from other images, or by another program.
    dry_run: report the rows to reuse, read and drop, and the bytes needed; write nothing.
    progress: called after each batch. stop: asked after each batch; a signal's number ends the run, resumable.
    executor: who computes the rows: "local" (threads of this process read and decode), "processes" (processes do),
    "auto" (one of these by device, the default), "ray" (all GPUs of this machine, or the cluster of RAY_ADDRESS),
    "ray://HOST:PORT" (a cluster; see docs/scale.md), or one of your own (`precompute.extraction.executors.base`).
    exact: refuse machines with different GPUs, or processors.
    root: the folder that paths in a table or list are relative to, by default the one that it is in. columns: the
    names of a table's columns by their contents, such as {"path": "file", "label": "species"}; also "id" and "split".
    keep: names of further columns of a table that go into the file, for `Cache.column("columns/NAME")`.
    reuse: other feature files with the same settings, whose rows are copied where their images are listed here. part:
    "I/N", only that part of the samples; all parts choose alike, and `reuse` joins them. join: compute nothing; a
    sample that no file of `reuse` holds is a CacheError, and so is one that has changed since.

    views: number of views of each image; features then have the shape (N, views, *shape). View 0 is the plain
    image, and view k depends only on the image's SHA-256, k and `augment`, so that views do not
    depend on threads, order or interruptions. augment: the steps for the other views: some of "flip", "crop" and
    "color" (see docs/views.md), and your own torchvision v2 transforms as "package.module:name"; a list, or one string
    with commas.

    Raises SourceError, BackboneError, WeightsError, DeviceError, CacheError and its kinds, UsageError, Stopped.
    """
    began = time.monotonic()
    check_options(dtype, limit)
    conduct = Conduct(workers, on_error, progress, stop, executor, exact, join)
    request = Request(
        *(backbone, weights, layer, pooling, transform or {}, engine, precision, compile, dtype, device, batch_size),
        *(views, augment_names(augment)),
    )
    if join and (part is not None or not reuse):
        raise UsageError(
            "A join takes all samples, from files that hold parts of them.",
            hint="Name those files with --reuse, and leave --shard out.",
        )
    output = check_cache_output(out, overwrite=overwrite, inputs=(weights,), reuse=reuse)
    modality, model = modality_for(request, output, source)
    samples = open_source(source, files_of(modality), reading=Reading.of(root, columns, keep), limit=limit, alone=False)
    if part is not None:
        samples = part_of(samples, part)
    if samples.reads(output.path):
        raise UsageError(
            f"The output {output.path} is one of the samples of the source, or would be one next time.",
            hint="It is left as it is. Choose another output, such as features.h5.",
        )
    with contextlib.nullcontext() if dry_run else output.lock():
        done = None if dry_run or rehash or overwrite else _recognise(output, samples, request)
        if done is None:
            with step("loading torch"):
                from precompute.extraction.run import run

            options: dict[str, Any] = {"limit": limit, "rehash": rehash, "dry_run": dry_run}
            done = run(output, samples, request, conduct, model=model, **options)
        return summary(output.path, samples, done, began=began)


def modality_for(request: Request, output: CacheOutput | None, source: Any) -> tuple[str, Backbone | None]:
    """What the samples are, and the backbone where it had to be loaded to know.

    Its name says it, or the finished file at `output` that was made with it: were that another backbone of the same
    name, its key would differ. A source that the caller made is listed already. Raises what loading a backbone raises.
    """
    modality = modality_of_name(request.backbone)
    if modality is None and isinstance(source, Source):
        return IMAGE, None
    if modality is None and output is not None and not output.overwrite:
        with contextlib.suppress(CacheFormatError):  # reported where the file is used
            cache = output.open(output.path)
            if cache is not None and request.backbone in _names(cache):
                modality = modality_of_spec(cache.spec)
    if modality is not None:
        return modality, None
    from precompute.extraction.setup import load  # loads torch

    model = load(request)
    return model.preprocess.modality, model


def _names(cache: Cache) -> set[Any]:
    """What the backbone of a file is called in its settings, and was called by those who made it, such as a folder."""
    asked = [record.get("options") for record in cache.provenance]
    return {cache.spec.get("backbone"), *(one.get("backbone") for one in asked if isinstance(one, dict))}


def _recognise(output: CacheOutput, source: Source, request: Request) -> Run | None:
    """The run, which does nothing, where the finished file is already what it would make."""
    found = unchanged(output, source, request)
    if found is None:
        return None
    cache, record = found
    features = {layer: cache.features(layer) for layer in cache.layers}
    settings = Settings(
        layers={layer: values.shape[1:] for layer, values in features.items()},
        dtype=str(cache.spec.get("storage")),
        notes=tuple(map(str, record.get("notes", ()))),
        views=cache.views,
        windows=cache.windows,
        unit=files_of(modality_of_spec(cache.spec)).plural,
        ran={
            "engine": str(record.get("engine")),
            "device": str(record.get("device")),
            "precision": str(cache.spec.get("precision")),
            "batch_size": int(record.get("batch_size", 0)),
            "compiled": bool(record.get("compiled")),
            "why": f"as in the run of {record.get('started')}",
        },
    )
    return Run(settings, Outcome(reused=len(source)), cache)


def check_options(dtype: str, limit: int | None = None) -> None:
    """Raise UsageError for what no run could do; the engine's own options are checked where it is chosen."""
    if dtype not in STORAGES:
        raise UsageError(f"dtype must be one of {', '.join(STORAGES)}. Got {dtype!r} instead.", hint="See --dtype.")
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1. Got {limit} instead.", hint="See --limit.")
