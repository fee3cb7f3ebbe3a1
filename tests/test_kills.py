"""Processes that are really killed: nothing is lost, and the file ends up as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import DAY, ROOT
from crash_replay import read_folder
from forks import Forks
from modalities import IMAGE, KINDS, Kind, Samples
from test_extraction import assert_same

from precompute import open_cache, verify
from precompute.errors import CacheFormatError

BATCH = 4
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def samples(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Samples:
    """400 small samples of each modality, and beside them whole.h5, which nobody interrupted."""
    kind: Kind = request.param
    found = kind.make(tmp_path_factory.mktemp("kills"), per_class=100)
    assert forks.run(found.source.parent, *command(found, "whole.h5")) == 0, forks.errors.read_text()
    return found


def command(samples: Samples, out: str) -> list[str]:
    """To run beside the samples, or in a folder beside them."""
    return ["extract", str(samples.source), "-b", samples.backbone, "-o", out, "--batch-size", str(BATCH)]


def rows_done(path: Path) -> int:
    try:
        return int(open_cache(path).ok.sum())
    except CacheFormatError:  # not there yet
        return 0


def interrupt(samples: Samples, out: str, signum: int, when: Callable[[], bool]) -> int:
    """Start an extraction in an interpreter of its own, send `signum` once `when()`, and return its exit status."""
    process = subprocess.Popen(
        [sys.executable, "-m", "precompute", *command(samples, out)],
        cwd=samples.source.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    while process.poll() is None and not when():
        time.sleep(0.002)
    process.send_signal(signum)
    return process.wait(timeout=120)


@pytest.mark.rotates(12)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_run_killed_in_the_middle_goes_on_where_it_was(forks: Forks, samples: Samples, signum: int) -> None:
    out, folder = f"{signum}.h5", samples.source.parent
    partial = folder / f"{out}.partial"
    status = interrupt(samples, out, signum, lambda: rows_done(partial) >= 20)
    assert status == (-signal.SIGKILL if signum == signal.SIGKILL else 128 + signum)
    assert not (folder / out).exists()
    kept = rows_done(partial)
    assert 20 <= kept < 400
    assert not len(verify(open_cache(partial)).damaged)
    assert forks.run(folder, *command(samples, out), "--json") == 0, forks.errors.read_text()
    assert json.loads(forks.output.read_text())["reused"] == kept
    assert_same(open_cache(folder / out), open_cache(folder / "whole.h5"))
    assert not partial.exists()


@dataclass(frozen=True)
class Row:
    digest: bytes
    status: int
    size: int
    mtime: int
    checksum: int
    features: bytes


def rows_of(path: Path) -> dict[str, Row]:
    """The rows that are there, by id; none without a file. One that is there is neither broken nor damaged."""
    if not path.exists():
        return {}
    cache = open_cache(path)
    found = verify(cache)
    assert found.ids_in_order and not len(found.damaged)
    names = [f"samples/{name}" for name in ("digest", "status", "size", "mtime_ns")] + [f"checksums/{cache.layers[0]}"]
    columns = [cache.column(name)[found.good] for name in names]
    return {
        cache.ids[row]: Row(digest.tobytes(), *map(int, numbers), cache.features()[row].tobytes())
        for row, digest, *numbers in zip(found.good, *columns, strict=True)
    }


class Killer:
    """Kills one extraction after the other, and holds what each kill leaves against `whole.h5`, nobody's victim."""

    def __init__(self, kind: Kind, place: Path, forks: Forks, seed: int, per_class: int) -> None:
        self.place, self.forks, self.chance = place, forks, random.Random(seed)
        self.state = place / "state"
        self.kills = 0
        self.tally: Counter[str] = Counter()
        self.samples = kind.make(place, per_class=per_class)
        for out, limit in (("half.h5", ["--limit", 2 * per_class]), ("whole.h5", [])):
            began = time.monotonic()
            assert forks.run(place, *command(self.samples, out), *limit) == 0, forks.errors.read_text()
            self.seconds = time.monotonic() - began  # of a run that is left alone
        self.whole = open_cache(place / "whole.h5")
        self.truth = rows_of(place / "whole.h5")

    def begin(self, number: int) -> None:
        """Every other extraction brings an older file up to date."""
        shutil.rmtree(self.state, ignore_errors=True)
        self.state.mkdir()
        if number % 2:
            shutil.copy(self.place / "half.h5", self.state / "a.h5")

    def rows(self) -> dict[str, Row]:
        return rows_of(self.state / "a.h5") | rows_of(self.state / "a.h5.partial")

    def finished(self) -> bool:
        return len(rows_of(self.state / "a.h5")) == len(self.truth)

    def kill(self) -> None:
        before, rows = read_folder(self.state), self.rows()
        signum = self.chance.choice(SIGNALS)
        process = self.forks.start(self.state, *command(self.samples, "a.h5"))
        self._wait(before)
        os.kill(process, signum)
        status = self.forks.wait(process)
        after = self.rows()
        assert after.items() >= rows.items(), "a row was lost"
        assert after.items() <= self.truth.items(), "a row is wrong"
        self._judge_status(signum, status, untouched=read_folder(self.state) == before)
        if status:
            self.kills += 1
            self.tally[signum.name] += 1
            self.tally[self._phase(len(after) - len(rows))] += 1
        self._run_to_the_end(len(after))

    def _wait(self, before: dict[str, bytes]) -> None:
        """A random time of a whole run; every third time a random one of its short parts, which that seldom hits."""
        if self.chance.random() < 2 / 3:
            time.sleep(self.chance.uniform(0, self.seconds))
            return
        name = self.chance.choice(["a.h5.precompute.lock", "a.h5.precompute.new", "a.h5.partial"])
        deadline = time.monotonic() + self.seconds
        while time.monotonic() < deadline and (name in before or not (self.state / name).exists()):
            time.sleep(0.0001)
        time.sleep(self.chance.uniform(0, 0.005))

    def _judge_status(self, signum: signal.Signals, status: int, *, untouched: bool) -> None:
        told = self.forks.errors.read_text()
        if status == 0:
            assert self.finished()
        elif signum == signal.SIGKILL:
            assert status == -signum
        elif status == -signum:  # nobody listened yet, or any more
            assert untouched or self.finished()
        else:
            assert status == 128 + signum, told
            assert self.finished() or untouched or told.endswith("Run the same command again to resume.\n"), told

    def _phase(self, new: int) -> str:
        if self.finished() or len(rows_of(self.state / "a.h5.partial")) == len(self.truth):
            return "finish"
        if new:
            return "rows"
        return "layout" if (self.state / "a.h5.precompute.new").exists() else "start"

    def _run_to_the_end(self, there: int) -> None:
        """What was killed now, in a copy: every row that is there is used again."""
        shutil.rmtree(self.place / "copy", ignore_errors=True)
        shutil.copytree(self.state, self.place / "copy")
        status = self.forks.run(self.place / "copy", *command(self.samples, "a.h5"), "--json")
        assert status == 0, self.forks.errors.read_text()
        result = json.loads(self.forks.output.read_text())
        assert (result["reused"], result["computed"]) == (there, len(self.truth) - there)
        assert_same(open_cache(self.place / "copy" / "a.h5"), self.whole)
        assert list(read_folder(self.place / "copy")) == ["a.h5"]


@pytest.mark.parametrize(
    ("kind", "kills", "per_class"),
    [
        *(
            pytest.param(kind, 4, 25, marks=[] if place == DAY % len(KINDS) else pytest.mark.slow)
            for place, kind in enumerate(KINDS)
        ),
        pytest.param(IMAGE, 200, 50, marks=[pytest.mark.slow, pytest.mark.daily(4)]),
        *(pytest.param(kind, 40, 50, marks=[pytest.mark.slow, pytest.mark.daily(4)]) for kind in KINDS[1:]),
    ],
    ids=lambda value: value.name if isinstance(value, Kind) else str(value),
)
def test_kills_at_random_times_lose_nothing(
    kind: Kind, forks: Forks, tmp_path: Path, kills: int, per_class: int
) -> None:
    """Kill after kill of the same extraction until it gets through, start-up and layout included; then of another."""
    killer = Killer(kind, tmp_path, forks, seed=kills, per_class=per_class)
    extractions = 0
    while killer.kills < kills:
        killer.begin(extractions)
        extractions += 1
        while not killer.finished() and killer.kills < kills:
            killer.kill()
    sys.stdout.write(f"\n{kills} kills of {extractions} extractions: {dict(killer.tally)}\n")  # pytest -s shows it
