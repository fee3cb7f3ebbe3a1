"""Sources: which files are samples, in which order, with which class and split, and that no folder can hang a run."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import list_images, make_image, run_python
from hypothesis import given, settings
from hypothesis import strategies as st

from precompute.errors import SourceError, Stopped
from precompute.sources.base import ascii_name
from precompute.sources.files import mtime_ns
from precompute.sources.folder import FolderSource

LIST = "from precompute.inputs.images.formats import IMAGES; from precompute.sources.folder import list_folder"


def fill(folder: Path, *names: str) -> Path:
    """Files called as images are; listing looks at names, not into them."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def labels(listing: FolderSource) -> dict[str, str | None]:
    names = [*listing.table.classes, None]
    return {
        os.fsdecode(bytes(row)): None if (name := names[label]) is None else os.fsdecode(name)
        for row, label in zip(listing.table.ids, listing.table.labels, strict=True)
    }


def test_class_folders_give_labels_and_deeper_levels_belong_to_them(tmp_path: Path) -> None:
    listing = list_images(fill(tmp_path, "cats/a.jpg", "cats/london/2/b.png", "dogs/c.gif"))
    assert labels(listing) == {"cats/a.jpg": "cats", "cats/london/2/b.png": "cats", "dogs/c.gif": "dogs"}
    assert listing.table.splits.tolist() == [0, 0, 0]
    assert listing.notes == ()


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Training", "VALID", "Eval"),
        ("TRN", "validation", "tst"),
        ("train", "dev", "Testing"),
    ],
)
def test_split_folders_are_known_by_their_synonyms_in_any_case(tmp_path: Path, train: str, val: str, test: str) -> None:
    listing = list_images(fill(tmp_path, f"{train}/cats/1.jpg", f"{val}/cats/2.jpg", f"{test}/dogs/3.jpg"))
    splits = {
        os.fsdecode(bytes(row)): int(split) for row, split in zip(listing.table.ids, listing.table.splits, strict=True)
    }
    assert splits == {f"{train}/cats/1.jpg": 1, f"{val}/cats/2.jpg": 2, f"{test}/dogs/3.jpg": 3}
    assert listing.table.classes == (b"cats", b"dogs")


def test_two_names_of_one_split_are_one_split(tmp_path: Path) -> None:
    assert list_images(fill(tmp_path, "val/a/1.jpg", "validation/b/2.jpg")).table.splits.tolist() == [2, 2]


def test_a_class_that_only_val_has_is_a_class(tmp_path: Path) -> None:
    listing = list_images(fill(tmp_path, "train/cats/1.jpg", "val/cats/2.jpg", "val/newts/3.jpg"))
    assert listing.table.classes == (b"cats", b"newts")
    assert listing.table.labels.tolist() == [0, 0, 1]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    listing = list_images(fill(tmp_path, "b.jpg", "a.jpg"))
    assert labels(listing) == {"a.jpg": None, "b.jpg": None}
    assert listing.table.classes == ()


def test_splits_without_classes(tmp_path: Path) -> None:
    listing = list_images(fill(tmp_path, "train/1.jpg", "test/2.jpg"))
    assert listing.table.splits.tolist() == [3, 1]
    assert listing.table.labels.tolist() == [-1, -1]


def test_test_beside_other_classes_is_a_class_and_a_note_says_so(tmp_path: Path) -> None:
    listing = list_images(fill(tmp_path, "blood/1.jpg", "test/2.jpg", "urine/3.jpg"))
    assert listing.table.classes == (b"blood", b"test", b"urine")
    assert not listing.table.splits.any()
    assert any("test" in note and "class" in note for note in listing.notes)


def test_a_limit_does_not_turn_a_class_into_a_split(tmp_path: Path) -> None:
    listing = list_images(fill(tmp_path, "test/1.jpg", "urine/2.jpg"), limit=1)
    assert labels(listing) == {"test/1.jpg": "test"}
    assert listing.table.splits.tolist() == [0]


def test_an_image_outside_the_class_folders_is_told(tmp_path: Path) -> None:
    listing = list_images(fill(tmp_path, "cats/1.jpg", "stray.jpg"))
    assert labels(listing) == {"cats/1.jpg": "cats", "stray.jpg": None}
    assert any("1 images" in note and "no label" in note for note in listing.notes)


def test_what_is_no_sample_is_counted_and_named(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg", "a/.DS_Store", ".git/x.jpg", "a/notes.txt", "labels.csv", *(f"{i}.log" for i in range(9)))
    listing = list_images(tmp_path)
    assert len(listing) == 1
    assert listing.ignored_entries.counts == {"hidden": 2, "not images": 11}
    hidden, other = listing.ignored
    assert hidden.startswith("2 hidden: ") and "a/.DS_Store" in hidden and ".git" in hidden
    assert other.startswith("11 not images: ") and other.endswith(", ...")


@pytest.mark.parametrize("extension", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "JPEG2000", "AVIF"])
def test_an_image_without_extension_is_found_by_its_content(tmp_path: Path, extension: str) -> None:
    make_image(1).save(tmp_path / "scan", extension)
    make_image(1).save(tmp_path / "scan.dat", extension)
    assert [bytes(row) for row in list_images(tmp_path).table.ids] == [b"scan", b"scan.dat"]


def test_a_file_that_calls_itself_an_image_is_a_sample_whatever_it_holds(tmp_path: Path) -> None:
    listing = list_images(fill(tmp_path, "text.jpg", "upper.JPG", "jpg"))
    assert [bytes(row) for row in listing.table.ids] == [b"text.jpg", b"upper.JPG"]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    elsewhere = fill(tmp_path / "elsewhere", "deep/1.jpg", "2.jpg")
    root = fill(tmp_path / "root", "cats/3.jpg")
    (root / "cats" / "linked.jpg").symlink_to(elsewhere / "2.jpg")
    (root / "linked").symlink_to(elsewhere / "deep")
    (root / "cats" / "up").symlink_to(root)
    (root / "cats" / "self.jpg").symlink_to("self.jpg")
    (root / "gone.jpg").symlink_to(tmp_path / "nowhere")
    listing = list_images(root)
    assert [bytes(row) for row in listing.table.ids] == [b"cats/3.jpg", b"cats/linked.jpg", b"linked/1.jpg"]
    assert listing.ignored_entries.counts["links to folders already listed"] == 1
    assert listing.ignored_entries.counts["broken links"] == 1
    assert sum(listing.ignored_entries.counts.values()) == 3


def test_siblings_that_link_to_each_other_hold_each_photo_once(tmp_path: Path) -> None:
    names = [f"class{number}" for number in range(8)]
    for name in names:
        fill(tmp_path, f"{name}/{name}.jpg")
        for other in names:
            if other != name:
                (tmp_path / name / f"a_{other}").symlink_to(Path("..", other))
    listing = list_images(tmp_path)
    assert labels(listing) == {f"{name}/{name}.jpg": name for name in names}
    assert listing.ignored_entries.counts == {"links to folders already listed": 8 * 7}


def test_a_folder_is_named_by_its_path_without_links_though_a_link_comes_first(tmp_path: Path) -> None:
    fill(tmp_path, "real/deep/1.jpg")
    (tmp_path / "a_link").symlink_to("real")
    (tmp_path / "b_link").symlink_to("real/deep")
    listing = list_images(tmp_path)
    assert labels(listing) == {"real/deep/1.jpg": "real"}
    assert listing.ignored_entries.names == {"links to folders already listed": ["a_link", "b_link"]}


@pytest.mark.parametrize("turned", [False, True])
def test_a_folder_outside_is_entered_by_the_first_link_in_the_order_of_ids(tmp_path: Path, turned: bool) -> None:
    outside = fill(tmp_path / "outside", "deep/1.jpg", "2.jpg")
    root = fill(tmp_path / "root", "own/3.jpg")
    (outside / "back").symlink_to(root)
    (outside / "deep" / "around").symlink_to(outside)
    for name, target in sorted({"one": outside / "deep", "two": outside, "three": outside}.items(), reverse=turned):
        (root / name).symlink_to(target)
    listing = list_images(root)
    assert [bytes(row) for row in listing.table.ids] == [b"one/1.jpg", b"one/around/2.jpg", b"own/3.jpg"]
    assert listing.ignored_entries.names == {
        "folders already listed": ["one/around/deep"],
        "links to folders already listed": ["one/around/back", "three", "two"],
    }


def test_each_link_to_a_file_is_a_sample_as_in_torchvision(tmp_path: Path) -> None:
    fill(tmp_path, "all/1.jpg")
    for name in ("train", "val"):
        (tmp_path / name / "cats").mkdir(parents=True)
        (tmp_path / name / "cats" / "1.jpg").symlink_to(tmp_path / "all" / "1.jpg")
    assert len(list_images(tmp_path)) == 3


on_linux = pytest.mark.skipif(not os.path.exists("/proc/self/mountinfo"), reason="no /proc/self/mountinfo")


@on_linux
@pytest.mark.parametrize("place", ["/proc/self", "/proc", "/sys/kernel", "/proc/version"])
def test_a_pseudo_file_system_is_no_source(place: str) -> None:
    with pytest.raises(SourceError, match=r"pseudo file system \((proc|sysfs)\)"):
        list_images(place)


@on_linux
def test_links_into_a_pseudo_file_system_are_not_entered(tmp_path: Path) -> None:
    fill(tmp_path, "1.jpg")
    (tmp_path / "process").symlink_to("/proc/self")
    (tmp_path / "devices").symlink_to("/sys/devices")
    listing = list_images(tmp_path)
    assert len(listing) == 1
    assert listing.ignored_entries.names == {
        "pseudo file systems (proc)": ["process"],
        "pseudo file systems (sysfs)": ["devices"],
    }


@on_linux
@pytest.mark.parametrize("name", ["log", "log.jpg"])
def test_what_would_wait_for_the_kernel_is_not_waited_for(tmp_path: Path, name: str) -> None:
    fill(tmp_path, "1.jpg")
    (tmp_path / name).symlink_to("/proc/kmsg")  # a read gives what nobody has read yet, then waits for more
    done = run_python(f"{LIST}; print(len(list_folder({str(tmp_path)!r}, IMAGES)))")
    assert done.stdout == ("2\n" if name == "log.jpg" else "1\n"), done.stderr


def test_a_listing_stops_when_asked_within_one_folder(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{number}.jpg" for number in range(3000)), "sub/1.jpg")
    asked: list[int] = []

    def stop() -> int:
        asked.append(len(asked))
        return signal.SIGTERM if len(asked) == 4 else 0

    with pytest.raises(Stopped, match=r"listed, with [\d,]+ images found") as caught:
        list_images(tmp_path, stop=stop)
    assert (len(asked), caught.value.exit_code) == (4, 128 + signal.SIGTERM)
    assert len(list_images(tmp_path, stop=lambda: 0)) == 3001


def test_a_time_that_int64_does_not_hold_becomes_the_nearest(tmp_path: Path) -> None:
    seconds = {"early": -(2**40), "late": 2**40}  # 34,000 years; not every file system keeps them
    for name, time in seconds.items():
        fill(tmp_path, f"{name}.jpg")
        os.utime(tmp_path / f"{name}.jpg", (0, time))
    kept = [(tmp_path / f"{name}.jpg").stat().st_mtime_ns for name in seconds]
    expected = [min(max(time, -(2**63)), 2**63 - 1) for time in kept]
    assert list_images(tmp_path).table.mtimes.tolist() == expected
    assert list_images(tmp_path / "late.jpg").table.mtimes.tolist() == expected[1:]
    assert [mtime_ns((tmp_path / f"{name}.jpg").stat()) for name in seconds] == expected


def test_a_linked_file_has_the_size_of_its_target(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"12345")
    (tmp_path / "a.jpg").symlink_to(tmp_path / "real")
    assert list_images(tmp_path).table.sizes.tolist() == [5]


def test_a_fifo_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")  # opening one for reading waits for a writer, forever
    os.mkfifo(tmp_path / "pipe")
    fill(tmp_path, "a.jpg")
    listing = list_images(tmp_path)
    assert len(listing) == 1
    assert listing.ignored_entries.counts == {"neither file nor folder": 2}
    with pytest.raises(SourceError, match="neither a folder nor an image"):
        list_images(tmp_path / "pipe")


def test_a_folder_without_permission_is_named_and_the_rest_listed() -> None:
    with tempfile.TemporaryDirectory() as place:
        root = fill(Path(place), "open/1.jpg", "shut/2.jpg", "noext")
        root.chmod(0o755)
        (root / "shut").chmod(0)
        (root / "noext").chmod(0)
        me = os.geteuid()
        if me == 0:
            os.seteuid(65534)  # root may read everything; nobody may not
        try:
            listing = list_images(root)
        finally:
            os.seteuid(me)
            (root / "shut").chmod(0o755)
    assert [bytes(row) for row in listing.table.ids] == [b"open/1.jpg"]
    assert sorted(listing.ignored_entries.names["not readable"]) == ["noext", "shut"]
    assert listing.gaps == (b"shut/",)


@pytest.mark.rotates(3)
def test_a_folder_nested_a_thousand_deep_is_listed(tmp_path: Path) -> None:
    depth = 1200
    subprocess.run(["mkdir", "-p", tmp_path / "/".join("d" * depth)], check=True)
    try:
        fill(tmp_path / "/".join("d" * depth), "1.jpg")
        assert bytes(list_images(tmp_path).table.ids[0]) == b"d/" * depth + b"1.jpg"
    finally:
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # pytest's own cleaning recurses


NAMES = st.binary(min_size=1, max_size=251).filter(lambda name: not {0, ord("/")} & set(name) and name[:1] != b".")


@settings(max_examples=40, deadline=None)
@given(st.sets(NAMES, min_size=1, max_size=6))
def test_any_name_the_disk_takes_is_an_id_without_loss(names: set[bytes]) -> None:
    with tempfile.TemporaryDirectory() as place:
        paths = [os.path.join(os.fsencode(place), name + b".png") for name in names]
        for path in paths:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        listing = list_images(place)
        assert [bytes(row) for row in listing.table.ids] == sorted(name + b".png" for name in names)
        assert [listing.path(row) for row in range(len(listing))] == sorted(paths)
        for row in listing.table.ids:
            shown = ascii_name(os.fsdecode(bytes(row)))
            assert os.fsencode(os.fsdecode(bytes(row))) == bytes(row)
            assert shown.isprintable()


@pytest.mark.parametrize(
    "name", [b"new\nline.jpg", b"\xff\xfe.jpg", "\u202egpj.exe.jpg".encode(), b"n" * 251 + b".jpg"]
)
def test_awkward_names_keep_their_bytes_and_are_shown_escaped(tmp_path: Path, name: bytes) -> None:
    (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    listing = list_images(tmp_path)
    assert bytes(listing.table.ids[0]) == name
    assert os.path.exists(listing.path(0))
    assert ascii_name(os.fsdecode(name)).isprintable()


@settings(max_examples=20, deadline=None)
@given(st.permutations(["b/2.jpg", "B/1.jpg", "a/10.jpg", "a/2.jpg", "a.jpg", "ä/1.jpg", "a-b/1.jpg"]))
def test_order_is_that_of_the_bytes_whatever_the_order_of_creation(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        listing = list_images(fill(Path(place), *names))
    assert [bytes(row) for row in listing.table.ids] == sorted(map(os.fsencode, names))


def test_limit_takes_the_first_by_id(tmp_path: Path) -> None:
    fill(tmp_path, "c.jpg", "a.jpg", "b.jpg")
    assert [bytes(row) for row in list_images(tmp_path, limit=2).table.ids] == [b"a.jpg", b"b.jpg"]
    assert len(list_images(tmp_path, limit=10)) == 3


def test_sizes_and_times_are_those_of_the_files(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg")
    os.utime(tmp_path / "a.jpg", ns=(1, 1_234_567_890_123_456_789))
    listing = list_images(tmp_path)
    assert (listing.table.sizes.tolist(), listing.table.mtimes.tolist()) == ([1], [1_234_567_890_123_456_789])
    assert (listing.table.labels.dtype, listing.table.splits.dtype) == (np.int32, np.uint8)


def test_one_image_file_is_a_source(tmp_path: Path) -> None:
    make_image(1).save(tmp_path / "a.png")
    listing = list_images(tmp_path / "a.png")
    assert len(listing) == 1
    assert listing.path(0) == os.fsencode(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "it is empty"),
        (lambda path: fill(path, "readme.txt"), "1 not images: readme.txt"),
        (lambda path: os.mkfifo(path), "neither a folder nor an image"),
    ],
)
def test_what_cannot_be_a_source_is_refused_with_a_hint(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "source")
    with pytest.raises(SourceError, match=message) as caught:
        list_images(tmp_path / "source")
    assert "source" in caught.value.message
    assert caught.value.hint
