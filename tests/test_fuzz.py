"""Mutated files: a share in each run, more in the slow stage; and the fuzzer itself notices what it is to find."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

SHARES = {
    "cache": (700, 100_000),
    "int8": (500, 30_000),
    "head": (500, 30_000),
    "image": (500, 50_000),
    "weights": (500, 50_000),
}
"""How many of each in the default run, and in the slow stage: about three minutes on two cores."""


def seed() -> int:
    """Another one every day, so that runs of CI spread over ever more cases; PRECOMPUTE_FUZZ_SEED repeats one."""
    return int(os.environ.get("PRECOMPUTE_FUZZ_SEED") or datetime.now(UTC).strftime("%Y%m%d"))


def run_fuzzer(folder: Path, target: str, number: int, *, jobs: int = 1) -> dict[str, Any]:
    script = [sys.executable, str(ROOT / "scripts" / "fuzz.py"), target, "--number", str(number), "--jobs", str(jobs)]
    done = subprocess.run(
        [*script, "--seed", str(seed()), "--keep", str(folder / "kept")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"PRECOMPUTE_FUZZ_SEED={seed()}\n{done.stdout}\n{done.stderr}"
    result: dict[str, Any] = json.loads(done.stdout)
    sys.stdout.write(done.stdout)
    assert result["run"] == number == result["opened"] + result["refused"]
    assert min(result["opened"], result["refused"]) > number // 200, "the mutations are too weak or too strong"
    return result


@pytest.mark.parametrize(
    "target", [pytest.param(name, marks=() if name == "cache" else pytest.mark.slow) for name in SHARES]
)
def test_mutated_files_never_crash_hang_or_lie(tmp_path: Path, target: str) -> None:
    run_fuzzer(tmp_path, target, SHARES[target][0])


@pytest.mark.slow
@pytest.mark.daily(4)
@pytest.mark.parametrize("target", SHARES)
def test_many_mutated_files_never_crash_hang_or_lie(tmp_path: Path, target: str) -> None:
    run_fuzzer(tmp_path, target, SHARES[target][1], jobs=2)


# The fuzzer itself


@pytest.fixture
def fuzzing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package, with all of its modules that hold targets."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import fuzzing.cases

    yield fuzzing
    for name in list(sys.modules):
        if name.split(".")[0] in ("fuzzing", "hostile"):
            del sys.modules[name]


def forge(target: Any, change: str) -> None:
    """Change row 1 of the target's file with all digests right, as only a bug or a forger could."""
    from precompute.cache.checksum import row_checksum, table_digest
    from precompute.cache.reader import open_cache

    cache = open_cache(target.path)
    columns = cache.layout.columns
    features, sums = columns["features/flatten"], columns["checksums/flatten"]
    digest, size, mtime, status = (
        cache.column(f"samples/{name}")[1] for name in ("digest", "size", "mtime_ns", "status")
    )
    row = cache.features()[0 if change == "features" else 1].tobytes()
    size = size + (change == "size")
    target.write(features.offset + features.row_bytes, row)
    target.write(columns["samples/size"].offset + 8, int(size).to_bytes(8, "little"))
    right = row_checksum(digest.tobytes(), int(size), int(mtime), int(status), row)
    target.write(sums.offset + 8, right.to_bytes(8, "little"))
    if change in ("id", "label"):
        ids, labels = cache.column("samples/id").copy(), cache.labels.copy()
        ids[1], labels[1] = (b"train/a/2.jpg", labels[1]) if change == "id" else (ids[1], 2)
        target.write(columns["samples/id"].offset, ids.tobytes())
        target.write(columns["samples/label"].offset, labels.tobytes())
        table = table_digest(ids, labels, cache.column("samples/split"), cache.column("classes"))
        place = target.base.index(cache.layout.table.encode())
        target.write(place, table.encode())
        start, length = next(block for block in target.blocks if block[0] <= place < sum(block))
        block = os.pread(target.descriptor, length, start)
        target.write(start + length, sys.modules["hostile.checksums"].lookup3(block).to_bytes(4, "little"))


@pytest.mark.parametrize("change", ["features", "size", "id", "label"])
def test_a_wrong_row_taken_for_right_is_noticed(tmp_path: Path, fuzzing: Any, change: str) -> None:
    target = fuzzing.caches.CacheTarget(tmp_path)
    assert target.check() == "opened"
    forge(target, change)
    with pytest.raises(fuzzing.target.WrongError, match="row 1 is called good"):
        target.check()
    target.restore()
    assert target.check() == "opened"
    assert target.path.read_bytes() == target.base


def test_a_case_is_the_same_every_time_and_leaves_nothing_behind(tmp_path: Path, fuzzing: Any) -> None:
    target = fuzzing.caches.CacheTarget(tmp_path)
    seen = set()
    for number in range(200):
        target.mutate(fuzzing.cases.case(7, number))
        first = target.path.read_bytes()
        target.restore()
        assert target.path.read_bytes() == target.base
        target.mutate(fuzzing.cases.case(7, number))
        assert target.path.read_bytes() == first
        target.restore()
        seen.add(first)
    assert len(seen) > 190


def test_lookup3_is_the_one_of_hdf5(tmp_path: Path, fuzzing: Any) -> None:
    checksums = sys.modules["hostile.checksums"]
    sys.modules["hostile.good"].make_cache(tmp_path / "a.h5")
    data = (tmp_path / "a.h5").read_bytes()
    assert len(checksums.checked_blocks(data)) == 1 + data.count(b"OHDR")
    # The values in the comments of lookup3.c.
    assert checksums.lookup3(b"") == 0xDEADBEEF
    assert checksums.lookup3(b"Four score and seven years ago") == 0x17770551


BROKEN = """
import ctypes, os, sys, time
sys.path.insert(0, {scripts!r})
import fuzz
from fuzzing import caches, cases, runner

class Broken(caches.CacheTarget):
    def check(self):
        at = int.from_bytes(open(self.path.parent / "at", "rb").read(), "little")
        if at == 3:
            ctypes.string_at(0)
        if at == 5:
            time.sleep(60)
        if at == 7:
            kept = b"x" * (1100 * 2**20)
        if at == 9:
            raise KeyError("a bare error")
        return "opened"

cases.TARGETS["cache"] = Broken
runner.SECONDS = 5.0
runner.SCRIPT = __file__
if __name__ == "__main__":
    sys.exit(fuzz.main())
"""


@pytest.mark.slow
def test_a_crash_a_hang_and_a_glutton_are_found_and_the_rest_still_runs(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text(BROKEN.format(scripts=str(ROOT / "scripts")))
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(script), "cache", "--number", "12", "--seed", "1", "--keep", str(tmp_path / "kept")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert time.monotonic() - began < 60
    assert json.loads(done.stdout)["failures"] == 4
    for line in (
        "number 3: the process ended with -11",
        "number 5: still not done after 5 seconds",
        "number 7: took 1",
        "number 9: KeyError",
    ):
        assert line in done.stderr
    assert sorted(os.listdir(tmp_path / "kept")) == ["cache-1-3", "cache-1-5", "cache-1-7", "cache-1-9"]
