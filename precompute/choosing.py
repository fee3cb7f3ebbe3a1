"""Which engine and precision a run takes: as asked, as its file was begun with, or the fastest that proves itself."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute import guard
from precompute.backbones import Backbone
from precompute.cache import open_cache
from precompute.engine import Engine, EngineChoice
from precompute.engines import (
    MAX_BATCH,
    PRECISION_VARIABLE,
    PRECISIONS,
    available_precisions,
    check_options,
    check_precision,
    default_batch,
    make_engine,
    settle,
)
from precompute.errors import BackboneError, CacheFormatError, DeviceError, UsageError
from precompute.guard import Trial
from precompute.plan import partial_path
from precompute.sources import Listing
from precompute.transform import DECODER

COMPILE = ("auto", "on", "off")
COMPILE_SECONDS = 60.0
COMPILE_SAVES = 0.3
"""On the safe side: torch.compile was seen to take 7 to 20 s for ResNet-50 and then to save more than half."""


@dataclass(frozen=True)
class Settled:
    """What follows from the request, the machine and the file as it was begun; `choice.precision` may be "auto".

    plain: the same in torch, for a network that the engine does not know, None where the engine was asked for ·
    free_compile: whether torch.compile is left to us · proved: whether the file says that these settings have been ·
    dtype: of the stored features, as asked.
    """

    choice: EngineChoice
    reasons: list[str]
    plain: EngineChoice | None
    free_compile: bool
    proved: bool
    dtype: str = "auto"

    def storage(self, precision: str) -> str:
        """The dtype of the features in the file: where it is left to us float32 for fp32, else float16."""
        if self.dtype != "auto":
            return self.dtype
        return "float32" if precision == "fp32" else "float16"


@dataclass
class Decision:
    """The choice, the evidence for it, what the user is warned of; and the engine, where proving has made it.

    plain: see `Settled`.
    """

    choice: EngineChoice
    trials: list[Trial] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    engine: Engine | None = None
    plain: EngineChoice | None = None

    def ready(self, model: Backbone) -> Engine:
        """The engine, made now if it has not been yet. Raises BackboneError where it cannot run the network."""
        if self.engine is None:
            try:
                self.engine = make_engine(model.module, model.transform, self.choice, identity=model.identity)
            except BackboneError as error:
                if self.plain is None or self.choice.engine == "torch":
                    raise
                self.warnings.append(f"torch runs it: {error.message}")
                self.choice = replace(self.plain, precision=self.choice.precision, why=self.choice.why)
                self.engine = make_engine(model.module, model.transform, self.choice, identity=None)
        self.warnings += [note for note in self.engine.notes if note not in self.warnings]
        return self.engine


def settle_options(
    model: Backbone,
    path: str,
    *,
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    batch_size: int | None = None,
    compile: str = "auto",  # noqa: A002 - torch's word for it
    dtype: str = "auto",
) -> Settled:
    """Resolve what can be resolved without looking at an image, for the output `path`.

    `auto` is resolved once for an output: what its file was begun with stays, so that all of its rows are made alike.
    Raises DeviceError and UsageError.
    """
    check_options(engine, precision, batch_size)
    if compile not in COMPILE:
        raise UsageError(
            f"compile must be one of {', '.join(COMPILE)}. Got {compile!r} instead.", hint="See --compile."
        )
    begun = _begun_with(path, model)
    asked, reasons = engine, []
    if precision == "auto" and (word := os.environ.get(PRECISION_VARIABLE)):
        check_options("auto", word, None)
        precision = word
        reasons.append(f"{word}: {PRECISION_VARIABLE} says so")
    if engine == "auto" and "engine" in begun:
        with contextlib.suppress(DeviceError):  # the file was begun where there was another engine
            engine = settle(str(begun["engine"]), device)[0]
    engine, device, more = settle(engine, device)
    reasons += more
    if precision == "auto" and "precision" in begun:
        precision = begun["precision"]
        reasons.append(f"{precision}: as {path} was begun with")
    if asked == "auto" and precision not in ("auto", *available_precisions(engine, device)):
        if engine == "openvino":
            reasons.append(f"torch: OpenVINO does not compute in {precision} on this CPU")
        engine = "torch"
    check_precision(engine, precision)
    same = begun.get("engine") == engine
    asked_batch = batch_size
    batch_size = batch_size or (_batch_size(begun) if same else None) or default_batch(engine, device, model.module)
    compiled = compile == "on" or (compile == "auto" and same and begun.get("compiled") is True)
    proved = same and any(
        (trial.get("engine"), trial.get("precision"), trial.get("passed")) == (engine, precision, True)
        for trial in begun.get("guard", [])
        if isinstance(trial, dict)
    )
    plain = EngineChoice("torch", device, precision, asked_batch or default_batch("torch", device))
    return Settled(
        EngineChoice(engine, device, precision, batch_size, compiled=compiled and engine == "torch"),
        reasons,
        plain if asked == "auto" else None,
        free_compile=compile == "auto" and not same,
        proved=proved or (engine, precision) == ("torch", "fp32"),
        dtype=dtype,
    )


def prove(
    settled: Settled, model: Backbone, listing: Listing, rows: NDArray[np.int64], *, workers: int | None
) -> Decision:
    """Choose among what `settled` leaves open, by the features of real images, spread over `rows`.

    A precision that was asked for is taken also where it fails, with a warning.
    """
    choice, reasons = settled.choice, list(settled.reasons)
    free = choice.precision == "auto"
    if settled.proved and not free:
        return _told(Decision(choice, plain=settled.plain), reasons, settled, len(rows))
    images = guard.first_images(listing, rows, model.transform, workers=workers)
    candidates = available_precisions(choice.engine, choice.device) if free else [choice.precision]
    if free and len(images) < guard.IMAGES:
        candidates = ["fp32"]
        reasons.append(f"fp32: there are fewer than {guard.IMAGES} images to prove another precision on")
    if not images or (len(candidates) == 1 and (choice.engine, candidates[0]) == ("torch", "fp32")):
        only = Decision(replace(choice, precision=candidates[0]), plain=settled.plain)
        return _told(only, reasons, settled, len(rows))
    reference = guard.Reference(model.module, model.transform, images)
    decision, engines = Decision(choice), {}
    for precision in candidates:
        tried = replace(choice, precision=precision)
        try:
            # In fp32 it is the engine alone that is on trial: no other choice would be stored otherwise
            storage = settled.storage(precision) if precision != "fp32" else "float32"
            trial, engines[precision] = guard.trial(reference, tried, identity=model.identity, storage=storage)
        except BackboneError as error:
            if settled.plain is None or choice.engine == "torch":
                raise
            reasons.append(f"torch: {error.message}")
            again = replace(settled, choice=settled.plain, reasons=reasons, proved=choice.precision == "fp32")
            return prove(again, model, listing, rows, workers=workers)
        decision.trials.append(trial)
        if free and trial.passed and precision == "bf16":
            break  # no other has been faster where the processor has instructions for bf16 (docs/performance.md)
    reasons += [trial.words for trial in decision.trials]
    winner = guard.best(decision.trials)
    if winner is None and (settled.plain is None or choice.precision in ("bf16", "fp16")):
        winner = decision.trials[-1]  # what was asked for, or fp32 with the engine that was asked for
        decision.warnings.append(f"{winner.words}. Features differ from those of fp32; --precision auto avoids that.")
    if winner is not None:
        decision.choice = replace(choice, precision=winner.precision)
        decision.engine = engines[winner.precision]
    else:
        assert settled.plain is not None  # else there is a winner
        decision.choice = replace(settled.plain, precision="fp32")
        reasons.append("fp32 with torch: nothing faster passes")
    return _told(decision, reasons, settled, len(rows))


def _told(decision: Decision, reasons: list[str], settled: Settled, images: int) -> Decision:
    """`decision` with its reasons in words, and with torch.compile where the images left repay it."""
    choice = decision.choice
    rate = next((one.rate for one in decision.trials if (one.engine, one.precision) == ("torch", choice.precision)), 0)
    if settled.free_compile and choice.engine == "torch" and rate:
        saved = images / rate * COMPILE_SAVES
        able = choice.kind == "cuda" or any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")))
        about = f"would save about {saved:.0f} s of {images / rate:.0f} s and cost up to {COMPILE_SECONDS:.0f} s"
        if saved > COMPILE_SECONDS and able:
            choice = replace(choice, compiled=True)
            decision.engine = None
            reasons.append(f"compiled: torch.compile {about}")
        elif saved > COMPILE_SECONDS:
            reasons.append(f"not compiled: torch.compile {about}, but there is no C++ compiler (g++ or clang++)")
    decision.choice = replace(choice, why="; ".join(reasons))
    return decision


def _begun_with(path: str, model: Backbone) -> dict[str, Any]:
    """The record of the last run that made rows with these settings, in the file in progress or the finished one."""
    wanted = _without_precision(model.spec(decoder=DECODER, precision="", storage=""))
    for name in (partial_path(path), path):
        if not os.path.lexists(name):
            continue
        with contextlib.suppress(CacheFormatError, OSError):  # told where the file is opened to be used
            cache = open_cache(name)
            if _without_precision(cache.spec) == wanted and cache.spec.get("precision") in PRECISIONS:
                records = [record for record in cache.provenance if "engine" in record]
                guards = [trial for record in records for trial in _list(record.get("guard"))]
                return {**(records[-1] if records else {}), "guard": guards, "precision": cache.spec["precision"]}
    return {}


def _without_precision(spec: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in spec.items() if name not in ("precision", "storage")}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _batch_size(record: dict[str, Any]) -> int | None:
    value = record.get("batch_size")
    return value if isinstance(value, int) and 1 <= value <= MAX_BATCH else None
