"""Damaged rows are found, computed again from their samples alone, and come out as they were."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Command, list_images
from modalities import Samples
from test_extraction import assert_same

from precompute import extract, open_cache, verify
from precompute.cache import Layer, RowWriter, create
from precompute.errors import CacheError, CacheFormatError, SourceError, Stopped
from precompute.extraction.matching import samples_of
from precompute.extraction.repair import repair

DAMAGED = [1, 7, 8, 23]


@pytest.fixture
def place(samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Samples:
    """Beside a.h5 and whole.h5, which hold its rows."""
    monkeypatch.chdir(tmp_path)
    samples.extract("a.h5", batch_size=4)
    shutil.copy("a.h5", "whole.h5")
    return samples


@pytest.fixture
def of_images(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What depends on no modality is tried with images."""
    monkeypatch.chdir(tmp_path)
    extract(photos.name, "a.h5", backbone="tiny", batch_size=4)
    return tmp_path


def damage(column: str, rows: list[int] = DAMAGED, *, name: str = "a.h5") -> None:
    """Flip a bit in one column of these rows."""
    found = open_cache(name).layout.columns[column]
    data = bytearray(Path(name).read_bytes())
    for row in rows:
        data[found.offset + row * found.row_bytes] ^= 0x10
    Path(name).write_bytes(data)


@pytest.mark.rotates(5)
@pytest.mark.parametrize(
    "column",
    [
        "features/LAYER",
        "checksums/LAYER",
        "samples/digest",
        "samples/size",
        "samples/mtime_ns",
        "samples/status",
    ],
)
def test_bit_flips_are_found_and_mended(place: Samples, column: str) -> None:
    layer = open_cache("a.h5").layers[0]
    damage(column.replace("LAYER", layer))
    assert verify(open_cache("a.h5")).damaged.tolist() == DAMAGED
    done = repair("a.h5", place.source)
    assert (done.computed, done.reused, done.failed) == (4, 20, ())
    assert verify(open_cache("a.h5")).whole
    assert_same(open_cache("a.h5"), open_cache("whole.h5"))
    assert sorted(path.name for path in Path().glob("a.h5*")) == ["a.h5"]


@pytest.mark.rotates(3)
def test_a_whole_file_is_left_as_it_is(place: Samples) -> None:
    before = os.stat("a.h5")
    assert repair("a.h5", place.source).computed == 0
    assert os.path.samestat(before, os.stat("a.h5"))


@pytest.mark.rotates(3)
def test_only_bad_rows_are_read_and_the_table_stays(place: Samples) -> None:
    """What else has changed in the folder is for extract to see."""
    damage("samples/digest")
    ids = open_cache("a.h5").ids
    with place.together():
        for row, name in enumerate(ids):
            if row not in DAMAGED:
                place.remove(name)
        place.put("train/cats/new", 77)
    assert repair("a.h5", place.source).computed == 4
    assert_same(open_cache("a.h5"), open_cache("whole.h5"))


@pytest.mark.rotates(3)
def test_a_sample_that_changed_gets_the_row_of_today(place: Samples) -> None:
    damage("samples/digest")
    name = open_cache("a.h5").ids[7]
    place.write(name, place.kind.encode(78, name.rpartition(".")[2]))
    repair("a.h5", place.source)
    place.extract("today.h5", batch_size=4)
    assert_same(open_cache("a.h5"), open_cache("today.h5"))


@pytest.mark.rotates(3)
def test_a_sample_that_is_gone_leaves_a_row_without_features(place: Samples, precompute: Command) -> None:
    damage("samples/digest")
    name = open_cache("a.h5").ids[7]
    place.remove(name)
    done = precompute("verify", "a.h5", "--source", place.source, "--repair", "--json")
    assert done.returncode == 1  # the source has lost a sample, as --source alone would say
    told = json.loads(done.stdout)
    assert told["whole"] and told["repaired"]["computed"] == 3
    assert [failure["id"] for failure in told["repaired"]["failures"]] == [name]
    assert np.isnan(open_cache("a.h5").features()[7]).all()
    assert not open_cache("a.h5").ok[7]


@pytest.mark.rotates(3)
def test_the_command_mends_and_says_so(place: Samples, precompute: Command) -> None:
    damage("samples/digest")
    before = precompute("verify", "a.h5")
    assert before.returncode == 1
    assert "--repair" in before.stderr
    done = precompute("verify", "a.h5", "--source", place.source, "--repair")
    assert done.returncode == 0, done.stderr
    assert "Repaired: 4 rows computed again, 20 were good and copied." in done.stderr
    assert precompute("verify", "a.h5", "--source", place.source).returncode == 0


@pytest.mark.rotates(3)
def test_repair_needs_a_source(place: Samples, precompute: Command) -> None:
    assert precompute("verify", "a.h5", "--repair").returncode == 2
    assert precompute("verify", "a.h5", "--weights", "w.pth").returncode == 2


@pytest.mark.rotates(3)
def test_an_interrupted_repair_goes_on(place: Samples) -> None:
    damage("samples/mtime_ns", list(range(12)))
    computed = [0]
    with pytest.raises(Stopped):
        repair(
            "a.h5",
            place.source,
            progress=lambda progress: computed.append(progress.computed),
            stop=lambda: 15 if computed[-1] else 0,
        )
    assert Path("a.h5.partial").exists()
    done = repair("a.h5", place.source)
    assert 0 < computed[-1] < 12
    assert (done.computed, done.copied) == (12 - computed[-1], computed[-1])
    assert_same(open_cache("a.h5"), open_cache("whole.h5"))


@pytest.mark.rotates(3)
def test_an_extraction_in_progress_is_not_thrown_away(place: Samples) -> None:
    damage("samples/digest")
    with place.together():
        for number in range(10):
            place.put(f"val/dogs/new{number}", 100 + number)
    with pytest.raises(Stopped):
        place.extract("a.h5", batch_size=4, stop=lambda: 15)
    with pytest.raises(CacheError, match=r"interrupted and is not finished"):
        repair("a.h5", place.source)
    place.extract("a.h5", batch_size=4)
    assert verify(open_cache("a.h5")).whole


@pytest.mark.rotates(3)
def test_the_weights_must_be_those_of_the_file(of_images: Path) -> None:
    damage("samples/digest")
    with pytest.raises(CacheError, match="weights: "):
        repair("a.h5", "photos", weights="random:1")


@pytest.mark.rotates(3)
def test_names_that_lead_out_of_the_source_are_not_followed(of_images: Path) -> None:
    """A file from a stranger could name any image of this machine."""
    shutil.copytree("photos", "elsewhere/photos")
    listing = list_images("photos")
    listing.table.ids[0] = b"../photos/a.jpg"  # sorts first
    cache = open_cache("a.h5")
    layers = {cache.layers[0]: Layer(cache.features().shape[1:], cache.features().dtype, ("channel",), "none")}
    layout = create("b.h5", spec=cache.spec, samples=samples_of(listing.table), layers=layers, records=cache.provenance)
    RowWriter("b.h5", layout).close()
    with pytest.raises(CacheFormatError, match="outside of its source folder"):
        repair("b.h5", "elsewhere/photos")


@pytest.mark.rotates(3)
def test_a_source_that_is_not_there_is_said(place: Samples) -> None:
    damage("samples/digest")
    with pytest.raises(SourceError, match="is not a folder") as caught:
        repair("a.h5", "nowhere")
    assert place.kind.unit in str(caught.value.hint)
