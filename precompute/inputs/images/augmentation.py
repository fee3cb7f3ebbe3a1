"""What makes the views of a picture: crops, flips, colours, and transforms of the user's own.

View k follows from the picture's SHA-256, k and the settings alone: its draws come from its own generator, seeded
by SHA-256 of the two. So it does not matter which thread makes it, when, next to which others, or how often. Transforms
of the user's own come first, on the whole picture; then `crop`, or without it the plain resize and centre crop; then
`flip` and `color`, on what is left.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from precompute.errors import UsageError
from precompute.inputs.images.own_transform import OwnTransform
from precompute.inputs.images.picture import Picture
from precompute.inputs.images.transform import Transform
from precompute.system import release_of
from precompute.system.code import is_code

if TYPE_CHECKING:
    import torch

BUILT_IN = ("crop", "flip", "color")
DRAWS = "sha256, mt19937, 1"
"""Part of the key; its number goes up where the same settings come to give other views."""

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of torchvision's RandomResizedCrop, as are the next
CROP_TRIES = 10
FLIPPED = 0.5
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}  # of BYOL and DINO, there for 0.8 of views
MAX_VIEWS = 1024


@dataclass(frozen=True)
class Augmentation:
    """Which of the built-in steps are taken, and transforms of the user's own, in their order."""

    built_in: frozenset[str]
    own: tuple[OwnTransform, ...] = ()

    @classmethod
    def of(cls, names: Sequence[str]) -> Augmentation:
        """By the names of its steps. Raises UsageError for a name that is none, named twice, or code that fails."""
        if twice := sorted({name for name in names if list(names).count(name) > 1}):
            raise UsageError(f"The augmentation {twice[0]!r} is named twice.", hint="See --augment.")
        unknown = [name for name in names if not is_code(name) and name not in BUILT_IN]
        if unknown or not names:
            raise UsageError(
                f"augment must name some of {', '.join(BUILT_IN)}, or transforms as package.module:name. "
                f"Got {', '.join(map(repr, unknown)) or 'nothing'} instead.",
                hint="For example --augment flip,crop,color.",
            )
        own = tuple(OwnTransform.load(name) for name in names if is_code(name))
        return cls(frozenset(name for name in names if not is_code(name)), own)

    def spec(self) -> dict[str, Any]:
        """JSON-ready: everything that a view follows from, next to the picture and its number. Part of the key."""
        steps: list[dict[str, Any]] = [one.spec() for one in self.own]
        if "crop" in self.built_in:
            steps.append({"name": "crop", "scale": list(SCALE), "ratio": list(RATIO)})
        if "flip" in self.built_in:
            steps.append({"name": "flip", "probability": FLIPPED})
        if "color" in self.built_in:
            steps.append({"name": "color", **JITTER, "torchvision": release_of("torchvision")})
        return {"draws": DRAWS, "steps": steps}

    @property
    def _cropped_already(self) -> OwnTransform | None:
        """The transform of the user's own that leaves nothing to crop."""
        last = self.own[-1] if self.own and "crop" not in self.built_in else None
        return last if last is not None and last.size is not None else None

    def check_size(self, crop: int) -> None:
        """Raise UsageError where a transform of the user's own crops to another size than the network's."""
        one = self._cropped_already
        if one is not None and one.size is not None and one.size != (crop, crop):
            height, width = one.size
            raise UsageError(
                f"The transform {one.name} crops to {height} x {width} pixels, and the network takes {crop} x {crop}.",
                hint=f"Let it crop to {crop}, or not crop at all, or add crop: --augment {one.name},crop.",
            )

    def view(self, picture: Picture, transform: Transform, digest: bytes, number: int) -> torch.Tensor:
        """View `number`, from 1 on, of a picture whose bytes have this SHA-256; (3, crop, crop) uint8.

        Raises UsageError where a transform of the user's own fails.
        """
        from torchvision.transforms.v2 import functional

        seed = hashlib.sha256(b"precompute view\0" + digest + number.to_bytes(8, "little")).digest()
        draw = Random(int.from_bytes(seed, "little")).random  # the one method whose numbers never change
        for place, one in enumerate(self.own):
            picture = Picture(one(picture.whole(), hashlib.sha256(seed + place.to_bytes(8, "little")).digest()))
        if "crop" in self.built_in:
            found = random_crop(picture.pixels, transform, draw)
        elif self._cropped_already is not None:
            found = _of_size(picture.pixels, transform.crop, self._cropped_already.name)
        else:
            found = picture.plain(transform)
        if "flip" in self.built_in and draw() < FLIPPED:
            found = functional.horizontal_flip(found)
        return color_jitter(found, draw) if "color" in self.built_in else found


def augment_names(augment: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names of steps, given as "flip,crop" or one by one."""
    parts = augment.split(",") if isinstance(augment, str) else augment or ()
    return tuple(name.strip() if isinstance(name, str) else repr(name) for name in parts)


def check_views(views: int, augment: Sequence[str]) -> None:
    """Raise UsageError for a number of views out of range, and where there is nothing to make them of."""
    if isinstance(views, bool) or not isinstance(views, int) or not 1 <= views <= MAX_VIEWS:
        raise UsageError(
            f"views must be a whole number from 1 to {MAX_VIEWS}. Got {views!r} instead.", hint="See --views."
        )
    if views > 1 and not augment:
        raise UsageError(
            f"{views} views of a picture need something to make them of.", hint="For example --augment flip,crop,color."
        )
    if augment and views == 1:
        raise UsageError(
            "One view is the plain one, so augment would have no effect.", hint="Use more: --views 8, or leave it out."
        )


def random_crop(pixels: Any, transform: Transform, draw: Any) -> torch.Tensor:
    """torchvision's RandomResizedCrop by the numbers from 0 to 1 that `draw()` gives; (3, crop, crop) uint8.

    In memory of its own.
    """
    import torch
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    height, width = functional.get_size(pixels)
    top, left, rows, columns = crop_box(height, width, draw)
    if isinstance(pixels, torch.Tensor) and transform.interpolation not in ("nearest", "bilinear", "bicubic"):
        pixels = functional.to_pil_image(pixels.cpu())  # tensors know no other filters
    size = [transform.crop, transform.crop]
    mode = InterpolationMode(transform.interpolation)
    made = functional.resized_crop(pixels, top, left, rows, columns, size, mode, antialias=True)
    found: torch.Tensor = made if isinstance(made, torch.Tensor) else functional.pil_to_tensor(made)
    # A part that has the size already is handed on as it is, in memory that the next picture is decoded into
    return found.clone() if (rows, columns) == (transform.crop, transform.crop) else found


def crop_box(height: int, width: int, draw: Any) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random part: RandomResizedCrop.get_params."""
    for _ in range(CROP_TRIES):
        area = height * width * between(*SCALE, draw)
        ratio = math.exp(between(math.log(RATIO[0]), math.log(RATIO[1]), draw))
        columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            return whole_below(height - rows + 1, draw), whole_below(width - columns + 1, draw), rows, columns
    rows, columns = height, width  # the middle, of the nearest ratio
    if width / height < RATIO[0]:
        rows = max(1, min(height, round(width / RATIO[0])))
    elif width / height > RATIO[1]:
        columns = max(1, min(width, round(height * RATIO[1])))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def color_jitter(pixels: torch.Tensor, draw: Any) -> torch.Tensor:
    """torchvision's ColorJitter of the strengths JITTER: four changes in a random order."""
    from torchvision.transforms.v2 import functional

    changes = list(JITTER)
    for place in range(len(changes) - 1, 0, -1):  # Fisher and Yates
        other = whole_below(place + 1, draw)
        changes[place], changes[other] = changes[other], changes[place]
    for name in changes:
        middle = 0.0 if name == "hue" else 1.0
        factor = between(middle - JITTER[name], middle + JITTER[name], draw)
        pixels = getattr(functional, f"adjust_{name}")(pixels, factor)
    return pixels


def between(low: float, high: float, draw: Any) -> float:
    return low + (high - low) * float(draw())


def whole_below(limit: int, draw: Any) -> int:
    """A whole number from 0 to limit - 1."""
    return min(limit - 1, int(limit * float(draw())))


def _of_size(pixels: Any, crop: int, name: str) -> torch.Tensor:
    if tuple(pixels.shape) != (3, crop, crop):
        raise UsageError(
            f"The transform {name} crops some pictures to {crop} x {crop}, and another to {tuple(pixels.shape)[1:]}.",
            hint="Let it crop each picture to that size, or none: then it is resized and cropped as the plain view is.",
        )
    found: torch.Tensor = pixels
    return found
