"""What `auto` is where rows are computed: a node says, for a process that may have no such device.

The functions are those of `engines.choice`, with the node's machine and the user's words; nothing of Ray is in here.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace

from precompute.backbones.load import Backbone
from precompute.engines.base import Engine, Features, Tensors
from precompute.engines.choice import Asked, Begun, Candidates, Decision
from precompute.engines.machine import ENGINE_VARIABLE, PRECISION_VARIABLE, Machine
from precompute.errors import SampleError
from precompute.extraction.executors.base import decided
from precompute.extraction.executors.ray_actor import Proved, device_name, digest_of, returned
from precompute.sources.base import Source


@dataclass(frozen=True)
class Question:
    """What a node needs next to the backbone and the source. asked, begun: see `engines.choice` · variables: what the
    user's environment says of `auto`, instead of the node's · workers: threads · folder: what relative paths start
    from · rows: that the node is to read, as a proof that it can.
    """

    asked: Asked
    begun: Begun | None
    variables: tuple[str, str]
    workers: int | None
    folder: str
    rows: tuple[int, ...]

    @classmethod
    def here(cls, asked: Asked, begun: Begun | None, workers: int | None, rows: Sequence[int]) -> Question:
        """Of this process."""
        engine, precision = (os.environ.get(name) or "auto" for name in (ENGINE_VARIABLE, PRECISION_VARIABLE))
        return cls(asked, begun, (engine, precision), workers, os.getcwd(), tuple(rows))


@dataclass(frozen=True)
class Answer:
    """found, decision: see `engines.choice`; its engine stays where it is · seen: for each row the SHA-256 of its
    bytes, or the error · proved: how it did; None where there was nothing to prove, or earlier rows have done that."""

    host: str
    seen: dict[int, bytes | SampleError]
    found: Candidates
    decision: Decision
    proved: Proved | None


@returned
def answered(question: Question, model: Backbone, source: Source) -> Answer:
    """On a node. Raises what `candidates` and `choose` raise."""
    engine, precision = question.variables
    machine = replace(Machine.here(), engine=engine, precision=precision)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # where it is not there, relative paths are not either
            stack.enter_context(contextlib.chdir(question.folder))
        stack.enter_context(model.preprocess.session())
        seen = {row: digest_of(source, row) for row in question.rows}
        found, proved_here = decided(model, question.asked, question.begun, source, machine, question.workers)
        decision = proved_here()
    host = socket.gethostname()
    why = "; ".join(filter(None, (f"decided by the node {host}", decision.choice.why)))
    choice = replace(decision.choice, why=why)
    kind = (choice.engine, choice.precision)
    trials = [one for one in decision.trials if (one.engine, one.precision) == kind]
    proved = Proved(host, device_name(choice), trials[-1]) if trials else None
    return Answer(host, seen, found, replace(decision, choice=choice, engine=Elsewhere(choice)), proved)


class Elsewhere(Engine):
    """Stands for an engine that is on other machines."""

    def start(self, samples: Sequence[Tensors]) -> None:  # noqa: ARG002
        """Not here."""
        raise RuntimeError(f"{self.choice.engine} on {self.choice.device} is on another machine.")

    def finish(self) -> Features:
        """Not here."""
        raise RuntimeError(f"{self.choice.engine} on {self.choice.device} is on another machine.")
