"""Where the time of a run goes, and what would help."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from precompute.system import cores

STAGES = ("read", "decode", "transfer", "forward", "write")
HELP = {
    "read": "a faster disk, or a copy of the images on a local one",
    "decode": "more cores, or --fast-decode where photos are much larger than the network's input",
    "transfer": "larger batches (--batch-size)",
    "forward": "more cores, a GPU or a smaller backbone",
    "write": "a faster disk for the output",
}
IDLE = 0.5  # with less than this share of the cores at work, something is being waited for


@dataclass
class Stages:
    """Seconds by stage. Decoding and, on a CPU, the forward pass count processor seconds, the others wall seconds.

    read, decode: over all threads · transfer: into the engine's memory · forward: see `finish` · write: to the file ·
    waited_images, waited_engine: how long the run's main thread had nothing to do but wait for either.
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
    cores: int = field(default_factory=cores)
    _began: tuple[float, float] = field(default_factory=lambda: (time.monotonic(), time.process_time()))

    def finish(self) -> None:
        """Close the account. On a CPU all processor time that no other stage used was the forward pass."""
        self.seconds = time.monotonic() - self._began[0]
        if self.on_cpu:
            busy = time.process_time() - self._began[1]
            self.forward = max(0.0, busy - self.decode - self.transfer - self.write)
        else:
            self.forward = self.waited_engine

    @property
    def shares(self) -> dict[str, float]:
        """Share of each stage in their sum."""
        values = {name: getattr(self, name) for name in STAGES}
        total = sum(values.values())
        return {name: value / total if total else 0.0 for name, value in values.items()}

    @property
    def bottleneck(self) -> str:
        """The stage that decides how long a run takes."""
        shares = self.shares
        if self.on_cpu:
            used = self.decode + self.transfer + self.forward + self.write
            if used >= IDLE * self.cores * self.seconds:
                return max(shares, key=lambda name: shares[name])
            return max(("read", "write"), key=lambda name: shares[name])
        if self.waited_engine >= self.waited_images:
            return "forward"
        return max(("read", "decode"), key=lambda name: shares[name])

    @property
    def words(self) -> str:
        """One line for the summary."""
        told = ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items())
        return f"{told}; the bottleneck is {self.bottleneck}: {HELP[self.bottleneck]} would help"

    def to_dict(self) -> dict[str, object]:
        return {
            **{name: getattr(self, name) for name in (*STAGES, "waited_images", "waited_engine", "seconds")},
            "bottleneck": self.bottleneck,
        }
