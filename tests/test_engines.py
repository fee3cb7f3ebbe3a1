"""Engines against eager fp32 torch; what OpenVINO keeps; and that it reports to nobody."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import Command, run_python
from pictures import eager, images

from precompute import extract, load_backbone, open_cache
from precompute.backbones.load import Backbone
from precompute.engines import model_cache
from precompute.engines.base import Engine, EngineChoice
from precompute.engines.choice import Asked, candidates
from precompute.engines.devices import PRECISIONS, default_batch, make_engine
from precompute.engines.guard import cosine
from precompute.engines.machine import Machine
from precompute.engines.torch import folded
from precompute.errors import DeviceError, UsageError

NEEDS_OPENVINO = pytest.mark.skipif(not find_spec("openvino"), reason="needs pip install 'precompute[openvino]'")
ENGINES = ["torch", pytest.param("openvino", marks=NEEDS_OPENVINO)]
OTHERS = ["mobilenet_v3_small", "squeezenet1_1", "vit_b_32", "swin_t"]


@pytest.fixture(autouse=True)
def _own_model_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def resnet() -> Backbone:
    return load_backbone("resnet18", weights="random", transform={"resize": 64, "crop": 64})


def first(asked: Asked) -> EngineChoice:
    """What comes first on this machine."""
    return candidates(asked, Machine.here()).choices[0]


def engine_of(backbone: Backbone, *, identity: str | None = None, **options: object) -> Engine:
    choice = first(Asked(**{"precision": "fp32", "batch_size": 4, **options}))
    return make_engine(backbone.module, backbone.preprocess, choice, identity=identity)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["resnet18", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_fp32_of_every_engine_is_eager_fp32(engine: str, name: str) -> None:
    backbone = load_backbone(name, weights="random")
    pictures = images(3, backbone.preprocess.transform.crop)
    (got,) = engine_of(backbone, engine=engine)(pictures)
    expected = eager(backbone, pictures)
    assert got.dtype == np.float32
    assert got.shape == (3, *backbone.taps[0].shape)
    error = np.linalg.norm(got.reshape(3, -1) - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 1e-5


@pytest.mark.rotates(6)
@pytest.mark.parametrize("engine", ENGINES)
def test_every_precision_of_this_machine_runs(engine: str, resnet: Backbone) -> None:
    machine = Machine.here()
    precisions = [name for name in PRECISIONS if machine.computes(engine, "cpu", name)]
    assert "fp32" in precisions
    pictures = images(4)
    for precision in precisions:
        (got,) = engine_of(resnet, engine=engine, precision=precision)(pictures)
        assert cosine(got.astype(float), eager(resnet, pictures).astype(float)).min() > 0.99


@pytest.mark.rotates(6)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_row_does_not_depend_on_its_neighbours_or_its_place(engine: str, resnet: Backbone) -> None:
    one, *others = images(5)
    run = engine_of(resnet, engine=engine)
    alone = run([one])[0][0]
    for place in range(4):
        batch = [*others[:place], one, *others[place:3]]
        assert np.array_equal(run(batch)[0][place], alone)


@pytest.mark.rotates(3)
@pytest.mark.parametrize("engine", ENGINES)
def test_batches_under_way_come_out_in_order(engine: str, resnet: Backbone) -> None:
    run = engine_of(resnet, engine=engine)
    batches = [images(1 + number % 4, seed=number) for number in range(3 * run.depth)]
    expected = [run(batch) for batch in batches]
    assert all(np.array_equal(one[0], other[0]) for one, other in zip(run.map(batches), expected, strict=True))


@pytest.mark.rotates(3)
def test_folding_leaves_no_batch_norm_and_the_network_as_it_was(resnet: Backbone) -> None:
    before = {name: value.clone() for name, value in resnet.module.state_dict().items()}
    copy = folded(resnet.module)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in copy.modules())
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in resnet.module.modules())
    assert all(torch.equal(value, before[name]) for name, value in resnet.module.state_dict().items())


@pytest.mark.rotates(3)
@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_engine_bf16_leaves_the_backbone_in_fp32(name: str) -> None:
    """Also layers that have no BatchNorm behind them."""
    backbone = load_backbone(name, weights="random", transform={"resize": 64, "crop": 64})
    engine_of(backbone, engine="torch", precision="bf16")
    assert {parameter.dtype for parameter in backbone.module.parameters()} == {torch.float32}


@NEEDS_OPENVINO
def test_auto_means_openvino_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRECOMPUTE_ENGINE")
    plain = Asked(precision="fp32", device="cpu")
    assert first(plain).engine == "openvino"
    monkeypatch.setenv("PRECOMPUTE_ENGINE", "torch")
    assert first(plain).engine == "torch"
    assert any("PRECOMPUTE_ENGINE" in reason for reason in candidates(plain, Machine.here()).reasons)
    monkeypatch.setenv("PRECOMPUTE_ENGINE", "tensorflow")
    with pytest.raises(UsageError, match="tensorflow"):
        first(plain)


@pytest.mark.rotates(3)
def test_openvino_that_is_not_installed_is_named_with_its_install_line(
    photos: Path, precompute: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "precompute.engines.machine.find_spec", lambda name: None if name == "openvino" else find_spec(name)
    )
    monkeypatch.setitem(sys.modules, "openvino", None)  # whoever imports it fails
    command = ("extract", photos, "-b", "tiny", "-o", "a.h5")
    done = precompute(*command, "--engine", "openvino")
    assert done.returncode == 1
    assert "pip install 'precompute[openvino]'" in done.stderr
    monkeypatch.delenv("PRECOMPUTE_ENGINE")
    monkeypatch.delenv("PRECOMPUTE_PRECISION")
    done = precompute(*command)
    assert done.returncode == 0, done.stderr
    assert "Note: torch: OpenVINO, which is faster on a CPU, is not installed" in done.stderr


@NEEDS_OPENVINO
@pytest.mark.slow
def test_openvino_reports_to_nobody(tmp_path: Path, photos: Path) -> None:
    code = (
        "import sys\n"
        "told = []\n"
        "calls = ('socket.connect', 'socket.getaddrinfo')\n"
        "sys.addaudithook(lambda event, args: told.append(args) if event in calls else None)\n"
        "from precompute import extract\n"
        f"extract({str(photos)!r}, {str(tmp_path / 'a.h5')!r}, backbone='tiny', engine='openvino')\n"
        "import openvino\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
        "assert not told, told\n"
    )
    done = run_python(code, CI="")
    assert done.returncode == 0, done.stderr


def test_heavy_networks_run_in_smaller_batches() -> None:
    with torch.device("meta"):
        light, heavy = (build() for build in (torchvision.models.resnet50, torchvision.models.vit_b_16))
    assert default_batch("openvino", "cpu", heavy) < default_batch("openvino", "cpu", light)
    assert default_batch("openvino", "cpu", light) == default_batch("openvino", "cpu")


def test_a_gpu_is_not_openvinos(resnet: Backbone) -> None:
    with pytest.raises((UsageError, DeviceError)):
        first(Asked(precision="fp32", engine="openvino", device="cuda"))


@pytest.mark.rotates(3)
@NEEDS_OPENVINO
def test_what_is_compiled_is_kept_and_used_again(resnet: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = images(4)
    first = engine_of(resnet, engine="openvino", identity="a")(pictures)
    (blob,) = model_cache.folder().iterdir()
    before = blob.read_bytes()
    import precompute.engines.openvino as module

    monkeypatch.setattr(module, "_convert", None)  # whoever converts once more fails
    assert np.array_equal(engine_of(resnet, engine="openvino", identity="a")(pictures), first)
    with pytest.raises(TypeError):
        engine_of(resnet, engine="openvino", identity="b")
    assert blob.read_bytes() == before


@pytest.mark.rotates(3)
@NEEDS_OPENVINO
@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_kept_model_is_compiled_again(resnet: Backbone, damage: str) -> None:
    pictures = images(4)
    first = engine_of(resnet, engine="openvino", identity="a")(pictures)
    (blob,) = model_cache.folder().iterdir()
    data = bytearray(blob.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    blob.write_bytes({"cut": data[: len(data) // 2], "flip": data, "empty": b""}[damage])
    assert np.array_equal(engine_of(resnet, engine="openvino", identity="a")(pictures), first)
    assert model_cache.read(blob.stem) is not None


@pytest.mark.parametrize("kind", ["fifo", "device", "link", "folder", "loop", "sparse"])
def test_what_is_no_file_in_place_of_a_kept_model_is_not_read(tmp_path: Path, kind: str) -> None:
    """In a process of its own, which a FIFO would hold for good."""
    model_cache.write("a", b"whole")
    assert model_cache.read("a") is not None
    place = model_cache.folder() / "a.blob"
    place.rename(tmp_path / "whole")
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    elif kind == "sparse":
        with open(place, "wb") as file:
            file.truncate(2**40)
    else:
        place.symlink_to({"device": "/dev/zero", "link": str(tmp_path / "whole"), "loop": str(place)}[kind])
    code = "from precompute.engines import model_cache; print(model_cache.read('a'))"
    done = run_python(code, XDG_CACHE_HOME=os.environ["XDG_CACHE_HOME"])
    assert done.stdout == "None\n", done.stderr


@pytest.mark.rotates(4)
@NEEDS_OPENVINO
@pytest.mark.parametrize("contents", [b"\xff\xfe" * 5000, b"", b"<?xml version='1.0'?>", bytes(100_000)])
def test_a_kept_model_with_a_right_checksum_and_wrong_contents_is_compiled_again(
    resnet: Backbone, contents: bytes
) -> None:
    first = engine_of(resnet, engine="openvino", identity="a")
    (blob,) = model_cache.folder().iterdir()
    whole = model_cache.read(blob.stem)
    assert whole is not None and not first.notes
    text = whole.tobytes()  # it begins with what it was compiled for, which OpenVINO quotes in its message
    for wrong in (contents, text[:24] + b"\xff" * 8 + text[32:]):
        model_cache.write(blob.stem, wrong)
        engine = engine_of(resnet, engine="openvino", identity="a")
        assert "could not be used" in engine.notes[0]
        assert not engine_of(resnet, engine="openvino", identity="a").notes  # kept again


@NEEDS_OPENVINO
def test_code_of_the_users_is_never_kept(resnet: Backbone) -> None:
    engine_of(resnet, engine="openvino", identity=None)
    assert not model_cache.folder().exists()


@NEEDS_OPENVINO
def test_a_cache_folder_that_cannot_be_made_is_told(resnet: Backbone, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    engine = engine_of(resnet, engine="openvino", identity="a")
    assert "could not be kept" in engine.notes[0]


def test_only_the_last_used_models_stay() -> None:
    for number in range(model_cache.KEPT + 3):
        model_cache.write(str(number), bytes([number]))
        os.utime(model_cache.folder() / f"{number}.blob", ns=(0, number * 10**9))
        if number == model_cache.KEPT - 1:
            assert np.array_equal(model_cache.read("0"), [0])  # used, so it stays
    names = {path.stem for path in model_cache.folder().iterdir()}
    assert names == {"0", *(str(number) for number in range(4, model_cache.KEPT + 3))}


@NEEDS_OPENVINO
@pytest.mark.slow
def test_a_second_process_finds_the_compiled_model(tmp_path: Path, photos: Path) -> None:
    code = (
        "from precompute import extract\nextract({!r}, {!r}, backbone='resnet18', weights='random', engine='openvino')"
    )
    done = run_python(code.format(str(photos), str(tmp_path / "a.h5")))
    assert done.returncode == 0, done.stderr
    no_conversion = "import precompute.engines.openvino as module\nmodule._convert = None\n"
    done = run_python(no_conversion + code.format(str(photos), str(tmp_path / "b.h5")))
    assert done.returncode == 0, done.stderr
    one, other = open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "b.h5")
    assert np.array_equal(one.features(), other.features())


class Odd(torch.nn.Module):
    """A network that decides by its pixels what to do, which no tracer can follow, and one it cannot even run."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(pixels.mean(1)).abs()


def make_odd() -> torch.nn.Module:
    return Odd()


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield "test_engines:make_odd"


@pytest.mark.rotates(3)
@NEEDS_OPENVINO
def test_a_network_openvino_does_not_know_runs_in_torch_and_that_is_told(
    odd: str, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"backbone": odd, "transform": {"resize": 8, "crop": 8}}
    monkeypatch.delenv("PRECOMPUTE_ENGINE")
    result = extract(photos, tmp_path / "a.h5", **options)
    assert result.engine == "torch"
    assert "cannot convert" in result.why
    with pytest.raises(Exception, match="cannot convert") as caught:
        extract(photos, tmp_path / "b.h5", engine="openvino", **options)
    assert "--engine torch" in caught.value.hint


@pytest.mark.slow
def test_compiled_torch_gives_the_same_features(resnet: Backbone) -> None:
    pictures = images(4)
    choice = first(Asked(precision="fp32", engine="torch", batch_size=4, compile="on"))
    (got,) = make_engine(resnet.module, resnet.preprocess, choice, identity=None)(pictures)
    expected = eager(resnet, pictures)
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_gives_the_features_of_the_cpu(precision: str, resnet: Backbone) -> None:
    pictures = images(8)
    run = engine_of(resnet, device="cuda", precision=precision)
    run.start(pictures[:4])
    run.start(pictures[4:])
    got = np.concatenate([run.finish()[0], run.finish()[0]]).astype(float)
    least = 0.999999 if precision == "fp32" else 0.999
    assert cosine(got, eager(resnet, pictures).astype(float)).min() > least


@NEEDS_OPENVINO
@pytest.mark.slow
def test_signals_arrive_after_engines_have_come_and_gone() -> None:
    """OpenVINO sets up a stack for signal handlers with each of its cores, and frees it with the core."""
    code = """
import gc, os, signal, torch
from precompute import load_backbone
from precompute.engines.base import EngineChoice
from precompute.engines.devices import make_engine
backbone = load_backbone("tiny")
def engine():
    return make_engine(backbone.module, backbone.preprocess, EngineChoice("openvino", "cpu", "fp32", 2), identity=None)
first = engine()
second = engine()
del first
gc.collect()
del second
gc.collect()
told = []
signal.signal(signal.SIGTERM, lambda signum, frame: told.append(signum))
os.kill(os.getpid(), signal.SIGTERM)
assert told == [signal.SIGTERM]
"""
    done = run_python(code)
    assert done.returncode == 0, (done.returncode, done.stderr)
