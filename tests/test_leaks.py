"""Leaks: what a scored split shares with the training images is found, told, and scored without."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Command, make_photos
from hypothesis import given
from hypothesis import strategies as st
from modalities import Kind, Samples
from PIL import Image
from sklearn.metrics import accuracy_score
from sklearn.neighbors import NearestNeighbors
from sounds import sound, wav

from precompute import extract, open_cache, train_head
from precompute.errors import UsageError
from precompute.heads import RowView, listening
from precompute.heads.scoring.scores import wilson_interval
from precompute.training.leaks import Leaks, _sample, find_leaks
from precompute.training.similarity import nearest


@pytest.mark.rotates(3)
@given(st.integers(1, 30), st.integers(2, 30), st.integers(2, 6), st.integers(0, 2**32))
def test_the_nearest_is_scikit_learns(n, m, d, seed):
    rng = np.random.default_rng(seed)
    scored, train = (rng.normal(2, 1, (rows, d)).astype(np.float32) for rows in (n, m))
    best, which = nearest(RowView(scored), RowView(train))
    centre = train.mean(axis=0, dtype=np.float64)
    oracle = NearestNeighbors(n_neighbors=1, metric="cosine").fit(train - centre)
    distance, _ = oracle.kneighbors(scored - centre)
    np.testing.assert_allclose(best, 1 - distance[:, 0], atol=1e-4)
    cosine = np.sum((scored - centre) * (train - centre)[which], axis=1)
    cosine /= np.linalg.norm(scored - centre, axis=1) * np.linalg.norm((train - centre)[which], axis=1)
    np.testing.assert_allclose(best, cosine, atol=1e-4)


def test_blocks_of_a_float16_memmap_and_rows_in_any_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = np.memmap(tmp_path / "features", np.float16, "w+", shape=(5000, 6))
    features[:] = rng.normal(size=features.shape)
    rows = rng.permutation(5000)
    best, which = nearest(RowView(features, rows[:2100]), RowView(features, rows))  # each is among the others
    assert np.array_equal(which, np.arange(2100))
    np.testing.assert_allclose(best, 1, atol=1e-5)


def test_rows_that_are_all_the_same_are_like_nothing() -> None:
    best, _ = nearest(RowView(np.ones((3, 4), np.float32)), RowView(np.ones((5, 4), np.float32)))
    assert best.tolist() == [0, 0, 0]


@pytest.fixture(scope="module")
def leaky(hymenoptera: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real photos, 40 a class in train and val; val also has 2 training photos as they are and 3 at half their size."""
    place = tmp_path_factory.mktemp("leaks")
    folder = place / "photos"
    for split in ("train", "val"):
        for label in ("ants", "bees"):
            (folder / split / label).mkdir(parents=True)
            for photo in sorted((hymenoptera / split / label).glob("*.jpg"))[:40]:
                shutil.copy(photo, folder / split / label)
    known = sorted((folder / "train/ants").iterdir())[:5]
    for photo in known[:2]:
        shutil.copy(photo, folder / "val/ants" / f"copy_{photo.name}")
    for photo in known[2:]:
        with Image.open(photo) as image:
            image.resize((image.width // 2, image.height // 2)).save(folder / "val/ants" / f"half_{photo.name}")
    extract(folder, place / "a.h5", backbone="tiny")
    return place / "a.h5"


@pytest.mark.rotates(3)
def test_copies_and_photos_at_half_their_size_are_found_and_left_out_of_a_second_score(leaky: Path) -> None:
    training = train_head(leaky, C=1.0)
    leaks = training.leaks["val"]
    assert leaks.identical == 2
    near = {pair.id: pair for pair in leaks.near}
    assert {name for name in near if "half_" in name} == {
        f"val/ants/half_{Path(pair.train_id).name}" for name, pair in near.items() if "half_" in name
    }
    halves = [pair for pair in leaks.near[:3] if "half_" in pair.id]
    assert len(halves) == 3, "they are the most similar"
    assert all(pair.same_class and pair.similarity > 0.99 for pair in halves)
    assert [pair.similarity for pair in leaks.near] == sorted((pair.similarity for pair in leaks.near), reverse=True)

    cache = open_cache(leaky)
    left = [row for row, name in enumerate(cache.ids) if name.startswith("val/") and name not in near]
    left = [row for row in left if "copy_" not in cache.ids[row]]
    true = np.array(cache.classes)[cache.labels[left]]
    clean = training.without_leaks["val"]
    assert clean.n == len(left) == leaks.left
    assert clean.accuracy == accuracy_score(true, training.head.predict(np.array(cache.features()[left])))
    assert any("2 images of val are byte-identical" in line for line in training.notes)
    assert any(line.startswith(f"{len(near)} images of val look nearly like") for line in training.notes)
    told = training.to_dict()
    assert told["leaks"]["val"]["near"][0]["train_id"].startswith("train/ants/")
    assert told["without_leaks"]["val"]["n"] == len(left)


@pytest.mark.rotates(3)
def test_the_similarity_decides_what_is_a_suspect(leaky: Path) -> None:
    few = train_head(leaky, C=1.0, similarity=0.999).leaks["val"]
    many = train_head(leaky, C=1.0, similarity=0.5).leaks["val"]
    assert {pair.id for pair in few.near} < {pair.id for pair in many.near}
    assert few.similarity == 0.999
    for impossible in (0, 1.5, float("nan")):
        with pytest.raises(UsageError, match="similarity must be"):
            train_head(leaky, similarity=impossible)


def named(leaks: Leaks) -> set[tuple[str, str]]:
    return {(pair.id, pair.train_id) for pair in leaks.near}


def test_where_a_search_would_take_long_a_sample_is_searched_and_described(
    leaky: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_head(leaky, C=1.0)
    monkeypatch.setattr("precompute.training.leaks.SEARCH_MOST", 1)
    assert train_head(leaky, C=1.0).leaks["val"].sample is None, "400 images are searched at any cost"
    monkeypatch.setattr("precompute.training.leaks.SAMPLE_LEAST", 40)
    training = train_head(leaky, C=1.0)
    leaks, sample = training.leaks["val"], training.leaks["val"].sample
    assert sample is not None
    assert (sample.searched, sample.of) == (40, training.rows["val"] - leaks.identical)
    assert named(leaks) < named(whole.leaks["val"])
    assert sample.interval == wilson_interval(len(leaks.near), 40)
    assert leaks.left == sample.of - len(leaks.near), "images that nobody compared count as clean"
    (note,) = (line for line in training.notes if "sample of val" in line)
    low, high = sample.interval
    assert f"40 of {sample.of} images: {low:.2%} to {high:.2%} of all look nearly like" in note
    assert "those outside it are not known; --similarity 0.9 searches all" in note
    told = json.loads(json.dumps(training.to_dict()["leaks"]["val"]["sample"]))
    assert told == {"searched": 40, "of": sample.of, "interval": [low, high]}
    asked = train_head(leaky, C=1.0, similarity=0.9).leaks["val"]
    assert asked.sample is None
    assert named(asked) == named(whole.leaks["val"])


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=8), share=st.floats(0.01, 1), seed=st.integers(0, 2**32)
)
def test_a_sample_has_the_proportions_of_the_classes(counts: list[int], share: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    size = max(1, round(share * len(labels)))
    chosen = _sample(labels, size)
    assert len(np.unique(chosen)) == len(chosen) == size
    drawn = np.bincount(labels[chosen], minlength=len(counts))
    assert (abs(drawn - np.array(counts) * size / len(labels)) < 2).all()


def test_suspects_of_real_photos_are_those_of_a_float64_search_of_all_pairs(leaky: Path) -> None:
    cache = open_cache(leaky)
    in_train = np.array([name.startswith("train/") for name in cache.ids])
    features = np.array(cache.features(), dtype=np.float64)
    features -= features[in_train].mean(axis=0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    for bar in (0.6, 0.9, 0.99):
        leaks = train_head(leaky, C=1.0, similarity=bar).leaks["val"]
        found = named(leaks)
        best = {}
        for row in np.flatnonzero(~in_train):
            cosine = features[in_train] @ features[row]
            if cosine.max() >= bar and "copy_" not in cache.ids[row]:
                best[cache.ids[row]] = cache.ids[np.flatnonzero(in_train)[cosine.argmax()]]
        assert found == set(best.items())
        assert len(found) >= 3


def test_progress_counts_the_scored_images_of_all_splits(leaky: Path) -> None:
    cache, reports = open_cache(leaky), []
    train, *others = np.array_split(np.arange(len(cache.ids)), 3)
    parts = {"train": train, "val": others[0], "test": others[1]}
    alone = np.arange(len(cache.ids))
    with listening(lambda now: reports.append((now.done, now.total))):
        find_leaks(cache, cache.layers[0], parts, alone, alone)
    n = len(others[0]) + len(others[1])
    assert {total for _, total in reports} == {n}
    assert len(others[0]) in [done for done, _ in reports]
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)
    assert reports[-1] == (n, n)


def test_a_split_of_nothing_but_leaks_has_no_second_score(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", per_class=3)
    shutil.rmtree(photos / "val")
    shutil.copytree(photos / "train", photos / "val")
    extract(photos, tmp_path / "a.h5", backbone="tiny")
    training = train_head(tmp_path / "a.h5", C=1.0)
    assert training.leaks["val"].identical == training.rows["val"] == 6
    assert training.without_leaks == {}


def nearly(kind: Kind, seed: int, suffix: str) -> bytes:
    """The same sample to people, in other bytes."""
    raw = kind.encode(seed, suffix)
    if kind.unit == "texts":
        return raw.upper() + b" "
    if kind.unit == "clips":
        return wav(0.98 * sound(seed, 0.2 + 0.1 * (seed % 12)))
    stream = io.BytesIO()
    Image.open(io.BytesIO(raw)).convert("RGB").save(stream, "BMP")
    return stream.getvalue()


def test_leaks_are_found_among_samples_of_every_modality(samples: Samples, tmp_path: Path, precompute: Command) -> None:
    """Copies by their bytes, what is nearly one by its features; and each is called what it is."""
    first, second, unit = *(samples.kind.named(f"train/cats/{number}") for number in (0, 1)), samples.kind.unit
    with samples.together():
        samples.copy(first, samples.kind.named("val/cats/copy"))
        samples.copy(second, samples.kind.named("val/dogs/copy"))  # under another class
        samples.write("val/dogs/near." + samples.kind.fixed, nearly(samples.kind, 2, samples.kind.suffixes[1]))
    samples.extract(tmp_path / "a.h5")
    training = train_head(tmp_path / "a.h5", C=1.0, similarity=0.98)
    leaks = training.leaks["val"]
    assert leaks.identical == 2
    assert train_head(tmp_path / "a.h5", C=1.0).leaks["val"].similarity == (0.98 if unit == "clips" else 0.9)
    assert ("val/dogs/near." + samples.kind.fixed, second) in {(pair.id, pair.train_id) for pair in leaks.near}
    assert f"2 {unit} of val are byte-identical to training {unit}: its score is optimistic" in training.notes
    assert any(f"look nearly like a training {unit[:-1]} (cosine 0.98 or more)" in line for line in training.notes)
    assert training.two_labels == [sorted([second, samples.kind.named("val/dogs/copy")])]
    done = precompute("train-head", "a.h5", "--C", "1")
    assert done.returncode == 0, done.stderr
    assert f"2 byte-identical to training {unit}" in done.stdout
    if unit != "images":
        assert not re.search("image|picture|photo", done.stdout + done.stderr)


def test_the_report_shows_leaks_and_classes(leaky: Path, precompute: Command) -> None:
    done = precompute("train-head", leaky, "--C", "1", "--per-class")
    assert done.returncode == 0, done.stderr
    assert "leaks in val" in done.stdout
    assert "2 byte-identical to training images" in done.stdout
    assert "accuracy without them" in done.stdout
    assert "val/ants/half_" in done.stdout
    assert "val, by class" in done.stdout
    assert "val, by class" not in precompute("train-head", leaky, "--C", "1").stdout
