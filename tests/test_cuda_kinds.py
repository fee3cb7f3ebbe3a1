"""A CUDA device under what is no image of one process: texts, sounds, processes that decode, `doctor`, a graph.

Each test is skipped where there is none; `scripts/check_gpu.sh` runs them all.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_photos, needs_onnx, run_command
from modalities import IMAGE, KINDS, SOUND, TEXT, Kind

from precompute import extract, open_cache, predict, train_head
from precompute.engines.guard import cosine
from precompute.finetuning.fine_tune import fine_tune
from precompute.graphs.export import export_graph

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def _own_model_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def rows(path: Path) -> np.ndarray:
    features = open_cache(path).features()[:]
    return features.reshape(len(features), -1).astype(np.float64)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_cuda_rows_of_each_kind_are_those_of_the_cpu(kind: Kind, tmp_path: Path) -> None:
    samples = kind.make(tmp_path)
    for device in ("cuda", "cpu"):
        samples.extract(tmp_path / f"{device}.h5", device=device, precision="fp32")
    one, other = (rows(tmp_path / f"{device}.h5") for device in ("cuda", "cpu"))
    assert cosine(one, other).min() > 0.99999


def compared(kind: Kind, backbone: str, tmp_path: Path, precision: str, least: float) -> None:
    samples = kind.make(tmp_path / "samples")
    samples.backbone = backbone
    found = samples.extract(tmp_path / "cuda.h5", device="cuda", precision=precision, batch_size=4)
    samples.extract(tmp_path / "cpu.h5", device="cpu", precision="fp32")
    assert found.device.partition(":")[0] == "cuda"
    assert cosine(rows(tmp_path / "cuda.h5"), rows(tmp_path / "cpu.h5")).min() > least
    train_head(tmp_path / "cuda.h5", tmp_path / "head.safetensors")
    here, there = (predict(tmp_path / "head.safetensors", samples.source, device=name) for name in ("cpu", "cuda"))
    probabilities = ([item.probability for item in found.items] for found in (here, there))
    np.testing.assert_allclose(*probabilities, atol=2e-3 if precision == "fp32" else 0.2)


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.99999), ("bf16", 0.999), ("fp16", 0.9999)])
@pytest.mark.parametrize("model", ["bert", "modernbert"])
def test_a_language_model_on_cuda(model: str, precision: str, least: float, tmp_path: Path) -> None:
    pytest.importorskip("transformers", minversion="5.24", reason="needs the extra `hf`")
    from language_models import save

    compared(TEXT, f"hf:{save(tmp_path / 'model', model)}", tmp_path, precision, least)


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.9999), ("bf16", 0.9)])
@pytest.mark.parametrize("model", ["wav2vec2, group", "whisper"])
def test_a_network_for_sound_on_cuda(model: str, precision: str, least: float, tmp_path: Path) -> None:
    pytest.importorskip("transformers", minversion="5.24", reason="needs the extra `hf`")
    from hf_sounds import saved

    saved(tmp_path / "model", model)
    compared(SOUND, f"hf:{tmp_path / 'model'}", tmp_path, precision, least)


@pytest.mark.parametrize("kind", [IMAGE, TEXT], ids=lambda kind: kind.name)
def test_processes_that_decode_for_cuda_change_no_byte(kind: Kind, tmp_path: Path) -> None:
    samples = kind.make(tmp_path, per_class=30)
    for executor in ("local", "processes"):
        samples.extract(tmp_path / f"{executor}.h5", device="cuda", precision="fp32", executor=executor, batch_size=8)
    one, other = (open_cache(tmp_path / f"{name}.h5").features()[:].tobytes() for name in ("local", "processes"))
    assert one == other


def test_views_made_on_cuda_are_those_of_the_cpu(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    for device in ("cuda", "cpu"):
        options = {"views": 3, "augment": "flip,crop", "device": device, "precision": "fp32"}
        extract(photos, tmp_path / f"{device}.h5", backbone="tiny", **options)
    assert cosine(rows(tmp_path / "cuda.h5"), rows(tmp_path / "cpu.h5")).min() > 0.99999


@pytest.mark.parametrize("head", ["logistic", "mlp", "tail"])
def test_a_head_trained_on_cuda_as_a_graph(head: str, tmp_path: Path) -> None:
    needs_onnx()
    photos, made = make_photos(tmp_path / "photos"), tmp_path / "head.safetensors"
    if head == "tail":
        extract(photos, tmp_path / "a.h5", backbone="tiny", layer="body.3", device="cuda")
        fine_tune(tmp_path / "a.h5", made, epochs=2, device="cuda")
    else:
        extract(photos, tmp_path / "a.h5", backbone="tiny", device="cuda")
        train_head(tmp_path / "a.h5", made, head=head, device="cuda")
    for ending in ("onnx", "pt2"):
        graph = export_graph(made, tmp_path / f"head.{ending}", check=photos)
        assert (graph.compared.pictures > 0, graph.compared.other_classes) == (True, 0)


def test_doctor_names_the_cuda_device(tmp_path: Path) -> None:
    done = run_command(tmp_path, "doctor", "--json")
    found = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    assert found["cuda:0"]["status"] == "ok"
    assert found["cuda:0"]["details"]["name"] == torch.cuda.get_device_name(0)
    assert torch.cuda.get_device_name(0) in run_command(tmp_path, "doctor").stdout
