"""source x backbone -> cache. The heavy part: plan, lay out, compute what is missing, finish by one rename."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import bytes_needed, key_of, status_text
from precompute.engines.audit import EngineAudit
from precompute.errors import SourceError, Stopped
from precompute.extraction.leftovers import drop_kept
from precompute.extraction.matching import Plan, make_plan, open_olds, partial_path, samples_of, up_to_date
from precompute.extraction.output import finish, working_file
from precompute.extraction.provenance import run_record
from precompute.extraction.request import Request, remember
from precompute.extraction.result import FAILURES_NAMED, Extraction, Progress, describe
from precompute.extraction.rows import RowRun
from precompute.extraction.setup import Prepared, prepare
from precompute.extraction.timing import Stages
from precompute.inputs.images.decode import quiet_pillow
from precompute.sources.folder import Listing


def run(
    path: str,
    listing: Listing,
    request: Request,
    *,
    workers: int | None,
    on_error: str,
    limit: int | None,
    overwrite: bool,
    rehash: bool,
    dry_run: bool,
    progress: Callable[[Progress], None] | None,
    stop: Callable[[], int] | None,
) -> Extraction:
    """Bring the file at `path` up to `listing`, under the lock of its caller. See `extract`, whose errors these are."""
    with quiet_pillow():
        prepared = prepare(request, path, listing, workers=workers)
        model, storage = prepared.model, prepared.storage
        result = describe(path, listing, layer=model.layer, shape=model.shape, dtype=storage, notes=model.notes)
        olds = open_olds(path, prepared.spec, overwrite=overwrite)
        plan = make_plan(listing, path, olds, limit=limit, overwrite=overwrite, rehash=rehash)
        result.dropped = plan.dropped
        if dry_run:
            result.key, result.to_read = key_of(prepared.spec), len(plan.missing)
            result.reused = len(listing) - result.to_read
            result.bytes = bytes_needed(samples_of(listing), prepared.layers)
        elif up_to_date(plan, listing, path):
            result.reused = len(listing)
            drop_kept(path)  # left by a run that ended between its last two steps
        else:
            wanted = remember(request, model.file)
            complete(path, listing, plan, prepared, result, wanted, workers, on_error, progress, stop)
        result.tell_choice(prepared.choice)
    return result


def complete(
    path: str,
    listing: Listing,
    plan: Plan,
    prepared: Prepared,
    result: Extraction,
    remembered: dict[str, Any],
    workers: int | None,
    on_error: str,
    progress: Callable[[Progress], None] | None,
    stop: Callable[[], int] | None,
) -> None:
    """Make the file that `plan` is about: copy, compute, rename; `result` is told what was done.

    remembered: what the run's record says beside what it was made with (see `remember`).
    """
    model = prepared.model
    if len(plan.missing):
        _ = prepared.decision  # what cannot run is known before anything is written
    with working_file(path, plan, prepared.spec, listing, prepared.layers) as (writer, missing):
        rows = RowRun(
            listing,
            plan.olds,
            partial_path(path),
            writer,
            shape=model.shape,
            layer=model.layer,
            storage=prepared.storage,
        )
        if len(missing):
            decision = prepared.decision
            result.warnings += decision.warnings
            if not writer.append_provenance([run_record(decision, model, listing.root) | remembered]):
                result.warnings.append("the record of this run is too long for the file, which does not hold it")
            _fill(rows, missing, prepared, workers, on_error, progress, stop, result)
        result.reused = len(listing) - len(missing)
    finish(path, plan)


def _fill(
    run: RowRun,
    missing: NDArray[np.int64],
    prepared: Prepared,
    workers: int | None,
    on_error: str,
    progress: Callable[[Progress], None] | None,
    stop: Callable[[], int] | None,
    result: Extraction,
) -> None:
    """Compute the missing rows, telling how it goes, until done, stopped, or an image breaks a strict run."""
    model, decision = prepared.model, prepared.decision
    engine, choice = decision.engine, decision.choice
    stages = Stages(on_cpu=choice.kind == "cpu")
    exact = (choice.engine, choice.precision, choice.compiled) == ("torch", "fp32", False)
    audit = None if exact else EngineAudit(model, choice, missing, decision.storage)
    began = time.monotonic()
    done, failures = result.rows - len(missing), 0
    asked: list[int] = []  # the signal that asked to stop, if one has
    steps = run.steps(missing, engine, model.transform, workers, stop=lambda: bool(asked), stages=stages, audit=audit)
    for step in steps:
        done += step.done
        failures += len(step.failed)
        result.computed += step.computed
        result.copied += step.copied
        result.failed.extend(step.failed[: max(0, FAILURES_NAMED - len(result.failed))])
        result.forward_seconds = time.monotonic() - began
        if progress is not None:
            progress(Progress(done, result.rows, result.computed, failures, result.forward_seconds))
        if stop is not None and not asked and (signum := stop()):
            asked.append(signum)
        if step.failed and on_error == "stop":
            identity, reason, detail = step.failed[0]
            run.writer.sync()
            raise SourceError(
                f"{identity}: {status_text(reason)} ({detail}).",
                hint="Everything computed so far is kept. Mend or remove the file and run the same command again, "
                "or use --on-error skip.",
            )
    result.audit = None if audit is None else audit.finish()
    if result.audit is not None:
        run.writer.append_provenance([{"audit": result.audit.to_dict()}])
        result.warnings += [result.audit.warning] if result.audit.warning else []
    stages.finish()
    result.stages = stages
    if asked and done < result.rows:
        run.writer.sync()
        raise Stopped(
            f"Stopped with {done:,} of {result.rows:,} samples done.",
            signum=asked[0],
            hint="Everything computed so far is kept. Run the same command again to go on.",
        )
