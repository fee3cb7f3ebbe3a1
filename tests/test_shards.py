"""WebDataset shards: which members are samples, read at random; no tar file can hang, swell or mislead a run."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import io
import lzma
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, list_images, make_image, make_photos, rows_there, run_python
from contracts import SourceContract
from hypothesis import given, settings
from hypothesis import strategies as st
from test_extraction import assert_same

from precompute import extract, open_cache, verify
from precompute.cache import Status
from precompute.errors import SampleError, SourceError, Stopped
from precompute.inputs.images.formats import IMAGES
from precompute.sources import tar_index
from precompute.sources.base import Source
from precompute.sources.braces import expand_braces
from precompute.sources.shard_files import _state
from precompute.sources.shards import ShardSource, find_shards, open_shards
from precompute.system import kept_files

Members = dict[str, bytes] | Sequence[tuple[str | tarfile.TarInfo, bytes]]
LATER = 10**9  # ns


@pytest.fixture(autouse=True)
def kept(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of this test's own for indexes."""
    place = tmp_path_factory.mktemp("kept")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place / "precompute" / "shards"


def write_shard(path: Path, members: Members, **options: Any) -> Path:
    """A tar file with all times 0, as writers of shards set them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = info.size or len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def special(name: str, kind: bytes, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def picture(seed: int) -> bytes:
    """A small PNG."""
    file = io.BytesIO()
    make_image(seed).save(file, "PNG")
    return file.getvalue()


def shards_of(photos: Path, place: Path, *, per_shard: int = 5) -> Path:
    """The photos of `SPLIT/CLASS/NAME` as shards `SPLIT-000.tar`, each with a `.cls` beside it."""
    for split in sorted(path.name for path in photos.iterdir()):
        paths = sorted(path for path in (photos / split).rglob("*") if path.is_file())
        for number, start in enumerate(range(0, len(paths), per_shard)):
            members = []
            for path in paths[start : start + per_shard]:
                key = f"{path.parent.name}/{path.name.replace('.', '-')}"
                members += [(f"{key}.cls", path.parent.name.encode()), (key + path.suffix, path.read_bytes())]
            write_shard(place / f"{split}-{number:03}.tar", members)
    return place


def open_images(pattern: Any, **options: Any) -> ShardSource:
    return open_shards(pattern if isinstance(pattern, list) else str(pattern), IMAGES, **options)


def ids(source: Source) -> list[str]:
    return [os.fsdecode(bytes(row)) for row in source.table.ids]


def by_digest(path: Path) -> dict[bytes, tuple[bytes, str | None, int]]:
    """Features, class and split of each picture of a feature file, by its SHA-256."""
    cache = open_cache(path)
    digests, features, splits = cache.column("samples/digest"), cache.features(), cache.column("samples/split")
    assert cache.ok.all()
    return {
        digests[row].tobytes(): (
            features[row].tobytes(),
            cache.classes[label] if (label := int(cache.labels[row])) >= 0 else None,
            int(splits[row]),
        )
        for row in range(len(cache))
    }


class TestShardSource(SourceContract):
    @pytest.fixture
    def source(self, photos: Path, tmp_path: Path) -> Source:
        return open_images(shards_of(photos, tmp_path / "shards") / "*.tar")


class TestShardSourceFromKeptIndexes(SourceContract):
    @pytest.fixture
    def source(self, photos: Path, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
        monkeypatch.setattr(tar_index, "KEPT_FROM", 1)
        shards = shards_of(photos, tmp_path / "shards")
        first = open_images(shards / "*.tar")
        assert len(list(kept.glob("*.index"))) == len(list(shards.glob("*.tar")))
        again = open_images(shards / "*.tar")
        for name in ("ids", "sizes", "mtimes", "labels", "splits"):
            assert np.array_equal(getattr(first.table, name), getattr(again.table, name))
        assert (first.ignored, first.notes, first.table.classes) == (again.ignored, again.notes, again.table.classes)
        return again


# Which members are samples


def test_samples_are_grouped_by_their_name_up_to_the_first_dot(tmp_path: Path) -> None:
    path = write_shard(
        tmp_path / "a.tar",
        {
            "2.jpg": b"two",
            "1.cls": b"cat\n",
            "1.JPG": b"one",
            "1.json": b"{}",
            "x.y/3.cls": b"7",
            "x.y/3.png": b"three",
            "./4.txt": b"",
            "./4.webp": b"four",
        },
    )
    source = open_images(path)
    assert ids(source) == ["a/1.JPG", "a/2.jpg", "a/4.webp", "a/x.y/3.png"]
    assert [source.read(row).data for row in range(4)] == [b"one", b"two", b"four", b"three"]
    assert pickle.loads(pickle.dumps(source)).read(1) == source.read(1)  # another process may read it
    assert [source.label_name(row) for row in range(4)] == ["cat", None, None, "7"]
    assert source.table.classes == (b"7", b"cat")
    assert source.notes == ("2 images have no .cls next to them and so no label",)
    assert source.ignored == ()


def test_of_several_images_of_a_sample_the_plain_one_counts(tmp_path: Path) -> None:
    members = {"1.mask.png": b"mask", "1.jpg": b"photo", "2.right.jpg": b"right", "2.left.jpg": b"left", "3.json": b""}
    source = open_images(write_shard(tmp_path / "a.tar", members))
    assert ids(source) == ["a/1.jpg", "a/2.left.jpg"]
    assert source.read(0).data == b"photo"
    assert source.ignored == (
        "2 further images of a sample: a/1.mask.png, a/2.right.jpg",
        "1 samples without an image: a/3",
    )


@pytest.mark.parametrize("text", [b"", b"  \n", b"two\nlines", b"\0", b"x" * 256, b"x" * 100_000])
def test_a_label_that_is_no_line_of_text_is_reported(tmp_path: Path, text: bytes) -> None:
    source = open_images(write_shard(tmp_path / "a.tar", {"1.cls": text, "1.jpg": b"x", "2.cls": b"ant", "2.jpg": b""}))
    assert [source.label_name(row) for row in range(2)] == [None, "ant"]
    assert source.ignored == ("1 labels that are not one line of 1 to 255 bytes: a/1.cls",)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    """`cos\\nsystem` would run a command."""
    bomb = b"cos\nsystem\n(S'touch " + os.fsencode(tmp_path / "ran") + b"'\ntR."
    path = write_shard(tmp_path / "a.tar", {f"1.{end}": bomb for end in ("pyd", "pickle", "pkl", "cls", "pth", "jpg")})
    source = open_images(path)
    assert source.read(0).data == bomb
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-000", "train-001", "val-000"], [1, 1, 2]),
        (["Train_00000-of-00002", "test"], [1, 3]),
        (["train/shard-1", "validation/shard-1"], [1, 2]),
        (["train-000", "more-000"], [0, 0]),
        (["trains-000"], [0]),
        (["test-tubes-000"], [0]),
        (["test-tubes/000"], [0]),
    ],
)
def test_splits_are_in_the_names_of_shards_where_all_say_one(
    tmp_path: Path, names: list[str], splits: list[int]
) -> None:
    for name in names:
        write_shard(tmp_path / "shards" / f"{name}.tar", {"1.jpg": b"x"})
    source = open_images(tmp_path / "shards/**/*.tar")
    found = dict(zip(ids(source), source.table.splits.tolist(), strict=True))
    assert found == {f"{name}/1.jpg": split for name, split in zip(names, splits, strict=True)}
    assert ["no splits" in note for note in source.notes] == ([True] if "more-000" in names else [])


def test_a_limit_cuts_what_was_understood_of_all(tmp_path: Path) -> None:
    for name in ("train-000", "more"):
        write_shard(tmp_path / f"{name}.tar", {"1.jpg": b"x", "1.cls": name.encode(), "2.jpg": b"y"})
    source = open_images(tmp_path / "*.tar", limit=2)
    assert ids(source) == ["more/1.jpg", "more/2.jpg"]
    assert source.table.classes == (b"more",)
    assert source.table.splits.tolist() == [0, 0]


def test_rows_are_ordered_by_id_and_read_by_place(tmp_path: Path) -> None:
    for name in ("a", "a-b", "a.b"):
        write_shard(tmp_path / f"{name}.tar", {f"{number}.jpg": b"x" * number for number in (3, 1, 2)})
    source = open_images(tmp_path / "*.tar")
    assert ids(source) == sorted(f"{name}/{number}.jpg" for name in ("a", "a-b", "a.b") for number in (1, 2, 3))
    parts = [[ids(source)[row] for row in part] for part in source.order(np.arange(1, 9))]
    assert parts == [
        [f"{name}/{number}.jpg" for number in (3, 1, 2) if f"{name}/{number}.jpg" != "a-b/1.jpg"]
        for name in ("a-b", "a.b", "a")
    ]


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("a.tar", ["a.tar"]),
        ("d-{000..002}.tar", ["d-000.tar", "d-001.tar", "d-002.tar"]),
        ("{9..11}", ["9", "10", "11"]),
        ("{09..11}", ["09", "10", "11"]),
        ("{2..1}{a,b}", ["2a", "2b", "1a", "1b"]),
        ("{x}{}.tar", ["{x}{}.tar"]),
        ("{,a}b", ["b", "ab"]),
    ],
)
def test_braces(text: str, paths: list[str]) -> None:
    assert expand_braces(text) == paths


@pytest.mark.parametrize("text", ["{0..999999999999}", "{0..9999}{0..9999}", "{a,b}" * 64])
def test_braces_that_stand_for_too_much_are_refused_at_once(text: str) -> None:
    with pytest.raises(SourceError, match="more than 1,000,000 shards"):
        expand_braces(text)


def test_a_pattern_names_shards_the_same_whatever_it_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x/a-0.tar", "x/a-1.tar", "x/odd[0]{1,2}.tar"):
        write_shard(tmp_path / name, {"1.jpg": b"x"})
    monkeypatch.chdir(tmp_path)
    assert ids(open_images("x/a-*.tar")) == ids(open_images("x/a-{0,1}.tar")) == ["a-0/1.jpg", "a-1/1.jpg"]
    assert ids(open_images("x/a-0.tar")) == ids(open_images(tmp_path / "x/a-0.tar")) == ["a-0/1.jpg"]
    assert ids(open_images("x/odd[0]{1,2}.tar")) == ["odd[0]{1,2}/1.jpg"]
    assert ids(open_images(["x/a-1.tar", "x/a-0.tar"])) == ["a-0/1.jpg", "a-1/1.jpg"]
    assert ids(open_images([Path("x/a-1.tar"), tmp_path / "x/a-0.tar"])) == ["a-0/1.jpg", "a-1/1.jpg"]
    write_shard(tmp_path / "y/a-0.tar", {"1.jpg": b"x"})
    assert ids(open_images("{x,y}/a-0.tar")) == ["x/a-0/1.jpg", "y/a-0/1.jpg"]
    assert ids(open_images(["x/a-0.tar", "y/a-0.tar"])) == ["x/a-0/1.jpg", "y/a-0/1.jpg"]


def test_it_claims_its_shards_and_those_that_the_pattern_would_match(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "[x]/a.tar", {"1.jpg": b"x"})
    os.link(tmp_path / "[x]/a.tar", tmp_path / "same")
    (tmp_path / "link").symlink_to(tmp_path / "[x]")
    monkeypatch.chdir(tmp_path)
    source = open_images("[[]x]/*.tar")
    claimed = ["[x]/a.tar", "same", "link/a.tar", "link/new.tar", str(tmp_path / "[x]/new.tar")]
    assert [source.reads(path) for path in claimed] == [True] * 5
    assert [source.reads(path) for path in ("[x]/new.h5", "new.tar", "x/new.tar")] == [False] * 3
    listed = open_images(["[x]/a.tar", "[x]/b.tar"])
    assert [listed.reads(f"link/{name}.tar") for name in "abc"] == [True, True, False]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_any_kind(tmp_path: Path, form: int) -> None:
    names = [
        "ä/日本.jpg",
        f"{'d' * 90}/{'n' * 90}.jpg",
        "with space and\nline.jpg",
        "latin-\udce4.jpg",
        "'\"\\$(x).png",
    ]
    if form != tarfile.USTAR_FORMAT:
        names.append("/".join(["long"] * 60) + "/" + "n" * 200 + ".jpg")
    path = write_shard(
        tmp_path / "a.tar", [(name, name.encode("utf-8", "surrogateescape")) for name in names], format=form
    )
    source = open_images(path)
    assert sorted(ids(source)) == sorted(f"a/{name}" for name in names)
    for row, name in enumerate(ids(source)):
        assert source.read(row).data == os.fsencode(name.removeprefix("a/"))
        assert source.sample_name(row).isprintable()


def test_shards_of_webdatasets_own_writer(tmp_path: Path, photos: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    paths = sorted(path for path in photos.rglob("*") if path.is_file())
    for part in range(3):
        with webdataset.TarWriter(str(tmp_path / f"train-{part:06}.tar"), mtime=0) as writer:
            for number, path in enumerate(paths[part::3]):
                data = {path.suffix[1:]: path.read_bytes(), "cls": number % 2, "json": {"a": 1}, "pyd": {"b": 2}}
                writer.write({"__key__": f"{part}/{number:04}", **data})
    source = open_images(tmp_path / "train-{000000..000002}.tar")
    expected = {}
    for path in source.shards.paths:
        with open(path, "rb") as file:
            members = webdataset.tariterators.tar_file_expander([{"url": "", "stream": file}])
            for sample in webdataset.tariterators.group_by_keys(members):
                (end,) = sample.keys() & {"png", "jpg"}
                shard = os.path.basename(os.fsdecode(path)).removesuffix(".tar")
                expected[f"{shard}/{sample['__key__']}.{end}"] = (sample[end], sample["cls"].decode())
    found = {name: (source.read(row).data, source.label_name(row)) for row, name in enumerate(ids(source))}
    assert found == expected
    assert len(found) == 24
    assert source.table.splits.tolist() == [1] * 24
    assert source.ignored == ()


# Extraction


def compare_with_folder(photos: Path, place: Path, *, per_shard: int) -> None:
    extract(photos, place / "folder.h5", backbone="tiny")
    source = open_images(shards_of(photos, place / "shards", per_shard=per_shard) / "*.tar")
    extract(source, place / "shards.h5", backbone="tiny")
    assert by_digest(place / "shards.h5") == by_digest(place / "folder.h5")
    assert len(source) == len(list_images(photos))


@pytest.mark.rotates(3)
def test_features_labels_and_splits_equal_those_of_the_folder(photos: Path, tmp_path: Path) -> None:
    compare_with_folder(photos, tmp_path, per_shard=5)


@pytest.mark.rotates(6)
def test_real_photos_equal_those_of_the_folder(hymenoptera: Path, tmp_path: Path) -> None:
    compare_with_folder(hymenoptera, tmp_path, per_shard=64)


@pytest.mark.rotates(6)
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    shards = shards_of(make_photos(tmp_path / "photos", per_class=100), tmp_path / "shards", per_shard=30)
    out, pattern = tmp_path / "a.h5", shards / "*.tar"
    code = (
        "from precompute import extract; from precompute.inputs.images.formats import IMAGES\n"
        "from precompute.sources.shards import open_shards\n"
        f"extract(open_shards({str(pattern)!r}, IMAGES), {str(out)!r}, backbone='tiny', batch_size=4)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    while not rows_there(tmp_path / "a.h5.partial"):
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    there = rows_there(tmp_path / "a.h5.partial")
    assert 0 < there < 400
    resumed = extract(open_images(pattern), out, backbone="tiny", batch_size=4)
    assert (resumed.reused, resumed.computed) == (there, 400 - there)
    assert verify(open_cache(out)).whole
    extract(open_images(pattern), tmp_path / "whole.h5", backbone="tiny", batch_size=4)
    assert_same(open_cache(out), open_cache(tmp_path / "whole.h5"))
    assert extract(open_images(pattern), out, backbone="tiny", batch_size=4).computed == 0


@pytest.mark.rotates(6)
def test_what_changed_is_computed_and_the_rest_kept(tmp_path: Path) -> None:
    def sample(*seeds: int) -> dict[str, bytes]:
        return {f"{seed % 100}.{end}": data for seed in seeds for end, data in (("cls", b"a"), ("png", picture(seed)))}

    shards, number = tmp_path / "shards", 0

    def sync(reused: int, read: int, computed: int) -> None:
        """The file brought up to date equals a fresh one; so many rows are not even read."""
        nonlocal number
        number += 1
        made = extract(open_images(shards / "*.tar"), tmp_path / "a.h5", backbone="tiny")
        assert (made.reused, made.copied, made.computed) == (reused, read - computed, computed)
        extract(open_images(shards / "*.tar"), tmp_path / f"fresh{number}.h5", backbone="tiny")
        assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / f"fresh{number}.h5"))

    def write(name: str, members: dict[str, bytes]) -> None:
        os.utime(write_shard(shards / f"{name}.tar", members), ns=(0, (number + 1) * LATER))

    write("x-0", sample(1, 2, 3))
    write("x-1", sample(4, 5))
    sync(0, 5, 5)
    sync(5, 0, 0)
    write("x-1", sample(4, 5, 6))  # a sample more: the whole shard is read again, one picture computed
    sync(3, 3, 1)
    write("x-0", sample(1, 102, 3))  # a sample of other bytes
    sync(3, 3, 1)
    write("x-2", sample(7, 1))  # a shard more, with a picture that is known
    sync(6, 2, 1)
    write("x-1", sample(5, 4))  # a sample less, the others elsewhere
    sync(5, 2, 0)
    (shards / "x-2.tar").unlink()
    sync(5, 0, 0)
    (shards / "x-1.tar").rename(shards / "y-1.tar")  # other ids, the same pictures
    sync(3, 2, 0)
    write("x-0", {**sample(1, 102, 3), "1.cls": b"b"})  # a label alone
    sync(2, 3, 0)
    assert open_cache(tmp_path / "a.h5").classes == ("a", "b")


def test_a_rewritten_shard_is_noticed_though_its_members_look_the_same(tmp_path: Path) -> None:
    """Same names, sizes and times of members: the shard's own time tells."""
    path = write_shard(tmp_path / "a.tar", {"1.bmp": b"one", "2.bmp": b"two"})
    os.utime(path, ns=(0, LATER))
    before = open_images(path).table.mtimes
    assert np.array_equal(open_images(path).table.mtimes, before)
    os.utime(path, ns=(0, 2 * LATER))
    assert not np.any(open_images(path).table.mtimes == before)
    assert before[0] != before[1]


# Shards that change or go away


def test_a_shard_that_changes_after_it_was_listed(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", {f"{number}.jpg": b"%d" % number * 600 for number in range(4)})
    source = open_images(path)
    with tarfile.open(path, "a") as tar:  # in place, behind the others: what was listed is still there
        info = tarfile.TarInfo("9.jpg")
        tar.addfile(info)
    os.utime(path, ns=(0, LATER))
    raw = source.read(2)
    assert raw.data == b"2" * 600
    assert raw.mtime != source.table.mtimes[2]
    assert raw.mtime == open_images(path).table.mtimes[2]
    write_shard(path, {"0.jpg": b"0" * 600, "1.jpg": b"1" * 601, "7.jpg": b"2" * 600})
    assert source.read(0).data == b"0" * 600
    for row in (1, 2, 3):  # another size, another name, nothing there
        with pytest.raises(SampleError, match="has changed since it was listed") as caught:
            source.read(row)
        assert caught.value.reason == "UNREADABLE"
    path.write_bytes(b"")
    with pytest.raises(SampleError, match="has changed"):
        source.read(0)


@pytest.mark.rotates(3)
def test_a_shard_that_goes_away_leaves_its_rows_to_the_next_run(photos: Path, tmp_path: Path) -> None:
    shards = shards_of(photos, tmp_path / "shards")
    source = open_images(shards / "*.tar")
    (shards / "val-001.tar").rename(tmp_path / "away.tar")
    result = extract(source, tmp_path / "a.h5", backbone="tiny")
    assert result.failures == {"VANISHED": 5}
    (tmp_path / "away.tar").rename(shards / "val-001.tar")
    again = extract(open_images(shards / "*.tar"), tmp_path / "a.h5", backbone="tiny")
    assert (again.reused, again.computed) == (19, 5)
    assert set(open_cache(tmp_path / "a.h5").status) == {Status.OK}


def test_all_shards_going_away_ends_the_run(photos: Path, tmp_path: Path) -> None:
    shards = shards_of(photos, tmp_path / "shards")
    source = open_images(shards / "*.tar")
    shutil.rmtree(shards)
    assert not source.alive()
    with pytest.raises(SourceError, match="disappeared"):
        extract(source, tmp_path / "a.h5", backbone="tiny")


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def lock_up(path: Path) -> None:
    path.chmod(0)


@pytest.mark.rotates(3)
@pytest.mark.parametrize(
    "harm",
    [
        lose,
        cut,
        replace_by_pipe,
        pytest.param(lock_up, marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")),
    ],
)
def test_rows_of_a_shard_that_cannot_be_listed_are_not_thrown_away(
    photos: Path, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    shards = shards_of(photos, tmp_path / "shards")
    pattern = shards / "{train,val}-{000..002}.tar"
    extract(open_images(pattern), tmp_path / "a.h5", backbone="tiny")
    before = (tmp_path / "a.h5").read_bytes()
    harm(shards / "val-001.tar")
    source = open_images(pattern)
    assert source.gaps == (b"val-001/",)
    assert any("val-001.tar" in line for line in source.ignored)
    with pytest.raises(SourceError, match=r"val-001/ cannot be listed, so the \d rows"):
        extract(source, tmp_path / "a.h5", backbone="tiny")
    assert (tmp_path / "a.h5").read_bytes() == before


@pytest.mark.rotates(3)
def test_many_shards_need_few_descriptors(tmp_path: Path) -> None:
    for number in range(200):
        write_shard(tmp_path / f"{number:03}.tar", {"1.jpg": b"x"})
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from precompute.inputs.images.formats import IMAGES; from precompute.sources.shards import open_shards\n"
        f"source = open_shards({str(tmp_path / '*.tar')!r}, IMAGES)\n"
        "with ThreadPoolExecutor(8) as pool: assert len(list(pool.map(source.read, range(len(source))))) == 200\n"
    )
    done = run_python(code, XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr


# Hostile files


def test_members_that_are_no_files_are_reported(tmp_path: Path) -> None:
    sparse = special("s.jpg", tarfile.REGTYPE, pax_headers={"GNU.sparse.major": "1", "GNU.sparse.name": "s.jpg"})
    members = [
        (special("sym.jpg", tarfile.SYMTYPE, linkname="/etc/passwd"), b""),
        (special("hard.jpg", tarfile.LNKTYPE, linkname="ok.jpg"), b""),
        (special("fifo.jpg", tarfile.FIFOTYPE), b""),
        (special("device.jpg", tarfile.CHRTYPE, devmajor=1, devminor=3), b""),
        (special("odd.jpg", b"Z"), b"odd"),
        (special("folder.jpg/", tarfile.DIRTYPE), b""),
        (sparse, b"1\n0\n512\n"),
        (special("old.jpg", tarfile.GNUTYPE_SPARSE), b"data"),
        ("/etc/absolute.jpg", b"x"),
        ("a/../../up.jpg", b"x"),
        (".hidden.jpg", b"x"),
        ("dir/._mac.jpg", b"x"),
        ("README", b"x"),
        ("n" * 1100 + ".jpg", b"x"),
        (special("x", tarfile.REGTYPE, pax_headers={"path": "nul\0.jpg"}), b"x"),
        ("ok.jpg", b"fine"),
    ]
    source = open_images(write_shard(tmp_path / "a.tar", members))
    assert ids(source) == ["a/ok.jpg"]
    assert source.read(0).data == b"fine"
    assert [line.partition(": ")[0] for line in source.ignored] == [
        "2 hidden",
        "2 links",
        "3 neither file nor folder",
        "2 sparse files",
        "2 with a name of more than 1,024 bytes or with NUL in it",
        "2 with a path that leads out of the shard",
        "1 without an extension",
    ]
    assert source.gaps == ()


def test_sparse_files_of_gnu_tar(tmp_path: Path) -> None:
    if (
        shutil.which("tar") is None
        or b"GNU" not in subprocess.run(["tar", "--version"], check=False, stdout=subprocess.PIPE).stdout
    ):
        pytest.skip("no GNU tar")
    (tmp_path / "ok.jpg").write_bytes(b"fine")
    for parts in (3, 24, 25, 26, 40):  # 4 parts fit into the header, 21 more into each further block
        with (tmp_path / "holes.jpg").open("wb") as file:
            for part in range(parts):
                file.seek(part * 2**20)
                file.write(b"x")
        for form in ("gnu", "pax"):
            command = ["tar", "-Scf", f"{form}.tar", f"--format={form}", "holes.jpg", "ok.jpg"]
            subprocess.run(command, cwd=tmp_path, check=True)
            source = open_images(tmp_path / f"{form}.tar")
            assert ids(source) == [f"{form}/ok.jpg"]
            assert source.read(0).data == b"fine"
            assert [line.partition(": ")[0] for line in source.ignored] == ["1 sparse files"]
            assert source.gaps == ()


def raw_header(name: str, kind: bytes, size: int) -> bytes:
    info = special(name, kind, size=size)
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 512)


OK = raw_header("ok.jpg", tarfile.REGTYPE, 4) + padded(b"fine")
END = b"\0" * 1024
DAMAGE = "damaged shards, used up to the damage"


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_headers_of_hundreds_of_megabytes_take_no_memory(tmp_path: Path, kind: bytes) -> None:
    size = 400 * 2**20
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(raw_header("x", kind, size))
        file.seek(512 + size)
        file.write(raw_header("big.jpg", tarfile.REGTYPE, 4) + padded(b"data") + OK + END)
    tracemalloc.start()
    try:
        source = open_images(tmp_path / "a.tar")
        assert source.read(len(source) - 1).data == b"fine"
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()
    assert ids(source)[-1] == "a/ok.jpg"
    of_all = kind == tarfile.XGLTYPE  # and so not of big.jpg
    assert source.ignored == (() if of_all else ("1 with headers of more than 65,536 bytes: a/big.jpg",))


def chained(count: int) -> bytes:
    return (raw_header("x", tarfile.XHDTYPE, 13) + padded(b"13 path=ab.c\n")) * count


@pytest.mark.parametrize(
    ("middle", "line"),
    [
        (chained(5000), "1 with headers of more than 65,536 bytes: a/ab.c"),
        (raw_header("x", tarfile.XHDTYPE, 60_000) + padded(b"2 " * 30_000), "1 with malformed PAX headers: a/evil.jpg"),
        (raw_header("x", tarfile.XHDTYPE, 60_000) + padded(b"1" * 60_000), "1 with malformed PAX headers: a/evil.jpg"),
        (raw_header("x", tarfile.XHDTYPE, 9) + padded(b"9 path=a\n"), "1 without an extension: a/a"),
        (raw_header("x", tarfile.XHDTYPE, 11) + padded(b"99 path=ab\n"), "1 with malformed PAX headers: a/evil.jpg"),
    ],
    ids=["a chain", "quadratic", "digits", "another name", "a long record"],
)
def test_hostile_headers_cost_the_one_member(tmp_path: Path, middle: bytes, line: str) -> None:
    evil = raw_header("evil.jpg", tarfile.REGTYPE, 4) + padded(b"evil")
    (tmp_path / "a.tar").write_bytes(OK + middle + evil + END)
    source = open_images(tmp_path / "a.tar")
    assert ids(source) == ["a/ok.jpg"]
    assert source.ignored == (line,)


@pytest.mark.parametrize(
    ("behind", "why"),
    [
        (b"", "truncated"),
        (b"x" * 512, "no tar header at byte 1,024"),
        (b"x" * 10, "no tar header at byte 1,024"),
        (raw_header("big.jpg", tarfile.REGTYPE, 2**40) + b"x", "within a member of 1,099,511,627,776 bytes"),
        (raw_header("neg.jpg", tarfile.REGTYPE, -512) + b"x", "a size below zero"),
        (raw_header("x", tarfile.XHDTYPE, 2**40), "within a member"),
        (raw_header("x", tarfile.XHDTYPE, 28) + padded(b"28 size=9999999999999999999\n") + OK, "within a member"),
        (raw_header("x", tarfile.GNUTYPE_SPARSE, 2**40), "within a member"),
        (b"\0" * 1024 + OK + END, "more bytes behind its end"),
        (b"\0" * (2**21), "more bytes behind its end"),
    ],
)
def test_damage_costs_what_lies_behind_it_and_says_so(tmp_path: Path, behind: bytes, why: str) -> None:
    """Standard tarfile takes most of these for the end of the file."""
    (tmp_path / "a.tar").write_bytes(OK + behind)
    source = open_images(tmp_path / "a.tar")
    assert ids(source) == ["a/ok.jpg"]
    assert source.gaps == (b"a/",)
    (line,) = source.ignored
    assert line.startswith(f"1 {DAMAGE}: {tmp_path}/a.tar: ")
    assert why in line


@pytest.mark.rotates(3)
def test_a_shard_cut_anywhere_gives_the_samples_before_the_cut(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", {"1.cls": b"a", "1.jpg": b"x" * 700, "2.jpg": b"y" * 3})
    whole = path.read_bytes()
    ends = {512 * 2 + 512 + 700: 1, 512 * 6 + 3: 2}
    assert whole[512 * 2 + 512 + 699 : 512 * 2 + 512 + 701] == b"x\0"
    for size in range(0, len(whole), 31):
        path.write_bytes(whole[:size])
        expected = max([0, *(count for end, count in ends.items() if size >= end)])
        if not expected:
            with pytest.raises(SourceError, match="holds no images"):
                open_images(path)
            continue
        source = open_images(path)
        assert len(source) == expected
        assert bool(source.gaps) == (size < 8 * 512)  # the first block of zeros ends it
        assert [source.read(row).size for row in range(expected)] == [700, 3][:expected]


@pytest.mark.rotates(3)
@given(edits=st.lists(st.tuples(st.integers(0, 8 * 512 - 1), st.integers(0, 255)), min_size=1, max_size=12))
@settings(max_examples=300)
def test_no_damage_is_more_than_an_error_or_a_line(edits: list[tuple[int, int]], tmp_path_factory: Any) -> None:
    place = tmp_path_factory.getbasetemp() / "damaged"
    long = {"long" * 60 + ".jpg": b"z"}
    path = write_shard(place / "a.tar", {"1.cls": b"a", "1.jpg": b"x" * 700, **long}, format=tarfile.PAX_FORMAT)
    data = bytearray(path.read_bytes())
    for offset, value in edits:
        data[offset] = value
    path.write_bytes(data)
    try:
        source = open_images(path)
    except SourceError:
        return
    for row in range(len(source)):
        assert len(source.read(row).data) == source.table.sizes[row]


@pytest.mark.parametrize(
    ("compress", "name"),
    [
        (gzip.compress, "gzip"),
        (bz2.compress, "bzip2"),
        (lzma.compress, "xz"),
        (lambda x: b"\x28\xb5\x2f\xfd" + x, "zstd"),
    ],
)
def test_a_compressed_shard_is_refused(tmp_path: Path, compress: Callable[[bytes], bytes], name: str) -> None:
    (tmp_path / "a.tar.gz").write_bytes(compress(OK + END))
    with pytest.raises(SourceError, match=rf"compressed \({name}\).*\n.*Unpack"):
        open_images(tmp_path / "*.gz")


@pytest.mark.parametrize(
    "pattern",
    [
        "pipe:touch ran",
        "pipe:touch ran; cat {0..3}.tar",
        "https://x.org/a-{0..3}.tar",
        "s3://secret:secret@b/a.tar",
        "file:///a",
    ],
)
def test_commands_and_addresses_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.chdir(tmp_path)
    for asked in (pattern, ["a.tar", pattern]):
        with pytest.raises(SourceError, match="read from files|without user, password") as caught:
            open_images(asked)
        assert "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("none.tar", "none.tar does not exist"),
        ("none-*.tar", "matches no file"),
        ("none-{0..1}.tar", "2 shards that do not exist"),
        ("", "does not exist"),
        ("folder", r"is a folder.*\n.*folder/\*.tar"),
        ("empty.tar", "it is empty"),
        ("text.tar", "no tar header at byte 0"),
        ("fifo.tar", "not an ordinary file"),
        ("zeros.tar", "holds no images"),
        ("a\0.tar", "NUL"),
        ([], "holds no images"),
        (["ok.tar", "./ok.tar"], "named twice"),
        ("{ok,ok}.tar", "named twice"),
    ],
)
def test_patterns_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: Any, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.tar").touch()
    (tmp_path / "text.tar").write_bytes(b"path,label\n" * 100)
    (tmp_path / "zeros.tar").write_bytes(END)
    (tmp_path / "ok.tar").write_bytes(OK + END)
    os.mkfifo(tmp_path / "fifo.tar")
    with pytest.raises(SourceError, match=said):
        open_images(pattern)


def test_ids_that_come_twice_are_refused_with_both_places(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", {"b/1.jpg": b"x", "2.jpg": b"x"})
    write_shard(tmp_path / "a/b.tar", {"1.jpg": b"y"})
    with pytest.raises(SourceError, match=rf"id a/b/1.jpg: one in {tmp_path}/a.tar, one in {tmp_path}/a/b.tar"):
        open_images(tmp_path / "**/*.tar")
    for name in ("1.jpg", "1.cls"):
        members = [(name, b"x"), ("2.jpg", b"y"), (f"./{name}", b"z")]
        with pytest.raises(SourceError, match=r"twice, at byte 0 and at byte 2,048"):
            open_images(write_shard(tmp_path / "twice.tar", members))


def test_a_picture_of_more_than_a_gigabyte_is_a_failed_sample(tmp_path: Path) -> None:
    size = 2**30 + 1
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(OK + raw_header("zbig.jpg", tarfile.REGTYPE, size))
        file.seek(1024 + 512 + size + 511 & ~511)
        file.write(END)
    source = open_images(tmp_path / "a.tar")
    assert ids(source) == ["a/ok.jpg", "a/zbig.jpg"]
    with pytest.raises(SampleError, match="1,073,741,825 bytes") as caught:
        source.read(1)
    assert caught.value.reason == "UNREADABLE"


def test_a_shard_cut_short_after_it_was_listed_takes_no_memory(tmp_path: Path) -> None:
    size = 900 * 2**20
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(raw_header("big.jpg", tarfile.REGTYPE, size))
        file.seek(512 + size)
        file.write(END)
    source = open_images(tmp_path / "a.tar")
    os.truncate(tmp_path / "a.tar", 4096)
    tracemalloc.start()
    try:
        with pytest.raises(SampleError, match="has changed"):
            source.read(0)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


def test_a_signal_ends_the_listing(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", {f"{number}.jpg": b"x" for number in range(2000)})
    asked = 0

    def stop() -> int:
        nonlocal asked
        asked += 1
        return signal.SIGINT if asked == 4 else 0

    with pytest.raises(Stopped) as caught:
        open_images(tmp_path / "a.tar", stop=stop)
    assert caught.value.exit_code == 130
    assert open_images(tmp_path / "a.tar", stop=lambda: 0).table.ids.shape == (2000,)


# Kept indexes


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A shard whose index is kept."""
    return write_shard(tmp_path / "a.tar", {f"{number}.jpg": b"x" for number in range(tar_index.KEPT_FROM)})


def test_a_kept_index_is_used_while_the_shard_looks_the_same_and_each_member_is_proved(large: Path, kept: Path) -> None:
    source, status = open_images(large), large.stat()
    (place,) = kept.iterdir()
    assert place.stat().st_mode & 0o777 == 0o600
    data = bytearray(large.read_bytes())
    data[0:512] = raw_header("z.jpg", tarfile.REGTYPE, 1)  # another member, and nothing of the file tells
    large.write_bytes(data)
    os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = open_images(large)
    assert ids(again) == ids(source)
    with pytest.raises(SampleError, match="has changed"):
        again.read(ids(again).index("a/0.jpg"))
    assert again.read(ids(again).index("a/1.jpg")).data == b"x"
    os.utime(large)
    assert "a/z.jpg" in ids(open_images(large))


def test_the_index_of_a_damaged_shard_is_not_kept(tmp_path: Path, kept: Path) -> None:
    path = write_shard(tmp_path / "a.tar", {f"{number}.jpg": b"x" for number in range(2 * tar_index.KEPT_FROM)})
    os.truncate(path, path.stat().st_size - 12_000)
    first, again = open_images(path), open_images(path)
    assert len(first) > tar_index.KEPT_FROM
    assert first.gaps == again.gaps == (b"a/",)
    assert first.ignored == again.ignored
    assert not kept.exists()


def test_small_shards_keep_none(tmp_path: Path, kept: Path) -> None:
    open_images(write_shard(tmp_path / "a.tar", {"1.jpg": b"x"}))
    assert not kept.exists()


def harmed_indexes() -> list[Callable[[Path], object]]:
    def flip(place: Path) -> None:
        data = bytearray(place.read_bytes())
        data[len(data) // 2] ^= 1
        place.write_bytes(data)

    def pickled(place: Path) -> None:
        content = io.BytesIO()
        np.savez(content, **{name: np.array([{}], dtype=object) for name in (*tar_index.COLUMNS, "about")})
        place.write_bytes(kept_files._digest(content.getvalue()) + content.getvalue())

    def pipe(place: Path) -> None:
        place.unlink()
        os.mkfifo(place)

    def link(place: Path) -> None:
        place.rename(place.with_name("other"))
        place.symlink_to(place.with_name("other"))

    return [
        flip,
        pickled,
        pipe,
        link,
        lambda place: place.write_bytes(b""),
        lambda place: os.truncate(place, 100),
        lambda place: place.write_bytes(kept_files._digest(b"x") + b"x"),
    ]


@pytest.mark.parametrize("harm", harmed_indexes(), ids=lambda harm: harm.__name__)
def test_an_index_that_is_not_whole_is_made_again(large: Path, kept: Path, harm: Callable[[Path], object]) -> None:
    expected = open_images(large).table
    (place,) = kept.iterdir()
    harm(place)
    found = open_images(large).table
    assert np.array_equal(found.ids, expected.ids)
    assert np.array_equal(found.mtimes, expected.mtimes)
    assert place.is_file() and not place.is_symlink()
    assert (
        tar_index._load(place.stem, tar_index._about(os.fsencode(large), _state(large.stat()), IMAGES, ())) is not None
    )


def test_a_cache_folder_that_cannot_be_written_is_no_error(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(open_images(large)) == tar_index.KEPT_FROM


def test_the_indexes_used_longest_ago_leave(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_index, "KEPT_FROM", 1)
    for number in range(6):
        open_images(write_shard(tmp_path / f"{number}.tar", {"1.jpg": b"x"}))
    for place in kept.iterdir():
        os.utime(place, (0, 0))
    open_images(tmp_path / "3.tar")
    (used,) = (place for place in kept.iterdir() if place.stat().st_mtime)
    dataclasses.replace(tar_index.INDEXES, total=2 * used.stat().st_size).drop_oldest()
    assert len(list(kept.iterdir())) <= 2
    assert used.exists()


def test_find_shards_of_nothing_that_exists(tmp_path: Path) -> None:
    found = find_shards(str(tmp_path / "d-{0..2}.tar"))
    assert [found.name(path) for path in found.paths] == [b"d-0", b"d-1", b"d-2"]
