"""source x backbone -> cache. The heavy part: plan, lay out, compute what is missing, finish by one rename."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import bytes_needed, key_of, status_text
from precompute.engines.audit import EngineAudit
from precompute.errors import SourceError, Stopped
from precompute.extraction.conduct import Conduct, Progress
from precompute.extraction.leftovers import drop_kept
from precompute.extraction.matching import Plan, make_plan, open_olds, samples_of, up_to_date
from precompute.extraction.output import finish, working_file
from precompute.extraction.provenance import run_record
from precompute.extraction.request import Request, remember
from precompute.extraction.result import FAILURES_NAMED, Extraction, describe
from precompute.extraction.rows import RowRun
from precompute.extraction.setup import Prepared, prepare
from precompute.extraction.timing import Stages
from precompute.sources.base import Source


@dataclass(frozen=True)
class Job:
    """What is to be made: a file at `path` with the features of `source`, under the lock of whoever runs it."""

    path: str
    source: Source
    prepared: Prepared


def run(
    path: str,
    source: Source,
    request: Request,
    conduct: Conduct,
    *,
    limit: int | None,
    overwrite: bool,
    rehash: bool,
    dry_run: bool,
) -> Extraction:
    """Bring the file at `path` up to `source`, under the lock of its caller. See `extract`, whose errors these are."""
    prepared = prepare(request, path, source, workers=conduct.workers)
    job = Job(path, source, prepared)
    with prepared.model.preprocess.session():
        layers = prepared.layers
        shapes = {name: layer.shape for name, layer in layers.items()}
        result = describe(path, source, layers=shapes, dtype=prepared.storage, notes=prepared.model.notes)
        olds = open_olds(path, prepared.spec, overwrite=overwrite)
        plan = make_plan(source, path, olds, limit=limit, overwrite=overwrite, rehash=rehash)
        result.dropped = plan.dropped
        if dry_run:
            result.key, result.to_read = key_of(prepared.spec), len(plan.missing)
            result.reused = len(source) - result.to_read
            result.bytes = bytes_needed(samples_of(source.table), layers)
        elif up_to_date(plan, source.table, path):
            result.reused = len(source)
            drop_kept(path)  # left by a run that ended between its last two steps
        else:
            complete(job, plan, conduct, result, remember(request, prepared.model.file))
        result.tell_choice(prepared.choice)
    return result


def complete(job: Job, plan: Plan, conduct: Conduct, result: Extraction, asked: dict[str, Any]) -> None:
    """Make the file that `plan` is about: copy, compute, rename; `result` says what was done.

    asked: what the run's record says beside what it was made with (see `remember`).
    """
    prepared, source = job.prepared, job.source
    if len(plan.missing):
        _ = prepared.decision  # what cannot run is known before anything is written
    with working_file(job.path, plan, prepared.spec, source.table, prepared.layers) as (writer, missing):
        if len(missing):
            decision = prepared.decision
            result.warnings += decision.warnings
            if not writer.append_provenance([run_record(decision, prepared.model, source.origin) | asked]):
                result.warnings.append("the record of this run is too long for the file, which does not hold it")
            _fill(RowRun(job.path, source, prepared, plan.olds, writer), missing, conduct, result)
        result.reused = len(source) - len(missing)
    finish(job.path, plan)


def _fill(rows: RowRun, missing: NDArray[np.int64], conduct: Conduct, result: Extraction) -> None:
    """Compute the missing rows, saying how it goes, until done, stopped, or a sample breaks a strict run."""
    model, decision = rows.prepared.model, rows.prepared.decision
    choice = decision.choice
    stages = Stages(on_cpu=choice.kind == "cpu")
    exact = (choice.engine, choice.precision, choice.compiled) == ("torch", "fp32", False)
    audit = None if exact else EngineAudit(model, choice, missing, decision.storage)
    began = time.monotonic()
    done, failures = result.rows - len(missing), 0
    signals: list[int] = []  # the one that asked to stop, if one has
    steps = rows.steps(missing, conduct.workers, stop=lambda: bool(signals), stages=stages, audit=audit)
    for step in steps:
        done += step.done
        failures += len(step.failed)
        result.computed += step.computed
        result.copied += step.copied
        result.failed.extend(step.failed[: max(0, FAILURES_NAMED - len(result.failed))])
        result.forward_seconds = time.monotonic() - began
        if conduct.progress is not None:
            conduct.progress(Progress(done, result.rows, result.computed, failures, result.forward_seconds))
        if conduct.stop is not None and not signals and (signum := conduct.stop()):
            signals.append(signum)
        if step.failed and conduct.on_error == "stop":
            identity, reason, detail = step.failed[0]
            rows.writer.sync()
            raise SourceError(
                f"{identity}: {status_text(reason)} ({detail}).",
                hint="Everything computed so far is kept. Mend or remove the file and run the same command again, "
                "or use --on-error skip.",
            )
    result.audit = None if audit is None else audit.finish()
    if result.audit is not None:
        rows.writer.append_provenance([{"audit": result.audit.to_dict()}])
        result.warnings += [result.audit.warning] if result.audit.warning else []
    stages.finish()
    result.stages = stages
    if signals and done < result.rows:
        rows.writer.sync()
        raise Stopped(
            f"Stopped with {done:,} of {result.rows:,} samples done.",
            signum=signals[0],
            hint="Everything computed so far is kept. Run the same command again to go on.",
        )
