"""Look at this machine for what helps or stops an extraction. Nothing is changed, and no connection is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from precompute.diagnosis import devices, engines, folders, packages, variables
from precompute.diagnosis.finding import NOTE, OK, PROBLEM, Diagnosis, Finding, guarded
from precompute.diagnosis.probing import load_error
from precompute.system.steps import step

NOT_FETCHED = re.compile(r" and could not be (?:downloaded|fetched) \(.*?\)(?=\.\n)", re.DOTALL)
"""What loading a network says, which was not allowed to try."""


def doctor(
    folder: str | os.PathLike[str] | None = None, *, backbone: str | None = None, weights: str = "DEFAULT"
) -> Diagnosis:
    """What of this machine helps or stops an extraction.

    folder: a folder for feature files, or one of these files; lock, reservation and rename are tried there in a new
    folder, which is removed again. backbone, weights: as of `extract`; the network is loaded with what is on this
    machine. A backbone that is your own code is run for that.

    Packages are imported, and the network is loaded, in a separate process: one that crashes is a finding. Raises
    nothing; `Diagnosis.healthy` says whether `extract` can run.
    """
    found: list[Finding] = []
    found += guarded("devices", devices.processor)
    there: list[packages.Installed] = []

    def look() -> Iterable[Finding]:
        with step("importing packages"):
            there.append(packages.installed())
        return packages.core(there[0])

    core = list(guarded("packages", look))
    usable = bool(there) and there[0].loads("torch")
    if usable:
        found += guarded("devices", devices.accelerators)
    if usable and there[0].errors.get("openvino") is None:
        found += guarded("engines", engines.chosen)
    else:
        cannot = "openvino" if usable else "torch"
        found.append(Finding("engines", "auto", NOTE, f"not known, since {cannot} cannot be loaded", "See below."))
    found += core
    if there:
        found += guarded("extras", lambda: packages.extras(there[0]))
    found += guarded("folders", folders.kept)
    if folder is not None:
        found += guarded("folders", lambda: folders.output(os.fspath(folder)))
    found += guarded("system", folders.limits)
    if backbone is not None:
        found += guarded("weights", lambda: _weights(backbone, weights))
    found += guarded("variables", variables.known)
    return Diagnosis(tuple(found))


def _weights(backbone: str, weights: str) -> Iterator[Finding]:
    """Whether a network can be loaded without a connection."""
    with step(f"loading {backbone}"):
        answer = load_error(backbone, weights)
    if answer["error"] is not None:
        text = NOT_FETCHED.sub("; `extract` would have to download them", answer["error"])
        yield Finding("weights", backbone, PROBLEM, text, answer["hint"])
        return
    file = answer.get("file")
    words = f"from {file['path']}" if file else str(answer["source"].get("kind", "here"))
    yield Finding("weights", backbone, OK, f"loaded, {words}", details={"source": answer["source"], "file": file})
