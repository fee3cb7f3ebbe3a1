"""`hf:ORG/NAME[@REVISION]` and `hf:./folder`: encoders of transformers for texts, images and sound.

A name is resolved to a folder first: the hub's are fetched once into its cache, at a commit that is recorded. Weights
are safetensors alone, read by us; code in a folder is never run. Features are what the library's own call gives, pooled
as a table by model type says, or as the folder of a sentence-transformers model does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from precompute.backbones import weights as state_dicts
from precompute.backbones.checkpoints import identity_of, load_file
from precompute.backbones.families import hf_encoder, hf_models
from precompute.backbones.families.base import DEFAULT, Entry, Family, Loaded, path_of, random_seed
from precompute.backbones.families.hf_encoder import Encoder, Parts
from precompute.backbones.families.hf_folder import CONFIG, HFFolder
from precompute.backbones.families.hf_models import MODELS, ModelType, model_of
from precompute.backbones.families.hf_networks import filled_network, library, on_meta, random_network
from precompute.backbones.hub import cached_repositories, hub_folder
from precompute.backbones.layers import ALL_BLOCKS, INPUT, OUTPUT
from precompute.errors import BackboneError, WeightsError

if TYPE_CHECKING:
    from precompute.backbones.layers import Tap, Truncated

PREFIX = "hf:"
REPOSITORY = re.compile(r"([A-Za-z0-9][\w.\-]{0,95})(/[\w.\-]{1,96})?")
REVISION = re.compile(r"[\w.\-/]{1,128}")
FILES = (
    *(CONFIG, "modules.json", "config_sentence_transformers.json", "sentence_*_config.json", "[0-9]_*/config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"),
    *("preprocessor_config.json", "processor_config.json", "model.safetensors", "model.safetensors.index.json"),
    "model-*-of-*.safetensors",
)
"""What is fetched of a repository: nothing that could run."""


class HF(Family):
    """See the module."""

    packages = ("transformers", "tokenizers", "huggingface-hub", "soundfile", "soxr")
    poolings = hf_encoder.POOLINGS

    def names(self) -> list[str]:
        """Those in the hub's cache: what else it has is not known without asking it."""
        return [f"{PREFIX}{name}" for name in cached_repositories()]

    def check(self, name: str) -> None:
        text, revision = _taken_apart(name)
        if is_folder(name):
            if not os.path.isdir(os.path.expanduser(text)):
                raise BackboneError(f"There is no folder {text}.", hint="Name the folder that holds config.json.")
        elif not REPOSITORY.fullmatch(text) or not (revision is None or REVISION.fullmatch(revision)):
            kinds = ", ".join(sorted(MODELS))
            raise BackboneError(
                f"{name[:200]!r} is not a model on the Hugging Face hub.",
                hint="For example hf:sentence-transformers/all-MiniLM-L6-v2, with @REVISION if needed; a folder "
                f"is hf:./folder. Models of these kinds are known: {kinds}.",
            )

    def canonical(self, name: str) -> str:
        return f"{PREFIX}{_folder(name)[0].config['model_type']}"

    def load(self, name: str, weights: str) -> Loaded:
        library()
        folder, source = _folder(name)
        kind, parts = _parts(folder)
        seed = random_seed(weights)
        notes, file = parts.notes, None
        if seed is not None:
            network = random_network(folder, kind, parts, seed)
            source, notes, has_pooler = {**source, "seed": seed}, (*notes, "weights are random"), True
        else:
            if weights == DEFAULT:
                paths = folder.weights()
                file, state, where = identity_of(paths[0]), folder.state(), folder.path
                others = paths[1:]
            else:
                where = path_of(name, weights)
                file, state, others = identity_of(where), load_file(where), []
                state = state_dicts.without_prefix(state, on_meta(folder, kind, parts).state_dict())
                source = {**source, "weights": os.path.abspath(where)}
            network, more, has_pooler = filled_network(folder, kind, parts, state, where)
            notes = (*notes, *more)
            file = {**file, "also": [identity_of(one) for one in others]}
        encoder = parts.encoder(network)
        if not has_pooler:
            encoder.poolings = tuple(one for one in encoder.poolings if one != "pooler")
        encoder.eval().check(parts.base)
        return Loaded(
            f"{PREFIX}{folder.config['model_type']}",
            encoder,
            source,
            parts.base,
            notes,
            _with_files(folder, file),
            {"backend": _backend(folder, kind, parts)},
        )

    def build(self, name: str, *, seed: int | None) -> nn.Module:
        self.check(name)
        folder, _ = _folder(name)
        kind, parts = _parts(folder)
        network = on_meta(folder, kind, parts) if seed is None else random_network(folder, kind, parts, seed)
        return parts.encoder(network).eval()

    def describe(self, name: str, *, quick: bool = False) -> Entry:
        self.check(name)
        folder, _ = _folder(name, fetch=False)
        if quick:
            try:
                kind = model_of(folder.config, folder.names, f"{folder.path}/{CONFIG}")
            except (BackboneError, WeightsError):  # one that precompute does not take
                return Entry(name, None, None, None, None, None, OUTPUT, (), "?")
            return Entry(name, None, None, None, None, None, OUTPUT, (DEFAULT,), kind.modality)
        kind, parts = _parts(folder)
        encoder = parts.encoder(on_meta(folder, kind, parts))
        params = sum(one.numel() for one in encoder.parameters())
        width = getattr(encoder, "width", None) or getattr(
            getattr(encoder.network, "config", None), "hidden_size", None
        )
        size = getattr(parts.base, "crop", None)  # of pictures
        return Entry(name, width, size, params, None, None, OUTPUT, (DEFAULT,), kind.modality)

    def default_layer(self, name: str, model: nn.Module) -> tuple[str, str, tuple[str, ...]]:  # noqa: ARG002
        return OUTPUT, _encoder(model).pooling or "auto", ()

    def own_pooling(self, model: nn.Module, layer: str) -> str:
        """That of the output; of a hidden layer too, where it can have it."""
        own = _encoder(model).pooling
        return own if own is not None and (layer == OUTPUT or own in hf_encoder.OF_TOKENS) else "auto"

    def final_classifier(self, model: nn.Module) -> str:  # noqa: ARG002 - there is none
        raise BackboneError("An encoder of transformers is loaded without a classifier.", hint="Use its output.")

    def layer_names(self, model: nn.Module) -> list[str]:
        return [*_encoder(model).blocks, OUTPUT]

    def blocks(self, model: nn.Module) -> list[str]:
        found = list(_encoder(model).blocks)
        if not found:
            raise BackboneError("The backbone has no blocks that are known.", hint=f"Leave {ALL_BLOCKS} out.")
        return found

    def trace(self, model: nn.Module) -> tuple[fx.Graph, dict[fx.Node, str]]:  # noqa: ARG002
        raise BackboneError(
            "A network of transformers cannot be traced, so it is cut at its output and its blocks alone.",
            hint="Train a head on its features, or the whole network: precompute fine-tune SOURCE -b NAME.",
        )

    def cut(
        self, model: nn.Module, wanted: Sequence[tuple[str, str]], inputs: tuple[torch.Tensor, ...]
    ) -> tuple[Truncated, tuple[Tap, ...]]:
        encoder = _encoder(model)
        if [layer for layer, _ in wanted] == [INPUT]:  # where the training of a whole network begins
            return super().cut(model, wanted, inputs)
        return hf_encoder.cut(f"a model of the kind {_kind_name(encoder)}", encoder, wanted, inputs)


def is_folder(name: str) -> bool:
    """Whether `hf:...` names a folder: what begins with a dot, a slash or ~, or has a slash and is there."""
    text = name.removeprefix(PREFIX)
    if text.startswith((".", "/", "~")):
        return True
    return "/" in text and os.path.isdir(text)


def _taken_apart(name: str) -> tuple[str, str | None]:
    """Repository and revision, or the folder."""
    text = name.removeprefix(PREFIX)
    if is_folder(name):
        return text, None
    repository, at, revision = text.partition("@")
    return repository, revision if at else None


def _folder(name: str, *, fetch: bool = True) -> tuple[HFFolder, dict[str, Any]]:
    """The folder on this machine, and where it came from, for `Loaded.source`."""
    text, revision = _taken_apart(name)
    if is_folder(name):
        folder = HFFolder(text)
        return folder, {"kind": "folder", "path": folder.path}
    found = hub_folder(text, FILES, revision, fetch=fetch)
    return HFFolder(found.path), {"kind": "hub", "repository": text, "revision": found.revision}


def _parts(folder: HFFolder) -> tuple[ModelType, Parts]:
    kind = model_of(folder.config, folder.names, f"{folder.path}/{CONFIG}")
    parts: Parts = import_module(f"{hf_models.__package__}.{kind.loader}").load(folder, kind)
    return kind, parts


def _backend(folder: HFFolder, kind: ModelType, parts: Parts) -> dict[str, Any]:
    """What of the library decides the features, for the key."""
    return {
        "transformers": str(library().__version__),
        "attention": kind.attention,
        "config": folder.digest,
        **parts.settings,
    }


def _with_files(folder: HFFolder, file: dict[str, Any] | None) -> dict[str, Any]:
    """With the folder itself, whose time changes when a file is put into it, and all that was read of it."""
    others = [identity_of(folder.path), *(identity_of(os.path.join(folder.path, name)) for name in folder.used)]
    first, rest = (file, []) if file is not None else (others[0], others[1:])
    return {**first, "also": [*first.get("also", []), *(others if file is not None else rest)]}


def _encoder(model: nn.Module) -> Encoder:
    assert isinstance(model, Encoder)  # nothing else is made here
    return model


def _kind_name(encoder: Encoder) -> str:
    return str(getattr(getattr(encoder.network, "config", None), "model_type", "unknown"))


FAMILY = HF()
