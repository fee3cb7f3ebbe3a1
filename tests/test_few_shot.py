"""Few-shot curves: what is drawn, what it is scored on, and that the figures are what they claim."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Command, make_photos
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from precompute import extract, open_cache
from precompute.errors import TrainingError, UsageError
from precompute.evaluation.draws import drawn, pool_of, spread_of
from precompute.evaluation.learning_curve import few_shot, point_of
from precompute.heads import LogisticHead
from precompute.training.targets import CLASSES, Target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 photos in train and val of two classes: a.h5 by `tiny`, random.h5, and pixels.h5."""
    place = tmp_path_factory.mktemp("few-shot")
    make_photos(place / "photos", per_class=10)
    extract(place / "photos", place / "a.h5", backbone="tiny")
    extract(place / "photos", place / "random.h5", backbone="tiny", weights="random")
    size = {"resize": 8, "crop": 8}
    extract(place / "photos", place / "pixels.h5", backbone="torch.nn:Flatten", transform=size)
    return place


labels_and_groups = st.integers(1, 60).flatmap(
    lambda n: st.tuples(
        arrays.arrays(np.int64, n, elements=st.integers(0, 3)), arrays.arrays(np.int64, n, elements=st.integers(0, 30))
    )
)


@pytest.mark.rotates(3)
@given(labels_and_groups, st.integers(0, 60), st.integers(0, 9))
def test_a_picture_is_drawn_once_and_never_tested_on(
    columns: tuple[np.ndarray, np.ndarray], cut: int, seed: int
) -> None:
    labels, groups = columns
    train, test = np.arange(len(labels))[:cut], np.arange(len(labels))[cut:]
    pool, leaked = pool_of(train, test, labels, groups)
    assert set(pool) <= set(train)
    assert not set(groups[pool]) & set(groups[test])
    assert leaked == sum(group in set(groups[test]) for group in groups[train])
    pictures = list(zip(groups[pool], labels[pool], strict=True))
    assert len(set(pictures)) == len(pictures)
    target = Target(CLASSES, tuple("abcd"), labels, np.ones(len(labels), bool))
    order = drawn(pool, target, np.random.default_rng(seed))
    assert [len(set(labels[rows])) for rows in order] == [1] * len(order)
    assert sorted(np.concatenate(order) if order else []) == sorted(pool)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_the_interval_is_student_s(accuracies: list[float]) -> None:
    point = point_of(5, accuracies)
    assert point.accuracy == pytest.approx(np.mean(accuracies))
    if len(accuracies) == 1:
        assert point.interval is None
        return
    error = max(stats.sem(accuracies), 1e-300)
    expected = np.clip(stats.t.interval(0.95, len(accuracies) - 1, np.mean(accuracies), error), 0, 1)
    assert point.interval == pytest.approx(tuple(expected), abs=1e-9)


@pytest.mark.rotates(3)
def test_a_point_is_a_head_fitted_on_the_draw_and_scored_on_val(folder: Path) -> None:
    (curve,) = few_shot([folder / "a.h5"], shots=[3], draws=2, seed=7)
    cache = open_cache(folder / "a.h5")
    X, labels = np.array(cache.features()), cache.labels
    train, val = (np.flatnonzero(cache.split == split) for split in ("train", "val"))
    for draw, accuracy in enumerate(curve.points[0].accuracies):
        rng = np.random.default_rng((7, draw))
        rows = np.sort(np.concatenate([rng.permutation(train[labels[train] == label])[:3] for label in (0, 1)]))
        head = LogisticHead().fit(X[rows] / spread_of(X[rows]), labels[rows])
        assert accuracy == (head.predict(X[val] / spread_of(X[rows])) == labels[val]).mean()
    assert (curve.split, curve.tested, curve.n_classes, curve.backbone) == ("val", 20, 2, "tiny")


@pytest.mark.rotates(3)
def test_caches_of_the_same_images_get_the_same_draws_and_tiny_features_are_no_nothing(folder: Path) -> None:
    names = [folder / f"{name}.h5" for name in ("a", "random", "pixels")]
    curves = few_shot(names, shots=[1, 10], draws=2)
    assert [curve.name for curve in curves] == ["a", "random", "pixels"]
    assert all(curve.notes == () for curve in curves)
    assert curves == few_shot(names, shots=[10, 1, 10], draws=2)
    assert len(set(curves[0].points[1].accuracies)) == 1  # all ten of each class are the same draw every time
    X = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    assert spread_of(X * np.float32(1e-9)) == pytest.approx(spread_of(X) * 1e-9)
    assert spread_of(np.ones((5, 3), np.float32)) == 1


@pytest.mark.rotates(3)
def test_copies_of_test_images_are_never_drawn_and_other_images_are_told(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "photos", tmp_path / "photos")
    for number in (0, 2):
        shutil.copy(tmp_path / f"photos/val/cats/{number}.jpg", tmp_path / f"photos/train/cats/again{number}.jpg")
    shutil.copy(tmp_path / "photos/train/cats/0.jpg", tmp_path / "photos/train/cats/twin.jpg")
    extract(tmp_path / "photos", tmp_path / "b.h5", backbone="tiny")
    first, second = few_shot([folder / "a.h5", tmp_path / "b.h5"], shots=[10], draws=1)
    assert first.points == second.points  # what was added is not drawn
    assert second.notes == (
        f"holds other images than {folder / 'a.h5'}",
        "2 training images are byte-identical to images of val and are never drawn",
    )


@pytest.mark.rotates(3)
def test_classes_with_too_few_images_give_all_and_too_many_shots_are_an_error(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "photos", tmp_path / "photos")
    for number in (1, 3, 5, 7):
        (tmp_path / f"photos/train/dogs/{number}.png").unlink()
    extract(tmp_path / "photos", tmp_path / "c.h5", backbone="tiny")
    (curve,) = few_shot([tmp_path / "c.h5"], shots=[2, 10], draws=1)
    assert curve.notes == ("classes with fewer than 10 different images give all they have: dogs (6)",)
    with pytest.raises(TrainingError, match=r"no class with 11 different training images; the largest has 10") as error:
        few_shot([tmp_path / "c.h5"], shots=[2, 11], draws=1)
    assert error.value.hint == "Give fewer shots: --shots 2"


def test_bad_requests(folder: Path, tmp_path: Path) -> None:
    good = [folder / "a.h5"]
    for settings, message in (
        ({"shots": [0]}, "shots must be whole numbers of at least 1. Got 0"),
        ({"shots": [2.5]}, "shots must be"),
        ({"shots": []}, "one number or more"),
        ({"draws": 0}, "draws must be"),
        ({"head": "forest"}, "head must be one of"),
    ):
        with pytest.raises(UsageError, match=message):
            few_shot(good, **settings)
    with pytest.raises(UsageError, match="one cache or more"):
        few_shot([])
    shutil.copytree(folder / "photos/train/cats", tmp_path / "photos/cats")
    extract(tmp_path / "photos", tmp_path / "one.h5", backbone="tiny")
    with pytest.raises(TrainingError, match="have one class, 'cats'"):
        few_shot([tmp_path / "one.h5"], shots=[1])


@pytest.mark.rotates(3)
def test_the_command(folder: Path, precompute: Command, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'precompute[plot]'")
    arguments = (folder / "a.h5", folder / "pixels.h5", "--shots", "1,5", "--draws", "2")
    told = precompute("few-shot", *arguments, "--json", "--plot", "few.svg")
    assert told.returncode == 0, told.stderr
    curves = json.loads(told.stdout)["curves"]
    assert [[point["shots"] for point in curve["points"]] for curve in curves] == [[1, 5], [1, 5]]
    picture = (tmp_path / "few.svg").read_text()
    assert picture.startswith("<?xml")
    table = precompute("few-shot", *arguments[1:], "--head", "mlp", "--shots", "1", "--draws", "1")
    assert table.returncode == 0
    assert "pixels" in table.stdout
    for wrong, status in (
        (("--shots", "few"), 2),
        (("--draws", "0"), 2),
        (("--plot", "few.xls"), 2),
        (("--shots", "99"), 1),
    ):
        assert precompute("few-shot", folder / "a.h5", *wrong).returncode == status
