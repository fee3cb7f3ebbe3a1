"""What runs on the nodes of a cluster: one process for each GPU, or for each node, with engine, backbone and source.

It gets blocks of row numbers and reads the samples itself. Where the driver wants to know their bytes first, because
others may have them, it reads a block (`look`), keeps it, and computes the requested rows (`compute`). It knows
nothing of Ray, so that it can be run and tested without.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import platform
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from precompute.backbones.load import Backbone
from precompute.engines import guard
from precompute.engines.base import EngineChoice
from precompute.engines.choice import EXACT, Decision
from precompute.engines.devices import check_device, make_engine
from precompute.engines.guard import Trial
from precompute.errors import PrecomputeError, SampleError
from precompute.extraction.executors.base import Work
from precompute.extraction.executors.local import LocalExecutor
from precompute.extraction.executors.shared_engine import SharedEngine
from precompute.extraction.pipeline import Block, Decoded, hashed
from precompute.extraction.provenance import LIBRARIES
from precompute.extraction.sampling import sample_of
from precompute.extraction.timing import ADDED, StageClock, Stages
from precompute.sources.base import Raw, Source
from precompute.system import version_of

BLOCKS_AT_ONCE = 2  # that are computed: an engine would have nothing to do between one and the next
T = TypeVar("T")


@dataclass(frozen=True)
class Proved:
    """How the engine that was decided on has done, and where."""

    host: str
    device: str
    trial: Trial


@dataclass(frozen=True)
class ActorSettings:
    """What an actor needs next to the source and the backbone.

    choice: what runs; its device is the actor's own of that kind · storage: dtype of the features in the file ·
    workers: threads that read and decode · folder: what relative paths start from · proved: not to be repeated on
    the same device.
    """

    choice: EngineChoice
    storage: str
    workers: int
    folder: str
    proved: Proved | None = None


@dataclass(frozen=True)
class Ready:
    """What an actor says of itself before it is given rows.

    device: model of the GPU, or of the processor · versions: of what decides features · seen: for each row that it was
    to read the SHA-256 of its bytes, or the error · trial: how its engine did, None where there is nothing to prove.
    """

    host: str
    device: str
    versions: dict[str, str]
    seen: dict[int, bytes | SampleError]
    trial: Trial | None


@dataclass
class Computed:
    """blocks: finished samples · missing: rows that were not looked at here, by this process · stages: time spent ·
    ready: False where this process was started again since it was asked to be.
    """

    blocks: list[Block] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    stages: Stages | None = None
    ready: bool = True


def returned(function: Callable[..., T]) -> Callable[..., T | PrecomputeError]:
    """Errors that are meant for the user come back as values, with their hint."""

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> T | PrecomputeError:
        try:
            return function(*given, **named)
        except PrecomputeError as error:
            error.__cause__ = error.__context__ = None
            return error.with_traceback(None)

    return call


class RowActor:
    """Holds one engine. `look` and `halt` are called from their own thread each, `compute` from two: one block is
    decoded while the other is computed, each with half of the threads that decode.
    """

    def __init__(self, settings: ActorSettings) -> None:
        with contextlib.suppress(OSError):  # where it is not there, relative paths are not either: see `ready`
            os.chdir(settings.folder)
        self._settings = settings
        self._held: dict[int, Raw] = {}
        self._halted = 0
        self._clock, self._reported = StageClock(on_cpu=settings.choice.kind == "cpu"), Stages()
        self._reporting = threading.Lock()
        self._session = contextlib.ExitStack()
        self._local = LocalExecutor(math.ceil(settings.workers / BLOCKS_AT_ONCE))
        self._work: Work | None = None

    @returned
    def ready(self, source: Source, backbone: Backbone, rows: Sequence[int]) -> Ready:
        """Read `rows`, make the engine and let it prove itself. Raises what `make_engine` and `check_device` raise.

        Asked once more of a process that was not started again since, it is.
        """
        settings = self._settings
        self._held.clear()
        seen = {row: digest_of(source, row) for row in rows}
        check_device(settings.choice.device)
        if self._work is None:
            self._session.enter_context(backbone.preprocess.session())
            engine = make_engine(backbone.module, backbone.preprocess, settings.choice, identity=backbone.identity)
            self._work = Work(source, backbone, Decision(settings.choice, SharedEngine(engine), settings.storage))
        host, device = socket.gethostname(), device_name(settings.choice)
        readable = any(isinstance(one, bytes) for one in seen.values())
        trial = self._trial(self._work, host, device) if readable else None
        names = (*LIBRARIES, *backbone.family.packages)
        versions = {name: version_of(name) or "not installed" for name in names}
        return Ready(host, device, versions, seen, trial)

    def _trial(self, work: Work, host: str, device: str) -> Trial | None:
        choice, proved = self._settings.choice, self._settings.proved
        if (choice.engine, choice.precision) == EXACT and not choice.compiled:
            return None
        if proved is not None and (proved.host, proved.device) == (host, device):
            return proved.trial
        images = sample_of(work.source, work.backbone.preprocess, workers=self._settings.workers)
        storage = self._settings.storage if choice.precision != "fp32" else "float32"
        return guard.trial(images, work.backbone, work.decision.engine, storage=storage) if len(images) else None

    @returned
    def look(self, rows: NDArray[np.int64], run: int) -> list[Decoded] | Computed:
        """Read and hash `rows`, and keep their bytes until they are computed; none after `halt(run)`.

        All are missing where this process was started again. Raises SourceError where the whole source has gone away.
        """
        if self._work is None:
            return Computed(missing=rows.tolist(), ready=False)
        if self._halted >= run:
            return []
        source = self._work.source
        threads = max(self._settings.workers, source.reads_at_once)
        with ThreadPoolExecutor(threads, thread_name_prefix="look") as pool:
            best = (row for part in source.order(rows) for row in part.tolist())
            found = list(pool.map(functools.partial(self._look, source), best))
        block = Block()
        for item in found:
            if item.error is not None:
                block.add(item, source)
        if self._halted >= run:
            self._held.clear()
        return found

    def _look(self, source: Source, row: int) -> Decoded:
        item, raw = hashed(source, row)
        if raw is not None:
            self._held[row] = raw
        return item

    def forget(self, rows: Sequence[int]) -> None:
        """These rows are not wanted."""
        for row in rows:
            self._held.pop(row, None)

    @returned
    def compute(
        self, rows: NDArray[np.int64], forget: Sequence[int], kept: Sequence[int], run: int, looked: bool
    ) -> Computed:
        """Decode and compute `rows`, ascending; after `halt(run)` only what has begun.

        forget: rows that were looked at and are not wanted · kept: rows whose tensors come back too · looked: only rows
        that were; a process that was started again since has forgotten them. Raises SourceError.
        """
        self.forget(forget)
        if self._work is None:
            return Computed(missing=rows.tolist(), ready=False)
        work, done = self._work, Computed()
        if looked:
            done.missing = [row for row in rows.tolist() if row not in self._held]
            held = {row: self._held.pop(row) for row in rows.tolist() if row in self._held}
            rows = np.array(sorted(held), dtype=np.int64)
            work = Work(_Held(work.source, held), work.backbone, work.decision)
        if len(rows):
            wanted = frozenset(kept)
            blocks = self._local.blocks(
                *(work, rows), stop=lambda: self._halted >= run, clock=self._clock, keep=lambda row: row in wanted
            )
            done.blocks = list(blocks)
        done.stages = self._spent(work.backbone.unit)
        return done

    def _spent(self, unit: str) -> Stages:
        """Seconds since this was asked last, of all blocks: processor time of two at once cannot be distinguished."""
        with self._reporting:
            before, now = self._reported, self._clock.stages(unit)
            self._reported = now
        spent = {name: max(0.0, getattr(now, name) - getattr(before, name)) for name in ADDED}
        return replace(now, **spent)

    def halt(self, run: int) -> None:
        """Nothing further of this run, or of those before it, is begun."""
        self._halted = max(self._halted, run)
        self._held.clear()


class _Held(Source):
    """`whole`, of which some rows have been read already."""

    def __init__(self, whole: Source, held: dict[int, Raw]) -> None:
        self.name, self.table, self._whole, self._held = whole.name, whole.table, whole, held

    def read(self, row: int) -> Raw:
        """See `Source`."""
        return self._held.pop(row)

    def alive(self) -> bool:
        """See `Source`."""
        return self._whole.alive()


def digest_of(source: Source, row: int) -> bytes | SampleError:
    """SHA-256 of a sample's bytes, or why there is none."""
    item, _ = hashed(source, row)
    return item.error or item.digest


def device_name(choice: EngineChoice) -> str:
    """The model of what computes: kernels, and so the last bits, differ from one to the other."""
    if choice.kind == "cuda":
        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
