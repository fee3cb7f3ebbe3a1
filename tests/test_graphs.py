"""Heads with their backbone as one graph: equal to `predict`, for every kind of head, and opened without precompute."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Command, make_image, make_photos, needs_onnx
from PIL import Image

from precompute import extract, load_head, save_head, train_head
from precompute.errors import HeadError, HeadFormatError, HeadMismatchError, UsageError
from precompute.finetuning.fine_tune import fine_tune
from precompute.finetuning.opening import open_head
from precompute.graphs.build import TORCH
from precompute.graphs.export import compare, export_graph
from precompute.graphs.int8 import BEHIND, HEAD, OUTPUT, is_of
from precompute.graphs.network import check_graph, network_of
from precompute.graphs.pictures import Pictures, picture_of
from precompute.graphs.resize import REACH, ResizeAndCrop, other_order
from precompute.heads import KNNRegressionHead, MLPRegressionHead, RidgeRegressionHead
from precompute.inputs.images.picture import Picture
from precompute.inputs.images.transform import Transform

SIZES = ((1, 1), (2, 3), (7, 5), (61, 60), (64, 64), (97, 64), (64, 97), (300, 40), (40, 111), (500, 333), (333, 500))
TRANSFORMS = (
    Transform(resize=64, crop=56),
    Transform(resize=72, crop=64, interpolation="bicubic"),
    Transform(resize=48, crop=65),
    Transform(resize=48, crop=65, floor_crop=True),
    Transform(resize=57, crop=50, floor_crop=True, interpolation="bicubic"),
    Transform(resize=60, crop=60, squash=True, interpolation="bicubic"),
    Transform(resize=64, crop=56, interpolation="lanczos"),
    Transform(resize=64, crop=56, interpolation="hamming"),
)


# Resize and crop ----------------------------------------------------------------------------------------------------


@pytest.mark.rotates(3)
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda one: f"{one.interpolation} {one.resize} {one.crop}")
def test_resized_to_the_last_grey_level(transform: Transform) -> None:
    resize = ResizeAndCrop(transform)
    for number, (width, height) in enumerate(SIZES):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = torch.from_numpy(pixels)
        if transform.suits_tensor(width, height):
            expected = Picture(image.permute(2, 0, 1), (width, height)).plain(transform).permute(1, 2, 0)
            assert torch.equal(resize(image, torch.tensor([False]))[0], expected), (width, height)
        if not other_order(width, height, transform):
            expected = Picture(Image.fromarray(pixels)).plain(transform).permute(1, 2, 0)
            assert torch.equal(resize(image, torch.tensor([True]))[0], expected), (width, height)


def test_strips_are_those_of_pillow() -> None:
    transform = Transform(resize=32, crop=32)
    pixels = np.random.default_rng(0).integers(0, 256, (7, 900, 3), dtype=np.uint8)
    assert not transform.suits_tensor(900, 7)
    expected = Picture(torch.from_numpy(pixels).permute(2, 0, 1), (900, 7)).plain(transform).permute(1, 2, 0)
    assert torch.equal(ResizeAndCrop(transform)(torch.from_numpy(pixels), torch.tensor([False]))[0], expected)


def test_interpolations_without_weights_are_refused() -> None:
    for interpolation in ("nearest", "box"):
        assert interpolation not in REACH
        with pytest.raises(HeadError, match=f"resizes by {interpolation}"):
            ResizeAndCrop(Transform(interpolation=interpolation))


LAYERS = ["body.3.add", "body.5.add"]


# Every kind of head -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of odd sizes in two classes, their features by `tiny`, and several layers of them."""
    folder = tmp_path_factory.mktemp("graphs")
    make_photos(folder / "photos", per_class=8)
    make_image(77, (301, 19)).save(folder / "photos" / "val" / "cats" / "strip.png")
    make_image(78, (3, 2)).save(folder / "photos" / "val" / "dogs" / "small.jpg")
    make_image(79, (401, 299)).save(folder / "photos" / "train" / "dogs" / "large.jpg")
    extract(folder / "photos", folder / "a.h5", backbone="tiny")
    extract(folder / "photos", folder / "blocks.h5", backbone="tiny", layer=LAYERS, pooling="none")
    train_head(folder / "a.h5", folder / "logistic.safetensors", C=1.0)
    return folder


def checked(head: Path) -> float:
    """The largest difference between the network that becomes a graph and `predict`, over photos of many sizes."""
    network = network_of(open_head(head))
    whole, worst = network.whole(), 0.0
    pictures = sorted((head.parent / "photos").rglob("*.*"))
    assert len(pictures) > 30
    for path in pictures:
        picture = picture_of(path.name, path.read_bytes(), network.preprocess.transform)
        found = whole(torch.from_numpy(picture.pixels), torch.tensor([picture.pillow]))
        expected = network.expected(picture.network_input)
        assert found.shape == expected.shape
        worst = max(worst, float(np.abs(found.numpy() - expected).max()))
    return worst


@pytest.mark.rotates(2)
@pytest.mark.parametrize("kind", ["logistic", "ridge", "mlp", "knn", "centroid"])
def test_classes(made: Path, kind: str) -> None:
    out = made / f"{kind}-checked.safetensors"
    train_head(made / "a.h5", out, head=kind, **({"max_epochs": 3} if kind == "mlp" else {}), calibrated=kind == "mlp")
    assert checked(out) < 1e-5


@pytest.mark.rotates(2)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_centroids_by_other_distances(made: Path, metric: str) -> None:
    out = made / f"centroid-{metric}.safetensors"
    train_head(made / "a.h5", out, head="centroid", metric=metric)
    assert checked(out) < 1e-5


def test_several_layers_and_positions(made: Path) -> None:
    train_head(made / "blocks.h5", made / "selected.safetensors", layer="all")
    train_head(made / "blocks.h5", made / "attentive.safetensors", head="attentive", layer=LAYERS[-1], max_epochs=2)
    assert checked(made / "selected.safetensors") < 1e-5
    assert checked(made / "attentive.safetensors") < 1e-5


@pytest.mark.rotates(2)
@pytest.mark.parametrize("kind", ["ridge", "mlp", "knn"])
def test_numbers(made: Path, kind: str) -> None:
    """A head of numbers in place of the one of classes, on the same features."""
    saved = load_head(made / "logistic.safetensors")
    generator = np.random.default_rng(0)
    X = generator.normal(size=(40, int(saved.head.n_features_in_))).astype(np.float32)
    y = 1000 + 30 * X[:, 0].astype(np.float64)
    head = {
        "ridge": RidgeRegressionHead(),
        "mlp": MLPRegressionHead(max_epochs=2),
        "knn": KNNRegressionHead(k=5),
    }[kind].fit(X, y)
    out = made / f"number-{kind}.safetensors"
    save_head(out, head, metadata={**saved.metadata, "training": {}}, overwrite=True)
    assert checked(out) < 2e-2  # of numbers around 1000, in float32


@pytest.mark.rotates(2)
@pytest.mark.parametrize("kind", ["logistic", "ridge", "mlp", "knn"])
def test_labels(made: Path, kind: str, tmp_path: Path) -> None:
    from precompute.training.kinds import LABEL_HEADS

    saved = load_head(made / "logistic.safetensors")
    generator = np.random.default_rng(0)
    X = generator.normal(size=(60, int(saved.head.n_features_in_))).astype(np.float32)
    Y = (generator.normal(size=(60, 3)) + X[:, :3] > 0).astype(int)
    options: dict[str, Any] = {"max_epochs": 2} if kind == "mlp" else {}
    head = LABEL_HEADS[kind](**options).fit(X, Y, label_names=["a", "b", "c"])
    out = made / f"labels-{kind}.safetensors"
    save_head(out, head, metadata={**saved.metadata, "training": {}}, overwrite=True)
    assert checked(out) < 1e-5
    about = network_of(open_head(out)).metadata()
    assert json.loads(about["labels_json"]) == ["a", "b", "c"]
    assert len(json.loads(about["thresholds_json"])) == 3


@pytest.mark.rotates(2)
@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_features_are_rounded_as_in_the_cache(made: Path, storage: str) -> None:
    cache = made / f"{storage}.h5"
    extract(made / "photos", cache, backbone="tiny", layer=LAYERS[-1], pooling="none", dtype=storage)
    train_head(cache, made / f"{storage}.safetensors", C=1.0)
    assert checked(made / f"{storage}.safetensors") < 1e-5


# Files --------------------------------------------------------------------------------------------------------------

OPENED = """
import json, sys
import numpy as np
from PIL import Image
assert not any(name.partition(".")[0] == "precompute" for name in sys.modules)
path, picture = sys.argv[1:]
pixels = np.asarray(Image.open(picture).convert("RGB"))
pillow = not picture.endswith(".jpg")
if path.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    (found,) = session.run(None, {"image": pixels, "pillow": np.array([pillow])})
else:
    import torch
    extra = {"precompute.json": ""}
    program = torch.export.load(path, extra_files=extra)
    about = json.loads(extra["precompute.json"])
    found = program.module()(torch.from_numpy(pixels.copy()), torch.tensor([pillow])).numpy()
print(json.dumps({"about": about, "found": found.tolist()}))
"""


def opened_elsewhere(path: Path, picture: Path) -> dict[str, Any]:
    """What a program says that has never heard of precompute, and that nothing is printed on the way."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        # The warning is that of torch 2.11 at each .pt2 file
        [sys.executable, "-W", "ignore:The given buffer is not writable", "-c", OPENED, str(path), str(picture)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=path.parent,
        timeout=300,
        check=True,
    )
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_a_graph_is_opened_without_precompute(made: Path, ending: str, tmp_path: Path) -> None:
    if ending == ".onnx":
        needs_onnx()
    graph = tmp_path / f"a{ending}"
    done = export_graph(made / "logistic.safetensors", graph, check=made / "photos")
    assert done.compared.largest_difference < 1e-5
    assert done.compared.pictures == 32
    assert done.names == ("cats", "dogs")
    network = network_of(open_head(made / "logistic.safetensors"))
    for picture in (made / "photos/train/dogs/large.jpg", made / "photos/train/cats/1.png"):
        told = opened_elsewhere(graph, picture)
        known = picture_of("", picture.read_bytes(), network.preprocess.transform)
        assert np.allclose(told["found"], network.expected(known.network_input), rtol=0, atol=1e-5)
        assert json.loads(told["about"]["classes_json"]) == ["cats", "dogs"]
        assert told["about"]["weights"] == network.model.weights
        assert told["about"]["task"] == "classes"
    with pytest.raises(HeadError, match="exists"):
        export_graph(made / "logistic.safetensors", graph)


@pytest.mark.slow
@pytest.mark.daily(2)
def test_int8_beside_fp32(made: Path, tmp_path: Path) -> None:
    needs_onnx()
    done = export_graph(made / "logistic.safetensors", tmp_path / "a.onnx", int8=True, check=made / "photos")
    assert done.int8 is not None
    assert done.int8.kind == "static"
    assert done.int8.scored == 18
    assert done.int8.which == "pictures that it was not trained on (val)"
    assert done.int8.accuracy_interval is not None
    assert done.int8.agree is not None and done.int8.agree > 0.5
    told = opened_elsewhere(tmp_path / "a.onnx", made / "photos/train/dogs/large.jpg")
    assert told["about"]["precision"] == "int8, static"
    assert sum(told["found"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
@pytest.mark.daily(3)
@pytest.mark.parametrize("kind", ["logistic", "mlp", "tail"])
def test_int8_leaves_the_head_as_it_is(made: Path, kind: str, tmp_path: Path) -> None:
    needs_onnx()
    import onnx

    head = made / f"{kind}-int8.safetensors"
    if kind == "tail":
        fine_tune(made / "blocks.h5", head, layer=LAYERS[0], epochs=1)
    else:
        train_head(made / "a.h5", head, head=kind, **({"max_epochs": 1} if kind == "mlp" else {"C": 1.0}))
    export_graph(head, tmp_path / "a.onnx", int8=True, check=made / "photos")
    nodes = onnx.load(tmp_path / "a.onnx").graph.node
    operation = {output: node.op_type for node in nodes for output in node.output}
    kept = (*BEHIND, OUTPUT if kind == "tail" else HEAD)
    products = [node for node in nodes if is_of(node, kept) and node.op_type in ("Gemm", "MatMul")]
    assert len(products) == (2 if kind == "mlp" else 1)
    for node in (node for node in nodes if is_of(node, kept)):
        assert "DequantizeLinear" not in [operation.get(name) for name in node.input], node.name
    quantised = [node for node in nodes if operation.get((*node.input, "")[0]) == "DequantizeLinear"]
    assert sum(node.op_type == "Conv" for node in quantised) >= 5


@pytest.mark.slow
def test_a_tail_and_the_command(precompute: Command, made: Path, tmp_path: Path) -> None:
    done = precompute("fine-tune", made / "photos", "-b", "tiny", "-o", "tail.safetensors", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    done = precompute("export", "tail.safetensors", "-o", "tail.pt2", "--check", made / "photos", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["compared"]["largest_difference"] < 1e-4
    assert told["names"] == ["cats", "dogs"]
    done = precompute("export", made / "logistic.safetensors", "-o", "a.pt2")
    assert done.returncode == 0, done.stderr
    assert "largest difference" in done.stdout
    assert "which it was trained on" in done.stdout


# What cannot be done ------------------------------------------------------------------------------------------------


def test_a_graph_that_differs_is_not_written(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(open_head(made / "logistic.safetensors"))
    with torch.no_grad():
        network.core.head.get_buffer("intercept").add_(0.1)
    pictures = Pictures("of a test", files=(("a.png", (made / "photos/train/cats/1.png").read_bytes()),))

    def run(image: Any, pillow: bool) -> Any:
        return network.whole()(torch.from_numpy(image), torch.tensor([pillow])).numpy()

    with pytest.raises(HeadError, match="differs by up to"):
        compare(network, run, pictures)
    with pytest.raises(HeadError, match="No picture"):
        compare(network, run, Pictures("of nobody"))


def test_tall_pictures_are_skipped_and_counted(made: Path) -> None:
    """They are decoded as any others, so an export whose pictures are all tall is checked on other ones."""
    tall, wide = (io.BytesIO(), io.BytesIO())
    make_image(5, (60, 300)).save(tall, "PNG")
    make_image(6, (300, 60)).save(wide, "PNG")
    network = network_of(open_head(made / "logistic.safetensors"))
    if not other_order(60, 300, network.preprocess.transform):
        pytest.skip("this Pillow resizes all pictures across first")

    def run(image: Any, pillow: bool) -> Any:
        return network.whole()(torch.from_numpy(image), torch.tensor([pillow])).numpy()

    some = compare(network, run, Pictures("of two", files=(("a", tall.getvalue()), ("b", wide.getvalue()))))
    assert (some.pictures, some.skipped, some.which) == (1, 1, "of two")
    none = compare(network, run, Pictures("of one", files=(("a", tall.getvalue()),)))
    assert none.pictures > 5
    assert none.skipped == 1
    assert "scikit-learn" in none.which


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"spec": {"transform": {"modality": "text"}}}, "predicts from texts"),
        ({"spec": {"transform": {"modality": "audio"}}}, "predicts from clips"),
        ({"spec": {"backbone": "external"}}, "imported features"),
        ({"average_views": 3}, "averages over 3 views"),
        ({"spec": {"transform": {"decoder": "nvjpeg, resized by torch on the device, 1"}}}, "nvJPEG"),
        ({"spec": {"transform": {"fast_decode": True}}}, "trained with --fast-decode"),
    ],
)
def test_heads_that_no_graph_can_be_made_of(made: Path, tmp_path: Path, changes: dict[str, Any], found: str) -> None:
    saved = load_head(made / "logistic.safetensors")
    spec = {**saved.metadata["spec"], **changes.get("spec", {})}
    save_head(tmp_path / "a.safetensors", saved.head, metadata={**saved.metadata, **changes, "spec": spec})
    with pytest.raises(HeadError, match=found) as error:
        check_graph(open_head(tmp_path / "a.safetensors"))
    assert error.value.hint


def test_weights_that_are_gone_and_files_that_are_damaged(made: Path, tmp_path: Path) -> None:
    saved = load_head(made / "logistic.safetensors")
    gone = {**saved.metadata, "weights_source": {"kind": "file", "path": str(tmp_path / "gone.pth")}}
    save_head(tmp_path / "gone.safetensors", saved.head, metadata=gone)
    with pytest.raises(HeadMismatchError, match=r"gone\.pth"):
        export_graph(tmp_path / "gone.safetensors", tmp_path / "a.pt2", check=made / "photos")
    whole = (made / "logistic.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(whole[:-7])
    with pytest.raises(HeadFormatError):
        export_graph(tmp_path / "short.safetensors", tmp_path / "a.pt2")
    with pytest.raises(UsageError, match=r"no \.tflite"):
        export_graph(made / "logistic.safetensors", tmp_path / "a.tflite")
    with pytest.raises(UsageError, match="int8"):
        export_graph(made / "logistic.safetensors", tmp_path / "a.pt2", int8=True)
    assert {path.name for path in tmp_path.iterdir()} == {"gone.safetensors", "short.safetensors"}


def test_a_missing_extra_names_the_line(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(HeadError, match="onnxruntime") as error:
        export_graph(made / "logistic.safetensors", tmp_path / "a.onnx")
    assert "pip install 'precompute[onnx]'" in error.value.hint
    with pytest.raises(HeadFormatError):  # what is wrong with the head comes first
        export_graph(made / "a.h5", tmp_path / "a.onnx")


def test_a_torch_that_cannot_write_onnx_is_named(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(library, reason="pip install 'precompute[onnx]'")
    monkeypatch.setattr(torch, "__version__", "2.6.0+cpu")
    with pytest.raises(HeadError, match=r"needs torch 2\.11 or newer, and this is torch 2\.6\.0\+cpu") as error:
        export_graph(made / "logistic.safetensors", tmp_path / "a.onnx")
    assert "pip install 'precompute[onnx]'" in error.value.hint
    assert not [*tmp_path.iterdir()]


def test_the_oldest_torch_for_onnx_is_that_of_the_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert f"torch>={TORCH}" in extras["onnx"]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("a.h5", "-o", "a.npz", "--int8"), "--int8 is for a graph"),
        (("a.h5", "-o", "a.npz", "--check", "photos"), "--check is for a graph"),
        (("a.h5", "-o", "a.onnx"), "train one first"),
        (("logistic.safetensors", "-o", "a.npz"), "end the name of -o in .onnx"),
        (("logistic.safetensors", "-o", "a.onnx", "--layer", "x"), "--layer is for a feature file"),
        (("logistic.safetensors", "-o", "a.joblib", "--int8"), "--int8 is for a graph"),
        (("logistic.safetensors", "-o", "a.md", "--weights", "x"), "--weights is for"),
        (("logistic.safetensors", "-o", "a.joblib", "-b", "tiny"), "-b is for"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_of_another_kind_are_wrong_usage(
    precompute: Command, made: Path, arguments: tuple[str, ...], found: str
) -> None:
    words = [str(made / word) if word in ("a.h5", "logistic.safetensors") else word for word in arguments]
    done = precompute("export", *words)
    assert done.returncode == 2, done.stderr
    assert found in done.stderr


def test_a_head_of_the_network_alone_has_no_weights_to_write(precompute: Command, made: Path) -> None:
    done = precompute("export", made / "logistic.safetensors", "-o", "a.pth")
    assert done.returncode == 1
    assert "no weights to write" in done.stderr
