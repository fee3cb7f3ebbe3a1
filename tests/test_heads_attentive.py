"""The attentive probe: its arithmetic, what it finds that a mean does not, and that it trains as it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from precompute.errors import DeviceError, TrainingError
from precompute.heads import AttentiveHead, LogisticHead, RowView, ViewRows
from precompute.heads.attentive import fitting
from precompute.heads.attentive.network import Grid, attention_of, logits_of, pooled_by
from precompute.heads.mlp import samples

T, C = 16, 6
FAST: dict[str, Any] = {"tokens": T, "learning_rate": 0.05, "max_epochs": 60, "batch_size": 64}


def maps(n: int = 240, *, seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Positions (n, T, C) of noise, of which one, anywhere, is marked by its first channel and holds the class."""
    rng = np.random.default_rng(seed)
    y, X = np.arange(n) % 3, noise * rng.normal(size=(n, T, C))
    place = rng.integers(T, size=n)
    X[np.arange(n), place] = 0
    X[np.arange(n), place, 0] = 6
    X[np.arange(n), place, 1 + y] = 3
    return X.astype(np.float32), y


# Arithmetic


@settings(deadline=None)
@given(
    tokens=st.integers(1, 9), channels=st.integers(1, 7), queries=st.integers(1, 4), seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_the_forward_pass_is_torchs_attention(
    tokens: int, channels: int, queries: int, seed: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn((5, tokens, channels), generator=generator, dtype=dtype)
    query = torch.randn((queries, channels), generator=generator, dtype=dtype)
    expected = functional.scaled_dot_product_attention(query.expand(5, -1, -1), z, z).flatten(1)
    torch.testing.assert_close(pooled_by(z, query), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attention_of(z, query).sum(dim=2), torch.ones(5, queries, dtype=dtype))


@pytest.mark.parametrize("channels_first", [False, True])
def test_a_fitted_head_predicts_by_torchs_attention(channels_first: bool) -> None:
    X, y = maps(60)
    stored = X.swapaxes(1, 2) if channels_first else X
    flat = stored.reshape(60, -1)
    head = AttentiveHead(tokens=T, channels_first=channels_first, queries=2, max_epochs=3).fit(flat, y)
    z = torch.from_numpy((X - head.mean_) / head.scale_)
    pooled = functional.scaled_dot_product_attention(torch.from_numpy(head.query_).expand(60, -1, -1), z, z).flatten(1)
    logits = functional.linear(pooled, torch.from_numpy(head.weight_), torch.from_numpy(head.bias_))
    np.testing.assert_allclose(head.predict_proba(flat), torch.softmax(logits, 1).numpy(), atol=1e-5)
    np.testing.assert_allclose(np.exp(head.predict_log_proba(flat)), head.predict_proba(flat), atol=1e-6)
    np.testing.assert_allclose(X.mean(axis=(0, 1)), head.mean_, atol=1e-5)
    np.testing.assert_allclose(X.std(axis=(0, 1)), head.scale_, rtol=1e-4)


def test_both_orders_of_axes_are_one_head() -> None:
    X, y = maps(60)
    rows = AttentiveHead(tokens=T, max_epochs=4).fit(X.reshape(60, -1), y)
    columns = AttentiveHead(tokens=T, channels_first=True, max_epochs=4).fit(X.swapaxes(1, 2).reshape(60, -1), y)
    np.testing.assert_allclose(rows.query_, columns.query_, atol=1e-5)
    np.testing.assert_allclose(rows.weight_, columns.weight_, atol=1e-5)


@pytest.mark.parametrize("queries", [1, 3])
def test_with_queries_of_zero_it_is_a_linear_head_on_the_mean(queries: int) -> None:
    X, y = maps(90, seed=2)
    head = AttentiveHead(tokens=T, queries=queries, max_epochs=3).fit(X.reshape(90, -1), y)
    head.query_ = np.zeros_like(head.query_)
    mean = (X.mean(axis=1) - head.mean_) / head.scale_
    weight = head.weight_.reshape(3, queries, C).sum(axis=1)
    logits = logits_of(torch.from_numpy(mean), torch.from_numpy(weight), torch.from_numpy(head.bias_))
    np.testing.assert_allclose(head.predict_proba(X.reshape(90, -1)), torch.softmax(logits, 1).numpy(), atol=1e-5)
    np.testing.assert_allclose(head.attention(X.reshape(90, -1)), 1 / T, atol=1e-6)


def test_a_step_is_that_of_torchs_optimiser(monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch of full batches without dropout, beside autograd and torch.optim.AdamW on the same start."""
    X, y = maps(60)
    flat = X.reshape(60, -1).astype(np.float64)
    given: dict[str, Any] = {"tokens": T, "queries": 2, "dropout": 0.0, "batch_size": 100, "learning_rate": 0.01}
    starts: list[list[torch.Tensor]] = []
    real = fitting._start
    monkeypatch.setattr(
        fitting, "_start", lambda *args: starts.append([one.clone() for one in real(*args)]) or real(*args)
    )
    head = AttentiveHead(
        **given, weight_decay=0.1, max_epochs=4, patience=9, validation_fraction=0.01, schedule="constant"
    ).fit(flat, y)
    query, weight, bias = (one.requires_grad_() for one in starts[0])
    optimizer = torch.optim.AdamW(
        [{"params": [weight], "weight_decay": 0.1}, {"params": [query, bias], "weight_decay": 0.0}], lr=0.01
    )
    z, label = torch.from_numpy((flat.reshape(60, T, C) - head.mean_) / head.scale_), torch.from_numpy(y)
    for _ in range(4):
        optimizer.zero_grad()
        functional.cross_entropy(logits_of(pooled_by(z, query), weight, bias), label).backward()
        optimizer.step()
    assert head.best_epoch_ == 4
    np.testing.assert_allclose(head.query_, query.detach().numpy(), atol=1e-8)
    np.testing.assert_allclose(head.weight_, weight.detach().numpy(), atol=1e-8)
    np.testing.assert_allclose(head.bias_, bias.detach().numpy(), atol=1e-8)


# What it finds


@pytest.mark.rotates(3)
def test_one_position_of_many_that_carries_the_class_is_found() -> None:
    X, y = maps(noise=2.0)
    new, truth = maps(seed=9, noise=2.0)
    head = AttentiveHead(**FAST, queries=2).fit(X.reshape(len(X), -1), y)
    of_mean = LogisticHead().fit(X.mean(axis=1), y)
    assert head.score(new.reshape(len(new), -1), truth) > 0.85
    assert of_mean.score(new.mean(axis=1), truth) < 0.7
    looked = head.attention(new.reshape(len(new), -1)).max(axis=1).argmax(axis=1)
    marked = new[:, :, 0].argmax(axis=1)
    assert (looked == marked).mean() > 0.7


# Training


def test_a_seed_gives_the_same_bits_and_another_one_others() -> None:
    X, y = maps(120)
    flat = X.reshape(120, -1)
    heads = [AttentiveHead(tokens=T, max_epochs=5, random_state=seed).fit(flat, y) for seed in (0, 0, 1)]
    state = torch.random.get_rng_state()
    assert heads[0].weight_.tobytes() == heads[1].weight_.tobytes()
    assert heads[0].query_.tobytes() == heads[1].query_.tobytes()
    assert heads[0].history_ == heads[1].history_
    assert heads[0].query_.tobytes() != heads[2].query_.tobytes()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_it_stops_early_and_keeps_the_best_epoch() -> None:
    X, y = maps(120)
    head = AttentiveHead(**{**FAST, "learning_rate": 0.5, "max_epochs": 200}, patience=5).fit(X.reshape(120, -1), y)
    losses = [epoch["validation_loss"] for epoch in head.history_]
    assert head.best_epoch_ == int(np.argmin(losses)) + 1
    assert head.n_iter_ == len(losses) == head.best_epoch_ + 5


def test_a_validation_set_stops_it() -> None:
    X, y = maps(120)
    held, truth = maps(60, seed=4)
    head = AttentiveHead(tokens=T, max_epochs=3).fit(X.reshape(120, -1), y, validation=(held.reshape(60, -1), truth))
    assert head.used_validation()
    proba = head.predict_proba(held.reshape(60, -1))
    loss = -np.log(proba[np.arange(60), truth]).mean()
    assert head.history_[head.best_epoch_ - 1]["validation_loss"] == pytest.approx(loss, rel=1e-4)


def test_each_epoch_sees_one_view_of_a_sample() -> None:
    X, y = maps(90)
    flat = X.reshape(90, 1, -1)
    same = ViewRows(np.repeat(flat, 3, axis=1))
    one = AttentiveHead(tokens=T, max_epochs=3, dropout=0.0, batch_size=90, validation_fraction=0.01).fit(flat[:, 0], y)
    views = AttentiveHead(tokens=T, max_epochs=3, dropout=0.0, batch_size=90, validation_fraction=0.01).fit(same, y)
    np.testing.assert_allclose(one.weight_, views.weight_, atol=1e-5)


@pytest.mark.parametrize("large", [False, True])
def test_features_in_a_file_give_the_head_of_those_in_memory(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:  # shuffled as blocks of neighbours
        for name, value in (("SHUFFLE_BYTES", 1), ("NEIGHBOUR_BYTES", 4096), ("BUFFER_BYTES", 16384)):
            monkeypatch.setattr(samples, name, value)
    X, y = maps(120)
    stored = X.astype(np.float16).reshape(120, -1)
    stored.tofile(tmp_path / "features")
    mapped = np.memmap(tmp_path / "features", np.float16, "r", shape=(120, T, C))
    head = AttentiveHead(tokens=T, max_epochs=3).fit(RowView(mapped), y)
    expected = AttentiveHead(tokens=T, max_epochs=3).fit(stored, y)
    assert head.weight_.tobytes() == expected.weight_.tobytes()
    assert np.array_equal(head.predict_proba(RowView(mapped)), expected.predict_proba(stored))


def test_a_loss_that_is_not_finite_and_a_device_that_is_not_there_are_errors() -> None:
    X, y = maps(60)
    with pytest.raises(TrainingError, match="not finite after epoch"):
        AttentiveHead(tokens=T, learning_rate=1e5, weight_decay=1e5, max_epochs=50).fit(1e6 * X.reshape(60, -1), y)
    with pytest.raises(DeviceError, match="cannot use the device"):
        AttentiveHead(tokens=T, device="nowhere").fit(X.reshape(60, -1), y)


def test_a_grid_gives_views_and_no_copies() -> None:
    x = np.arange(24.0).reshape(2, 12)
    assert np.shares_memory(Grid(4, 3, channels_first=False).of(x), x)
    assert np.array_equal(Grid(4, 3, channels_first=True).of(x)[1], x[1].reshape(3, 4).T)
