"""Damaged rows of a finished file are computed again from their images; all others are copied."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache, Verification, open_cache, verify
from precompute.engines.choice import Asked
from precompute.errors import CacheError, CacheFormatError, SampleError, SourceError, UsageError
from precompute.extraction.conduct import Conduct, Progress
from precompute.extraction.executors.names import opened
from precompute.extraction.matching import make_plan, open_olds, positions, same_table
from precompute.extraction.output import check_cache_output
from precompute.extraction.rebuild import Origin, rebuild_backbone
from precompute.extraction.result import Extraction, Outcome, Run, Settings, summary
from precompute.extraction.run import Job, complete
from precompute.extraction.setup import prepared_for
from precompute.inputs.kinds import files_of, modality_of_spec
from precompute.sources.base import Raw, Reading, Source, Table, ascii_name
from precompute.sources.folder import FolderSource
from precompute.sources.registry import kind_of, open_source


def repair(
    cache: str | os.PathLike[str],
    source: str | os.PathLike[str] | Source,
    *,
    backbone: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], int] | None = None,
    root: str | None = None,
    columns: Mapping[str, str] | None = None,
    augment: str | Sequence[str] | None = None,
) -> Extraction:
    """Compute the damaged rows of the finished file `cache` again, from the images of `source`.

    Backbone, layer, transform and precision are those of the file; its weights are looked for where they were and
    compared by their contents. The table of samples is not changed; `extract` updates a file to a changed folder. The
    repaired file replaces the damaged one by one rename, and an interrupted repair resumes when it is run again.

    backbone, augment: must be named if they are the user's code. weights: their current place, if they have moved.
    source, root, columns: see `extract`.
    batch_size: that of the last run by default, so that rows come out equal to the last bit.
    Raises CacheError and its kinds, SourceError, BackboneError, WeightsError, DeviceError, Stopped.
    """
    began = time.monotonic()
    conduct = Conduct(workers, progress=progress, stop=stop)
    output = check_cache_output(os.path.realpath(cache), overwrite=True, inputs=(weights,))
    output.overwrite = False  # what is not a feature file is refused when it is opened, with words that fit
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
            augment=augment,
        )
        shapes = {tap.layer: tap.shape for tap in model.stored}
        if {layer: old.features(layer).shape[1:] for layer in old.layers} != shapes:
            raise CacheFormatError(
                f"{path} holds features of other shapes than its settings lead to.",
                hint="Extract again to another output.",
            )
        samples = _samples_of(old, source, found, Reading.of(root, columns))
        settings = Settings(
            *(shapes, spec["storage"], model.notes),
            views=model.preprocess.views,
            windows=model.windows,
            unit=model.unit,
        )
        done = Run(settings, Outcome(), old)
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
            with opened(conduct.executor, workers=workers) as executor, model.preprocess.session():
                job = Job(output, samples, prepared_for(model, asked, output, samples, executor))
                done = complete(job, plan, conduct, executor, {})
        return summary(path, samples, done, earlier=False, began=began)


def table_of(cache: Cache) -> Table:
    """The table of samples that a file has, as if they had just been listed."""
    return Table(
        ids=np.array(cache.column("samples/id")),
        sizes=np.array(cache.column("samples/size")),
        mtimes=np.array(cache.column("samples/mtime_ns")),
        labels=np.array(cache.labels),
        splits=np.array(cache.column("samples/split"), dtype=np.uint8),
        classes=tuple(cache.column("classes").tolist()),
        columns={name: np.array(cache.column(f"columns/{name}")) for name in cache.columns},
    )


class KnownSamples(Source):
    """The samples of a file as if they had just been listed, read from another source by their ids."""

    def __init__(self, table: Table, other: Source) -> None:
        self.table = table
        self.name, self.reads_at_once = other.name, other.reads_at_once
        self._other = other
        self._rows = positions(other.table.ids, table.ids)

    @property
    def origin(self) -> str:
        return self._other.origin

    def read(self, row: int) -> Raw:
        there = int(self._rows[row])
        if there < 0:
            raise SampleError(f"not in {self.name} any more", reason="VANISHED")
        return self._other.read(there)

    def alive(self) -> bool:
        return self._other.alive()

    def patient(self, waits: bool) -> None:
        self._other.patient(waits)

    def holds(self, row: int) -> bool:
        """Whether the other source has it."""
        return bool(self._rows[row] >= 0)


def _samples_of(
    old: Cache, source: str | os.PathLike[str] | Source, found: Verification, reading: Reading
) -> FolderSource | KnownSamples:
    """The samples of the file itself, as if they had just been listed."""
    table = table_of(old)
    bad = np.concatenate([found.damaged, found.pending])
    samples: FolderSource | KnownSamples
    if isinstance(source, str | os.PathLike) and kind_of(os.fsdecode(source)).by_path:
        samples = _in_folder(old, os.fsencode(source), table, bad)
        there = any(os.path.exists(samples.path(row)) for row in bad[:1000])
    else:
        kind = files_of(modality_of_spec(old.spec))
        samples = KnownSamples(table, open_source(source, kind, reading=reading))
        there = any(map(samples.holds, bad))
    if len(bad) == len(old) and not there:
        raise UsageError(f"None of the samples in {old.path} is in {samples.name}.", hint="Check the source.")
    return samples


def _in_folder(old: Cache, root: bytes, table: Table, bad: NDArray[np.int64]) -> FolderSource:
    """The samples below a folder, where only those that are needed are looked for."""
    unit = old.words.plural
    if not os.path.isdir(root):
        shown = ascii_name(os.fsdecode(root))
        raise SourceError(f"{shown} is not a folder.", hint=f"Name the source of the {unit}: --source SOURCE.")
    if any(_leads_out(bytes(table.ids[row])) for row in bad):
        raise CacheFormatError(
            f"{old.path} names {unit} outside of its source folder.",
            hint="Where it was made from a table or a list, name that. Else extract again to another output.",
        )
    return FolderSource(root, table)


def _leads_out(identity: bytes) -> bool:
    """Whether a file that may come from a stranger names a path that is not below the source."""
    return identity.startswith(b"/") or b".." in identity.split(b"/")
