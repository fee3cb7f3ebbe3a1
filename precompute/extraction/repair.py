"""Damaged rows of a finished file are computed again from their images; all others are copied."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from precompute.cache import Cache, Verification, open_cache, verify
from precompute.engines.choice import Asked
from precompute.errors import CacheError, CacheFormatError, SourceError, UsageError
from precompute.extraction.conduct import Conduct, Progress
from precompute.extraction.matching import make_plan, open_olds, same_table
from precompute.extraction.output import check_cache_output
from precompute.extraction.rebuild import Origin, rebuild_backbone
from precompute.extraction.result import Extraction, Outcome, Run, Settings, summary
from precompute.extraction.run import Job, complete
from precompute.extraction.setup import prepared_for
from precompute.sources.base import Table, ascii_name
from precompute.sources.folder import FolderSource


def repair(
    cache: str | os.PathLike[str],
    source: str | os.PathLike[str],
    *,
    backbone: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], int] | None = None,
) -> Extraction:
    """Compute the damaged rows of the finished file `cache` again, from the images below `source`.

    Backbone, layer, transform and precision are those of the file; its weights are looked for where they were and
    compared by their contents. The table of samples stays as it is; `extract` brings a file up to a changed folder. The
    mended file replaces the damaged one by one rename, and an interrupted repair goes on when it is run again.

    backbone: must be named where it is code of the user's. weights: where they are now, if they have moved.
    batch_size: that of the last run by default, so that rows come out equal to the last bit.
    Raises CacheError and its kinds, SourceError, BackboneError, WeightsError, DeviceError, Stopped.
    """
    began = time.monotonic()
    conduct = Conduct(workers, progress=progress, stop=stop)
    output = check_cache_output(os.path.realpath(cache), overwrite=True, inputs=(weights,))
    output.overwrite = False  # what is no feature file is refused when it is opened, with words that fit
    path = output.path
    with output.lock():
        old = output.open(path) or open_cache(path)  # which says that there is none
        found = verify(old)
        model, spec = rebuild_backbone(
            old.spec,
            old.last_run.get("weights"),
            Origin(f"The feature file {path}", "was made", "with", CacheError, CacheFormatError),
            backbone=backbone,
            weights=weights,
        )
        shapes = {tap.layer: tap.shape for tap in model.taps}
        if {layer: old.features(layer).shape[1:] for layer in old.layers} != shapes:
            raise CacheFormatError(
                f"{path} holds features of other shapes than its settings lead to.",
                hint="Extract again to another output.",
            )
        samples = _samples_of(old, os.fsencode(source), found)
        done = Run(Settings(shapes, spec["storage"], model.notes), Outcome(), old)
        if not found.whole:
            olds = open_olds(output, spec)
            plan = make_plan(samples, output, olds)
            if olds[0].path == output.partial and not same_table(olds[0], samples.table):
                raise CacheError(
                    f"An extraction to {path} was interrupted and is not finished.",
                    hint="Run that `precompute extract` command again; it computes damaged rows again, too.",
                )
            bad = np.zeros(len(samples), dtype=bool)
            bad[found.damaged] = True
            plan = replace(plan, origin=np.where(bad & (plan.origin == len(olds) - 1), -1, plan.origin))
            # Engine and batch size are those of the file's last run, as far as they are here
            asked = Asked(precision=spec["precision"], device=device, batch_size=batch_size, dtype=spec["storage"])
            job = Job(output, samples, prepared_for(model, asked, output, samples, workers=workers))
            with model.preprocess.session():
                done = complete(job, plan, conduct, {})
        return summary(path, samples, done, earlier=False, began=began)


def _samples_of(old: Cache, root: bytes, found: Verification) -> FolderSource:
    """The samples of the file itself, as if they had just been listed."""
    shown = ascii_name(os.fsdecode(root))
    if not os.path.isdir(root):
        raise SourceError(f"{shown} is not a folder.", hint="Name the folder that holds the images: --source FOLDER.")
    ids = old.column("samples/id")
    bad = np.concatenate([found.damaged, found.pending])
    if any(_leads_out(bytes(ids[row])) for row in bad):
        raise CacheFormatError(
            f"{old.path} names images outside of its source folder.",
            hint="It was not made by precompute like this; extract again to another output.",
        )
    if len(bad) == len(old) and not any(os.path.exists(os.path.join(root, bytes(ids[row]))) for row in bad[:1000]):
        raise UsageError(f"None of the samples in {old.path} is in {shown}.", hint="Check the source.")
    table = Table(
        ids=np.array(ids),
        sizes=np.array(old.column("samples/size")),
        mtimes=np.array(old.column("samples/mtime_ns")),
        labels=np.array(old.labels),
        splits=np.array(old.column("samples/split"), dtype=np.uint8),
        classes=tuple(old.column("classes").tolist()),
    )
    return FolderSource(root, table)


def _leads_out(identity: bytes) -> bool:
    """Whether a file that may come from a stranger names a path that is not below the source."""
    return identity.startswith(b"/") or b".." in identity.split(b"/")
