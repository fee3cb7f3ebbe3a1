"""Learning curves on real photos show over-fitting as the textbooks draw it, and that dropout holds it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precompute import extract, open_cache
from precompute.heads import MLPHead


@pytest.fixture(scope="module")
def ants(hymenoptera: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Features and labels of train and val. `tiny` knows digits and no insects, so there is much to over-fit."""
    path = tmp_path_factory.mktemp("curves") / "ants.h5"
    extract(hymenoptera, path, backbone="tiny")
    cache = open_cache(path)
    rows = {split: np.flatnonzero(cache.split == split) for split in ("train", "val")}
    return {split: (np.array(cache.features()[chosen]), cache.labels[chosen]) for split, chosen in rows.items()}


def curves(ants: dict[str, Any], dropout: float) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation loss by epoch, to the end: nothing stops early."""
    head = MLPHead(dropout=dropout, weight_decay=0.0, learning_rate=3e-3, max_epochs=60, patience=60)
    history = head.fit(*ants["train"], validation=ants["val"]).history_
    return tuple(np.array([epoch[f"{part}_loss"] for epoch in history]) for part in ("train", "validation"))


@pytest.mark.rotates(3)
def test_without_dropout_the_training_loss_falls_on_while_the_validation_loss_rises(ants: dict[str, Any]) -> None:
    train, validation = curves(ants, dropout=0.0)
    best = int(validation.argmin())
    assert best < 30
    by_tens = train[best::10]
    assert (np.diff(by_tens) < 0).all()
    assert train[-1] < 0.2 * train[best]
    assert validation[-1] > 1.3 * validation[best]


@pytest.mark.rotates(3)
def test_with_dropout_the_gap_is_smaller(ants: dict[str, Any]) -> None:
    gaps = [validation[-1] - train[-1] for train, validation in (curves(ants, dropout) for dropout in (0.0, 0.5, 0.8))]
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 0.7 * gaps[0]
