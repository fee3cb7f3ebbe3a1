"""Networks of every family as graphs, in both forms: torch.export and ONNX give the features of their code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import needs_onnx
from torch import nn

from precompute import load_backbone
from precompute.backbones.load import Backbone
from precompute.graphs.build import exported, need_onnx, onnx_of

TORCHVISION = ("mobilenet_v2", "squeezenet1_1", "resnet18")
HF = ("vit", "dinov2", "clip", "siglip", "swin", "convnext", "resnet")
OPEN_CLIP = ("vit", "resnet", "timm", "coca")


class Features(nn.Module):
    """The first tap of a backbone, (n,) of one picture."""

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.body = model.body()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.body(pixels)[0].flatten()
        return found


def check(model: Backbone, tmp_path: Path) -> None:
    needs_onnx()
    onnx, onnxruntime = need_onnx()
    module = Features(model).eval()
    (example,) = model.preprocess.example()
    picture = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, *example.shape), dtype=np.uint8))
    with torch.no_grad():
        expected = module(picture).numpy()
        program = exported(module, model.name, crop=example.shape[0])
        close(program.module()(picture).numpy(), expected)
    onnx.save(onnx_of(program, model.name, output="features", crop=True), tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    close(session.run(None, {"pixels": picture.numpy()})[0], expected)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str, tmp_path: Path) -> None:
    check(load_backbone(name, weights="random:0"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", HF)
def test_transformers(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install 'precompute[hf]'")
    from test_hf_images import MODELS

    network, config, processor, settings = MODELS[kind]
    found = getattr(transformers, network)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = found(found.config_class(**config)).eval()
    model.save_pretrained(tmp_path / kind)
    getattr(transformers, processor)(**settings).save_pretrained(tmp_path / kind)
    check(load_backbone(f"hf:{tmp_path / kind}"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPEN_CLIP)
def test_open_clip(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("open_clip", reason="pip install 'precompute[open_clip]'")
    from test_open_clip import save

    save(tmp_path / kind, kind)
    check(load_backbone(f"open_clip:{tmp_path / kind}"), tmp_path)
