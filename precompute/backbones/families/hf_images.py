"""Image models of transformers: towers, and the pictures that their processor makes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from precompute.backbones.families.hf_encoder import Encoder, Parts, States, pooled
from precompute.backbones.families.hf_folder import CONFIG, HFFolder
from precompute.backbones.families.hf_models import ModelType
from precompute.backbones.families.hf_processor import transform_of
from precompute.backbones.layers import OUTPUT
from precompute.errors import BackboneError, WeightsError

IN_FRONT = {"vit": 1, "deit": 2, "beit": 1, "dinov2": 1, "dinov3_convnext": 1, "clip": 1, "clip_vision_model": 1}
"""How many tokens are in front of those of the picture: a class token, and DeiT's one for distillation."""

REGISTERS = ("dinov2_with_registers", "dinov3_vit")
"""Whose class token is followed by `num_register_tokens` that stand for no place in the picture."""

MAPS = ("dinov3_convnext", "convnext", "convnextv2", "resnet", "swin")
"""Whose stages have positions alone."""

MAX_TOKENS = 2**14
"""Of a picture: DINOv3 at 2048 pixels. BEiT computes with a bias for each pair of them."""

PROJECTED = "CLIPVisionModelWithProjection"
NETWORKS = {"clip": PROJECTED, "siglip": "SiglipVisionModel"}
"""The image tower of a model of two towers; the other one is never made."""


class ImageEncoder(Encoder):
    """`states` takes (B, 3, H, W); a map of (B, D, H, W) becomes tokens of (B, H W, D).

    prefix: tokens in front that stand for no place, left out of a mean; of blocks, where these have them too.
    """

    def __init__(self, network: nn.Module, kind: ModelType, name: str, *, projected: bool) -> None:
        poolings = [one for one in kind.poolings if one != "projection" or projected]
        config: Any = network.config
        pooling = "projection" if projected else kind.pooling
        if getattr(config, "vision_use_head", True) is False:  # a SigLIP without its pooler
            poolings, pooling = [one for one in poolings if one != "pooler"], None
        super().__init__(network, pooling, poolings, _blocks(network))
        self.prefix = IN_FRONT.get(name, 0) + (1 + config.num_register_tokens if name in REGISTERS else 0)
        self.of_blocks = 0 if name in MAPS else self.prefix
        sizes = getattr(config, "hidden_sizes", None)
        self.width: int | None = config.projection_dim if projected else sizes[-1] if sizes else config.hidden_size

    def states(self, *inputs: torch.Tensor, hidden: bool) -> States:
        (pixels,) = inputs
        network: Any = self.network
        asked = {"output_hidden_states": True} if hidden else {}
        found = network(pixel_values=pixels, return_dict=True, **asked)
        tokens, pooler = _tokens(found.last_hidden_state), getattr(found, "pooler_output", None)
        if pooler is None and "pooler" in self.poolings and self.pooling == "projection":
            pooler = network.vision_model.post_layernorm(tokens[:, 0])
        states = [_tokens(one) for one in found.hidden_states[-len(self.blocks) :]] if hidden else []
        return States(
            tokens,
            _mask(tokens, self.prefix),
            None if pooler is None else pooler.flatten(1),  # ResNet's has two axes more
            getattr(found, "image_embeds", None),
            tuple(states),
        )

    def features(self, states: States, layer: str, pooling: str) -> torch.Tensor:
        if layer == OUTPUT:
            return super().features(states, layer, pooling)
        if pooling == "cls" and not self.of_blocks:
            raise BackboneError(f"The layer {layer!r} has no class token.", hint="Use --pooling mean, max or none.")
        tokens = states.hidden[self.blocks.index(layer)]
        return pooled(tokens, _mask(tokens, self.of_blocks), pooling)


def _tokens(state: torch.Tensor) -> torch.Tensor:
    return state.flatten(2).transpose(1, 2) if state.ndim == 4 else state


def _mask(tokens: torch.Tensor, prefix: int) -> torch.Tensor | None:
    """(B, T): 1 for those of the picture."""
    if not prefix:
        return None
    places = torch.arange(tokens.shape[1], device=tokens.device) >= prefix
    return places.to(tokens.dtype).expand(tokens.shape[0], -1)


def load(folder: HFFolder, kind: ModelType) -> Parts:
    """What `hf_encoder` says. Raises BackboneError and WeightsError for a folder that is none of images."""
    name = str(folder.config["model_type"])
    network = NETWORKS.get(name)
    if name == "clip_vision_model" and folder.json(CONFIG).get("architectures") == [PROJECTED]:
        network = PROJECTED  # two classes are saved with the same model_type

    def encoder(made: nn.Module) -> Encoder:
        return ImageEncoder(made, kind, name, projected=network == PROJECTED)

    transform = transform_of(folder)
    _check_tokens(folder, kind, transform.crop)
    return Parts(encoder, transform, network=network, tower=kind.tower)


def _check_tokens(folder: HFFolder, kind: ModelType, side: int) -> None:
    """Raise WeightsError where pictures are cut so fine that what is computed of them takes all memory."""
    config = folder.config.get(kind.tower, {}) if kind.tower else folder.config
    patch = config.get("patch_size") if isinstance(config, dict) else None
    if isinstance(patch, int) and patch > 0 and (side / patch) ** 2 > MAX_TOKENS:
        raise WeightsError(
            f"{folder.path} cuts pictures of {side} pixels a side into more than {MAX_TOKENS:,} tokens.",
            hint="Use a folder saved by transformers.",
        )


def _blocks(network: nn.Module) -> tuple[str, ...]:
    """Names of its layers or stages: the first list of modules that is as long as its configuration says."""
    config: Any = network.config
    depths = getattr(config, "depths", None)
    count = len(depths) if depths else getattr(config, "num_hidden_layers", 0)
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return tuple(f"{name}.{place}" for place in range(count))
    return ()
