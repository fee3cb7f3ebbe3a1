"""Tables and lists of files: the same rows as from a folder, through kills and changes; and none that lies."""

from __future__ import annotations

import codecs
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Command, list_images, make_image, make_photos
from contracts import SourceContract
from forks import Forks
from hypothesis import given
from hypothesis import strategies as st
from listings import FORMS, TABLES, Row, needs_pyarrow, rows_of_folder, write_listing
from test_extraction import assert_same

from precompute import extract, open_cache
from precompute.cache import Status
from precompute.errors import CacheFormatError, SourceError, Stopped, UsageError
from precompute.inputs.images.formats import IMAGES
from precompute.sources import entries, further
from precompute.sources.base import Reading, Source
from precompute.sources.labels import SPLIT_NAMES
from precompute.sources.registry import open_source

pytestmark = pytest.mark.usefixtures("tiny_made_once")


def listed(listing: Path, /, *, root: Path | None = None, limit: int | None = None, **columns: str) -> Source:
    return open_source(listing, IMAGES, reading=Reading.of(root, columns), limit=limit)


def labels_of(source: Source) -> list[str | None]:
    return [source.label_name(row) for row in range(len(source))]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return request.param


class TestContract(SourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path, form: str) -> Source:
        photos = make_photos(tmp_path / "photos")
        return listed(write_listing(photos / f"all.{form}", rows_of_folder(photos)))


def test_the_rows_are_those_of_the_folder_byte_for_byte(photos: Path, tmp_path: Path, form: str) -> None:
    listing = write_listing(tmp_path / f"all.{form}", rows_of_folder(photos))
    extract(photos, tmp_path / "folder.h5", backbone="tiny")
    made = extract(listing, tmp_path / "a.h5", backbone="tiny", root=str(photos))
    assert made.computed == 24
    cache, folder = open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "folder.h5")
    assert cache.ids == folder.ids
    assert cache.features().tobytes() == folder.features().tobytes()
    if form == "txt":
        assert (cache.classes, set(cache.labels), set(cache.split)) == ((), {-1}, {"none"})
    else:
        assert_same(cache, folder)
    again = extract(listing, tmp_path / "a.h5", backbone="tiny", root=str(photos))
    assert (again.computed, again.reused) == (0, 24)


def test_a_limit_gives_the_rows_that_the_folder_gives(photos: Path, tmp_path: Path, form: str) -> None:
    source = listed(write_listing(tmp_path / f"all.{form}", rows_of_folder(photos)), root=photos, limit=5)
    folder = list_images(photos, limit=5)
    assert source.table.ids.tolist() == folder.table.ids.tolist()
    if form != "txt":
        assert (source.table.classes, labels_of(source)) == (folder.table.classes, labels_of(folder))
        assert source.table.splits.tolist() == folder.table.splits.tolist()


class Killed:
    """Photos, a table of them, and the file that a run makes of it which nobody interrupts."""

    def __init__(self, place: Path, forks: Forks) -> None:
        self.place, self.forks = place, forks
        make_photos(place / "photos", per_class=50)

    def command(self, form: str, out: str) -> list[object]:
        how = ["--root", "photos", "-b", "tiny", "--batch-size", 4, "--json"]
        return ["extract", f"all.{form}", *how, "-o", out]

    def rows_done(self, path: Path) -> int:
        try:
            return int(open_cache(path).ok.sum())
        except CacheFormatError:  # not there yet
            return 0


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Killed:
    return Killed(tmp_path_factory.mktemp("killed"), forks)


@pytest.mark.rotates(5)
def test_a_killed_run_goes_on_where_it_was(killed: Killed, forks: Forks, form: str) -> None:
    place = killed.place
    write_listing(place / f"all.{form}", rows_of_folder(place / "photos"))
    assert forks.run(place, *killed.command(form, f"whole-{form}.h5")) == 0, forks.errors.read_text()
    out = place / f"{form}.h5"
    partial = out.with_name(f"{out.name}.partial")
    process = forks.start(place, *killed.command(form, out.name))
    deadline = time.monotonic() + 60
    while killed.rows_done(partial) < 12 and not out.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    assert forks.wait(process) == -signal.SIGKILL
    kept = killed.rows_done(partial)
    assert 12 <= kept < 200
    assert forks.run(place, *killed.command(form, out.name)) == 0, forks.errors.read_text()
    assert json.loads(forks.output.read_text())["reused"] == kept
    assert_same(open_cache(out), open_cache(place / f"whole-{form}.h5"))


def test_after_adding_editing_deleting_and_renaming_the_file_is_as_a_fresh_one(
    photos: Path, tmp_path: Path, form: str
) -> None:
    listing = write_listing(tmp_path / f"all.{form}", rows_of_folder(photos))
    extract(listing, tmp_path / "a.h5", backbone="tiny", root=str(photos))
    make_image(100).save(photos / "train/cats/new.png")
    make_image(101).save(photos / "val/dogs/1.png")
    (photos / "train/dogs/0.jpg").unlink()
    (photos / "train/dogs/1.png").rename(photos / "train/dogs/renamed.png")
    shutil.copyfile(photos / "val/cats/2.jpg", photos / "val/cats/copy.jpg")
    write_listing(listing, rows_of_folder(photos))
    found = extract(listing, tmp_path / "a.h5", backbone="tiny", root=str(photos))
    assert (found.computed, found.copied, found.dropped) == (2, 2, 2)
    extract(listing, tmp_path / "fresh.h5", backbone="tiny", root=str(photos))
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "fresh.h5"))


@pytest.mark.parametrize("form", TABLES)
def test_other_labels_splits_and_ids_cost_no_forward_pass(photos: Path, tmp_path: Path, form: str) -> None:
    rows = rows_of_folder(photos)
    listing = write_listing(photos / f"all.{form}", rows)
    extract(listing, tmp_path / "a.h5", backbone="tiny")
    changed = [{**row, "label": "mammal", "split": ""} for row in rows]
    write_listing(listing, changed)
    relabelled = extract(listing, tmp_path / "a.h5", backbone="tiny")
    assert (relabelled.computed, relabelled.reused) == (0, 24)
    assert open_cache(tmp_path / "a.h5").classes == ("mammal",)
    write_listing(listing, [{**row, "id": str(number)} for number, row in enumerate(changed[1:])])
    with pytest.raises(UsageError, match="None of the 24 samples"):
        extract(listing, tmp_path / "a.h5", backbone="tiny")
    renamed = extract(listing, tmp_path / "a.h5", backbone="tiny", overwrite=True)
    assert (renamed.computed, renamed.copied) == (0, 23)


@pytest.mark.parametrize("form", TABLES)
def test_one_file_may_be_several_samples_and_is_computed_once(photos: Path, tmp_path: Path, form: str) -> None:
    path = "train/cats/0.jpg"
    rows = [{"path": path, "id": name, "label": name[0]} for name in ("b2", "a1", "b1")]
    result = extract(write_listing(photos / f"all.{form}", rows), tmp_path / "a.h5", backbone="tiny")
    assert (result.computed, result.copied) == (1, 2)
    cache = open_cache(tmp_path / "a.h5")
    assert (cache.ids, cache.classes, cache.labels.tolist()) == (["a1", "b1", "b2"], ("a", "b"), [0, 1, 1])


def test_a_file_that_is_not_there_keeps_its_row_and_is_reported(photos: Path, tmp_path: Path, form: str) -> None:
    listing = write_listing(photos / f"all.{form}", rows_of_folder(photos))
    lost, last = photos / "train/cats/0.jpg", photos / "val/dogs/5.png"
    away = shutil.move(lost, tmp_path / "away.jpg")
    last.unlink()
    last.symlink_to("nowhere")
    made = extract(listing, tmp_path / "a.h5", backbone="tiny")
    assert (made.rows, made.computed, made.failures) == (24, 22, {"VANISHED": 2})
    assert [name for name, _, _ in made.failed] == ["train/cats/0.jpg", "val/dogs/5.png"]
    cache = open_cache(tmp_path / "a.h5")
    assert np.isnan(cache.features()[0]).all() and cache.status[0] == Status.VANISHED
    again = extract(listing, tmp_path / "a.h5", backbone="tiny")
    assert (again.reused, again.computed, again.failures) == (22, 0, {"VANISHED": 2})
    shutil.move(away, lost)
    found = extract(listing, tmp_path / "a.h5", backbone="tiny")
    assert (found.computed, found.failures) == (1, {"VANISHED": 1})


def test_files_and_the_folder_that_go_away_after_the_listing(photos: Path, tmp_path: Path, form: str) -> None:
    listing = write_listing(tmp_path / f"all.{form}", rows_of_folder(photos))
    source = listed(listing, root=photos)
    assert source.alive()
    (photos / "train/cats/0.jpg").unlink()
    (photos / "train/cats/2.jpg").unlink()
    os.mkfifo(photos / "train/cats/2.jpg")
    made = extract(source, tmp_path / "a.h5", backbone="tiny")
    assert made.failures == {"VANISHED": 1, "UNREADABLE": 1}
    photos.rename(tmp_path / "away")
    assert not source.alive()
    with pytest.raises(SourceError, match="disappeared"):
        extract(source, tmp_path / "b.h5", backbone="tiny")
    with pytest.raises(SourceError, match=r"photos cannot be read: No such file"):
        listed(listing, root=photos)
    photos.mkdir()
    with pytest.raises(SourceError, match=r"None of the 24 files that .* names is there") as caught:
        extract(listing, tmp_path / "a.h5", backbone="tiny", root=str(photos))
    assert "--root" in caught.value.hint
    assert int(open_cache(tmp_path / "a.h5").ok.sum()) == 22


def test_a_lost_permission_throws_no_row_away(form: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        photos = make_photos(Path(place) / "photos")
        listing = write_listing(photos / f"all.{form}", rows_of_folder(photos))
        out = Path(place) / "a.h5"
        extract(listing, out, backbone="tiny")
        before = out.read_bytes()
        for path in (Path(place), photos, out):
            path.chmod(0o755)
        (photos / "val/cats").chmod(0)
        me = os.geteuid()
        if me == 0:
            os.seteuid(65534)  # root may read everything; nobody may not
        try:
            source = listed(listing)
        finally:
            os.seteuid(me)
            (photos / "val/cats").chmod(0o755)
        assert source.unseen == tuple(range(12, 18))
        with pytest.raises(SourceError, match=r"val/cats/0.jpg cannot be looked at, .* would be discarded, and 5 more"):
            extract(source, out, backbone="tiny")
        assert out.read_bytes() == before
        assert extract(source, out, backbone="tiny", overwrite=True).rows == 24
        (photos / "val/dogs/0.jpg").unlink()
        assert listed(listing).unseen == ()


NAMES = [
    "with, comma.jpg",
    'with "quotes".jpg',
    "tab\t.jpg",
    "\u202egpj.jpg",
    " blank .jpg",
    "größe.jpg",
    "-x.jpg",
    "..a.jpg",
]


def test_hostile_names_keep_their_bytes(tmp_path: Path, form: str) -> None:
    names = [*NAMES, *([] if form == "txt" else ["line\nbreak.jpg", "re\rturn.jpg"])]
    for number, name in enumerate(names):
        make_image(number).save(tmp_path / name)
    source = listed(write_listing(tmp_path / f"all.{form}", [{"path": name} for name in names]))
    assert source.table.ids.tolist() == sorted(map(os.fsencode, names))
    for row, name in enumerate(sorted(map(os.fsencode, names))):
        assert source.read(row).data == (tmp_path / os.fsdecode(name)).read_bytes()
        assert source.sample_name(row).isprintable()


@pytest.mark.parametrize("form", TABLES)
def test_ids_and_labels_stay_strings(photos: Path, form: str) -> None:
    path = "train/cats/0.jpg"
    rows = [{"path": path, "id": name, "label": label} for name, label in [("007", "01"), ("7", "1"), ("1e3", "")]]
    source = listed(write_listing(photos / f"all.{form}", rows))
    assert source.table.ids.tolist() == [b"007", b"1e3", b"7"]
    assert source.table.classes == (b"01", b"1")
    assert labels_of(source) == ["01", None, "1"]


@pytest.mark.parametrize("form", TABLES)
def test_every_split_that_the_folder_knows_is_known(photos: Path, form: str) -> None:
    names = [name.decode() for name in SPLIT_NAMES]
    path = "train/cats/0.jpg"
    rows = [{"path": path, "id": f"{n:03}", "split": name.upper()} for n, name in enumerate([*names, ""])]
    source = listed(write_listing(photos / f"all.{form}", rows))
    assert source.table.splits.tolist() == [*SPLIT_NAMES.values(), 0]


@pytest.mark.parametrize("form", TABLES)
def test_columns_have_the_names_that_are_asked_for(photos: Path, tmp_path: Path, form: str) -> None:
    rows = [
        {"label": "wrong", "file": row["path"], "key": f"k{n:02}", "species": row["label"], "fold": row["split"]}
        for n, row in enumerate(rows_of_folder(photos))
    ]
    listing = write_listing(tmp_path / f"all.{form}", rows)
    source = listed(listing, root=photos, path="file", id="key", label="species", split="fold")
    assert source.table.ids.tolist() == [row["key"].encode() for row in rows]
    assert labels_of(source) == [row["species"] for row in rows]
    assert set(source.table.splits.tolist()) == {1, 2}
    assert labels_of(listed(listing, root=photos, path="file", id="file")) == ["wrong"] * 24
    with pytest.raises(SourceError, match=r"no column 'path'; its columns are: label, file, key, species, fold"):
        listed(listing, root=photos)
    with pytest.raises(SourceError, match=r"no column 'speices'") as caught:
        listed(listing, root=photos, path="file", label="speices")
    assert "--label-column" in caught.value.hint


def test_paths_may_be_absolute_or_roundabout_inside_the_root(photos: Path, form: str) -> None:
    names = [f"{photos}/train/cats/0.jpg", "./train/cats/1.png", "train//cats/2.jpg", "train/dogs/../cats/3.png"]
    source = listed(write_listing(photos / f"all.{form}", [{"path": name} for name in names]))
    assert source.table.ids.tolist() == sorted(map(os.fsencode, names))
    files = {f"train/cats/{number}": (photos / f"train/cats/{number}").read_bytes() for number in ("0.jpg", "1.png")}
    assert {source.read(row).data for row in range(4)} > set(files.values())


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "a/../../b.jpg", "..", "//etc/passwd", "./../x"])
def test_a_path_that_leads_out_is_refused(tmp_path: Path, form: str, path: str) -> None:
    root = make_photos(tmp_path / "photos")
    listing = write_listing(root / f"all.{form}", [{"path": "train/cats/0.jpg"}, {"path": path}])
    with pytest.raises(SourceError, match=rf"(line|row) \d leads out of .*photos: '{path}'") as caught:
        listed(listing)
    assert "--root" in caught.value.hint


def test_a_link_is_followed_and_its_parent_is_not(tmp_path: Path, form: str) -> None:
    """As a folder does: a link leads anywhere. But `link/..` is the folder of the link, not that of its target."""
    elsewhere = make_photos(tmp_path / "elsewhere")
    make_image(7).save(tmp_path / "secret.jpg")
    root = tmp_path / "root"
    root.mkdir()
    make_image(8).save(root / "secret.jpg")
    (root / "link").symlink_to(elsewhere)
    (root / "one.jpg").symlink_to(elsewhere / "val/dogs/0.jpg")
    names = ["link/train/cats/0.jpg", "link/../secret.jpg", "one.jpg"]
    source = listed(write_listing(root / f"all.{form}", [{"path": name} for name in names]))
    found = {bytes(name): source.read(row).data for row, name in enumerate(source.table.ids)}
    assert found[b"link/train/cats/0.jpg"] == (elsewhere / "train/cats/0.jpg").read_bytes()
    assert found[b"one.jpg"] == (elsewhere / "val/dogs/0.jpg").read_bytes()
    assert found[b"link/../secret.jpg"] == (root / "secret.jpg").read_bytes()


LONG = "x" * 65 * 1024


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"path": "a.jpg"}, {"path": "a.jpg"}], r"the id 'a.jpg' in (lines 2 and 3|rows 1 and 2)"),
        ([{"path": "a.jpg", "id": "1"}, {"path": "b.jpg", "id": "1"}], r"the id '1' in (lines 2 and 3|rows 1 and 2)"),
        ([{"path": "a.jpg", "id": ""}], "has an empty id"),
        ([{"path": "", "id": "1"}], "has an empty path"),
        ([{"path": LONG}], r"(has a path of|has a string of) 66,560 bytes, more than 4,096"),
        ([{"path": "a.jpg", "id": LONG}], r"(has an? id of|has a string of) 66,560 bytes"),
        ([{"path": "a.jpg", "label": LONG}], r"(has a label of|has a string of) 66,560 bytes"),
        ([{"path": "a.jpg", "split": LONG}], r"(has the split 'x+\.\.\.', which|has a string of 66,560 bytes)"),
        ([{"path": "a.jpg", "split": "trian"}], r"(line 2|row 1) has the split 'trian', which is none"),
        ([{"path": "a\0.jpg"}], "NUL"),
        ([{"path": "a.jpg", "label": "x\0"}], "NUL"),
    ],
    ids=[
        "paths",
        "ids",
        "no id",
        "no path",
        "long path",
        "long id",
        "long label",
        "long split",
        "split",
        "nul",
        "nul 2",
    ],
)
@pytest.mark.parametrize("form", TABLES)
def test_a_bad_row_is_named(tmp_path: Path, form: str, rows: list[Row], message: str) -> None:
    make_image(1).save(tmp_path / "a.jpg")
    with pytest.raises(SourceError, match=message) as caught:
        listed(write_listing(tmp_path / f"all.{form}", rows))
    assert f"all.{form}" in caught.value.message
    assert caught.value.hint
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"path,label\n", "names no images"),
        (b"path,label\n\n\n", "names no images"),
        (b"file,label\na.jpg,x\n", "no column 'path'"),
        (b"path,path\na.jpg,a.jpg\n", "2 columns 'path'"),
        (b"path,label\na.jpg\n", "line 2 has 1 fields, and the header has 2"),
        (b"path,label\na.jpg,x\nb, c.jpg,x\n", "line 3 has 3 fields, and the header has 2"),
        ("path,label\na.jpg,größe\n".encode("latin-1"), "line 2 is not UTF-8: byte 0xf6 at place 9"),
        ("path,label\na.jpg,x\n".encode("utf-16"), r"line 1 (is not UTF-8|holds a NUL)"),
        (b"path,label\na.jpg,x\0y\n", "line 2 holds a NUL"),
        (b'path,label\na.jpg,"x\nb.jpg,y\n', r"line 3: unexpected end of data"),
        (b'path,label\n"a"b.jpg,x\n', r"line 2: ',' expected after '\"'"),
        (b'path,label\n"' + b"a" * 200_000 + b'",x\n', "line 2: field larger than field limit"),
    ],
)
def test_a_csv_that_is_none_is_refused_with_the_line(tmp_path: Path, content: bytes, message: str) -> None:
    make_image(1).save(tmp_path / "a.jpg")
    (tmp_path / "all.csv").write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        listed(tmp_path / "all.csv")
    assert "all.csv" in caught.value.message
    assert caught.value.hint


def test_a_bad_table_changes_nothing_of_a_finished_file(photos: Path, tmp_path: Path, precompute: Command) -> None:
    listing = write_listing(photos / "all.csv", rows_of_folder(photos))
    extract(listing, tmp_path / "a.h5", backbone="tiny")
    before = (tmp_path / "a.h5").read_bytes()
    listing.write_text("path,label\n../../etc/passwd,x\n")
    done = precompute("extract", listing, "-b", "tiny", "-o", "a.h5", "--overwrite", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["type"] == "SourceError"
    assert (tmp_path / "a.h5").read_bytes() == before
    assert {path.name for path in tmp_path.glob("a.h5*")} <= {"a.h5", "a.h5.precompute.lock"}


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_are_named(tmp_path: Path, separator: str) -> None:
    (tmp_path / "a.csv").write_text(f"path{separator}label\nx.png{separator}a\n")
    with pytest.raises(SourceError, match="has one column") as caught:
        listed(tmp_path / "a.csv")
    assert repr(separator) in caught.value.hint


@pytest.mark.parametrize(
    "address", ["s3://KEY:hush@bucket/1.png", "https://b.s3.amazonaws.com/1.png?X-Amz-Signature=hush"]
)
@pytest.mark.parametrize("root", [None, "s3://bucket"])
def test_an_address_with_a_secret_is_refused_and_not_shown(tmp_path: Path, address: str, root: str | None) -> None:
    (tmp_path / "a.csv").write_text(f"path\n1.png\n{address}\n")
    with pytest.raises(SourceError, match="line 3 holds an invalid address") as caught:
        open_source(tmp_path / "a.csv", IMAGES, reading=Reading.of(root, {}))
    assert "hush" not in str(caught.value)


def test_an_address_below_a_folder_says_how_to_name_the_root(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path\ns3://bucket/1.png\n")
    with pytest.raises(SourceError, match="line 2 holds an address that begins with s3://") as caught:
        listed(tmp_path / "a.csv")
    assert "--root PROTOCOL://BUCKET/PREFIX" in caught.value.hint


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("form", ["csv", "tsv", "txt"])
def test_a_byte_order_mark_and_the_line_ends_of_windows(photos: Path, form: str, ends: str) -> None:
    listing = write_listing(photos / f"all.{form}", rows_of_folder(photos))
    plain = listed(listing).table
    content = listing.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", ends.encode())
    listing.write_bytes(codecs.BOM_UTF8 + content)
    table = listed(listing).table
    assert table.ids.tolist() == plain.ids.tolist()
    assert table.labels.tolist() == plain.labels.tolist()


@pytest.mark.parametrize(("content", "message"), [(b"", "names no images"), (b"\n\n", "names no images")])
def test_a_list_of_nothing_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "all.txt").write_bytes(content)
    with pytest.raises(SourceError, match=message):
        listed(tmp_path / "all.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a.jpg\n\xe9.jpg\n", "line 2 is not UTF-8"),
        (b"a.jpg\n\nb\0.jpg", "line 3 holds a NUL"),
        (b"a.jpg\nb.jpg\na.jpg\n", "the id 'a.jpg' in lines 1 and 3"),
        (LONG.encode(), "line 1 has a path of 66,560 bytes"),
        (b"x" * (16 * 2**20 + 1), "line 1 is longer than 16,777,216 bytes"),
    ],
    ids=["latin-1", "nul", "twice", "65 KB", "no line ends"],
)
def test_a_list_that_is_none_is_refused_with_the_line(tmp_path: Path, content: bytes, message: str) -> None:
    make_image(1).save(tmp_path / "a.jpg")
    (tmp_path / "all.txt").write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        listed(tmp_path / "all.txt")
    assert caught.value.hint


def test_what_is_no_ordinary_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "all.csv")
    with pytest.raises(SourceError, match="not an ordinary file"):
        listed(tmp_path / "all.csv")
    with pytest.raises(SourceError, match="does not exist"):
        listed(tmp_path / "other.csv")


def test_one_long_name_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(further, "PADDED_BYTES", 2**20)
    rows = [{"path": f"{number}.jpg"} for number in range(1000)]
    with pytest.raises(SourceError, match="the longest of 4,000 bytes and most far shorter"):
        listed(write_listing(tmp_path / "all.csv", [*rows, {"path": "x" * 4000}]))


@pytest.mark.skipif(not os.path.exists("/proc/self/mountinfo"), reason="no /proc/self/mountinfo")
def test_a_pseudo_file_system_is_no_root(tmp_path: Path, form: str) -> None:
    listing = write_listing(tmp_path / f"all.{form}", [{"path": "version"}])
    with pytest.raises(SourceError, match=r"pseudo file system \(proc\)"):
        listed(listing, root=Path("/proc"))


def test_the_output_is_never_the_table_or_a_file_that_it_names(
    photos: Path, tmp_path: Path, form: str, precompute: Command
) -> None:
    rows = [*rows_of_folder(photos), {"path": "made-later", "label": "x", "split": ""}]
    listing = write_listing(photos / f"all.{form}", rows)
    for out in (listing, photos / "val/cats/0.jpg", photos / "made-later"):
        before = out.read_bytes() if out.exists() else None
        done = precompute("extract", listing, "-b", "tiny", "-o", out, "--overwrite")
        assert done.returncode == 2
        assert "is one of the samples of the source" in done.stderr
        assert (out.read_bytes() if out.exists() else None) == before
    assert not listed(listing).reads(str(photos / "other.h5"))


def test_a_listing_stops_when_asked(photos: Path, form: str) -> None:
    listing = write_listing(photos / f"all.{form}", rows_of_folder(photos))
    with pytest.raises(Stopped) as caught:
        open_source(listing, IMAGES, stop=lambda: signal.SIGTERM)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert len(open_source(listing, IMAGES, stop=lambda: 0)) == 24


def from_stdin(place: Path, content: bytes, *options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "precompute", "extract", "-", "-b", "tiny", *map(str, options)],
        input=content,
        capture_output=True,
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
        check=False,
    )


@pytest.mark.rotates(6)
def test_a_list_on_standard_input(photos: Path, tmp_path: Path) -> None:
    names = [f"photos/{row['path']}" for row in rows_of_folder(photos)]
    content = "".join(f"{name}\n" for name in names).encode()
    done = from_stdin(tmp_path, content, "-o", "a.h5")
    assert done.returncode == 0, done.stderr
    extract(photos, tmp_path / "folder.h5", backbone="tiny")
    cache, folder = open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "folder.h5")
    assert cache.ids == sorted(names) == [f"photos/{name}" for name in folder.ids]
    assert cache.features().tobytes() == folder.features().tobytes()
    again = from_stdin(tmp_path, content, "-o", "a.h5", "--json")
    assert json.loads(again.stdout)["reused"] == 24
    empty = from_stdin(tmp_path, b"", "-o", "b.h5")
    assert empty.returncode == 1
    assert b"standard input names no images" in empty.stderr


def test_a_list_of_any_name_behind_an_at(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows_of = [f"photos/{row['path']}" for row in rows_of_folder(photos)]
    Path("chosen").write_text("\n".join(rows_of))
    assert open_source("@chosen", IMAGES).table.ids.tolist() == sorted(name.encode() for name in rows_of)


TEXTS = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=9)


@pytest.mark.rotates(3)
@given(st.lists(st.tuples(TEXTS, TEXTS | st.just("")), min_size=1, max_size=9, unique_by=lambda pair: pair[0]))
@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_any_ids_and_labels_come_through(tmp_path_factory: Any, form: str, pairs: list[tuple[str, str]]) -> None:
    place = tmp_path_factory.getbasetemp()
    (place / "one.jpg").write_bytes(b"x")
    rows = [{"id": name, "label": label, "path": "one.jpg"} for name, label in pairs]
    source = listed(write_listing(place / f"any.{form}", rows))
    found = dict(zip((name.decode() for name in source.table.ids.tolist()), labels_of(source), strict=True))
    assert found == {name: label or None for name, label in pairs}
    assert source.table.classes == tuple(sorted({label.encode() for _, label in pairs if label}))


def test_blocks_are_joined_in_the_order_of_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    for module in (entries, *(sys.modules[f"precompute.sources.{name}"] for name in ("table", "file_list", "parquet"))):
        monkeypatch.setattr(module, "BLOCK_ROWS", 7)
    photos = make_photos(tmp_path / "photos")
    source = listed(write_listing(photos / f"all.{form}", rows_of_folder(photos)[::-1]))
    assert source.table.ids.tolist() == list_images(photos).table.ids.tolist()


@needs_pyarrow
class TestParquet:
    def test_nan_is_no_label_and_a_gap_in_a_column(self, photos: Path) -> None:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        paths, numbers = [row["path"] for row in rows_of_folder(photos)][:3], pyarrow.array([1.5, float("nan"), None])
        parquet.write_table(pyarrow.table({"path": paths, "label": numbers, "x": numbers}), photos / "a.parquet")
        source = open_source(photos / "a.parquet", IMAGES, reading=Reading(keep=("x",)))
        assert source.table.classes == (b"1.5",)
        assert np.isnan(source.table.columns["x"]).tolist() == [row != 0 for row in range(3)]

    def write(self, path: Path, /, **columns: Any) -> Path:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(columns), path)
        return path

    def test_numbers_become_strings_and_what_is_null_has_none(self, photos: Path) -> None:
        import pyarrow

        path = self.write(
            photos / "all.parquet",
            path=pyarrow.array(["train/cats/0.jpg"] * 3).dictionary_encode(),
            id=[7, 70, 8],
            label=pyarrow.array(["x", None, "y"], pyarrow.large_string()),
            split=pyarrow.nulls(3),
        )
        source = listed(path)
        assert source.table.ids.tolist() == [b"7", b"70", b"8"]
        assert labels_of(source) == ["x", None, "y"]
        assert not source.table.splits.any()

    def test_only_the_chosen_columns_are_read(self, photos: Path) -> None:
        big = [{"pixels": [1, 2, 3]}] * 2
        path = self.write(
            photos / "all.parquet", path=["train/cats/0.jpg", "train/cats/1.png"], more=big, text=[LONG] * 2
        )
        assert len(listed(path)) == 2

    @pytest.mark.parametrize("values", [[["a.jpg"]], [{"a": "a.jpg"}]], ids=["list", "struct"])
    def test_other_types_are_refused(self, tmp_path: Path, values: list[Any]) -> None:
        with pytest.raises(SourceError, match=r"column 'path' holds (list|struct)"):
            listed(self.write(tmp_path / "all.parquet", path=values))

    def test_bytes_that_are_no_text_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="cannot be read as Parquet"):
            listed(self.write(tmp_path / "all.parquet", path=[b"\xff\xfe"]))

    def test_a_dictionary_that_would_unpack_to_a_great_deal_is_refused(self, tmp_path: Path) -> None:
        import pyarrow

        rows = 200_000
        path = self.write(
            tmp_path / "all.parquet",
            path=pyarrow.DictionaryArray.from_arrays(np.zeros(rows, dtype=np.int32), ["x" * 2**20]),
        )
        assert path.stat().st_size < 2**22
        with pytest.raises(SourceError, match=r"has a string of 1,048,576 bytes"):
            listed(path)

    @pytest.mark.parametrize(
        "damage", [lambda data: b"", lambda data: b"no table", lambda data: data[:-9], lambda data: b""]
    )
    def test_what_is_no_parquet_file_is_refused(self, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
        path = self.write(tmp_path / "all.parquet", path=["a.jpg"])
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(SourceError, match=r"all\.parquet cannot be read as Parquet"):
            listed(path)


def test_without_pyarrow_the_way_to_install_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "all.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match="needs pyarrow") as caught:
        listed(tmp_path / "all.parquet")
    assert "precompute[parquet]" in caught.value.hint


@pytest.mark.slow
def test_real_photos_give_the_rows_of_their_folder(hymenoptera: Path, tmp_path: Path, form: str) -> None:
    extract(hymenoptera, tmp_path / "folder.h5", backbone="tiny")
    listing = write_listing(tmp_path / f"all.{form}", rows_of_folder(hymenoptera))
    extract(listing, tmp_path / "a.h5", backbone="tiny", root=str(hymenoptera))
    cache, folder = open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "folder.h5")
    assert cache.ids == folder.ids
    assert cache.features().tobytes() == folder.features().tobytes()
    if form != "txt":
        assert_same(cache, folder)
