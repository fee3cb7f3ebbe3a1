"""The networks of sound that transformers has, run so that a row is what the library says of that window alone.

The library's own calls of a batch do not promise that: padding is not masked in every layer (a GroupNorm over time sees
it), or a mask is left out where nothing of the batch is padded, which other kernels then compute. So the parts of a
network are called here one by one, with its own modules and a mask for each.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from precompute.backbones.families.hf_encoder import Encoder, States
from precompute.backbones.families.hf_models import ModelType


class WaveformEncoder(Encoder):
    """wav2vec 2.0, HuBERT and WavLM. `states` takes (B, samples) and (B, 1), how many of them are sound.

    It gives what the network alone gives for these samples without any padding, also where its first convolution is
    followed by a GroupNorm (`feat_extract_norm="group"`), which is computed over real positions alone.
    """

    def __init__(self, network: nn.Module, kind: ModelType, frame: int, step: int) -> None:
        encoder: Any = network.encoder
        super().__init__(network, kind.pooling, kind.poolings, _layers(encoder))
        self.frame, self.step = frame, step
        self.biased = encoder.config.model_type == "wavlm"
        for layer in encoder.layers if self.biased else ():
            attention: Any = type(layer.attention)
            layer.attention.__class__ = _masked_attention(attention)

    def states(self, *inputs: torch.Tensor, hidden: bool) -> States:
        wave, samples = inputs
        network: Any = self.network
        found = network.feature_projection(self._convolved(wave, samples).transpose(1, 2))
        found = found[0] if isinstance(found, tuple) else found
        mask = _mask(_outputs(samples, self.frame, self.step), found.shape[1])
        found = found * mask.unsqueeze(-1).to(found.dtype)
        encoder = network.encoder
        found = found + encoder.pos_conv_embed(found)
        norm_first = bool(network.config.do_stable_layer_norm)
        if not norm_first:
            found = encoder.layer_norm(found)
        keys = mask[:, None, None, :].expand(-1, 1, found.shape[1], -1)
        every, bias = [], {"position_bias": None} if self.biased else {}
        for layer in encoder.layers:
            made = layer(found, attention_mask=keys, **bias)
            bias = {"position_bias": made[1]} if self.biased else {}
            found = _only(made)
            every.append(found)
        if norm_first:
            found = encoder.layer_norm(found)
        return States(found, mask.to(found.dtype), hidden=tuple(every) if hidden else ())

    def _convolved(self, wave: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        """(B, channels, T)."""
        network: Any = self.network
        found = wave.unsqueeze(1)
        for layer in network.feature_extractor.conv_layers:
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                found = layer.conv(found)
                real = _outputs(samples, layer.conv.kernel_size[0], layer.conv.stride[0])
                found = layer.activation(_normed(found, _mask(real, found.shape[2]), norm))
            else:
                found = layer(found)
        return found


@cache
def _masked_attention(kind: Any) -> Any:
    """WavLM's attention, whose own call takes a mask of another type than its bias, of which torch warns."""
    return type(kind.__name__, (kind,), {"torch_multi_head_self_attention": _attention})


def _attention(self: Any, states: torch.Tensor, mask: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, None]:
    """states: (B, T, D) · mask: (B, 1, T, T), true for keys that count · bias: (B * heads, T, T)."""
    batch, length, width = states.shape
    query, key, value = (
        one(states).view(batch, length, self.num_heads, -1).transpose(1, 2)
        for one in (self.q_proj, self.k_proj, self.v_proj)
    )
    added = bias.view(batch, self.num_heads, length, length).masked_fill(~mask, torch.finfo(bias.dtype).min)
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=added)
    return self.out_proj(found.transpose(1, 2).reshape(batch, length, width)), None


def _normed(values: torch.Tensor, mask: torch.Tensor, norm: nn.GroupNorm) -> torch.Tensor:
    """A GroupNorm with a group for each channel, over positions that are real alone. values: (B, channels, T)."""
    real = mask.unsqueeze(-1).to(torch.float32)
    exact, count = values.float(), real.sum(1, keepdim=True)
    away = exact - exact @ real / count
    scale = torch.rsqrt((away * away) @ real / count + norm.eps) * norm.weight[:, None]
    return torch.addcmul(norm.bias[:, None].float(), away, scale).to(values.dtype)


class WhisperEncoder(Encoder):
    """`states` takes (B, mels, frames), and (B, 1), how many positions of the encoder are sound.

    The others are silence, which it was trained with and attends to; they count in no mean.
    """

    def __init__(self, network: nn.Module, kind: ModelType) -> None:
        encoder: Any = network.encoder
        super().__init__(encoder, kind.pooling, kind.poolings, _layers(encoder))

    def states(self, *inputs: torch.Tensor, hidden: bool) -> States:
        mel, counts = inputs
        network: Any = self.network
        found = F.gelu(network.conv2(F.gelu(network.conv1(mel)))).permute(0, 2, 1)
        found = found + network.embed_positions.weight
        every = []
        for layer in network.layers:
            found = _only(layer(found, None))
            every.append(found)
        found = network.layer_norm(found)
        mask = _mask(counts, found.shape[1]).to(found.dtype)
        return States(found, mask, hidden=tuple(every) if hidden else ())


class SpectrogramEncoder(Encoder):
    """The Audio Spectrogram Transformer. `states` takes (B, frames, mels). Its pooler is the mean of its first two
    tokens, for class and distillation, which count in no mean.
    """

    def __init__(self, network: nn.Module, kind: ModelType) -> None:
        whole: Any = network
        blocks = tuple(f"layers.{place}" for place in range(len(whole.layers)))
        super().__init__(network, kind.pooling, kind.poolings, blocks)

    def states(self, *inputs: torch.Tensor, hidden: bool) -> States:
        (mel,) = inputs
        network: Any = self.network
        found, every = network.embeddings(mel), []
        for layer in network.layers:
            found = _only(layer(found, None))
            every.append(found)
        found = network.layernorm(found)
        real = (torch.arange(found.shape[1], device=found.device) >= 2).to(found.dtype).expand(found.shape[0], -1)
        return States(found, real, (found[:, 0] + found[:, 1]) / 2, hidden=tuple(every) if hidden else ())


class ClapEncoder(Encoder):
    """`states` takes (B, 1, frames, mels). Its projection has the length 1, as the library's `get_audio_features`."""

    def __init__(self, network: nn.Module, kind: ModelType) -> None:
        whole: Any = network
        super().__init__(whole.audio_model, kind.pooling, kind.poolings)
        self.projector = whole.audio_projection
        self.width = int(whole.config.projection_dim)

    def states(self, *inputs: torch.Tensor, hidden: bool) -> States:  # noqa: ARG002 - it has no blocks
        (mel,) = inputs
        network: Any = self.network
        found = network(input_features=mel, is_longer=None, return_dict=True)
        tokens = found.last_hidden_state.flatten(2).transpose(1, 2)
        pooler: torch.Tensor = found.pooler_output
        return States(tokens, None, pooler, F.normalize(self.projector(pooler), dim=-1))


def _outputs(samples: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """How many outputs a convolution without padding has for so many samples."""
    return torch.div(samples - kernel, stride, rounding_mode="floor") + 1


def _mask(counts: torch.Tensor, length: int) -> torch.Tensor:
    """(B, 1) counts -> (B, length), true for the first so many."""
    return torch.arange(length, device=counts.device) < counts


def _only(found: Any) -> torch.Tensor:
    """The states among what a layer gives, which differs by release."""
    states: torch.Tensor = found[0] if isinstance(found, tuple) else found
    return states


def _layers(encoder: Any) -> tuple[str, ...]:
    return tuple(f"encoder.layers.{place}" for place in range(len(encoder.layers)))
