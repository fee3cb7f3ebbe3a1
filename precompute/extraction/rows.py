"""Fill rows of a file in progress: run the backbone over images never seen, copy rows whose bytes are known."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from precompute.cache import Cache, Layer, RowWriter, Status, quantise, status_name
from precompute.cache.quantised import Rows, fail_rows
from precompute.cache.verification import finite as finite_rows
from precompute.engines.audit import EngineAudit, Shown
from precompute.engines.base import Features
from precompute.extraction.executors.base import Executor, Work
from precompute.extraction.matching import COPY_ROWS, copy_rows, lasting
from precompute.extraction.owners import THIS_RUN, DigestIndex, Owners
from precompute.extraction.pipeline import Block, Decoded
from precompute.extraction.setup import Prepared
from precompute.extraction.timing import StageClock
from precompute.sources.base import Source

HALVED_AT_ONCE = 32_768  # numbers; of more torch makes work for a team of threads
Twins = tuple["array[int]", "array[int]"]  # rows of this run, and those that are byte-identical to them


@dataclass
class Step:
    """What one batch brought. passes: inputs of the network, such as views or windows of the samples that were
    computed · failed: (id, status name, detail) of each sample that has no features · cut: ids of those whose end was
    left out.
    """

    done: int = 0
    computed: int = 0
    passes: int = 0
    copied: int = 0
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)


class RowRun:
    """One run over one file in progress.

    Byte-identical images are computed once: whichever thread reads their bytes first claims them by SHA-256, the
    others are copied from its row when all are written. Rows of older files are claimed before the run begins.
    """

    def __init__(
        self, source: Source, prepared: Prepared, olds: tuple[Cache, ...], writer: RowWriter, executor: Executor
    ) -> None:
        self.writer = writer
        self.prepared = prepared
        self.source = source
        self.executor = executor
        # As the samples are read: one may have changed since the listing
        self._now = replace(source.table, sizes=source.table.sizes.copy(), mtimes=source.table.mtimes.copy())
        self._olds = olds
        self._made = writer.view
        known = []
        for old in olds:
            known.append(DigestIndex(old.column("samples/digest"), np.flatnonzero(lasting(old))))
            old.release_pages()
        self._owners = Owners(known, len(source))

    def steps(
        self,
        rows: NDArray[np.int64],
        *,
        stop: Callable[[], object] | None = None,
        clock: StageClock | None = None,
        audit: EngineAudit | None = None,
    ) -> Iterator[Step]:
        """Fill `rows`, a block at a time, until done or `stop()` is true; see `Executor.blocks`.

        audit: is shown those samples that it wants.
        """
        clock = clock or StageClock()
        work = Work(self.source, self.prepared.model, self.prepared.decision)
        while len(rows):
            twins, again = (array("q"), array("q")), array("q")
            blocks = self.executor.blocks(
                work,
                rows,
                claim=self._owners.claim,
                stop=stop,
                clock=clock,
                keep=None if audit is None else audit.wants,
            )
            for block in blocks:
                with clock.main_thread("write"):
                    step = self._write(block)
                    self._copy_known(block.same, step, twins, again)
                if audit is not None and block.features is not None:
                    audit.show(
                        [
                            self._shown(item, tuple(tap[k] for tap in block.features))
                            for k, item in enumerate(block.decoded)
                            if item.tensors is not None
                        ]
                    )
                yield step
            if stop is not None and stop():
                return
            yield from self._copy_twins(twins, again)
            rows = np.sort(np.array(again, dtype=np.int64))

    def _shown(self, item: Decoded, features: Features) -> Shown:
        """What an audit is shown of a sample: all windows of a clip; of several views one, which its bytes choose."""
        views, name = self.prepared.model.preprocess.views, self.source.sample_name(item.row)
        if item.weights is not None:
            return Shown(name, item.inputs, tuple(tap[0] for tap in features) if views > 1 else features, item.weights)
        if views == 1:
            return Shown(name, item.inputs, features)
        view = item.digest[0] % views
        return Shown(f"{name} (view {view})", (item.inputs[view],), tuple(tap[view] for tap in features))

    def _write(self, block: Block) -> Step:
        items = [*block.decoded, *block.failed]
        views = self.prepared.model.preprocess.views
        passes = sum(views if item.weights is None else len(item.weights) for item in block.decoded)
        step = Step(done=len(items), computed=len(block.decoded), passes=passes)
        step.cut = [self.source.sample_name(item.row) for item in block.decoded if item.cut]
        if not items:
            return step
        count, layers = len(block.decoded), self.prepared.layers
        stored = [
            _stored(layer, len(items), count, None if block.features is None else block.features[number])
            for number, layer in enumerate(layers.values())
        ]
        finite = np.logical_and.reduce([finite_rows(rows)[:count] for rows in stored])
        statuses = [Status.OK] * count
        for place in np.flatnonzero(~finite):  # in one layer: the sample has failed in all of them
            statuses[place] = Status.NON_FINITE
            for rows in stored:
                fail_rows(rows, np.array([place]))
            detail = f"in {self.prepared.storage}"
            step.failed.append(self._failure(block.decoded[place].row, Status.NON_FINITE, detail))
        for item in block.failed:
            assert item.error is not None  # that is what puts it here
            statuses.append(Status[item.error.reason])
            step.failed.append(self._failure(item.row, statuses[-1], item.error.message))
        order = np.argsort([item.row for item in items])
        items = [items[place] for place in order]
        self.writer.write(
            np.array([item.row for item in items], dtype=np.int64),
            {layer: rows[order] for layer, rows in zip(layers, stored, strict=True)},
            digests=np.frombuffer(b"".join(item.digest for item in items), dtype=np.uint8).reshape(-1, 32),
            statuses=np.array(statuses, dtype=np.uint8)[order],
            sizes=np.array([item.size for item in items], dtype=np.int64),
            mtimes=np.array([item.mtime for item in items], dtype=np.int64),
        )
        return step

    def _failure(self, row: int, status: int, detail: str) -> tuple[str, str, str]:
        return self.source.sample_name(row), status_name(status), detail

    def _copy_known(self, same: list[Decoded], step: Step, twins: Twins, again: array[int]) -> None:
        """Copy what older files hold; rows of this run, which may not be written yet, are put down in `twins`."""
        known: dict[int, list[tuple[Decoded, int]]] = {}
        for item in same:
            self._now.sizes[item.row], self._now.mtimes[item.row] = item.size, item.mtime
            owner = self._owners.owner(item.digest)
            if owner is None:  # forgotten since
                again.append(item.row)
            elif owner[0] == THIS_RUN:
                twins[0].append(owner[1])
                twins[1].append(item.row)
            else:
                known.setdefault(owner[0], []).append((item, owner[1]))
        for number, pairs in known.items():
            rows = np.array([item.row for item, _ in pairs], dtype=np.int64)
            bad = self._copy(self._olds[number], np.array([owner for _, owner in pairs]), rows, step, again)
            for digest in {item.digest for item, _ in pairs if item.row in bad}:
                self._owners.forget(digest, number)

    def _copy_twins(self, twins: Twins, again: array[int]) -> Iterator[Step]:
        """Copy rows of this run to those that are byte-identical, now that they are written."""
        if not len(twins[0]):
            yield Step()  # each pass ends with a step of its own, so that a stop is asked about once more
            return
        self._made.release_pages()
        owners, rows = (np.array(column) for column in twins)
        for start in range(0, len(rows), COPY_ROWS):
            step, piece = Step(), slice(start, start + COPY_ROWS)
            bad = self._copy(self._made, owners[piece], rows[piece], step, again)
            for owner, row in zip(owners[piece].tolist(), rows[piece].tolist(), strict=True):
                if row in bad:
                    self._owners.forget(self._owners.digest(owner), THIS_RUN)
            yield step

    def _copy(
        self, old: Cache, owners: NDArray[np.int64], rows: NDArray[np.int64], step: Step, again: array[int]
    ) -> set[int]:
        """Copy rows from their owners; rows whose owner's checksum does not hold are returned, to be computed."""
        bad: list[int] = copy_rows(old, owners, self.writer, rows, self._now).tolist()
        copied = ~np.isin(rows, bad)
        statuses = old.status[owners]
        for place in np.flatnonzero(copied & (statuses != Status.OK)):
            step.failed.append(self._failure(rows[place], int(statuses[place]), "byte-identical to one seen before"))
        step.copied += len(rows) - len(bad)
        step.done += len(rows) - len(bad)
        again.extend(bad)
        return set(bad)


def _stored(layer: Layer, rows: int, count: int, features: NDArray[np.floating] | None) -> Rows:
    """Rows of a layer as they are stored: `features` are the first `count`, and those behind have none."""
    exact = layer.scales is not None
    values = np.full((rows, *layer.shape), np.nan, dtype=np.float32 if exact else layer.dtype)
    if features is not None:
        if features.shape != values[:count].shape:  # NumPy would repeat what is missing
            raise ValueError(f"An executor gave features of {features.shape}, not {values[:count].shape}.")
        if values.dtype == np.float16 and features.dtype == np.float32:
            _halve(features, values[:count])
        else:
            with np.errstate(over="ignore"):
                values[:count] = features
    return quantise(values, layer.axes) if exact else values


def _halve(features: NDArray[np.float32], values: NDArray[np.float16]) -> None:
    """float32 into float16 of the same shape, contiguous; what is beyond its range is infinite, and found later.

    By torch, which takes 0.1 microseconds for 2,048 numbers where NumPy takes 3 to 5: a quarter of all that a process
    does for a row which others have computed. Both round to the nearest, ties to even. They differ in the bits of what
    is not a number, and rows that hold such a thing are overwritten.
    """
    source, target = np.ascontiguousarray(features).reshape(-1), values.reshape(-1)
    for start in range(0, len(source), HALVED_AT_ONCE):
        piece = source[start : start + HALVED_AT_ONCE]
        piece = piece if piece.flags.writeable else piece.copy()  # Ray's are not, which torch warns of
        torch.from_numpy(target[start : start + HALVED_AT_ONCE]).copy_(torch.from_numpy(piece))
