"""The linear probe as papers do it: chosen on val, trained on train and val, scored on test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import make_image
from sklearn.metrics import balanced_accuracy_score

from precompute import LogisticHead, extract, open_cache, train_head
from precompute.errors import TrainingError, UsageError

COUNTS = {"train": (30, 12), "val": (10, 6), "test": (14, 5)}


def make_cache(place: Path, *splits: str) -> Path:
    seed = 0
    for split in splits:
        for label, count in zip(("cats", "dogs"), COUNTS[split], strict=True):
            folder = place / "photos" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                seed += 1
                make_image(seed).save(folder / f"{number}.png")
    extract(place / "photos", place / "a.h5", backbone="tiny")
    return place / "a.h5"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("protocol"), "train", "val", "test")


@pytest.mark.rotates(3)
def test_the_number_is_that_of_a_probe_done_by_hand(cache: Path) -> None:
    found = train_head(cache, protocol="simclr")
    opened = open_cache(cache)
    X, y, split = opened.features(), np.array(opened.classes)[opened.labels], opened.split
    accuracies = {}
    for C in np.logspace(-6, 5, 45):
        probe = LogisticHead(C=float(C)).fit(X[split == "train"], y[split == "train"])
        accuracies[float(C)] = float((probe.predict(X[split == "val"]) == y[split == "val"]).mean())
    tried = {trial["C"]: trial["accuracy"] for trial in found.choices["trials"]}
    assert list(tried) == list(accuracies)[: len(tried)]  # values that could not be chosen any more are left out
    near = [
        C for C, accuracy in tried.items() if accuracy > max(tried.values()) - 0.002
    ]  # others may be solved loosely
    assert [tried[C] for C in near] == [accuracies[C] for C in near]
    best = max(accuracies.values())
    assert found.choices["C"] == min(C for C, accuracy in accuracies.items() if accuracy == best)
    probe = LogisticHead(C=found.choices["C"]).fit(X[split != "test"], y[split != "test"])
    truth, predicted = y[split == "test"], probe.predict(X[split == "test"])
    assert found.protocol is not None
    assert (found.protocol["metric"], found.protocol["value"]) == ("accuracy", np.mean(truth == predicted))
    assert set(found.scores) == {"test"}


@pytest.mark.rotates(3)
def test_a_dataset_s_paper_says_the_metric(cache: Path) -> None:
    found = train_head(cache, protocol="simclr:pets")
    opened = open_cache(cache)
    rows = opened.split == "test"
    truth = np.array(opened.classes)[opened.labels][rows]
    assert found.protocol is not None
    assert found.protocol["metric"] == "mean per-class accuracy"
    assert found.protocol["value"] == balanced_accuracy_score(truth, found.head.predict(opened.features()[rows]))
    low, high = found.protocol["interval"]
    assert low <= found.protocol["value"] <= high
    assert train_head(cache, protocol="simclr:cars").protocol == {
        **train_head(cache, protocol="simclr").protocol,
        "dataset": "cars",
    }


@pytest.mark.rotates(3)
def test_without_val_a_part_of_train_takes_its_place(tmp_path: Path) -> None:
    found = train_head(make_cache(tmp_path, "train", "test"), protocol="simclr")
    assert any("no split val" in note for note in found.notes)
    assert found.rows["train"] + found.rows["val"] == sum(COUNTS["train"])
    assert found.choices["C_source"].startswith("validation")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "moco"}, "must be one of simclr"),
        ({"protocol": "simclr:imagenet"}, "knows food101"),
        ({"protocol": "simclr", "head": "mlp"}, "one of the logistic head"),
        ({"protocol": "simclr", "C": 1.0}, "decides C itself"),
        ({"protocol": "simclr", "calibrated": True}, "trains on val"),
    ],
)
def test_what_the_protocol_does_not_allow_is_refused(cache: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train_head(cache, **arguments)


def test_a_test_split_is_needed(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="there is none"):
        train_head(make_cache(tmp_path, "train", "val"), protocol="simclr")
