"""Heads on the features of several layers of a cache, and on positions: from the cache to predictions of images."""

from __future__ import annotations

import json
import math
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from conftest import Command, make_photos
from hypothesis import given, settings
from hypothesis import strategies as st

from precompute import compare, extract, few_shot, load_head, open_cache, predict, predict_each, train_head
from precompute.cache.key import spec_layers
from precompute.errors import HeadFormatError, HeadMismatchError, UsageError
from precompute.heads import AttentiveHead, LogisticHead, RowView, SelectedHead, ViewRows, save_head
from precompute.training import layers as joining
from precompute.training.layers import JoinedCache, JoinedFeatures, LayerInput, with_layers

SMALL = {"resize": 32, "crop": 32}
VIT = '''
import torch
from torch import nn


def vit():
    """16 patches and a class token, with the layers `tokens` (17, 12) and `head`."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, 12, 8, stride=8)
            self.token = nn.Parameter(torch.full((1, 1, 12), 100.0))
            self.norm = nn.LayerNorm(12)

        def forward(self, x):
            patches = self.patch(x).flatten(2).transpose(1, 2)
            return torch.cat([self.token.expand(x.shape[0], -1, -1), patches], dim=1)

    class Vit(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = Tokens()
            self.head = nn.Linear(12, 5)

        def forward(self, x):
            return self.head(self.tokens(x)[:, 1:].mean(dim=1))

    torch.manual_seed(0)
    return Vit().eval()
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 photos in train and val; blocks.h5: all blocks of `tiny` with positions; pooled.h5: the same, pooled."""
    place = tmp_path_factory.mktemp("layers")
    make_photos(place / "photos", per_class=12)
    extract(place / "photos", place / "blocks.h5", backbone="tiny", layer="all-blocks", transform=SMALL)
    extract(place / "photos", place / "pooled.h5", backbone="tiny", layer="all-blocks:mean", transform=SMALL)
    layer = f"{last_map(place / 'blocks.h5')}:none"
    extract(place / "photos", place / "one.h5", backbone="tiny", layer=layer, transform=SMALL)
    return place


def last_map(path: Path) -> str:
    """The last layer of a cache that holds positions."""
    cache = open_cache(path)
    return [name for name in cache.layers if cache.plain_features(name).ndim == 4][-1]


# Features


@pytest.mark.rotates(3)
def test_features_of_all_layers_are_their_means_side_by_side(folder: Path) -> None:
    cache = open_cache(folder / "blocks.h5")
    several, name, _ = with_layers(cache, "all")
    assert isinstance(several, JoinedCache) and name is not None
    pooled = open_cache(folder / "pooled.h5")
    expected = np.concatenate([pooled.features(layer) for layer in cache.layers], axis=1)
    X = several.features(name)
    assert X.shape == expected.shape and len(X) == len(cache) and X.ndim == 2 and X.dtype == np.float32
    np.testing.assert_allclose(X[:], expected, rtol=1e-5, atol=1e-5)
    rows = np.array([5, 0, 47, 5])
    assert np.array_equal(X[rows], X[:][rows])
    assert np.array_equal(RowView(X, rows)[1:3], X[:][rows[1:3]])
    assert np.array_equal(RowView(X)[:], X[:])


def test_layers_are_scaled_to_the_variance_one_by_the_training_rows_alone(folder: Path) -> None:
    several, name, _ = with_layers(open_cache(folder / "blocks.h5"), "all")
    assert isinstance(several, JoinedCache) and name is not None
    rows = np.arange(0, 48, 3)
    scaled = several.scaled(rows)
    X, ends = scaled.features(name)[:], np.cumsum([0, *(one.width for one in scaled.inputs)])
    for start, stop in pairwise(ends):
        assert X[rows, start:stop].var(axis=0).sum() == pytest.approx(1, rel=1e-4)
    again = scaled.scaled(rows)
    assert [one.scale for one in again.inputs] == pytest.approx([one.scale for one in scaled.inputs])


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 20), st.integers(1, 3), st.lists(st.integers(0, 1000), max_size=12), st.integers(1, 4096),
)  # fmt: skip
def test_joined_features_are_indexed_and_reshaped_as_an_array(
    n: int, views: int, chosen: list[int], block_bytes: int
) -> None:
    rng = np.random.default_rng(0)
    inputs = [
        LayerInput("a", (3, 2, 2), (1, 2), 0, 2.0),
        LayerInput("b", (5, 4), (0,), 1, 0.5),
        LayerInput("c", (6,), (), 0, 1.0),
    ]
    lead = (n, views) if views > 1 else (n,)
    stored = [rng.normal(size=(*lead, *one.shape)).astype(np.float16) for one in inputs]
    a, b, c = (array.astype(np.float32) for array in stored)
    expected = np.concatenate([2 * a.mean(axis=(-2, -1)), 0.5 * b[..., 1:, :].mean(axis=-2), c], axis=-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joining, "BLOCK_BYTES", block_bytes)
        X = JoinedFeatures(inputs, stored, lead)
        rows = np.array(chosen, np.intp) % n
        np.testing.assert_allclose(X[:], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(X[rows], expected[rows], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(X[1:7], expected[1:7], rtol=1e-5, atol=1e-6)
        flat = X.reshape(-1, X.shape[-1])
        assert flat.shape == (math.prod(lead), 13)
        np.testing.assert_allclose(flat.reshape(*lead, 13)[:], expected, rtol=1e-5, atol=1e-6)
        if views > 1:
            np.testing.assert_allclose(X[:, 1][:], expected[:, 1], rtol=1e-5, atol=1e-6)
            view = ViewRows(X, rows)
            np.testing.assert_allclose(view[:], expected[rows, 0], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(view.every()[:], expected[rows].reshape(-1, 13), rtol=1e-5, atol=1e-6)
            assert np.array_equal(view.take(np.arange(len(rows)))[:], view[:])
    with pytest.raises(ValueError, match="cannot be reshaped"):
        X.reshape(-1, 7)


def test_a_joined_cache_is_pickled_as_its_path(folder: Path) -> None:
    several, name, _ = with_layers(open_cache(folder / "blocks.h5"), "all")
    again = pickle.loads(pickle.dumps(several))
    assert np.array_equal(again.features(name)[:], several.features(name)[:])


@pytest.mark.rotates(3)
def test_a_class_token_is_left_out_as_elsewhere(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_vit.py").write_text(VIT)
    monkeypatch.syspath_prepend(str(tmp_path))
    given: dict[str, Any] = {"backbone": "own_vit:vit", "transform": SMALL, "engine": "torch", "precision": "fp32"}
    extract(folder / "photos", tmp_path / "tokens.h5", layer=["tokens:none", "head:none"], **given)
    extract(folder / "photos", tmp_path / "pooled.h5", layer=["tokens:mean", "head:none"], **given)
    cache = open_cache(tmp_path / "tokens.h5")
    assert cache.features("tokens").shape[1:] == (17, 12)
    several, name, notes = with_layers(cache, "all")
    expected = open_cache(tmp_path / "pooled.h5").features("tokens")
    assert abs(expected).max() < 50 < abs(cache.features("tokens")).max()
    assert isinstance(several, JoinedCache)
    place = [one.name for one in several.inputs].index("tokens")
    start = sum(one.width for one in several.inputs[:place])
    np.testing.assert_allclose(several.features(name)[:][:, start : start + 12], expected, atol=1e-4)
    assert notes == ["the first 1 of 17 tokens of tokens have no position: left out"]
    trained = train_head(tmp_path / "tokens.h5", tmp_path / "h.safetensors", layer="tokens", head="attentive")
    assert trained.head.tokens == 17 and not trained.head.channels_first  # there the class token is one like others


# Training


@pytest.mark.rotates(3)
@pytest.mark.parametrize("kind", [None, "logistic", "ridge", "mlp", "knn", "centroid"])
def test_a_head_of_all_layers_predicts_images_as_it_predicts_the_cache(
    folder: Path, tmp_path: Path, kind: str | None
) -> None:
    out = tmp_path / "head.safetensors"
    trained = train_head(folder / "blocks.h5", out, layer="all", head=kind)
    cache = open_cache(folder / "blocks.h5")
    assert trained.layers == cache.layers and trained.kind == (kind or "selected")
    assert trained.to_dict()["layers"] == list(cache.layers)
    saved = load_head(out)
    assert "layer" not in saved.metadata
    assert [one["name"] for one in saved.metadata["layers"]] == list(cache.layers)
    from_cache = predict(out, folder / "blocks.h5")
    from_images = predict(out, folder / "photos")
    assert [one.id for one in from_cache.items] == [one.id for one in from_images.items]
    for one, other in zip(from_cache.items, from_images.items, strict=True):
        assert one.label == other.label
        assert one.probability == pytest.approx(other.probability, abs=1e-4)
    val = [one for one in from_cache.items if one.id.startswith("val/")]
    right = np.mean([one.label == one.true for one in val])
    assert right == trained.scores["val"].accuracy


@pytest.mark.rotates(3)
def test_of_several_layers_some_can_be_named_and_each_is_checked(folder: Path) -> None:
    names = open_cache(folder / "blocks.h5").layers
    trained = train_head(folder / "blocks.h5", layer=[names[1], names[0]])
    assert trained.layers == (names[1], names[0])
    assert trained.head.layers == tuple(
        open_cache(folder / "pooled.h5").features(name).shape[1] for name in (names[1], names[0])
    )


@pytest.mark.rotates(3)
def test_what_is_scored_has_no_part_in_the_choice(folder: Path, tmp_path: Path) -> None:
    """Other labels of the scored images: the same head, to the last bit."""
    cache = open_cache(folder / "blocks.h5")
    lines = ["id,label"]
    lines += [
        f"{name},{('cats', 'dogs')['dogs' in name] if name.startswith('train/') else ('cats', 'dogs')[i % 2]}"
        for i, name in enumerate(cache.ids)
    ]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    first = train_head(folder / "blocks.h5", layer="all")
    other = train_head(folder / "blocks.h5", layer="all", labels=tmp_path / "labels.csv")
    assert first.scores["val"].accuracy != other.scores["val"].accuracy
    assert first.head.coef_.tobytes() == other.head.coef_.tobytes()
    assert np.array_equal(first.head.kept_, other.head.kept_)


@pytest.mark.rotates(3)
def test_val_chooses_where_there_is_a_test_split_and_is_then_trained_on(folder: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    make_photos(photos, per_class=8)
    (photos / "test").mkdir()
    for label in ("cats", "dogs"):
        (photos / "test" / label).mkdir()
        for path in sorted((photos / "train" / label).iterdir())[:3]:
            path.rename(photos / "test" / label / path.name)
    extract(photos, tmp_path / "a.h5", backbone="tiny", layer="all-blocks", transform=SMALL)
    trained = train_head(tmp_path / "a.h5", layer="all")
    assert trained.head.source_ == "validation, then fitted on both"
    assert set(trained.scores) == {"test"}
    assert any("val chose the fraction and C and was then trained on" in note for note in trained.notes)


def test_labels_and_numbers_take_all_layers_without_choice(folder: Path, tmp_path: Path) -> None:
    ids = open_cache(folder / "blocks.h5").ids
    (tmp_path / "n.csv").write_text("id,label\n" + "".join(f"{name},{i + 0.5}\n" for i, name in enumerate(ids)))
    trained = train_head(folder / "blocks.h5", tmp_path / "n.safetensors", layer="all", labels=tmp_path / "n.csv")
    assert (trained.task, trained.kind) == ("number", "ridge")
    assert len(predict(tmp_path / "n.safetensors", folder / "photos").items) == len(ids)
    for head in ("selected", "attentive"):
        with pytest.raises(UsageError, match=f"There is no {head} head for --task number"):
            train_head(folder / "blocks.h5", layer="all", head=head, labels=tmp_path / "n.csv")


@pytest.mark.rotates(3)
def test_views_are_pooled_each_for_itself(folder: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "backbone": "tiny",
        "layer": "all-blocks",
        "transform": SMALL,
        "views": 3,
        "augment": "flip",
    }
    extract(folder / "photos", tmp_path / "views.h5", **given)
    plain = train_head(tmp_path / "views.h5", layer="all", plain_view=True)
    expected = train_head(folder / "blocks.h5", layer="all")
    np.testing.assert_allclose(plain.head.coef_, expected.head.coef_, rtol=1e-3, atol=1e-4)
    out = tmp_path / "mean.safetensors"
    train_head(tmp_path / "views.h5", out, layer="all", average_views=True)
    for one, other in zip(
        predict(out, tmp_path / "views.h5").items, predict(out, folder / "photos").items, strict=True
    ):
        assert one.probability == pytest.approx(other.probability, abs=1e-4)
    name = last_map(folder / "blocks.h5")
    attentive = train_head(tmp_path / "views.h5", layer=name, head="attentive", max_epochs=3)
    assert attentive.head.n_iter_ == 3


# Attention


def test_an_attentive_head_predicts_images_as_it_predicts_the_cache(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "head.safetensors"
    trained = train_head(folder / "one.h5", out, head="attentive", queries=2, max_epochs=5)
    cache = open_cache(folder / "one.h5")
    axes, shape = spec_layers(cache.spec)[cache.layers[0]][0], cache.features().shape[1:]
    assert axes == ("channel", "height", "width")
    assert (trained.head.tokens, trained.head.channels_first) == (math.prod(shape[1:]), True)
    mean = cache.features().astype(np.float64)[[n.startswith("train/") for n in cache.ids]].mean(axis=(0, 2, 3))
    np.testing.assert_allclose(trained.head.mean_, mean, rtol=0.2, atol=0.2)  # less what was held out to stop on
    from_images = predict(out, folder / "photos")
    for one, other in zip(predict(out, folder / "one.h5").items, from_images.items, strict=True):
        assert one.probability == pytest.approx(other.probability, abs=1e-4)


@pytest.mark.rotates(3)
def test_several_heads_read_the_images_once(folder: Path, tmp_path: Path) -> None:
    names = open_cache(folder / "blocks.h5").layers
    heads = [tmp_path / f"{number}.safetensors" for number in range(3)]
    train_head(folder / "blocks.h5", heads[0], layer="all")
    train_head(folder / "blocks.h5", heads[1], layer=last_map(folder / "blocks.h5"), head="attentive", max_epochs=3)
    train_head(folder / "blocks.h5", heads[2], layer=list(names[:2]), head="ridge")
    for path, together in zip(heads, predict_each(heads, folder / "photos"), strict=True):
        alone = predict(path, folder / "photos")
        assert [one.label for one in together.items] == [one.label for one in alone.items]
    for path, together in zip(heads, predict_each(heads, folder / "blocks.h5"), strict=True):
        assert [one.label for one in together.items] == [one.label for one in predict(path, folder / "photos").items]


@pytest.mark.rotates(3)
def test_heads_of_one_and_of_several_layers_are_compared(folder: Path, tmp_path: Path) -> None:
    names = open_cache(folder / "blocks.h5").layers
    every, last, looked = (tmp_path / f"{name}.safetensors" for name in ("every", "last", "looked"))
    train_head(folder / "blocks.h5", every, layer="all")
    train_head(folder / "blocks.h5", last, layer=names[-1])
    train_head(folder / "blocks.h5", looked, layer=last_map(folder / "blocks.h5"), head="attentive", max_epochs=3)
    assert compare(every, last, folder / "blocks.h5").result.n == 24
    assert compare(looked, every, folder / "blocks.h5").result.n == 24


@pytest.mark.rotates(3)
@pytest.mark.parametrize("head", [None, "logistic", "knn"])
def test_few_shot_takes_all_layers(folder: Path, head: str | None) -> None:
    (curve,) = few_shot([folder / "blocks.h5"], layer="all", head=head, shots=[2, 8], draws=2)
    assert curve.head == (head or "selected")
    assert all(0 <= score <= 1 for point in curve.points for score in point.scores)
    name = last_map(folder / "blocks.h5")
    (attentive,) = few_shot([folder / "blocks.h5"], layer=name, head="attentive", shots=[4], draws=1)
    assert attentive.head == "attentive"


# Errors


def test_layers_that_make_no_sense_are_refused(folder: Path) -> None:
    names = open_cache(folder / "blocks.h5").layers
    with pytest.raises(UsageError, match="holds one layer, .*nothing to choose from"):
        train_head(folder / "one.h5", layer="all")
    with pytest.raises(UsageError, match="name one twice"):
        train_head(folder / "blocks.h5", layer=[names[0], names[0]])
    with pytest.raises(UsageError, match="--layer all selects every layer"):
        train_head(folder / "blocks.h5", layer=["all", names[0]])
    with pytest.raises(UsageError, match="chooses from the features of several layers, and was given one"):
        train_head(folder / "one.h5", head="selected")
    with pytest.raises(UsageError, match="weighs positions, and .* has none") as caught:
        train_head(folder / "pooled.h5", layer=names[0], head="attentive")
    assert "--pooling none" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="weighs the positions of one layer"):
        train_head(folder / "blocks.h5", layer="all", head="attentive")


@pytest.mark.rotates(3)
def test_a_cache_of_other_layers_does_not_fit_a_head(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "h.safetensors"
    train_head(folder / "blocks.h5", out, layer="all")
    with pytest.raises(HeadMismatchError, match="was trained on other features"):
        predict(out, folder / "pooled.h5")
    saved = load_head(out)
    with pytest.raises(HeadMismatchError, match="does not hold it"):
        layers = [{**one, "name": one["name"] + "x"} for one in saved.metadata["layers"]]
        save_head(tmp_path / "x.safetensors", saved.head, metadata={**saved.metadata, "layers": layers})
        predict(tmp_path / "x.safetensors", folder / "blocks.h5")
    one = saved.metadata["layers"][0]
    for layers in ([], [one], "all", [one, one], [{**one, "scale": -1}, *saved.metadata["layers"][1:]]):
        save_head(tmp_path / "y.safetensors", saved.head, metadata={**saved.metadata, "layers": layers}, overwrite=True)
        with pytest.raises(HeadFormatError, match="The list of layers in the head .* is damaged"):
            predict(tmp_path / "y.safetensors", folder / "blocks.h5")


# The command


@pytest.mark.rotates(3)
def test_the_command_says_what_was_kept_and_others_know_the_head(
    folder: Path, tmp_path: Path, precompute: Command
) -> None:
    names = open_cache(folder / "blocks.h5").layers
    out, exported = tmp_path / "h.safetensors", tmp_path / "h.joblib"
    done = precompute("train-head", folder / "blocks.h5", "--layer", "all", "-o", out)
    assert done.returncode == 0, done.stderr
    assert f"selected on {len(names)} layers, {names[0]} to {names[-1]}" in done.stdout
    assert "kept" in done.stdout
    told = json.loads(precompute("info", out, "--json").stdout)
    assert [one["name"] for one in told["layers"]] == list(names)
    assert "averaged over positions" in precompute("info", out).stdout
    done = precompute("export-head", out, "-o", exported)
    assert done.returncode == 0 and f"{names[0]}, {names[1]}" in " ".join(done.stderr.split())
    pooled = open_cache(folder / "pooled.h5")
    X = np.concatenate([pooled.features(name).astype(np.float32) for name in names], axis=1)
    found = joblib.load(exported).predict(X)
    assert found.tolist() == [one.label for one in predict(out, folder / "blocks.h5").items]
    attentive = ("--head", "attentive", "--queries", 2, "--batch-size", 8, "--max-epochs", 3, "--json")
    done = precompute("train-head", folder / "blocks.h5", "--layer", last_map(folder / "blocks.h5"), *attentive)
    assert json.loads(done.stdout)["choices"]["epochs"] == 3
    done = precompute("train-head", folder / "blocks.h5", "--layer", names[0], "--fraction", "0.5")
    assert done.returncode == 2 and "--fraction does not belong to --head logistic" in done.stderr
    done = precompute("few-shot", folder / "blocks.h5", "--layer", "all", "--shots", "3", "--draws", 1, "--json")
    assert json.loads(done.stdout)["curves"][0]["head"] == "selected"


@pytest.mark.slow
def test_it_does_not_hold_the_features_of_a_large_file(tmp_path: Path) -> None:
    """Blocks, and no more: of maps that are far larger than what is made of them."""
    shape = (2000, 64, 28, 28)
    mapped = np.memmap(tmp_path / "x", np.float16, "w+", shape=shape)  # 200 MB
    mapped[::50] = 1
    mapped.flush()
    stored = np.memmap(tmp_path / "x", np.float16, "r", shape=shape)
    inputs = [LayerInput("a", shape[1:], (1, 2)), LayerInput("b", shape[1:], (1, 2))]
    X = JoinedFeatures(inputs, [stored, stored], (2000,))
    torch.manual_seed(0)
    y = np.arange(2000) % 2
    head = SelectedHead(fraction=0.5, C=0.1, layers=(64, 64)).fit(RowView(X), y)
    assert head.kept_.shape == (64,)
    assert isinstance(LogisticHead(C=0.1).fit(RowView(X), y).coef_, np.ndarray)
    assert AttentiveHead(tokens=784, channels_first=True, max_epochs=1).fit(RowView(stored[:200]), y[:200]).n_iter_ == 1
