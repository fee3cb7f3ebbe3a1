"""Head2Toe: of the features of many layers, those that say most of the classes, and a linear head on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.heads.base.arrays import arrays_on
from precompute.heads.base.file_checks import check_arrays, check_numbers
from precompute.heads.base.inputs import (
    check_class_weight,
    check_classes_with_weight,
    check_groups,
    check_number,
    check_training,
    check_validation,
    class_weights,
    weighted_rows,
)
from precompute.heads.base.progress import report
from precompute.heads.base.rows import RowView
from precompute.heads.base.splits import check_cv, folds, given_splits
from precompute.heads.base.threads import one_pool
from precompute.heads.linear.columns import ChosenColumns, spread
from precompute.heads.linear.design import Design, working_dtype
from precompute.heads.linear.logistic_base import TOO_FEW
from precompute.heads.linear.model import LinearClassifier, log_probabilities, probabilities
from precompute.heads.linear.objective import Objective, check_memory
from precompute.heads.linear.passes import alone
from precompute.heads.linear.selection import ChoiceSample, count_of, read_rows, trials
from precompute.heads.linear.solver import minimise

if TYPE_CHECKING:
    import numpy.typing as npt

    from precompute.heads.base.inputs import Weighted
    from precompute.heads.base.rows import Features

    Array = npt.NDArray[Any]
    Parts = list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]

__all__ = ["FRACTIONS", "SelectedHead"]

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of all features; the last chooses none
# One value per decade: features are standardised, so this is from what suits thousands of them to what suits a few.
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
DEFAULT_FRACTION, DEFAULT_C = 1.0, 1e-3  # where there are too few samples to choose on
SAMPLE_BYTES = 2**29  # of float32 features that a choice is made on; of more rows, as many at random
TRIAL = {"fraction", "C", "accuracy", "log_loss"}


class SelectedHead(LinearClassifier):
    """Multinomial logistic regression on the most relevant of many features, such as those of all layers of a network.

    Head2Toe (Evci et al., "Head2Toe: Utilizing Intermediate Representations for Better Transfer Learning", ICML 2022).
    Features are standardised, ranked by the norm of their weights in a group lasso (see `relevance.py`), the best
    fraction is kept, and a logistic regression is fitted on these. The fraction and `C` are chosen together. Everything
    that looks at a label is done anew inside each fold: moments, ranking and fit see none of the rows that judge them.

    Parameters
    ----------
    fraction : share of all features to keep, "auto" for the best of `FRACTIONS`, or a sequence of values to choose from
    C : inverse strength of the penalty on the weights of standardised features, "auto" for the best of `STRENGTHS`, or
        a sequence. Of several pairs (fraction, C), that with the lowest log loss (ties: fewer features, then the
        smaller C) on the validation set that `fit` is given, else by stratified cross-validation. The head is then
        fitted on all of `X`, and on the validation set too.
    layers : widths of the layers whose features stand side by side, None for one; they only say what `kept_by_layer_`
        counts
    cv, max_iter, tol, class_weight, random_state, device : as those of LogisticHead

    Attributes
    ----------
    classes_, coef_, intercept_, n_features_in_ : as those of LogisticHead, for features as they are given: what was not
        kept has coefficients of 0
    kept_ : (k,) int32, ascending, the features that were kept
    kept_by_layer_ : list, how many of each layer
    fraction_, C_ : what was used
    source_ : "given", "validation, then fitted on both", "5-fold cross-validation", or "default: too few samples for
        cross-validation"
    trials_ : one dict for each pair that was tried on every split: "fraction", "C", "accuracy" and "log_loss" on what
        was held out. Of a fraction no larger C is tried on a split once the log loss has risen twice
    n_iter_, converged_ : of the final fit
    """

    _FITTED: tuple[str, ...] = (*("C_", "fraction_", "source_", "kept_by_layer_", "trials_", "n_iter_", "converged_"),)
    source_: str

    def __init__(
        self,
        *,
        fraction: float | str | Sequence[float] = "auto",
        C: float | str | Sequence[float] = "auto",
        layers: Sequence[int] | None = None,
        cv: int | Sequence[Any] = 5,
        max_iter: int = 1000,
        tol: float = 1e-7,
        class_weight: Any = None,
        random_state: int | None = 0,
        device: str = "cpu",
    ) -> None:
        self.fraction = fraction
        self.C = C
        self.layers = layers
        self.cv = cv
        self.max_iter = max_iter
        self.tol = tol
        self.class_weight = class_weight
        self.random_state = random_state
        self.device = device

    def _check_parameters(self) -> None:
        """Raise ValueError if a parameter has the wrong type or range; `load_head` asks too."""
        self._fractions()
        self._strengths()
        if self.layers is not None:
            if not isinstance(self.layers, tuple | list) or not self.layers:
                raise ValueError(f"layers must be widths, such as (64, 128). Got {self.layers!r} instead.")
            for width in self.layers:
                check_number("every width in layers", width, whole=True, low=1)
        check_cv(self.cv, default=5)
        check_number("max_iter", self.max_iter, whole=True, low=1)
        check_number("tol", self.tol, low=0, open_low=True)
        check_class_weight(self.class_weight)
        if self.random_state is not None:
            check_number("random_state", self.random_state, whole=True, low=0, high=2**32)

    def _fractions(self) -> tuple[float, ...]:
        values = _several("fraction", self.fraction, FRACTIONS)
        for value in values:
            if value > 1:
                raise ValueError(f"fraction must be above 0 and at most 1. Got {value!r} instead.")
        return values

    def _strengths(self) -> tuple[float, ...]:
        return _several("C", self.C, STRENGTHS)

    def _widths(self, d: int) -> tuple[int, ...]:
        """Of the layers. Raises ValueError where they do not add up to `d`."""
        widths = (d,) if self.layers is None else tuple(int(width) for width in self.layers)
        if sum(widths) != d:
            raise ValueError(
                f"layers must add up to the {d} features of X. Got {list(widths)}, which is {sum(widths)}."
            )
        return widths

    def fit(
        self,
        X: Features,
        y: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
        *,
        validation: tuple[Features, npt.ArrayLike] | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> SelectedHead:
        """Fit on features `X` (n, d), float64 in float64 and others in float32, and labels `y` (n,).

        `validation`, `groups` and `sample_weight` are those of LogisticHead. The choice is made on SAMPLE_BYTES of
        features at most, of more on so many rows at random; the final fit reads all rows in blocks.

        Raises ValueError for NaN, infinity, a single class, lengths that differ, a parameter out of range, or weights
        that are negative or all zero. Raises DeviceError if the machine lacks the device.
        """
        self._check_parameters()
        view, label, self.classes_ = check_training(self, X, y)
        widths = self._widths(view.shape[1])
        given = weighted_rows(view, sample_weight, groups)
        label, weight = given.of(label), given.weight
        check_classes_with_weight(self, label, self.classes_)
        check_memory(view.shape[1], len(self.classes_), view.working_dtype.itemsize)
        choosing = len(self._fractions()) * len(self._strengths()) > 1
        views = [given.view]
        if validation is not None:
            chosen_on, held = check_validation(self, validation, self.classes_)
            if choosing:
                views.append(chosen_on)
                label, weight = np.concatenate([label, held]), np.concatenate([weight, np.ones(len(held))])
        loss = weight * class_weights(self.class_weight, self.classes_, label, weight)[label]
        positions = self._sampled([len(one) for one in views], view.shape[1])
        sample = ChoiceSample(
            read_rows(views, positions), label[positions], weight[positions], loss[positions], len(self.classes_)
        )
        with one_pool(2 * sample.X.size * len(self.classes_)):
            self._choose(sample, given, positions, len(view))
            mean, scale = spread(views, weight)
            Z = (sample.X - mean.astype(sample.X.dtype)) / scale.astype(sample.X.dtype)
            count = count_of(self.fraction_, view.shape[1])
            self.kept_ = np.sort(sample.ranking(Z, np.arange(len(Z)))[:count]).astype(np.int32)
        self._fit_on_kept(views, label, loss, mean, scale)
        layer_of = np.repeat(np.arange(len(widths)), widths)
        self.kept_by_layer_ = np.bincount(layer_of[self.kept_], minlength=len(widths)).tolist()
        return self

    def _sampled(self, lengths: Sequence[int], d: int) -> npt.NDArray[np.intp]:
        """Positions (m,), ascending, of the rows that a choice is made on: all, or so many of each view at random."""
        n = sum(lengths)
        most = max(1, SAMPLE_BYTES // (4 * d))
        if n <= most:
            return np.arange(n)
        rng, start, chosen = np.random.default_rng(self.random_state), 0, []
        for length in lengths:
            chosen.append(start + np.sort(rng.permutation(length)[: math.ceil(length * most / n)]))
            start += length
        return np.concatenate(chosen)

    def _choose(self, sample: ChoiceSample, given: Weighted, positions: Array, n_rows: int) -> None:
        """Set `fraction_` and `C_`."""
        fractions, strengths = self._fractions(), self._strengths()
        self.trials_: list[dict[str, float]] = []
        if len(fractions) * len(strengths) == 1:
            self.fraction_, self.C_, self.source_ = fractions[0], strengths[0], "given"
            return
        parts, self.source_ = self._parts(sample.label, given, positions, n_rows)
        if not parts:
            self.fraction_ = fractions[0] if len(fractions) == 1 else DEFAULT_FRACTION
            self.C_ = strengths[0] if len(strengths) == 1 else DEFAULT_C
            return
        tried: list[dict[tuple[float, float], Array]] = []
        for number, (train, test) in enumerate(parts):
            report("splits that the choice of features is tried on", number, len(parts))
            check_classes_with_weight(self, sample.label[train], self.classes_)
            tried.append(trials(sample, train, test, fractions, strengths, self.device))
        counted = np.array([sample.weight[test].sum() for _, test in parts])
        for fraction, C in sorted(set.intersection(*(set(one) for one in tried))):
            hits, losses = counted @ np.array([one[fraction, C] for one in tried]) / counted.sum()
            self.trials_.append({"fraction": fraction, "C": C, "accuracy": float(hits), "log_loss": float(losses)})
        best = min(self.trials_, key=lambda trial: trial["log_loss"])  # the first of equal ones
        self.fraction_, self.C_ = best["fraction"], best["C"]

    def _parts(self, label: Array, given: Weighted, positions: Array, n_rows: int) -> tuple[Parts, str]:
        """The splits of the sample to choose on, and their name."""
        n_train = len(given.view)
        if (positions >= n_train).any():
            trained = positions < n_train
            return [(np.flatnonzero(trained), np.flatnonzero(~trained))], "validation, then fitted on both"
        if isinstance(self.cv, Sequence):
            place = np.full(n_train, -1)
            place[positions] = np.arange(len(positions))
            splits = [(place[train], place[test]) for train, test in given_splits(self.cv, given.rows, n_rows)]
            parts = [(train[train >= 0], test[test >= 0]) for train, test in splits]
        else:
            group = None if given.group is None else check_groups(given.group[positions], len(positions))
            parts = folds(label, groups=group, n_folds=self.cv, seed=self.random_state)
        return parts, f"{len(parts)}-fold cross-validation" if parts else TOO_FEW

    def _fit_on_kept(self, views: list[RowView], label: Array, loss: Array, mean: Array, scale: Array) -> None:
        """Set the coefficients for features as they are given, and what the solver reports."""
        columns: list[RowView] = [ChosenColumns(views, self.kept_, mean, scale)]
        design = Design(columns, arrays_on(self.device, working_dtype(columns), "SelectedHead"))
        objective = Objective(design, label, loss, len(self.classes_), self.C_)
        fit = alone(design, minimise(objective, tol=self.tol, max_iter=self.max_iter))
        of_standardised, intercept = design.unfold(fit.theta)
        of_kept = (of_standardised / scale[self.kept_]).astype(of_standardised.dtype)
        self.coef_ = np.zeros((len(of_kept), views[0].shape[1]), of_kept.dtype)
        self.coef_[:, self.kept_] = of_kept
        self.intercept_ = (intercept - of_kept.astype(np.float64) @ mean[self.kept_]).astype(of_kept.dtype)
        self.n_iter_, self.converged_ = fit.n_iter, fit.converged

    def predict_proba(self, X: Features) -> npt.NDArray[np.floating]:
        """Probabilities (n, K) of features (n, d), in the order of `classes_`.

        float64 where the head or `X` is and else float32.
        """
        return probabilities(self._linear(X))

    def predict_log_proba(self, X: Features) -> npt.NDArray[np.floating]:
        """The logarithms (n, K) of `predict_proba`, from the logits: finite where a probability is too small for its
        dtype.
        """
        return log_probabilities(self._linear(X))

    def choices(self) -> dict[str, Any]:
        """What the fit decided, ready for JSON."""
        return {
            "fraction": self.fraction_,
            "C": self.C_,
            "source": self.source_,
            "kept": len(self.kept_),
            "kept_by_layer": self.kept_by_layer_,
            "converged": self.converged_,
            "iterations": self.n_iter_,
            "trials": self.trials_,
        }

    def summary(self) -> str:
        """The same as one line."""
        late = "" if self.converged_ else "; the solver stopped before it converged"
        kept = f"{len(self.kept_):,} of {self.n_features_in_:,} features"
        return f"{kept} ({self.fraction_:.2g} of them), C = {self.C_:g} ({self.source_}{late})"

    def used_validation(self) -> bool:
        """Whether the validation set that `fit` was given has decided anything."""
        return self.source_.startswith("validation")

    def _arrays(self) -> dict[str, Array]:
        return {"kept": self.kept_, **super()._arrays()}

    def _restore(self, arrays: dict[str, Array], fitted: dict[str, Any]) -> None:
        kept = arrays.get("kept")
        if kept is None or kept.ndim != 1:
            raise ValueError("its array kept must hold the numbers of features")
        self._restore_coefficients({name: array for name, array in arrays.items() if name != "kept"}, self._outputs)
        d = self.n_features_in_
        check_arrays({"kept": kept}, {"kept": (kept.shape, ["int32"])})
        if kept[0] < 0 or kept[-1] >= d or (np.diff(kept) <= 0).any():
            raise ValueError(f"its array kept must hold numbers of its {d} features, ascending")
        widths = self._widths(d)
        layer_of = np.repeat(np.arange(len(widths)), widths)
        if fitted["kept_by_layer"] != np.bincount(layer_of[kept], minlength=len(widths)).tolist():
            raise ValueError("its kept_by_layer must count what it kept of each layer")
        check_number("C", fitted["C"], low=0, open_low=True)
        check_number("fraction", fitted["fraction"], low=0, open_low=True)
        check_number("n_iter", fitted["n_iter"], whole=True, low=0)
        if not isinstance(fitted["source"], str) or not isinstance(fitted["converged"], bool):
            raise ValueError("its source must be a string, and its converged true or false")
        check_numbers("trials", fitted["trials"], TRIAL)
        self.kept_ = kept


def _several(name: str, value: Any, auto: tuple[float, ...]) -> tuple[float, ...]:
    """The values to choose from; one where it is given."""
    if isinstance(value, str) and value == "auto":
        return auto
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        check_number(name, value, low=0, open_low=True)
        return (float(value),)
    if not len(value):
        raise ValueError(f"{name} must have at least one value to choose from. Got none.")
    for one in value:
        check_number(f"every {name}", one, low=0, open_low=True)
    return tuple(float(one) for one in value)
