"""`precompute plan`: what it says of a run is what the run then is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import Command

from precompute import extract, forecast
from precompute.errors import CacheKeyError, SourceError, UsageError
from precompute.extraction.timing import STAGES, Stages


@pytest.mark.rotates(3)
def test_the_plan_is_what_happens(photos: Path, tmp_path: Path) -> None:
    found = forecast(photos, tmp_path / "a.h5", backbone="tiny", batch_size=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
    result = extract(photos, tmp_path / "a.h5", backbone="tiny", batch_size=4)
    assert (found.images, found.to_read) == (result.rows, result.computed)
    same = ("layers", "dtype", "engine", "device", "precision", "batch_size")
    assert [getattr(found, name) for name in same] == [getattr(result, name) for name in same]
    assert 0 <= os.path.getsize(tmp_path / "a.h5") - found.bytes < 2**17  # but for pages of structure
    assert found.seconds == found.start_seconds + found.to_read / found.rate
    assert found.fits


@pytest.mark.rotates(3)
def test_rows_that_the_output_holds_are_not_read(photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "a.h5", backbone="tiny")
    (photos / "train" / "cats" / "0.jpg").unlink()
    (photos / "train" / "cats" / "1.png").rename(photos / "train" / "cats" / "new.png")
    found = forecast(photos, tmp_path / "a.h5", backbone="tiny")
    assert (found.images, found.to_read) == (23, 1)
    with pytest.raises(CacheKeyError):
        forecast(photos, tmp_path / "a.h5", backbone="tiny", weights="random")


def test_broken_images_are_counted_and_a_folder_of_them_is_refused(photos: Path, tmp_path: Path) -> None:
    (photos / "train" / "cats" / "0.jpg").write_bytes(b"no picture")
    assert forecast(photos, backbone="tiny").failed == 1
    for path in photos.rglob("*.*"):
        path.write_bytes(b"no picture")
    with pytest.raises(SourceError, match="None of the 24 images"):
        forecast(photos, backbone="tiny")


@pytest.mark.parametrize(("option", "value"), [("dtype", "int8"), ("workers", 0)])
def test_options_are_those_of_extract(option: str, value: object, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as planned:
        forecast(photos, backbone="tiny", **{option: value})
    with pytest.raises(UsageError) as extracted:
        extract(photos, tmp_path / "a.h5", backbone="tiny", **{option: value})
    assert str(planned.value) == str(extracted.value)
    assert option in str(planned.value)


def test_the_command_says_it_and_tells_a_full_disk_by_its_status(precompute: Command, photos: Path) -> None:
    done = precompute("plan", photos, "-b", "tiny")
    assert done.returncode == 0
    for word in ("24, 24 of them to be read", "images/s, measured on", "GiB of RAM", "are free", "bottleneck"):
        assert word in done.stdout
    told = json.loads(precompute("plan", photos, "-b", "tiny", "--json").stdout)
    assert told["fits"] is True
    assert told["images"] == 24


@pytest.mark.parametrize(
    ("seconds", "bottleneck"),
    [
        ({"forward": 8.0, "decode": 1.0, "waited_engine": 9.0}, "forward"),
        ({"read": 9.0, "decode": 0.5, "waited_images": 9.0}, "read"),
        ({"read": 0.5, "decode": 9.0, "waited_images": 9.0}, "decode"),
        (
            {"read": 0.05, "decode": 1.0, "forward": 3.0, "waited_engine": 9.0},
            "forward",
        ),  # on a busy machine
    ],
)
@pytest.mark.parametrize("on_cpu", [True, False])
def test_the_bottleneck_is_the_stage_that_decides(seconds: dict[str, float], bottleneck: str, on_cpu: bool) -> None:
    stages = Stages(on_cpu=on_cpu, workers=1, seconds=10.0, **seconds)
    assert stages.bottleneck == bottleneck
    assert sum(stages.shares.values()) == pytest.approx(1)
    assert f"the bottleneck is {bottleneck}" in stages.words


def test_the_account_of_a_real_run_adds_up(photos: Path, tmp_path: Path) -> None:
    stages = extract(photos, tmp_path / "a.h5", backbone="tiny").stages
    assert stages is not None
    assert all(getattr(stages, name) >= 0 for name in STAGES)
    assert stages.decode > 0
    assert stages.forward > 0
    assert extract(photos, tmp_path / "a.h5", backbone="tiny").stages is None  # nothing was computed
