"""What a run is asked to tell: how far it is, and in the end what it did."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.cache import SPLITS, Status, open_cache, status_name
from precompute.extraction.timing import Stages
from precompute.sources.base import Source, ascii_name

if TYPE_CHECKING:
    from precompute.engines.audit import Audited
    from precompute.engines.base import EngineChoice  # which loads torch, as the audit does


FAILURES_NAMED = 20


@dataclass
class Extraction:
    """What a run did.

    layers: the shape of one row of each · ignored: lines on what was in the source and is no sample ·
    rows: samples in the file · computed: forward passes · reused: rows taken from an older file unopened ·
    copied: rows whose bytes were already known (duplicates, moved files) · dropped: rows that left ·
    to_read: in a dry run, files that would be read, and computed unless their bytes are known ·
    failures: count by status name · failed: the first of them as (id, status name, detail) ·
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
    ignored: list[str]
    classes: int
    splits: dict[str, int]
    engine: str = ""
    device: str = ""
    precision: str = ""
    batch_size: int = 0
    compiled: bool = False
    why: str = ""
    warnings: list[str] = field(default_factory=list)
    stages: Stages | None = None
    audit: Audited | None = None
    computed: int = 0
    reused: int = 0
    to_read: int = 0
    copied: int = 0
    dropped: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    seconds: float = 0.0
    forward_seconds: float = 0.0
    bytes: int = 0

    @property
    def start_seconds(self) -> float:
        """Until the first image was read: loading, listing, compiling and proving."""
        return self.seconds - self.forward_seconds

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        failed = [{"id": name, "reason": reason, "detail": detail} for name, reason, detail in self.failed]
        stages = None if self.stages is None else self.stages.to_dict()
        audit = None if self.audit is None else self.audit.to_dict()
        settings = asdict(replace(self, stages=None, audit=None))
        return {**settings, "start_seconds": self.start_seconds, "failed": failed, "stages": stages, "audit": audit}

    def tell_choice(self, choice: EngineChoice) -> None:
        """Say what ran."""
        for name in ("engine", "device", "precision", "batch_size", "compiled", "why"):
            setattr(self, name, getattr(choice, name))


def describe(path: str, source: Source, *, notes: tuple[str, ...], **settings: Any) -> Extraction:
    """The result of a run that has not done anything yet; `settings` are further fields of Extraction."""
    names = SPLITS
    counts = np.bincount(source.table.splits, minlength=len(names)).tolist()
    return Extraction(
        path=path,
        key="",
        rows=len(source),
        notes=(*notes, *source.notes),
        ignored=list(source.ignored),
        classes=len(source.table.classes),
        splits={name: count for name, count in zip(names, counts, strict=True) if count},
        **settings,
    )


def count_outcomes(path: str, result: Extraction) -> None:
    """What the finished file itself says, so that the summary cannot claim anything else."""
    cache = open_cache(path)
    values, counts = np.unique(cache.status, return_counts=True)
    result.failures = {
        status_name(int(value)): int(count) for value, count in zip(values, counts, strict=True) if value != Status.OK
    }
    ids = cache.column("samples/id")
    named = {name for name, _, _ in result.failed}
    result.failed = list(result.failed)
    for row in np.flatnonzero(cache.status != Status.OK)[: FAILURES_NAMED + len(named)]:
        name = ascii_name(os.fsdecode(bytes(ids[row])))
        if name not in named and len(result.failed) < FAILURES_NAMED:
            result.failed.append((name, status_name(int(cache.status[row])), "as in an earlier run"))
    result.key = cache.key
    result.bytes = cache.layout.file_size
