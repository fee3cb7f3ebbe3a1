"""The contracts of sources, preprocessing, backbones and engines: those of the library, and kinds of its own.

The second source (NumPy arrays) and the second preprocessing (vectors) are in this file alone. They are extracted by a
process that is killed, resumed, and trained on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import list_images, make_photos, rows_there
from contracts import BackboneContract, EngineContract, PreprocessContract, SourceContract, two_taps
from modalities import image_bytes
from reference import real_photo
from torch import nn

from precompute import extract, forecast, load_backbone, open_cache, train_head, verify
from precompute.backbones.load import Backbone
from precompute.engines.base import Engine, EngineChoice
from precompute.engines.devices import make_engine
from precompute.engines.machine import Machine
from precompute.errors import SampleError, UsageError
from precompute.inputs.base import Preprocess
from precompute.inputs.images.augmentation import Augmentation
from precompute.inputs.images.preprocess import ImagePreprocess
from precompute.inputs.images.transform import Transform
from precompute.sources.base import Raw, Source, Table

WIDTH, ROWS = 12, 400


class ArraySource(Source):
    """The rows of an array (N, d) float32, with the labels 0, 1, ... of three classes."""

    name = "an array"

    def __init__(self, values: np.ndarray, labels: np.ndarray, seconds: float = 0.0) -> None:
        self._values = values
        self._seconds = seconds  # that reading a row takes
        sums = [zlib.crc32(row.tobytes()) for row in values]
        self.table = Table(
            ids=np.array([f"row {number:06}".encode() for number in range(len(values))]),
            sizes=np.full(len(values), values[0].nbytes, dtype=np.int64),
            mtimes=np.array(sums, dtype=np.int64),
            labels=labels.astype(np.int32),
            splits=np.zeros(len(values), dtype=np.uint8),
            classes=(b"a", b"b", b"c"),
        )

    def read(self, row: int) -> Raw:
        time.sleep(self._seconds)
        return Raw(self._values[row].tobytes(), int(self.table.sizes[row]), int(self.table.mtimes[row]))


class Vectors(Preprocess):
    """WIDTH numbers of four bytes each."""

    modality = "vector"

    def spec(self) -> dict[str, Any]:
        return {"modality": self.modality, "width": WIDTH}

    def host(self, raw: bytes, view: int = 0) -> tuple[torch.Tensor, ...]:
        if len(raw) != 4 * WIDTH:
            raise SampleError(f"{len(raw)} bytes, not {4 * WIDTH}", reason="TRUNCATED")
        return (torch.frombuffer(bytearray(raw), dtype=torch.float32),)

    def example(self) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(WIDTH),)

    def device(self) -> nn.Module:
        return nn.Identity()


def make_network() -> tuple[nn.Module, Preprocess]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 3)), Vectors()


def array_source(seconds: float = 0.0) -> ArraySource:
    """Three clouds of points."""
    rng = np.random.default_rng(0)
    labels = np.arange(ROWS) % 3
    centres = 3 * rng.normal(size=(3, WIDTH))
    return ArraySource((centres[labels] + rng.normal(size=(ROWS, WIDTH))).astype(np.float32), labels, seconds)


def extract_array(out: Path, seconds: float = 0.0) -> Any:
    return extract(array_source(seconds), out, backbone="test_contracts:make_network", batch_size=8, precision="fp32")


class TestFolderSource(SourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> Source:
        return list_images(make_photos(tmp_path / "photos"))


class TestArraySource(SourceContract):
    @pytest.fixture
    def source(self) -> Source:
        return array_source()


class TestImagePreprocess(PreprocessContract):
    @pytest.fixture
    def preprocess(self) -> Preprocess:
        return ImagePreprocess(Transform(resize=40, crop=32))

    @pytest.fixture
    def raws(self, tmp_path: Path) -> list[bytes]:
        source = list_images(make_photos(tmp_path / "photos"))
        return [real_photo(), source.read(0).data]


class TestImagePreprocessWithViews(PreprocessContract):
    @pytest.fixture
    def preprocess(self) -> Preprocess:
        return ImagePreprocess(Transform(resize=40, crop=32), 4, Augmentation.of(["flip", "crop", "color"]))

    @pytest.fixture
    def raws(self, tmp_path: Path) -> list[bytes]:
        source = list_images(make_photos(tmp_path / "photos"))
        return [real_photo(), source.read(0).data]


class TestVectors(PreprocessContract):
    @pytest.fixture
    def preprocess(self) -> Preprocess:
        return Vectors()

    @pytest.fixture
    def raws(self) -> list[bytes]:
        return [array_source().read(row).data for row in range(3)]


@pytest.mark.parametrize("layer", [None, ["layer3:mean", "layer1.0.bn2", "output"], "all-blocks"], ids=str)
class TestTorchvisionBackbone(BackboneContract):
    @pytest.fixture
    def backbone(self, layer: Any) -> Backbone:
        return load_backbone("resnet18", weights="random", layer=layer, transform={"resize": 64, "crop": 64})


class TestBackboneWithViews(BackboneContract):
    @pytest.fixture
    def backbone(self) -> Backbone:
        return load_backbone("tiny", layer=["body", "embed"], views=3, augment="flip")


class TestNgramBackbone(BackboneContract):
    @pytest.fixture
    def backbone(self) -> Backbone:
        return load_backbone("ngram-hash")


@pytest.mark.parametrize("layer", [None, "all-blocks", ["layer2:mean", "output"]], ids=str)
class TestTimmBackbone(BackboneContract):
    @pytest.fixture
    def backbone(self, layer: Any) -> Backbone:
        pytest.importorskip("timm", reason="needs the extra `timm`")
        transform = {"resize": 64, "crop": 64}
        return load_backbone("timm:resnet10t", weights="random", layer=layer, transform=transform)


class TestTimmPreprocess(PreprocessContract):
    @pytest.fixture
    def preprocess(self) -> Preprocess:
        pytest.importorskip("timm", reason="needs the extra `timm`")
        return load_backbone("timm:resnet10t", weights="random").preprocess

    @pytest.fixture
    def raws(self) -> list[bytes]:
        return [image_bytes(1, "jpg"), image_bytes(2, "png")]


class TestBackboneOfVectors(BackboneContract):
    @pytest.fixture
    def backbone(self) -> Backbone:
        return load_backbone("test_contracts:make_network")


@pytest.fixture(scope="class")
def engine(request: pytest.FixtureRequest) -> Engine:
    name, precision = request.param
    if not Machine.here().computes(name, "cpu", precision):
        pytest.skip(f"{name} does not compute in {precision} here")
    choice = EngineChoice(name, "cpu", precision, EngineContract.BATCH)
    return make_engine(two_taps().module, two_taps().preprocess, choice, identity=None)


ENGINES = [("torch", "fp32"), ("torch", "bf16"), ("openvino", "fp32"), ("openvino", "bf16")]


@pytest.mark.parametrize("engine", ENGINES, ids=" ".join, indirect=True)
class TestEngines(EngineContract):
    """Each in each precision of this machine."""


@pytest.mark.rotates(6)
def test_a_source_and_a_preprocessing_of_ones_own_are_extracted_killed_resumed_and_trained_on(tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    code = (
        f"from pathlib import Path; from test_contracts import extract_array; extract_array(Path({str(out)!r}), 0.02)"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path})
    while not rows_there(tmp_path / "a.h5.partial"):
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    found = rows_there(tmp_path / "a.h5.partial")
    assert 0 < found < ROWS
    resumed = extract_array(out)
    assert resumed.computed == ROWS - found
    assert verify(open_cache(out)).whole
    extract_array(tmp_path / "whole.h5")
    assert np.array_equal(open_cache(out).features(), open_cache(tmp_path / "whole.h5").features())
    network, _ = make_network()
    with torch.inference_mode():
        expected = network[:2](torch.from_numpy(array_source()._values)).numpy()
    np.testing.assert_allclose(open_cache(out).features(), expected, rtol=1e-5, atol=1e-6)
    training = train_head(out, tmp_path / "a.safetensors")
    assert training.scores["hold-out"].accuracy > 0.9
    assert extract_array(out).computed == 0


def test_a_source_of_ones_own_is_forecast_and_cannot_be_cut(tmp_path: Path) -> None:
    assert forecast(array_source(), backbone="test_contracts:make_network").images == ROWS
    with pytest.raises(UsageError, match="a limit is for folders"):
        extract(array_source(), tmp_path / "a.h5", backbone="test_contracts:make_network", limit=3)
    with pytest.raises(UsageError, match="its own preprocessing"):
        load_backbone("test_contracts:make_network", transform={"crop": 3})


def test_a_sample_that_a_preprocessing_refuses_is_skipped_and_named(tmp_path: Path) -> None:
    source = array_source()
    source.read = lambda row: Raw(b"short", 5, 0) if row == 7 else ArraySource.read(source, row)  # type: ignore[method-assign]
    result = extract(source, tmp_path / "a.h5", backbone="test_contracts:make_network")
    assert result.failures == {"TRUNCATED": 1}
    assert [name for name, _, _ in result.failed] == ["row 000007"]
