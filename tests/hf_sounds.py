"""Folders of small random networks for sound, saved by transformers itself, and what it says of a clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

RATE = 16_000
WAVE = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (16, 16, 16, 16, 16, 16, 16),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 8,
}
"""As wav2vec2-base has them, but for its widths: kernels and strides are its own."""

FORMS = {
    "wav2vec2, group": ("wav2vec2", {"feat_extract_norm": "group", "do_stable_layer_norm": False}),
    "wav2vec2, layer": ("wav2vec2", {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}),
    "hubert, group": ("hubert", {"feat_extract_norm": "group", "do_stable_layer_norm": False}),
    "wavlm, group": ("wavlm", {"feat_extract_norm": "group", "do_stable_layer_norm": False}),
    "wavlm, layer": ("wavlm", {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}),
    "hubert, layer": ("hubert", {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}),
}
CLAP_AUDIO = {
    "patch_embeds_hidden_size": 8,
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "projection_dim": 12,
    "aff_block_r": 2,
    "enable_fusion": False,
}


def network(name: str, seed: int = 0, **settings: Any) -> Any:
    """name: of FORMS, or whisper, or clap. In eval mode; its norms are not those of a fresh one."""
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "whisper":
            sizes = {"d_model": 24, "encoder_layers": 2, "decoder_layers": 1, "num_mel_bins": 80, "vocab_size": 16}
            heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32}
            ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
            config = transformers.WhisperConfig(**sizes, **heads, **ids, decoder_ffn_dim=32, **settings)
            model: Any = transformers.WhisperModel(config)
        elif name == "ast":
            sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
            config = transformers.ASTConfig(**sizes, max_length=128, num_mel_bins=32, **settings)
            model = transformers.ASTModel(config)
        elif name == "clap":
            text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
            text |= {"vocab_size": 16, "projection_dim": 12}
            config = transformers.ClapConfig(
                text_config=text, audio_config={**CLAP_AUDIO, **settings}, projection_dim=12
            )
            model = transformers.ClapModel(config)
        else:
            kind, form = FORMS[name]
            names = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}
            config = getattr(transformers, f"{names[kind]}Config")(**{**WAVE, **form, **settings})
            model = getattr(transformers, f"{names[kind]}Model")(config)
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases, which are ones and zeros
                parameter.data += 0.1 * torch.randn(parameter.shape)
        for one, buffer in model.named_buffers():
            if one.endswith("running_mean"):
                buffer.normal_()
    return model.eval()


def extractor(name: str, **settings: Any) -> Any:
    import transformers

    if name == "whisper":
        return transformers.WhisperFeatureExtractor(**settings)
    if name == "ast":
        return transformers.ASTFeatureExtractor(**{"max_length": 128, "num_mel_bins": 32, **settings})
    if name == "clap":
        given = {"truncation": "rand_trunc", "frequency_min": 50, **settings}
        return transformers.ClapFeatureExtractor(**given)
    return transformers.Wav2Vec2FeatureExtractor(**settings)


def saved(folder: Path, name: str, **settings: Any) -> tuple[Any, Any]:
    """The network and its extractor, both saved to `folder`. settings: of the extractor."""
    model, made = network(name), extractor(name, **settings)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return model, made


def library_feature(name: str, model: Any, made: Any, wave: np.ndarray) -> np.ndarray:
    """What the library says of a clip of one window alone, without padding where the network needs none."""
    with torch.inference_mode():
        if name == "whisper":
            given = made(wave, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
            states = model.encoder(given["input_features"]).last_hidden_state[0]
            mel = int(given["attention_mask"].sum())
            return np.asarray(states[: (mel - 1) // 2 + 1].mean(0))
        if name == "ast":
            return np.asarray(model(**made(wave, sampling_rate=RATE, return_tensors="pt")).pooler_output[0])
        if name == "clap":
            given = made(wave, sampling_rate=48_000, return_tensors="pt")
            return np.asarray(model.get_audio_features(**given).pooler_output[0])
        given = made(wave, sampling_rate=RATE, return_tensors="pt")
        return np.asarray(model(given["input_values"]).last_hidden_state[0].mean(0))
