"""The pictures that a graph is compared, calibrated and scored on: only those that the head was not trained on say how
good it is, and only the feature file of the training says which these are."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import make_image, make_photos

from precompute import extract, open_cache, train_head
from precompute.finetuning.opening import open_head
from precompute.graphs.pictures import Pictures, find_pictures
from precompute.inputs.images.transform import Transform
from precompute.training.membership import PARTS, split_codes
from precompute.training.targets import own_classes

NAMES = ("cats", "dogs")
TRANSFORM = Transform(resize=32, crop=32)


def ids(found: Pictures, rows: np.ndarray) -> set[str]:
    assert found.source is not None
    return {found.source.id_of(row) for row in rows.tolist()}


def compared(found: Pictures) -> dict[str, int]:
    return {picture.name: place for picture, place in found.compared(TRANSFORM, NAMES)}


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head on photos without splits, 10 of each class, next to its feature file."""
    folder = tmp_path_factory.mktemp("flat")
    for number in range(20):
        path = folder / "photos" / NAMES[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image(number).save(path)
    extract(folder / "photos", folder / "a.h5", backbone="tiny")
    train_head(folder / "a.h5", folder / "a.safetensors", C=1.0)
    return folder


def held_out(folder: Path) -> set[str]:
    """The ids of the hold-out, from the head's file."""
    cache = open_cache(folder / "a.h5")
    codes = split_codes(open_head(folder / "a.safetensors").metadata, cache, own_classes(cache), "a head")
    found = cache.column("samples/id")[codes == PARTS.index("hold-out")]
    return {name.decode() for name in found.tolist()}


@pytest.mark.parametrize("named", [True, False])
def test_a_head_with_a_hold_out_is_scored_on_it_alone(flat: Path, named: bool) -> None:
    found = find_pictures(open_head(flat / "a.safetensors"), flat / "photos" if named else None)
    held = held_out(flat)
    assert 2 <= len(held) <= 6
    assert compared(found) == {name: NAMES.index(name.partition("/")[0]) for name in held}
    assert "hold-out" in found.roles.about
    assert ids(found, found.roles.calibrating) == {f"{NAMES[n % 2]}/{n}.png" for n in range(20)} - held


def test_without_splits_or_feature_file_nothing_is_scored(flat: Path, tmp_path: Path) -> None:
    head = shutil.copy(flat / "a.safetensors", tmp_path)
    found = find_pictures(open_head(head), flat / "photos")
    assert not found.roles.scored
    assert "no accuracy" in found.roles.about
    assert set(compared(found).values()) == {-1}
    assert ids(found, found.roles.calibrating).isdisjoint(compared(found))
    assert len(found.roles.calibrating) == len(found.roles.compared) == 10


def test_splits_of_a_source_hold_val_and_test(flat: Path, tmp_path: Path) -> None:
    head = shutil.copy(flat / "a.safetensors", tmp_path)
    make_photos(tmp_path / "photos")
    (tmp_path / "photos" / "val").rename(tmp_path / "photos" / "test")
    found = find_pictures(open_head(head), tmp_path / "photos")
    assert found.roles.scored
    assert {name.partition("/")[0] for name in compared(found)} == {"test"}
    assert {name.partition("/")[0] for name in ids(found, found.roles.calibrating)} == {"train"}


def test_other_pictures_are_scored_but_for_copies_of_the_training(flat: Path, tmp_path: Path) -> None:
    for number in range(12):
        path = tmp_path / "others" / NAMES[number % 2] / f"other{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image(100 + number).save(path)
    trained = sorted({f"cats/{n}.png" for n in range(0, 20, 2)} - held_out(flat))
    for name in trained:
        shutil.copy(flat / "photos" / name, tmp_path / "others" / "cats" / f"copy-{Path(name).name}")
    found = find_pictures(open_head(flat / "a.safetensors"), tmp_path / "others")
    assert found.roles.scored
    names = compared(found)
    assert names
    assert all("copy" not in name for name in names)
    assert set(names.values()) == {0, 1}
    assert ids(found, found.roles.calibrating).isdisjoint(names)


# Pictures that nobody named ------------------------------------------------------------------------------------------


def test_pictures_of_another_feature_file_are_not_those_of_the_training(
    flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the name of the one that the head was trained on, and the same settings."""
    make_photos(tmp_path / "photos")
    extract(tmp_path / "photos", tmp_path / "a.h5", backbone="tiny")
    head = shutil.copy(flat / "a.safetensors", tmp_path)
    monkeypatch.chdir(tmp_path)
    found = find_pictures(open_head(head), None)
    assert found.source is None
    assert "trained" not in found.about
    beside = find_pictures(open_head(flat / "a.safetensors"), None)  # whose own folder comes first
    assert beside.about == f"of {flat / 'photos'}, which it was trained on"
    monkeypatch.chdir(flat)
    assert find_pictures(open_head(head), None).about == beside.about


def test_features_of_another_transform_are_not_those_of_the_training(flat: Path, tmp_path: Path) -> None:
    extract(flat / "photos", tmp_path / "a.h5", backbone="tiny", transform={"resize": 40})
    head = shutil.copy(flat / "a.safetensors", tmp_path)
    assert find_pictures(open_head(head), None).source is None


def test_pictures_that_changed_since_are_not_those_of_the_training(flat: Path, tmp_path: Path) -> None:
    shutil.copytree(flat / "photos", tmp_path / "photos")
    extract(tmp_path / "photos", tmp_path / "a.h5", backbone="tiny")
    train_head(tmp_path / "a.h5", tmp_path / "a.safetensors", C=1.0)
    make_image(500).save(tmp_path / "photos" / "cats" / "0.png")
    make_image(501).save(tmp_path / "photos" / "cats" / "new.png")
    found = find_pictures(open_head(tmp_path / "a.safetensors"), None)
    names = {picture.name for picture in found.checked(TRANSFORM)}
    assert names == {f"{NAMES[n % 2]}/{n}.png" for n in range(1, 20)}
