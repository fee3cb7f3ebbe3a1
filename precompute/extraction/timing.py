"""Where the time of a run goes, and what would help."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

STAGES = ("read", "decode", "transfer", "forward", "write")
ADDED = ("read", "decode", "transfer", "forward", "waited_images", "waited_engine")
"""What adds up over actors."""
HELP = {
    "read": "a faster disk, or a copy of the {unit} on a local one",
    "decode": "more cores, or --fast-decode where photos are much larger than the network's input",
    "transfer": "larger batches (--batch-size)",
    "forward": "more cores, a GPU or a smaller backbone",
    "write": "a faster disk for the output",
}


@dataclass(frozen=True)
class Stages:
    """Seconds by stage. Decoding and, on a CPU, the forward pass count processor seconds, the others wall seconds.

    read, decode: over all threads · transfer: into the engine's memory · forward: see `StageClock.stages` · write: to
    the file · waited_images, waited_engine: how long the run's main thread had nothing to do but wait for either ·
    seconds: of the whole · workers: threads that read and decode, of one actor where there are several · actors: how
    many have read, decoded and computed side by side, whose seconds are added up · unit: what the samples are called.
    """

    on_cpu: bool = True
    read: float = 0.0
    decode: float = 0.0
    transfer: float = 0.0
    forward: float = 0.0
    write: float = 0.0
    waited_images: float = 0.0
    waited_engine: float = 0.0
    seconds: float = 0.0
    workers: int = 1
    unit: str = "images"
    actors: int = 1

    @property
    def shares(self) -> dict[str, float]:
        """Share of each stage in their sum.

        With a GPU, reading and decoding count as if their threads had been one that does nothing else: so their
        seconds are of the kind of those spent waiting for the GPU. So do those of several actors next to one process
        that writes.
        """
        values = {name: getattr(self, name) / (1 if name == "write" else self.actors) for name in STAGES}
        if not self.on_cpu:
            values.update(read=values["read"] / self.workers, decode=values["decode"] / self.workers)
        total = sum(values.values())
        return {name: value / total if total else 0.0 for name, value in values.items()}

    @property
    def bottleneck(self) -> str:
        """The stage that takes most of the time."""
        shares = self.shares
        return max(shares, key=lambda name: shares[name])

    @property
    def words(self) -> str:
        """One line for the summary."""
        listed = ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items())
        slowest = self.bottleneck
        helps = "more cores" if (slowest, self.unit != "images") == ("decode", True) else HELP[slowest]
        return f"{listed}; the bottleneck is {slowest}: {helps.format(unit=self.unit)} would help"

    def to_dict(self) -> dict[str, object]:
        return {
            **{name: getattr(self, name) for name in (*STAGES, "waited_images", "waited_engine", "seconds")},
            "bottleneck": self.bottleneck,
        }


class StageClock:
    """The account of a run, kept while it runs: anyone who does a stage's work adds the seconds it took.

    Fields: see `Stages`; elsewhere: processor seconds of the main thread in transfer and write; apart: those of
    `decode` that were spent in other processes.
    """

    def __init__(self, *, on_cpu: bool = True) -> None:
        self.read = self.decode = self.transfer = self.write = 0.0
        self.waited_images = self.waited_engine = self.elsewhere = self.apart = 0.0
        self.workers = self.actors = 1
        self._on_cpu = on_cpu
        self._forward: float | None = None  # where others have computed
        self._wall, self._processor = time.monotonic(), time.process_time()

    @contextlib.contextmanager
    def main_thread(self, stage: str) -> Iterator[None]:
        """What is inside is `stage`: transfer or write."""
        wall, busy = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - wall)
            self.elsewhere += time.thread_time() - busy

    def add(self, other: Stages) -> None:
        """What one of several actors has spent on some samples. From then on the forward pass is theirs alone."""
        for name in ADDED:
            if name != "forward":
                setattr(self, name, getattr(self, name) + getattr(other, name))
        self._forward = (self._forward or 0.0) + other.forward

    def stages(self, unit: str = "images") -> Stages:
        """The account so far. On a CPU all processor time that no other stage used was the forward pass."""
        busy = time.process_time() - self._processor + self.apart
        forward = max(0.0, busy - self.decode - self.elsewhere) if self._on_cpu else self.waited_engine
        return Stages(
            on_cpu=self._on_cpu,
            read=self.read,
            decode=self.decode,
            transfer=self.transfer,
            forward=forward if self._forward is None else self._forward,
            write=self.write,
            waited_images=self.waited_images,
            waited_engine=self.waited_engine,
            seconds=time.monotonic() - self._wall,
            workers=self.workers,
            unit=unit,
            actors=self.actors,
        )
