"""Whichever call fails, and however: a clear error, nothing wrong, no committed row lost, nothing in the way later.

One real run is counted through; then each of its calls that change files fails in turn, with each error a disk knows.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from conftest import Command
from crash_replay import Point, Recorder, read_folder
from faults import LASTING, ONCE, SHORT, Fault, Faults
from test_crash_replay import OUT, Judge, Row, Scene, fresh, place, renamed, resumed, run, synced, taken_back
from test_extraction import assert_same

from precompute import open_cache, verify
from precompute.cli.extract import SKIPPED
from precompute.errors import PrecomputeError

__all__ = ["place"]  # the fixture
CODES = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)
SCENES = (fresh, resumed, renamed, synced, taken_back)


class FaultJudge(Judge):
    """Looks at what a failed run has left."""

    def expect(self, files: Iterable[bytes]) -> None:
        """What was in these files, each of them synced, must be there at the next look."""
        self._committed = [frozenset[Row]().union(*(self._believed(data, "committed") for data in files))]


class Trials:
    """One run from one beginning, again and again, each time with another fault."""

    def __init__(self, place: Path, scene: Scene) -> None:
        self.place, self.photos, self.out, self.begin = place, place / "photos", place / "out", place / "begin"
        before = scene(self.photos, self.out / OUT)
        shutil.copytree(self.out, self.begin)
        references = [place / "whole.h5", place / "before.h5"]
        run(self.photos, references[0])
        run(before, references[1])
        self.whole = open_cache(references[0])
        self.judge = FaultJudge(self.photos, Recorder(self.out), references, place / "scratch")
        self.broken: list[str] = []
        self.ends: Counter[str] = Counter()

    @staticmethod
    def start(place: Path, fault: Fault | None) -> Faults:
        """Everything as it was at first, and this fault in wait."""
        shutil.rmtree(place / "out")
        shutil.copytree(place / "begin", place / "out")
        return Faults(place / "out", fault)

    def count(self) -> list[str]:
        """The calls of a run without faults."""
        faults = self.start(self.place, None)
        with pytest.MonkeyPatch.context() as patch:
            faults.install(patch)
            run(self.photos, self.out / OUT)
        return faults.calls

    def faults(self) -> Iterator[Fault]:
        for number, name in enumerate(self.count()):
            for code in CODES:
                for mode in (ONCE, LASTING, *([SHORT] if name == "pwrite" else [])):
                    yield Fault(number, code, mode)

    def try_one(self, fault: Fault) -> None:
        faults = self.start(self.place, fault)
        with pytest.MonkeyPatch.context() as patch:
            faults.install(patch)
            try:
                run(self.photos, self.out / OUT)
                self.ends["finished all the same"] += 1
                assert_same(open_cache(self.out / OUT), self.whole)
            except PrecomputeError as error:
                self.ends[type(error).__name__] += 1
                if not (error.message and error.hint):
                    self.broken.append(f"{fault}: not a sensible message: {error!r}")
            except OSError as error:
                self.ends[type(error).__name__] += 1
                if error.errno != fault.code:
                    self.broken.append(f"{fault}: not what happened: {error!r}")
        self.broken += [f"{fault}: left open {name}" for name in faults.close_left_open()]

        self.judge.expect([*read_folder(self.begin).values(), *faults.synced])
        left = Point(0, str(fault), read_folder(self.out))
        self.judge.look(left)
        self.judge.resume(left)

    def report(self) -> None:
        tally = self.judge.tally
        sys.stdout.write(f"\n{sum(self.ends.values())} faults: {dict(self.ends)}; {tally}\n")  # pytest -s shows it
        assert not tally.examples
        assert not self.broken


@pytest.mark.slow
@pytest.mark.daily(3)
@pytest.mark.parametrize("scene", SCENES)
def test_every_fault(place: Path, scene: Scene) -> None:
    trials = Trials(place, scene)
    for fault in trials.faults():
        trials.try_one(fault)
    trials.report()


@pytest.mark.rotates(3)
@pytest.mark.parametrize("scene", SCENES)
def test_one_fault_in_forty(place: Path, scene: Scene) -> None:
    trials = Trials(place, scene)
    faults = list(trials.faults())
    for fault in random.Random(0).sample(faults, len(faults) // 40):
        trials.try_one(fault)
    trials.report()


def told(place: Path, precompute: Command, fault: Fault) -> subprocess.CompletedProcess[str]:
    """What the command says of one fault."""
    faults = Trials.start(place, fault)
    out = place / "out" / OUT
    with pytest.MonkeyPatch.context() as patch:
        faults.install(patch)
        done = precompute("extract", "photos", "-b", "tiny", "-o", out, "--batch-size", 4, "--workers", 1, "--json")
    faults.close_left_open()
    return done


@pytest.mark.rotates(3)
def test_the_command_says_what_failed(place: Path, precompute: Command) -> None:
    """One fault in each call: exit status 1, the system's reason, what to do next, and no traceback."""
    calls = Trials(place, synced).count()
    for number in range(len(calls)):
        fault = Fault(number, CODES[number % len(CODES)], LASTING)
        done = told(place, precompute, fault)
        if done.returncode == SKIPPED:  # it did not matter, and the broken photo is told as ever
            assert verify(open_cache(place / "out" / OUT)).whole
            continue
        assert done.returncode == 1, (fault, done.stderr)
        assert "Traceback" not in done.stderr
        assert "Unexpected" not in done.stderr
        assert os.strerror(fault.code) in done.stderr, fault
        error = json.loads(done.stdout)["error"]
        assert done.stderr.endswith(f"Error: {error['message']}\n{error['hint']}\n")


@pytest.mark.rotates(3)
def test_the_command_says_where_it_failed(place: Path, precompute: Command) -> None:
    calls = Trials(place, synced).count()
    for name in set(calls) - {"ftruncate", "unlink"}:  # of the lock file, which matters to nobody
        done = told(place, precompute, Fault(len(calls) - 1 - calls[::-1].index(name), errno.EIO, LASTING))
        assert str(place / "out") in done.stderr, (name, done.stderr)
