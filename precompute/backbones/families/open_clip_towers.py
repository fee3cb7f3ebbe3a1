"""open_clip's image towers: built without the text tower, filled with weights that we have read, and their pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import nn

from precompute.backbones import weights as state_dicts
from precompute.backbones.checkpoints import StateDict
from precompute.backbones.families.timm_stages import stages
from precompute.backbones.meta import ParametersOnMeta
from precompute.errors import BackboneError, WeightsError
from precompute.inputs.images.transform import Transform

PREFIX = "open_clip:"
INSTALL = "pip install 'precompute[open_clip]'"
VISUAL = "visual."
"""In front of the names of the image tower's tensors, in the weights of a whole model."""

NEVER = {"timm_model_pretrained": False, "output_tokens": False, "patch_dropout": 0.0}
"""No weights of another's while a tower is built; the pooled features alone; nothing that serves training."""


@cache
def library() -> ModuleType:
    try:
        found = import_module("open_clip")  # without types of its own
    except ImportError as error:
        raise BackboneError(
            f"A backbone open_clip:MODEL/TAG needs open_clip_torch: {error}.", hint=f"Install it: {INSTALL}"
        ) from error
    return found


@dataclass(frozen=True)
class Tower:
    """What an image tower is built from.

    embed_dim: width of its output · vision: the values of open_clip's `vision_cfg` · quick_gelu: whether its own
    transformer has OpenAI's approximation of GELU; timm's networks never do · pictures: of its `preprocess_cfg`,
    without the size.
    """

    embed_dim: int
    vision: dict[str, Any]
    quick_gelu: bool
    pictures: dict[str, Any]

    @property
    def size(self) -> Any:
        """Of its pictures: a whole number, or height and width."""
        return self.vision.get("image_size", 224)

    @property
    def side(self) -> int | None:
        """The same where it is a square."""
        return square(self.size)

    @property
    def name(self) -> str:
        """What it is called where it has no name: kind and sizes."""
        trunk, layers = self.vision.get("timm_model_name"), self.vision.get("layers", 12)
        if trunk:
            return f"{trunk}-{self.embed_dim}"
        width = self.vision.get("width", 768)
        if isinstance(layers, tuple | list):
            return f"resnet-{'-'.join(map(str, layers))}-w{width}-{self.embed_dim}"
        return f"vit-l{layers}-w{width}-p{self.vision.get('patch_size', 16)}-{self.embed_dim}"

    def build(self) -> nn.Module:
        """In eval mode, with what torch fills it with. Raises BackboneError where the library cannot."""
        # The library offers whole models alone, and some of their text towers are downloads of their own.
        make = library().model._build_vision_tower
        try:
            tower: nn.Module = make(self.embed_dim, {**self.vision, **NEVER}, self.quick_gelu).eval()
        except Exception as error:  # of whatever class the library or timm raises
            raise BackboneError(
                f"open_clip cannot build the image tower {self.name}: {type(error).__name__}: {error}",
                hint="Use another release of open_clip_torch or timm, or another model.",
            ) from error
        return tower

    def on_meta(self) -> nn.Module:
        """Without memory for any tensor: to be looked at."""
        try:
            with ParametersOnMeta(), torch.device("meta"):
                return self.build()
        except BackboneError:  # some networks of timm's compute their sizes with tensors
            with ParametersOnMeta():
                return self.build()

    def random(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
            torch.manual_seed(seed)
            return self.build()

    def filled(self, state: StateDict, path: str, name: str) -> tuple[nn.Module, tuple[str, ...]]:
        """With the image tower's part of `state`, all of it, in fp32; and notes. Raises WeightsError."""
        with ParametersOnMeta(), torch.random.fork_rng(devices=[]):
            tower = self.build()
        state = visual_part(state, tower)
        notes = state_dicts.fit_into(tower, state, source=path, model_name=name, find_classifier=no_classifier)
        return tower, notes

    def transform(self, name: str) -> Transform:
        """open_clip's preprocessing of a picture as ours. Raises BackboneError where ours cannot do the same."""
        side = self.side
        if side is None:
            raise _other_pictures(name, f"pictures of {self.size} pixels, which are no squares")
        given = self.pictures
        mode, interpolation = given.get("resize_mode") or "shortest", given.get("interpolation") or "bicubic"
        if mode not in ("shortest", "squash"):
            raise _other_pictures(name, f"pictures with resize_mode {mode!r}, which precompute does not have")
        if interpolation not in ("bicubic", "bilinear", "random"):
            raise _other_pictures(name, f"pictures with interpolation {interpolation!r}, which open_clip does not have")
        constants = library().constants
        mean, std = given.get("mean"), given.get("std")
        return Transform(
            resize=side,
            crop=side,
            interpolation="bilinear" if interpolation == "bilinear" else "bicubic",  # the library's reading of random
            mean=_triple(mean, constants.OPENAI_DATASET_MEAN),
            std=_triple(std, constants.OPENAI_DATASET_STD),
            squash=mode == "squash",
        )


def square(size: Any) -> int | None:
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    return int(sides[0]) if len(sides) == 2 and sides[0] == sides[1] else None


def _triple(value: Any, default: tuple[float, float, float]) -> Any:
    if value is None:
        return default
    return (value, value, value) if isinstance(value, int | float) else value


def _other_pictures(name: str, what: str) -> BackboneError:
    return BackboneError(
        f"{name} takes {what}.", hint="Give it in your own factory, with a Preprocess: package.module:factory."
    )


def visual_part(state: StateDict, tower: nn.Module) -> StateDict:
    """What belongs to the image tower, of the weights of a whole model or of the tower alone."""
    wanted = tower.state_dict()
    whole = state_dicts.without_prefix(state, {f"{VISUAL}{name}": value for name, value in wanted.items()})
    inside = {name.removeprefix(VISUAL): value for name, value in whole.items() if name.startswith(VISUAL)}
    return inside or state


def check_size(tower: Tower, state: StateDict, where: str) -> None:
    """Raise WeightsError, before memory is taken for it, where a network has more values than its file."""
    there = sum(one.numel() for one in state.values())
    side, patch = tower.side or 0, tower.vision.get("patch_size") or 16
    wanted = 0
    if not tower.vision.get("timm_model_name") and not isinstance(tower.vision.get("layers"), tuple | list):
        wanted = (side // patch) ** 2 * tower.vision.get("width", 768)  # its positions, which are made in NumPy
    if wanted <= there:
        wanted = sum(one.numel() for one in tower.on_meta().parameters())
    if wanted > there:
        raise WeightsError(
            f"{where} describes an image tower of at least {wanted:,} values, and the weights hold {there:,}.",
            hint="Use a folder saved by open_clip.",
        )


def blocks_of(tower: nn.Module) -> list[str]:
    """The blocks of its transformer, the layers of its ResNet, the stages of timm's networks."""
    if (trunk := getattr(tower, "trunk", None)) is not None:
        return [f"trunk.{name}" for name in stages(trunk)]
    if (transformer := getattr(tower, "transformer", None)) is not None:
        return [f"transformer.resblocks.{number}" for number in range(len(transformer.resblocks))]
    return [name for name in ("layer1", "layer2", "layer3", "layer4") if hasattr(tower, name)]


def no_classifier(model: nn.Module) -> str:  # noqa: ARG001
    raise BackboneError("An image tower of open_clip's has no classifier.", hint="Use its output.")
