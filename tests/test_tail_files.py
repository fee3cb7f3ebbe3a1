"""Files that are not a tail, were damaged or forged, or belong to another backbone: each its error, none run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from precompute import LogisticHead, load_backbone, load_head, save_head
from precompute.errors import HeadError, HeadFormatError, HeadMismatchError
from precompute.finetuning.network import OutputLayer, TailNetwork
from precompute.finetuning.tail_file import TAIL_FORMAT, load_tail, save_tail
from precompute.finetuning.tail_head import Fitted, TailHead
from precompute.heads.persistence.encoding import MAX_HEADER_BYTES, decode, encoded

LAYER = "body"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def entry(epoch: int) -> dict[str, Any]:
    names = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    return {"epoch": epoch, **dict.fromkeys(names, 0.5)}


def small_head(task: str = "classes") -> TailHead:
    """A tail of its own, of a few hundred bytes."""
    tail = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    names = {"classes": ("a", "b\udcff"), "labels": ("x", "ü"), "number": ()}[task]
    outputs = len(names) or 1
    layer = OutputLayer(np.ones((outputs, 3), np.float32), np.zeros(outputs, np.float32))
    fitted = Fitted([entry(0), entry(1)], 1, "held out", {"C": 1.0}, {"epochs": 1}, target_mean=3.0, target_scale=2.0)
    return TailHead(TailNetwork(tail, layer), (3, 2, 2), task, names, fitted)


@pytest.fixture(params=["classes", "labels", "number"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    save_tail(tmp_path / "tail.safetensors", small_head(request.param), metadata={"layer": LAYER})
    return tmp_path / "tail.safetensors"


@pytest.fixture(scope="module")
def of_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tail of tiny behind LAYER."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "scripts"))
        from hostile.good import make_tail

        path = tmp_path_factory.mktemp("tail") / "tail.safetensors"
        make_tail(path)
    return path


def refuse(path: Path, blob: bytes, match: str | None = None) -> None:
    path.write_bytes(blob)
    with pytest.raises(HeadFormatError, match=match) as caught:
        load_tail(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def parts_of(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    with path.open("rb") as file:
        arrays, strings = decode(file, path.stat().st_size, TAIL_FORMAT)
    return arrays, {key: value for key, value in strings.items() if key not in ("format", "version", "digest")}


def write(path: Path, arrays: dict[str, Any], strings: dict[str, str]) -> Path:
    path.write_bytes(b"".join(encoded(arrays, strings, TAIL_FORMAT)))
    return path


@pytest.mark.rotates(3)
def test_no_bit_can_flip_unnoticed(saved: Path) -> None:
    blob = saved.read_bytes()
    header_end = 8 + int.from_bytes(blob[:8], "little")
    positions = [(byte, bit) for byte in range(header_end) for bit in range(8)]
    positions += [(byte, byte % 8) for byte in range(header_end, len(blob))]
    with saved.open("r+b", buffering=0) as file:
        for byte, bit in positions:
            os.pwrite(file.fileno(), bytes([blob[byte] ^ 1 << bit]), byte)
            with pytest.raises(HeadFormatError):
                load_tail(saved)
            os.pwrite(file.fileno(), blob[byte : byte + 1], byte)
    load_tail(saved)


def test_no_file_cut_short_or_longer_is_read(saved: Path) -> None:
    blob = saved.read_bytes()
    for length in range(0, len(blob), 5):
        refuse(saved, blob[:length])
    refuse(saved, blob[:-1])
    refuse(saved, blob + b"\0")


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "was run"

    class Hostile:
        def __reduce__(self) -> Any:
            return Path.touch, (marker,)

    refuse(tmp_path / "tail.safetensors", pickle.dumps(Hostile()), "not a safetensors file")
    assert not marker.exists()


def test_heads_and_other_files_are_told_apart(tmp_path: Path, saved: Path) -> None:
    path = tmp_path / "head.safetensors"
    head = LogisticHead(C=1.0).fit(np.eye(4, 3, dtype=np.float32), ["a", "b", "a", "b"])
    save_head(path, head, metadata={})
    refuse(path, path.read_bytes(), "is not a tail that this precompute reads")
    refuse(path, safetensors.numpy.save({"a": np.zeros(3)}), "is not a tail that this precompute reads")
    newer = saved.read_bytes().replace(b'"version":"1"', b'"version":"9"', 1)
    refuse(path, newer, "its version is '9', and this precompute reads '1'")
    with pytest.raises(HeadFormatError, match="is not a head that this precompute reads"):
        load_head(saved)


def test_any_safetensors_library_opens_it(of_tiny: Path) -> None:
    arrays = safetensors.numpy.load_file(of_tiny)
    assert {"output.weight", "output.bias"} < set(arrays)
    assert arrays["tail.embed.0.weight"].shape == (192, 1, 4, 4)


def test_size_limits_hold_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "tail"
    sparse = {TAIL_FORMAT.max_bytes + 1: f"between 9 and {TAIL_FORMAT.max_bytes}", 3 << 30: "most were never written"}
    for size, why in sparse.items():  # they take no space
        with path.open("wb") as file:
            file.truncate(size)
        with pytest.raises(HeadFormatError, match=why):
            load_tail(path)
    with path.open("wb") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER_BYTES + 100)
    with pytest.raises(HeadFormatError, match="length of its header is impossible"):
        load_tail(path)


def test_only_regular_files_are_read_and_none_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(HeadFormatError, match="not a regular file"):
            load_tail(path)
    with pytest.raises(HeadError, match="Is a directory"):
        load_tail(tmp_path)
    with pytest.raises(HeadError, match="No such file"):
        load_tail(tmp_path / "nowhere")


def test_only_a_tail_is_replaced(tmp_path: Path, saved: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("somebody's")
    with pytest.raises(HeadFormatError, match="is not a tail"):
        save_tail(other, small_head(), metadata={})
    save_tail(saved, small_head(), metadata={"more": 1})
    assert load_tail(saved).metadata == {"more": 1}
    save_tail(other, small_head(), metadata={}, overwrite=True)
    assert load_tail(other).task == "classes"


def test_parameters_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    head = small_head()
    with torch.no_grad():
        head.network.output.weight[0, 0] = torch.nan
    with pytest.raises(HeadError, match="not finite"):
        save_tail(tmp_path / "tail.safetensors", head, metadata={})
    assert not list(tmp_path.iterdir())


def test_parameters_that_are_not_finite_are_not_read(tmp_path: Path, of_tiny: Path) -> None:
    """Of a file whose author computed its digest: the writer's own check is gone round."""
    arrays, strings = parts_of(of_tiny)
    marked = np.float32(1234.5678)
    arrays["output.bias"][0] = marked
    path = write(tmp_path / "tail.safetensors", arrays, strings)
    blob = path.read_bytes().replace(marked.tobytes(), np.float32(np.nan).tobytes())
    digest = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])["__metadata__"]["digest"]
    blank = blob.replace(digest.encode(), b"0" * 64)
    right = hashlib.sha256(blank).hexdigest().encode()
    refuse(path, blank.replace(b'"digest":"' + b"0" * 64, b'"digest":"' + right), "not finite")


# ---- files whose digest is right, because their author computed it


@pytest.mark.rotates(3)
@settings(max_examples=150)
@given(
    st.data(),
    st.sampled_from(["classes", "labels", "number"]),
    st.sampled_from(["names", "shape", "fitted", "metadata", "task"]),
)
def test_forged_json_is_refused_or_makes_a_tail(data: st.DataObject, task: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tail.safetensors")
        save_tail(path, small_head(task), metadata={"layer": LAYER, "a": [1, {"b": None}]})
        arrays, strings = parts_of(path)
        value = data.draw(JSON)
        if data.draw(st.booleans()) and name != "task":
            before = json.loads(strings[name])
            if isinstance(before, dict) and before:
                value = {**before, data.draw(st.sampled_from(sorted(before))): value}
        strings[name] = json.dumps(value)
        try:
            write(path, arrays, strings)
        except ValueError:  # a string that is no ASCII JSON, as `task` may be
            return
        try:
            loaded = load_tail(path)
        except HeadFormatError:
            return
        assert loaded.n_features >= 1
        assert isinstance(loaded.fitted.history, list)
        with pytest.raises(HeadMismatchError):
            loaded.attach(load_tiny())


def load_tiny(layer: str = LAYER, weights: str = "DEFAULT") -> Any:
    key = (layer, weights)
    if key not in TINY:
        TINY[key] = load_backbone("tiny", layer=layer, weights=weights)
    return TINY[key]


TINY: dict[tuple[str, str], Any] = {}


@pytest.mark.rotates(3)
def test_a_tail_behind_another_backbone_is_refused(of_tiny: Path) -> None:
    saved = load_tail(of_tiny)
    assert saved.attach(load_tiny()).metadata == saved.metadata
    with pytest.raises(HeadMismatchError, match="was trained behind tiny with weights"):
        saved.attach(load_tiny(weights="random:0"))
    resnet = load_backbone("resnet18", weights="random:0", layer="layer4")
    with pytest.raises(HeadMismatchError, match="not behind resnet18"):
        saved.attach(resnet)
    with pytest.raises(HeadMismatchError, match="Leave --tail out"):
        saved.attach(load_tiny(), tail="a.b:c")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"layer": "body.4"}, HeadFormatError, "does not hold the parameters of the tail"),
        ({"layer": "embed.1"}, HeadFormatError, "does not hold the parameters of the tail"),
        ({"layer": "nowhere"}, HeadMismatchError, "no layer 'nowhere'"),
        ({"layer": None}, HeadMismatchError, "no layer 'None'"),
        ({"spec": {}}, HeadMismatchError, "was trained behind"),
        ({"spec": [1]}, HeadMismatchError, "was trained behind"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_metadata_that_leads_elsewhere_is_refused(
    of_tiny: Path, tmp_path: Path, change: dict[str, Any], error: type[Exception], match: str
) -> None:
    arrays, strings = parts_of(of_tiny)
    strings["metadata"] = json.dumps({**json.loads(strings["metadata"]), **change})
    with pytest.raises(error, match=match):
        load_tail(write(tmp_path / "tail.safetensors", arrays, strings)).attach(load_tiny())


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("tail.embed.0.weight", None, "it is missing"),
        ("tail.embed.0.weight", np.zeros((192, 16), np.float32), "tail.embed.0.weight has the shape"),
        ("tail.more", np.zeros(3, np.float32), "tail.more has the shape"),
        ("tail.body.4.0.weight", np.zeros(3, np.float32), "tail.body.4.0.weight has the shape"),
        ("code", np.zeros(3, np.float32), "which no tail has"),
        ("output.weight", None, "no output.weight"),
        ("output.weight", np.zeros((2, 128), np.float32), "for 3 outputs"),
        ("output.weight", np.zeros((3, 7), np.float32), "takes 7 features"),
        ("output.bias", np.zeros((3, 1), np.float32), "for 3 outputs"),
        ("output.bias", np.zeros(3, np.float64), "must be float32"),
    ],
    ids=lambda value: str(value.shape) if isinstance(value, np.ndarray) else str(value),
)
def test_arrays_that_are_not_those_of_the_tail_are_refused(
    of_tiny: Path, tmp_path: Path, name: str, value: Any, match: str
) -> None:
    arrays, strings = parts_of(of_tiny)
    arrays = {key: array for key, array in arrays.items() if key != name}
    if value is not None:
        arrays[name] = value
    with pytest.raises(HeadError, match=match):
        load_tail(write(tmp_path / "tail.safetensors", arrays, strings)).attach(load_tiny())


def test_activations_of_another_size_are_refused(of_tiny: Path, tmp_path: Path) -> None:
    arrays, strings = parts_of(of_tiny)
    with pytest.raises(HeadMismatchError, match="does not take"):
        load_tail(write(tmp_path / "a.safetensors", arrays, {**strings, "shape": "[192,3,3]"})).attach(load_tiny())
    refuse_after = write(tmp_path / "b.safetensors", arrays, {**strings, "shape": "[1000000,1000000]"})
    with pytest.raises(HeadFormatError, match="holds more than"):
        load_tail(refuse_after)
