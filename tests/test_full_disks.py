"""Full disks and failing ones, real and small: a clear error, nothing lost, and on it goes once there is room again."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Command, make_image, make_photos
from crash_replay import read_folder
from forks import Forks
from modalities import Samples
from small_disks import CannotMount, SmallDisk
from test_extraction import assert_same

from precompute import Extraction, extract, open_cache, verify
from precompute.cache import Cache
from precompute.errors import DiskSpaceError, Stopped

pytestmark = pytest.mark.usefixtures("tiny_made_once")
SIZES = {"tmpfs": 4 * 2**20, "ext4": 8 * 2**20}
STEP = 4096
BATCH = 4


def mounted(kind: str, place: Path) -> Iterator[SmallDisk]:
    try:
        with SmallDisk(kind, place, size=SIZES[kind]) as disk:
            yield disk
    except CannotMount as error:
        pytest.skip(f"cannot mount {kind}: {error}")


@pytest.fixture(params=SIZES)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk]:
    yield from mounted(request.param, tmp_path)


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[SmallDisk]:
    yield from mounted("ext4", tmp_path)


def run(
    photos: Path,
    out: Path,
    *,
    after_batch: Callable[[], object] = lambda: None,
    batches: int = 0,
    backbone: str = "tiny",
) -> Extraction:
    """Extract; stop after so many batches where there are more."""
    done = []

    def stop() -> int:
        done.append(after_batch())
        return signal.SIGTERM if len(done) == batches else 0

    return extract(photos, out, backbone=backbone, batch_size=BATCH, stop=stop)


def interrupted(photos: Path, out: Path, batches: int) -> None:
    with pytest.raises(Stopped):
        run(photos, out, batches=batches)


def told_needed_and_free(message: str) -> tuple[int, int]:
    found = re.search(r"needs ([\d,]+) bytes; ([\d,]+) bytes are free", message)
    assert found, message
    return int(found[1].replace(",", "")), int(found[2].replace(",", ""))


def command(photos: Path, out: Path, backbone: str = "tiny") -> list[object]:
    return ["extract", photos, "-b", backbone, "-o", out, "--batch-size", BATCH, "--json"]


# Too little at the start --------------------------------------------------------------------------------------------


@pytest.mark.rotates(3)
@pytest.mark.parametrize("leave", [0, STEP, 100_000])
def test_too_little_room_at_the_start(
    disk: SmallDisk, samples: Samples, tmp_path: Path, precompute: Command, leave: int
) -> None:
    """A new file, and one that is to be brought up to date: what is there stays as it is, and can be read."""
    source, backbone = samples.source, samples.backbone
    samples.extract(disk.path / "old.h5", batch_size=BATCH, limit=10)
    disk.fill(leave=leave)
    before = read_folder(disk.path)
    for name in ("new.h5", "old.h5"):
        done = precompute(*command(source, disk.path / name, backbone))
        assert done.returncode == 1, done.stderr
        needed, free = told_needed_and_free(done.stderr)
        assert free < needed
        assert free <= leave + STEP
        assert "Free some space" in done.stderr
        assert "Traceback" not in done.stderr
        assert read_folder(disk.path) == before
        assert verify(open_cache(disk.path / "old.h5")).whole
    disk.empty()
    done = precompute(*command(source, disk.path / "old.h5", backbone))
    told = json.loads(done.stdout)
    assert (told["reused"], told["computed"]) == (10, 14)
    run(source, tmp_path / "whole.h5", backbone=backbone)
    assert_same(open_cache(disk.path / "old.h5"), open_cache(tmp_path / "whole.h5"))


@pytest.mark.parametrize("pages", [32, pytest.param(1, marks=pytest.mark.slow)])
def test_any_amount_of_room_is_enough_or_too_little(disk: SmallDisk, photos: Path, tmp_path: Path, pages: int) -> None:
    """From a page more to a page more: a clear error and nothing left behind, or the whole file."""
    run(photos, tmp_path / "whole.h5")
    size = (tmp_path / "whole.h5").stat().st_size
    enough = []
    for leave in range(2 * STEP, size + 32 * STEP, pages * STEP):
        disk.fill(leave=leave)
        before = read_folder(disk.path)
        try:
            run(photos, disk.path / "a.h5")
            assert_same(open_cache(disk.path / "a.h5"), open_cache(tmp_path / "whole.h5"))
            (disk.path / "a.h5").unlink()
            enough.append(True)
        except DiskSpaceError as error:
            needed, free = told_needed_and_free(error.message)
            assert free <= leave + STEP
            assert size // 2 < needed <= size
            enough.append(False)
        assert read_folder(disk.path) == before
        disk.empty()
    assert enough == sorted(enough)
    assert set(enough) == {False, True}


# Full in mid-run ----------------------------------------------------------------------------------------------------


@pytest.mark.rotates(3)
def test_a_disk_that_another_process_fills_in_mid_run(disk: SmallDisk, samples: Samples, tmp_path: Path) -> None:
    """The room is reserved: the run goes on as if nothing had happened."""
    samples.extract(tmp_path / "whole.h5", batch_size=BATCH)
    free = []

    def fill() -> None:
        disk.fill()
        free.append(disk.free())

    assert run(samples.source, disk.path / "a.h5", after_batch=fill, backbone=samples.backbone).computed == 24
    assert set(free) == {0}
    assert_same(open_cache(disk.path / "a.h5"), open_cache(tmp_path / "whole.h5"))


@pytest.mark.rotates(3)
def test_a_disk_that_is_filled_between_two_halves(disk: SmallDisk, photos: Path, tmp_path: Path) -> None:
    """What was interrupted has its room already; and when it is finished, there is nothing more to write."""
    run(photos, tmp_path / "whole.h5")
    interrupted(photos, disk.path / "a.h5", 2)
    disk.fill()
    assert disk.free() == 0
    result = run(photos, disk.path / "a.h5")
    assert (result.reused, result.computed) == (8, 16)
    assert_same(open_cache(disk.path / "a.h5"), open_cache(tmp_path / "whole.h5"))
    assert run(photos, disk.path / "a.h5").reused == 24


@pytest.mark.rotates(3)
def test_a_full_disk_when_an_interrupted_run_needs_another_file(
    disk: SmallDisk, photos: Path, tmp_path: Path, precompute: Command
) -> None:
    out = disk.path / "a.h5"
    run(photos, out)
    for seed in range(8):
        make_image(500 + seed).save(photos / f"train/cats/new{seed}.png")
    interrupted(photos, out, 1)
    (photos / "val/dogs").rename(photos / "val/wolves")  # the file in progress does not fit any more
    disk.fill()
    before = read_folder(disk.path)
    done = precompute(*command(photos, out))
    assert done.returncode == 1
    told_needed_and_free(done.stderr)
    assert read_folder(disk.path) == before
    disk.empty()
    done = precompute(*command(photos, out))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["computed"], told["copied"], told["reused"]) == (4, 6, 22)
    run(photos, tmp_path / "whole.h5")
    assert_same(open_cache(out), open_cache(tmp_path / "whole.h5"))
    assert list(read_folder(disk.path)) == ["a.h5"]


# Failing in mid-run -------------------------------------------------------------------------------------------------


@pytest.mark.rotates(6)
@pytest.mark.parametrize(
    ("fail", "reason"),
    [(SmallDisk.remount_read_only, "Read-only file system"), (SmallDisk.pull, "Input/output error")],
)
def test_a_disk_that_fails_in_mid_run(
    forks: Forks, ext4: SmallDisk, tmp_path: Path, fail: Callable[[SmallDisk], None], reason: str
) -> None:
    """Under a real process: rows of an earlier run, which ended with a sync, are all there when the disk is back."""
    photos = make_photos(tmp_path / "photos", per_class=50)
    run(photos, tmp_path / "whole.h5")
    whole, out = open_cache(tmp_path / "whole.h5"), ext4.path / "a.h5"
    interrupted(photos, out, 10)
    process = forks.start(tmp_path, *command(photos, out))
    deadline = time.monotonic() + 60
    while (rows := rows_right(ext4.path / "a.h5.partial", whole)) <= 10 * BATCH and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(process, signal.SIGSTOP)
    assert 10 * BATCH < rows < len(whole)
    fail(ext4)
    os.kill(process, signal.SIGCONT)
    assert forks.wait(process) == 1
    told = forks.errors.read_text()
    assert reason in told
    assert "run the same command again" in told
    assert "Traceback" not in told
    ext4.unmount()
    ext4.mount()
    kept = rows_right(ext4.path / "a.h5.partial", whole)
    assert kept >= 10 * BATCH
    assert forks.run(tmp_path, *command(photos, out)) == 0, forks.errors.read_text()
    result = json.loads(forks.output.read_text())
    assert (result["reused"], result["computed"]) == (kept, len(whole) - kept)
    assert_same(open_cache(out), whole)


def rows_right(path: Path, whole: Cache) -> int:
    """Number of rows there; each of them is as in `whole`, and none is damaged."""
    cache = open_cache(path)
    found = verify(cache)
    assert not len(found.damaged)
    np.testing.assert_array_equal(cache.features()[found.good], whole.features()[found.good])
    return len(found.good)
