"""Which models of transformers are known: what they take, how their features are pooled, who loads them.

A new one is a line in MODELS. A model without a line is loaded if its files name its modality; its
pooling is then requested, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from precompute.errors import BackboneError
from precompute.inputs.kinds import AUDIO, IMAGE, TEXT

LOADERS = {TEXT: "hf_text", IMAGE: "hf_images", AUDIO: "hf_audio"}
"""The module next to this one that loads models of a modality, see `hf_encoder.Parts`."""


@dataclass(frozen=True)
class ModelType:
    """One `model_type` of config.json.

    modality: of its samples · pooling: of its output, where `--pooling` has no effect; None: it must be requested ·
    poolings: words of `--pooling` that it has (`hf_encoder.POOLINGS`) · tower: the part of it that is run, for a
    loader to understand, such as "vision"; empty for all of it · attention: "sdpa" where its network takes a mask of
    (B, 1, 1, T) or none, "eager" where that has not been tried · unused: beginnings of names of tensors that its
    checkpoints hold and its features do not need.
    """

    modality: str
    pooling: str | None
    poolings: tuple[str, ...] = ("mean", "cls", "max", "mean_sqrt_len")
    tower: str = ""
    attention: str = "eager"
    unused: tuple[str, ...] = ()

    @property
    def loader(self) -> str:
        """The name of its module next to this one."""
        return LOADERS[self.modality]


_TOKENS = ("mean", "cls", "max", "mean_sqrt_len")
_POOLER = (*_TOKENS, "pooler")
_PICTURES = ("none", "mean", "cls", "max", "pooler")  # of one size, so that all tokens may be stored
_NO_CLASS = ("none", "mean", "max", "pooler")

MODELS: dict[str, ModelType] = {
    # Texts: the mean over real tokens; a folder of sentence-transformers says its own
    "bert": ModelType(TEXT, "mean", _POOLER, attention="sdpa"),
    "roberta": ModelType(TEXT, "mean", _POOLER, attention="sdpa"),
    "xlm-roberta": ModelType(TEXT, "mean", _POOLER, attention="sdpa"),
    "camembert": ModelType(TEXT, "mean", _POOLER, attention="sdpa"),
    "distilbert": ModelType(TEXT, "mean", _TOKENS, attention="sdpa"),
    "electra": ModelType(TEXT, "mean", _TOKENS, attention="sdpa"),
    "mpnet": ModelType(TEXT, "mean", _POOLER),
    "albert": ModelType(TEXT, "mean", _POOLER),
    "deberta-v2": ModelType(TEXT, "mean", _TOKENS),
    "modernbert": ModelType(TEXT, "mean", _TOKENS),
    "nomic_bert": ModelType(TEXT, "mean", _TOKENS),
    # Images: what the library's own call for features gives, or the class token
    "vit": ModelType(IMAGE, "cls", _PICTURES, attention="sdpa"),
    "deit": ModelType(IMAGE, "cls", _PICTURES, attention="sdpa"),
    "beit": ModelType(IMAGE, "pooler", _PICTURES, attention="sdpa"),
    "dinov2": ModelType(IMAGE, "cls", _PICTURES, attention="sdpa"),
    "dinov2_with_registers": ModelType(IMAGE, "cls", _PICTURES, attention="sdpa"),
    "dinov3_vit": ModelType(IMAGE, "cls", _PICTURES, attention="sdpa"),
    "dinov3_convnext": ModelType(IMAGE, "cls", _PICTURES),
    "clip": ModelType(IMAGE, "projection", (*_PICTURES, "projection"), "vision_config", attention="sdpa"),
    "clip_vision_model": ModelType(IMAGE, "pooler", (*_PICTURES, "projection"), attention="sdpa"),
    "siglip": ModelType(IMAGE, "pooler", _NO_CLASS, "vision_config", attention="sdpa"),
    "siglip_vision_model": ModelType(IMAGE, "pooler", _NO_CLASS, attention="sdpa"),
    "swin": ModelType(IMAGE, "pooler", _NO_CLASS),
    "convnext": ModelType(IMAGE, "pooler", _NO_CLASS),
    "convnextv2": ModelType(IMAGE, "pooler", _NO_CLASS),
    "resnet": ModelType(IMAGE, "pooler", _NO_CLASS),
    # Sound
    "wav2vec2": ModelType(AUDIO, "mean", ("mean", "max"), attention="sdpa"),
    "hubert": ModelType(AUDIO, "mean", ("mean", "max"), attention="sdpa"),
    "wavlm": ModelType(AUDIO, "mean", ("mean", "max")),
    "whisper": ModelType(AUDIO, "mean", ("mean", "max"), attention="sdpa"),
    "audio-spectrogram-transformer": ModelType(AUDIO, "pooler", ("pooler", "mean", "cls"), attention="sdpa"),
    "clap": ModelType(AUDIO, "projection", ("projection", "pooler")),
}


def model_of(config: Mapping[str, Any], files: frozenset[str], where: str) -> ModelType:
    """What is known of the model that `config` describes, or follows from the names of the files next to it.

    where: config.json's path. Raises BackboneError where its modality is unknown.
    """
    name = config.get("model_type")
    if isinstance(name, str) and name in MODELS:
        return MODELS[name]
    if "preprocessor_config.json" not in files and files & {"tokenizer.json", "tokenizer_config.json", "vocab.txt"}:
        return ModelType(TEXT, None)
    raise BackboneError(
        f"{where} describes a model of the kind {str(name)[:64]!r}, which precompute does not support.",
        hint=f"It knows {', '.join(sorted(MODELS))}. Give another one in your own factory: package.module:factory.",
    )
