"""The parts of an MLP's training, each against torch's own, and samples that are read a block at a time."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn

from precompute.heads import MLPHead, MLPSearch, RowView
from precompute.heads.mlp import fitting
from precompute.heads.mlp.criteria import CrossEntropy
from precompute.heads.mlp.network import Stack, logits_of
from precompute.heads.mlp.samples import Samples

ROOT = Path(__file__).resolve().parent.parent
DIGITS, LABELS = load_digits(return_X_y=True)
DIGITS, LABELS = (DIGITS[:600] / 16).astype(np.float32), LABELS[:600]
CPU = torch.device("cpu")


def digest(head: MLPHead) -> str:
    arrays = (head.mean_, head.scale_, *head.weights_, *head.biases_)
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays) + str(head.history_).encode()).hexdigest()


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_stack_trains_as_torch_s_own_modules_do(batch_norm: bool) -> None:
    rng = np.random.default_rng(0)
    settings = [(1e-3, 0.1, 0.0), (1e-2, 0.0, 0.0)]  # learning rate, weight decay, dropout
    stack = Stack([6, 8, 3], settings, batch_norm=batch_norm, start_seed=1, dropout_seed=2, device=CPU)
    modules, optimizers = [], []
    for head, (rate, decay, _) in enumerate(settings):
        norm = [nn.BatchNorm1d(8)] if batch_norm else []
        module = nn.Sequential(nn.Linear(6, 8, bias=not batch_norm), *norm, nn.ReLU(), nn.Linear(8, 3))
        linear = [module[0], module[-1]]
        with torch.no_grad():
            for layer, part in enumerate(linear):
                part.weight.copy_(stack.weights[layer][head])
                if part.bias is not None:
                    part.bias.copy_(stack.biases[layer][head, 0])
        weights = [part.weight for part in linear]
        rest = [p for p in module.parameters() if not any(p is weight for weight in weights)]
        groups = [{"params": weights, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
        modules.append(module.train())
        optimizers.append(torch.optim.AdamW(groups, lr=rate))
    class_weight = torch.tensor([1.0, 2.0, 0.5])
    for _ in range(15):
        x = torch.from_numpy(rng.normal(3, 2, size=(20, 6))).float()
        y = torch.from_numpy(rng.integers(0, 3, 20))
        stack.step(CrossEntropy(class_weight).loss(stack.training_logits(x), y, 0.1), 1.0)
        for module, optimizer in zip(modules, optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x), y, class_weight, label_smoothing=0.1).backward()
            optimizer.step()
    found = logits_of(*stack.folded(), x)
    for module, logits in zip(modules, found, strict=True):
        torch.testing.assert_close(logits, module.eval()(x), rtol=1e-3, atol=1e-4)


def test_dropout_zeroes_units_with_each_head_s_own_probability() -> None:
    stack = Stack(
        [4, 20_000, 2], [(1, 0, 0.0), (1, 0, 0.2), (1, 0, 0.7)],
        batch_norm=False, start_seed=0, dropout_seed=0, device=CPU,
    )  # fmt: skip
    with torch.no_grad():
        for weight, bias in zip(stack.weights, stack.biases, strict=True):
            weight.fill_(1 / 20_000)
            bias.fill_(0.0)
        sums = stack.training_logits(torch.full((1, 4), 5_000.0))[:, 0, 0]  # the mean of units that are 1
    np.testing.assert_allclose(sums, 1, atol=0.05)
    assert sums[0] == pytest.approx(1, rel=1e-4)
    assert sums[1] != pytest.approx(1, rel=1e-4)


def test_the_schedule_is_torch_s_cosine() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)
    for epoch in range(1, 8):
        assert fitting.rate_factor("cosine", epoch, 7) == pytest.approx(schedule.get_last_lr()[0])
        assert fitting.rate_factor("constant", epoch, 7) == 1
        optimizer.step()
        schedule.step()


def test_mixup_mixes_pairs_and_their_labels() -> None:
    labels = torch.arange(50)
    x = nn.functional.one_hot(labels).float()
    mixed, first, second, share = fitting._mixed(x, labels, 0.4, np.random.default_rng(0))
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * x[first] + (1 - share) * x[second])
    assert sorted(second.tolist()) == labels.tolist()
    assert fitting._mixed(x, labels, 0.0, np.random.default_rng(0))[3] == 1


@pytest.mark.rotates(3)
@pytest.mark.parametrize("settings", [{"label_smoothing": 0.3}, {"mixup": 1.0}])
def test_smoothing_and_mixup_keep_probabilities_away_from_certainty(settings: dict[str, float]) -> None:
    options = {"max_epochs": 15, "dropout": 0.0, "learning_rate": 1e-2, "hidden": (64,)}
    whole = (DIGITS, LABELS)
    sure = MLPHead(**options).fit(*whole, validation=whole).predict_proba(DIGITS).max(axis=1).mean()
    unsure = MLPHead(**options, **settings).fit(*whole, validation=whole).predict_proba(DIGITS).max(axis=1).mean()
    assert unsure < sure - 0.01


@pytest.mark.rotates(3)
def test_batch_norm_learns_also_where_the_last_batch_is_one_sample() -> None:
    head = MLPHead(batch_norm=True, batch_size=599, max_epochs=30, learning_rate=1e-2)
    assert head.fit(DIGITS, LABELS, validation=(DIGITS, LABELS)).score(DIGITS, LABELS) > 0.95
    with pytest.raises(ValueError, match="batch_size must be at least 2 with batch_norm"):
        head.set_params(batch_size=1).fit(DIGITS, LABELS)


FIT = """
import sys, numpy as np
sys.path.insert(0, "tests")
from test_heads_mlp_training import DIGITS, LABELS, MLPHead, RowView, digest
features = np.memmap(sys.argv[1], np.float32, "r", shape=(600, 64))
head = MLPHead(hidden=(32,), max_epochs=5, batch_norm=True, mixup=0.2)
print(digest(head.fit(RowView(features, np.arange(600)), LABELS)))
"""


@pytest.mark.slow
def test_another_process_with_a_mapped_file_gives_the_same_bits(tmp_path: Path) -> None:
    DIGITS.tofile(tmp_path / "features")
    command = [sys.executable, "-c", FIT, tmp_path / "features"]
    other = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    here = digest(MLPHead(hidden=(32,), max_epochs=5, batch_norm=True, mixup=0.2).fit(DIGITS, LABELS))
    assert other.stdout.strip() == here, other.stderr


@given(n=st.integers(1, 90), size=st.integers(1, 40), seed=st.integers(0, 9), by_blocks=st.booleans())
def test_an_epoch_has_every_sample_once_in_an_order_of_its_own(n: int, size: int, seed: int, by_blocks: bool) -> None:
    X = np.arange(100, dtype=np.float32)[:, None]
    rows = np.sort(np.random.default_rng(seed).choice(100, n, replace=False))
    with pytest.MonkeyPatch.context() as patch:
        if by_blocks:
            for name, value in (("SHUFFLE_BYTES", 0), ("NEIGHBOUR_BYTES", 4 * 3), ("BUFFER_BYTES", 4 * 20)):
                patch.setattr(f"precompute.heads.mlp.samples.{name}", value)
        samples, rng = Samples(RowView(X), np.arange(100) * 2, rows, X.dtype), np.random.default_rng(seed)
        epochs = [list(samples.batches(size, rng, CPU)) for _ in range(2)]
        orders = [torch.cat([x for x, *_ in epoch])[:, 0] for epoch in epochs]
        for epoch, order in zip(epochs, orders, strict=True):
            assert sorted(order.tolist()) == rows.tolist()
            assert torch.equal(torch.cat([label for _, label, _ in epoch]), 2 * order.long())
            assert max(len(x) for x, *_ in epoch) <= size
        assert n < 20 or not torch.equal(*orders)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("given", [False, True])
def test_batches_gathered_on_the_device_are_those_gathered_before(
    dtype: type, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, with the CPU as the device; weights, hold-outs and several blocks included."""
    X, weight = DIGITS.astype(dtype), np.random.default_rng(0).uniform(0.1, 2, 600)
    held = (X[:100], LABELS[:100]) if given else None
    made = [MLPHead(hidden=(16,), max_epochs=4, mixup=0.2) for _ in range(2)]
    monkeypatch.setattr("precompute.heads.mlp.samples.BLOCK_BYTES", 64 * 8 * 50)
    made[0].fit(RowView(X), LABELS, weight, validation=held)
    monkeypatch.setattr("precompute.heads.mlp.samples.free_bytes", lambda device: 2 * X.nbytes)
    made[1].fit(RowView(X), LABELS, weight, validation=held)
    assert digest(made[1]) == digest(made[0])
    small = Samples(RowView(X), LABELS, np.arange(600), X.dtype)
    assert small.held_by(CPU).resident is not None
    monkeypatch.setattr("precompute.heads.mlp.samples.free_bytes", lambda device: 2 * X.nbytes - 1)
    assert small.held_by(CPU).resident is None


@pytest.mark.rotates(3)
def test_features_that_are_shuffled_by_blocks_are_learned_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    order = np.argsort(LABELS, kind="stable")  # as in a cache, whose rows stand by class
    settings = {"max_epochs": 30, "learning_rate": 3e-3, "batch_size": 64}
    by_rows = MLPHead(**settings).fit(DIGITS[order], LABELS[order]).history_[-1]["validation_loss"]
    for name, value in (("SHUFFLE_BYTES", 0), ("NEIGHBOUR_BYTES", 256 * 4), ("BUFFER_BYTES", 256 * 200)):
        monkeypatch.setattr(f"precompute.heads.mlp.samples.{name}", value)
    by_blocks = MLPHead(**settings).fit(DIGITS[order], LABELS[order]).history_[-1]["validation_loss"]
    assert by_blocks == pytest.approx(by_rows, abs=0.1)


def test_the_training_loss_of_many_samples_is_measured_on_some(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"max_epochs": 3, "hidden": (16,), "validation_fraction": 0.3}
    whole = MLPHead(**settings).fit(DIGITS, LABELS)
    monkeypatch.setattr(fitting, "MEASURED", 200)
    some = MLPHead(**settings).fit(DIGITS, LABELS)
    assert some.history_[0]["train_loss"] == pytest.approx(whole.history_[0]["train_loss"], rel=0.1)
    assert some.history_[0]["train_loss"] != whole.history_[0]["train_loss"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_norm": 1}, "batch_norm must be True or False. Got 1"),
        ({"label_smoothing": 1.0}, "label_smoothing must be a finite number of at least 0 and below 1. Got 1.0"),
        ({"mixup": -0.1}, "mixup must be"),
        ({"mixup": float("inf")}, "mixup must be"),
        ({"schedule": "linear"}, "schedule must be one of constant, cosine. Got 'linear'"),
        ({"schedule": ["cosine"]}, "schedule must be"),
    ],
)
def test_parameters_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLPHead(**settings).fit(DIGITS, LABELS)


@pytest.mark.parametrize("make", [MLPHead, MLPSearch])
def test_features_that_are_no_features_are_refused(make: type[MLPHead] | type[MLPSearch]) -> None:
    with_nan = DIGITS.copy()
    with_nan[7] = np.nan
    for X, held, message in (
        (with_nan, DIGITS, "NaN"),
        (DIGITS, with_nan, "NaN"),
        (RowView(DIGITS[:, :5]), DIGITS, "expecting 5 features"),
        (DIGITS, RowView(DIGITS[:, :5]), "expecting 64 features"),
    ):
        with pytest.raises(ValueError, match=message):
            make().fit(X, LABELS, validation=(held, LABELS))
    for nothing in (DIGITS[:0], RowView(DIGITS, [])):
        with pytest.raises(ValueError, match="0 sample"):
            make().fit(DIGITS, LABELS, validation=(nothing, LABELS[:0]))
        with pytest.raises(ValueError, match="0 sample"):
            make().fit(nothing, LABELS[:0])
    with pytest.raises(ValueError, match="Got 1 class"):
        make().fit(DIGITS, np.zeros(600))


@pytest.mark.rotates(3)
def test_features_that_are_all_constant_give_the_shares_of_the_classes() -> None:
    y = np.arange(600) % 4 == 0
    head = MLPHead(max_epochs=60, learning_rate=1e-2).fit(np.full((600, 5), 7, np.float16), y)
    np.testing.assert_allclose(head.predict_proba(np.full((1, 5), 7.0)), [[0.75, 0.25]], atol=0.05)


FIT_LARGE = """
import sys, numpy as np
from precompute.heads import MLPHead, RowView
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
features = np.memmap(sys.argv[1], np.float16, "r").reshape(-1, 2048)
head, y = MLPHead(hidden=(8,), max_epochs=1), np.arange(len(features)) % 3
head.fit(RowView(features[:2000]), y[:2000])
before = peak()
head.fit(RowView(features), y).predict(RowView(features))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.daily(2)
def test_training_on_a_file_of_2_gib_takes_less_than_1_gib(tmp_path: Path) -> None:
    block = np.random.default_rng(0).normal(size=(16384, 2048)).astype(np.float16).tobytes()
    with open(tmp_path / "features", "wb") as file:
        for _ in range(2 * 2**30 // len(block)):
            file.write(block)
    command = [sys.executable, "-c", FIT_LARGE, tmp_path / "features"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1024
