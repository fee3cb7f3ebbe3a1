"""Extraction: what lands in the file, what is computed again and what is not, what is refused."""

from __future__ import annotations

import gc
import os
import shutil
import zlib
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_image, make_photos
from PIL import Image
from torchvision.transforms import functional as F

from precompute import extract, open_cache, verify
from precompute.backbones.tiny import MEAN, STD, tiny
from precompute.cache import Cache, RowWriter, Status, WriteLock
from precompute.cache.check import read_layout
from precompute.errors import (
    CacheError,
    CacheFormatError,
    CacheKeyError,
    CacheLockedError,
    SourceError,
    Stopped,
    UsageError,
)
from precompute.extraction.source_comparison import compare_source

pytestmark = pytest.mark.usefixtures("tiny_made_once")
COLUMNS = ("id", "digest", "size", "label", "split", "status")


def assert_same(first: Cache, second: Cache, *, mtimes: bool = True) -> None:
    """Every feature row and every column equal, bit for bit."""
    assert first.key == second.key
    assert first.classes == second.classes
    for name in (*COLUMNS, *(("mtime_ns",) if mtimes else ())):
        np.testing.assert_array_equal(first.column(f"samples/{name}"), second.column(f"samples/{name}"), err_msg=name)
    for layer in first.layers:
        assert first.features(layer).tobytes() == second.features(layer).tobytes()
        np.testing.assert_array_equal(first.column(f"checksums/{layer}"), second.column(f"checksums/{layer}"))


def reference(path: Path) -> np.ndarray:
    """What `tiny` sees in one image, by PIL and plain torch."""
    with Image.open(path) as image:
        pixels = F.center_crop(F.resize(image.convert("RGB"), [32]), [32, 32])
    model = tiny()
    found: list[torch.Tensor] = []
    model.classifier.register_forward_hook(lambda module, inputs, output: found.append(inputs[0]))
    with torch.inference_mode():
        model(F.normalize(F.to_tensor(pixels), MEAN, STD)[None])
    return found[0][0].numpy()


def test_every_row_belongs_to_its_image(photos: Path, tmp_path: Path) -> None:
    result = extract(photos, tmp_path / "a.h5", backbone="tiny")
    cache = open_cache(tmp_path / "a.h5")
    assert result.rows == result.computed == len(cache) == 24
    assert verify(cache).whole
    assert cache.ids == sorted(cache.ids)
    for row, name in enumerate(cache.ids):
        split, label, file = name.split("/")
        assert cache.split[row] == split
        assert cache.classes[cache.labels[row]] == label
        expected = reference(photos / name)
        distance = np.linalg.norm(cache.features()[row] - expected) / np.linalg.norm(expected)
        assert distance < (1e-3 if file.endswith("png") else 1e-2), name
        assert cache.column("samples/size")[row] == (photos / name).stat().st_size
        assert cache.column("samples/mtime_ns")[row] == (photos / name).stat().st_mtime_ns
    assert not list(tmp_path.glob("a.h5.*")) + list(tmp_path.glob(".precompute*"))


def test_every_skipped_image_is_named(photos: Path, tmp_path: Path) -> None:
    """Also those that are copies of a broken one, and those that an earlier run skipped."""
    page = b"<html>404</html>"
    names = [name for name in open_and_list(photos, tmp_path) if name.startswith("train/")]
    for name in names:
        (photos / name).write_bytes(page)
    result = extract(photos, tmp_path / "a.h5", backbone="tiny")
    assert result.failures == {"UNDECODABLE": len(names)}
    assert [name for name, _, _ in sorted(result.failed)] == names
    other = next(photos.glob("val/*/*"))
    other.write_bytes(b"another")
    result = extract(photos, tmp_path / "a.h5", backbone="tiny")
    assert (result.computed, sum(result.failures.values())) == (0, len(names) + 1)
    assert sorted(name for name, _, _ in result.failed) == sorted([*names, str(other.relative_to(photos))])
    with pytest.raises(SourceError, match="undecodable"):
        extract(photos, tmp_path / "b.h5", backbone="tiny", on_error="stop")


def test_the_newest_record_is_there_though_the_block_was_full(photos: Path, tmp_path: Path) -> None:
    """Of a run that goes on with a file whose block holds no more."""
    with pytest.raises(Stopped):
        extract(photos, tmp_path / "a.h5", backbone="tiny", batch_size=4, stop=lambda: 15)
    partial = str(tmp_path / "a.h5.partial")
    with RowWriter(partial, read_layout(partial)) as writer:
        number = 0
        while writer.append_provenance([{"filler": number, "of": "x" * 1000}]):
            number += 1
    before = len(verify(open_cache(partial)).good)
    result = extract(photos, tmp_path / "a.h5", backbone="tiny", batch_size=4)
    records = open_cache(tmp_path / "a.h5").provenance
    assert result.computed == 24 - before < 24
    assert "started" in open_cache(tmp_path / "a.h5").last_run
    fillers = [record["filler"] for record in records if "filler" in record]
    assert fillers == list(range(number - len(fillers), number)) and len(fillers) > 100
    assert not result.warnings


@pytest.mark.slow
def test_verifying_a_source_reads_a_few_files_ahead_and_not_all(photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "a.h5", backbone="tiny")
    gc.collect()
    others = [one for one in gc.get_objects() if type(one) is Future]  # of earlier tests, kept alive until the end
    waiting: list[int] = []

    def count(done: int) -> None:
        waiting.append(sum(type(one) is Future for one in gc.get_objects()) - len(others))

    assert compare_source(open_cache(tmp_path / "a.h5"), photos, workers=1, progress=count).same
    assert len(waiting) == 24
    assert max(waiting) <= 5


def open_and_list(photos: Path, place: Path) -> list[str]:
    extract(photos, place / "a.h5", backbone="tiny")
    return open_cache(place / "a.h5").ids


@pytest.mark.parametrize("seconds", [-(2**40), 2**40])
def test_a_photo_from_far_away_in_time_is_like_any_other(photos: Path, tmp_path: Path, seconds: int) -> None:
    photo = next(photos.glob("val/*/*"))
    extract(photos, tmp_path / "synced.h5", backbone="tiny")
    os.utime(photo, (0, seconds))
    assert extract(photos, tmp_path / "synced.h5", backbone="tiny").copied == 1
    assert extract(photos, tmp_path / "synced.h5", backbone="tiny").reused == 24
    extract(photos, tmp_path / "fresh.h5", backbone="tiny")
    assert_same(open_cache(tmp_path / "synced.h5"), open_cache(tmp_path / "fresh.h5"))
    assert compare_source(open_cache(tmp_path / "fresh.h5"), photos).same
    kept = open_cache(tmp_path / "fresh.h5").column("samples/mtime_ns")
    assert min(max(photo.stat().st_mtime_ns, -(2**63)), 2**63 - 1) in kept


def test_batch_size_workers_and_company_do_not_matter(photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "a.h5", backbone="tiny", batch_size=32, workers=1)
    extract(photos, tmp_path / "b.h5", backbone="tiny", batch_size=32, workers=5)
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "b.h5"))
    extract(photos / "val", tmp_path / "c.h5", backbone="tiny", batch_size=32)
    alone = open_cache(tmp_path / "c.h5").features()
    among = open_cache(tmp_path / "a.h5").features()[np.array(open_cache(tmp_path / "a.h5").split) == "val"]
    assert alone.tobytes() == among.tobytes()


def test_a_second_run_computes_nothing_and_leaves_the_file_alone(photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "a.h5", backbone="tiny")
    before = (tmp_path / "a.h5").read_bytes(), (tmp_path / "a.h5").stat().st_mtime_ns
    again = extract(photos, tmp_path / "a.h5", backbone="tiny")
    assert (again.computed, again.reused, again.copied) == (0, 24, 0)
    assert ((tmp_path / "a.h5").read_bytes(), (tmp_path / "a.h5").stat().st_mtime_ns) == before


def test_identical_files_are_computed_once(photos: Path, tmp_path: Path) -> None:
    for number in range(5):
        shutil.copy(photos / "train/cats/0.jpg", photos / f"val/dogs/copy{number}.jpg")
    result = extract(photos, tmp_path / "a.h5", backbone="tiny")
    assert (result.rows, result.computed, result.copied) == (29, 24, 5)
    cache = open_cache(tmp_path / "a.h5")
    original = cache.features()[cache.ids.index("train/cats/0.jpg")]
    for number in range(5):
        np.testing.assert_array_equal(cache.features()[cache.ids.index(f"val/dogs/copy{number}.jpg")], original)
    assert verify(cache).whole


def test_sync_equals_a_fresh_extraction(photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "a.h5", backbone="tiny")
    old = open_cache(tmp_path / "a.h5")
    old_first = np.array(old.features()[0])
    mapped = old.features()
    os.rename(photos / "train/cats/1.png", photos / "train/dogs/moved.png")
    make_image(99).save(photos / "train/cats/2.jpg")  # edited
    make_image(100).save(photos / "val/cats/new.png")  # added
    (photos / "val/dogs/3.png").unlink()  # deleted
    shutil.copy(photos / "val/dogs/4.jpg", photos / "train/dogs/same.jpg")  # duplicated
    (photos / "train/birds").mkdir()
    make_image(101).save(photos / "train/birds/0.png")  # a new class moves all labels
    a, b = photos / "val/cats/0.jpg", photos / "val/cats/5.png"
    for source, target in ((a, "swap"), (b, "0.jpg"), (photos / "val/cats/swap", "5.png")):
        source.rename(source.parent / target)  # two names swapped
    result = extract(photos, tmp_path / "a.h5", backbone="tiny")
    assert result.computed == 3  # edited, added, of the new class
    assert result.dropped == 2  # deleted, and the moved one's old name
    extract(photos, tmp_path / "fresh.h5", backbone="tiny")
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "fresh.h5"))
    np.testing.assert_array_equal(mapped[0], old_first)  # the reader of the old file still sees the old file


def test_touched_files_are_read_but_not_computed(photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "a.h5", backbone="tiny")
    os.utime(photos / "val/dogs/1.png", ns=(1, 1))
    result = extract(photos, tmp_path / "a.h5", backbone="tiny")
    assert (result.computed, result.copied, result.reused) == (0, 1, 23)
    assert open_cache(tmp_path / "a.h5").column("samples/mtime_ns").min() == 1


def test_an_edit_that_kept_size_and_time_is_found_by_rehash(photos: Path, tmp_path: Path) -> None:
    edited = photos / "val/cats/1.bmp"
    make_image(1).save(edited)  # a BMP of one size always has one length
    extract(photos, tmp_path / "a.h5", backbone="tiny")
    before = edited.stat()
    make_image(999).save(edited)
    os.utime(edited, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert edited.stat().st_size == before.st_size
    assert extract(photos, tmp_path / "a.h5", backbone="tiny").reused == 25  # nothing to be seen from outside
    result = extract(photos, tmp_path / "a.h5", backbone="tiny", rehash=True)
    assert (result.reused, result.copied, result.computed) == (0, 24, 1)
    extract(photos, tmp_path / "fresh.h5", backbone="tiny")
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "fresh.h5"))


def test_a_dry_run_tells_and_writes_nothing(photos: Path, tmp_path: Path) -> None:
    told = extract(photos, tmp_path / "a.h5", backbone="tiny", dry_run=True)
    assert (told.rows, told.to_read, told.reused, told.dropped) == (24, 24, 0, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
    done = extract(photos, tmp_path / "a.h5", backbone="tiny")
    assert told.key == done.key
    assert done.bytes * 0.7 < told.bytes <= done.bytes  # the rest is structure, and much for so small a file
    (photos / "val/cats/1.png").unlink()
    make_image(3).save(photos / "val/cats/9.png")
    before = (tmp_path / "a.h5").read_bytes()
    told = extract(photos, tmp_path / "a.h5", backbone="tiny", dry_run=True)
    assert (told.rows, told.to_read, told.reused, told.dropped) == (24, 1, 23, 1)
    assert (tmp_path / "a.h5").read_bytes() == before


def test_limit_takes_the_first_by_id_and_grows(photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "a.h5", backbone="tiny", limit=5)
    assert len(open_cache(tmp_path / "a.h5")) == 5
    grown = extract(photos, tmp_path / "a.h5", backbone="tiny", limit=9)
    assert (grown.computed, grown.reused) == (4, 5)
    extract(photos, tmp_path / "fresh.h5", backbone="tiny")
    whole = extract(photos, tmp_path / "a.h5", backbone="tiny")
    assert whole.reused == 9
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "fresh.h5"))


def test_stopped_runs_go_on_where_they_were(photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "whole.h5", backbone="tiny", batch_size=4)
    runs = 0
    while True:
        try:
            last = extract(photos, tmp_path / "a.h5", backbone="tiny", batch_size=4, stop=lambda: 15)
            break
        except Stopped as stopped:
            runs += 1
            assert stopped.exit_code == 143
            partial = open_cache(tmp_path / "a.h5.partial")
            assert partial.ok.sum() == 4 * runs
            assert not (tmp_path / "a.h5").exists()
    assert runs == 5
    assert (last.computed, last.reused) == (4, 20)
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "whole.h5"))
    assert len(open_cache(tmp_path / "a.h5").provenance) == 6


def test_a_run_that_ended_between_its_last_row_and_the_rename(photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "a.h5", backbone="tiny")
    (tmp_path / "a.h5").rename(tmp_path / "a.h5.partial")
    result = extract(photos, tmp_path / "a.h5", backbone="tiny")
    assert (result.computed, result.reused) == (0, 24)
    assert verify(open_cache(tmp_path / "a.h5")).whole


def test_a_folder_that_changes_between_two_halves(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        extract(photos, tmp_path / "a.h5", backbone="tiny", batch_size=4, stop=lambda: 2)
    make_image(77).save(photos / "train/cats/0.jpg")  # of a row that is done: same place, other bytes
    os.rename(photos / "train/cats/1.png", photos / "train/cats/zzz.png")
    with pytest.raises(Stopped):
        extract(photos, tmp_path / "a.h5", backbone="tiny", batch_size=4, stop=lambda: 2)
    make_image(78).save(photos / "train/cats/2.jpg")  # this time the names stay as they are
    result = extract(photos, tmp_path / "a.h5", backbone="tiny", batch_size=4)
    extract(photos, tmp_path / "fresh.h5", backbone="tiny", batch_size=4)
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "fresh.h5"))
    assert result.computed < 24


def test_a_row_moved_between_two_halves_is_copied_from_its_own_old_row(photos: Path, tmp_path: Path) -> None:
    """Same number of samples, same length of ids: the new file in progress is laid out like the one it replaces."""
    with pytest.raises(Stopped):
        extract(photos, tmp_path / "a.h5", backbone="tiny", batch_size=4, stop=lambda: 2)
    os.rename(photos / "train/cats/0.jpg", photos / "train/cats/9.jpg")  # the rows behind it move up by one
    result = extract(photos, tmp_path / "a.h5", backbone="tiny", batch_size=4)
    extract(photos, tmp_path / "fresh.h5", backbone="tiny", batch_size=4)
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "fresh.h5"))
    assert (result.computed, result.copied, result.reused) == (20, 1, 3)


def test_damaged_rows_of_the_file_in_progress_are_computed_again(photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "whole.h5", backbone="tiny", batch_size=4)
    with pytest.raises(Stopped):
        extract(photos, tmp_path / "a.h5", backbone="tiny", batch_size=4, stop=lambda: 2)
    partial = open_cache(tmp_path / "a.h5.partial")
    column = partial.layout.columns[
        "features/flatten" if "flatten" in partial.layers else f"features/{partial.layers[0]}"
    ]
    with open(tmp_path / "a.h5.partial", "r+b") as file:
        file.seek(column.offset + 2 * column.row_bytes + 3)
        file.write(b"\x55\x66")
    result = extract(photos, tmp_path / "a.h5", backbone="tiny", batch_size=4)
    assert result.computed == 21
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "whole.h5"))


def test_the_file_in_progress_can_be_read(photos: Path, tmp_path: Path) -> None:
    seen = []

    def look(progress: object) -> None:
        cache = open_cache(tmp_path / "a.h5.partial")
        seen.append(int(cache.ok.sum()))
        assert not len(verify(cache).damaged)

    extract(photos, tmp_path / "a.h5", backbone="tiny", batch_size=8, progress=look)
    assert seen == [8, 16, 24, 24]


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def spoiled(photos: Path) -> Path:
    """Four images that fail, each in its own way, among 24 good ones."""
    whole = (photos / "train/cats/0.jpg").read_bytes()
    (photos / "train/cats/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "train/dogs/text.jpg").write_text("no image at all")
    (photos / "train/dogs/empty.png").write_bytes(b"")
    lying = bytearray((photos / "train/cats/1.png").read_bytes())
    lying[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height
    lying[29:33] = zlib.crc32(lying[12:29]).to_bytes(4, "big")
    (photos / "val/dogs/lying.png").write_bytes(bytes(lying))
    return photos


def test_failed_images_keep_their_place_as_nan(spoiled: Path, tmp_path: Path) -> None:
    result = extract(spoiled, tmp_path / "a.h5", backbone="tiny")
    assert result.failures == {"UNDECODABLE": 2, "TRUNCATED": 1, "TOO_LARGE": 1}
    cache = open_cache(tmp_path / "a.h5")
    for row, name in enumerate(cache.ids):
        failed = name.rpartition("/")[2] in ("cut.jpg", "text.jpg", "empty.png", "lying.png")
        assert np.isnan(cache.features()[row]).all() == failed
        assert (cache.status[row] == Status.OK) != failed
    assert verify(cache).whole
    again = extract(spoiled, tmp_path / "a.h5", backbone="tiny")
    assert again.reused == 28
    assert again.failures == result.failures


def test_a_mended_image_is_taken_up(spoiled: Path, tmp_path: Path) -> None:
    extract(spoiled, tmp_path / "a.h5", backbone="tiny")
    make_image(55).save(spoiled / "train/cats/cut.jpg")
    result = extract(spoiled, tmp_path / "a.h5", backbone="tiny")
    assert result.computed == 1
    assert "TRUNCATED" not in result.failures


def test_on_error_stop_names_the_image_and_keeps_the_rest(spoiled: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cut\.jpg: truncated"):
        extract(spoiled, tmp_path / "a.h5", backbone="tiny", on_error="stop", batch_size=4)
    assert open_cache(tmp_path / "a.h5.partial").ok.sum() >= 4


@pytest.mark.rotates(3)
def test_features_beyond_the_stored_type_are_failures_not_infinities(photos: Path, tmp_path: Path) -> None:
    big = tmp_path / "big.pth"
    state = tiny().state_dict()
    name = next(name for name in reversed(state) if name.startswith("embed") and name.endswith("weight"))
    state[name] = state[name] * 1e7
    torch.save(state, big)
    result = extract(photos, tmp_path / "a.h5", backbone="tiny", weights=str(big), dtype="float16")
    assert result.failures == {"NON_FINITE": 24}
    assert np.isnan(open_cache(tmp_path / "a.h5").features()).all()
    assert extract(photos, tmp_path / "b.h5", backbone="tiny", weights=str(big)).failures == {}


def test_another_key_is_refused_with_the_difference(photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "a.h5", backbone="tiny")
    before = (tmp_path / "a.h5").read_bytes()
    with pytest.raises(CacheKeyError) as caught:
        extract(photos, tmp_path / "a.h5", backbone="tiny", dtype="float16", transform={"resize": 40})
    assert caught.value.difference == ["storage: float32 -> float16", "transform.resize: 32 -> 40"]
    with pytest.raises(CacheKeyError, match="weights: [0-9a-f]{64} -> [0-9a-f]{64}"):
        extract(photos, tmp_path / "a.h5", backbone="tiny", weights="random")
    assert (tmp_path / "a.h5").read_bytes() == before
    extract(photos, tmp_path / "a.h5", backbone="tiny", dtype="float16", overwrite=True)
    assert open_cache(tmp_path / "a.h5").features().dtype == np.float16


def test_a_foreign_output_is_overwritten_only_where_that_is_said(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_text("my thesis")
    with pytest.raises(CacheFormatError, match="left as it is"):
        extract(photos, tmp_path / "a.h5", backbone="tiny")
    assert (tmp_path / "a.h5").read_text() == "my thesis"
    assert extract(photos, tmp_path / "a.h5", backbone="tiny", overwrite=True).computed == 24
    assert verify(open_cache(tmp_path / "a.h5")).whole


def test_runs_that_would_throw_rows_away_by_mistake_are_refused(photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "a.h5", backbone="tiny")
    with pytest.raises(UsageError, match="--limit 3 would throw 21"):
        extract(photos, tmp_path / "a.h5", backbone="tiny", limit=3)
    other = tmp_path / "other"
    other.mkdir()
    make_image(1).save(other / "x.png")
    with pytest.raises(UsageError, match="None of the 24 samples"):
        extract(other, tmp_path / "a.h5", backbone="tiny")
    assert len(open_cache(tmp_path / "a.h5")) == 24


def test_a_second_writer_is_refused_and_told_who_holds_the_file(photos: Path, tmp_path: Path) -> None:
    with (
        WriteLock(str(tmp_path / "a.h5")),
        pytest.raises(CacheLockedError, match=rf"written by process {os.getpid()} on .* since 20"),
    ):
        extract(photos, tmp_path / "a.h5", backbone="tiny")
    (tmp_path / "a.h5.precompute.lock").write_text(
        '{"pid": 1, "host": "gone", "since": "2020"}'
    )  # left by a dead process
    assert extract(photos, tmp_path / "a.h5", backbone="tiny").rows == 24


@pytest.mark.parametrize(
    ("output", "message"),
    [("no/such/a.h5", "does not exist"), (".", "is a folder"), ("/proc/a.h5", "cannot be written")],
)
def test_outputs_that_cannot_be(photos: Path, tmp_path: Path, output: str, message: str) -> None:
    with pytest.raises(CacheError, match=message):
        extract(photos, tmp_path / output, backbone="tiny")


def test_a_linked_output_stays_a_link(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "a.h5").symlink_to("big/real.h5")
    assert extract(photos, tmp_path / "a.h5", backbone="tiny").computed == 24
    assert extract(photos, tmp_path / "a.h5", backbone="tiny").computed == 0
    assert (tmp_path / "a.h5").is_symlink()
    assert len(open_cache(tmp_path / "big/real.h5")) == 24


def test_a_source_that_goes_away_stops_the_run(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", per_class=30)

    def remove(progress: object) -> None:
        if photos.exists():
            photos.rename(tmp_path / "elsewhere")

    with pytest.raises(SourceError, match="went away"):
        extract(photos, tmp_path / "a.h5", backbone="tiny", batch_size=4, workers=1, progress=remove)
    kept = int(open_cache(tmp_path / "a.h5.partial").ok.sum())
    assert kept >= 4
    (tmp_path / "elsewhere").rename(photos)
    assert extract(photos, tmp_path / "a.h5", backbone="tiny", batch_size=4).reused == kept


def test_one_image_that_vanishes_is_recorded_and_tried_again(photos: Path, tmp_path: Path) -> None:
    gone = photos / "val/dogs/5.png"
    kept = gone.read_bytes()

    def remove(progress: object) -> None:
        gone.unlink(missing_ok=True)

    with pytest.raises(Stopped):  # so that the file is listed, but not read yet
        extract(photos, tmp_path / "a.h5", backbone="tiny", batch_size=1, workers=1, stop=lambda: 2, limit=24)
    result = extract(photos, tmp_path / "a.h5", backbone="tiny", batch_size=1, workers=1, progress=remove)
    assert result.failures == {"VANISHED": 1}
    gone.write_bytes(kept)
    assert extract(photos, tmp_path / "a.h5", backbone="tiny").failures == {}


def test_odd_names_and_entries(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "odd")
    os.makedirs(folder + b"/a")
    names = [
        b"a/new\nline.png",
        b"a/\xff\xfe.png",
        "a/\u202egnp.exe.png".encode(),
        b"a/" + b"x" * 251 + b".png",
        b"a/ .png",
    ]
    for seed, name in enumerate(names):
        make_image(seed).save(tmp_path / "image.png")
        shutil.copy(tmp_path / "image.png", os.path.join(folder, name))
    os.mkfifo(folder + b"/a/fifo.png")
    os.symlink(folder, folder + b"/a/loop")
    os.symlink(b"/dev/zero", folder + b"/a/zero.png")
    (tmp_path / "odd/a/.hidden.png").write_bytes(b"x")
    result = extract(os.fsdecode(folder), tmp_path / "a.h5", backbone="tiny")
    assert result.rows == result.computed == len(names)
    assert sorted(map(os.fsencode, open_cache(tmp_path / "a.h5").ids)) == sorted(names)
    assert len(result.ignored) == 3
