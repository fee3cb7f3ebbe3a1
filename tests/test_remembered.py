"""A rerun over an unchanged folder is known without torch and without opening an image; anything else is not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import list_images, run_python

from precompute import extract, open_cache
from precompute.backbones.tiny import tiny
from precompute.errors import CacheKeyError
from precompute.extraction.output import CacheOutput
from precompute.extraction.request import Request, unchanged

WATCHED = """
import json, os, sys
folder, opened = os.path.abspath("photos"), []
def hook(event, arguments):
    path = arguments[0] if event == "open" else None
    if isinstance(path, (str, bytes)) and os.path.abspath(os.fsdecode(path)).startswith(folder + os.sep):
        opened.append(os.path.relpath(os.fsdecode(path), folder))
sys.addaudithook(hook)
from precompute import extract
result = extract("photos", "a.h5", backbone="tiny", weights="w.pth")
print(json.dumps([opened, result.reused, result.computed, result.notes, "torch" in sys.modules]))
"""


@pytest.fixture
def place(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save(seed=0)
    extract("photos", "a.h5", backbone="tiny", weights="w.pth", batch_size=None)
    return tmp_path


def save(seed: int) -> None:
    """Weights in w.pth, of the same size in bytes for each seed."""
    model = tiny()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + seed)
    torch.save(model.state_dict(), "w.pth")


def watched() -> tuple[list[str], int, int, list[str], bool]:
    """A rerun in a process of its own: (opened below photos/, reused, computed, notes, whether torch was loaded)."""
    done = run_python(WATCHED)
    assert done.returncode == 0, done.stderr
    told: tuple[list[str], int, int, list[str], bool] = json.loads(done.stdout)
    return told


@pytest.mark.rotates(3)
def test_an_unchanged_folder_is_not_opened_and_torch_is_not_loaded(place: Path) -> None:
    before = Path("a.h5").read_bytes()
    opened, reused, computed, notes, loaded = watched()
    assert (opened, reused, computed, loaded) == ([], 24, 0, False)
    assert Path("a.h5").read_bytes() == before
    assert notes == list(extract("photos", "a.h5", backbone="tiny", weights="w.pth", rehash=True).notes)


@pytest.mark.rotates(3)
def test_only_what_changed_is_opened(place: Path) -> None:
    os.utime("photos/train/cats/0.jpg")
    opened, reused, computed, _, loaded = watched()
    assert (opened, reused, computed, loaded) == (["train/cats/0.jpg"], 23, 0, True)
    assert watched()[0] == []


def request(**changes: object) -> Request:
    asked = {"backbone": "tiny", "weights": "w.pth", "layer": None, "pooling": "auto", "transform": {}}
    asked |= {
        "engine": "auto",
        "precision": "auto",
        "compile": "auto",
        "dtype": "auto",
        "device": "auto",
        "batch_size": None,
        **changes,
    }
    return Request(**asked)  # type: ignore[arg-type]


def known(**changes: object) -> bool:
    return unchanged(CacheOutput("a.h5"), list_images("photos"), request(**changes)) is not None


@pytest.mark.rotates(3)
def test_the_same_request_is_known(place: Path) -> None:
    assert known()


@pytest.mark.rotates(3)
@pytest.mark.parametrize(
    "changes",
    [
        {"weights": "DEFAULT"},
        {"weights": "./w.pth"},
        {"layer": "features.1"},
        {"pooling": "none"},
        {"transform": {"crop": 30}},
        {"engine": "torch"},
        {"precision": "fp32"},
        {"compile": "off"},
        {"dtype": "float16"},
        {"device": "cpu"},
        {"batch_size": 7},
        {"backbone": "resnet18"},
    ],
    ids=str,
)
def test_another_request_is_not(place: Path, changes: dict[str, object]) -> None:
    assert not known(**changes)


@pytest.mark.parametrize(
    "variable",
    ["HOME", "TORCH_HOME", "XDG_CACHE_HOME", "CUDA_VISIBLE_DEVICES", "PRECOMPUTE_ENGINE", "PRECOMPUTE_PRECISION"],
)
def test_nor_is_one_in_another_environment(place: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "/elsewhere")
    assert not known()


def test_nor_one_from_another_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "below").mkdir()
    monkeypatch.chdir(place / "below")
    Path("w.pth").symlink_to(place / "w.pth")
    assert unchanged(CacheOutput("../a.h5"), list_images("../photos"), request()) is None


@pytest.mark.parametrize("name", ["a.h5.partial", "a.h5.partial.kept"])
def test_nor_one_with_work_in_progress(place: Path, name: str) -> None:
    Path(name).write_bytes(b"")
    assert not known()


def test_code_of_the_users_is_never_taken_for_unchanged() -> None:
    assert request(backbone="mine.models:net").name() is None


@pytest.mark.rotates(3)
def test_values_that_are_no_json_are_taken_and_not_remembered(place: Path) -> None:
    mean = {"mean": np.array([0.5, 0.5, 0.5], dtype=np.float32)}
    assert request(transform=mean).name() is None
    assert extract("photos", "b.h5", backbone="tiny", transform=mean).computed == 24
    assert extract("photos", "b.h5", backbone="tiny", transform=mean).reused == 24


@pytest.mark.rotates(3)
def test_other_weights_in_the_same_file_are_found(place: Path) -> None:
    save(seed=1)
    assert not known()
    with pytest.raises(CacheKeyError, match="weights: "):
        extract("photos", "a.h5", backbone="tiny", weights="w.pth")


@pytest.mark.rotates(3)
def test_rehash_finds_other_weights_even_where_size_and_time_are_the_same(place: Path) -> None:
    before = os.stat("w.pth")
    save(seed=1)
    os.utime("w.pth", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat("w.pth").st_size == before.st_size
    assert known()  # as for images, path, size and time are believed
    with pytest.raises(CacheKeyError, match="weights: "):
        extract("photos", "a.h5", backbone="tiny", weights="w.pth", rehash=True)


def test_weights_that_went_away_are_missed(place: Path) -> None:
    Path("w.pth").unlink()
    assert not known()


def test_a_record_that_is_not_as_expected_is_not_believed(place: Path) -> None:
    column = open_cache("a.h5").layout.columns["provenance"]
    data = Path("a.h5").read_bytes()
    line = json.loads(data[column.offset : column.offset + column.nbytes].split(b"\n")[0])
    for wrong in ("w.pth", [], {}, {"path": 3, "size": 1, "mtime_ns": 2}, {"path": "w.pth\0", "size": 1}):
        changed = json.dumps({**line, "weights_file": wrong}).encode() + b"\n"
        Path("a.h5").write_bytes(
            data[: column.offset] + changed.ljust(column.nbytes, b"\0") + data[column.offset + column.nbytes :]
        )
        assert not known()
