"""`predict HEAD CACHE.h5`: the labels that the images would get, without an image or a backbone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Command, make_photos

from precompute import extract, open_cache, predict, train_head
from precompute.cache import Status
from precompute.errors import CacheError, HeadMismatchError, UsageError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos, one of them broken, and other photos; caches of both, and a head of each kind that predicts classes."""
    folder = tmp_path_factory.mktemp("predict")
    make_photos(folder / "photos")
    (folder / "photos" / "val" / "cats" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    make_photos(folder / "others", per_class=3)
    shutil.rmtree(folder / "others" / "val" / "dogs")
    for name in ("photos", "others"):
        extract(folder / name, folder / f"{name}.h5", backbone="tiny")
    extract(folder / "others", folder / "random.h5", backbone="tiny", weights="random")
    train_head(folder / "photos.h5", folder / "logistic", head="logistic", C=1.0)
    train_head(folder / "photos.h5", folder / "knn", head="knn", k=3)
    return folder


@pytest.mark.rotates(3)
@pytest.mark.parametrize("head", ["logistic", "knn"])
@pytest.mark.parametrize("name", ["photos", "others"])
def test_a_cache_gets_the_labels_of_its_images(head: str, name: str, place: Path) -> None:
    of_images, of_cache = predict(place / head, place / name), predict(place / head, place / f"{name}.h5")
    assert [(one.id, one.label, one.true) for one in of_cache.items] == [
        (one.id, one.label, one.true) for one in of_images.items
    ]
    np.testing.assert_allclose(
        [one.probability for one in of_cache.items], [one.probability for one in of_images.items], atol=1e-5
    )
    assert of_cache.classes == of_images.classes
    assert of_cache.accuracy_interval == of_images.accuracy_interval
    assert [one[:2] for one in of_cache.failed] == [one[:2] for one in of_images.failed]


def test_no_image_is_read_and_rows_may_be_many(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(place / "photos.h5", tmp_path / "alone.h5")
    expected = predict(place / "logistic", place / "photos.h5")
    monkeypatch.setattr("precompute.prediction.AT_ONCE", 5)
    seen: list[tuple[int, int]] = []
    found = predict(place / "logistic", tmp_path / "alone.h5", progress=lambda *given: seen.append(given))
    assert [(one.id, one.label) for one in found.items] == [(one.id, one.label) for one in expected.items]
    assert seen == [(5, 24), (10, 24), (15, 24), (20, 24), (24, 24)]


def test_features_of_another_backbone_are_refused_with_what_differs(place: Path) -> None:
    with pytest.raises(
        HeadMismatchError, match=r"(?s)other features than .*random\.h5 holds.*weights: .* -> "
    ) as caught:
        predict(place / "logistic", place / "random.h5")
    assert "Give a cache of the backbone" in (caught.value.hint or "")


@pytest.mark.parametrize("option", [{"backbone": "tiny"}, {"weights": "random"}, {"workers": 2}, {"batch_size": 8}])
def test_options_that_say_nothing_of_a_cache_are_refused(option: dict[str, object], place: Path) -> None:
    with pytest.raises(UsageError, match="holds features, so"):
        predict(place / "logistic", place / "photos.h5", **option)  # type: ignore[arg-type]


def test_damaged_rows_and_files_that_are_no_cache_are_reported(place: Path, tmp_path: Path) -> None:
    with open_cache(place / "photos.h5") as cache:
        stored = cache.features()[np.flatnonzero(cache.status == Status.OK)[3]].tobytes()
    content = bytearray((place / "photos.h5").read_bytes())
    content[content.index(stored)] ^= 1
    (tmp_path / "damaged.h5").write_bytes(content)
    with pytest.raises(CacheError, match="1 of 25 rows .* do not match their checksums"):
        predict(place / "logistic", tmp_path / "damaged.h5")
    (tmp_path / "half.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(CacheError):
        predict(place / "logistic", tmp_path / "half.h5")


def test_the_command_exits_as_for_images(place: Path, precompute: Command) -> None:
    done = precompute("predict", place / "logistic", place / "photos.h5", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 3  # one row has no features
    assert (found["n"], found["scored"], len(found["failed"])) == (24, 24, 1)
    assert found["failed"][0]["id"] == "val/cats/broken.png"
    assert precompute("predict", place / "logistic", place / "others.h5").returncode == 0
