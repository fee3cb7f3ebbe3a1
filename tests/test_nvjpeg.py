"""Decoding on the device. Without a GPU torchvision's decoder of the CPU takes nvJPEG's place: all but the kernels."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_image
from PIL import Image

from precompute import extract, load_backbone, open_cache
from precompute.errors import BackboneError, DeviceError, SampleError
from precompute.inputs.images import nvjpeg
from precompute.inputs.images.preprocess import ImagePreprocess
from precompute.inputs.images.transform import Transform

SIDE = {"resize": 40, "crop": 32}
LEVELS = {"cpu": {"4:4:4": 1, "4:2:0": 1}, "cuda": {"4:4:4": 3, "4:2:0": 24}}
"""Of grey, from the pixels of the CPU. nvJPEG enlarges subsampled chroma without smoothing it; libjpeg-turbo's plain
enlargement is up to 18 levels from its smooth one before the resize, in these pictures."""
HERE = torch.cuda.is_available()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not HERE, reason="needs a CUDA device"))])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(nvjpeg, "DEVICE", request.param)
    with nvjpeg.quiet():  # as around a run
        yield request.param
    nvjpeg._check_decodes.cache_clear()


def jpeg_of(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def levels(one: torch.Tensor, other: torch.Tensor) -> int:
    return int((one.int() - other.int()).abs().max())


@pytest.mark.skipif(HERE, reason="needs a machine without a CUDA device")
def test_without_a_device_it_is_refused_before_anything_is_made(photos: Path, tmp_path: Path, precompute: Any) -> None:
    with pytest.raises(DeviceError, match="needs a CUDA device") as caught:
        extract(photos, tmp_path / "a.h5", backbone="tiny", transform={"decoder": "nvjpeg"})
    assert "--decoder cpu" in caught.value.hint
    done = precompute("extract", photos, "-b", "tiny", "--decoder", "nvjpeg", "-o", tmp_path / "a.h5")
    assert done.returncode == 1
    assert "nvjpeg" in done.stderr
    assert not list(tmp_path.glob("a.h5*"))


def test_names_that_are_none_and_what_does_not_go_together() -> None:
    with pytest.raises(BackboneError, match="decoder must be one of cpu, nvjpeg"):
        Transform(decoder="turbo")
    with pytest.raises(BackboneError, match="fast_decode"):
        Transform(decoder="nvjpeg", fast_decode=True)


def test_the_key_tells_decoders_apart_and_leaves_that_of_old_files(device: str) -> None:
    plain, other = Transform(), Transform(decoder="nvjpeg")
    assert plain.spec()["decoder"] == "pillow, jpeg resized by torch, 1"
    assert other.spec()["decoder"].startswith("nvjpeg")
    assert Transform.from_spec(other.spec()) == other
    assert Transform.from_spec(plain.spec()) == plain
    model = load_backbone("tiny", transform={"decoder": "nvjpeg"})
    assert model.preprocess.spec() != load_backbone("tiny").preprocess.spec()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(80, 60), (61, 97), (20, 90)])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("chroma", ["4:4:4", "4:2:0"])
def test_pixels_are_near_those_of_the_cpu(
    mode: str, size: tuple[int, int], progressive: bool, chroma: str, device: str
) -> None:
    data = jpeg_of(make_image(3, size).convert(mode), quality=92, progressive=progressive, subsampling=chroma)
    (ours,) = ImagePreprocess(Transform(**SIDE)).host(data)
    (theirs,) = ImagePreprocess(Transform(**SIDE, decoder="nvjpeg")).host(data)
    assert theirs.device.type == "cpu"
    assert theirs.is_contiguous()
    assert levels(ours, theirs) <= LEVELS[device]["4:4:4" if mode == "L" else chroma]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation: int, device: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg_of(make_image(5, (90, 64)), quality=92, exif=exif.tobytes(), subsampling="4:4:4")
    (ours,) = ImagePreprocess(Transform(**SIDE)).host(data)
    (theirs,) = ImagePreprocess(Transform(**SIDE, decoder="nvjpeg")).host(data)
    assert levels(ours, theirs) <= LEVELS[device]["4:4:4"]


def test_what_is_no_plain_jpeg_is_decoded_as_ever(device: str) -> None:
    preprocess, plain = ImagePreprocess(Transform(**SIDE, decoder="nvjpeg")), ImagePreprocess(Transform(**SIDE))
    stream = io.BytesIO()
    make_image(1, (70, 70)).save(stream, "PNG")
    for data in (stream.getvalue(), jpeg_of(make_image(1, (70, 70)).convert("CMYK"))):
        assert torch.equal(preprocess.host(data)[0], plain.host(data)[0])


def test_a_picture_beyond_the_limit_is_left_to_the_cpu(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess, plain = ImagePreprocess(Transform(**SIDE, decoder="nvjpeg")), ImagePreprocess(Transform(**SIDE))
    monkeypatch.setattr(nvjpeg, "MOST_PIXELS", 70 * 70 - 1)
    monkeypatch.setattr(nvjpeg, "_decoded", None)  # would fail
    data = jpeg_of(make_image(1, (70, 70)))
    assert torch.equal(preprocess.host(data)[0], plain.host(data)[0])


def test_threads_share_batches_and_each_gets_its_own(device: str) -> None:
    files = [jpeg_of(make_image(number, (64 + number % 7, 60)), quality=90) for number in range(64)]
    files[20] = files[20][:200] + b"\xff\xd9"  # of which neither decoder makes a picture
    preprocess = ImagePreprocess(Transform(**SIDE, decoder="nvjpeg"))

    def one(data: bytes) -> torch.Tensor | SampleError:
        try:
            return preprocess.host(data)[0]
        except SampleError as error:
            return error

    alone = [one(data) for data in files]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(one, files))
    assert isinstance(alone[20], SampleError)
    assert isinstance(together[20], SampleError)
    del alone[20], together[20]
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_a_failing_device_is_no_fault_of_the_file(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess = ImagePreprocess(Transform(**SIDE, decoder="nvjpeg"))

    def fails(files: list[bytes]) -> list[torch.Tensor]:
        raise RuntimeError("Error while decoding JPEG images: Failed to decode batch: 6")

    monkeypatch.setattr(nvjpeg, "_decoded", fails)
    with pytest.raises(DeviceError, match="nvJPEG fails"):
        preprocess.host(jpeg_of(make_image(1, (70, 70))))


def test_a_run_and_its_key(photos: Path, tmp_path: Path, device: str) -> None:
    extract(photos, tmp_path / "a.h5", backbone="tiny", precision="fp32")
    extract(photos, tmp_path / "b.h5", backbone="tiny", precision="fp32", transform={"decoder": "nvjpeg"})
    ours, theirs = open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "b.h5")
    assert ours.key != theirs.key
    one, other = (np.asarray(cache.features()[:]).astype(np.float64) for cache in (ours, theirs))
    assert np.linalg.norm(one - other) / np.linalg.norm(one) < 0.02
