"""What a run is asked to tell: how far it is, and in the end what it did."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.cache import Status, open_cache, status_name
from precompute.extraction.timing import Stages
from precompute.sources.folder import Listing, ascii_name

if TYPE_CHECKING:
    from precompute.engines.audit import Audited
    from precompute.engines.base import EngineChoice  # which loads torch, as the audit does


FAILURES_NAMED = 20


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
    layer: str
    shape: tuple[int, ...]
    dtype: str
    notes: tuple[str, ...]
    passed: list[str]
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


def describe(path: str, listing: Listing, *, notes: tuple[str, ...], **settings: Any) -> Extraction:
    """The result of a run that has not done anything yet; `settings` are further fields of Extraction."""
    names = ("none", "train", "val", "test")
    counts = np.bincount(listing.splits, minlength=len(names)).tolist()
    return Extraction(
        path=path,
        key="",
        rows=len(listing),
        notes=(*notes, *listing.notes),
        passed=listing.passed.lines(),
        classes=len(listing.classes),
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
