"""Tails: trained from a linear head on, as from pixels, the same again bit for bit, whatever the target is."""

from __future__ import annotations

import contextlib
import copy
import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Command, make_image, make_photos
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from precompute import extract, load_backbone, open_cache, train_head
from precompute.backbones.layers import final_classifier
from precompute.cache.lock import WriteLock
from precompute.errors import BackboneError, CacheError, CacheLockedError, HeadError, TrainingError, UsageError
from precompute.finetuning.activations import CachedActivations
from precompute.finetuning.batches import batches_of, dropout_of, n_batches
from precompute.finetuning.fine_tune import fine_tune
from precompute.finetuning.network import OutputLayer, TailNetwork
from precompute.finetuning.settings import TailSettings
from precompute.finetuning.tail_file import load_tail
from precompute.finetuning.tuning import Tuning
from precompute.heads import LogisticHead, MultilabelLogisticHead, RidgeRegressionHead, RowView
from precompute.training.splits import digest_groups

LAYER = "body.4"
SHORT = {"epochs": 2, "batch_size": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 photos each in train, val and test of two classes, table.csv, deep.h5, and views.h5 with 3 views of each."""
    place = tmp_path_factory.mktemp("tails")
    make_photos(place / "photos", per_class=12)
    for label in ("cats", "dogs"):
        (place / "photos/test" / label).mkdir(parents=True)
        for number in range(12):
            make_image(500 + number + 20 * (label == "dogs")).save(place / f"photos/test/{label}/{number}.png")
    extract(place / "photos", place / "deep.h5", backbone="tiny", layer=[LAYER, "embed"])
    extract(
        place / "photos", place / "views.h5", backbone="tiny", layer=LAYER, views=3, augment="flip,crop", batch_size=8
    )
    cache = open_cache(place / "deep.h5")
    red = [float(np.asarray(make_image(number)).mean()) for number in range(len(cache))]
    for name, values in {
        "labels": ["a;b" if number % 3 == 0 else "b" if number % 3 == 1 else ";" for number in range(len(cache))],
        "numbers": [f"{1000 + value:.3f}" for value in red],
    }.items():
        with (place / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("id", "label"), *zip(cache.ids, values, strict=True)])
    return place


def tuned(folder: Path, out: Path | None = None, **options: Any) -> Tuning:
    return fine_tune(folder / "deep.h5", out, **{"layer": LAYER, **SHORT, **options})


@pytest.mark.rotates(3)
@pytest.mark.parametrize("task", ["two classes", "three classes", "labels", "number"])
def test_the_network_begins_with_the_predictions_of_the_linear_head(task: str) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(3, 2, (60, 5)).astype(np.float32)
    mean, scale, expected = 0.0, 1.0, None
    if task == "number":
        truth = 1e4 + 50 * features[:, 0]
        head: Any = RidgeRegressionHead().fit(features, truth)
        mean, scale = float(truth.mean()), float(truth.std())
        layer = OutputLayer.of_head(head, "number", mean, scale)
        expected = head.predict(features)
    elif task == "labels":
        head = MultilabelLogisticHead().fit(features, (features[:, :2] > 3).astype(int))
        layer, expected = OutputLayer.of_head(head, "labels"), head.predict_proba(features)
    else:
        names = np.array(["a", "b", "c"])[np.digitize(features[:, 0], [3.0] if task == "two classes" else [2.0, 4.0])]
        head = LogisticHead().fit(features, names)
        layer, expected = OutputLayer.of_head(head, "classes"), head.predict_proba(features)
    outputs = TailNetwork(nn.Identity(), layer)(torch.from_numpy(features)).detach()
    found = {
        "labels": outputs.sigmoid,
        "number": lambda: outputs[:, 0] * scale + mean,
    }.get(task, lambda: outputs.softmax(dim=1))()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


@given(
    n=st.integers(1, 60), views=st.integers(1, 4), size=st.integers(1, 20), seed=st.integers(0, 99), e=st.integers(1, 9)
)
def test_an_epoch_has_each_sample_once_and_rereads_as_it_was(n: int, views: int, size: int, seed: int, e: int) -> None:
    rows = np.arange(0, 3 * n, 3)
    batches = batches_of(rows, views, size, seed, e)
    assert len(batches) == n_batches(n, size)
    assert sorted(np.concatenate([part for part, _ in batches]).tolist()) == rows.tolist()
    assert all((np.diff(part) > 0).all() for part, _ in batches)
    assert all(((drawn >= 0) & (drawn < views)).all() for _, drawn in batches)
    for (a, b), (c, d) in zip(batches, batches_of(rows, views, size, seed, e), strict=True):
        assert (a == c).all()
        assert (b == d).all()


def test_epochs_and_steps_draw_differently() -> None:
    first, second = (np.concatenate([rows for rows, _ in batches_of(np.arange(200), 3, 16, 0, e)]) for e in (1, 2))
    assert (first != second).any()
    one, two = (dropout_of((8, 32), 0.5, 0, 1, step) for step in (0, 1))
    assert one is not None
    assert two is not None
    assert not torch.equal(one, two)
    assert set(one.unique().tolist()) == {0.0, 2.0}


def reference_losses(
    cache_path: Path, backbone: Any, layer: str, photos: Path, steps: int, settings: TailSettings
) -> list[float]:
    """The losses of the same training from pixels, in plain PyTorch: the whole network, frozen before `layer`."""
    cache = open_cache(cache_path)
    network = copy.deepcopy(backbone.network).float().eval()
    classifier = final_classifier(network)
    parent, _, name = classifier.rpartition(".")
    features: list[torch.Tensor] = []
    network.get_submodule(classifier).register_forward_pre_hook(lambda _, given: features.append(given[0].detach()))
    pixels = torch.stack([backbone.preprocess.host((photos / name).read_bytes(), 0)[0] for name in cache.ids])
    inputs = backbone.preprocess.device()(pixels.float())
    with torch.no_grad():
        for start in range(0, len(inputs), 16):
            network(inputs[start : start + 16])
    frozen = torch.cat(features).numpy()
    train = np.flatnonzero(cache.split == "train")
    names = np.array(cache.classes)[cache.labels[train]]
    head = LogisticHead(random_state=settings.seed).fit(frozen[train], names, groups=digest_groups(cache)[train])
    start_layer = OutputLayer.of_head(head, "classes")
    linear = nn.Linear(frozen.shape[1], len(cache.classes))
    linear.load_state_dict({key: torch.from_numpy(value) for key, value in vars(start_layer).items()})
    setattr(network.get_submodule(parent) if parent else network, name, linear)
    behind = tuple(name for name, _ in network.named_parameters() if is_behind(name, layer, network))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in behind)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [one for one in trained if one.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [one for one in trained if one.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
    per_epoch = math.ceil(len(train) / settings.batch_size)
    warm, total = round(settings.warmup * per_epoch), settings.epochs * per_epoch
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda at: (at + 1) / warm if at < warm else 0.5 * (1 + math.cos(math.pi * (at - warm) / (total - warm))),
    )
    losses: list[float] = []
    labels = torch.from_numpy(cache.labels.astype(np.int64))
    epoch = 0
    while len(losses) < steps:
        epoch += 1
        for rows, _ in batches_of(train, 1, settings.batch_size, settings.seed, epoch):
            loss = functional.cross_entropy(network(inputs[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
    return losses[:steps]


def is_behind(name: str, layer: str, network: nn.Module) -> bool:
    """Whether a parameter of a sequential network stands behind a module, by the order in which both are registered."""
    order = [name for name, _ in network.named_modules()]
    last = max(place for place, module in enumerate(order) if module == layer or module.startswith(f"{layer}."))
    return order.index(name.rpartition(".")[0]) > last


@pytest.mark.rotates(3)
@pytest.mark.parametrize(
    ("name", "layer", "options"),
    [
        ("tiny", "body.3", {}),
        ("resnet18", "layer3", {"weights": "random:0", "transform": {"resize": 48, "crop": 48}}),
    ],
)
def test_losses_are_those_of_training_from_pixels_with_the_body_frozen(
    tmp_path: Path, name: str, layer: str, options: dict[str, Any]
) -> None:
    photos = make_photos(tmp_path / "photos", per_class=10)
    extract(photos, tmp_path / "deep.h5", backbone=name, layer=layer, dtype="float32", precision="fp32", **options)
    losses: list[float] = []
    settings = TailSettings(epochs=4, batch_size=8, learning_rate=1e-3)
    tuning = fine_tune(
        tmp_path / "deep.h5",
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        watch=lambda epoch, step, loss: losses.append(loss),
    )
    assert tuning.rows["train"] == 20
    transform = options.get("transform")
    backbone = load_backbone(name, weights=options.get("weights", "DEFAULT"), transform=transform)
    expected = reference_losses(tmp_path / "deep.h5", backbone, layer, photos, len(losses), settings)
    assert len(losses) == 12
    np.testing.assert_allclose(losses, expected, atol=1e-4, rtol=0)


@pytest.mark.rotates(6)
def test_the_same_seed_gives_the_same_file_and_another_seed_another(folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        tuned(folder, tmp_path / f"{name}.safetensors", seed=seed, dropout=0.3, label_smoothing=0.1)
    a, b, c = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors", "c.safetensors"]


@pytest.mark.rotates(3)
def test_a_saved_tail_predicts_as_the_one_that_was_trained(folder: Path, tmp_path: Path) -> None:
    tuning = tuned(folder, tmp_path / "tail.safetensors")
    saved = load_tail(tmp_path / "tail.safetensors")
    head: Any = saved.attach(load_backbone("tiny", layer=LAYER)).head
    cache = open_cache(folder / "deep.h5")
    X = np.array(cache.features(LAYER), dtype=np.float32)
    expected = tuning.head.predict_proba(X)
    for given_as in (X, X.reshape(len(X), -1), RowView(cache.features(LAYER))):
        np.testing.assert_array_equal(head.predict_proba(given_as), expected)
    assert head.predict(X).tolist() == [tuning.classes[place] for place in expected.argmax(axis=1)]
    assert head.n_features_in_ == X[0].size
    assert saved.metadata["layer"] == LAYER
    assert "seconds" not in json.dumps(saved.metadata)


@pytest.mark.rotates(3)
def test_only_what_is_behind_the_cut_is_trained_and_saved(folder: Path, tmp_path: Path) -> None:
    tuned(folder, tmp_path / "tail.safetensors", learning_rate=1e-2, patience=2)
    names = {name for name in load_tail(tmp_path / "tail.safetensors").trained if name.startswith("tail.")}
    network = load_backbone("tiny").network
    behind = {f"tail.{name}" for name, _ in network.named_parameters() if is_behind(name, LAYER, network)}
    assert names == {name for name in behind if "classifier" not in name}
    assert names
    before = load_backbone("tiny").weights
    assert before == open_cache(folder / "deep.h5").spec["weights"]


@pytest.mark.rotates(3)
def test_batch_norm_keeps_its_statistics(folder: Path) -> None:
    head = tuned(folder).head
    whole = dict(load_backbone("tiny").network.named_buffers())
    buffers = {name: value for name, value in head.network.tail.named_buffers() if "running" in name}
    assert buffers
    for name, value in buffers.items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=0)


@pytest.mark.rotates(3)
def test_fine_tuning_never_ends_worse_on_what_it_is_chosen_by_than_the_linear_head(folder: Path) -> None:
    tuning = tuned(folder, learning_rate=0.5, epochs=3)
    losses = [entry["validation_loss"] for entry in tuning.choices["history"]]
    assert tuning.choices["best_epoch"] == int(np.argmin(losses)) == 0, "a rate that distorts everything"
    assert tuning.scores["val"].log_loss == pytest.approx(tuning.before["val"].log_loss, abs=1e-4)
    assert any("linear head is kept" in note for note in tuning.notes)
    assert tuning.paired["test"].difference == 0


@pytest.mark.rotates(3)
def test_patience_ends_the_training(folder: Path) -> None:
    tuning = tuned(folder, learning_rate=0.5, epochs=9, patience=2)
    assert tuning.choices["epochs"] == 2


@pytest.mark.rotates(3)
def test_the_selection_set_is_val_or_a_hold_out_that_keeps_groups_together(folder: Path, tmp_path: Path) -> None:
    with_test = tuned(folder)
    assert (with_test.choices["stopped_on"], with_test.selected_on) == ("given", "val")
    calibrated = tuned(folder, calibrated=True)
    assert calibrated.choices["stopped_on"].startswith("none: too few")
    assert calibrated.selected_on is None
    many = make_photos(tmp_path / "many", per_class=50)
    extract(many, tmp_path / "many.h5", backbone="tiny", layer=LAYER)
    held = fine_tune(tmp_path / "many.h5", epochs=1, groups="([0-9])[.]")
    assert (held.choices["stopped_on"], held.selected_on) == ("held out", None)
    assert held.groups == 10
    assert held.rows == {"train": 100, "val": 100}


@pytest.mark.rotates(3)
def test_several_labels(folder: Path, tmp_path: Path) -> None:
    tuning = tuned(folder, tmp_path / "labels.safetensors", labels=folder / "labels.csv")
    assert tuning.labels == ["a", "b"]
    head: Any = load_tail(tmp_path / "labels.safetensors").attach(load_backbone("tiny", layer=LAYER)).head
    cache = open_cache(folder / "deep.h5")
    test = np.flatnonzero(cache.split == "test")
    X = RowView(cache.features(LAYER), test)
    assert head.thresholds_.tolist() == list(tuning.thresholds.values())
    assert head.predict(X).tolist() == (head.predict_proba(X) > head.thresholds_).astype(int).tolist()
    assert tuning.scores["test"].n == len(test)
    assert 0 <= tuning.before["test"].mean_average_precision <= 1
    assert tuning.choices["history"][0]["validation_loss"] > 0


@pytest.mark.rotates(3)
def test_a_number_in_its_own_units(folder: Path, tmp_path: Path) -> None:
    tuning = tuned(folder, tmp_path / "number.safetensors", labels=folder / "numbers.csv", epochs=3)
    head: Any = load_tail(tmp_path / "number.safetensors").attach(load_backbone("tiny", layer=LAYER)).head
    cache = open_cache(folder / "deep.h5")
    test = np.flatnonzero(cache.split == "test")
    predicted = head.predict(RowView(cache.features(LAYER), test))
    with (folder / "numbers.csv").open() as file:
        known = {row["id"]: float(row["label"]) for row in csv.DictReader(file)}
    true = np.array([known[cache.ids[row]] for row in test])
    assert tuning.scores["test"].mae == pytest.approx(np.abs(predicted - true).mean())
    assert 900 < predicted.mean() < 1300
    first = tuning.choices["history"][0]
    assert first["validation_absolute_error"] == pytest.approx(tuning.before["val"].mae, rel=1e-3)


@pytest.mark.rotates(3)
def test_views_are_drawn_and_scores_are_of_the_plain_one_or_the_mean(folder: Path) -> None:
    plain = fine_tune(folder / "views.h5", **SHORT)
    assert "trained on 3 views" in " ".join(plain.notes)
    cache = open_cache(folder / "views.h5")
    test = np.flatnonzero(cache.split == "test")
    of_views = [plain.head.predict_proba(RowView(cache.features()[:, view], test)) for view in range(3)]
    true = np.array(cache.classes)[cache.labels[test]]
    share = (plain.head.classes_[of_views[0].argmax(axis=1)] == true).mean()
    assert plain.scores["test"].accuracy == pytest.approx(share)
    averaged = fine_tune(folder / "views.h5", average_views=True, **SHORT)
    share = (averaged.head.classes_[np.mean(of_views, axis=0).argmax(axis=1)] == true).mean()
    assert averaged.scores["test"].accuracy == pytest.approx(share)
    alone = fine_tune(folder / "views.h5", plain_view=True, **SHORT)
    assert alone.choices["history"] != plain.choices["history"]


def test_activations_are_those_of_the_cache(folder: Path) -> None:
    cache = open_cache(folder / "views.h5")
    activations = CachedActivations(cache, LAYER)
    rows, views = np.array([3, 5, 40]), np.array([2, 0, 1])
    expected = np.asarray(cache.features())[rows, views].astype(np.float32)
    np.testing.assert_array_equal(activations.batch(rows, views).numpy(), expected)
    plan = [(rows, views), (rows[:1], views[:1])]
    with contextlib.closing(activations.batches(iter(plan))) as batches:
        np.testing.assert_array_equal(next(batches).numpy(), expected)
    assert activations.shape == expected.shape[1:]


@pytest.mark.rotates(3)
def test_near_duplicates_and_the_linear_head_are_those_of_the_features_in_front_of_the_classifier(
    folder: Path, tmp_path: Path
) -> None:
    tuning = tuned(folder, similarity=0.7)
    extract(folder / "photos", tmp_path / "a.h5", backbone="tiny", dtype="float32")
    head = train_head(tmp_path / "a.h5", similarity=0.7, C=1.0)  # one that does not train on val
    assert tuning.leaks["test"].near
    assert {near.id for near in tuning.leaks["test"].near} == {near.id for near in head.leaks["test"].near}
    assert tuning.choices["linear"]["head"] == "logistic"


@pytest.mark.rotates(3)
def test_a_tail_of_the_users_own(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_tails.py").write_text(
        "from torch import nn\n"
        "def small(shape):\n"
        "    return nn.Sequential(nn.Conv2d(shape[0], 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    tuning = tuned(folder, tmp_path / "own.safetensors", tail="my_tails:small")
    saved = load_tail(tmp_path / "own.safetensors")
    assert saved.factory == "my_tails:small"
    backbone = load_backbone("tiny", layer=LAYER)
    with pytest.raises(HeadError, match="A file does not decide which code runs"):
        saved.attach(backbone)
    head: Any = saved.attach(backbone, tail="my_tails:small").head
    X = RowView(open_cache(folder / "deep.h5").features(LAYER))
    np.testing.assert_array_equal(head.predict_proba(X), tuning.head.predict_proba(X))
    again = tuned(folder, tmp_path / "again.safetensors", tail="my_tails:small")
    assert again.choices["history"] == tuning.choices["history"]
    assert (tmp_path / "own.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()


@pytest.mark.rotates(3)
def test_a_loss_that_is_not_finite_says_where_and_what_to_try(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"not finite in epoch \d+, step \d+ of 3") as caught:
        tuned(folder, tmp_path / "a.safetensors", learning_rate=9e5, warmup=0, checkpoint_seconds=1e-9)
    assert "smaller --learning-rate" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_cannot_fit_names_one_that_does(folder: Path) -> None:
    with pytest.raises(TrainingError, match="samples needs .* GiB of memory") as caught:
        tuned(folder, batch_size=10**9)
    size = int(caught.value.hint.removeprefix("Try --batch-size ").partition(",")[0])
    assert 1 <= size < 10**9


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"layer": "body.3"}, CacheError, "holds the layers"),
        ({"layer": None}, CacheError, "one of them must be named"),
        ({"epochs": 0}, UsageError, "epochs"),
        ({"schedule": "linear"}, UsageError, "schedule"),
        ({"precision": "bf16"}, UsageError, "Mixed precision is for CUDA"),
        ({"similarity": 2}, UsageError, "similarity"),
        ({"backbone": "resnet18"}, HeadError, "not with resnet18"),
        ({"average_views": True}, UsageError, "one view"),
        ({"weights": "random:0"}, HeadError, "other features"),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, dict) else None,
)
def test_what_cannot_be_trained_is_refused(
    folder: Path, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        tuned(folder, **options)


@pytest.mark.rotates(3)
def test_pooled_activations_are_refused(folder: Path, tmp_path: Path) -> None:
    extract(folder / "photos", tmp_path / "pooled.h5", backbone="tiny", layer=f"{LAYER}:mean")
    with pytest.raises(BackboneError, match="averaged over its positions"):
        fine_tune(tmp_path / "pooled.h5")


@pytest.mark.rotates(6)
def test_the_command(precompute: Command, folder: Path, tmp_path: Path) -> None:
    command = ["fine-tune", folder / "deep.h5", "--layer", LAYER, "--epochs", 2, "-o", "a.safetensors"]
    pytest.importorskip("matplotlib", reason="pip install 'precompute[plot]'")
    done = precompute(*command, "--plot", "curves.svg", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert set(told["before"]) == set(told["scores"]) == set(told["paired"]) == {"val", "test"}
    assert [entry["epoch"] for entry in told["choices"]["history"]] == [0, 1, 2]
    again = precompute(*command)
    assert again.returncode == 0, again.stderr
    assert "by the linear head alone" in again.stdout
    refused = precompute(*command[:-1], "curves.svg")
    assert refused.returncode == 1
    assert "is not a tail" in refused.stderr


def test_only_one_process_writes_an_output(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    with WriteLock(str(out)), pytest.raises(CacheLockedError, match="is being written by process"):
        tuned(folder, out)


GREEDY = """
import torch
from torch import nn

class Greedy(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.part = nn.Conv2d(shape[0], 8, 3)

    def forward(self, x):
        if len(x) > 4 and torch.is_grad_enabled() == {training}:
            torch.empty(2**48)  # a pebibyte: the allocator itself fails
        return self.part(x).mean((2, 3))
"""


@pytest.mark.rotates(3)
@pytest.mark.parametrize(
    ("training", "message"),
    [
        (True, r"A step of 8 samples does not fit into the memory of cpu\."),
        (False, r"\d+ samples in one pass through the frozen tail do not fit into the memory of cpu\."),
    ],
)
def test_running_out_of_memory_says_what_to_try(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: bool, message: str
) -> None:
    module = f"greedy_{training}"
    (tmp_path / f"{module}.py").write_text(GREEDY.format(training=training))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(TrainingError, match=message) as caught:
        tuned(folder, tail=f"{module}:Greedy", batch_size=8)
    assert ("Try --batch-size 4." if training else "Cut further behind (--layer)") in str(caught.value.hint)


@pytest.mark.slow
@pytest.mark.daily(2)
def test_memory_does_not_grow_with_the_activations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.syspath_prepend(str(ROOT))
    from bench_tail_memory import make, measured

    peaks = []
    for gigabytes in (0.2, 1.2):
        make(tmp_path / "a.h5", gigabytes)
        peaks.append(measured(tmp_path / "a.h5")["peak"])
        for path in tmp_path.iterdir():
            path.unlink()
    assert peaks[1] - peaks[0] < 200 * 2**20, "a gigabyte more of activations, and little more memory"
