"""Extraction: what lands in the file, what is computed again and what is not, what is refused."""

from __future__ import annotations

import gc
import os
import re
import shutil
from collections import Counter
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command, make_image
from modalities import Samples
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


@pytest.mark.rotates(3)
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


@pytest.mark.rotates(3)
def test_every_skipped_sample_is_named(samples: Samples, tmp_path: Path) -> None:
    """Also those that are copies of a broken one, and those that an earlier run skipped."""
    page = b"<html>\xff 404</html>"
    samples.extract(tmp_path / "a.h5")
    names = [name for name in samples.names() if name.startswith("train/")]
    with samples.together():
        for name in names:
            samples.write(name, page)
    result = samples.extract(tmp_path / "a.h5")
    assert result.failures == {"UNDECODABLE": len(names)}
    assert [name for name, _, _ in sorted(result.failed)] == names
    other = next(name for name in samples.names() if name.startswith("val/"))
    samples.write(other, b"another \xff")
    result = samples.extract(tmp_path / "a.h5")
    assert (result.computed, sum(result.failures.values())) == (0, len(names) + 1)
    assert sorted(name for name, _, _ in result.failed) == sorted([*names, other])
    with pytest.raises(SourceError, match="undecodable"):
        samples.extract(tmp_path / "b.h5", on_error="stop")


@pytest.mark.rotates(3)
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


def test_batch_size_workers_and_company_do_not_matter(samples: Samples, tmp_path: Path) -> None:
    samples.extract(tmp_path / "a.h5", batch_size=32, workers=1)
    samples.extract(tmp_path / "b.h5", batch_size=32, workers=5)
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "b.h5"))
    among = open_cache(tmp_path / "a.h5").features()[np.array(open_cache(tmp_path / "a.h5").split) == "val"]
    with samples.together():
        for name in samples.names():
            if name.startswith("train/"):
                samples.remove(name)
    samples.extract(tmp_path / "c.h5", batch_size=32)
    assert open_cache(tmp_path / "c.h5").features().tobytes() == among.tobytes()


def test_a_second_run_computes_nothing_and_leaves_the_file_alone(samples: Samples, tmp_path: Path) -> None:
    samples.extract(tmp_path / "a.h5")
    before = (tmp_path / "a.h5").read_bytes(), (tmp_path / "a.h5").stat().st_mtime_ns
    again = samples.extract(tmp_path / "a.h5")
    assert (again.computed, again.reused, again.copied) == (0, 24, 0)
    assert ((tmp_path / "a.h5").read_bytes(), (tmp_path / "a.h5").stat().st_mtime_ns) == before


def test_identical_samples_are_computed_once(samples: Samples, tmp_path: Path, passes: list[int]) -> None:
    samples.extract(tmp_path / "without.h5")
    alone, first = sum(passes), samples.kind.named("train/cats/0")
    copies = [samples.kind.named(f"val/dogs/copy{number}") for number in range(5)]
    with samples.together():
        for copy in copies:
            samples.copy(first, copy)
    result = samples.extract(tmp_path / "a.h5")
    assert (result.rows, result.computed, result.copied) == (29, 24, 5)
    assert sum(passes) == 2 * alone
    cache = open_cache(tmp_path / "a.h5")
    original = cache.features()[cache.ids.index(first)]
    for copy in copies:
        np.testing.assert_array_equal(cache.features()[cache.ids.index(copy)], original)
    assert verify(cache).whole


def test_sync_equals_a_fresh_extraction(samples: Samples, tmp_path: Path) -> None:
    samples.extract(tmp_path / "a.h5")
    old, named = open_cache(tmp_path / "a.h5"), samples.kind.named
    old_first = np.array(old.features()[0])
    mapped = old.features()
    with samples.together():
        samples.move(named("train/cats/1"), named("train/dogs/moved"))
        samples.put("train/cats/2", 99)  # edited
        samples.put("val/cats/new", 100)  # added
        samples.remove(named("val/dogs/3"))  # deleted
        samples.copy(named("val/dogs/4"), named("train/dogs/same"))  # duplicated
        samples.put("train/birds/0", 101)  # a new class moves all labels
        a, b = named("val/cats/0"), named("val/cats/5")
        for source, target in ((a, "val/cats/swap"), (b, a), ("val/cats/swap", b)):
            samples.move(source, target)  # two names swapped
    result = samples.extract(tmp_path / "a.h5")
    assert result.computed == 3  # edited, added, of the new class
    assert result.dropped == 2  # deleted, and the moved one's old name
    samples.extract(tmp_path / "fresh.h5")
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "fresh.h5"))
    np.testing.assert_array_equal(mapped[0], old_first)  # the reader of the old file still sees the old file


@pytest.mark.rotates(3)
def test_touched_files_are_read_but_not_computed(folder_samples: Samples, tmp_path: Path) -> None:
    folder_samples.extract(tmp_path / "a.h5")
    os.utime(folder_samples.source / folder_samples.kind.named("val/dogs/1"), ns=(1, 1))
    result = folder_samples.extract(tmp_path / "a.h5")
    assert (result.computed, result.copied, result.reused) == (0, 1, 23)
    assert open_cache(tmp_path / "a.h5").column("samples/mtime_ns").min() == 1


@pytest.mark.rotates(3)
def test_an_edit_that_kept_size_and_time_is_found_by_rehash(folder_samples: Samples, tmp_path: Path) -> None:
    samples, kind = folder_samples, folder_samples.kind
    edited = samples.source / f"val/cats/same.{kind.fixed}"  # of a kind whose files have one size for these seeds
    edited.write_bytes(kind.encode(1, kind.fixed))
    samples.extract(tmp_path / "a.h5")
    before = edited.stat()
    edited.write_bytes(kind.encode(61, kind.fixed))
    os.utime(edited, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert edited.stat().st_size == before.st_size
    assert samples.extract(tmp_path / "a.h5").reused == 25  # nothing to be seen from outside
    result = samples.extract(tmp_path / "a.h5", rehash=True)
    assert (result.reused, result.copied, result.computed) == (0, 24, 1)
    samples.extract(tmp_path / "fresh.h5")
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "fresh.h5"))


def test_a_dry_run_tells_and_writes_nothing(samples: Samples, tmp_path: Path) -> None:
    told = samples.extract(tmp_path / "a.h5", dry_run=True)
    assert (told.rows, told.to_read, told.reused, told.dropped) == (24, 24, 0, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [samples.source.name]
    done = samples.extract(tmp_path / "a.h5")
    assert told.key == done.key
    assert done.bytes * 0.7 < told.bytes <= done.bytes  # the rest is structure, and much for so small a file
    samples.remove(samples.kind.named("val/cats/1"))
    samples.put("val/cats/9", 103)
    before = (tmp_path / "a.h5").read_bytes()
    told = samples.extract(tmp_path / "a.h5", dry_run=True)
    assert (told.rows, told.to_read, told.reused, told.dropped) == (24, 1, 23, 1)
    assert (tmp_path / "a.h5").read_bytes() == before


@pytest.mark.rotates(3)
def test_limit_takes_the_first_by_id_and_grows(samples: Samples, tmp_path: Path) -> None:
    samples.extract(tmp_path / "a.h5", limit=5)
    assert len(open_cache(tmp_path / "a.h5")) == 5
    grown = samples.extract(tmp_path / "a.h5", limit=9)
    assert (grown.computed, grown.reused) == (4, 5)
    samples.extract(tmp_path / "fresh.h5")
    whole = samples.extract(tmp_path / "a.h5")
    assert whole.reused == 9
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "fresh.h5"))


@pytest.mark.rotates(3)
def test_stopped_runs_go_on_where_they_were(samples: Samples, tmp_path: Path) -> None:
    samples.extract(tmp_path / "whole.h5", batch_size=4)
    runs, there = 0, list[int]()
    while True:
        try:
            last = samples.extract(tmp_path / "a.h5", batch_size=4, stop=lambda: 15)
            break
        except Stopped as stopped:
            runs += 1
            assert stopped.exit_code == 143
            there.append(int(open_cache(tmp_path / "a.h5.partial").ok.sum()))
            assert there == sorted(set(there))
            assert there[-1] == 4 * runs or samples.kind.unit == "clips"  # which share batches by their windows
            assert not (tmp_path / "a.h5").exists()
    assert runs == 5 or samples.kind.unit == "clips"
    assert (last.computed, last.reused) == (24 - there[-1], there[-1])
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "whole.h5"))
    assert len(open_cache(tmp_path / "a.h5").provenance) == runs + 1


def test_a_run_that_ended_between_its_last_row_and_the_rename(samples: Samples, tmp_path: Path) -> None:
    samples.extract(tmp_path / "a.h5")
    (tmp_path / "a.h5").rename(tmp_path / "a.h5.partial")
    result = samples.extract(tmp_path / "a.h5")
    assert (result.computed, result.reused) == (0, 24)
    assert verify(open_cache(tmp_path / "a.h5")).whole


@pytest.mark.rotates(3)
def test_a_source_that_changes_between_two_halves(samples: Samples, tmp_path: Path) -> None:
    named = samples.kind.named
    with pytest.raises(Stopped):
        samples.extract(tmp_path / "a.h5", batch_size=4, stop=lambda: 2)
    samples.put("train/cats/0", 77)  # of a row that is done: same place, other bytes
    samples.move(named("train/cats/1"), named("train/cats/zzz"))
    with pytest.raises(Stopped):
        samples.extract(tmp_path / "a.h5", batch_size=4, stop=lambda: 2)
    samples.put("train/cats/2", 78)  # this time the names stay as they are
    result = samples.extract(tmp_path / "a.h5", batch_size=4)
    samples.extract(tmp_path / "fresh.h5", batch_size=4)
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "fresh.h5"))
    assert result.computed < 24


def test_a_row_moved_between_two_halves_is_copied_from_its_own_old_row(samples: Samples, tmp_path: Path) -> None:
    """Same number of samples, same length of ids: the new file in progress is laid out like the one it replaces."""
    with pytest.raises(Stopped):
        samples.extract(tmp_path / "a.h5", batch_size=4, stop=lambda: 2)
    first = samples.kind.named("train/cats/0")
    samples.move(first, first.replace("0", "9"))  # the rows behind it move up by one
    result = samples.extract(tmp_path / "a.h5", batch_size=4)
    samples.extract(tmp_path / "fresh.h5", batch_size=4)
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "fresh.h5"))
    assert (result.computed, result.copied, result.reused) == (20, 1, 3)


def test_damaged_rows_of_the_file_in_progress_are_computed_again(samples: Samples, tmp_path: Path) -> None:
    samples.extract(tmp_path / "whole.h5", batch_size=4)
    with pytest.raises(Stopped):
        samples.extract(tmp_path / "a.h5", batch_size=4, stop=lambda: 2)
    partial = open_cache(tmp_path / "a.h5.partial")
    column = partial.layout.columns[f"features/{partial.layers[0]}"]
    with open(tmp_path / "a.h5.partial", "r+b") as file:
        file.seek(column.offset + 2 * column.row_bytes + 3)
        file.write(b"\x55\x66")
    result = samples.extract(tmp_path / "a.h5", batch_size=4)
    assert result.computed == 21
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "whole.h5"))


def test_the_file_in_progress_can_be_read(samples: Samples, tmp_path: Path) -> None:
    seen = []

    def look(progress: object) -> None:
        cache = open_cache(tmp_path / "a.h5.partial")
        seen.append(int(cache.ok.sum()))
        assert not len(verify(cache).damaged)

    samples.extract(tmp_path / "a.h5", batch_size=8, progress=look)
    assert seen == ([8, 16, 24, 24] if samples.kind.unit != "clips" else sorted(seen))
    assert seen[-1] == 24


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def spoiled(samples: Samples) -> Samples:
    """Four samples that fail, each in its own way, among 24 good ones."""
    with samples.together():
        for name, (data, _) in samples.kind.broken().items():
            samples.write(name, data)
    return samples


def test_failed_samples_keep_their_place_as_nan(spoiled: Samples, tmp_path: Path) -> None:
    reasons = {name: reason for name, (_, reason) in spoiled.kind.broken().items()}
    result = spoiled.extract(tmp_path / "a.h5")
    assert {name: reason for name, reason, _ in result.failed} == reasons
    assert result.failures == Counter(reasons.values())
    cache = open_cache(tmp_path / "a.h5")
    for row, name in enumerate(cache.ids):
        assert np.isnan(cache.features()[row]).all() == (name in reasons)
        assert (cache.status[row] != Status.OK) == (name in reasons)
    assert verify(cache).whole
    again = spoiled.extract(tmp_path / "a.h5")
    assert again.reused == 28
    assert again.failures == result.failures


@pytest.mark.rotates(3)
def test_a_mended_sample_is_taken_up(spoiled: Samples, tmp_path: Path) -> None:
    before = spoiled.extract(tmp_path / "a.h5").failures
    name, (_, reason) = next(iter(spoiled.kind.broken().items()))
    spoiled.write(name, spoiled.kind.encode(55, name.rpartition(".")[2]))
    result = spoiled.extract(tmp_path / "a.h5")
    assert result.computed == 1
    assert Counter(before) - Counter(result.failures) == {reason: 1}


@pytest.mark.rotates(3)
def test_a_broken_sample_is_said_by_the_command_and_its_status(
    spoiled: Samples, tmp_path: Path, precompute: Command
) -> None:
    arguments = ["extract", spoiled.source, "-b", spoiled.backbone, "-o", "a.h5"]
    for _ in range(2):  # the second time from the file
        done = precompute(*arguments)
        assert done.returncode == 3
        for name in spoiled.kind.broken():
            assert f"Skipped: {name}: " in done.stderr
    assert precompute(*arguments, "--allow-skipped").returncode == 0


def test_on_error_stop_names_the_sample_and_keeps_the_rest(spoiled: Samples, tmp_path: Path) -> None:
    name, (_, reason) = next(iter(spoiled.kind.broken().items()))
    with pytest.raises(SourceError, match=rf"{re.escape(name)}: {reason.lower()}"):
        spoiled.extract(tmp_path / "a.h5", on_error="stop", batch_size=4)
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


@pytest.mark.rotates(3)
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


@pytest.mark.rotates(3)
def test_runs_that_would_throw_rows_away_by_mistake_are_refused(samples: Samples, tmp_path: Path) -> None:
    samples.extract(tmp_path / "a.h5")
    with pytest.raises(UsageError, match="--limit 3 would discard 21"):
        samples.extract(tmp_path / "a.h5", limit=3)
    with samples.together():
        for name in samples.names():
            samples.remove(name)
        samples.put("train/cats/other", 200)
    with pytest.raises(UsageError, match="None of the 24 samples"):
        samples.extract(tmp_path / "a.h5")
    assert len(open_cache(tmp_path / "a.h5")) == 24


@pytest.mark.rotates(3)
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


@pytest.mark.rotates(3)
def test_a_linked_output_stays_a_link(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "a.h5").symlink_to("big/real.h5")
    assert extract(photos, tmp_path / "a.h5", backbone="tiny").computed == 24
    assert extract(photos, tmp_path / "a.h5", backbone="tiny").computed == 0
    assert (tmp_path / "a.h5").is_symlink()
    assert len(open_cache(tmp_path / "big/real.h5")) == 24


@pytest.mark.rotates(3)
def test_a_source_that_goes_away_stops_the_run(samples: Samples, tmp_path: Path) -> None:
    with samples.together():
        for number in range(40):
            samples.put(f"train/dogs/more{number}", 1000 + number)

    def remove(progress: object) -> None:
        if samples.source.exists():
            samples.source.rename(tmp_path / "elsewhere")

    options = {"batch_size": 4, "workers": 1}
    if samples.kind.in_table:  # which is open, and so is read to its end
        assert samples.extract(tmp_path / "a.h5", **options, progress=remove).computed == 64
        return
    with pytest.raises(SourceError, match="disappeared"):
        samples.extract(tmp_path / "a.h5", **options, progress=remove)
    kept = int(open_cache(tmp_path / "a.h5.partial").ok.sum())
    assert kept >= 4
    (tmp_path / "elsewhere").rename(samples.source)
    assert samples.extract(tmp_path / "a.h5", batch_size=4).reused == kept


@pytest.mark.rotates(3)
def test_one_sample_that_vanishes_is_recorded_and_tried_again(folder_samples: Samples, tmp_path: Path) -> None:
    samples = folder_samples
    gone = samples.source / samples.kind.named("val/dogs/5")
    kept = gone.read_bytes()

    def remove(progress: object) -> None:
        gone.unlink(missing_ok=True)

    with pytest.raises(Stopped):  # so that the file is listed, but not read yet
        samples.extract(tmp_path / "a.h5", batch_size=1, workers=1, stop=lambda: 2, limit=24)
    result = samples.extract(tmp_path / "a.h5", batch_size=1, workers=1, progress=remove)
    assert result.failures == {"VANISHED": 1}
    gone.write_bytes(kept)
    assert samples.extract(tmp_path / "a.h5").failures == {}


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


def test_float16_is_what_numpy_makes_of_float32() -> None:
    """All exponents, ties, subnormals, infinities and what is beyond the range; of any number of rows."""
    from precompute.extraction.rows import _halve

    bits = np.random.default_rng(0).integers(0, 2**32, size=(37, 2_500), dtype=np.uint32)
    bits[0] &= np.uint32(0xFFFFE000)
    bits[1] = bits[1] & np.uint32(0xFFFFE000) | np.uint32(0x1000)  # halfway between two of float16
    values = bits.view(np.float32)
    values[np.isnan(values)] = 0
    values.flags.writeable = False
    made = np.empty(values.shape, dtype=np.float16)
    _halve(values, made)
    with np.errstate(over="ignore"):
        assert made.tobytes() == values.astype(np.float16).tobytes()
