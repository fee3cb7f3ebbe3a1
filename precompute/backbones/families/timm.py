"""`timm:NAME`, `timm:NAME.TAG` and `timm:./folder`: timm's networks, without their classifier (`num_classes=0`).

The features are what timm's own `forward_head(forward_features(x), pre_logits=True)` gives, which is the output of such
a network. Its preprocessing is that of `timm.data.resolve_model_data_config`. Weights are read by us, as tensors that
run no code, and timm fits them into the network; every value of it must then come from the file.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from precompute.backbones import weights as state_dicts
from precompute.backbones.checkpoints import StateDict, identity_of, load_file
from precompute.backbones.families.base import DEFAULT, Entry, Family, Loaded, path_of, random_seed
from precompute.backbones.families.timm_folder import TimmFolder
from precompute.backbones.families.timm_networks import (
    PREFIX,
    library,
    loaded,
    on_meta,
    random_network,
    random_note,
    settings_of,
    tags,
    width_of,
    with_state,
)
from precompute.backbones.families.timm_stages import cut_between, stages
from precompute.backbones.hub import COMMIT, hub_file
from precompute.backbones.layers import OUTPUT, Tap, Truncated
from precompute.backbones.tracing import TORCHVISION, Tracing
from precompute.errors import BackboneError, WeightsError

CANNOT = (BackboneError, RuntimeError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What a graph raises when it is made, or run, of code that torch.fx cannot follow."""


class Timm(Family):
    """See the module."""

    packages = ("timm", "huggingface-hub")

    def names(self) -> list[str]:
        return [f"{PREFIX}{name}" for name in library().list_models()]

    def check(self, name: str) -> None:
        if is_folder(name):
            _known_architecture(TimmFolder.read(_text(name)))
            return
        architecture, _, tag = _text(name).partition(".")
        known = library().list_models()
        if architecture not in known:
            close = [
                f"{PREFIX}{one}" for one in difflib.get_close_matches(architecture.lower(), known, n=5, cutoff=0.5)
            ]
            also = f" Close: {', '.join(close)}." if close else ""
            raise BackboneError(
                f"timm has no model {architecture!r}.{also}",
                hint="See all with `precompute backbones timm:`; a folder is named with a slash: timm:./folder.",
            )
        if tag and tag not in tags(architecture):
            known_tags = ", ".join(tags(architecture)) or "none"
            raise BackboneError(
                f"timm has no weights {tag!r} of {architecture}.", hint=f"It has: {known_tags}. Or leave .{tag} out."
            )

    def canonical(self, name: str) -> str:
        """With the tag of the weights that are its DEFAULT; of a folder, the name of its architecture."""
        if is_folder(name):
            return f"{PREFIX}{_known_architecture(TimmFolder.read(_text(name)))}"
        architecture, _, tag = _text(name).partition(".")
        found = tag or next(iter(tags(architecture)), "")
        return f"{PREFIX}{architecture}.{found}" if found else f"{PREFIX}{architecture}"

    def load(self, name: str, weights: str) -> Loaded:
        if is_folder(name):
            return self._from_folder(name, weights)
        architecture, _, tag = _text(name).partition(".")
        known = tags(architecture)
        seed = random_seed(weights)
        if seed is not None:
            model = random_network(architecture, seed, settings_of(architecture, tag), {})
            return loaded(name, model, {"kind": "random", "seed": seed}, notes=(random_note(model),))
        asked, _, revision = weights.partition("@")
        if weights == DEFAULT or asked in (DEFAULT, *known):
            asked = tag or next(iter(known), "") if asked == DEFAULT else asked
            return self._published(architecture, asked, revision)
        path = path_of(name, weights, known)
        settings = settings_of(architecture, tag)
        names = on_meta(architecture, settings, {}).state_dict()
        file, source = identity_of(path), {"kind": "file", "path": os.path.abspath(path)}
        state = state_dicts.without_prefix(load_file(path), names)
        return with_state(name, architecture, settings, {}, state, source, file)

    def _published(self, architecture: str, tag: str, revision: str) -> Loaded:
        if not tag:
            raise WeightsError(
                f"timm has no pretrained weights of {architecture}.",
                hint="Name a file you have with --weights PATH, or use random ones: --weights random:SEED.",
            )
        if revision and not COMMIT.fullmatch(revision):
            raise WeightsError(
                f"{revision!r} is not a revision: 40 hexadecimal digits of a commit.",
                hint=f"For example --weights {tag}@0123...",
            )
        full = f"{architecture}.{tag}"
        source = library().models.get_pretrained_cfg(full)
        if not source.hf_hub_id:
            raise WeightsError(
                f"The weights of {full} are not on the Hugging Face hub, but at {source.url or 'an unknown place'}.",
                hint="Download that file and pass it with --weights PATH: nothing in it is executed.",
            )
        found = hub_file(source.hf_hub_id, _safe_names(source.hf_hub_filename), revision or None)
        origin = {"kind": "entry", "entry": f"{tag}@{found.revision}", "repository": source.hf_hub_id}
        file, state = identity_of(found.path), load_file(found.path)
        canonical = f"{PREFIX}{full}"
        return with_state(canonical, architecture, settings_of(architecture, tag), {}, state, origin, file)

    def _from_folder(self, name: str, weights: str) -> Loaded:
        folder = TimmFolder.read(_text(name))
        architecture = _known_architecture(folder)
        settings, arguments, canonical = _of_folder(folder, architecture), folder.arguments, f"{PREFIX}{architecture}"
        seed = random_seed(weights)
        if seed is not None:
            model = random_network(architecture, seed, settings, arguments)
            source = {"kind": "folder", "path": folder.folder.path, "seed": seed}
            return loaded(canonical, model, source, arguments, notes=(random_note(model),), also=(folder.config,))
        path = folder.folder.safetensors() if weights == DEFAULT else path_of(name, weights)
        file, state = identity_of(path), load_file(path)
        _check_size(folder, settings, architecture, state)
        source = {"kind": "folder", "path": folder.folder.path}
        if weights != DEFAULT:
            source["weights"] = os.path.abspath(path)
            state = state_dicts.without_prefix(state, on_meta(architecture, settings, arguments).state_dict())
        return with_state(canonical, architecture, settings, arguments, state, source, file, also=(folder.config,))

    def build(self, name: str, *, seed: int | None) -> nn.Module:
        if is_folder(name):
            folder = TimmFolder.read(_text(name))
            architecture, arguments = _known_architecture(folder), folder.arguments
            settings = _of_folder(folder, architecture)
        else:
            self.check(name)
            architecture, _, tag = _text(name).partition(".")
            settings, arguments = settings_of(architecture, tag), {}
        if seed is None:
            return on_meta(architecture, settings, arguments)
        return random_network(architecture, seed, settings, arguments)

    def describe(self, name: str, *, quick: bool = False) -> Entry:
        self.check(name)
        architecture, _, tag = _text(name).partition(".")
        found = () if is_folder(name) else tuple([tag] if tag else tags(architecture))
        if quick:
            size = settings_of(architecture, tag).get("input_size", (3, 224, 224))[1]
            return Entry(name, None, size, None, None, None, OUTPUT, found)
        model = self.build(name, seed=None)
        size = library().data.resolve_model_data_config(model)["input_size"][1]
        params = sum(parameter.numel() for parameter in model.parameters())
        return Entry(name, width_of(model), size, params, None, None, OUTPUT, found or (DEFAULT,) * is_folder(name))

    def loading_code(self, name: str, outputs: int) -> str:
        return f"timm.create_model({_text(name).partition('.')[0]!r}, num_classes={outputs})"

    @property
    def tracing(self) -> Tracing:
        models = library().models
        return Tracing((*TORCHVISION.modules, *models.get_notrace_modules()), tuple(models.get_notrace_functions()))

    def default_layer(self, name: str, model: nn.Module) -> tuple[str, str, tuple[str, ...]]:  # noqa: ARG002
        return OUTPUT, "none", ()

    def final_classifier(self, model: nn.Module) -> str:  # noqa: ARG002 - there is none
        raise BackboneError(
            "A network of timm's is loaded without its classifier.", hint="Its output is the input of the classifier."
        )

    def blocks(self, model: nn.Module) -> list[str]:
        """The stages or blocks that timm itself names, for `features_only` and `forward_intermediates`."""
        return stages(model) or super().blocks(model)

    def layer_names(self, model: nn.Module) -> list[str]:
        try:
            return super().layer_names(model)
        except BackboneError:
            if not hasattr(model, "forward_intermediates"):
                raise
            return [*stages(model), OUTPUT]

    def cut(
        self, model: nn.Module, wanted: Sequence[tuple[str, str]], inputs: tuple[torch.Tensor, ...]
    ) -> tuple[Truncated, tuple[Tap, ...]]:
        """By torch.fx; where that cannot, the output as it is, and stages by timm's `forward_intermediates`."""
        names = [layer for layer, _ in wanted]
        there = stages(model) if hasattr(model, "forward_intermediates") else []
        try:
            return super().cut(model, wanted, inputs)
        except CANNOT:
            if not set(names) <= {*there, OUTPUT}:
                raise
        return cut_between(model, wanted, inputs, there)


def is_folder(name: str) -> bool:
    """Whether `timm:...` names a folder: what has a slash, or begins with a dot."""
    text = _text(name)
    return "/" in text or os.sep in text or text.startswith((".", "~"))


def _text(name: str) -> str:
    return name.removeprefix(PREFIX)


def _known_architecture(folder: TimmFolder) -> str:
    if folder.architecture not in library().list_models():
        raise BackboneError(
            f"{folder.config} names the architecture {folder.architecture[:100]!r}, which timm "
            f"{library().__version__} does not have.",
            hint="Update timm, or see its models with `precompute backbones timm:`.",
        )
    return folder.architecture


def _of_folder(folder: TimmFolder, architecture: str) -> dict[str, Any]:
    """The same from its config.json alone, as timm does it."""
    return {**folder.settings, "architecture": architecture}


def _check_size(folder: TimmFolder, settings: dict[str, Any], architecture: str, state: StateDict) -> None:
    """Before memory is taken for it: a network has no more values than its file."""
    model = on_meta(architecture, settings, folder.arguments)
    wanted, there = sum(one.numel() for one in model.parameters()), sum(one.numel() for one in state.values())
    if wanted > there:
        raise WeightsError(
            f"{folder.config} describes a network of {wanted:,} parameters, and its weights hold {there:,}.",
            hint="Use a folder saved by timm.",
        )


def _safe_names(filename: str | None) -> list[str]:
    """Names of files that run no code, instead of the one that timm would look for first."""
    if not filename or filename == "pytorch_model.bin":
        return ["model.safetensors"]
    return [f"{os.path.splitext(filename)[0]}.safetensors"]


FAMILY = Timm()
