"""Memory stays flat: what a sample adds to the peak is bytes in columns, not Python objects.

The promise is 300 MB for a million samples, the listing included; the children measured here are those of
`scripts/bench_memory.py`, which says what stands in for decoder and network.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

BYTES_A_SAMPLE = 300
FEW, SOME, MANY = 2_000, 20_000, 100_000  # `scripts/bench_memory.py` does a million
# Of a process with torch in it, peaks differ from run to run by as much: its threads' heaps, its libraries' pages.
NOISE = 32e6

LIST = """
import sys
from precompute.inputs.images.formats import IMAGES
from precompute.sources.folder import list_folder
rows = len(list_folder(sys.argv[1], IMAGES))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(rows, int(peak.split()[1]) * 1024)
"""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    import bench_memory

    return bench_memory


def peak_of_listing(folder: Path, files: int) -> int:
    command = [sys.executable, "-c", LIST, str(folder)]
    rows, peak = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert rows == files
    return peak


@pytest.mark.slow
def test_a_listing_a_run_and_its_rerun_take_columns(bench: Any, tmp_path: Path) -> None:
    runs, listings = {}, []
    for name, files in (("few", FEW), ("some", SOME)):
        bench.make_images(tmp_path / name, files)
        listings.append(peak_of_listing(tmp_path / name, files))
        runs[name] = bench.run(tmp_path / name, "compute"), bench.run(tmp_path / name)
        first, second = runs[name]
        assert (first["computed"], second["reused"], second["torch"]) == (files, files, False)
    assert listings[1] - listings[0] <= BYTES_A_SAMPLE * (SOME - FEW)
    firsts, seconds = ([runs[name][which]["peak"] for name in ("few", "some")] for which in (0, 1))
    assert seconds[1] - seconds[0] <= BYTES_A_SAMPLE * (SOME - FEW)
    assert firsts[1] - firsts[0] <= BYTES_A_SAMPLE * (SOME - FEW) + NOISE


@pytest.mark.slow
@pytest.mark.daily(2)
def test_many_files_are_normal(bench: Any, tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    bench.make_images(few, FEW)
    bench.make_images(many, MANY)
    base = bench.runs(few)
    for name, told in bench.runs(many).items():
        assert told["rows"] == MANY
        assert told["peak"] - base[name]["peak"] <= BYTES_A_SAMPLE * MANY + NOISE, (name, json.dumps(told))
    assert os.stat(f"{many}.h5").st_size > 256 * MANY
