"""Which engine and precision `auto` takes on this machine, by its table, and what would make it faster."""

from __future__ import annotations

from collections.abc import Iterator

from precompute.diagnosis.finding import NOTE, OK, PROBLEM, Finding
from precompute.errors import PrecomputeError


def chosen() -> Iterator[Finding]:
    """What `auto` stands for here, with the reason from the table; the compiler."""
    from precompute.engines.choice import Asked, candidates
    from precompute.engines.devices import INSTALL_OPENVINO
    from precompute.engines.machine import ENGINE_VARIABLE, PRECISION_VARIABLE, PREFERENCES, Machine

    machine = Machine.here()
    try:
        found = candidates(Asked(), machine)
    except PrecomputeError as error:  # such as PRECOMPUTE_ENGINE=openvino where it is missing
        yield Finding("engines", "auto", PROBLEM, error.message, error.hint)
        return
    names = [f"{one.engine} {one.precision}" for one in found.choices]
    first = found.choices[0]
    kind = first.device.partition(":")[0]
    why = next(
        (
            one.why
            for one in PREFERENCES
            if (one.kind, one.engine, one.precision) == (kind, first.engine, first.precision)
        ),
        "",
    )
    details = {
        "candidates": [
            {"engine": one.engine, "precision": one.precision, "device": one.device} for one in found.choices
        ],
        "reasons": list(found.reasons),
    }
    others = f"; where its features differ from those of fp32 torch, {', then '.join(names[1:])}" if names[1:] else ""
    yield Finding("engines", "auto", OK, f"{names[0]} on {first.device}{others}", details=details)
    if why:
        yield Finding("engines", "why", OK, why)
    if machine.openvino:
        text = f"computes in {', '.join(machine.openvino)} on this processor"
        yield Finding("engines", "openvino", OK, text, details={"precisions": list(machine.openvino)})
    elif not machine.cuda:
        yield Finding("engines", "openvino", NOTE, "not installed; on CPUs it is faster than torch", INSTALL_OPENVINO)
    for variable, value in ((ENGINE_VARIABLE, machine.engine), (PRECISION_VARIABLE, machine.precision)):
        if value != "auto":
            yield Finding(
                "engines",
                variable,
                NOTE,
                f"says that auto is {value}",
                f"Without it the table decides: unset {variable}.",
            )
    if kind == "cpu":
        words = (
            "a C++ compiler is here, which --compile on needs"
            if machine.compiler
            else "no C++ compiler: no --compile on"
        )
        yield Finding("engines", "compiler", OK, words, details={"compiler": machine.compiler})
