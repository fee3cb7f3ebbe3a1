"""Saved heads: they come back exactly, and a file that is not one, or was changed, is refused."""

import json
import os
import stat
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError

from precompute.errors import HeadError
from precompute.heads import (
    AttentiveHead,
    CentroidHead,
    KNNHead,
    KNNRegressionHead,
    LogisticHead,
    MLPHead,
    MLPRegressionHead,
    MultilabelKNNHead,
    MultilabelLogisticHead,
    MultilabelMLPHead,
    MultilabelRidgeHead,
    RidgeHead,
    RidgeRegressionHead,
    RowView,
    SavedHead,
    SelectedHead,
    load_head,
    save_head,
)
from precompute.heads.persistence import encoding

X, Y = load_iris(return_X_y=True)
NAMES = np.array(["b\udcff", "iris 🌸", "ünïcode"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
# Names of folders: any bytes but NUL, which Python reads as UTF-8 with a lone surrogate for every other byte.
FOLDERS = st.binary(max_size=8).map(lambda b: b.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
LABELS = st.lists(FOLDERS, min_size=2, max_size=5, unique=True) | st.lists(
    st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=5, unique=True
)


KINDS = {
    "logistic": lambda **settings: LogisticHead(**{"C": 1.0, **settings}),
    "mlp": lambda **settings: MLPHead(**{"hidden": (3,), "max_epochs": 2, **settings}),
    "knn": KNNHead,
    "ridge": RidgeHead,
    "centroid": CentroidHead,
    "multilabel-logistic": lambda **settings: MultilabelLogisticHead(**{"C": 1.0, **settings}),
    "multilabel-ridge": MultilabelRidgeHead,
    "multilabel-knn": MultilabelKNNHead,
    "multilabel-mlp": lambda **settings: MultilabelMLPHead(**{"hidden": (3,), "max_epochs": 2, **settings}),
    "ridge-regression": RidgeRegressionHead,
    "knn-regression": KNNRegressionHead,
    "mlp-regression": lambda **settings: MLPRegressionHead(**{"hidden": (3,), "max_epochs": 2, **settings}),
    "selected": lambda **settings: SelectedHead(**{"fraction": 0.5, "C": 1.0, "layers": (1, 3), **settings}),
    "attentive": lambda **settings: AttentiveHead(**{"tokens": 2, "queries": 3, "max_epochs": 2, **settings}),
}
INDICATORS = np.stack([Y == 0, Y > 0, Y >= 0], axis=1)  # of the last all samples have one


def make(kind, y=NAMES[Y], **settings):
    head = KINDS[kind](**settings)
    if kind.startswith("multilabel"):
        return head.fit(X, INDICATORS, label_names=NAMES[::-1]).set_thresholds([0.25, 0.5, 1 / 3])
    return head.fit(X, Y.astype(float) if kind.endswith("regression") else y)


@pytest.fixture(params=KINDS)
def head(request):
    return make(request.param)


@pytest.fixture
def saved(head, tmp_path):
    path = tmp_path / "head.safetensors"
    save_head(path, head, metadata={"layer": "avgpool"})
    return path


def assert_same_head(loaded, head):
    machine = {"device"}
    assert type(loaded) is type(head)
    params, expected = loaded.get_params(), head.get_params()
    assert {k: v for k, v in params.items() if k not in machine} == {
        k: v for k, v in expected.items() if k not in machine
    }
    fitted, expected = dict(vars(loaded)), vars(head)
    assert set(fitted) == set(expected)
    for name, value in expected.items():
        if name in machine:
            continue
        if isinstance(value, RowView):
            value, fitted[name] = value[:], fitted[name][:]  # noqa: PLW2901
        arrays = value if name in ("weights_", "biases_") else [value]
        others = fitted[name] if name in ("weights_", "biases_") else [fitted[name]]
        for a, b in zip(arrays, others, strict=True):
            if isinstance(a, np.ndarray):
                assert (a.dtype, a.shape, a.tolist()) == (b.dtype, b.shape, b.tolist()), name
            else:
                assert a == b, name
    assert np.array_equal(loaded.predict(X), head.predict(X))
    if hasattr(head, "predict_proba"):
        assert np.array_equal(loaded.predict_proba(X), head.predict_proba(X))


@pytest.mark.rotates(2)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("logistic", {}),
        ("logistic", {"C": "auto", "device": "cpu:0", "class_weight": "balanced", "random_state": None}),
        ("logistic", {"C": np.float64(0.5), "class_weight": {"b\udcff": 2.0, "iris 🌸": 1}}),
        ("mlp", {}),
        ("mlp", {"hidden": (4, 3), "class_weight": {"ünïcode": 0.5}, "dropout": 0}),
        ("mlp", {"hidden": ()}),
        ("mlp", {"validation_fraction": 0.01}),
        ("knn", {}),
        ("knn", {"k": 1000, "temperature": np.float32(0.5)}),
        ("ridge", {}),
        ("ridge", {"alpha": np.float64(3), "class_weight": {"ünïcode": 0.5}}),
        ("centroid", {}),
        ("centroid", {"shrinkage": 1}),
        ("centroid", {"metric": "cosine"}),
        ("centroid", {"metric": "euclidean"}),
        ("ridge-regression", {}),
        ("ridge-regression", {"alpha": 2}),
        ("multilabel-logistic", {"C": "auto", "device": "cpu:0", "class_weight": "balanced"}),
        ("multilabel-ridge", {}),
        ("multilabel-ridge", {"alpha": 2}),
        ("multilabel-knn", {}),
        ("multilabel-knn", {"k": 1000}),
        ("multilabel-mlp", {"hidden": ()}),
        ("multilabel-mlp", {"class_weight": "balanced", "validation_fraction": 0.01}),
        ("knn-regression", {"temperature": 2}),
        ("mlp-regression", {"hidden": (4, 3), "mixup": 0.2}),
        ("selected", {}),
        ("selected", {"fraction": "auto", "C": "auto", "layers": None, "class_weight": {"ünïcode": 0.5}}),
        ("selected", {"fraction": np.float64(1), "device": "cpu:0", "random_state": None}),
        ("attentive", {}),
        ("attentive", {"channels_first": True, "class_weight": "balanced", "device": "cpu:0"}),
        ("attentive", {"tokens": 1, "queries": 1, "dropout": 0}),
    ],
)
def test_a_head_comes_back_exactly(kind, settings, tmp_path):
    head = make(kind, **settings)
    save_head(tmp_path / "head", head, metadata={"scores": {"accuracy": 0.5}})
    loaded = load_head(tmp_path / "head")
    assert isinstance(loaded, SavedHead)
    assert loaded.metadata == {"scores": {"accuracy": 0.5}}
    assert_same_head(loaded.head, head)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_training_rows_come_back_as_they_were_stored(dtype, tmp_path):
    head = KNNHead().fit(X.astype(dtype), Y)
    save_head(tmp_path / "head", head, metadata={})
    loaded = load_head(tmp_path / "head").head
    assert loaded.features_.dtype == dtype
    assert_same_head(loaded, head)


def test_several_targets_come_back(tmp_path):
    head = RidgeRegressionHead().fit(X, X[:, :2] + 3)
    save_head(tmp_path / "head", head, metadata={})
    assert_same_head(load_head(tmp_path / "head").head, head)


@pytest.mark.parametrize("dtype", [object, "U20", "int8", "uint64", "int64"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_label_dtypes_come_back(dtype, n_classes, tmp_path):
    chosen = n_classes > Y
    labels = (
        np.array([name[:20] for name in NAMES], dtype=dtype) if dtype in (object, "U20") else np.arange(3, dtype=dtype)
    )
    head = LogisticHead(C=1.0).fit(X[chosen], labels[Y[chosen]])
    save_head(tmp_path / "head", head, metadata={})
    loaded = load_head(tmp_path / "head").head
    assert loaded.classes_.dtype.kind == head.classes_.dtype.kind
    assert loaded.predict(X).tolist() == head.predict(X).tolist()


@pytest.mark.rotates(3)
@settings(deadline=None, max_examples=40)
@given(LABELS, st.dictionaries(st.text(), JSON, max_size=4), st.integers(0, 99))
def test_any_labels_and_metadata_come_back(labels, metadata, seed):
    rng = np.random.default_rng(seed)
    y = np.array(labels)[np.arange(12) % len(labels)]
    head = LogisticHead(C=1.0, max_iter=5).fit(rng.normal(size=(12, 3)), y)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "head.safetensors")
        save_head(path, head, metadata=metadata)
        loaded = load_head(path)
    assert loaded.metadata == metadata
    assert loaded.head.classes_.tolist() == sorted(labels)
    assert loaded.head.coef_.tobytes() == head.coef_.tobytes()
    assert loaded.head.intercept_.tobytes() == head.intercept_.tobytes()


def test_any_safetensors_library_opens_it(saved, head):
    with safe_open(saved, "numpy") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
    assert (metadata["format"], metadata["version"]) == ("precompute-head", "2")  # as the features are float64
    names = NAMES[::-1] if metadata["head"].startswith("multilabel") else NAMES
    assert json.loads(metadata["classes"]).get("values", names.tolist()) == names.tolist()
    assert json.loads(metadata["metadata"]) == {"layer": "avgpool"}
    first, expected = {
        "mlp": lambda: ("weight_0", head.weights_[0]),
        "knn": lambda: ("features", head.features_[:]),
        "centroid": lambda: ("centroids", head.centroids_),
        "attentive": lambda: ("query", head.query_),
    }.get(metadata["head"].removeprefix("multilabel-").removesuffix("-regression"), lambda: ("coef", head.coef_))()
    assert np.array_equal(arrays[first], expected)


def test_the_same_head_gives_the_same_bytes_and_replaces_the_old_file(saved, head):
    before = saved.read_bytes()
    save_head(saved, head, metadata={"layer": "avgpool"})
    assert saved.read_bytes() == before
    save_head(str(saved), head, metadata={})
    assert load_head(str(saved)).metadata == {}
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(saved.stat().st_mode) == 0o666 & ~umask


def test_a_loaded_head_can_be_trained_on(saved):
    loaded = load_head(saved).head
    target = INDICATORS if hasattr(loaded, "thresholds_") else Y
    assert loaded.fit(X, target).score(X, target) > 0


# ---- what cannot be saved


@pytest.mark.parametrize("metadata", [{"x": float("nan")}, {"x": np.float32(1)}, {"x": {1, 2}}, {"x": b"bytes"}])
def test_metadata_must_be_json(metadata, head, tmp_path):
    with pytest.raises(HeadError, match="cannot be saved"):
        save_head(tmp_path / "head", head, metadata=metadata)
    assert list(tmp_path.iterdir()) == []


def test_labels_must_be_strings_or_integers(tmp_path):
    with pytest.raises(HeadError, match="its labels must be strings or integers, and have dtype float64"):
        save_head(tmp_path / "head", make("logistic", y=Y.astype(float)), metadata={})


def test_a_head_must_be_fitted(tmp_path):
    with pytest.raises(NotFittedError):
        save_head(tmp_path / "head", LogisticHead(), metadata={})


def test_a_folder_that_is_missing_and_a_file_that_is_missing(head, tmp_path):
    with pytest.raises(HeadError, match=r"nowhere/head.*cannot be written: the folder .*nowhere' does not exist"):
        save_head(tmp_path / "nowhere" / "head", head, metadata={})
    with pytest.raises(HeadError, match=r"missing.*cannot be read: No such file"):
        load_head(tmp_path / "missing")


def test_a_failed_write_leaves_the_old_file_and_no_other(head, tmp_path):
    (tmp_path / "head").mkdir()
    with pytest.raises(HeadError, match="cannot be written"):
        save_head(tmp_path / "head", head, metadata={})
    assert [path.name for path in tmp_path.iterdir()] == ["head"]


@pytest.mark.rotates(4)
@pytest.mark.parametrize("size", [encoding.MAX_STRING_BYTES, encoding.MAX_HEADER_BYTES])
def test_what_is_too_long_for_a_header_comes_back(size, head, tmp_path):
    metadata = {"x": "\udcffb" * (size // 7), "layer": "avgpool"}
    save_head(tmp_path / "head", head, metadata=metadata)
    assert load_head(tmp_path / "head").metadata == metadata
    with safe_open(tmp_path / "head", "numpy") as file:
        assert file.metadata()["version"] == "2"
        assert json.loads(file.get_tensor("json:metadata").tobytes()) == metadata


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("kind", ["logistic", "mlp", "knn", "ridge", "centroid"])
def test_a_head_on_features_of_a_cache_is_a_file_that_older_releases_read(kind, dtype, tmp_path):
    save_head(tmp_path / "head", KINDS[kind]().fit(X.astype(dtype), NAMES[Y]), metadata={})
    with safe_open(tmp_path / "head", "numpy") as file:
        assert file.metadata()["version"] == "1"


@pytest.mark.rotates(6)
def test_metadata_too_large_to_load_is_not_written(head, tmp_path):
    for large in ("a" * encoding.MAX_TEXT_BYTES, [0] * (encoding.MAX_TEXT_VALUES + 1)):
        with pytest.raises(HeadError, match=r"are allowed") as caught:
            save_head(tmp_path / "head", head, metadata={"x": large})
        assert "Leave large things out of the metadata" in caught.value.hint
    assert not (tmp_path / "head").exists()


def test_a_head_that_an_earlier_release_wrote_is_read():
    """tests/golden/version1.safetensors: a LogisticHead on the irises in float32, written before version 2."""
    loaded = load_head(Path(__file__).parent / "golden" / "version1.safetensors")
    assert loaded.head.classes_.tolist() == ["b\udcff", "iris", "ünïcode"]
    assert (loaded.head.predict(X) == np.array(["b\udcff", "iris", "ünïcode"])[Y]).mean() > 0.95
    assert loaded.metadata["training"]["scores"]["val"]["confusion"] == [[1, 0], [0, 1]]


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_are_new_stand_in_a_file_only_where_they_are_used(kind, tmp_path):
    """So releases before them read the files of all heads that do not use them, and theirs are read here."""
    new = {"ridge": {"cv"}, "ridge-regression": {"cv"}, "centroid": {"cv"}, "knn": {"class_weight"}}.get(kind, set())
    machine = {"device"}
    head = make(kind)
    save_head(tmp_path / "head", head, metadata={})
    assert set(stored_params(tmp_path / "head")) == set(head.get_params()) - machine - new
    assert load_head(tmp_path / "head").head.get_params() == head.get_params()
    splits = [([*range(0, 150, 2)], [*range(1, 150, 2)]), ([*range(1, 150, 2)], [*range(0, 150, 2)])]
    used = {"cv": splits, "class_weight": "balanced"}
    head = make(kind, **{name: used[name] for name in new})
    save_head(tmp_path / "head", head, metadata={}, overwrite=True)
    assert set(stored_params(tmp_path / "head")) == set(head.get_params()) - machine


def stored_params(path):
    with safe_open(path, "np") as file:
        return json.loads(file.metadata()["params"])
