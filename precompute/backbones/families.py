"""The networks by name: torchvision's classification models, the embedded `tiny`, and factories of the user's own."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.models import get_model, get_model_weights, list_models

from precompute.backbones.ngram_hash import NGRAM_HASH
from precompute.errors import BackboneError
from precompute.inputs.base import Preprocess
from precompute.system.code import current_folder_importable, is_code, load_attribute

TINY = "tiny"
Build = Callable[..., nn.Module]


def names() -> list[str]:
    """`tiny` and every torchvision classification model."""
    return [TINY, *list_models(module=torchvision.models)]


def is_factory(name: str) -> bool:
    """Whether `name` has the form `package.module:factory`."""
    return is_code(name)


def check_name(name: str) -> None:
    """Raise BackboneError, with close matches, where `name` is no backbone."""
    known = [*names(), NGRAM_HASH]
    if is_factory(name) or name in known:
        return
    close = difflib.get_close_matches(name.lower(), known, n=5, cutoff=0.5)
    also = f" Close: {', '.join(close)}." if close else ""
    raise BackboneError(
        f"Unknown backbone {name!r}.{also}",
        hint="See all with `precompute backbones`; a model of your own is named package.module:factory.",
    )


def entries(name: str) -> dict[str, Any]:
    """torchvision's weights entries of a model by name, such as IMAGENET1K_V1, in their order; empty where none."""
    if name == TINY or is_factory(name):
        return {}
    return {entry.name: entry for entry in get_model_weights(name)}


def default_entry(name: str) -> Any:
    """The entry that torchvision calls DEFAULT."""
    return get_model_weights(name).DEFAULT


class _ParametersOnMeta(TorchFunctionMode):
    """Parameters take no memory and no time: torch's modules make theirs by torch.empty.

    torch.device("meta") would be simpler, but some builders (RegNet) compute their sizes with tensors. What fills them
    is left out: on the meta device torch imports its whole compiler for that (0.9 s).
    """

    _FILLS = (torch.Tensor.normal_, torch.Tensor.uniform_)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.empty:
            kwargs["device"] = "meta"
        elif getattr(function, "__module__", None) == "torch.nn.init" and function.__name__.endswith("_"):
            return args[0] if args else kwargs["tensor"]
        elif function in self._FILLS and args[0].is_meta:
            return args[0]
        return function(*args, **kwargs)


def build(name: str, *, seed: int | None) -> nn.Module:
    """The network of `name` in eval mode; with random parameters for `seed`, or with none (meta device) for None."""
    if seed is None:
        with _ParametersOnMeta():
            return _construct(name, init=False).eval()
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
        torch.manual_seed(seed)
        return _construct(name, init=True).eval()


def _construct(name: str, *, init: bool) -> nn.Module:
    if name == TINY:
        from precompute.backbones.tiny import TinyBackbone

        return TinyBackbone()
    extra: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # What torchvision itself sets for its published weights: their input is scaled otherwise, and they have
        # auxiliary heads. Given here because weights from a path are the same weights.
        extra = {"transform_input": True, "aux_logits": True, "init_weights": init}
    model: nn.Module = get_model(name, weights=None, **extra)
    return model


def run_factory(name: str) -> tuple[nn.Module, Preprocess | None]:
    """Import `package.module:factory` (also from the current folder) and call it: a module, or one and its Preprocess.

    Raises BackboneError where the import or the call fails, or where no torch.nn.Module comes back.
    """
    module_name, _, attribute = name.partition(":")
    with current_folder_importable():
        try:
            made = load_attribute(name)()
        except Exception as error:
            raise BackboneError(
                f"The backbone factory {name} failed: {type(error).__name__}: {error}",
                hint=f"Check it with: python -c 'from {module_name} import {attribute}; {attribute}()'",
            ) from error
    model, own = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if own is not None and not isinstance(own, Preprocess):
        raise BackboneError(
            f"The backbone factory {name} returned a {type(own).__name__} beside its module.",
            hint="The second value must be a precompute.inputs.base.Preprocess.",
        )
    if not isinstance(model, nn.Module):
        raise BackboneError(
            f"The backbone factory {name} returned a {type(model).__name__}.",
            hint="It must return a torch.nn.Module that takes (B, 3, H, W) float images, or one and its Preprocess.",
        )
    return model.cpu().eval(), own  # it may come from a GPU; the engine decides where it runs
