"""Heads on samples of several views: a sample counts once, is on one side of every split, and is scored by one view."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, make_photos
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from precompute import (
    compare,
    export_features,
    extract,
    few_shot,
    load_head,
    open_cache,
    predict,
    predict_each,
    train_head,
)
from precompute.errors import HeadMismatchError, UsageError
from precompute.heads import (
    CentroidHead,
    KNNHead,
    LogisticHead,
    MLPHead,
    MLPSearch,
    RidgeHead,
    RidgeRegressionHead,
    RowView,
    ViewRows,
)
from precompute.heads.linear import logistic_base
from precompute.heads.mlp.samples import Samples, moments
from precompute.training.views import fit_rows, mean_over

V = 3
rng = np.random.default_rng(0)
LABEL = np.arange(90) % 3
PLAIN = (rng.normal(size=(90, 8)) + 2 * np.eye(3, 8)[LABEL]).astype(np.float32)
JITTERED = PLAIN[:, None] + np.concatenate([np.zeros((90, 1, 8)), rng.normal(size=(90, V - 1, 8))], axis=1)
JITTERED = JITTERED.astype(np.float32)
ALIKE = np.repeat(PLAIN[:, None], V, axis=1)
CLOSED = {
    "logistic": LogisticHead,
    "ridge": RidgeHead,
    "centroid": CentroidHead,
    "knn": KNNHead,
    "logistic C": lambda: LogisticHead(C=0.1),
    "ridge alpha": lambda: RidgeHead(alpha=10.0),
    "cosine": lambda: CentroidHead(metric="cosine"),
    "regression": RidgeRegressionHead,
}


# Rows of views


@given(
    rows=st.none() | arrays.arrays(np.intp, st.integers(1, 40), elements=st.integers(0, 29)),
    chosen=st.lists(st.integers(0, 1000), max_size=20),
)
def test_view_rows_are_the_plain_views_and_know_the_others(rows: np.ndarray | None, chosen: list[int]) -> None:
    X = np.arange(30 * V * 2 * 2, dtype=np.float16).reshape(30, V, 2, 2)
    expected = X if rows is None else X[rows]
    view = ViewRows(X, rows)
    assert view.shape == (len(expected), 4)
    assert np.array_equal(view[:], expected[:, 0].reshape(-1, 4))
    every = view.every()
    assert np.array_equal(every[:], expected.reshape(-1, 4))
    some = np.array(chosen, dtype=np.intp) % len(expected)
    assert np.array_equal(every[view.drawn(some, None)], expected[some, 0].reshape(-1, 4))
    drawn = every[view.drawn(some, np.random.default_rng(0))].reshape(-1, 2, 2)
    assert all(any(np.array_equal(one, other) for other in expected[at]) for one, at in zip(drawn, some, strict=True))
    taken = view.take(some)
    assert isinstance(taken, ViewRows)
    assert np.array_equal(taken.every()[:], expected[some].reshape(-1, 4))
    blocks = [block for _, block in view.blocks(7)]
    assert np.array_equal(np.concatenate(blocks), expected[:, 0].reshape(-1, 4))


def test_nothing_is_copied_and_what_is_mapped_stays_mapped(tmp_path: Path) -> None:
    JITTERED.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", np.float32, "r", shape=JITTERED.shape)
    view = ViewRows(mapped, np.arange(5, 50))
    assert np.shares_memory(view.features, mapped)
    assert np.shares_memory(view.every().features, mapped)
    assert view.mapped and view.every().mapped
    assert np.array_equal(view[np.array([3, 1])], JITTERED[[8, 6], 0])


def test_a_number_that_is_none_is_found_in_any_view() -> None:
    X = JITTERED.copy()
    X[4, 2, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        MLPHead().fit(ViewRows(X), LABEL)


# An MLP draws


@pytest.mark.parametrize("large", [False, True])
def test_each_epoch_has_one_view_of_each_sample_at_random(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:
        for name in ("SHUFFLE_BYTES", "NEIGHBOUR_BYTES", "BUFFER_BYTES"):
            monkeypatch.setattr(f"precompute.heads.mlp.samples.{name}", {"S": 1, "N": 256, "B": 1024}[name[0]])
    samples = Samples(ViewRows(JITTERED), LABEL, np.arange(5, 90), np.dtype(np.float32))
    generator, cpu = np.random.default_rng(0), torch.device("cpu")
    places = {row.tobytes(): (n, v) for n, of in enumerate(JITTERED) for v, row in enumerate(of)}
    drawn = []
    for _ in range(60):
        batches = list(samples.batches(16, generator, cpu))
        found = [places[x.numpy().tobytes()] for batch, _, _ in batches for x in batch]
        labels = np.concatenate([label.numpy() for _, label, _ in batches])
        assert sorted(n for n, _ in found) == list(range(5, 90))
        assert labels.tolist() == [LABEL[n] for n, _ in found]
        drawn.append(dict(found))
    counts = np.bincount([view for epoch in drawn for view in epoch.values()], minlength=V)
    assert (abs(counts / counts.sum() - 1 / V) < 0.03).all()
    assert all(len({epoch[n] for epoch in drawn}) == V for n in range(5, 90))
    in_order = np.concatenate([x.numpy() for x, _, _ in samples.in_order(cpu)])
    assert np.array_equal(in_order, JITTERED[5:, 0])


def test_moments_are_those_of_all_views_with_the_weight_of_their_sample() -> None:
    weight = rng.uniform(0.5, 2, 90)
    mean, scale = moments(Samples(ViewRows(JITTERED), LABEL, np.arange(90), np.dtype(np.float32), weight))
    repeated = np.repeat(weight, V)
    flat = JITTERED.reshape(-1, 8).astype(np.float64)
    expected = np.average(flat, axis=0, weights=repeated)
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scale, np.sqrt(np.average((flat - expected) ** 2, axis=0, weights=repeated)), rtol=1e-5)


def small_search() -> MLPSearch:
    return MLPSearch(param_grid={"dropout": (0.0, 0.5)})


@pytest.mark.rotates(6)
@pytest.mark.parametrize("head", [MLPHead, small_search])
def test_an_mlp_on_views_trains_repeats_itself_and_is_another_than_on_the_plain_ones(head: Any) -> None:
    fitted = []
    for features in (JITTERED, JITTERED, PLAIN):
        estimator = head()
        fit_rows(estimator, features, V if features.ndim == 3 else 1, np.arange(90), LABEL)
        fitted.append(estimator.predict_proba(PLAIN))
    assert np.array_equal(fitted[0], fitted[1])
    assert not np.array_equal(fitted[0], fitted[2])
    assert (fitted[0].argmax(axis=1) == LABEL).mean() > 0.8


# All others take every view


@pytest.mark.rotates(3)
@pytest.mark.parametrize("name", CLOSED)
def test_views_that_are_all_alike_change_nothing(name: str) -> None:
    """So C, alpha, k and temperatures mean what they mean without views, and are chosen alike."""
    plain, views = CLOSED[name](), CLOSED[name]()
    y = PLAIN @ np.arange(8.0) if name == "regression" else LABEL
    rows = np.arange(90)
    fit_rows(plain, PLAIN, 1, rows, y, groups=np.arange(90) // 2)
    fit_rows(views, ALIKE, V, rows, y, groups=np.arange(90) // 2)
    for chosen in ("C_", "alpha_"):
        if hasattr(plain, chosen):
            assert getattr(plain, chosen) == getattr(views, chosen)
    other = JITTERED[:, 1]
    if name == "regression":
        np.testing.assert_allclose(views.predict(other), plain.predict(other), rtol=1e-3, atol=1e-3)
        return
    np.testing.assert_allclose(views.predict_proba(other), plain.predict_proba(other), rtol=2e-3, atol=2e-3)


@pytest.mark.rotates(3)
def test_views_of_a_sample_are_in_one_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = logistic_base.folds

    def spied(y: Any, *, groups: Any, **options: Any) -> Any:
        found = real(y, groups=groups, **options)
        seen.extend(found)
        return found

    monkeypatch.setattr(logistic_base, "folds", spied)
    fit_rows(LogisticHead(), JITTERED, V, np.arange(90), LABEL)
    assert len(seen) == 5
    for train, test in seen:
        assert not set(train // V) & set(test // V)
        assert len(test) % V == 0


def test_groups_given_by_the_user_hold_all_views_of_their_samples() -> None:
    class Spy:
        def fit(self, X: RowView, y: Any, sample_weight: Any, *, groups: Any) -> None:
            assert np.array_equal(X[:], JITTERED[10:20].reshape(-1, 8))
            assert np.array_equal(y, np.repeat(LABEL[10:20], V))
            assert np.array_equal(groups, np.repeat(np.arange(10) // 2, V))
            assert sample_weight.sum() == pytest.approx(10)

    fit_rows(Spy(), JITTERED, V, np.arange(10, 20), LABEL[10:20], groups=np.arange(10) // 2)


def test_a_mean_over_views_is_that_of_what_is_predicted() -> None:
    parts = [rng.dirichlet(np.ones(3), 5).astype(np.float32) for _ in range(V)]
    found = mean_over(parts.__getitem__, V)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.mean(parts, axis=0), rtol=1e-6)
    assert np.array_equal(mean_over(parts.__getitem__, 1), parts[0])


# Caches


OPTIONS = {"backbone": "tiny", "batch_size": 8}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_photos(tmp_path_factory.mktemp("view-heads") / "photos", per_class=15)
    shutil.copy(folder / "train/cats/1.png", folder / "val/cats/again.png")
    return folder


@pytest.fixture(scope="module")
def views(photos: Path) -> Path:
    extract(photos, photos.parent / "views.h5", views=4, augment="flip,crop,color", **OPTIONS)
    return photos.parent / "views.h5"


@pytest.fixture(scope="module")
def plain(photos: Path) -> Path:
    extract(photos, photos.parent / "plain.h5", **OPTIONS)
    return photos.parent / "plain.h5"


HEADS = ["logistic", "ridge", "centroid", "knn", "mlp"]


@pytest.mark.rotates(3)
@pytest.mark.parametrize("head", HEADS)
def test_a_head_is_trained_on_views_and_scored_by_the_plain_one(
    head: str, photos: Path, views: Path, plain: Path, tmp_path: Path
) -> None:
    result = train_head(views, tmp_path / "a.safetensors", head=head)
    assert result.rows == {"train": 30, "val": 31}
    assert result.scores["val"].n == 31
    assert "trained on 4 views of each image, in which it counts once; scored by the plain view" in result.notes
    on_cache = predict(tmp_path / "a.safetensors", views)
    assert on_cache.scored == 61
    on_plain, on_images = predict(tmp_path / "a.safetensors", plain), predict(tmp_path / "a.safetensors", photos)
    for one, other, third in zip(on_cache.items, on_plain.items, on_images.items, strict=True):
        assert one == other
        assert (one.id, one.label, one.true) == (third.id, third.label, third.true)
        assert one.probability == pytest.approx(third.probability, abs=1e-5)


@pytest.mark.rotates(3)
@pytest.mark.parametrize("head", HEADS)
def test_trained_on_the_plain_view_it_is_the_head_of_a_file_without_others(
    head: str, views: Path, plain: Path, tmp_path: Path
) -> None:
    one = train_head(views, tmp_path / "a.safetensors", head=head, plain_view=True)
    other = train_head(plain, tmp_path / "b.safetensors", head=head)
    assert one.scores["val"].to_dict() == other.scores["val"].to_dict()
    assert one.leaks["val"].to_dict() == other.leaks["val"].to_dict()
    assert "trained on the plain view alone; scored by the plain view" in one.notes
    assert predict(tmp_path / "b.safetensors", views).items == predict(tmp_path / "a.safetensors", plain).items


@pytest.mark.rotates(3)
@pytest.mark.parametrize("head", ["logistic", "mlp", "knn"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_head_may_average_over_views_and_says_so_in_its_file(
    head: str, calibrated: bool, photos: Path, views: Path, plain: Path, tmp_path: Path
) -> None:
    result = train_head(views, tmp_path / "a.safetensors", head=head, average_views=True, calibrated=calibrated)
    assert any("scored by the mean over 4 views" in note for note in result.notes)
    saved, cache = load_head(tmp_path / "a.safetensors"), open_cache(views)
    assert saved.metadata["average_views"] == 4
    val = np.flatnonzero((cache.split == "val") & cache.ok)
    parts = [saved.head.predict_proba(np.array(cache.features()[val, view])) for view in range(4)]
    expected = saved.scaled(np.mean(parts, axis=0, dtype=np.float64).astype(np.float32))
    on_cache = {item.id: item for item in predict(tmp_path / "a.safetensors", views).items}
    on_images = {item.id: item for item in predict(tmp_path / "a.safetensors", photos).items}
    right = 0
    for row, proba in zip(val, expected, strict=True):
        item = on_cache[cache.ids[row]]
        assert item.probability == pytest.approx(proba.max(), abs=1e-5)
        assert on_images[cache.ids[row]].probability == pytest.approx(proba.max(), abs=1e-4)
        assert on_images[cache.ids[row]].label == item.label
        right += item.label == item.true
    assert result.scores["val"].accuracy == right / len(val)
    with pytest.raises(HeadMismatchError):
        predict(tmp_path / "a.safetensors", plain)


@pytest.mark.rotates(3)
def test_heads_on_views_are_compared_with_others_on_the_same_images(views: Path, plain: Path, tmp_path: Path) -> None:
    a = train_head(views, tmp_path / "a.safetensors")
    b = train_head(plain, tmp_path / "b.safetensors")
    c = train_head(views, tmp_path / "c.safetensors", average_views=True)
    heads = [str(tmp_path / f"{name}.safetensors") for name in "abc"]
    found = compare(heads[0], heads[1], views, plain).result
    assert found.n == 30  # one of val has the bytes of a training image
    assert abs(found.difference - (a.scores["val"].accuracy - b.scores["val"].accuracy)) < 0.05
    assert compare(heads[0], heads[1], plain).result.to_dict() == found.to_dict()
    averaged = compare(heads[2], heads[0], views).result
    assert abs(averaged.accuracies[0] - c.scores["val"].accuracy) < 0.05


@pytest.mark.parametrize("head", ["logistic", pytest.param("mlp", marks=pytest.mark.slow), "ridge"])
def test_few_shot_trains_on_views_or_on_the_plain_one(head: str, views: Path, plain: Path) -> None:
    options: dict[str, Any] = {"shots": (3, 8), "draws": 2, "head": head}
    (on_views,), (on_plain,) = few_shot([views], **options), few_shot([plain], **options)
    (chosen,) = few_shot([views], plain_view=True, **options)
    assert chosen.points == on_plain.points
    assert [point.shots for point in on_views.points] == [3, 8]


# Several labels and numbers


@pytest.fixture(scope="module")
def table(photos: Path) -> Path:
    """A cache of the same photos with views, three columns of 0 and 1 that the folders do not tell, and a number."""
    rng = np.random.default_rng(7)
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    names += sorted(str(path.relative_to(photos)) for path in photos.rglob("*.jpg"))
    names.remove("val/cats/again.png")  # of neighbours that are equally near either may be among the k
    lines = ["path,split,one,two,three,amount"]
    for number, name in enumerate(names):
        marks = ",".join(map(str, rng.integers(0, 2, 3)))
        lines.append(f"{name},{('train', 'train', 'val', 'test')[number % 4]},{marks},{rng.normal():.4f}")
    (photos.parent / "marks.csv").write_text("\n".join(lines) + "\n")
    out = photos.parent / "marks.h5"
    keep = ["one", "two", "three", "amount"]
    extract(photos.parent / "marks.csv", out, views=4, augment="flip,crop", root=photos, keep=keep, **OPTIONS)
    return out


TARGETS: dict[str, dict[str, Any]] = {
    "labels": {"label_column": ["one", "two", "three"]},
    "number": {"label_column": "amount", "task": "number"},
}
SAID = {"labels": "probabilities", "number": "number"}


@pytest.mark.rotates(6)
@pytest.mark.parametrize(
    ("task", "head"),
    [("labels", head) for head in ("logistic", "ridge", "mlp", "knn")]
    + [("number", head) for head in ("ridge", "mlp", "knn")],
)
def test_labels_and_numbers_are_learned_from_views_and_averaged_over_them(
    task: str, head: str, table: Path, photos: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"head": head, **TARGETS[task]}
    plain = train_head(table, tmp_path / "plain.safetensors", **options)
    mean = train_head(table, tmp_path / "mean.safetensors", average_views=True, **options)
    cache, saved = open_cache(table), load_head(tmp_path / "mean.safetensors")
    say = saved.head.predict if task == "number" else saved.head.predict_proba
    expected = np.mean([say(RowView(cache.features()[:, view])) for view in range(4)], axis=0)
    of_cache = predict(tmp_path / "mean.safetensors", table)
    said = np.array([getattr(item, SAID[task]) for item in of_cache.items])
    np.testing.assert_allclose(said, expected, rtol=1e-5, atol=1e-6)
    of_images = predict(tmp_path / "mean.safetensors", photos, batch_size=8)  # kNN jumps where a neighbour changes
    by_id = {item.id: getattr(item, SAID[task]) for item in of_images.items}
    np.testing.assert_allclose(said, [by_id[item.id] for item in of_cache.items], rtol=1e-3, atol=1e-3)
    assert mean.scores.keys() == plain.scores.keys()
    assert train_head(table, plain_view=True, **options).scores.keys() == plain.scores.keys()
    if task == "labels":  # thresholds are those of the mean that is predicted
        assert all(
            set(item.labels)
            == {n for n, p, t in zip(saved.head.labels_, ps, saved.head.thresholds_, strict=True) if p > t}
            for item, ps in zip(of_cache.items, said, strict=True)
        )
    # One of the plain view and one that averages over views, in one pass
    heads = [tmp_path / "plain.safetensors", tmp_path / "mean.safetensors"]
    together = predict_each(heads, photos, batch_size=8)
    assert together[1].items == of_images.items
    alone = predict(tmp_path / "plain.safetensors", photos, batch_size=8)
    for one, other in zip(together[0].items, alone.items, strict=True):
        np.testing.assert_allclose(getattr(one, SAID[task]), getattr(other, SAID[task]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("task", TARGETS)
@pytest.mark.parametrize("average", [False, True])
def test_few_shot_curves_of_labels_and_numbers_on_views(task: str, average: bool, table: Path) -> None:
    (curve,) = few_shot([table], shots=(4, 8), draws=2, head="ridge", average_views=average, **TARGETS[task])
    (again,) = few_shot([table], shots=(4, 8), draws=2, head="ridge", average_views=average, **TARGETS[task])
    assert curve.points == again.points
    assert any("views" in note for note in curve.notes)


def test_features_of_views_are_exported(views: Path, tmp_path: Path) -> None:
    cache = open_cache(views)
    export_features(views, tmp_path / "a.npz")
    export_features(views, tmp_path / "b.npz", plain_view=True)
    export_features(views, tmp_path / "a.csv")
    with np.load(tmp_path / "a.npz") as file:
        assert np.array_equal(file["features"], cache.features()[cache.ok])
    with np.load(tmp_path / "b.npz") as file:
        assert np.array_equal(file["features"], cache.plain_features()[cache.ok])
    header, first = (tmp_path / "a.csv").read_text().splitlines()[:2]
    assert header.endswith(f",f{4 * 128 - 1}")
    np.testing.assert_array_equal(np.array(first.split(",")[3:], np.float32), cache.features()[0].ravel())


def test_what_cannot_be_is_refused(plain: Path, views: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to average over"):
        train_head(plain, average_views=True)
    for options in ({}, {"plain_view": True, "average_views": True}):
        with pytest.raises(UsageError, match="trains on plain pictures"):
            train_head(views, protocol="simclr", **options)  # type: ignore[arg-type]


@pytest.mark.rotates(6)
def test_a_head_does_not_decide_which_transform_runs(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "head_mine.py").write_text("from torchvision.transforms import v2\nown = v2.GaussianBlur(3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    extract(photos, tmp_path / "a.h5", views=2, augment="head_mine:own", **OPTIONS)
    train_head("a.h5", "plain.safetensors")
    train_head("a.h5", "mean.safetensors", average_views=True)
    assert len(predict("plain.safetensors", photos).items) == 61
    with pytest.raises(HeadMismatchError, match="names a transform that is code: head_mine:own"):
        predict("mean.safetensors", photos)
    assert predict("mean.safetensors", photos, augment="head_mine:own").items
    with pytest.raises(UsageError, match="augment has no effect"):
        predict("mean.safetensors", "a.h5", augment="head_mine:own")
    sys.modules.pop("head_mine", None)


@pytest.mark.rotates(3)
def test_the_commands_take_the_options(views: Path, tmp_path: Path, precompute: Command) -> None:
    done = precompute("train-head", views, "-o", "a.safetensors", "--average-views", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"]["train"] == 30
    assert "the mean over 4 views" in precompute("info", "a.safetensors").stdout
    assert precompute("train-head", views, "--plain-view").returncode == 0
    assert precompute("few-shot", views, "--shots", "3", "--draws", "2", "--plain-view").returncode == 0
    assert precompute("export", views, "-o", "a.npz", "--plain-view").returncode == 0
    assert precompute("predict", "a.safetensors", views).returncode == 0
