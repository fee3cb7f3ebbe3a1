"""In the worker: runs its cases, says which it is at, and writes down what it found."""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import resource
import struct
import sys
from collections import Counter
from pathlib import Path

from .cases import TARGETS, case

MEMORY = 2**30
MARGIN = 3 * 2**30  # of address space above what a worker starts with: a runaway ends there, not with the machine
OUT_OF_MEMORY = 77  # exit status of a worker that a case made too big to go on
SAVE_EVERY = 500


def work(target: str, folder: Path, seed: int, first: int, stop: int, step: int) -> int:
    """Run the cases `first`, `first + step`, ... below `stop`."""
    from precompute.inputs.images.decode import quiet_pillow

    log = open(folder / "crash", "w")  # noqa: SIM115 - open for as long as the process lives
    faulthandler.enable(log)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and others write there whatever they meet
    sys.stderr = log
    fuzz = TARGETS[target](folder)
    with open(folder / "at", "r+b") as file:
        at = mmap.mmap(file.fileno(), 8)
    outcomes: Counter[str] = Counter()
    before = peak_memory()
    limit = address_space() + MARGIN
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with quiet_pillow():
        for done, number in enumerate(range(first, stop, step)):
            struct.pack_into("<q", at, 0, number)
            fuzz.mutate(case(seed, number))
            try:
                outcomes[fuzz.check()] += 1
            except Exception as error:  # noqa: BLE001 - whatever comes out is a finding
                outcomes["wrong"] += 1
                report(folder, number, f"{type(error).__name__}: {error}"[:500])
            fuzz.restore()
            if peak_memory() - before > MEMORY:
                report(folder, number, f"took {(peak_memory() - before) >> 20} MiB")
                save(folder, outcomes)
                return OUT_OF_MEMORY
            if done % SAVE_EVERY == 0:
                save(folder, outcomes)
    save(folder, outcomes)
    struct.pack_into("<q", at, 0, stop)
    return 0


def report(folder: Path, number: int, what: str) -> None:
    with open(folder / "failures", "a") as file:
        file.write(json.dumps([number, what]) + "\n")


def save(folder: Path, outcomes: Counter[str]) -> None:
    (folder / "outcomes.new").write_text(json.dumps(outcomes))
    (folder / "outcomes.new").replace(folder / "outcomes")


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
