"""`open_clip:MODEL/TAG` and `open_clip:./folder`: the image towers of open_clip's models.

The features are what the library's own `encode_image` gives, not normalised. The text tower is never built. Weights are
read by us, as tensors that run no code, and every value of the image tower must come from them.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import nn

from precompute.backbones.checkpoints import StateDict, identity_of, load_file
from precompute.backbones.families.base import DEFAULT, Entry, Family, Loaded, path_of, random_seed
from precompute.backbones.families.open_clip_folder import CONFIG, SAFETENSORS, OpenClipFolder
from precompute.backbones.families.open_clip_towers import (
    PREFIX,
    Tower,
    blocks_of,
    check_size,
    library,
    no_classifier,
)
from precompute.backbones.hub import COMMIT, hub_file
from precompute.backbones.layers import OUTPUT
from precompute.backbones.tracing import TORCHVISION, Tracing
from precompute.errors import BackboneError, WeightsError

QUICK = "-quickgelu"
"""What open_clip's models are called that have OpenAI's approximation of GELU."""


class OpenClip(Family):
    """See the module."""

    packages = ("open_clip_torch", "timm", "huggingface-hub")

    def names(self) -> list[str]:
        """Each model with each of its tags, without those pairs that are refused."""
        return [f"{PREFIX}{model}/{tag}" for model, tag in library().list_pretrained() if not _lacks_quick(model, tag)]

    def check(self, name: str) -> None:
        if is_folder(name):
            OpenClipFolder.read(_text(name))
            return
        model, tag = _parts(name)
        known = library().list_models()
        if model not in known:
            close = [f"{PREFIX}{one}" for one in difflib.get_close_matches(model, known, n=5, cutoff=0.5)]
            also = f" Close: {', '.join(close)}." if close else ""
            there = f" The folder is named {PREFIX}./{_text(name)}." if os.path.isdir(_text(name)) else ""
            raise BackboneError(
                f"open_clip has no model {model!r}.{also}{there}",
                hint=f"See all with `precompute backbones {PREFIX}`; a folder begins with a dot or a slash: "
                f"{PREFIX}./folder.",
            )
        if tag and tag not in tags(model):
            raise BackboneError(
                f"open_clip has no weights {tag!r} of {model}.",
                hint=f"It has: {', '.join(tags(model)) or 'none'}.",
            )
        if tag and _lacks_quick(model, tag):
            raise _without_quick(model, tag)

    def canonical(self, name: str) -> str:
        """Of a folder, kind and sizes of its image tower."""
        if is_folder(name):
            return f"{PREFIX}{OpenClipFolder.read(_text(name)).tower.name}"
        model, tag = _parts(name)
        return f"{PREFIX}{model}/{tag}" if tag else f"{PREFIX}{model}"

    def load(self, name: str, weights: str) -> Loaded:
        if is_folder(name):
            return self._from_folder(name, weights)
        model, tag = _parts(name)
        known = tags(model)
        asked, _, revision = weights.partition("@")
        if asked in (DEFAULT, *known):
            return self._published(model, tag if asked == DEFAULT else asked, revision)
        tower, seed = tower_of(model, tag), random_seed(weights)
        if seed is not None:
            random = ("weights are random; the transform is open_clip's",)
            return _loaded(self.canonical(name), tower, tower.random(seed), {"kind": "random", "seed": seed}, random)
        path = path_of(name, weights, known)
        file, source = identity_of(path), {"kind": "file", "path": os.path.abspath(path)}
        network, notes = tower.filled(load_file(path), path, name)
        return _loaded(self.canonical(name), tower, network, source, notes, file)

    def _published(self, model: str, tag: str, revision: str) -> Loaded:
        if not tag:
            known = [f"{PREFIX}{model}/{one}" for one in tags(model) if not _lacks_quick(model, one)]
            raise WeightsError(
                f"{PREFIX}{model} does not say which weights.",
                hint=f"Name them: {', '.join(known) or 'there are no published ones'}; a file you have with --weights "
                "PATH; or use random ones: --weights random:SEED.",
            )
        if _lacks_quick(model, tag):
            raise _without_quick(model, tag)
        if revision and not COMMIT.fullmatch(revision):
            raise WeightsError(
                f"{revision!r} is not a revision: 40 hexadecimal digits of a commit.",
                hint=f"For example --weights {tag}@0123...",
            )
        settings = library().get_pretrained_cfg(model, tag)
        repository, _, filename = str(settings.get("hf_hub") or "").rpartition("/")
        if not repository:
            raise WeightsError(
                f"The weights {tag} of {model} are not on the Hugging Face hub, but at {settings.get('url')}.",
                hint="Download that file and pass it with --weights PATH: nothing in it is executed.",
            )
        found = hub_file(repository, [_safe_name(filename)], revision or None)
        origin = {"kind": "entry", "entry": f"{tag}@{found.revision}", "repository": repository}
        tower, file = tower_of(model, tag), identity_of(found.path)
        network, notes = tower.filled(load_file(found.path), found.path, f"{PREFIX}{model}")
        return _loaded(f"{PREFIX}{model}/{tag}", tower, network, origin, notes, file)

    def _from_folder(self, name: str, weights: str) -> Loaded:
        folder = OpenClipFolder.read(_text(name))
        tower, config = folder.tower, identity_of(folder.config)
        canonical, source = f"{PREFIX}{tower.name}", {"kind": "folder", "path": folder.folder.path}
        seed = random_seed(weights)
        if seed is not None:
            random = (f"weights are random; the transform is that of {CONFIG}",)
            return _loaded(canonical, tower, tower.random(seed), {**source, "seed": seed}, random, config)
        path = folder.weights() if weights == DEFAULT else path_of(name, weights)
        file = {**identity_of(path), "also": [config]}
        state: StateDict = load_file(path)
        check_size(tower, state, folder.config)
        network, notes = tower.filled(state, path, canonical)
        if weights != DEFAULT:
            source["weights"] = os.path.abspath(path)
        return _loaded(canonical, tower, network, source, notes, file)

    def build(self, name: str, *, seed: int | None) -> nn.Module:
        self.check(name)
        tower = OpenClipFolder.read(_text(name)).tower if is_folder(name) else tower_of(*_parts(name))
        return tower.on_meta() if seed is None else tower.random(seed)

    def describe(self, name: str, *, quick: bool = False) -> Entry:
        self.check(name)
        model, tag = _parts(name)
        found = [DEFAULT] if is_folder(name) else [tag] if tag else tags(model)
        tower = OpenClipFolder.read(_text(name)).tower if is_folder(name) else tower_of(model, tag)
        params = None if quick else sum(parameter.numel() for parameter in tower.on_meta().parameters())
        return Entry(name, tower.embed_dim, tower.side, params, None, None, OUTPUT, tuple(found))

    @property
    def tracing(self) -> Tracing:
        library()
        models: Any = import_module("timm.models")  # without types of its own
        return Tracing((*TORCHVISION.modules, *models.get_notrace_modules()), tuple(models.get_notrace_functions()))

    def default_layer(self, name: str, model: nn.Module) -> tuple[str, str, tuple[str, ...]]:  # noqa: ARG002
        return OUTPUT, "none", ()

    def final_classifier(self, model: nn.Module) -> str:
        return no_classifier(model)

    def blocks(self, model: nn.Module) -> list[str]:
        """The blocks of its transformer, or the layers or stages of its CNN."""
        return blocks_of(model) or super().blocks(model)

    def layer_names(self, model: nn.Module) -> list[str]:
        try:
            return super().layer_names(model)
        except BackboneError:
            return [OUTPUT]  # of a network of timm's that torch.fx cannot trace


def is_folder(name: str) -> bool:
    """Whether `open_clip:...` names a folder: what begins with a dot, a slash or a tilde."""
    return _text(name).startswith((".", "~", "/", os.sep))


def tags(model: str) -> list[str]:
    """The names of a model's published weights, as open_clip lists them."""
    return list(library().list_pretrained_tags_by_model(model))


def tower_of(model: str, tag: str) -> Tower:
    """The image tower of one of open_clip's models, and the pictures that the weights `tag` were trained with.

    Raises BackboneError where there is no tag, and those that there are were trained with different pictures.
    """
    config: dict[str, Any] = library().get_model_config(model)
    known = [tag] if tag else tags(model)
    pictures = [_pictures(library().get_pretrained_cfg(model, one)) for one in known] or [{}]
    if any(one != pictures[0] for one in pictures):
        raise BackboneError(
            f"The weights of {model} were trained with different pictures, so {PREFIX}{model} does not say enough.",
            hint=f"Name one of them: {', '.join(f'{PREFIX}{model}/{one}' for one in known)}.",
        )
    return Tower(config["embed_dim"], config["vision_cfg"], bool(config.get("quick_gelu")), pictures[0])


def _pictures(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in ("mean", "std", "interpolation", "resize_mode") if name in settings}


def _loaded(
    name: str,
    tower: Tower,
    network: nn.Module,
    source: dict[str, Any],
    notes: Sequence[str] = (),
    file: dict[str, Any] | None = None,
) -> Loaded:
    """Settings: what open_clip builds an image tower from next to its weights, and whose code it is."""
    import timm

    backend: dict[str, Any] = {"open_clip": str(library().__version__), "quick_gelu": tower.quick_gelu}
    if tower.vision.get("timm_model_name"):
        backend["timm"] = str(timm.__version__)
    backend["vision"] = {
        key: list(value) if isinstance(value, tuple) else value for key, value in sorted(tower.vision.items())
    }
    network = network.to(torch.float32)
    return Loaded(name, network, source, tower.transform(name), tuple(notes), file, {"backend": backend})


def _text(name: str) -> str:
    return name.removeprefix(PREFIX)


def _parts(name: str) -> tuple[str, str]:
    model, _, tag = _text(name).partition("/")
    return model, tag


def _lacks_quick(model: str, tag: str) -> bool:
    """Whether the weights were trained with OpenAI's approximation of GELU, and the model is built with another."""
    asks = tag == "openai" or bool(library().get_pretrained_cfg(model, tag).get("quick_gelu"))
    config = library().get_model_config(model) or {}
    return asks and not config.get("quick_gelu")


def _without_quick(model: str, tag: str) -> BackboneError:
    other = f"{model}{QUICK}"
    there = other in library().list_models() and tag in tags(other)
    return BackboneError(
        f"The weights {tag} of {model} were trained with OpenAI's quick GELU, which {model} is built without: its "
        "features would be wrong.",
        hint=f"Use {PREFIX}{other}/{tag}." if there else "Use other weights.",
    )


def _safe_name(filename: str) -> str:
    """The name of the file that runs no code, instead of the one that open_clip would take."""
    return f"{os.path.splitext(filename)[0]}.safetensors" if filename else SAFETENSORS


FAMILY = OpenClip()
