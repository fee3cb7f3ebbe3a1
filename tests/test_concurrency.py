"""One writer, many readers: in processes of their own, at once."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from conftest import make_photos
from forks import Forks

from precompute import open_cache
from precompute.cache.checksum import row_checksums
from precompute.errors import CacheFormatError

BOUND = ("digest", "size", "mtime_ns", "status")
ARGUMENTS = ["extract", "photos", "-b", "tiny", "-o", "a.h5", "--batch-size", "2"]


def watch(folder: Path, number: int, pause: float) -> tuple[int, int]:
    """Read whatever is there until told to stop: (rows looked at, rows that were there but not right)."""
    whole = open_cache(folder / "whole.h5")
    right = dict(zip(whole.ids, np.array(whole.features()), strict=True))
    looked = wrong = 0
    (folder / f"ready{number}").touch()
    while not (folder / "stop").exists():
        time.sleep(pause)
        for name in ("a.h5.partial", "a.h5"):
            try:
                cache = open_cache(folder / name)
            except CacheFormatError as error:
                assert "does not exist" in str(error), str(error)  # between two runs; never "cannot be opened"
                continue
            rows = np.flatnonzero(cache.ok)
            features = np.array(cache.features()[rows])
            sums = row_checksums(*(cache.column(f"samples/{name}")[rows] for name in BOUND), features)
            wrong += int((sums != cache.column(f"checksums/{cache.layers[0]}")[rows]).sum())
            wrong += sum(
                not np.array_equal(right[cache.ids[row]], values) for row, values in zip(rows, features, strict=True)
            )
            looked += len(rows)
    return looked, wrong


def write_while_another_tries(forks: Forks, folder: Path) -> bool:
    """One whole extraction, during which a second is started; whether that was refused and told who writes."""
    first = forks.start(folder, *ARGUMENTS)
    while not (folder / "a.h5.partial").exists() and not (folder / "a.h5").exists():
        time.sleep(0.002)
    os.kill(first, signal.SIGSTOP)  # so that it still holds the lock when the second one gets there
    second, told = forks.run(folder, *ARGUMENTS), forks.errors.read_text()
    os.kill(first, signal.SIGCONT)
    assert forks.wait(first) == 0
    return second == 1 and f"written by process {first} on" in told


def check(forks: Forks, folder: Path, seconds: float, *, pause: float) -> None:
    """`pause` between two looks of a reader, who otherwise takes a core that the writers need to get going."""
    make_photos(folder / "photos", per_class=50)
    assert forks.run(folder, *ARGUMENTS[:5], "whole.h5", *ARGUMENTS[6:]) == 0
    refused = runs = 0
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as readers:
        watching = [readers.submit(watch, folder, number, pause) for number in range(4)]
        while len(list(folder.glob("ready*"))) < 4:
            time.sleep(0.01)
        until = time.monotonic() + seconds
        try:
            while time.monotonic() < until:
                (folder / "a.h5").unlink(missing_ok=True)
                refused += write_while_another_tries(forks, folder)
                runs += 1
        finally:
            (folder / "stop").touch()
        seen = [future.result() for future in watching]
    looked, wrong = (sum(values) for values in zip(*seen, strict=True))
    print(  # noqa: T201 - the count is what the proof is about
        f"{runs} runs, second writer refused {refused} times; readers saw {looked:,} rows, {wrong} wrong"
    )
    assert refused == runs > 0
    assert looked > 0
    assert wrong == 0


@pytest.mark.rotates(3)
def test_a_few_seconds_of_two_writers_and_four_readers(forks: Forks, tmp_path: Path) -> None:
    check(forks, tmp_path, 1.0, pause=0.01)


@pytest.mark.slow
@pytest.mark.daily(2)
def test_a_minute_of_two_writers_and_four_readers(forks: Forks, tmp_path: Path) -> None:
    check(forks, tmp_path, 60.0, pause=0.0)
