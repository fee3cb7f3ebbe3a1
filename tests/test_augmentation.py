"""What makes the views of a picture: a view follows from the picture's SHA-256, its number and the settings alone."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_image
from reference import real_photo
from test_decode import encoded
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from precompute.errors import SampleError, UsageError
from precompute.inputs.images import augmentation
from precompute.inputs.images.augmentation import Augmentation, augment_names, check_views, color_jitter, crop_box
from precompute.inputs.images.preprocess import ImagePreprocess
from precompute.inputs.images.transform import Transform

TRANSFORM = Transform(resize=40, crop=32)
ALL = ("flip", "crop", "color")


def views_of(raw: bytes, names: tuple[str, ...] = ALL, views: int = 5, transform: Transform = TRANSFORM) -> list[bytes]:
    made = ImagePreprocess(transform, views, Augmentation.of(names)).all_views(raw)
    return [pixels.numpy().tobytes() for (pixels,) in made]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file `mine.py` of the current folder, from which transforms can be named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path / "mine.py"
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("names", [("flip",), ("crop",), ("color",), ALL], ids=",".join)
def test_view_0_is_the_plain_one_and_the_others_do_not_depend_on_how_many_there_are(names: tuple[str, ...]) -> None:
    raw = real_photo()
    (plain,) = ImagePreprocess(TRANSFORM).host(raw)
    five = views_of(raw, names)
    assert five[0] == plain.numpy().tobytes()
    assert views_of(raw, names, 3) == five[:3]
    preprocess = ImagePreprocess(TRANSFORM, 5, Augmentation.of(names))
    assert [preprocess.host(raw, view)[0].numpy().tobytes() for view in range(5)] == five
    assert len(set(five)) == (2 if names == ("flip",) else 5)


def test_the_order_of_built_in_steps_does_not_matter_and_their_names_do() -> None:
    raw = real_photo()
    assert views_of(raw, ("color", "crop", "flip")) == views_of(raw)
    assert Augmentation.of(("color", "crop", "flip")).spec() == Augmentation.of(ALL).spec()
    assert views_of(raw, ("crop", "flip")) != views_of(raw)


def test_pictures_of_the_same_pixels_and_other_bytes_have_other_views() -> None:
    """Their SHA-256 differs, and a duplicate is the same file."""
    image = make_image(1, (80, 60))
    one, other = encoded(image, "PNG", compress_level=1), encoded(image, "PNG", compress_level=9)
    assert one != other
    assert views_of(one)[0] == views_of(other)[0]
    assert views_of(one)[1:] != views_of(other)[1:]


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_every_kind_of_picture_has_views(kind: str, mode: str) -> None:
    if (kind, mode) in {("JPEG", "RGBA"), ("JPEG", "P"), ("PNG", "CMYK")}:
        pytest.skip("no such files")
    assert len(set(views_of(encoded(make_image(2, (90, 70)).convert(mode), kind)))) == 5


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2), (32, 32)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pictures_of_any_size_have_views(kind: str, size: tuple[int, int]) -> None:
    assert len(views_of(encoded(make_image(3, size), kind))) == 5


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_every_interpolation_has_crops(kind: str, interpolation: str) -> None:
    transform = Transform(resize=40, crop=32, interpolation=interpolation)
    assert len(set(views_of(encoded(make_image(4, (90, 70)), kind), ("crop",), 4, transform))) == 4


def test_one_broken_picture_fails_with_all_of_its_views() -> None:
    with pytest.raises(SampleError):
        views_of(real_photo()[:500])


@pytest.mark.slow
def test_threads_processes_and_the_order_make_no_difference() -> None:
    raws = [encoded(make_image(seed, (90, 70)), "JPEG" if seed % 2 else "PNG") for seed in range(12)]
    expected = [views_of(raw) for raw in raws]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(views_of, raws)) == expected
    assert [views_of(raw) for raw in reversed(raws)] == expected[::-1]
    code = (
        "from test_augmentation import *; raw = encoded(make_image(3, (90, 70)), 'JPEG'); "
        "print(hashlib.sha256(b''.join(views_of(raw))).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent, check=True
    )
    assert done.stdout.strip() == hashlib.sha256(b"".join(expected[3])).hexdigest()


def states() -> tuple[bytes, object, bytes]:
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), np.random.get_state()[1].tobytes()  # type: ignore[index, union-attr]


def test_no_generator_of_the_program_is_touched(module: Path) -> None:
    module.write_text("from torchvision.transforms import v2\nblur = v2.RandomErasing(p=1.0)\n")
    before = states()
    views_of(real_photo(), (*ALL, "mine:blur"))
    assert states() == before


# The steps


@pytest.mark.rotates(3)
def test_the_crop_box_has_the_areas_and_ratios_of_torchvisions() -> None:
    boxes = np.array([crop_box(300, 400, Random(seed).random) for seed in range(2000)])
    tops, lefts, heights, widths = boxes.T
    assert (tops >= 0).all() and (lefts >= 0).all()
    assert (tops + heights <= 300).all() and (lefts + widths <= 400).all()
    areas, ratios = heights * widths / 120_000, widths / heights
    assert 0.07 < areas.min() < 0.1 and 0.95 < areas.max() <= 1
    assert 0.74 < ratios.min() < 0.76 and 1.32 < ratios.max() < 1.35
    theirs = v2.RandomResizedCrop(8, scale=augmentation.SCALE, ratio=augmentation.RATIO)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = [theirs.make_params([torch.zeros(3, 300, 400)]) for _ in range(2000)]
    expected = np.array([[one[name] for name in ("top", "left", "height", "width")] for one in made])
    np.testing.assert_allclose(boxes.mean(axis=0), expected.mean(axis=0), rtol=0.06)
    np.testing.assert_allclose(boxes.std(axis=0), expected.std(axis=0), rtol=0.06)


@pytest.mark.parametrize("size", [(10, 1000), (1000, 10)])
def test_a_strip_is_cropped_in_the_middle_as_torchvision_does(size: tuple[int, int]) -> None:
    torch_box = v2.RandomResizedCrop(8, scale=(0.9, 0.9)).make_params([torch.zeros(3, *size)])
    expected = tuple(torch_box[name] for name in ("top", "left", "height", "width"))
    assert crop_box(*size, Random(0).random) == expected


def test_a_crop_is_that_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = encoded(make_image(5, (90, 70)), "PNG")
    monkeypatch.setattr(augmentation, "crop_box", lambda *_: (3, 5, 40, 50))
    (_, (view,)) = ImagePreprocess(TRANSFORM, 2, Augmentation.of(["crop"])).all_views(raw)
    image = functional.resized_crop(make_image(5, (90, 70)), 3, 5, 40, 50, [32, 32])
    assert torch.equal(view.permute(2, 0, 1), functional.pil_to_tensor(image))


@pytest.mark.parametrize("names", [("crop",), ("crop", "flip"), ALL], ids=",".join)
def test_a_view_is_memory_of_its_own(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the part that is cut out has the network's size: a thread decodes into the same memory again."""
    monkeypatch.setattr(augmentation, "crop_box", lambda *_: (1, 2, 32, 32))
    preprocess = ImagePreprocess(TRANSFORM, 6, Augmentation.of(names))
    made = preprocess.all_views(encoded(make_image(1, (80, 60)), "JPEG"))
    before = [pixels.numpy().tobytes() for (pixels,) in made]
    preprocess.all_views(encoded(make_image(2, (80, 60)), "JPEG"))
    assert [pixels.numpy().tobytes() for (pixels,) in made] == before


def test_flips_are_a_half_and_nothing_but_flips() -> None:
    made = ImagePreprocess(TRANSFORM, 400, Augmentation.of(["flip"])).all_views(real_photo())
    plain, flipped = made[0][0], made[0][0].flip(1)
    turned = [torch.equal(pixels, flipped) for (pixels,) in made[1:]]
    assert all(turn or torch.equal(pixels, plain) for turn, (pixels,) in zip(turned, made[1:], strict=True))
    assert 150 < sum(turned) < 250


def test_colors_change_by_four_steps_in_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for name in augmentation.JITTER:
        real = getattr(functional, f"adjust_{name}")

        def noted(image: torch.Tensor, factor: float, name: str = name, real: Any = real) -> Any:
            seen.append((name, factor))
            return real(image, factor)

        monkeypatch.setattr(functional, f"adjust_{name}", noted)
    pixels = torch.from_numpy(np.array(make_image(6))).permute(2, 0, 1)
    for seed in range(200):
        color_jitter(pixels, Random(seed).random)
    orders = {tuple(name for name, _ in seen[start : start + 4]) for start in range(0, 800, 4)}
    assert len(orders) == 24
    for name, strength in augmentation.JITTER.items():
        factors = [factor - (name != "hue") for one, factor in seen if one == name]
        assert -strength <= min(factors) < -0.9 * strength
        assert 0.9 * strength < max(factors) <= strength


# Transforms of the user's own


CROPPER = "v2.Compose([v2.RandomResizedCrop(32, antialias=True), v2.RandomHorizontalFlip()])"


@pytest.mark.parametrize(
    "code",
    [
        f"own = {CROPPER}",
        "own = v2.GaussianBlur(5, (0.5, 3.0))",
        "own = v2.ColorJitter(0.5)",
        "def own(image):\n    return image + torch.from_numpy(np.random.randint(0, 9, image.shape, dtype=np.uint8))",
        "def own(image):\n    return v2.functional.rotate(image, random.uniform(-30, 30))",
        "class own:\n    def __call__(self, image):\n        return image + torch.randint(0, 9, (1,)).byte()",
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_transform_of_ones_own_follows_from_the_seed_in_any_thread(module: Path, code: str, kind: str) -> None:
    module.write_text(
        f"import random\nimport numpy as np\nimport torch\nfrom torchvision.transforms import v2\n{code}\n"
    )
    preprocess = ImagePreprocess(TRANSFORM, 6, Augmentation.of(["mine:own"]))
    raws = [encoded(make_image(seed, (90, 70)), kind) for seed in range(8)]
    expected = [[pixels.numpy().tobytes() for (pixels,) in preprocess.all_views(raw)] for raw in raws]
    assert all(len(set(views)) > 1 for views in expected)
    torch.manual_seed(5)
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(preprocess.all_views, raws))
    assert [[pixels.numpy().tobytes() for (pixels,) in views] for views in again] == expected
    assert [views[0] for views in expected] == [
        ImagePreprocess(TRANSFORM).host(raw)[0].numpy().tobytes() for raw in raws
    ]


def test_it_gets_the_whole_picture_and_built_in_steps_follow(module: Path) -> None:
    module.write_text("seen = []\ndef own(image):\n    seen.append(tuple(image.shape))\n    return 255 - image\n")
    raw = encoded(make_image(7, (90, 70)), "PNG")
    preprocess = ImagePreprocess(TRANSFORM, 2, Augmentation.of(["mine:own"]))
    plain, inverse = (pixels for (pixels,) in preprocess.all_views(raw))
    assert sys.modules["mine"].seen[-1] == (3, 70, 90)
    assert (255 - plain.int() - inverse.int()).abs().max() <= 1  # it is resized after it
    cropped = ImagePreprocess(TRANSFORM, 2, Augmentation.of(["crop", "mine:own"])).all_views(raw)[1][0]
    assert not torch.equal(cropped, inverse)


def test_the_key_holds_what_a_transform_says_of_itself_and_the_library(module: Path) -> None:
    module.write_text("from torchvision.transforms import v2\nown = v2.GaussianBlur(5, (0.5, 3.0))\n")
    (step,) = Augmentation.of(["mine:own"]).spec()["steps"]
    assert step["name"] == "mine:own"
    assert "GaussianBlur(kernel_size=(5, 5)" in step["transform"]
    assert step["torchvision"].replace(".", "").isdecimal()
    module.write_text("def own(image):\n    return image\n")
    sys.modules.pop("mine")
    (step,) = Augmentation.of(["mine:own"]).spec()["steps"]
    assert step["transform"] == "<function own>"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("", "cannot be loaded: AttributeError"),
        ("own = 3", "is a int, which is not a transform"),
        ("def own(image):\n    return None", "Got NoneType instead"),
        ("def own(image):\n    return image / 255", r"Got torch.float32 \(3, 97, 160\) instead"),
        ("def own(image):\n    return image[:1]", "must give a picture"),
        ("def own(image):\n    raise KeyError('no')", "failed on a picture of 160 x 97 pixels: KeyError"),
        ("import os\ndef own(image):\n    return image * 0 + os.urandom(1)[0]", "two pictures for one seed"),
    ],
)
def test_what_is_no_transform_is_refused_before_anything_is_made(module: Path, code: str, message: str) -> None:
    module.write_text(f"{code}\n")
    with pytest.raises(UsageError, match=message):
        Augmentation.of(["mine:own"])


def test_one_that_crops_to_another_size_than_the_networks_is_refused(module: Path) -> None:
    module.write_text("from torchvision.transforms import v2\nown = v2.RandomCrop(40)\n")
    with pytest.raises(UsageError, match="crops to 40 x 40 pixels, and the network takes 32 x 32"):
        ImagePreprocess(TRANSFORM, 2, Augmentation.of(["mine:own"]))
    ImagePreprocess(TRANSFORM, 2, Augmentation.of(["mine:own", "crop"]))


def test_one_that_fails_on_a_picture_says_on_which_and_is_no_broken_sample(module: Path) -> None:
    module.write_text("def own(image):\n    assert image.shape[1] > 60, 'too low'\n    return image\n")
    preprocess = ImagePreprocess(TRANSFORM, 2, Augmentation.of(["mine:own"]))
    with pytest.raises(UsageError, match="failed on a picture of 40 x 50 pixels: AssertionError: too low"):
        preprocess.all_views(encoded(make_image(1, (40, 50)), "PNG"))


# What is asked for


@pytest.mark.parametrize(
    ("views", "augment", "message"),
    [
        (0, ["flip"], "from 1 to 1024"),
        (1025, ["flip"], "from 1 to 1024"),
        (2.0, ["flip"], "from 1 to 1024"),
        (True, [], "from 1 to 1024"),
        (8, [], "need something to make them of"),
        (1, ["flip"], "would have no effect"),
    ],
)
def test_views_that_make_no_sense_are_refused(views: int, augment: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_views(views, augment)


@pytest.mark.parametrize(
    ("names", "message"),
    [(["blur"], "Got 'blur'"), (["flip", "flip"], "named twice"), ([], "Got nothing"), ([""], "''")],
)
def test_steps_that_are_none_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Augmentation.of(names)


def test_names_are_given_with_commas_or_one_by_one() -> None:
    assert augment_names("flip, crop") == augment_names(["flip", "crop"]) == ("flip", "crop")
    assert augment_names(None) == ()
