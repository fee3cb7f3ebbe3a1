"""The linear probe: multinomial logistic regression, with its regularisation chosen on held-out samples."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from joblib import Parallel, delayed
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils.extmath import softmax
from sklearn.utils.validation import check_is_fitted

from ._inputs import check_class_weight, check_features, check_number, check_training, check_validation, class_weights
from .splits import folds

if TYPE_CHECKING:
    import numpy.typing as npt

    from ._rows import Features

    Array = npt.NDArray[Any]
    Rows = Array | slice
    Part = tuple[Rows, Array, Array, Rows]  # rows to train on, then features, label positions and rows to score on

__all__ = ["LogisticHead"]

# One value per decade, within the 1e-6 to 1e5 that Kornblith et al. search for linear probes ("Do Better ImageNet
# Models Transfer Better?", CVPR 2019). `trials_` shows where the best one sits at an end.
C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)
DEFAULT_C = 1.0  # scikit-learn's, for training sets too small to choose on
FLOAT32_TOL = 1e-7  # float32 gradients do not get closer to zero than about this
ALL = slice(None)


class LogisticHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """L2-regularised multinomial logistic regression with an unpenalised intercept: the linear probe.

    Fitted by scikit-learn's `LogisticRegression` (L-BFGS) in float32 on centred features. Centring changes nothing in
    the model, as the intercept absorbs it, but L-BFGS needs fewer steps. It is folded back into `intercept_`.

    Parameters
    ----------
    C : inverse strength of the regularisation, as in scikit-learn, or "auto": the value of `C_GRID` with the lowest
        log loss (ties: the smaller C) on the validation set that `fit` is given, else by stratified cross-validation.
        The head is then fitted on all of `X`. Log loss and not accuracy, because on a few hundred samples many values
        of C get the same ones right, and the rest is chance.
    cv : number of folds, fewer where the second most common class has fewer samples (or groups). If that is one,
        C is `DEFAULT_C`.
    max_iter, tol : when L-BFGS stops, as in scikit-learn; a C above 1 divides tol, since the weaker the penalty the
        flatter the loss, and a solver that starts from the C before would stop at once.
    class_weight : None, "balanced", or a dict from label to weight, as in scikit-learn. C is chosen without.
    random_state : seed of the folds; None draws a new one.
    n_jobs : folds fitted at the same time (threads; each holds its own copy of its training rows).

    Attributes
    ----------
    classes_ : (K,), sorted
    coef_ : (K, d) float32, or (1, d) for two classes, where it scores `classes_[1]` as in scikit-learn
    intercept_ : (K,) or (1,) float32
    C_ : float, the C that was used
    C_source_ : "given", "validation", "5-fold cross-validation", or "default: too few samples for cross-validation"
    trials_ : list of {"C", "accuracy", "log_loss"}, one per value that was tried, on samples that were held out
    n_iter_ : int, L-BFGS steps of the final fit
    converged_ : bool, whether the final fit met `tol` (no ConvergenceWarning is raised)
    n_features_in_ : int
    """

    def __init__(
        self,
        *,
        C: float | str = "auto",
        cv: int = 5,
        max_iter: int = 1000,
        tol: float = 1e-4,
        class_weight: Any = None,
        random_state: int | None = 0,
        n_jobs: int | None = None,
    ) -> None:
        self.C = C
        self.cv = cv
        self.max_iter = max_iter
        self.tol = tol
        self.class_weight = class_weight
        self.random_state = random_state
        self.n_jobs = n_jobs

    def _check_parameters(self) -> None:
        """Raise ValueError if a parameter has the wrong type or range; `load_head` asks too."""
        if self.C != "auto":
            check_number("C", self.C, low=0, open_low=True)
        check_number("cv", self.cv, whole=True, low=2)
        check_number("max_iter", self.max_iter, whole=True, low=1)
        check_number("tol", self.tol, low=0, open_low=True)
        check_class_weight(self.class_weight)
        if self.random_state is not None:
            check_number("random_state", self.random_state, whole=True, low=0, high=2**32)

    def fit(
        self,
        X: Features,
        y: npt.ArrayLike,
        *,
        validation: tuple[Features, npt.ArrayLike] | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> LogisticHead:
        """Fit on features `X` (n, d) of any float dtype, copied once to float32, and labels `y` (n,).

        `validation` is a pair (X, y) to choose C on. `groups` (n,) says which samples must stay in one fold, such as
        files with the same bytes. Both serve only C="auto".

        Raises ValueError for NaN, infinity, a single class, lengths that differ, or a parameter out of range.
        """
        self._check_parameters()
        view, label, self.classes_ = check_training(self, X, y)
        X = view[:].astype(np.float32, copy=False)
        mean = X.mean(axis=0, dtype=np.float64).astype(np.float32)
        X -= mean
        weight = class_weights(self.class_weight, self.classes_, label)

        parts: list[Part] = []
        self.C_source_ = "given"
        if self.C == "auto" and validation is not None:
            chosen_on, held = check_validation(self, validation, self.classes_)
            parts, self.C_source_ = [(ALL, chosen_on[:] - mean, held, ALL)], "validation"
        elif self.C == "auto":
            splits = folds(label, groups=groups, n_folds=self.cv, seed=self.random_state)
            parts = [(train, X, label, test) for train, test in splits]
            self.C_source_ = f"{len(splits)}-fold cross-validation"
        self.trials_ = self._try_grid(X, label, parts, weight)
        if self.C != "auto":
            self.C_ = float(self.C)
        elif self.trials_:
            self.C_ = min(self.trials_, key=lambda trial: (trial["log_loss"], trial["C"]))["C"]
        else:
            self.C_, self.C_source_ = DEFAULT_C, "default: too few samples for cross-validation"

        model = self._model(self.C_)
        self.converged_ = _fit_quietly(model, X, label, weight)
        self.coef_ = model.coef_
        self.intercept_ = (model.intercept_ - model.coef_.astype(np.float64) @ mean).astype(np.float32)
        self.n_iter_ = int(model.n_iter_.max())
        return self

    def decision_function(self, X: Features) -> npt.NDArray[np.float32]:
        """Logits (n, K) float32 of features (n, d); for two classes (n,), positive for `classes_[1]`."""
        check_is_fitted(self)
        view = check_features(self, X)
        logits = np.empty((len(view), len(self.coef_)), np.float32)
        for place, block in view.blocks():
            logits[place] = block @ self.coef_.T + self.intercept_
        return logits[:, 0] if logits.shape[1] == 1 else logits

    def predict_proba(self, X: Features) -> npt.NDArray[np.float32]:
        """Probabilities (n, K) float32 of features (n, d), in the order of `classes_`."""
        logits = self.decision_function(X)
        if logits.ndim == 1:
            logits = np.stack([np.zeros_like(logits), logits], axis=1)
        proba: npt.NDArray[np.float32] = softmax(logits, copy=False)
        return proba

    def predict(self, X: Features) -> Array:
        """The most probable label (n,) of each row of features (n, d)."""
        logits = self.decision_function(X)
        best = (logits > 0).astype(np.intp) if logits.ndim == 1 else logits.argmax(axis=1)
        predicted: Array = self.classes_[best]
        return predicted

    def choices(self) -> dict[str, Any]:
        """What the fit decided, ready for JSON."""
        chosen = {"C": self.C_, "C_source": self.C_source_, "converged": self.converged_}
        return {**chosen, "iterations": self.n_iter_, "trials": self.trials_}

    def summary(self) -> str:
        """The same as one line."""
        late = "" if self.converged_ else "; the solver stopped before it converged"
        return f"C = {self.C_:g} ({self.C_source_}{late})"

    def used_validation(self) -> bool:
        """Whether the validation set that `fit` was given has decided anything."""
        return self.C_source_ == "validation"

    def _model(self, C: float, **options: Any) -> LogisticRegression:
        return LogisticRegression(C=C, max_iter=self.max_iter, tol=self._tol(C), solver="lbfgs", **options)

    def _tol(self, C: float) -> float:
        return min(self.tol, max(self.tol / C, FLOAT32_TOL))

    def _try_grid(self, X: Array, label: Array, parts: list[Part], weight: Array) -> list[dict[str, float]]:
        """Accuracy and log loss of each C in the grid, over the held-out samples of all parts together."""
        if not parts:
            return []
        # Threads share the features. The work is in BLAS and Cython, which release the lock.
        run = Parallel(n_jobs=self.n_jobs, require="sharedmem")
        with warnings.catch_warnings():  # around the threads, as the filters are global
            warnings.simplefilter("ignore", ConvergenceWarning)
            results = run(delayed(self._walk_grid)(X, label, part, weight) for part in parts)
        size = sum(n for n, _ in results)
        hits, losses = np.sum([sums for _, sums in results], axis=0).T / size
        return [
            {"C": C, "accuracy": float(hit), "log_loss": float(loss)}
            for C, hit, loss in zip(C_GRID, hits, losses, strict=True)
        ]

    def _walk_grid(self, X: Array, label: Array, part: Part, weight: Array) -> tuple[int, list[tuple[int, float]]]:
        """How many samples one part scores on, and for each C its hits and the sum of its log losses."""
        train, Xv, held, test = part
        X, label, Xv, held = X[train], label[train], Xv[test], held[test]  # copied here: only folds at work take memory
        model = self._model(C_GRID[0], warm_start=True)  # starting each C from the one before is 2 to 3 times faster
        sums = []
        for C in C_GRID:
            model.set_params(C=C, tol=self._tol(C)).fit(X, label, sample_weight=weight[label])
            proba = np.zeros((len(Xv), len(weight)))
            proba[:, model.classes_] = model.predict_proba(Xv)  # a rare class may be absent from a training part
            likelihood = np.clip(proba[np.arange(len(held)), held], np.finfo(np.float32).eps, 1)
            sums.append((int((proba.argmax(axis=1) == held).sum()), float(-np.log(likelihood).sum())))
        return len(held), sums


def _fit_quietly(model: LogisticRegression, X: Array, label: Array, weight: Array) -> bool:
    """Fit, and return whether L-BFGS met its tolerance instead of letting it warn. Other warnings pass."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(X, label, sample_weight=weight[label])
    others = [w for w in caught if not issubclass(w.category, ConvergenceWarning)]
    for w in others:
        warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
    return len(others) == len(caught)
