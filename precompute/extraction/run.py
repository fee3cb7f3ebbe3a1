"""source x backbone -> cache. The heavy part: plan, lay out, compute what is missing, finish by one rename."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.backbones.load import Backbone
from precompute.cache import bytes_needed, key_of, status_text
from precompute.engines.audit import EngineAudit
from precompute.errors import SourceError, Stopped
from precompute.extraction.conduct import Conduct, Progress
from precompute.extraction.executors.base import Executor
from precompute.extraction.executors.names import opened
from precompute.extraction.joining import check_join
from precompute.extraction.leftovers import drop_kept
from precompute.extraction.matching import Plan, make_plan, open_olds, samples_of, up_to_date
from precompute.extraction.output import CacheOutput
from precompute.extraction.provenance import run_record
from precompute.extraction.request import Request
from precompute.extraction.result import FAILURES_NAMED, Outcome, Run, Settings
from precompute.extraction.rows import RowRun
from precompute.extraction.setup import Prepared, prepare
from precompute.extraction.timing import StageClock
from precompute.extraction.working_file import finish, working_file
from precompute.sources.base import Source
from precompute.sources.part import PartOfSource
from precompute.system.steps import step


@dataclass(frozen=True)
class Job:
    """What is to be made: a file at `output` with the features of `source`, under the lock of its runner."""

    output: CacheOutput
    source: Source
    prepared: Prepared

    def settings(self) -> Settings:
        """What its rows are made with, or would be."""
        prepared = self.prepared
        return Settings(
            layers={tap.layer: tap.shape for tap in prepared.model.stored},
            dtype=prepared.storage,
            notes=prepared.model.notes,
            ran=asdict(prepared.choice),
            views=prepared.model.preprocess.views,
            windows=prepared.model.windows,
            unit=prepared.model.unit,
        )


def run(
    output: CacheOutput,
    source: Source,
    request: Request,
    conduct: Conduct,
    *,
    limit: int | None,
    rehash: bool,
    dry_run: bool,
    model: Backbone | None = None,
) -> Run:
    """Bring the file at `output` up to `source`; the caller holds its lock. The errors are those of `extract`.

    model: the backbone, where it is loaded already.
    """
    with opened(conduct.executor, workers=conduct.workers, exact=conduct.exact) as executor:
        prepared = prepare(request, output, source, executor, model=model)
        job = Job(output, source, prepared)
        with prepared.model.preprocess.session():
            olds = open_olds(output, prepared.spec)
            with step("comparing the samples with older rows"):
                plan = make_plan(source, output, olds, limit=limit, rehash=rehash)
            missing = len(plan.missing)
            if dry_run:
                outcome = Outcome(reused=len(source) - missing, to_read=missing, dropped=plan.dropped)
                needed = bytes_needed(samples_of(source.table), prepared.layers, source.table.columns)
                return Run(replace(job.settings(), key=key_of(prepared.spec), bytes=needed), outcome, None)
            there = up_to_date(plan, source.table, output)
            if there is not None:
                drop_kept(output)  # left by a run that ended between its last two steps
                return Run(job.settings(), Outcome(reused=len(source), dropped=plan.dropped), there)
            part = source.part if isinstance(source, PartOfSource) else None
            asked = request.record(prepared.model.file, source.reading, part=part, limit=limit, reuse=output.reuse)
            return complete(job, plan, conduct, executor, asked)


def complete(job: Job, plan: Plan, conduct: Conduct, executor: Executor, asked: dict[str, Any]) -> Run:
    """Make the file that `plan` is about: copy, compute, rename.

    executor: that of `conduct`, opened · asked: what the run's record says next to what it was made with (see
    `Request.record`).
    """
    prepared, source = job.prepared, job.source
    if conduct.join:
        check_join(plan, plan.missing, source)
    if len(plan.missing):
        _ = prepared.decision  # what cannot run is known before anything is written
    outcome, warnings = Outcome(), list[str]()
    with working_file(job.output, plan, prepared.spec, source.table, prepared.layers) as (writer, missing):
        if conduct.join:
            check_join(plan, missing, source)  # rows may be damaged
        if len(missing):
            decision = prepared.decision
            warnings += decision.warnings
            if not writer.append_provenance([run_record(decision, prepared.model, source.origin) | asked]):
                warnings.append("the record of this run is too long for the file, which does not hold it")
            try:
                outcome = _fill(RowRun(source, prepared, plan.olds, writer, executor), missing, conduct)
            finally:  # also of a run that goes on later
                if (record := executor.record()) is not None:
                    writer.append_provenance([{"executor": record}])
            warnings += executor.warnings
        made = writer.view
    with step("finishing the file"):
        finish(job.output, made)
    outcome = replace(
        outcome,
        reused=len(source) - len(missing),
        dropped=plan.dropped,
        warnings=(*warnings, *outcome.warnings),
    )
    return Run(job.settings(), outcome, made)


def _fill(rows: RowRun, missing: NDArray[np.int64], conduct: Conduct) -> Outcome:
    """Compute the missing rows, saying how it goes, until done, stopped, or a sample breaks a strict run."""
    model, decision = rows.prepared.model, rows.prepared.decision
    choice = decision.choice
    clock = StageClock(on_cpu=choice.kind == "cpu")
    exact = (choice.engine, choice.precision, choice.compiled) == ("torch", "fp32", False)
    audit = None if exact else EngineAudit(model, choice, missing, decision.storage)
    began, seconds, total = time.monotonic(), 0.0, len(rows.source)
    done, computed, passes, copied, failures = total - len(missing), 0, 0, 0, 0
    failed: list[tuple[str, str, str]] = []
    cut, cut_named = 0, list[str]()
    signals: list[int] = []  # the one that asked to stop, if one has

    def ask() -> None:
        if not signals and conduct.stop is not None and (signum := conduct.stop()):
            signals.append(signum)

    def stopped() -> bool:
        if rows.source.reads_at_once or rows.executor.waits:  # for long, perhaps: not only after each batch
            ask()
        return bool(signals)

    for batch in rows.steps(missing, stop=stopped, clock=clock, audit=audit):
        done += batch.done
        computed += batch.computed
        passes += batch.passes
        copied += batch.copied
        failures += len(batch.failed)
        failed.extend(batch.failed[: max(0, FAILURES_NAMED - len(failed))])
        cut += len(batch.cut)
        cut_named.extend(batch.cut[: max(0, FAILURES_NAMED - len(cut_named))])
        seconds = time.monotonic() - began
        if conduct.progress is not None:
            conduct.progress(Progress(done, total, computed, failures, seconds, model.unit))
        ask()
        if batch.failed and conduct.on_error == "stop":
            identity, reason, detail = batch.failed[0]
            rows.writer.sync()
            raise SourceError(
                f"{identity}: {status_text(reason)} ({detail}).",
                hint="Everything computed so far is kept. Repair or remove the file and run the same command again, "
                "or use --on-error skip.",
            )
    audited = None if audit is None else audit.finish()
    if audited is not None:
        rows.writer.append_provenance([{"audit": audited.to_dict()}])
    if cut:
        rows.writer.append_provenance([{"cut": {"samples": cut, "named": sorted(cut_named)}}])
    if signals and done < total:
        rows.writer.sync()
        raise Stopped(
            f"Stopped with {done:,} of {total:,} samples done.",
            signum=signals[0],
            hint="Everything computed so far is kept. Run the same command again to resume.",
        )
    return Outcome(
        computed=computed,
        passes=passes,
        copied=copied,
        failed=tuple(failed),
        cut=cut,
        cut_named=tuple(sorted(cut_named)),
        warnings=(audited.warning,) if audited is not None and audited.warning else (),
        stages=clock.stages(model.unit),
        audit=audited,
        forward_seconds=seconds,
    )
