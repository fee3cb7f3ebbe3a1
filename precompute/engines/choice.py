"""`auto` is a function: (what is requested, machine, what older rows were made with, images) -> engine and precision.

Two steps, neither of which looks at a clock. `candidates` puts what may run into the order of a table (see `machine`);
`choose` takes the first of them that keeps the features of fp32 torch on 32 real images. So the same command on the
same machine over the same images ends with the same settings, whatever else the processor does meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from precompute.backbones.load import Backbone
from precompute.engines import guard
from precompute.engines.base import Engine, EngineChoice
from precompute.engines.devices import (
    INSTALL_OPENVINO,
    check_device,
    check_options,
    default_batch,
    make_engine,
)
from precompute.engines.guard import Sample, Trial
from precompute.engines.machine import COMPILE_FROM, ENGINE_VARIABLE, PRECISION_VARIABLE, PREFERENCES, Machine
from precompute.errors import BackboneError, DeviceError, UsageError
from precompute.system.steps import step

COMPILE = ("auto", "on", "off")
EXACT = ("torch", "fp32")
"""The engine and precision that all others are compared with."""


@dataclass(frozen=True)
class Asked:
    """The user's request; "auto" and None are left to us. See `extract` for the meaning."""

    engine: str = "auto"
    precision: str = "auto"
    device: str = "auto"
    batch_size: int | None = None
    compile: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class Begun:
    """What older rows of the same output, or those that a head was trained on, were made with; empty for none.

    proved: pairs of engine and precision that have kept their features on images of this source ·
    words: where this is known from, such as "as a.h5 was begun with".
    """

    engine: str | None = None
    precision: str | None = None
    batch_size: int | None = None
    compiled: bool = False
    proved: frozenset[tuple[str, str]] = frozenset()
    words: str = ""


@dataclass(frozen=True)
class Candidates:
    """What may run, in the order of preference; never empty.

    reasons: why it is these, in words · proved: see `Begun` · dtype: of the stored features, as requested.
    """

    choices: tuple[EngineChoice, ...]
    reasons: tuple[str, ...]
    proved: frozenset[tuple[str, str]]
    dtype: str

    @property
    def precision(self) -> str | None:
        """The precision, where it follows without a look at images; None where they decide."""
        found = {choice.precision for choice in self.choices}
        return found.pop() if len(found) == 1 else None

    def storage(self, precision: str) -> str:
        """The dtype of the features in the file: where it is left to us float32 for fp32, else float16."""
        if self.dtype != "auto":
            return self.dtype
        return "float32" if precision == "fp32" else "float16"


@dataclass(frozen=True)
class Decision:
    """What runs: the choice, with its reasons in words, and its engine, ready.

    storage: dtype of the features in the file · trials: the evidence · warnings: what the user should know.
    """

    choice: EngineChoice
    engine: Engine = field(compare=False)
    storage: str
    trials: tuple[Trial, ...] = ()
    warnings: tuple[str, ...] = ()


def candidates(
    asked: Asked,
    machine: Machine,
    *,
    begun: Begun | None = None,
    images: int = 0,
    module: nn.Module | None = None,
    most: int | None = None,
) -> Candidates:
    """What may run the network `module` over a source of so many `images`, in the order of preference.

    most: inputs of a forward pass, unless more are requested, see `Preprocess.most_inputs`.

    `auto` is resolved once for an output: what it was begun with stays, so that all of its rows are made alike.
    Raises DeviceError for a device, engine or precision that is not there, UsageError for values out of range.
    """
    begun = begun or Begun()
    check_options(asked.engine, asked.precision, asked.batch_size)
    check_options(machine.engine, machine.precision, None)
    if asked.compile not in COMPILE:
        raise UsageError(
            f"compile must be one of {', '.join(COMPILE)}. Got {asked.compile!r} instead.", hint="See --compile."
        )
    reasons: list[str] = []
    device = _device(asked, machine, reasons)
    kind = check_device(device)
    precision = asked.precision
    if precision == "auto" and machine.precision != "auto":
        precision = machine.precision
        reasons.append(f"{precision}: set by {PRECISION_VARIABLE}")
    elif precision == "auto" and begun.precision is not None:
        precision = begun.precision
        reasons.append(f"{precision}: {begun.words}")
    engine = preferred = asked.engine
    missing = kind == "cpu" and machine.openvino and precision not in ("auto", *machine.openvino)
    if engine == "auto" and begun.engine is not None and _usable(begun.engine, kind, machine):
        preferred = begun.engine  # first, but another may take its place where it cannot run the network
    elif engine == "auto" and machine.engine != "auto" and not (missing and machine.engine == "openvino"):
        engine = machine.engine
        reasons.append(f"{engine}: set by {ENGINE_VARIABLE}")
    if engine == "openvino":
        _check_openvino(kind, device, precision, machine)
    elif engine == "auto" and kind == "cpu" and not machine.openvino:
        reasons.append(f"torch: OpenVINO, which is faster on a CPU, is not installed ({INSTALL_OPENVINO})")
    elif engine == "auto" and missing:
        reasons.append(f"torch: OpenVINO does not compute in {precision} on this CPU")
    pairs = _pairs(kind, engine, precision, machine)
    pairs.sort(key=lambda pair: preferred not in ("auto", pair[0]))  # stable
    return Candidates(
        tuple(_choice(pair, device, asked, begun, machine, images, module, most) for pair in pairs),
        tuple(reasons),
        begun.proved,
        asked.dtype,
    )


def choose(found: Candidates, model: Backbone, images: Sample) -> Decision:
    """The first candidate that keeps the features of fp32 torch on `images`; `images` are read if one is to prove it.

    A precision that was requested is taken also where it fails, with a warning, and so is fp32 with an engine that
    was requested. Raises BackboneError where an engine that was requested cannot run the network.
    """
    reasons, cannot = list(found.reasons), set[str]()
    trials: list[Trial] = []
    failed: list[tuple[EngineChoice, Engine, Trial]] = []
    several, last = found.precision is None, found.choices[-1]
    for choice in found.choices:
        pair = (choice.engine, choice.precision)
        if choice.engine in cannot:
            continue
        if several and choice.precision != "fp32" and len(images) < guard.IMAGES:
            why = f"fp32: there are fewer than {guard.IMAGES} {model.unit} to prove another precision on"
            reasons += [why] if why not in reasons else []
            continue
        proved = (pair == EXACT and not choice.compiled) or pair in found.proved or not len(images)
        if not proved:
            images.begin(model)  # beside the compiling
        try:
            with step(f"preparing {choice.engine} in {choice.precision}"):
                engine = make_engine(model.module, model.preprocess, choice, identity=model.identity)
        except BackboneError as error:
            if choice.engine == last.engine:
                raise
            cannot.add(choice.engine)
            reasons.append(f"{last.engine}: {error.message}")
            continue
        if proved:
            reasons += [f"{' with '.join(reversed(EXACT))}: nothing faster passes"] if trials else []
            return _decision(choice, engine, found, reasons, trials)
        # In fp32 it is the engine alone that is on trial: no other choice would be stored otherwise
        storage = found.storage(choice.precision) if choice.precision != "fp32" else "float32"
        with step(f"comparing {choice.precision} by {choice.engine} with fp32 torch"):
            trial = guard.trial(images, model, engine, storage=storage)
        trials.append(trial)
        reasons.append(trial.words)
        if trial.passed:
            return _decision(choice, engine, found, reasons, trials)
        failed.append((choice, engine, trial))
    choice, engine, trial = failed[-1] if several else failed[0]
    warning = f"{trial.words}. Features differ from those of fp32; --precision auto avoids that."
    return _decision(choice, engine, found, reasons, trials, warning)


def _device(asked: Asked, machine: Machine, reasons: list[str]) -> str:
    if asked.device != "auto":
        return asked.device
    if machine.cuda and asked.engine != "openvino":
        return "cuda"
    if asked.engine == "auto":
        reasons.append("cpu: no CUDA device was found")
    return "cpu"


def _usable(engine: str, kind: str, machine: Machine) -> bool:
    """Whether an engine of older rows, which may have been made on another machine, is here."""
    return engine == "torch" or (engine == "openvino" and kind == "cpu" and bool(machine.openvino))


def _check_openvino(kind: str, device: str, precision: str, machine: Machine) -> None:
    if not machine.openvino:
        raise DeviceError("The engine openvino is not installed.", hint=f"{INSTALL_OPENVINO}, or --engine torch.")
    if kind != "cpu":
        raise UsageError(f"The engine openvino runs on the CPU, not on {device}.", hint="Use --engine torch.")
    if precision not in ("auto", *machine.openvino):
        raise DeviceError(
            f"This CPU does not compute in {precision} with OpenVINO.",
            hint=f"Use --precision {' or '.join(machine.openvino)}, or --engine torch.",
        )


def _pairs(kind: str, engine: str, precision: str, machine: Machine) -> list[tuple[str, str]]:
    """Engines and precisions in the order of the table; one that was requested also where it is not in it."""
    listed = [(one.engine, one.precision) for one in PREFERENCES if one.kind == kind] or [EXACT]
    pairs = [pair for pair in listed if machine.computes(pair[0], kind, pair[1])]
    if precision != "auto":
        engines = ("openvino", "torch")
        able = [one for one in engines if one == "torch" or machine.computes(one, kind, precision)]
        pairs = [(one, precision) for one in able]
    return [pair for pair in pairs if engine in ("auto", pair[0])]


def _choice(
    pair: tuple[str, str],
    device: str,
    asked: Asked,
    begun: Begun,
    machine: Machine,
    images: int,
    module: nn.Module | None,
    most: int | None,
) -> EngineChoice:
    engine, precision = pair
    same = begun.engine == engine
    usual = default_batch(engine, device, module)
    usual = usual if most is None else min(usual, most)
    batch = asked.batch_size or (begun.batch_size if same else None) or usual
    compiled = False
    if engine == "torch":
        kind = device.partition(":")[0]
        repays = images >= COMPILE_FROM.get(kind, images + 1) and (kind != "cpu" or machine.compiler)
        left = begun.compiled if same else repays
        compiled = asked.compile == "on" or (asked.compile == "auto" and left)
    return EngineChoice(engine, device, precision, batch, compiled=compiled)


def _decision(
    choice: EngineChoice,
    engine: Engine,
    found: Candidates,
    reasons: list[str],
    trials: Sequence[Trial],
    *warnings: str,
) -> Decision:
    """The result, frozen. `engine` says itself what could not be done as chosen."""
    if choice.compiled:
        reasons = [*reasons, "compiled: torch.compile repays itself over so many images (--compile off: without)"]
    return Decision(
        choice=replace(choice, why="; ".join(reasons)),
        engine=engine,
        storage=found.storage(choice.precision),
        trials=tuple(trials),
        warnings=(*warnings, *engine.notes),
    )
