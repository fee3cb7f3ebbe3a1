"""MLPSearch: heads trained at once are the heads trained alone, the best is kept, and the time budget holds."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.utils.estimator_checks import parametrize_with_checks

from precompute.errors import TrainingError
from precompute.heads import MLPHead, MLPSearch, load_head, save_head
from precompute.heads.mlp import fitting
from precompute.heads.mlp.network import AdamW

DIGITS, LABELS = load_digits(return_X_y=True)
DIGITS, LABELS = (DIGITS[:600] / 16).astype(np.float32), LABELS[:600]
GRID = {"hidden": [(16,), (12, 8), ()], "dropout": [0.0, 0.5], "learning_rate": [1e-3], "weight_decay": [0.3]}
FEW = {"hidden": [(16,), (8,)], "learning_rate": [1e-3, 1e-2]}


# No check is expected to fail. Fewer heads, epochs and larger steps than the defaults save time, and without dropout
# nothing is drawn by row, so that a weighted fit is the one on repeated rows.
@pytest.mark.rotates(3)
@parametrize_with_checks(
    [MLPSearch(MLPHead(max_epochs=15, dropout=0.0), param_grid={"hidden": [(16,)], "learning_rate": [2e-2, 4e-2]})]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.rotates(3)
@pytest.mark.parametrize("extras", [{}, {"batch_norm": True, "label_smoothing": 0.1, "mixup": 0.3, "patience": 2}])
def test_heads_trained_at_once_are_the_heads_trained_alone(extras):
    base = MLPHead(**{"max_epochs": 8, "batch_size": 100, **extras})
    search = MLPSearch(base, param_grid=GRID).fit(DIGITS, LABELS)
    assert len(search.trials_) == 6
    for trial in search.trials_:
        alone = clone(base).set_params(**{name: trial[name] for name in GRID}).fit(DIGITS, LABELS)
        best = alone.history_[alone.best_epoch_ - 1]
        assert (trial["best_epoch"], trial["epochs"]) == (alone.best_epoch_, alone.n_iter_)
        assert trial["validation_loss"] == pytest.approx(best["validation_loss"], rel=1e-3)
        if trial["validation_loss"] == min(other["validation_loss"] for other in search.trials_):
            np.testing.assert_allclose(search.predict_proba(DIGITS), alone.predict_proba(DIGITS), atol=1e-3)


def test_the_optimiser_is_torch_s_adamw_for_every_head():
    rng = np.random.default_rng(0)
    rates, decays = [1e-3, 1e-1, 0.7], [0.0, 0.5, 1e-2]
    start = torch.from_numpy(rng.normal(size=(3, 4, 5))).float()
    together, alone = start.clone(), [row.clone().requires_grad_() for row in start]
    ours = AdamW(torch.tensor(rates)[:, None, None], torch.tensor(decays)[:, None, None], [together])
    theirs = [
        torch.optim.AdamW([row], lr=rate, weight_decay=decay)
        for row, rate, decay in zip(alone, rates, decays, strict=True)
    ]
    for _ in range(20):
        gradients = torch.from_numpy(rng.normal(size=(3, 4, 5))).float()
        ours.step([together], [gradients], 1, 1.0)
        for row, gradient, optimizer in zip(alone, gradients, theirs, strict=True):
            row.grad = gradient
            optimizer.step()
    torch.testing.assert_close(together, torch.stack(alone).detach(), rtol=1e-4, atol=1e-6)


def test_the_lowest_validation_loss_wins_and_is_kept_as_it_is(tmp_path):
    train, held = (DIGITS[:400], LABELS[:400]), (DIGITS[400:], LABELS[400:])
    search = MLPSearch(MLPHead(max_epochs=10), param_grid=GRID).fit(*train, validation=held)
    assert search.validation_source_ == "given"
    losses = [trial["validation_loss"] for trial in search.trials_]
    best = search.trials_[int(np.argmin(losses))]
    head = search.best_estimator_
    assert {name: best[name] for name in GRID} == search.best_params_
    assert all(getattr(head, name) == value for name, value in search.best_params_.items())
    likelihood = search.predict_proba(held[0])[np.arange(200), held[1]]
    assert -np.log(likelihood).mean() == pytest.approx(min(losses), rel=1e-4)
    assert search.score(*held) == best["validation_accuracy"]
    save_head(tmp_path / "head", head, metadata={})
    assert np.array_equal(load_head(tmp_path / "head").head.predict_proba(DIGITS), search.predict_proba(DIGITS))


def test_a_time_budget_ends_the_search_and_keeps_the_best_so_far():
    search = MLPSearch(MLPHead(max_epochs=10**6, patience=10**6), param_grid=FEW, time_budget=1e-9)
    search.fit(DIGITS, LABELS)
    assert search.cut_short_
    assert [trial["epochs"] for trial in search.trials_] == [1] * 4  # an epoch is never left half
    assert not MLPSearch(MLPHead(max_epochs=2), param_grid=FEW, time_budget=1e6).fit(DIGITS, LABELS).cut_short_


def test_heads_that_do_not_fit_together_are_trained_after_each_other(monkeypatch):
    together = MLPSearch(MLPHead(max_epochs=4), param_grid=FEW).fit(DIGITS, LABELS)
    monkeypatch.setattr(fitting, "AT_ONCE_BYTES", 1)
    apart = MLPSearch(MLPHead(max_epochs=4), param_grid=FEW).fit(DIGITS, LABELS)
    for first, second in zip(together.trials_, apart.trials_, strict=True):
        assert first["validation_loss"] == pytest.approx(second["validation_loss"], rel=1e-4)
    hurried = MLPSearch(MLPHead(max_epochs=4), param_grid=FEW, time_budget=1e-9).fit(DIGITS, LABELS)
    assert (len(hurried.trials_), hurried.n_untried_, hurried.cut_short_) == (1, 3, True)


def test_a_head_that_diverges_is_told_and_never_chosen():
    grid = {"learning_rate": [1e-2, 1e5], "hidden": [(8,) * 8]}
    search = MLPSearch(MLPHead(max_epochs=2), param_grid=grid).fit(DIGITS, LABELS)
    assert [trial["validation_loss"] is None for trial in search.trials_] == [False, True]
    assert search.best_params_["learning_rate"] == 1e-2
    with pytest.raises(TrainingError, match=r"not finite after epoch 1 \(learning_rate=100000.0\)"):
        MLPSearch(MLPHead(max_epochs=2), param_grid={**grid, "learning_rate": [1e5, 1e6 - 1]}).fit(DIGITS, LABELS)


def test_too_few_samples_to_choose_by_leave_the_estimator_as_it_is():
    search = MLPSearch(MLPHead(max_epochs=3, dropout=0.1), param_grid=FEW).fit(DIGITS[:20], LABELS[:20])
    assert search.validation_source_ == "none: too few samples to hold out"
    assert search.best_params_ == {"hidden": (256,), "learning_rate": 1e-3}
    assert [trial["validation_loss"] for trial in search.trials_] == [None]


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (MLPSearch(time_budget=0), "time_budget must be a finite number above 0. Got 0"),
        (MLPSearch(time_budget=-1.0), "time_budget must be"),
        (MLPSearch(time_budget=float("nan")), "time_budget must be"),
        (MLPSearch(time_budget="1 min"), "time_budget must be"),
        (MLPSearch(MLPHead), "estimator must be an MLPHead or None"),
        (MLPSearch(param_grid={}), "param_grid must be a dict with some of the keys hidden, dropout"),
        (MLPSearch(param_grid={"patience": [3]}), "param_grid must be a dict"),
        (MLPSearch(param_grid={"dropout": []}), "(?i)dropout"),
        (MLPSearch(param_grid={"dropout": [0.5, 1.0]}), "dropout must be a finite number"),
        (MLPSearch(MLPHead(mixup=-1)), "mixup must be"),
    ],
)
def test_bad_parameters(search, message):
    with pytest.raises(ValueError, match=message):
        search.fit(DIGITS, LABELS)
