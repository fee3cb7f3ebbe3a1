"""Files that are not a saved head, were damaged, or were forged: all refused, none run, none waited for."""

import json
import os
import pickle
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_iris

from precompute.errors import HeadError, HeadFormatError
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
    SelectedHead,
    load_head,
    save_head,
)
from precompute.heads.persistence import encoding

X, Y = load_iris(return_X_y=True)
X = X.astype(np.float32)  # as caches are, so that files are of version 1
NAMES = np.array(["b\udcff", "iris", "ünïcode"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


KINDS = {
    "logistic": lambda **settings: LogisticHead(**{"C": 1.0, **settings}),
    "mlp": lambda **settings: MLPHead(hidden=(3,), max_epochs=2, **settings),
    "knn": KNNHead,
    "ridge": lambda **settings: RidgeHead(**{"alpha": 1.0, **settings}),
    "centroid": CentroidHead,
    "multilabel-logistic": lambda **settings: MultilabelLogisticHead(**{"C": 1.0, **settings}),
    "multilabel-ridge": lambda **settings: MultilabelRidgeHead(**{"alpha": 1.0, **settings}),
    "multilabel-knn": MultilabelKNNHead,
    "multilabel-mlp": lambda **settings: MultilabelMLPHead(hidden=(3,), max_epochs=2, **settings),
    "ridge-regression": RidgeRegressionHead,
    "knn-regression": KNNRegressionHead,
    "mlp-regression": lambda **settings: MLPRegressionHead(hidden=(3,), max_epochs=2, **settings),
    "selected": lambda **settings: SelectedHead(**{"fraction": 0.5, "C": 1.0, "layers": (3, 1), **settings}),
    "attentive": lambda **settings: AttentiveHead(**{"tokens": 2, "queries": 2, "max_epochs": 2, **settings}),
}
INDICATORS = np.stack([Y == 0, Y > 0, Y >= 0], axis=1)  # of the last all samples have one


def make(kind, **settings):
    if kind == "ridge-regression":
        return RidgeRegressionHead(**settings).fit(X, X[:, :2])
    if kind.startswith("multilabel"):
        return KINDS[kind](**settings).fit(X, INDICATORS, label_names=NAMES)
    if kind.endswith("regression"):
        return KINDS[kind](**settings).fit(X, Y.astype(float))
    return KINDS[kind](**settings).fit(X, NAMES[Y])


@pytest.fixture(params=KINDS)
def saved(request, tmp_path):
    path = tmp_path / "head.safetensors"
    save_head(path, make(request.param), metadata={"layer": "avgpool"})
    return path


def refuse(path, blob, match=None):
    path.write_bytes(blob)
    with pytest.raises(HeadFormatError, match=match) as caught:
        load_head(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


@pytest.mark.rotates(4)
def test_no_bit_can_flip_unnoticed(saved):
    blob = saved.read_bytes()
    header_end = 8 + int.from_bytes(blob[:8], "little")
    positions = [(byte, bit) for byte in range(header_end) for bit in range(8)]
    positions += [(byte, byte % 8) for byte in range(header_end, len(blob))]
    with saved.open("r+b", buffering=0) as file:
        for byte, bit in positions:
            os.pwrite(file.fileno(), bytes([blob[byte] ^ 1 << bit]), byte)
            with pytest.raises(HeadFormatError):
                load_head(saved)
            os.pwrite(file.fileno(), blob[byte : byte + 1], byte)
    load_head(saved)


@pytest.mark.rotates(3)
def test_no_file_cut_short_or_longer_is_read(saved):
    blob = saved.read_bytes()
    for length in range(0, len(blob), 5):
        refuse(saved, blob[:length])
    refuse(saved, blob[:-1])
    refuse(saved, blob + b"\0")


def test_a_pickle_is_not_run(tmp_path):
    marker = tmp_path / "was run"

    class Hostile:
        def __reduce__(self):
            return Path.touch, (marker,)

    refuse(tmp_path / "head.safetensors", pickle.dumps(Hostile()), "not a safetensors file")
    assert not marker.exists()


def test_other_safetensors_files_are_told_apart(tmp_path):
    path = tmp_path / "weights.safetensors"
    arrays = {"coef": np.zeros((2, 3), np.float32)}
    refuse(path, safetensors.numpy.save(arrays), "is not a head that this precompute reads")
    newer = {"format": "precompute-head", "version": "3"}
    refuse(
        path, safetensors.numpy.save(arrays, metadata=newer), "its version is '3', and this precompute reads '1' and"
    )
    without_digest = {"format": "precompute-head", "version": "1"}
    refuse(path, safetensors.numpy.save(arrays, metadata=without_digest), "no digest")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"__metadata__":[]}',
        b'{"__metadata__":{},"__metadata__":{}}',
        b'{"a":NaN}',
        b'{"a":1e999}',
        b'{"a":' + b"9" * 5000 + b"}",
    ],
)
def test_headers_that_are_no_header(header, tmp_path):
    refuse(tmp_path / "head", len(header).to_bytes(8, "little") + header)


BODY = '"shape":[2,3],"data_offsets":[0,24]'


@pytest.mark.parametrize(
    "entries",
    [
        f'"coef":{{"dtype":"F64",{BODY}}}',
        f'"coef":{{"dtype":"F32",{BODY}}},"coef":{{"dtype":"F32",{BODY}}}',
        f'"coef":{{"dtype":"F32",{BODY},"more":1}}',
        f'"coef":{{{BODY}}}',
        '"coef":{"dtype":"F32","shape":[2,3],"data_offsets":[0,20]}',
        '"coef":{"dtype":"F32","shape":[2,3],"data_offsets":[4,28]}',
        '"coef":{"dtype":"F32","shape":[2.0,3],"data_offsets":[0,24]}',
        '"coef":{"dtype":"F32","shape":[true,6],"data_offsets":[0,24]}',
        '"coef":{"dtype":"F32","shape":[-2,-3],"data_offsets":[0,24]}',
        '"coef":{"dtype":"F32","shape":6,"data_offsets":[0,24]}',
        '"coef":{"dtype":"F32","shape":[],"data_offsets":[0,4]}',
        '"coef":{"dtype":"F32","shape":[1,1,6],"data_offsets":[0,24]}',
        '"coef":{"dtype":"F32","shape":[2,4611686018427387904],"data_offsets":[0,24]}',
        '"coef":[]',
    ],
)
def test_arrays_that_do_not_stand_where_they_say(entries, tmp_path):
    header = '{"__metadata__":{"format":"precompute-head","version":"1"},' + entries + "}"
    refuse(tmp_path / "head", len(header).to_bytes(8, "little") + header.encode() + bytes(24), "array|twice|offsets")


def test_size_limits_hold_before_memory_is_taken(tmp_path):
    path = tmp_path / "head"
    with path.open("wb") as file:
        file.truncate(encoding.MAX_FILE_BYTES + 1)  # sparse: it takes no space
    with pytest.raises(HeadFormatError, match=f"between 9 and {encoding.MAX_FILE_BYTES}"):
        load_head(path)
    refuse(path, (2**63).to_bytes(8, "little") + b"{}", "length of its header is impossible")
    with path.open("wb") as file:
        file.write((encoding.MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(encoding.MAX_HEADER_BYTES + 100)
    with pytest.raises(HeadFormatError, match="length of its header is impossible"):
        load_head(path)


def test_only_regular_files_are_read_and_none_is_waited_for(tmp_path, saved):
    def hang(signum, frame):
        raise TimeoutError("load_head waited")

    os.mkfifo(tmp_path / "pipe")
    previous = signal.signal(signal.SIGALRM, hang)
    signal.alarm(20)
    try:
        for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
            with pytest.raises(HeadFormatError, match="not a regular file"):
                load_head(path)
        with pytest.raises(HeadError, match="Is a directory"):
            load_head(tmp_path)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    (tmp_path / "link").symlink_to(saved)
    assert load_head(tmp_path / "link").metadata == {"layer": "avgpool"}


# ---- files whose digest is right, because their author computed it


def parts_of(path):
    with path.open("rb") as file:
        arrays, strings = encoding.decode(file, path.stat().st_size)
    return arrays, {k: v for k, v in strings.items() if k not in ("format", "version", "digest")}


def replaced(value, draw):
    """`value` (JSON) with one part of it, chosen at any depth, replaced by any JSON."""
    if isinstance(value, dict | list) and value and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        changed = value.copy()
        changed[key] = replaced(value[key], draw)
        return changed
    return draw(JSON)


@pytest.mark.rotates(6)
@settings(deadline=None, max_examples=150)
@given(st.data(), st.sampled_from(list(KINDS)), st.sampled_from(["params", "fitted", "classes", "metadata"]))
def test_forged_json_is_refused_or_makes_a_working_head(files, data, kind, name):
    arrays, strings = files[kind]
    forged = {**strings, name: json.dumps(replaced(json.loads(strings[name]), data.draw))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "head.safetensors")
        path.write_bytes(encoding.encode(arrays, forged))
        try:
            loaded = load_head(path)
        except HeadFormatError:
            return
    assert len(loaded.head.predict(X)) == 150
    assert isinstance(loaded.metadata, dict)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    made = {}
    special = {
        "logistic": {"C": "auto"},
        "mlp": {"class_weight": {"b\udcff": 2.0}},
        "ridge": {"alpha": "auto", "class_weight": "balanced"},
        "multilabel-logistic": {"C": "auto", "class_weight": "balanced"},
        "multilabel-ridge": {"alpha": "auto"},
    }
    for kind in KINDS:
        settings_ = special.get(kind, {})
        path = tmp_path_factory.mktemp(kind) / "head"
        save_head(path, make(kind, **settings_), metadata={"a": [1, {"b": None}]})
        made[kind] = parts_of(path)
    return made


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("logistic", {"coef": np.zeros((3, 4))[:2]}),
        ("logistic", {"coef": np.zeros(4)}),
        ("logistic", {"coef": None}),
        ("logistic", {"intercept": np.zeros((3, 1))}),
        ("logistic", {"extra": np.zeros(1)}),
        ("mlp", {"weight_0": np.zeros((3, 5))}),
        ("mlp", {"weight_1": None}),
        ("mlp", {"mean": None}),
        ("mlp", {"mean": np.zeros(5)}),
        ("mlp", {"bias_1": np.zeros(2)}),
        ("mlp", {"scale": np.array([1, 1, 0, 1])}),
        ("mlp", {"scale": np.array([1, 1, -1, 1])}),
        ("knn", {"features": np.zeros((149, 4))}),
        ("knn", {"features": np.zeros(150)}),
        ("knn", {"features": None}),
        ("knn", {"labels": None}),
        ("knn", {"labels": np.zeros((150, 1))}),
        ("knn", {"labels": np.zeros(150)}),
        ("knn", {"labels": np.arange(150, dtype=np.int32)}),
        ("knn", {"labels": np.arange(150, dtype=np.int32) % 3 - 1}),
        ("knn", {"labels": np.arange(150, dtype=np.int32) % 2}),
        ("knn", {"weights": np.ones(149)}),
        ("knn", {"weights": np.ones(150, np.float32)}),
        ("knn", {"weights": np.zeros(150)}),
        ("knn", {"weights": np.where(np.arange(150) == 3, -1.0, 1.0)}),
        ("knn", {"weights": np.full(150, 1e31)}),
        ("knn", {"features": np.zeros((150, 4), np.int32)}),
        ("ridge", {"coef": np.zeros((2, 4))}),
        ("ridge", {"coef": np.zeros((3, 4), np.float16)}),
        ("ridge", {"intercept": None}),
        ("centroid", {"centroids": np.zeros((2, 4))}),
        ("centroid", {"centroids": np.zeros(3)}),
        ("centroid", {"centroids": None}),
        ("centroid", {"directions": np.zeros((2, 4))}),
        ("centroid", {"directions": np.zeros((3, 5))}),
        ("centroid", {"directions": np.zeros((3, 4), np.float16)}),
        ("centroid", {"directions": None}),
        ("multilabel-logistic", {"coef": np.zeros((2, 4))}),
        ("multilabel-logistic", {"intercept": None}),
        ("multilabel-logistic", {"thresholds": np.zeros(3)}),
        ("multilabel-ridge", {"coef": np.zeros((1, 4))}),
        ("multilabel-ridge", {"intercept": np.zeros(2)}),
        ("multilabel-knn", {"targets": None}),
        ("multilabel-knn", {"targets": np.zeros((150, 2), np.int32)}),
        ("multilabel-knn", {"targets": np.zeros((149, 3), np.int32)}),
        ("multilabel-knn", {"targets": np.zeros((150, 3))}),
        ("multilabel-knn", {"targets": np.full((150, 3), 2, np.int32)}),
        ("multilabel-knn", {"targets": np.full((150, 3), -1, np.int32)}),
        ("multilabel-knn", {"features": np.zeros(150)}),
        ("multilabel-knn", {"weights": np.zeros(150)}),
        ("multilabel-mlp", {"weight_1": np.zeros((2, 3))}),
        ("multilabel-mlp", {"bias_1": np.zeros(4)}),
        ("multilabel-mlp", {"scale": np.array([1, 1, 0, 1])}),
        ("knn-regression", {"targets": np.zeros((150, 1))}),
        ("knn-regression", {"targets": np.zeros(150, np.int32)}),
        ("knn-regression", {"targets": None}),
        ("knn-regression", {"features": np.zeros((149, 4))}),
        ("mlp-regression", {"weight_1": np.zeros((2, 3))}),
        ("mlp-regression", {"mean": None}),
        ("ridge-regression", {"coef": np.zeros((3, 4))}),
        ("ridge-regression", {"intercept": np.zeros((2, 1))}),
    ],
)
def test_forged_arrays_are_refused(files, kind, changes, tmp_path):
    arrays, strings = files[kind]
    forged = {
        k: v.astype(np.float32) if v.dtype.itemsize == 8 else v
        for k, v in {**arrays, **changes}.items()
        if v is not None
    }
    refuse(tmp_path / "head", encoding.encode(forged, strings), "its array")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "forest"}, "its kind of head, 'forest', is unknown"),
        ({"head": "mlp"}, "its params must have the keys"),
        ({"classes": '{"dtype":"str","values":["a","b","c"],"dtype":"str"}'}, "a key twice"),
        ({"classes": '{"dtype":"str","values":["b","a","c"]}'}, "sorted"),
        ({"classes": '{"dtype":"str","values":["a","b","b"]}'}, "all different"),
        ({"classes": '{"dtype":"str","values":["a","b","c\\u0000"]}'}, "do not fit"),
        ({"classes": '{"dtype":"int8","values":[1,2,300]}'}, "do not fit"),
        ({"classes": '{"dtype":"int64","values":[false,true,2]}'}, "list of int"),
        ({"classes": '{"dtype":"float64","values":[1.0,2.0,3.0]}'}, "unknown dtype"),
        ({"classes": '{"dtype":"str","values":["a","b"]}'}, "its arrays must have the shapes"),
        ({"metadata": "[]"}, "its metadata must be a JSON object"),
        ({"metadata": '{"a":Infinity}'}, "not a finite number"),
        ({"metadata": "[" * 100_000}, "nested too deeply"),
        ({"surplus": "1"}, "its metadata must have the keys"),
    ],
)
def test_forged_strings_are_refused(files, change, message, tmp_path):
    arrays, strings = files["logistic"]
    refuse(tmp_path / "head", encoding.encode(arrays, {**strings, **change}), message)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("multilabel")])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": '{"dtype":"str","values":["a","b","b"]}'}, "all different"),
        ({"classes": '{"dtype":"str","values":[]}'}, "at least one"),
        ({"classes": '{"dtype":"str","values":["a","b"]}'}, "must have|must be|shape"),
        ({"classes": '{"dtype":"int64","values":[false,true,2]}'}, "list of int"),
        ({"classes": "{}"}, "its classes must have the keys"),
        ({"metadata": '{"temperature":2.0}'}, "several labels do not have"),
    ],
)
def test_forged_strings_of_several_labels_are_refused(files, kind, change, message, tmp_path):
    arrays, strings = files[kind]
    refuse(tmp_path / "head", encoding.encode(arrays, {**strings, **change}), message)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("multilabel")])
@pytest.mark.parametrize("thresholds", [None, 0.5, [], [0.5] * 2, [0.5] * 4, [0.5, 0.5, 2], [0.5, 0.5, -1], [[0.5] * 3],
                                        [0.5, 0.5, "1"], [0.5, 0.5, True], {"a": 1}])  # fmt: skip
def test_forged_thresholds_are_refused(files, kind, thresholds, tmp_path):
    arrays, strings = files[kind]
    fitted = {**json.loads(strings["fitted"]), "thresholds": thresholds}
    refuse(tmp_path / "head", encoding.encode(arrays, {**strings, "fitted": json.dumps(fitted)}), "threshold")


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("multilabel-ridge", {"slopes": [1.0, 1.0]}, "its slopes must be a list of 3 numbers"),
        ("multilabel-ridge", {"slopes": [1.0, 1.0, 0]}, "every one of its slopes must be"),
        ("multilabel-ridge", {"offsets": [1.0, 1.0, None]}, "every one of its offsets must be"),
        ("multilabel-ridge", {"offsets": "abc"}, "its offsets must be a list"),
        ("multilabel-logistic", {"n_iter": -1}, "n_iter must be"),
        ("multilabel-logistic", {"converged": 1}, "its converged"),
        ("multilabel-knn", {"k": 21}, "its k must be 20 of 150 rows"),
        ("mlp-regression", {"target_scale": 0}, "target_scale must be"),
        ("mlp-regression", {"target_mean": "1"}, "target_mean must be"),
        (
            "mlp-regression",
            {"history": [{"epoch": 1, "train_loss": 1, "train_accuracy": 1}]},
            "history must have the keys",
        ),
        ("knn-regression", {"k": 0}, "k must be"),
    ],
)
def test_forged_fits_are_refused(files, kind, change, message, tmp_path):
    arrays, strings = files[kind]
    fitted = {**json.loads(strings["fitted"]), **change}
    refuse(tmp_path / "head", encoding.encode(arrays, {**strings, "fitted": json.dumps(fitted)}), message)


@pytest.mark.parametrize(
    ("kind", "name", "value", "message"),
    [
        ("knn", "params", {"k": 0, "temperature": 1.0}, "k must be"),
        ("knn", "params", {"k": 10**400, "temperature": 1.0}, "its k must be 150"),
        ("knn", "params", {"k": 5, "temperature": 0}, "temperature must be"),
        ("knn", "params", {"k": 5, "temperature": 1.0, "class_weight": [1]}, "class_weight must be pairs"),
        ("ridge", "params", {"alpha": 1.0, "class_weight": None, "cv": [[[0], [1], [2]]]}, "every split in cv"),
        ("ridge", "params", {"alpha": 1.0, "class_weight": None, "cv": [[[[0]], [1]]]}, "every split in cv"),
        ("ridge", "params", {"alpha": 1.0, "class_weight": None, "cv": 5}, "cv must be None or a list"),
        ("centroid", "params", {"metric": "cosine", "shrinkage": 0.5, "cv": 1}, "cv must be"),
        ("knn", "fitted", {"k": 21}, "its k must be 20 of 150 rows"),
        ("knn", "fitted", {"k": True}, "k must be"),
        ("ridge", "params", {"alpha": [1], "class_weight": None}, "alpha must be"),
        ("centroid", "params", {"metric": ["cosine"], "shrinkage": 0.5}, "metric must be"),
        ("centroid", "params", {"metric": "cosine", "shrinkage": 0.5}, "its arrays must have the shapes"),
        ("centroid", "params", {"metric": "mahalanobis", "shrinkage": 2}, "shrinkage must be"),
        ("centroid", "params", {"metric": "mahalanobis", "shrinkage": [0.5]}, "shrinkage must be"),
        ("centroid", "fitted", {"temperature": 0, "covariance_type": "full"}, "temperature must be"),
        ("centroid", "fitted", {"temperature": "1", "covariance_type": "full"}, "temperature must be"),
        ("centroid", "fitted", {"temperature": 1, "covariance_type": ["full"]}, "covariance_type must be one of full"),
        ("centroid", "fitted", {"temperature": 1}, "its fitted must have the keys"),
        ("ridge-regression", "classes", {"dtype": "str", "values": ["a", "b"]}, "its classes must have the keys"),
    ],
)
def test_forged_numbers_are_refused(files, kind, name, value, message, tmp_path):
    arrays, strings = files[kind]
    refuse(tmp_path / "head", encoding.encode(arrays, {**strings, name: json.dumps(value)}), message)


@pytest.mark.parametrize(
    ("kind", "part", "change", "message"),
    [
        ("selected", "params", {"layers": [3, 2]}, "layers must add up to the 4 features of X"),
        ("selected", "params", {"layers": [10**400, 1]}, "layers must add up to the 4 features"),
        ("selected", "params", {"layers": [0, 4]}, "every width in layers must be"),
        ("selected", "params", {"layers": 4}, "layers must be widths"),
        ("selected", "params", {"fraction": 2}, "fraction must be above 0 and at most 1"),
        ("selected", "params", {"C": []}, "C must have at least one value"),
        ("selected", "fitted", {"kept_by_layer": [2, 0]}, "its kept_by_layer must count"),
        ("selected", "fitted", {"kept_by_layer": "2"}, "its kept_by_layer must count"),
        ("selected", "fitted", {"fraction": -1}, "fraction must be"),
        ("selected", "fitted", {"C": 0}, "C must be"),
        ("selected", "fitted", {"n_iter": 0.5}, "n_iter must be"),
        ("selected", "fitted", {"source": 1}, "its source must be a string"),
        ("selected", "fitted", {"converged": 1}, "its converged true or false"),
        ("selected", "fitted", {"trials": [{"C": 1}]}, "entries of trials must have the keys"),
        ("attentive", "params", {"tokens": 0}, "tokens must be"),
        ("attentive", "params", {"tokens": True}, "tokens must be"),
        ("attentive", "params", {"queries": 3}, "its arrays must have the shapes"),
        ("attentive", "params", {"queries": 10**400}, "its arrays must have the shapes"),
        ("attentive", "params", {"channels_first": 0}, "channels_first must be True or False"),
        ("attentive", "fitted", {"best_epoch": 3}, "best_epoch must be"),
        ("attentive", "fitted", {"history": [{}, {}]}, "entries of history must have the keys"),
        ("attentive", "fitted", {"validation_source": None}, "its validation_source must be a string"),
    ],
)
def test_forged_choices_and_attention_are_refused(files, kind, part, change, message, tmp_path):
    arrays, strings = files[kind]
    value = {**json.loads(strings[part]), **change}
    refuse(tmp_path / "head", encoding.encode(arrays, {**strings, part: json.dumps(value)}), message)


@pytest.mark.parametrize(
    ("kind", "name", "array", "message"),
    [
        ("selected", "kept", [2, 4], "numbers of its 4 features, ascending"),
        ("selected", "kept", [2, 2], "numbers of its 4 features, ascending"),
        ("selected", "kept", [-1, 2], "numbers of its 4 features, ascending"),
        ("selected", "kept", [[0, 1]], "its array kept must hold the numbers of features"),
        ("selected", "kept", None, "its array kept must hold the numbers of features"),
        ("selected", "kept", [0.0, 1.0], "its array kept must be int32"),
        ("attentive", "query", None, "its arrays must have the shapes"),
        ("attentive", "scale", [0.0, 1.0], "its array scale must be above 0"),
        ("attentive", "bias", [0, 1, 2], "its array bias must be float32"),
    ],
)
def test_forged_arrays_of_choices_and_attention_are_refused(files, kind, name, array, message, tmp_path):
    arrays, strings = files[kind]
    arrays = {key: value for key, value in arrays.items() if key != name}
    if array is not None:
        wide = np.asarray(array)
        arrays[name] = wide.astype(np.int32 if wide.dtype.kind == "i" else np.float32)
    refuse(tmp_path / "head", encoding.encode(arrays, strings), message)


def forged_text(path, name, part, code="U8", shape=None, **strings):
    """A file of version 2 whose last array is `part`, under the name of a long string, with a right digest."""
    header = {
        "__metadata__": {"format": "precompute-head", "version": "2", **strings, "digest": encoding.NO_DIGEST},
        name: {"dtype": code, "shape": shape or [len(part)], "data_offsets": [0, len(part)]},
    }
    text = encoding.write_json(header).encode()
    data = len(text).to_bytes(8, "little") + text + part
    digest = encoding.hashlib.sha256(data).hexdigest().encode()
    path.write_bytes(data.replace(encoding.NO_DIGEST.encode(), digest))
    return path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "json:classes", "part": b"{}", "classes": "{}"}, "its metadata holds classes twice"),
        ({"name": "json:digest", "part": b"{}"}, "its metadata holds digest twice"),
        ({"name": "json:classes", "part": b"\xff{"}, "no ASCII text"),
        ({"name": "json:classes", "part": b"{}  ", "code": "F32", "shape": [1]}, "is not described with"),
        ({"name": "json:classes", "part": b"{}  ", "shape": [2, 2]}, "is not at the offset"),
        ({"name": "json:classes", "part": b"{}"}, "its metadata must have the keys"),
        ({"name": "classes", "part": b"{}"}, "is not described with"),
        ({"name": "json:a", "part": b"[" + b"{}," * encoding.MAX_TEXT_VALUES}, "values in one place"),
    ],
)
def test_forged_texts_outside_the_header_are_refused(given, message, tmp_path):
    path = forged_text(tmp_path / "head", **given)
    refuse(path, path.read_bytes(), message)


def test_the_size_of_all_texts_is_limited_before_they_are_read(tmp_path):
    size = encoding.MAX_TEXT_BYTES + 1
    header = encoding.write_json(
        {
            "__metadata__": {"format": "precompute-head", "version": "2"},
            "json:classes": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]},
        }
    ).encode()
    with (tmp_path / "head").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)  # sparse
    with pytest.raises(HeadFormatError, match="bytes of labels and metadata"):
        load_head(tmp_path / "head")


def test_one_long_label_among_many_takes_no_memory(files, tmp_path):
    """NumPy keeps every label in as many bytes as the longest."""
    arrays, strings = files["logistic"]
    classes = {"dtype": "str", "values": ["a" * 2**20, *(f"b{number:06}" for number in range(10**5))]}
    forged = encoding.encode(arrays, {**strings, "classes": json.dumps(classes)})
    refuse(tmp_path / "head", forged, "its labels take more than")


def test_forged_arrays_of_two_dtypes_are_refused(files, tmp_path):
    for kind in ("logistic", "mlp", "ridge", "centroid", "multilabel-logistic", "multilabel-mlp", "mlp-regression"):
        arrays, strings = files[kind]
        name = next(iter(arrays))
        forged = encoding.encode({**arrays, name: arrays[name].astype(np.float64)}, strings)
        refuse(tmp_path / "head", forged, "its array .* must be float32, and is float64")


def test_forged_values_that_are_not_finite_are_refused(saved):
    blob = saved.read_bytes()
    zeros = b'"digest":"' + encoding.NO_DIGEST.encode() + b'"'
    bad = b"\xff" * 4  # NaN as one float32 and as two float16
    forged = encoding.DIGEST.sub(zeros, blob[:-4] + bad)
    digest = encoding.hashlib.sha256(forged).hexdigest().encode()
    refuse(saved, forged.replace(zeros, b'"digest":"' + digest + b'"'), "not finite")
