"""Processes that are really killed: nothing is lost, and the file ends up as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, make_photos, run_command
from test_extraction import assert_same

from precompute import open_cache, verify
from precompute.errors import CacheFormatError

BATCH = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 small photos, and whole.h5, which nobody interrupted."""
    place = tmp_path_factory.mktemp("kills")
    make_photos(place / "photos", per_class=100)
    done = run_command(place, *command("whole.h5"))
    assert done.returncode == 0, done.stderr
    return place


def command(out: str) -> list[str]:
    return ["extract", "photos", "-b", "tiny", "-o", out, "--batch-size", str(BATCH)]


def rows_done(path: Path) -> int:
    try:
        return int(open_cache(path).ok.sum())
    except CacheFormatError:  # not there yet
        return 0


def interrupt(folder: Path, out: str, signum: int, when: Callable[[float], bool]) -> int:
    """Start an extraction, send `signum` once `when(seconds)` says so, and return its exit status."""
    process = subprocess.Popen(
        [sys.executable, "-m", "precompute", *command(out)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    began = time.monotonic()
    while process.poll() is None and not when(time.monotonic() - began):
        time.sleep(0.002)
    process.send_signal(signum)
    return process.wait(timeout=120)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_killed_in_the_middle_goes_on_where_it_was(folder: Path, signum: int) -> None:
    out = f"{signum}.h5"
    partial = folder / f"{out}.partial"
    status = interrupt(folder, out, signum, lambda seconds: rows_done(partial) >= 100)
    assert status == (-signal.SIGKILL if signum == signal.SIGKILL else 128 + signum)
    assert not (folder / out).exists()
    kept = rows_done(partial)
    assert 100 <= kept < 400
    assert not len(verify(open_cache(partial)).damaged)
    done = run_command(folder, *command(out), "--json")
    assert done.returncode == 0, done.stderr
    assert f'"reused": {kept},' in done.stdout
    assert_same(open_cache(folder / out), open_cache(folder / "whole.h5"))
    assert not partial.exists()


@pytest.mark.slow
def test_kills_at_random_times_lose_nothing(folder: Path) -> None:
    """Kill after kill of the same extraction, each at a random moment, start-up and layout included."""
    chance = random.Random(0)
    kills = 0
    while kills < 40:
        out = f"random{kills}.h5"
        before = 0
        while not (folder / out).exists() and kills < 40:
            limit = chance.uniform(0.5, 5.0)
            interrupt(folder, out, signal.SIGKILL, lambda seconds, limit=limit: seconds >= limit)
            kills += 1
            after = rows_done(folder / f"{out}.partial")
            assert (folder / out).exists() or after >= before
            before = after
        done = run_command(folder, *command(out))
        assert done.returncode == 0, done.stderr
        assert_same(open_cache(folder / out), open_cache(folder / "whole.h5"))
        assert np.all(open_cache(folder / out).ok)
