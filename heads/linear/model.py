"""What every fitted linear head is: coefficients and intercepts, what they score features with, and how a file holds
them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from precompute.heads.base.file_checks import check_shapes
from precompute.heads.base.inputs import check_features

if TYPE_CHECKING:
    import numpy.typing as npt

    from precompute.heads.base.rows import Features

    Array = npt.NDArray[Any]

__all__ = ["LinearClassifier", "LinearModel", "log_probabilities", "probabilities"]


class LinearModel(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Fitted `coef_` (outputs, d), `intercept_` (outputs,), both float32 or both float64, and `n_features_in_`.

    The intercept of a regression is always float64: numbers may be large and differ by little.
    """

    coef_: npt.NDArray[np.floating]
    intercept_: npt.NDArray[np.floating]

    def _linear(self, X: Features) -> npt.NDArray[np.floating]:
        """coef_ x + intercept_, (n, outputs), float64 where any of the three is and else float32."""
        check_is_fitted(self)
        view = check_features(self, X)
        scores = np.empty((len(view), len(self.coef_)), np.result_type(view.working_dtype, self.coef_, self.intercept_))
        for rows, block in view.blocks():
            scores[rows] = block @ self.coef_.T + self.intercept_
        return scores

    def _arrays(self) -> dict[str, Array]:
        return {"coef": self.coef_, "intercept": self.intercept_}

    def _restore_coefficients(self, arrays: dict[str, Array], outputs: int) -> None:
        """Take both from `arrays`, which must hold nothing else. Raises ValueError for wrong shapes or dtypes."""
        n_features = arrays["coef"].shape[-1] if "coef" in arrays else 0
        check_shapes(arrays, {"coef": (outputs, n_features), "intercept": (outputs,)})
        self.coef_, self.intercept_, self.n_features_in_ = arrays["coef"], arrays["intercept"], n_features


class LinearClassifier(ClassifierMixin, LinearModel):  # type: ignore[misc]  # scikit-learn has no types
    """A linear model with one output for each class, or one, for the second, of two classes."""

    classes_: Array

    def decision_function(self, X: Features) -> npt.NDArray[np.floating]:
        """Scores (n, K) of features (n, d); for two classes (n,), positive for `classes_[1]`.

        float64 where the head or `X` is and else float32.
        """
        scores = self._linear(X)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: Features) -> Array:
        """The label (n,) with the highest score for each row of features (n, d)."""
        scores = self._linear(X)
        best = (scores[:, 0] > 0).astype(np.intp) if scores.shape[1] == 1 else scores.argmax(axis=1)
        predicted: Array = self.classes_[best]
        return predicted

    @property
    def _outputs(self) -> int:
        """Rows of `coef_` for `classes_`."""
        return 1 if len(self.classes_) == 2 else len(self.classes_)


def log_probabilities(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """The logarithms of `probabilities`, of the logits and not of these, which may be 0; may overwrite `logits`."""
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


def probabilities(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Softmax of logits (n, K), or of (0, logit) for the single column of two classes; may overwrite `logits`."""
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits
