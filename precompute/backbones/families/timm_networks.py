"""timm's networks without their classifier: built, filled with weights that we have read, and their preprocessing."""

from __future__ import annotations

import inspect
import math
import re
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from precompute.backbones.checkpoints import StateDict, identity_of
from precompute.backbones.families.base import Loaded
from precompute.backbones.meta import ParametersOnMeta
from precompute.errors import BackboneError, WeightsError
from precompute.inputs.images.transform import Transform

PREFIX = "timm:"
INSTALL = "pip install 'precompute[timm]'"
SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")
"""What a `pretrained_cfg` says of where weights lie. timm is never asked to load them from there."""


@cache
def library() -> ModuleType:
    try:
        import timm
        import timm.data
    except ImportError as error:
        raise BackboneError(f"A backbone timm:NAME needs timm: {error}.", hint=f"Install it: {INSTALL}") from error
    return timm


def tags(architecture: str) -> list[str]:
    """The names of the pretrained weights of one of timm's networks, the default one first."""
    models = library().models
    found = [one.partition(".")[2] for one in models.list_pretrained(f"{architecture}.*")]
    default = models.get_pretrained_cfg(architecture)
    first = default.tag if default is not None and default.tag in found else None
    return [*([first] if first else []), *(tag for tag in found if tag and tag != first)]


def settings_of(architecture: str, tag: str) -> dict[str, Any]:
    """timm's `pretrained_cfg`, without where the weights lie."""
    found = library().models.get_pretrained_cfg(f"{architecture}.{tag}" if tag else architecture)
    if found is None:
        raise BackboneError(
            f"timm does not describe the pictures that {architecture} takes.", hint="Use a folder: timm:./folder."
        )
    settings: dict[str, Any] = found.to_dict()
    return {name: value for name, value in settings.items() if name not in SOURCES}


def _create(architecture: str, settings: dict[str, Any], arguments: dict[str, Any], *, state: StateDict | None) -> Any:
    more = {} if state is None else {"state_dict": state}
    return library().create_model(
        architecture,
        pretrained=state is not None,
        pretrained_cfg={**settings, **more},
        num_classes=0,
        **arguments,
    )


def _of_images_alone(model: Any) -> Any:
    """`model`, whose forward takes images and nothing else, such as a mask, which a tracer would take for an input."""
    if len(inspect.signature(type(model).forward).parameters) > 2:
        kind: Any = type(model)
        model.__class__ = _kind_of_images_alone(kind)
    return model


@cache
def _kind_of_images_alone(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, x: torch.Tensor) -> Any:
        return kind.forward(self, x)

    # A tracer wraps functions in the globals of the forward that it begins with: those must be timm's.
    own = FunctionType(forward.__code__, kind.forward.__globals__, "forward", None, forward.__closure__)
    return type(kind.__name__, (kind,), {"forward": own, "__module__": kind.__module__})


def _built(architecture: str, settings: dict[str, Any], arguments: dict[str, Any]) -> nn.Module:
    try:
        model: nn.Module = _of_images_alone(_create(architecture, settings, arguments, state=None)).eval()
    except Exception as error:  # of whatever class a network's own code raises
        raise BackboneError(
            f"timm cannot build {architecture}: {type(error).__name__}: {error}",
            hint="Use another release of timm, or another model.",
        ) from error
    return model


def on_meta(architecture: str, settings: dict[str, Any], arguments: dict[str, Any]) -> nn.Module:
    try:
        with ParametersOnMeta():
            return _built(architecture, settings, arguments)
    except BackboneError:  # a few fill their parameters in a way that needs all of torch's own
        with torch.device("meta"):
            return _built(architecture, settings, arguments)


def random_network(architecture: str, seed: int, settings: dict[str, Any], arguments: dict[str, Any]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
        torch.manual_seed(seed)
        return _built(architecture, settings, arguments)


class _Filling(TorchFunctionMode):
    """While timm builds a network and fills it: which of its tensors are copied into. Initial values are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.filled: dict[int, torch.Tensor] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        module = getattr(function, "__module__", None)
        if module == "torch.nn.init" and function.__name__.endswith("_"):
            target = args[0] if args else (kwargs or {})["tensor"]
            if isinstance(target, nn.Parameter):
                return target
        if function is torch.Tensor.copy_:
            self.filled[id(args[0])] = args[0]  # kept, so that no other tensor gets its id
        return function(*args, **(kwargs or {}))


def with_state(
    name: str,
    architecture: str,
    settings: dict[str, Any],
    arguments: dict[str, Any],
    state: StateDict,
    source: dict[str, Any],
    file: dict[str, Any],
    *,
    also: tuple[str, ...] = (),
) -> Loaded:
    """The network with `state` by timm's own loading. Raises WeightsError where anything of it is not in the file.

    file: where `state` was read from, as it was before. also: further files that decide the network.
    """
    path, filling = file["path"], _Filling()
    with torch.random.fork_rng(devices=[]):
        try:
            with filling:
                model = _of_images_alone(_create(architecture, settings, arguments, state=state)).eval()
        except Exception as error:
            raise WeightsError(
                f"The weights {path} do not fit {architecture}: {_first_lines(error)}",
                hint="Check that the backbone's name (-b) is the one these weights were trained for.",
            ) from error
    model.pretrained_cfg.pop("state_dict", None)
    values = model.state_dict(keep_vars=True)
    missing = [
        key for key in values if id(values[key]) not in filling.filled and not key.endswith("num_batches_tracked")
    ]
    if missing:
        raise WeightsError(
            f"The weights {path} do not fit {architecture}: {len(missing)} missing: {', '.join(missing[:8])}"
            f"{', ...' if len(missing) > 8 else ''}",
            hint="Check that the backbone's name (-b) is the one these weights were trained for.",
        )
    return loaded(name, model, source, arguments, file=file, also=also)


def loaded(
    name: str,
    model: nn.Module,
    source: dict[str, Any],
    arguments: dict[str, Any] | None = None,
    *,
    notes: tuple[str, ...] = (),
    file: dict[str, Any] | None = None,
    also: tuple[str, ...] = (),
) -> Loaded:
    backend: dict[str, Any] = {"timm": str(library().__version__)}
    if arguments:
        backend["arguments"] = {key: list(one) if isinstance(one, tuple) else one for key, one in arguments.items()}
    if also:
        others = [identity_of(one) for one in also]
        file = {**(file or others[0]), "also": others if file else others[1:]}
    return Loaded(name, model, source, transform_of(model, name), notes, file, {"backend": backend})


def transform_of(model: nn.Module, name: str) -> Transform:
    """The preprocessing that `timm.data.resolve_model_data_config` gives, as ours.

    Raises BackboneError where ours cannot do the same.
    """
    config: dict[str, Any] = library().data.resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    mode, interpolation = config.get("crop_mode") or "center", config["interpolation"]
    if channels != 3 or height != width:
        raise _other_pictures(name, f"{channels} channels of {height} x {width} pixels, not RGB squares")
    if mode not in ("center", "squash"):
        raise _other_pictures(name, f"its pictures with crop_mode {mode!r}, which precompute does not have")
    return Transform(
        resize=math.floor(height / (config["crop_pct"] or 0.875)),
        crop=height,
        interpolation=interpolation,
        mean=config["mean"],
        std=config["std"],
        squash=mode == "squash",
    )


def _other_pictures(name: str, what: str) -> BackboneError:
    return BackboneError(
        f"{name} takes {what}.", hint="Give it in your own factory, with a Preprocess: package.module:factory."
    )


def random_note(model: nn.Module) -> str:
    tag = getattr(model, "pretrained_cfg", {}).get("tag")
    return f"weights are random; the transform is that of timm's {tag or 'settings for it'}"


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"\s+", " ", f"{type(error).__name__}: {' '.join(lines[:3])}")[:500]


def width_of(model: nn.Module) -> int | None:
    """Of what a network without classifier gives, as timm says."""
    width = getattr(model, "head_hidden_size", None) or getattr(model, "num_features", None)
    return int(width) if width is not None else None
