"""Samples that go away while they are read, and come back: what was done is kept, the rest is done later."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from conftest import list_images, make_photos
from forks import Forks
from modalities import FOLDERS, Kind
from small_disks import CannotMount, SmallDisk
from test_extraction import assert_same

from precompute import extract, open_cache, verify
from precompute.cache import Status
from precompute.errors import CacheFormatError, SampleError, SourceError
from precompute.extraction.matching import make_plan
from precompute.extraction.output import CacheOutput
from precompute.sources.files import read_file

BATCH = 4
PER_CLASS = 50
TRIES = 20


class Reading:
    """A real process that extracts samples to `a.h5`, held in the middle, for us to change them meanwhile."""

    def __init__(self, forks: Forks, samples: Path, place: Path, backbone: str = "tiny") -> None:
        self.forks, self.samples, self.out, self.backbone = forks, samples, place / "a.h5", backbone
        self.whole = place / "whole.h5"
        extract(samples, self.whole, backbone=backbone, batch_size=BATCH)

    def start(self) -> None:
        """Hold the run while the samples of train/ are read; where the machine was too slow to, begin again."""
        for _ in range(TRIES):
            self.process = self.forks.start(self.out.parent, *self._command())
            deadline = time.monotonic() + 60
            while self.good() < 2 * BATCH and time.monotonic() < deadline:
                time.sleep(0.001)
            os.kill(self.process, signal.SIGSTOP)
            if 2 * BATCH <= self.good() < 2 * PER_CLASS - 4 * BATCH:
                return
            os.kill(self.process, signal.SIGKILL)
            self.forks.wait(self.process)
            for path in self.out.parent.glob(f"{self.out.name}*"):
                path.unlink()
        pytest.fail("the run was never held in time")

    def _command(self) -> list[object]:
        return ["extract", self.samples, "-b", self.backbone, "-o", self.out, "--batch-size", BATCH, "--json"]

    def go_on(self) -> int:
        os.kill(self.process, signal.SIGCONT)
        return self.forks.wait(self.process)

    def good(self) -> int:
        """Rows with features, in the file in progress or in the finished one."""
        for path in (self.out, self.out.with_name("a.h5.partial")):
            try:
                cache = open_cache(path)
            except CacheFormatError:  # not there
                continue
            assert not len(verify(cache).damaged)
            return int(cache.ok.sum())
        return 0

    def check_rerun(self) -> None:
        """All is back: every row there is used again, and the file ends like one of an undisturbed run."""
        there = self.good()
        assert self.forks.run(self.out.parent, *self._command()) == 0, self.forks.errors.read_text()
        result = json.loads(self.forks.output.read_text())
        assert (result["reused"], result["computed"]) == (there, 4 * PER_CLASS - there)
        assert_same(open_cache(self.out), open_cache(self.whole))


@pytest.fixture(params=FOLDERS, ids=lambda kind: kind.name)
def reading(request: pytest.FixtureRequest, forks: Forks, tmp_path: Path) -> Reading:
    kind: Kind = request.param
    return Reading(forks, kind.make(tmp_path, per_class=PER_CLASS).source, tmp_path, kind.backbone)


@pytest.mark.rotates(6)
def test_the_whole_folder_goes_away(reading: Reading) -> None:
    reading.start()
    reading.samples.rename(away := reading.samples.with_name("away"))
    assert reading.go_on() == 1
    error = json.loads(reading.forks.output.read_text())["error"]
    assert error["type"] == "SourceError"
    assert "disappeared" in error["message"]
    assert "Everything computed so far is kept" in reading.forks.errors.read_text()
    assert not reading.out.exists()
    kept = reading.good()
    assert reading.forks.run(reading.out.parent, *reading._command()) == 1
    assert "does not exist" in reading.forks.errors.read_text()
    assert reading.good() == kept
    away.rename(reading.samples)
    reading.check_rerun()


@pytest.mark.rotates(6)
def test_one_sub_folder_goes_away(reading: Reading) -> None:
    """The others are finished; its samples are named as failed, and the next run tries them again."""
    reading.start()
    (reading.samples / "val").rename(away := reading.samples.with_name("away"))
    assert reading.go_on() == 3
    failures = json.loads(reading.forks.output.read_text())["failures"]
    assert set(failures) == {"VANISHED"}
    assert failures["VANISHED"] >= 2 * PER_CLASS - 4 * BATCH
    assert set(open_cache(reading.out).status) == {Status.OK, Status.VANISHED}
    away.rename(reading.samples / "val")
    reading.check_rerun()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_one_sub_folder_becomes_unreadable(reading: Reading) -> None:
    reading.start()
    (reading.samples / "val").chmod(0)
    try:
        assert reading.go_on() == 3
        assert set(json.loads(reading.forks.output.read_text())["failures"]) == {"UNREADABLE"}
    finally:
        (reading.samples / "val").chmod(0o755)
    reading.check_rerun()


@pytest.mark.skipif(not os.path.exists("/proc/kmsg"), reason="no /proc/kmsg")
def test_a_view_of_the_kernel_is_unreadable_and_not_waited_for() -> None:
    with pytest.raises(SampleError) as caught:
        for _ in range(100):  # at first it may give what nobody has read yet
            read_file(b"/proc/kmsg")
    assert caught.value.reason == "UNREADABLE"


@pytest.mark.rotates(3)
def test_rows_below_a_folder_that_cannot_be_listed_are_not_thrown_away(tmp_path: Path) -> None:
    """A lost permission is no deletion."""
    photos, out = make_photos(tmp_path / "photos"), tmp_path / "a.h5"
    extract(photos, out, backbone="tiny", batch_size=BATCH)
    shutil.rmtree(photos / "val/dogs")
    olds = (open_cache(out),)
    listing = list_images(photos)
    listing.gaps = (b"val/dogs/",)
    with pytest.raises(SourceError, match=r"val/dogs/ cannot be listed, so the 6 rows"):
        make_plan(listing, CacheOutput(str(out)), olds)
    assert make_plan(listing, CacheOutput(str(out), overwrite=True), olds).dropped == 6
    assert make_plan(listing, CacheOutput(str(out)), olds, refuse=False).dropped == 6
    listing.gaps = (b"other/",)
    assert make_plan(listing, CacheOutput(str(out)), olds).dropped == 6


def unmounted(forks: Forks, place: Path) -> tuple[int, str]:
    """How a run ends whose disk of photos is unmounted meanwhile. It leaves an empty folder; once back, all is well."""
    try:
        with SmallDisk("ext4", place, size=8 * 2**20) as disk:
            make_photos(disk.path, per_class=PER_CLASS)
            reading = Reading(forks, disk.path, place)
            reading.start()
            disk.unmount(even_if_busy=True)
            ended = reading.go_on(), forks.errors.read_text()
            disk.mount()
            reading.check_rerun()
            return ended
    except CannotMount as error:
        pytest.skip(f"cannot mount ext4: {error}")


@pytest.mark.rotates(3)
def test_a_disk_with_photos_is_unmounted(forks: Forks, tmp_path: Path) -> None:
    status, told = unmounted(forks, tmp_path)
    assert status != 0
    assert "Traceback" not in told


@pytest.mark.rotates(3)
def test_an_unmounted_disk_is_told_from_deleted_photos(forks: Forks, tmp_path: Path) -> None:
    status, told = unmounted(forks, tmp_path)
    assert status == 1
    assert "disappeared" in told
