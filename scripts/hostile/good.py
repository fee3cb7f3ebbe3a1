"""Makes the good files that the hostile set and the fuzzer start from."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from precompute.cache import Layer, RowWriter, Samples, Status, create, quantise
from precompute.cache.quantised import QuantisedRows

ROWS, WIDTH = 6, 5
MAPS = (3, 2, 2)
SPEC: dict[str, Any] = {
    "backbone": "tiny",
    "layers": [{"name": "flatten", "pooling": "none", "axes": ["channel"]}],
    "storage": "float32",
}
INT8_SPEC: dict[str, Any] = {
    "backbone": "tiny",
    "layers": [
        {"name": "maps", "pooling": "none", "axes": ["channel", "height", "width"]},
        {"name": "vector", "pooling": "mean", "axes": ["channel"]},
    ],
    "storage": "int8",
}
CANARY = b"a-canary-that-nobody-may-read"


def samples(word: bytes = b"train") -> Samples:
    """Three classes, all splits."""
    return Samples(
        ids=np.array([b"%s/%s/%d.jpg" % (word, b"abc"[row // 2 : row // 2 + 1], row) for row in range(ROWS)]),
        sizes=np.arange(ROWS, dtype=np.int64) + 1000,
        mtimes=np.arange(ROWS, dtype=np.int64) + 10**18,
        labels=np.arange(ROWS, dtype=np.int32) // 2,
        splits=np.arange(ROWS, dtype=np.uint8) % 4,
        classes=(b"a", b"b", b"c\xff"),
    )


def make_cache(path: Path, table: Samples | None = None) -> None:
    """A whole, small cache, one row of which failed; the same bytes each time."""
    table = samples() if table is None else table
    digests = np.stack([np.frombuffer(hashlib.sha256(bytes([row])).digest(), np.uint8) for row in range(ROWS)])
    statuses = np.full(ROWS, Status.OK, dtype=np.uint8)
    statuses[4] = Status.TRUNCATED
    features = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
    features[4] = np.nan
    layers = {"flatten": Layer((WIDTH,), np.dtype("f4"), ("channel",), "none")}
    columns = {"site": np.arange(ROWS) // 2, "name": np.array([b"n%d" % row for row in range(ROWS)])}
    layout = create(str(path), spec=SPEC, samples=table, layers=layers, columns=columns, records=[{"run": 1}])
    with RowWriter(str(path), layout) as writer:
        writer.write(
            np.arange(ROWS),
            {"flatten": features},
            digests=digests,
            statuses=statuses,
            sizes=table.sizes,
            mtimes=table.mtimes,
        )


def make_int8_cache(path: Path, forge: Callable[[QuantisedRows], None] | None = None) -> None:
    """The same samples with a layer of 8 bits and a vector; `forge` changes rows before their checksums are made."""
    table, values = samples(), np.random.default_rng(1).normal(size=(ROWS, *MAPS)).astype(np.float32)
    statuses = np.full(ROWS, Status.OK, dtype=np.uint8)
    statuses[4], values[4] = Status.TRUNCATED, np.nan
    maps = quantise(values, INT8_SPEC["layers"][0]["axes"])
    if forge is not None:
        forge(maps)
    layers = {
        "maps": Layer(MAPS, np.dtype("u1"), ("channel", "height", "width"), "none"),
        "vector": Layer(MAPS[:1], np.dtype("f2"), ("channel",), "mean"),
    }
    layout = create(str(path), spec=INT8_SPEC, samples=table, layers=layers)
    with RowWriter(str(path), layout) as writer:
        writer.write(
            np.arange(ROWS),
            {"maps": maps, "vector": values.mean(axis=(2, 3))},
            digests=np.stack([np.frombuffer(hashlib.sha256(bytes([row])).digest(), np.uint8) for row in range(ROWS)]),
            statuses=statuses,
            sizes=table.sizes,
            mtimes=table.mtimes,
        )


def make_heads(folder: Path) -> list[Path]:
    """One head of every kind; the logistic one stands first."""
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
        save_head,
    )

    generator = np.random.default_rng(0)
    labels = np.repeat(["ants", "bees", "b\udcff"], 12)
    features = generator.normal(size=(36, 4)) + np.repeat(np.eye(3, 4) * 3, 12, axis=0)
    several, names = features[:, :2] > 1, ["wings", "b\udcff"]
    heads: dict[str, Any] = {
        "logistic": LogisticHead(C=1.0).fit(features, labels),
        "mlp": MLPHead(hidden=(3,), max_epochs=2, device="cpu").fit(features, labels),
        "knn": KNNHead(k=3).fit(features.astype(np.float16), labels),
        "ridge": RidgeHead().fit(features, labels),
        "centroid": CentroidHead().fit(features, labels),
        "selected": SelectedHead(fraction=0.5, C=1.0, layers=(3, 1)).fit(features, labels),
        "attentive": AttentiveHead(tokens=2, queries=2, max_epochs=2).fit(features, labels),
        "multilabel-logistic": MultilabelLogisticHead(C=1.0).fit(features, several, label_names=names),
        "multilabel-ridge": MultilabelRidgeHead().fit(features, several, label_names=names),
        "multilabel-knn": MultilabelKNNHead(k=3).fit(features.astype(np.float16), several, label_names=names),
        "multilabel-mlp": MultilabelMLPHead(hidden=(3,), max_epochs=2).fit(features, several, label_names=names),
        "ridge-regression": RidgeRegressionHead().fit(features, features[:, :2]),
        "knn-regression": KNNRegressionHead(k=3).fit(features, features[:, 0]),
        "mlp-regression": MLPRegressionHead(hidden=(3,), max_epochs=2).fit(features, features[:, 0]),
    }
    paths = []
    for kind, head in heads.items():
        paths.append(folder / f"{kind}.safetensors")
        save_head(paths[-1], head, metadata={"layer": "flatten", "spec": SPEC})
    return paths


def make_tail(path: Path, metadata: dict[str, Any] | None = None) -> None:
    """A tail of tiny behind its last maps, as if it had been trained."""
    import torch

    from precompute import load_backbone
    from precompute.backbones.tail import tail_of
    from precompute.finetuning.network import OutputLayer, TailNetwork
    from precompute.finetuning.tail_file import save_tail
    from precompute.finetuning.tail_head import Fitted, TailHead

    backbone = load_backbone("tiny", layer="body")
    tail = tail_of(backbone, "body")
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(3, tail.width)).astype(np.float32)
    with torch.no_grad():
        for parameter in tail.parameters():
            parameter.mul_(1.5)
    network = TailNetwork(tail, OutputLayer(weight, np.zeros(3, np.float32)))
    entry = {"epoch": 0, "train_loss": 1.0, "train_accuracy": 0.5, "validation_loss": 1.0, "validation_accuracy": 0.5}
    fitted = Fitted([entry, {**entry, "epoch": 1}], 1, "held out", {"C": 1.0}, {"epochs": 1})
    head = TailHead(network, tail.shape, "classes", ("ants", "bees", "wasps"), fitted)
    spec = backbone.spec(precision="fp32", storage="float32")
    default = {"spec": spec, "key": "0" * 64, "layer": "body", "shape": list(tail.shape)}
    default["weights_source"] = {"kind": "embedded"}
    save_tail(path, head, metadata=default if metadata is None else {**default, **metadata})


def make_weights(folder: Path) -> list[Path]:
    """A small state dict in torch's format of today, its older one, and as safetensors."""
    import torch
    from safetensors.torch import save_file

    state = {
        "conv.weight": torch.arange(24, dtype=torch.float32).reshape(2, 3, 2, 2),
        "conv.bias": torch.ones(2, dtype=torch.float16),
        "bn.num_batches_tracked": torch.tensor(7),
    }
    paths = [folder / "zip.pth", folder / "legacy.pth", folder / "plain.safetensors"]
    torch.save({"epoch": 3, "state_dict": state}, paths[0])
    torch.save(state, paths[1], _use_new_zipfile_serialization=False)
    save_file(state, str(paths[2]))
    return paths


def picture(width: int = 40, height: int = 32) -> Image.Image:
    """A picture with structure and noise."""
    generator = np.random.default_rng(3)
    grade = np.linspace(0, 1, width)[None, :, None] * np.linspace(0, 1, height)[:, None, None]
    first, second = generator.uniform(0, 255, (2, 3))
    noise = generator.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(first * (1 - grade) + second * grade + noise, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_pictures() -> dict[str, bytes]:
    """One whole picture of every format and kind that is decoded, by name."""
    image = picture()
    grey16: NDArray[np.uint16] = np.asarray(image.convert("L")).astype(np.uint16) * 257
    upside_down = Image.Exif()
    upside_down[0x0112] = 6
    alpha = image.convert("RGBA")
    alpha.putalpha(image.convert("L"))

    def frames() -> dict[str, Any]:  # anew each time: saving leaves settings on them that another format stumbles over
        return {"save_all": True, "append_images": [picture().rotate(90 * turn) for turn in (1, 2)]}

    return {
        "baseline.jpg": encoded(image, "JPEG"),
        "progressive.jpg": encoded(image, "JPEG", progressive=True),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "grey.jpg": encoded(image.convert("L"), "JPEG"),
        "rotated.jpg": encoded(image, "JPEG", exif=upside_down.tobytes()),
        "restarts.jpg": encoded(image, "JPEG", restart_marker_rows=1),
        "several.jpg": encoded(image.copy(), "MPO", **frames()),
        "rgb.png": encoded(image, "PNG"),
        "palette.png": encoded(image.quantize(16), "PNG", transparency=3),
        "alpha.png": encoded(alpha, "PNG"),
        "grey_alpha.png": encoded(alpha.convert("LA"), "PNG"),
        "grey16.png": encoded(Image.fromarray(grey16), "PNG"),
        "one_bit.png": encoded(image.convert("1"), "PNG"),
        "animated.png": encoded(image, "PNG", **frames()),
        "plain.gif": encoded(image, "GIF"),
        "animated.gif": encoded(image, "GIF", **frames()),
        "rgb.bmp": encoded(image, "BMP"),
        "palette.bmp": encoded(image.quantize(16), "BMP"),
        "lossy.webp": encoded(image, "WEBP"),
        "lossless.webp": encoded(alpha, "WEBP", lossless=True),
        "animated.webp": encoded(image, "WEBP", **frames()),
        "raw.tif": encoded(image, "TIFF"),
        "lzw.tif": encoded(image, "TIFF", compression="tiff_lzw"),
        "deflate.tif": encoded(alpha, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": encoded(image, "TIFF", compression="jpeg"),
        "fax.tif": encoded(image.convert("1"), "TIFF", compression="group4"),
        "packbits.tif": encoded(image.convert("P"), "TIFF", compression="packbits"),
        "grey16.tif": encoded(Image.fromarray(grey16), "TIFF"),
        "several.tif": encoded(image, "TIFF", **frames()),
    }
