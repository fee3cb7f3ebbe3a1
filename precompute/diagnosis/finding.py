"""What `doctor` finds: lines that are in order, worth a note, or would stop an extraction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from precompute.errors import reason_of

OK, NOTE, PROBLEM = "ok", "note", "problem"


@dataclass(frozen=True)
class Finding:
    """One line. status: ok, note (something to know, or to gain) or problem (`extract` would stop) · hint: the next step,
    may be empty · details: the same for programs, as JSON."""

    section: str
    name: str
    status: str
    text: str
    hint: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Diagnosis:
    """All findings, section by section."""

    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        return tuple(one for one in self.findings if one.status == PROBLEM)

    @property
    def healthy(self) -> bool:
        """Whether nothing was found that would stop `extract`."""
        return not self.problems

    def with_more(self, findings: Iterable[Finding]) -> Diagnosis:
        return Diagnosis((*self.findings, *findings))

    def to_dict(self) -> dict[str, Any]:
        """As JSON: `healthy` and the `findings` in order."""
        return {"healthy": self.healthy, "findings": [one.to_dict() for one in self.findings]}


def guarded(section: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What `look` finds; where it fails itself, that is a note and no end: a library may raise anything."""
    try:
        yield from look()
    except (Exception, SystemExit) as error:  # noqa: BLE001
        yield Finding(
            section,
            "not known",
            NOTE,
            f"This could not be looked at: {type(error).__name__}: {reason_of(error)}",
            "The other lines hold all the same. Please report it.",
        )
