"""In the process that watches: starts the workers again behind crashes and hangs, and counts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import IO, Any

from .cases import TARGETS, case, written
from .worker import OUT_OF_MEMORY

SECONDS = 10.0
"""A case that takes longer counts as a hang."""

SCRIPT = Path(__file__).resolve().parents[1] / "fuzz.py"  # what a worker runs


class Worker:
    """A worker's process, its place in the row of cases, and what it has found."""

    def __init__(self, target: str, folder: Path, seed: int, first: int, stop: int, step: int) -> None:
        self.target, self.folder, self.seed, self.stop, self.step = target, folder, seed, stop, step
        self.outcomes: Counter[str] = Counter()
        self.failures: list[tuple[int, str]] = []
        self.finished = False
        folder.mkdir()
        self.start(first)

    def start(self, first: int) -> None:
        (self.folder / "at").write_bytes(struct.pack("<q", -1))
        (self.folder / "outcomes").write_text("{}")
        numbers = (self.seed, first, self.stop, self.step)
        command = [sys.executable, str(SCRIPT), self.target, "--worker", str(self.folder), *map(str, numbers)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        self.at, self.since = -1, time.monotonic()

    def running(self) -> bool:
        """Look at it once; where it died or hangs, write that down and start it again behind that case."""
        if self.finished:
            return False
        status = self.process.poll()
        (at,) = struct.unpack("<q", (self.folder / "at").read_bytes())
        if at != self.at:
            self.at, self.since = at, time.monotonic()
        if status is None and (self.at < 0 or time.monotonic() - self.since < SECONDS):
            return True
        if status is None:
            self.process.kill()
            self.process.wait()
            self.failures.append((at, f"still not done after {SECONDS:.0f} seconds"))
        elif status not in (0, OUT_OF_MEMORY):
            trace = (self.folder / "crash").read_text() if (self.folder / "crash").exists() else ""
            self.failures.append((at, f"the process ended with {status}: {trace[:1500]}"))
        with contextlib.suppress(FileNotFoundError):
            lines = (self.folder / "failures").read_text().splitlines()
            self.failures += [(number, what) for number, what in map(json.loads, lines)]
            (self.folder / "failures").unlink()
        self.outcomes.update(json.loads((self.folder / "outcomes").read_text()))
        if at < 0 or at + self.step >= self.stop:
            self.finished = True
            return False
        self.start(at + self.step)
        return True


def fuzz(target: str, number: int, *, seed: int, first: int, jobs: int, keep: Path, said: IO[str]) -> dict[str, Any]:
    """Run the cases and say what came of them. Files of failures come to lie under `keep`."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="precompute-fuzz-", dir=memory) as folder:
        stop = first + number
        workers = [
            Worker(target, Path(folder, str(job)), seed, first + job, stop, jobs) for job in range(min(jobs, number))
        ]
        try:
            while sum(worker.running() for worker in workers):  # a sum, so that each of them is looked at
                time.sleep(0.1)
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.wait()
        seconds = time.monotonic() - began
        failures = sorted(failure for worker in workers for failure in worker.failures)
        counted = sum(sum(worker.outcomes.values()) for worker in workers)
        if not failures and counted != number:
            failures.append((-1, f"{counted} cases were counted instead of {number}"))
        for which, what in failures:
            print(f"{target} seed {seed} number {which}: {what}", file=said)
        for which in sorted({which for which, _ in failures if which >= 0})[:100]:
            keep.mkdir(parents=True, exist_ok=True)
            scratch = Path(folder, f"again{which}")
            scratch.mkdir()
            shutil.copy(written(TARGETS[target](scratch), case(seed, which)), keep / f"{target}-{seed}-{which}")
    outcomes = sum((worker.outcomes for worker in workers), Counter[str]())
    opened = sum(count for name, count in outcomes.items() if name.startswith("opened"))
    return {
        "target": target,
        "seed": seed,
        "first": first,
        "run": number,
        "opened": opened,
        "refused": sum(outcomes.values()) - opened - outcomes["wrong"],
        "failures": len(failures),
        "seconds": round(seconds, 1),
        "outcomes": dict(outcomes.most_common()),
    }
