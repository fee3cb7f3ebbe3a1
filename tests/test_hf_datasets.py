"""Data sets of Hugging Face as sources: the rows of the folder they were made from, through kills and changes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command, make_image, make_photos, rows_there, run_command
from contracts import SourceContract
from forks import Forks
from hub_files import (
    FORMS,
    Item,
    arrow_table,
    needs_pyarrow,
    save,
    save_all,
    write_arrow,
    write_form,
    write_parquet,
)
from test_extraction import assert_same
from test_shards import by_digest

from precompute import extract, open_cache, predict, repair, train_head
from precompute.errors import SampleError, SourceError, Stopped, UsageError
from precompute.extraction.source_comparison import compare_source
from precompute.inputs.images.formats import IMAGES
from precompute.sources import parquet_images
from precompute.sources.base import Reading, Source
from precompute.sources.hf_name import MARK, Wanted, understood
from precompute.sources.registry import kind_of, open_source

pytestmark = [pytest.mark.usefixtures("tiny_made_once"), needs_pyarrow]

IDS = {"saved": {}, "hub": {}, "table": {"id": "name"}}
"""Columns that give the ids of the folder; in the other forms the paths of the images do."""


def opened(source: Path | str, /, *, limit: int | None = None, keep: tuple[str, ...] = (), **columns: str) -> Source:
    return open_source(source, IMAGES, reading=Reading.of(None, columns, keep), limit=limit)


def ids(source: Source) -> list[str]:
    return [os.fsdecode(bytes(row)) for row in source.table.ids]


def labels_of(source: Source) -> list[str | None]:
    return [source.label_name(row) for row in range(len(source))]


def items(*seeds: int) -> list[Item]:
    """Some rows with pictures and paths of their own."""
    import io

    found = []
    for seed in seeds:
        file = io.BytesIO()
        make_image(seed).save(file, "PNG")
        found.append({"image": {"bytes": file.getvalue(), "path": f"{seed % 100}.png"}, "label": "a"})
    return found


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return request.param


class TestContract(SourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path, form: str) -> Source:
        return opened(write_form(form, tmp_path, make_photos(tmp_path / "photos")))


class TestContractOfPlainBytes(SourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> Source:
        table = arrow_table(items(1, 2, 3, 4))
        import pyarrow
        from pyarrow import parquet

        plain = pyarrow.table({"image": table["image"].combine_chunks().field("bytes"), "label": table["label"]})
        parquet.write_table(plain, tmp_path / "a.parquet")
        return opened(tmp_path / "a.parquet")


# The rows


def test_the_rows_are_those_of_the_folder_byte_for_byte(photos: Path, tmp_path: Path, form: str) -> None:
    source = write_form(form, tmp_path, photos)
    extract(photos, tmp_path / "folder.h5", backbone="tiny")
    made = extract(source, tmp_path / "a.h5", backbone="tiny", columns=IDS[form])
    assert made.computed == 24
    assert by_digest(tmp_path / "a.h5") == by_digest(tmp_path / "folder.h5")
    names = [name.replace("validation/", "val/") for name in open_cache(tmp_path / "a.h5").ids]
    assert names == open_cache(tmp_path / "folder.h5").ids
    again = extract(source, tmp_path / "a.h5", backbone="tiny", columns=IDS[form])
    assert (again.computed, again.reused) == (0, 24)


@pytest.mark.parametrize("form", ["saved", *(pytest.param(one, marks=pytest.mark.slow) for one in ("hub", "table"))])
def test_real_photos_give_the_rows_of_their_folder(hymenoptera: Path, tmp_path: Path, form: str) -> None:
    extract(hymenoptera, tmp_path / "folder.h5", backbone="tiny")
    extract(write_form(form, tmp_path, hymenoptera), tmp_path / "a.h5", backbone="tiny", columns=IDS[form])
    assert by_digest(tmp_path / "a.h5") == by_digest(tmp_path / "folder.h5")


def kill_in_the_middle(forks: Forks, out: Path, command: list[object]) -> int:
    """Rows that a run had done when it was killed; where the machine was too slow to kill it in time, begin again."""
    for _ in range(20):
        process = forks.start(out.parent, *command)
        while rows_there(out.with_name(f"{out.name}.partial")) < 12 and not out.exists():
            time.sleep(0.001)
        os.kill(process, signal.SIGKILL)
        if forks.wait(process) == -signal.SIGKILL and not out.exists():
            return rows_there(out.with_name(f"{out.name}.partial"))
        out.unlink(missing_ok=True)
    pytest.fail("the run was never killed in time")


@pytest.mark.rotates(6)
@pytest.mark.parametrize("form", ["saved", *(pytest.param(one, marks=pytest.mark.slow) for one in ("hub", "table"))])
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, forks: Forks, form: str) -> None:
    source = write_form(form, tmp_path, make_photos(tmp_path / "photos", per_class=50))
    how = ["extract", source, "-b", "tiny", "--batch-size", 4, "--json", "-o"]
    assert forks.run(tmp_path, *how, "whole.h5") == 0, forks.errors.read_text()
    kept = kill_in_the_middle(forks, tmp_path / "a.h5", [*how, "a.h5"])
    assert 12 <= kept < 200
    assert forks.run(tmp_path, *how, "a.h5") == 0, forks.errors.read_text()
    told = json.loads(forks.output.read_text())
    assert (told["reused"], told["computed"]) == (kept, 200 - kept)
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "whole.h5"))


def test_after_adding_editing_deleting_and_renaming_the_file_is_as_a_fresh_one(
    photos: Path, tmp_path: Path, form: str
) -> None:
    how: dict[str, Any] = {"backbone": "tiny", "columns": IDS[form]}
    extract(write_form(form, tmp_path, photos), tmp_path / "a.h5", **how)
    make_image(100).save(photos / "train/cats/new.png")
    make_image(101).save(photos / "val/dogs/1.png")
    (photos / "train/dogs/0.jpg").unlink()
    (photos / "train/dogs/1.png").rename(photos / "train/dogs/renamed.png")
    shutil.copyfile(photos / "val/cats/2.jpg", photos / "val/cats/copy.jpg")
    source = write_form(form, tmp_path, photos)
    found = extract(source, tmp_path / "a.h5", **how)
    assert (found.computed, found.dropped, found.reused) == (2, 2, 0)  # the files are new, so all rows are read
    extract(source, tmp_path / "fresh.h5", **how)
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "fresh.h5"))


def test_only_the_rows_of_files_that_changed_are_read_again(tmp_path: Path) -> None:
    splits = {"train": items(1, 2, 3), "test": items(4, 5)}
    folder = save_all(tmp_path / "a", splits, None, files=1)
    extract(folder, tmp_path / "a.h5", backbone="tiny")
    again = extract(folder, tmp_path / "a.h5", backbone="tiny")
    assert (again.reused, again.to_read) == (5, 0)
    save(folder / "test", items(4, 105, 6), None)
    found = extract(folder, tmp_path / "a.h5", backbone="tiny")
    assert (found.reused, found.copied, found.computed) == (3, 1, 2)
    save(folder / "train", [{**one, "label": "b"} for one in splits["train"]], None)
    found = extract(folder, tmp_path / "a.h5", backbone="tiny")
    assert (found.reused, found.copied, found.computed) == (3, 3, 0)
    assert open_cache(tmp_path / "a.h5").classes == ("a", "b")


@pytest.mark.rotates(3)
@pytest.mark.parametrize("command", ["verify", "predict", "repair", "limit"])
def test_every_command_takes_them(photos: Path, tmp_path: Path, precompute: Command, form: str, command: str) -> None:
    source = write_form(form, tmp_path, photos)
    extract(source, tmp_path / "a.h5", backbone="tiny", limit=5 if command == "limit" else None)
    cache = open_cache(tmp_path / "a.h5")
    if command == "verify":
        assert compare_source(cache, source).same
        done = precompute("verify", "a.h5", "--source", source)
        assert done.returncode == 0, done.stderr
    elif command == "predict":
        train_head(cache, tmp_path / "a.safetensors")
        assert predict(tmp_path / "a.safetensors", source).accuracy is not None
    elif command == "repair":
        assert repair(tmp_path / "a.h5", source).computed == 0
        assert precompute("plan", source, "-b", "tiny").returncode == 0
    else:
        assert cache.ids == ids(opened(source))[:5]
        assert set(cache.labels) == set(range(len(cache.classes)))


@pytest.mark.slow
def test_a_process_that_has_loaded_nothing_else_reads_them(tmp_path: Path, form: str) -> None:
    source = write_form(form, tmp_path, make_photos(tmp_path / "photos"))
    done = run_command(tmp_path, "extract", source, "-b", "tiny", "-o", "a.h5", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["computed"] == 24


# Ids, labels, splits and further columns


def test_ids_are_the_paths_where_each_image_has_one_of_its_own(tmp_path: Path) -> None:
    given = items(1, 2, 3)
    assert ids(opened(save(tmp_path / "a", given, None))) == ["1.png", "2.png", "3.png"]
    assert ids(opened(save_all(tmp_path / "b", {"train": given, "x": given}, None)))[2:4] == ["train/3.png", "x/1.png"]


@pytest.mark.parametrize("path", ["1.png", None, "", "a\0b", "/home/me/2.png"])
def test_ids_are_numbers_of_rows_where_they_have_not(tmp_path: Path, path: str | None) -> None:
    given = items(1, 2, 3)
    given[1]["image"]["path"] = path
    for source in (
        opened(save(tmp_path / "a", given, None, files=2)),
        opened(write_parquet(tmp_path / "a.parquet", given, None, rows_per_group=2)),
    ):
        assert ids(source) == ["row/000000000", "row/000000001", "row/000000002"]
        assert any("ids are row numbers" in note for note in source.notes)
        assert [source.read(row).data for row in range(3)] == [one["image"]["bytes"] for one in given]
    split = opened(save_all(tmp_path / "b", {"test": given, "train": given[:1]}, None))
    assert ids(split) == ["test/000000000", "test/000000001", "test/000000002", "train/000000000"]


def test_columns_have_the_names_that_are_asked_for(tmp_path: Path) -> None:
    given: list[Item] = [
        {
            "mask": item["image"], "photo": item["image"], "name": f"n{number}", "kind": number, "fold": "val",
            "age": 3, "text": "007",
        }
        for number, item in enumerate(items(1, 2, 3))
    ]  # fmt: skip
    rows = [{"image": one["photo"], **one} for one in given]
    table = arrow_table(rows).rename_columns(["photo", *list(rows[0])[1:2], "other", *list(rows[0])[3:]])
    path = write_arrow(tmp_path / "a" / "data-00000-of-00001.arrow", table)
    (path.parent / "state.json").write_text(json.dumps({"_data_files": [{"filename": path.name}]}))
    (path.parent / "dataset_info.json").write_text("{}")
    with pytest.raises(SourceError, match=r"has no column of images.*Its columns: photo"):
        opened(path.parent)
    source = opened(path.parent, path="photo", id="name", label="kind", split="fold", keep=("age", "text"))
    assert ids(source) == ["n0", "n1", "n2"]
    assert (labels_of(source), source.table.splits.tolist()) == (["0", "1", "2"], [2, 2, 2])
    assert source.table.columns["age"].tolist() == [3, 3, 3]
    assert source.table.columns["text"].tolist() == [b"007"] * 3
    for wrong in ({"path": "age"}, {"path": "nowhere"}):
        with pytest.raises(SourceError, match="has no images in"):
            opened(path.parent, **wrong)
    with pytest.raises(SourceError, match="has no column 'nowhere'"):
        opened(path.parent, path="photo", label="nowhere")
    with pytest.raises(SourceError, match="the column 'mask' holds struct"):
        opened(path.parent, path="photo", label="mask")
    with pytest.raises(SourceError, match="the id '3' in rows 1 and 2"):
        opened(path.parent, path="photo", id="age")


def test_classes_have_the_names_that_the_data_set_gives_them(tmp_path: Path) -> None:
    given = items(1, 2, 3)
    for one, label in zip(given, ("wasp", "ant", "wasp"), strict=True):
        one["label"] = label
    folder = save(tmp_path / "a", given, ["wasp", "ant", "bee"])
    assert opened(folder).table.classes == (b"ant", b"wasp")
    assert labels_of(opened(folder)) == ["wasp", "ant", "wasp"]
    (folder / "dataset_info.json").write_text("{}")  # the schema says it too
    assert labels_of(opened(folder)) == ["wasp", "ant", "wasp"]
    (folder / "dataset_info.json").write_text(
        json.dumps({"features": {"label": {"_type": "ClassLabel", "names": ["wasp"]}}})
    )
    with pytest.raises(SourceError, match=r"row 2 has the class 1 in 'label', which has 1 names"):
        opened(folder)
    kept = opened(write_parquet(tmp_path / "a.parquet", given, ["wasp", "ant", "bee"]), keep=("label",))
    assert kept.table.columns["label"].tolist() == [b"wasp", b"ant", b"wasp"]


def test_of_several_columns_of_classes_none_is_the_label_and_a_note_says_so(tmp_path: Path) -> None:
    rows = [{"image": one["image"], "kind": 0, "age": 1} for one in items(1, 2)]
    folder = save(tmp_path / "a", rows, None)
    classes = {"_type": "ClassLabel", "names": ["x", "y"]}
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"kind": classes, "age": classes}}))
    source = opened(tmp_path / "a")
    assert labels_of(source) == [None, None]
    assert "no labels: kind, age are columns of classes; see --label-column" in source.notes
    source = opened(tmp_path / "a", label="age")
    assert labels_of(source) == ["y", "y"]
    assert not any("no labels" in note for note in source.notes)


def test_the_only_column_of_classes_is_the_label_whatever_its_name(tmp_path: Path) -> None:
    table = arrow_table([{**one, "label": "b"} for one in items(1, 2)], ["a", "b"]).rename_columns(["image", "fine"])
    described = json.dumps({"info": {"features": {"fine": {"names": ["a", "b"], "_type": "ClassLabel"}}}})
    from pyarrow import parquet

    parquet.write_table(table.replace_schema_metadata({"huggingface": described}), tmp_path / "a.parquet")
    assert labels_of(opened(tmp_path / "a.parquet")) == ["b", "b"]


def test_minus_one_and_null_are_no_label(tmp_path: Path) -> None:
    import pyarrow

    table = arrow_table(items(1, 2, 3), ["a"])
    table = table.set_column(1, "label", pyarrow.array([0, -1, None]))
    table = table.replace_schema_metadata(arrow_table(items(1), ["a"]).schema.metadata)
    from pyarrow import parquet

    parquet.write_table(table, tmp_path / "a.parquet")
    assert labels_of(opened(tmp_path / "a.parquet")) == ["a", None, None]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train", "validation", "test"], [1, 2, 3]),
        (["dev", "eval"], [2, 3]),
        (["train", "unlabeled"], [0, 0]),
        (["fold1", "fold2"], [0, 0]),
    ],
)
def test_splits_count_where_all_names_mean_one(tmp_path: Path, names: list[str], splits: list[int]) -> None:
    given = {name: items(number) for number, name in enumerate(names, 1)}
    source = opened(save_all(tmp_path / "a", given, None, files=1))
    found = {name.split("/")[0]: split for name, split in zip(ids(source), source.table.splits, strict=True)}
    assert [found[name] for name in names] == splits
    assert bool(source.notes) == (splits == [0, 0] and "train" in names)


def test_a_lone_data_set_has_no_split_but_by_a_column(tmp_path: Path) -> None:
    given = [{**one, "split": split} for one, split in zip(items(1, 2, 3), ("train", "test", ""), strict=True)]
    assert opened(save(tmp_path / "a", given, None)).table.splits.tolist() == [1, 3, 0]
    assert opened(save(tmp_path / "b", items(1, 2), None)).table.splits.tolist() == [0, 0]


def test_an_empty_split_and_empty_files_are_no_error(tmp_path: Path) -> None:
    folder = save_all(tmp_path / "a", {"train": items(1, 2), "test": []}, None, files=1)
    empty = arrow_table(items(1, 2)).slice(0, 0)
    write_arrow(folder / "test" / "data-00000-of-00001.arrow", empty)
    assert len(opened(folder)) == 2
    write_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet", items(1), None)
    from pyarrow import parquet

    parquet.write_table(empty, tmp_path / "hub" / "test-00000-of-00001.parquet")
    assert len(opened(tmp_path / "hub")) == 1
    for path in ("train", "test"):
        parquet.write_table(empty, tmp_path / "hub" / f"{path}-00000-of-00001.parquet")
    with pytest.raises(SourceError, match="names no images"):
        opened(tmp_path / "hub")


# Which folders are data sets


@pytest.mark.parametrize(
    "files",
    [
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "README.md"],
        ["train-00000-of-00001-0123456789abcdef.parquet"],
    ],
)
def test_a_folder_of_the_hub_is_recognised_by_its_names(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / name).write_bytes(b"")
    assert kind_of(str(tmp_path / "a")).what == "a folder of datasets"


def test_a_folder_of_photos_stays_one_whatever_lies_in_it(photos: Path) -> None:
    for name in ("labels.parquet", "dataset_info.json", "state.txt", "data.arrow"):
        (photos / name).write_bytes(b"")
    assert kind_of(str(photos)).what == "a folder"


def test_other_names_are_taken_where_it_is_said_to_be_a_data_set(tmp_path: Path) -> None:
    for place in ("default/train/0000.parquet", "default/test/0000.parquet", ".cache/x.parquet"):
        write_parquet(tmp_path / "a" / place, items(1, 2), None)
    assert kind_of(str(tmp_path / "a")).what == "a folder"
    with pytest.raises(SourceError, match="holds no images") as caught:
        opened(tmp_path / "a")
    assert f"{MARK}{tmp_path / 'a'}" in caught.value.hint
    source = opened(f"{MARK}{tmp_path / 'a'}")
    assert ids(source) == ["test/1.png", "test/2.png", "train/1.png", "train/2.png"]
    assert source.table.splits.tolist() == [3, 3, 1, 1]
    assert ids(opened(f"{MARK}{tmp_path / 'a'}#test")) == ["test/1.png", "test/2.png"]
    with pytest.raises(SourceError, match="has no split 'val'") as caught:
        opened(f"{MARK}{tmp_path / 'a'}#val")
    assert "test, train" in caught.value.hint
    saved = save(tmp_path / "saved", items(1), None)
    assert ids(opened(f"{MARK}{saved}")) == ["1.png"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("mnist", Wanted("mnist")),
        ("owner/name", Wanted("owner/name")),
        ("owner/name:small", Wanted("owner/name", "small")),
        ("owner/name@main#test", Wanted("owner/name", None, "main", "test")),
        ("o/n:c@1a2b#train", Wanted("o/n", "c", "1a2b", "train")),
    ],
)
def test_a_name_has_a_config_a_revision_and_a_split(text: str, wanted: Wanted) -> None:
    assert understood(MARK + text) == wanted


def test_the_origin_is_the_folder_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "dataset", items(1), None)
    monkeypatch.chdir(tmp_path)
    assert opened(f"{MARK}dataset").origin == f"{MARK}{tmp_path}/dataset"


def test_an_address_is_no_name_and_not_shown() -> None:
    with pytest.raises(SourceError, match="not for addresses") as caught:
        opened(f"{MARK}https://me:secret@hub/name")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["", ":x", "a@", "a#x@y", "a:b:c", "a\0"])
def test_a_name_that_is_none_says_how_it_is_written(text: str) -> None:
    with pytest.raises(SourceError, match="is not a name of a data set") as caught:
        understood(MARK + text)
    assert "OWNER/NAME" in caught.value.hint


# Images by their path


def test_an_image_may_be_a_file_in_the_folder(tmp_path: Path, photos: Path) -> None:
    given = [
        {"image": {"bytes": None, "path": f"train/cats/{number}.{'png' if number % 2 else 'jpg'}"}, "label": "cat"}
        for number in range(6)
    ]
    for source in (
        save(photos / "saved", [*given, *items(1)], None),
        write_parquet(photos / "a.parquet", [*given, *items(1)], None, rows_per_group=7),
    ):
        if source.is_dir():
            shutil.copytree(photos / "train", source / "train")
        made = extract(source, tmp_path / f"{source.name}.h5", backbone="tiny")
        assert (made.computed, made.failures) == (7, {})
        again = extract(source, tmp_path / f"{source.name}.h5", backbone="tiny")
        assert again.computed == 0
        assert again.copied >= 6  # whether the files have changed is not known, so they are read again
        with pytest.raises(UsageError, match="is one of the samples"):
            extract(source, (source if source.is_dir() else photos) / "train/cats/new.jpg", backbone="tiny")


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "link/secret.png", "out.png", "a\0b"])
@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_a_path_that_leads_out_of_the_folder_is_not_read(tmp_path: Path, path: str, kind: str) -> None:
    (tmp_path / "secret").mkdir()
    make_image(9).save(tmp_path / "secret/secret.png")
    given = [*items(1, 2), {"image": {"bytes": None, "path": path}, "label": "a"}]
    place = tmp_path / "data"
    source = save(place, given, None) if kind == "saved" else write_parquet(place / "a.parquet", given, None)
    (place / "link").symlink_to(tmp_path / "secret")
    (place / "out.png").symlink_to(tmp_path / "secret/secret.png")
    made = extract(source, tmp_path / "a.h5", backbone="tiny")
    assert (made.computed, made.failures) == (2, {"UNREADABLE": 1})
    assert "leads out of" in made.failed[0][2] or "NUL" in made.failed[0][2]


def test_a_row_without_an_image_fails_alone(tmp_path: Path) -> None:
    nothing: list[Item] = [{"image": None, "label": "a"}, {"image": {"bytes": None, "path": None}, "label": "a"}]
    for source in (
        save(tmp_path / "a", [*items(1, 2), *nothing], None),
        write_parquet(tmp_path / "a.parquet", [*items(1, 2), *nothing], None),
    ):
        made = extract(source, tmp_path / f"{source.name}.h5", backbone="tiny")
        assert (made.computed, made.failures) == (2, {"UNREADABLE": 2})
        assert {detail for _, _, detail in made.failed} == {"the row holds no image"}


# Files that change or go away


def test_a_data_file_that_changes_after_it_was_listed_gives_no_wrong_image(tmp_path: Path, form: str) -> None:
    source = opened(path := write_form(form, tmp_path, make_photos(tmp_path / "photos")))
    data = sorted(path.rglob("*.arrow") or path.rglob("*.parquet")) if path.is_dir() else [path]
    data = data or sorted(path.rglob("*.parquet"))
    for one in data:
        content = one.read_bytes()
        one.write_bytes(content[: len(content) // 2])
    for row in range(len(source)):
        with pytest.raises(SampleError, match="has changed since it was listed") as caught:
            source.read(row)
        assert caught.value.reason == "UNREADABLE"
    assert source.alive()
    for one in data:
        one.unlink()
        os.mkfifo(one)
    with pytest.raises(SampleError, match="not an ordinary file"):
        source.read(0)
    for one in data:
        one.unlink()
    assert not source.alive()
    with pytest.raises(SampleError) as caught:
        source.read(0)
    assert caught.value.reason == "VANISHED"
    with pytest.raises(SourceError, match="disappeared"):
        extract(source, tmp_path / "a.h5", backbone="tiny")


def test_the_output_is_never_one_of_the_data_files(tmp_path: Path, form: str) -> None:
    path = write_form(form, tmp_path, make_photos(tmp_path / "photos"))
    for one in [path, *path.rglob("*")]:
        if one.suffix in (".arrow", ".parquet"):
            before = one.read_bytes()
            with pytest.raises(UsageError, match="is one of the samples"):
                extract(path, one, backbone="tiny", overwrite=True)
            assert one.read_bytes() == before


def test_a_listing_stops_when_asked(tmp_path: Path, form: str) -> None:
    path = write_form(form, tmp_path, make_photos(tmp_path / "photos"))
    with pytest.raises(Stopped):
        open_source(path, IMAGES, stop=lambda: signal.SIGTERM)


def test_few_row_groups_are_kept_and_rows_come_file_by_file(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", items(*range(40, 20, -1)), None, rows_per_group=2)
    source = opened(path)
    (order,) = source.order(np.arange(20))
    assert ids(source)[order[0]] == "40.png"
    for row in order.tolist():
        assert source.read(row).data
    (file,) = source._files  # type: ignore[attr-defined]
    assert len(file._kept) == parquet_images.KEPT_GROUPS


def test_few_row_groups_are_kept_of_all_files_together(tmp_path: Path) -> None:
    for number in range(6):
        seeds = range(2 * number, 2 * number + 2)
        write_parquet(tmp_path / f"train-{number:05}-of-00006.parquet", items(*seeds), None, rows_per_group=1)
    source = opened(tmp_path)
    for row in range(12):
        assert source.read(row).data
    kept = {id(file._kept): file._kept for file in source._files}  # type: ignore[attr-defined]
    assert sum(map(len, kept.values())) == parquet_images.KEPT_GROUPS
