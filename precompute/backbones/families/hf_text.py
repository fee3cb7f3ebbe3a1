"""Language models of transformers: texts as tokens, and features pooled over the real ones among them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from precompute.backbones.families.hf_encoder import Encoder, Parts, States
from precompute.backbones.families.hf_folder import HFFolder
from precompute.backbones.families.hf_models import ModelType
from precompute.backbones.families.hf_sentences import Sentences
from precompute.errors import BackboneError, WeightsError
from precompute.inputs.base import Preprocess
from precompute.inputs.images.transform import Transform
from precompute.inputs.text.tokens import TokenPreprocess

TOKENIZER = "tokenizer.json"
MAX_TOKENIZER_BYTES = 64 * 2**20  # those of 250,000 tokens have 17 MiB
LONGEST = 2**16
MOST_OF_PADDING = 1e-3  # rounding leaves 1e-6
ALL_POSITIONS = {"bert", "distilbert", "electra", "albert", "deberta-v2", "modernbert", "nomic_bert"}
"""Models that take as many tokens as they have positions. Those of others, such as RoBERTa, begin behind that of
padding."""


class TextEncoder(Encoder):
    """`states` takes (B, T) numbers of tokens and their (B, T) mask."""

    normalise = False

    def states(self, *inputs: torch.Tensor, hidden: bool) -> States:
        ids, mask = inputs
        given: Any = mask
        if self.attention == "sdpa":
            # Of two axes, transformers looks whether any text of the batch is padded, and computes otherwise if none is
            given = mask[:, None, None, :].to(torch.bool).expand(-1, 1, ids.shape[1], -1)
        found: Any = self.network(input_ids=ids, attention_mask=given, output_hidden_states=hidden, return_dict=True)
        states = found.hidden_states[1:] if hidden else ()
        return States(found.last_hidden_state, mask, getattr(found, "pooler_output", None), None, tuple(states))

    def __init__(self, network: nn.Module, kind: ModelType, pooling: str | None, *, normalise: bool) -> None:
        super().__init__(network, pooling, kind.poolings, _blocks(network))
        self.attention = kind.attention
        self.normalise = normalise

    def check(self, base: Preprocess | Transform) -> None:
        """Padding must not show: a table cannot know every network, and some mix neighbours in with no mask."""
        if not isinstance(base, TokenPreprocess) or len(base.lengths) < 2:
            return
        first, second = base.lengths[:2]
        ids = torch.arange(first - 2) % min(base.vocabulary, 1000)
        found = []
        with torch.inference_mode():
            for length in (first, second):
                numbers, mask = torch.full((1, length), base.pad), torch.zeros(1, length, dtype=torch.int64)
                numbers[0, : len(ids)] = torch.where(ids == base.pad, ids + 1, ids)
                mask[0, : len(ids)] = 1
                found.append(self.states(numbers, mask, hidden=False).tokens[0, : len(ids)])
        one, other = found
        if not (one - other).norm() <= MOST_OF_PADDING * one.norm():
            raise BackboneError(
                f"What {type(self.network).__name__} makes of a text depends on how far it is padded, by "
                f"{(one - other).norm() / one.norm():.1e} of it, so its features would be none of the text's alone.",
                hint="Use another model, or call it for each text in your own factory: package.module:factory.",
            )

    def finish(self, features: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(features, dim=-1) if self.normalise else features


def load(folder: HFFolder, kind: ModelType) -> Parts:
    """What `hf_encoder` says. Raises BackboneError and WeightsError for a folder that is none of texts."""
    if folder.config.get("is_decoder") or folder.config.get("is_encoder_decoder"):
        raise BackboneError(
            f"{folder.path} holds a decoder, which sees no word behind another; precompute takes encoders of texts.",
            hint="Give it in your own factory, with a Preprocess: package.module:factory.",
        )
    sentences = Sentences.read(folder)
    settings = folder.optional_json("tokenizer_config.json") or {}
    longest = _longest(folder)
    limit = sentences.max_length or _number(settings.get("model_max_length")) or longest
    preprocess = TokenPreprocess(
        tokenizer=_tokenizer(folder),
        where=f"{folder.path}/{TOKENIZER}",
        max_length=min(limit, longest),
        longest=longest,
        pad=_number(folder.config.get("pad_token_id")) or 0,
        vocabulary=_number(folder.config.get("vocab_size")) or 2**31,
        lower=sentences.lower,
        prompt=sentences.prompt,
    )
    pooling = sentences.pooling or kind.pooling
    more: dict[str, Any] = {"normalise": True} if sentences.normalise else {}
    return Parts(lambda network: TextEncoder(network, kind, pooling, normalise=sentences.normalise), preprocess, more)


def _tokenizer(folder: HFFolder) -> bytes:
    if not folder.has(TOKENIZER):
        raise BackboneError(
            f"{folder.path} has no {TOKENIZER}.",
            hint="Save it once with AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER), where you trust it.",
        )
    with open(folder.file(TOKENIZER), "rb") as file:
        text = file.read(MAX_TOKENIZER_BYTES + 1)
    if len(text) > MAX_TOKENIZER_BYTES:
        raise WeightsError(
            f"{folder.path}/{TOKENIZER} has more than {MAX_TOKENIZER_BYTES:,} bytes, too many for a tokenizer.",
            hint="Use a folder saved by the library.",
        )
    return text


def _longest(folder: HFFolder) -> int:
    """Tokens that the network takes."""
    config = folder.config
    positions = _number(config.get("max_position_embeddings")) or 512
    if config["model_type"] not in ALL_POSITIONS:
        positions -= (_number(config.get("pad_token_id")) or 0) + 1
    return max(1, min(positions, LONGEST))


def _number(value: Any) -> int | None:
    """A whole number as it may be in a file; None for none and for what means that there is no limit."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**31 else None


def _blocks(network: nn.Module) -> tuple[str, ...]:
    """Names of its layers, by the longest list of modules there is: the numbered ones of the encoder."""
    count = getattr(getattr(network, "config", None), "num_hidden_layers", 0)
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return tuple(f"{name}.{place}" for place in range(count))
    return ()
