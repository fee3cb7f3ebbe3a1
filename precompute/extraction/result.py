"""What a run did: its settings, what became of the rows, and the summary, built once from both and the file."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.cache import SPLITS, Cache, Status, status_name
from precompute.extraction.timing import Stages
from precompute.sources.base import Source, ascii_name

if TYPE_CHECKING:
    from precompute.engines.audit import Audited  # which loads torch


FAILURES_NAMED = 20
NOTHING = {"engine": "", "device": "", "precision": "", "batch_size": 0, "compiled": False, "why": ""}
"""What ran where nothing did."""


@dataclass(frozen=True)
class Settings:
    """What the rows of a file are made with.

    layers: the shape of one row of each · dtype: of the features · ran: the fields of `EngineChoice` · key, bytes: of
    the finished file, in a dry run, which makes none · views: of each sample · windows: how many of these are windows
    of it, behind their mean · unit: what samples are called.
    """

    layers: Mapping[str, tuple[int, ...]]
    dtype: str
    notes: tuple[str, ...]
    ran: Mapping[str, Any] = field(default_factory=lambda: dict(NOTHING))
    key: str = ""
    bytes: int = 0
    views: int = 1
    windows: int = 0
    unit: str = "images"


@dataclass(frozen=True)
class Outcome:
    """What a run did to the rows, field by field as in `Extraction`."""

    computed: int = 0
    passes: int = 0
    reused: int = 0
    to_read: int = 0
    copied: int = 0
    dropped: int = 0
    failed: tuple[tuple[str, str, str], ...] = ()
    cut: int = 0
    cut_named: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    stages: Stages | None = None
    audit: Audited | None = None
    forward_seconds: float = 0.0


@dataclass(frozen=True)
class Run:
    """A run that is over. cache: the finished file; None in a dry run."""

    settings: Settings
    outcome: Outcome
    cache: Cache | None


@dataclass(frozen=True)
class Extraction:
    """What a run did.

    unit: what the samples are called, such as "texts" · layers: the shape of one row of each · ignored: lines on what
    was in the source and is no sample ·
    rows: samples in the file · views: of each · windows: how many of these are windows of it, behind their mean ·
    computed: samples through the backbone · passes: inputs of the network for these, one for each of their views, or
    for each window that a clip has · reused: rows taken from an older file unopened ·
    copied: rows whose bytes were already known (duplicates, moved files) · dropped: rows that left ·
    to_read: in a dry run, files that would be read, and computed unless their bytes are known ·
    failures: count by status name · failed: the first of them as (id, status name, detail) ·
    cut: samples whose end was left out, of those that this run computed, and the ids of some of them in cut_named ·
    seconds: of the whole call · bytes: size of the file · engine to why: what ran, and why where `auto` decided ·
    stages: where the time went, None where nothing was computed · audit: what some images gave in fp32 torch, None
    where there was nothing to compare or no time · forward_seconds: from the first image read to the last row written.
    """

    path: str
    key: str
    rows: int
    layers: dict[str, tuple[int, ...]]
    dtype: str
    notes: tuple[str, ...]
    ignored: tuple[str, ...]
    classes: int
    splits: dict[str, int]
    engine: str
    device: str
    precision: str
    batch_size: int
    compiled: bool
    why: str
    warnings: tuple[str, ...]
    stages: Stages | None
    audit: Audited | None
    computed: int
    reused: int
    to_read: int
    copied: int
    dropped: int
    failures: dict[str, int]
    failed: tuple[tuple[str, str, str], ...]
    seconds: float
    forward_seconds: float
    bytes: int
    passes: int = 0
    views: int = 1
    windows: int = 0
    unit: str = "images"
    cut: int = 0
    cut_named: tuple[str, ...] = ()

    @property
    def start_seconds(self) -> float:
        """Until the first image was read: loading, listing, compiling and proving."""
        return self.seconds - self.forward_seconds

    @property
    def advice(self) -> tuple[str, ...]:
        """Of the reasons in `why` those that name what to install, so that this machine becomes faster."""
        from precompute.engines.devices import INSTALL_OPENVINO

        return tuple(reason for reason in self.why.split("; ") if INSTALL_OPENVINO in reason)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        failed = [{"id": name, "reason": reason, "detail": detail} for name, reason, detail in self.failed]
        stages = None if self.stages is None else self.stages.to_dict()
        audit = None if self.audit is None else self.audit.to_dict()
        settings = asdict(replace(self, stages=None, audit=None))
        counts = {"start_seconds": self.start_seconds, "failed": failed}
        return {**settings, **counts, "stages": stages, "audit": audit}


def summary(path: str, source: Source, run: Run, *, earlier: bool = True, began: float) -> Extraction:
    """The result of `run`, which began at `time.monotonic()` == began.

    Counts of failures come from the finished file itself, so that the summary cannot claim anything else. earlier: also
    name samples that failed in an earlier run.
    """
    settings, outcome, cache = run.settings, run.outcome, run.cache
    counts = np.bincount(source.table.splits, minlength=len(SPLITS)).tolist()
    return Extraction(
        path=path,
        key=settings.key if cache is None else cache.key,
        rows=len(source),
        layers=dict(settings.layers),
        dtype=settings.dtype,
        notes=(*settings.notes, *source.notes),
        ignored=tuple(source.ignored),
        classes=len(source.table.classes),
        splits={name: count for name, count in zip(SPLITS, counts, strict=True) if count},
        **settings.ran,
        views=settings.views,
        windows=settings.windows,
        unit=settings.unit,
        **{
            **{one.name: getattr(outcome, one.name) for one in fields(outcome)},
            "failed": _named(cache, outcome.failed) if earlier else outcome.failed,
        },
        failures=_failures(cache),
        bytes=settings.bytes if cache is None else cache.layout.file_size,
        seconds=time.monotonic() - began,
    )


def _failures(cache: Cache | None) -> dict[str, int]:
    """Samples without features by status name."""
    if cache is None:
        return {}
    values, counts = np.unique(cache.status, return_counts=True)
    return {
        status_name(int(value)): int(count) for value, count in zip(values, counts, strict=True) if value != Status.OK
    }


def _named(cache: Cache | None, failed: tuple[tuple[str, str, str], ...]) -> tuple[tuple[str, str, str], ...]:
    """The first FAILURES_NAMED that failed in this run, and in earlier ones."""
    listed = list(failed)
    if cache is not None:
        ids, names = cache.column("samples/id"), {name for name, _, _ in failed}
        for row in np.flatnonzero(cache.status != Status.OK)[: FAILURES_NAMED + len(names)]:
            name = ascii_name(os.fsdecode(bytes(ids[row])))
            if name not in names and len(listed) < FAILURES_NAMED:
                listed.append((name, status_name(int(cache.status[row])), "as in an earlier run"))
    return tuple(listed)
