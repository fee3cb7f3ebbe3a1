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
"""torch.compile takes up to a minute, and then saves about this share of eager torch's time (docs/performance.md)."""


@dataclass(frozen=True)
class Settled:
    """What follows from the request, the machine and the file as it was begun; `choice.precision` may be "auto".

    free_engine, free_compile: whether these were left to us · proved: whether the file says that these settings have
    been proved.
    """

    choice: EngineChoice
    reasons: list[str]
    free_engine: bool
    free_compile: bool
    proved: bool


@dataclass
class Decision:
    """The choice, the evidence for it, what the user is warned of; and the engine, where proving has made it.

    free_engine: whether another engine may be taken where this one does not know the network.
    """

    choice: EngineChoice
    trials: list[Trial] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    engine: Engine | None = None
    free_engine: bool = False

    def ready(self, model: Backbone) -> Engine:
        """The engine, made now if it has not been yet. Raises BackboneError where it cannot run the network."""
        if self.engine is None:
            try:
                self.engine = make_engine(model.module, model.transform, self.choice, identity=model.identity)
            except BackboneError as error:
                if not self.free_engine or self.choice.engine == "torch":
                    raise
                self.warnings.append(f"torch runs it: {error.message}")
                batch_size = default_batch("torch", self.choice.device)
                self.choice = replace(self.choice, engine="torch", batch_size=batch_size)
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
    batch_size = batch_size or (_batch_size(begun) if same else None) or default_batch(engine, device)
    compiled = compile == "on" or (compile == "auto" and same and begun.get("compiled") is True)
    proved = same and any(
        (trial.get("engine"), trial.get("precision"), trial.get("passed")) == (engine, precision, True)
        for trial in begun.get("guard", ())
        if isinstance(trial, dict)
    )
    return Settled(
        EngineChoice(engine, device, precision, batch_size, compiled=compiled and engine == "torch"),
        reasons,
        free_engine=asked == "auto",
        free_compile=compile == "auto" and not same,
        proved=proved or (engine, precision) == ("torch", "fp32"),
    )


def prove(settled: Settled, model: Backbone, listing: Listing, rows: NDArray[np.int64], *, workers: int) -> Decision:
    """Choose among what `settled` leaves open, by the features of real images, spread over `rows`.

    A precision that was asked for is taken also where it fails, with a warning.
    """
    choice, reasons = settled.choice, list(settled.reasons)
    free = choice.precision == "auto"
    if settled.proved and not free:
        return _told(Decision(choice, free_engine=settled.free_engine), reasons, settled, len(rows))
    images = guard.first_images(listing, rows, model.transform, workers=workers)
    candidates = available_precisions(choice.engine, choice.device) if free else [choice.precision]
    if free and len(images) < guard.IMAGES:
        candidates = ["fp32"]
        reasons.append(f"fp32: there are fewer than {guard.IMAGES} images to prove another precision on")
    if not images or (len(candidates) == 1 and (choice.engine, candidates[0]) == ("torch", "fp32")):
        plain = Decision(replace(choice, precision=candidates[0]), free_engine=settled.free_engine)
        return _told(plain, reasons, settled, len(rows))
    reference = guard.Reference(model.module, model.transform, images)
    decision = Decision(replace(choice, precision="fp32", engine="torch"))
    engines = {}
    for precision in candidates:
        tried = replace(choice, precision=precision)
        try:
            trial, engines[precision] = guard.trial(reference, tried, identity=model.identity)
        except BackboneError as error:
            if not settled.free_engine or choice.engine == "torch":
                raise
            reasons.append(f"torch: {error.message}")
            other = replace(choice, engine="torch", batch_size=default_batch("torch", choice.device))
            again = replace(settled, choice=other, reasons=reasons, proved=other.precision == "fp32")
            return prove(again, model, listing, rows, workers=workers)
        decision.trials.append(trial)
    winner = guard.best(decision.trials)
    if winner is None and not free and not (settled.free_engine and choice.precision == "fp32"):
        winner = decision.trials[0]
        decision.warnings.append(f"{winner.words}. Features differ from those of fp32; --precision auto avoids that.")
    if winner is not None:
        reasons += [trial.words for trial in decision.trials]
        decision.choice = replace(choice, precision=winner.precision)
        decision.engine = engines[winner.precision]
    else:
        reasons += [trial.words for trial in decision.trials] + ["fp32 with torch: nothing faster passes"]
        decision.choice = replace(decision.choice, batch_size=default_batch("torch", choice.device))
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
            if _without_precision(cache.spec) == wanted:
                record = next((one for one in reversed(cache.provenance) if "engine" in one), {})
                return {**record, "precision": cache.spec["precision"]}
    return {}


def _without_precision(spec: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in spec.items() if name not in ("precision", "storage")}


def _batch_size(record: dict[str, Any]) -> int | None:
    value = record.get("batch_size")
    return value if isinstance(value, int) and 1 <= value <= MAX_BATCH else None
