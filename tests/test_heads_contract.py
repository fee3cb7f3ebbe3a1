"""All heads keep scikit-learn's contract and take the same kinds of input."""

import numpy as np
import pytest
import sklearn
import torch
from conftest import run_python
from sklearn.datasets import load_digits
from sklearn.utils.estimator_checks import parametrize_with_checks

import precompute.heads
from precompute.heads import (
    AttentiveHead,
    CentroidHead,
    KNNHead,
    KNNRegressionHead,
    LogisticHead,
    MLPHead,
    MLPRegressionHead,
    MLPSearch,
    MultilabelKNNHead,
    MultilabelLogisticHead,
    MultilabelMLPHead,
    MultilabelRidgeHead,
    RidgeHead,
    RidgeRegressionHead,
    SelectedHead,
)

DIGITS, LABELS = load_digits(return_X_y=True)
DIGITS, LABELS = DIGITS[:300] / 16, LABELS[:300]  # sixteenths: exact in float16
HEADS = [
    pytest.param(lambda **kw: LogisticHead(**{"C": 1.0, **kw}), id="logistic"),
    pytest.param(lambda **kw: MLPHead(hidden=(16,), max_epochs=3, **kw), id="mlp"),
    pytest.param(KNNHead, id="knn"),
    pytest.param(RidgeHead, id="ridge"),
    pytest.param(CentroidHead, id="centroid"),
    pytest.param(lambda: CentroidHead(metric="cosine"), id="cosine"),
    pytest.param(lambda: CentroidHead(metric="euclidean"), id="euclidean"),
    pytest.param(lambda: SelectedHead(fraction=0.5, C=1e-2, layers=(16, 48)), id="selected"),
    pytest.param(lambda: AttentiveHead(tokens=8, queries=2, max_epochs=3), id="attentive"),
]


# No check is expected to fail. The MLP's are its own settings but for fewer and larger steps, which save time.
CHECKS = parametrize_with_checks(
    [
        LogisticHead(),
        MLPHead(max_epochs=40, learning_rate=1e-2),
        KNNHead(),
        RidgeHead(),
        CentroidHead(),
        CentroidHead(metric="cosine"),
        CentroidHead(metric="euclidean"),
        SelectedHead(),
        AttentiveHead(max_epochs=40, learning_rate=1e-2),
        RidgeRegressionHead(),
        KNNRegressionHead(),
        MLPRegressionHead(max_epochs=40, learning_rate=1e-2),
    ]
).mark


# Settings for single checks, as scikit-learn has them for its own estimators. That a weighted fit is the one on
# repeated rows is asked for in seven digits: so many are there where a solver ends at the optimum, and where nothing is
# drawn by row.
SETTINGS = {
    ("LogisticHead", "check_sample_weight_equivalence_on_dense_data"): {"C": (1e-4, 1e-3, 1e-2), "tol": 1e-17},
    ("MLPHead", "check_sample_weight_equivalence_on_dense_data"): {"dropout": 0.0},
    ("SelectedHead", "check_sample_weight_equivalence_on_dense_data"): {"fraction": 1.0, "C": 1.0, "tol": 1e-17},
    ("AttentiveHead", "check_sample_weight_equivalence_on_dense_data"): {"dropout": 0.0, "batch_size": 256},
    # Weights of 1000 and 0.0001: a linear layer has to go far from where it starts
    ("AttentiveHead", "check_class_weight_classifiers"): {"learning_rate": 1.0, "max_epochs": 200},
    ("MLPRegressionHead", "check_sample_weight_equivalence_on_dense_data"): {"dropout": 0.0},
}


# As a list: older releases of scikit-learn give a generator, which can be read once.
ALL_CHECKS = list(CHECKS.args[1])


@pytest.mark.rotates(6)
@pytest.mark.parametrize(CHECKS.args[0], ALL_CHECKS, **CHECKS.kwargs)
def test_scikit_learn_contract(estimator, check):
    name = getattr(check, "func", check).__name__
    estimator.set_params(**SETTINGS.get((type(estimator).__name__, name), {}))
    check(estimator)


class OfClasses:
    """Most checks give one class a sample. A head of several labels is given a label for each class."""

    def fit(self, X, y, sample_weight=None, **options):
        return super().fit(X, self.indicators(y), sample_weight, **options)

    def score(self, X, y):
        return super().score(X, self.indicators(y))

    def indicators(self, y):
        column = None if y is None else np.asarray(y)
        if (
            column is None
            or (column.ndim == 2 and column.shape[1] > 1)
            or (column.dtype.kind == "f" and np.isnan(column).any())
        ):
            return y
        return (column.reshape(-1, 1) == np.unique(column)).astype(int)


class LogisticOfClasses(OfClasses, MultilabelLogisticHead):
    pass


class RidgeOfClasses(OfClasses, MultilabelRidgeHead):
    pass


class KNNOfClasses(OfClasses, MultilabelKNNHead):
    pass


class MLPOfClasses(OfClasses, MultilabelMLPHead):
    pass


# What says nothing of a head that is given labels and no classes, and why.
NOT_OF_LABELS = {
    "check_classifiers_classes": "predictions are 0 and 1, not names of classes",
    "check_classifiers_train": "predictions are (n, L)",
    "check_classifiers_regression_target": "numbers become one class each, and so labels",
    "check_classifier_not_supporting_multiclass": "so do three classes",
    "check_class_weight_classifiers": "a dict from class to weight; labels have 'balanced'",
    "check_classifier_multioutput": "takes classes_ for one array; it is a list, as MultiOutputClassifier's",
}
LABEL_CHECKS = list(
    parametrize_with_checks(
        [LogisticOfClasses(), RidgeOfClasses(), KNNOfClasses(), MLPOfClasses(max_epochs=20, learning_rate=1e-2)]
    ).mark.args[1]
)
OLD_CHECKS = sklearn.__version__.startswith("1.6.")
LABEL_SETTINGS = {
    ("LogisticOfClasses", "check_sample_weight_equivalence_on_dense_data"): {"C": 1e-2, "tol": 1e-17},
    ("MLPOfClasses", "check_sample_weight_equivalence_on_dense_data"): {"dropout": 0.0},
}


@pytest.mark.rotates(4)
@pytest.mark.parametrize(
    ("estimator", "check"),
    [one for one in LABEL_CHECKS if getattr(one[1], "func", one[1]).__name__ not in NOT_OF_LABELS],
)
def test_scikit_learn_contract_of_several_labels(estimator, check):
    name = getattr(check, "func", check).__name__
    if "sample_weight_equivalence" in name and OLD_CHECKS:
        pytest.skip("scikit-learn 1.6 makes two classes of three by the first row, which differs between the two fits")
    estimator.set_params(**LABEL_SETTINGS.get((type(estimator).__name__, name), {}))
    check(estimator)


def test_the_checks_of_several_labels_are_in_force():
    names = {getattr(check, "func", check).__name__ for _, check in LABEL_CHECKS}
    assert {name for name in names if "multilabel" in name} >= {
        "check_classifiers_multilabel_representation_invariance",
        "check_classifiers_multilabel_output_format_predict",
        "check_classifiers_multilabel_output_format_predict_proba",
    }
    assert set(NOT_OF_LABELS) <= names


def test_the_checks_of_sample_weights_are_in_force_for_every_head():
    given = {}
    for estimator, check in ALL_CHECKS:
        given.setdefault(repr(estimator), set()).add(getattr(check, "func", check).__name__)
    assert len(given) == 12
    assert all(any("sample_weight" in name and "equivalence" in name for name in names) for names in given.values())


@pytest.mark.rotates(3)
@pytest.mark.parametrize("make", HEADS)
def test_every_kind_of_array_gives_the_same_head(make, tmp_path):
    memmap = np.memmap(tmp_path / "features", dtype=np.float16, mode="w+", shape=DIGITS.shape)
    memmap[:] = DIGITS
    memmap.flush()
    kinds = {
        "float32": DIGITS.astype(np.float32),
        "float16": DIGITS.astype(np.float16),
        "memmap": np.memmap(tmp_path / "features", dtype=np.float16, mode="r", shape=DIGITS.shape),
        "torch": torch.tensor(DIGITS, dtype=torch.float32, requires_grad=True),
        "bfloat16": torch.tensor(DIGITS, dtype=torch.bfloat16),
        "float64": DIGITS,
        "list": DIGITS.tolist(),
        "torch float64": torch.tensor(DIGITS),
    }
    expected = {name: make().fit(kinds[name], LABELS).predict_proba(kinds[name]) for name in ("float32", "float64")}
    for kind, X in kinds.items():
        y = torch.tensor(LABELS) if isinstance(X, torch.Tensor) else LABELS
        head = make().fit(X, y)
        same = "float64" if "64" in kind or kind == "list" else "float32"
        proba = head.predict_proba(X)
        assert proba.dtype == same, kind
        assert np.array_equal(proba, expected[same]), kind
        assert np.array_equal(head.classes_, np.arange(10)), kind


@pytest.mark.parametrize("make", HEADS)
def test_input_is_not_changed(make):
    X = DIGITS.astype(np.float32)
    make().fit(X, LABELS, validation=(X, LABELS)).predict_proba(X)
    assert np.array_equal(X, DIGITS.astype(np.float32))


@pytest.mark.parametrize("make", HEADS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_that_are_not_finite_are_refused(make, bad, dtype):
    with np.errstate(over="ignore"):
        X = DIGITS.astype(dtype)
        X[-1, -1] = bad
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        make().fit(X, LABELS)
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        make().fit(DIGITS, LABELS, validation=(X, LABELS))
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        make().fit(DIGITS, LABELS).predict(X)


@pytest.mark.parametrize("make", HEADS)
def test_errors_name_the_problem(make):
    with pytest.raises(ValueError, match=r"Got 1 class, 'cat'. Add images of another class"):
        make().fit(DIGITS, ["cat"] * 300)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        make().fit(DIGITS, LABELS[:-1])
    with pytest.raises(ValueError, match="expecting 64 features"):
        make().fit(DIGITS, LABELS).predict(DIGITS[:, :5])


@pytest.mark.parametrize(
    "head",
    [
        *(LogisticHead(), LogisticHead(C=1.0), MLPHead(max_epochs=2), MLPSearch(MLPHead(max_epochs=2)), KNNHead()),
        *(RidgeHead(), RidgeHead(alpha=1.0), CentroidHead(), SelectedHead(), SelectedHead(fraction=0.5, C=1e-2)),
        AttentiveHead(tokens=8, max_epochs=2),
    ],
    ids=[
        *("logistic", "logistic with C", "mlp", "search", "knn", "ridge", "ridge with alpha", "centroid"),
        *("selected", "selected with both", "attentive"),
    ],
)
def test_validation_and_groups_are_checked(head):
    with pytest.raises(ValueError, match=r"labels that the head does not know: '77'.*Remove those samples"):
        head.fit(DIGITS, LABELS, validation=(DIGITS[:2], [1, 77]))
    with pytest.raises(ValueError, match=r"validation must be a pair \(X, y\)"):
        head.fit(DIGITS, LABELS, validation=DIGITS)
    with pytest.raises(ValueError, match="expecting 64 features"):
        head.fit(DIGITS, LABELS, validation=(DIGITS[:, :5], LABELS))
    for validation in (None, (DIGITS[:2], [1, 7])):
        with pytest.raises(ValueError, match="groups must have one entry per sample"):
            head.fit(DIGITS, LABELS, validation=validation, groups=[1, 2, 3])


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (LogisticHead(C=-1), "C must be a finite number above 0. Got -1"),
        (LogisticHead(C="best"), "C must be"),
        (LogisticHead(C=True), "C must be"),
        (LogisticHead(C=float("inf")), "C must be"),
        (LogisticHead(cv=1), "cv must be a whole number of at least 2. Got 1"),
        (LogisticHead(cv=2.5), "cv must be"),
        (LogisticHead(max_iter=0), "max_iter must be"),
        (LogisticHead(tol=0), "tol must be"),
        (LogisticHead(class_weight="equal"), "class_weight must be"),
        (LogisticHead(class_weight={1: 0}), r"class_weight\[1\] must be"),
        (LogisticHead(random_state=-1), "random_state must be"),
        (MLPHead(hidden=256), r"hidden must be a tuple of layer widths, such as \(256,\). Got 256"),
        (MLPHead(hidden=(0,)), "every width in hidden must be"),
        (MLPHead(dropout=1), "dropout must be a finite number of at least 0 and below 1. Got 1"),
        (MLPHead(weight_decay=float("nan")), "weight_decay must be"),
        (MLPHead(learning_rate=0), "learning_rate must be"),
        (MLPHead(batch_size=0), "batch_size must be"),
        (MLPHead(max_epochs=1.5), "max_epochs must be"),
        (MLPHead(patience="long"), "patience must be"),
        (MLPHead(validation_fraction=1.0), "validation_fraction must be"),
        (MLPHead(class_weight=[1, 2]), "class_weight must be"),
        (MLPHead(random_state=2**32), "random_state must be"),
        (KNNHead(k=0), "k must be a whole number of at least 1. Got 0"),
        (KNNHead(k=1.5), "k must be"),
        (KNNHead(temperature=0), "temperature must be"),
        (KNNHead(temperature=float("nan")), "temperature must be"),
        (RidgeHead(alpha=0), "alpha must be a finite number of at least 1e-12"),
        (RidgeHead(alpha="best"), "alpha must be"),
        (RidgeHead(alpha=True), "alpha must be"),
        (RidgeHead(class_weight={1: -1}), r"class_weight\[1\] must be"),
        (RidgeRegressionHead(alpha=-1), "alpha must be"),
        (CentroidHead(metric="manhattan"), "metric must be 'mahalanobis', 'cosine' or 'euclidean'. Got 'manhattan'"),
        (CentroidHead(shrinkage=0), "shrinkage must be a number from 1e-6 to 1. Got 0 instead"),
        (CentroidHead(shrinkage=1.1), "shrinkage must be"),
        (CentroidHead(shrinkage=float("nan")), "shrinkage must be"),
        (CentroidHead(shrinkage=True), "shrinkage must be"),
        (CentroidHead(shrinkage="auto"), "shrinkage must be"),
        (SelectedHead(fraction=0), "fraction must be a finite number above 0"),
        (SelectedHead(fraction=1.5), "fraction must be above 0 and at most 1. Got 1.5"),
        (SelectedHead(fraction="most"), "fraction must be"),
        (SelectedHead(C=()), "C must have at least one value"),
        (SelectedHead(layers=64), r"layers must be widths, such as \(64, 128\). Got 64"),
        (SelectedHead(layers=(0, 64)), "every width in layers must be"),
        (SelectedHead(layers=(32, 33)), r"layers must add up to the 64 features of X. Got \[32, 33\], which is 65"),
        (SelectedHead(cv=1), "cv must be a whole number of at least 2. Got 1"),
        (AttentiveHead(tokens=0), "tokens must be"),
        (AttentiveHead(tokens=5), "64 features are not 5 positions of as many channels each"),
        (AttentiveHead(channels_first=1), "channels_first must be True or False. Got 1"),
        (AttentiveHead(queries=0), "queries must be"),
        (AttentiveHead(dropout=1), "dropout must be"),
        (AttentiveHead(schedule="linear"), "schedule must be one of constant, cosine. Got 'linear'"),
    ],
)
def test_parameters_are_checked_in_fit(head, message):
    with pytest.raises(ValueError, match=message):
        head.fit(DIGITS, LABELS)


def test_importing_the_package_loads_neither_torch_nor_scikit_learn():
    code = "import sys, precompute.heads; print({'torch', 'sklearn', 'numpy'} & set(sys.modules))"
    assert run_python(code).stdout == "set()\n"


@pytest.mark.rotates(3)
def test_only_the_mlp_and_attention_need_torch():
    code = (
        "import sys; from precompute.heads import CentroidHead, KNNHead, LogisticHead, RidgeHead, RidgeRegressionHead\n"
        "from precompute.heads import SelectedHead\n"
        "from precompute.heads import KNNRegressionHead, MultilabelKNNHead, MultilabelLogisticHead\n"
        "from precompute.heads import MultilabelRidgeHead\n"
        "from precompute.heads import evaluate_labels, evaluate_numbers, choose_thresholds, paired_labels\n"
        "from precompute.heads import load_head, to_sklearn; print('torch' in sys.modules)"
    )
    assert run_python(code).stdout == "False\n"


def test_the_bare_name_is_refused_with_the_right_one():
    assert "Use `import precompute.heads`." in run_python("import heads").stderr


def test_every_public_name_exists_and_an_unknown_one_does_not():
    for name in precompute.heads.__all__:
        assert getattr(precompute.heads, name).__name__ == name
        assert name in dir(precompute.heads)
    with pytest.raises(AttributeError, match="no attribute 'RandomForestHead'"):
        _ = precompute.heads.RandomForestHead
