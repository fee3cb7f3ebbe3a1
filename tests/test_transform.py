"""The transform: what it is called in the key, and that its pixels are those of torchvision's preset."""

from __future__ import annotations

import itertools
import json
import resource

import numpy as np
import pytest
import torch
import torchvision
from conftest import make_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.models import get_model_weights, list_models
from torchvision.transforms import InterpolationMode, functional
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.v2 import functional as functional_v2

from precompute.errors import BackboneError
from precompute.inputs.images.transform import INTERPOLATIONS, MAX_SIDE, Transform

SIZES = ((40, 32), (31, 47), (16, 16), (5, 9), (100, 33), (1, 1), (64, 3))
SHAPES = ((16, 16), (20, 16), (17, 24), (64, 50))  # resize, crop; where crop > resize torchvision pads with black


def preset_pixels(image: Image.Image, transform: Transform) -> torch.Tensor:
    """The 8-bit steps of torchvision's own preset: with mean 0 and std 1 it gives pixels / 255."""
    preset = ImageClassification(
        crop_size=transform.crop,
        resize_size=transform.resize,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        interpolation=InterpolationMode(transform.interpolation),
    )
    return preset(image).mul(255).round().to(torch.uint8)


numbers = st.floats(-1e5, 1e5, allow_nan=False)
sides = st.integers(1, MAX_SIDE)
positive = st.floats(1e-6, 1e5)


@given(
    st.builds(
        Transform,
        sides,
        sides,
        st.sampled_from(INTERPOLATIONS),
        st.tuples(numbers, numbers, numbers),
        st.tuples(positive, positive, positive),
        st.booleans(),
    )
)
def test_spec_is_json_and_comes_back_the_same(transform: Transform) -> None:
    assert Transform.from_spec(json.loads(json.dumps(transform.spec()))) == transform


def test_whole_numbers_and_lists_name_the_same_transform() -> None:
    same = Transform(mean=[0, 0, 0], std=(1, 1, 1))  # type: ignore[arg-type]
    assert same == Transform(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert json.dumps(same.spec()) == json.dumps(Transform(mean=(0.0,) * 3, std=(1.0,) * 3).spec())  # type: ignore[arg-type]


def test_fast_decode_is_in_the_key_only_where_it_is_on() -> None:
    """A cache from before there was a choice keeps its key."""
    assert "fast_decode" not in Transform().spec()
    assert Transform(fast_decode=True).spec() == {**Transform().spec(), "fast_decode": True}


@pytest.mark.parametrize("name", list_models(module=torchvision.models))
def test_every_torchvision_preset_is_understood(name: str) -> None:
    for entry in get_model_weights(name):
        preset = entry.transforms()
        transform = Transform.from_preset(preset)
        assert [transform.resize] == preset.resize_size
        assert [transform.crop] == preset.crop_size
        assert transform.interpolation == preset.interpolation.value
        assert (list(transform.mean), list(transform.std)) == (list(preset.mean), list(preset.std))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("resize", 0),
        ("resize", MAX_SIDE + 1),
        ("crop", 224.0),
        ("crop", "224"),
        ("crop", -1),
        ("interpolation", "cubic"),
        ("mean", (0.5, 0.5)),
        ("mean", (0.5, 0.5, float("nan"))),
        ("mean", 0.5),
        ("mean", "abc"),
        ("std", (1.0, 0.0, 1.0)),
        ("std", (1.0, -1.0, 1.0)),
        ("std", (1.0, float("inf"), 1.0)),
        ("fast_decode", 1),
        ("fast_decode", "yes"),
    ],
)
def test_bad_values_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(BackboneError, match=rf"{name} must be .*Got"):
        Transform(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "spec", [{}, {"resize": 1}, {**Transform().spec(), "mean": 7}, {**Transform().spec(), "std": []}]
)
def test_a_stored_transform_that_makes_no_sense_is_refused(spec: dict[str, object]) -> None:
    with pytest.raises(BackboneError, match="cannot be understood"):
        Transform.from_spec(spec)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", SIZES)
def test_pil_path_equals_the_preset_bit_for_bit(interpolation: str, size: tuple[int, int]) -> None:
    image = make_image(7, size)
    for resize, crop in SHAPES:
        transform = Transform(resize, crop, interpolation)
        if max(transform.resized(*size)) <= 4 * max(resize, crop):
            assert torch.equal(transform.apply_pil(image), preset_pixels(image, transform))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", SIZES[:-1])
def test_tensor_path_is_within_one_grey_level(interpolation: str, size: tuple[int, int]) -> None:
    image = make_image(3, size)
    for resize, crop in SHAPES:
        transform = Transform(resize, crop, interpolation)
        given = transform.apply_tensor(functional.pil_to_tensor(image)).int()
        assert given.shape == (3, crop, crop)
        assert (given - preset_pixels(image, transform).int()).abs().max() <= 1


@pytest.mark.rotates(3)
@settings(max_examples=300, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    resize=st.integers(1, 70),
    crop=st.integers(1, 70),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_what_is_left_out_of_the_resize_does_not_show(
    width: int, height: int, resize: int, crop: int, interpolation: str
) -> None:
    """The oracle resizes the whole picture and then cuts."""
    transform = Transform(resize, crop, interpolation)
    image = torch.from_numpy(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))
    image = image.permute(2, 0, 1)
    across, down = transform.resized(width, height)
    whole = interpolate(image[None], size=(down, across), mode=interpolation, antialias=True)[0]
    expected = functional_v2.center_crop(whole, [crop, crop])
    assert torch.equal(transform.apply_tensor(image), expected)
    assert torch.equal(transform.apply_tensor(image.contiguous()), expected)


def test_the_result_of_the_tensor_path_is_new_memory() -> None:
    """What it is made from may be overwritten by the next picture, also where nothing had to be resized."""
    for size in (16, 40):
        image = torch.full((size, size, 3), 7, dtype=torch.uint8)
        pixels = Transform(16, 16).apply_tensor(image.permute(2, 0, 1))
        image.fill_(0)
        assert (pixels == 7).all()


def test_resized_is_what_torchvision_makes() -> None:
    for width, height in itertools.product((1, 2, 37, 100, 333), repeat=2):
        assert Transform(24, 24).resized(width, height) == functional.resize(Image.new("L", (width, height)), [24]).size


@settings(max_examples=60, deadline=None)
@given(
    short=st.integers(2, 12),
    long=st.integers(150, 400),
    resize=st.integers(4, 9),
    crop=st.integers(4, 9),
    upright=st.booleans(),
    interpolation=st.sampled_from(["bilinear", "bicubic", "lanczos", "hamming"]),
)
def test_long_strips_equal_the_plain_way(
    short: int, long: int, resize: int, crop: int, upright: bool, interpolation: str
) -> None:
    """Only their middle is computed, which must not show: two grey levels, since both ways round to 8 bits twice."""
    # Away from black and white, where bicubic overshoots and what is cut off depends on the order of the two passes
    image = make_image(short, (short, long) if upright else (long, short)).point(lambda value: 64 + value // 2)
    transform = Transform(resize, crop, interpolation)
    assert (transform.apply_pil(image).int() - preset_pixels(image, transform).int()).abs().max() <= 2


@pytest.mark.parametrize("interpolation", ["nearest", "box"])
def test_long_strips_take_the_same_pixel_or_its_neighbour(interpolation: str) -> None:
    """Where the grid falls between two pixels, rounding decides which is nearest."""
    ramp = Image.fromarray(np.tile(np.arange(250, dtype=np.uint8), (3, 1))).convert("RGB")
    transform = Transform(5, 4, interpolation)
    assert (transform.apply_pil(ramp).int() - preset_pixels(ramp, transform).int()).abs().max() <= 1


@pytest.mark.parametrize("size", [(100_000, 1), (1, 100_000)])
def test_a_strip_of_100_000_pixels_takes_little_memory(size: tuple[int, int]) -> None:
    """The plain way would make an image of 224 x 22,400,000 pixels of it, 20 GB."""
    ramp = np.linspace(0, 255, 100_000).astype(np.uint8).reshape(size[::-1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = Transform().apply_pil(Image.fromarray(ramp).convert("RGB"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert pixels.shape == (3, 224, 224)
    assert (pixels.int() - 127).abs().max() <= 1  # the middle of the ramp
