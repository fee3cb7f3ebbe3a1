"""Small language models with random weights, saved by transformers itself, and what the library makes of texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

WORDS = (
    "a all and any are as at be but by can day did do for from go had has have he her him his how i if in is it its "
    "know like long make me more my no not now of on one or out over people said say see she so some than that the "
    "their them then there they thing time to two up us use was water way we were what when where which who will with "
    "word you your"
).split()
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789?!.,'"
TEXTS = (
    "what is it ?",
    "how long is a day and who said so ?",
    "no",
    "when they were there he had all the time to see where the water was , and she said : you will know the way .",
    "Where CAN people go from zanzibar",
    " ".join(WORDS[:70]),
)
"""Of 3 to some 70 tokens."""

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 140,
    "hidden_act": "gelu",
}
OTHERS: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 140},
    "albert": {**SMALL, "embedding_size": 16, "num_hidden_groups": 1},
    "electra": {**SMALL, "embedding_size": 16},
    "modernbert": {**SMALL, "global_attn_every_n_layers": 2, "local_attention": 16},
    "convbert": {**SMALL, "embedding_size": 32},
}


def tokenizer(pad: int = 0) -> Any:
    """Word pieces, with the special tokens in front; that of padding has the number `pad`, 0 or 1."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]"] if pad == 0 else ["[UNK]", "[PAD]"]
    names = [*special, "[CLS]", "[SEP]", *WORDS, *LETTERS, *(f"##{one}" for one in LETTERS)]
    vocab = {name: number for number, name in enumerate(dict.fromkeys(names))}
    made = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    )
    made.enable_padding(length=128, pad_id=pad)  # as all-MiniLM-L6-v2 has it
    made.enable_truncation(20)
    words = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=128, **words)


def save(folder: Path, kind: str = "bert", *, seed: int = 1, head: str = "", **changes: Any) -> Path:
    """A folder of transformers with a model of this kind; head: the name of a class with a head of a task."""
    import transformers

    pad = 1 if kind in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    words = tokenizer(pad)
    values = {**OTHERS.get(kind, SMALL), "vocab_size": len(words), "pad_token_id": pad, **changes}
    config = transformers.AutoConfig.for_model(kind, **values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: Any = getattr(transformers, head)(config) if head else transformers.AutoModel.from_config(config)
        for value in made.parameters():  # what begins as 0 or 1 would hide where it stands in the wrong place
            value.data += 0.05 * torch.randn_like(value)
    made.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def of_library(folder: Path, text: str, *, limit: int = 128) -> Any:
    """The library's own output for one text, unpadded, in fp32, with its hidden states."""
    import transformers

    model: Any = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    words.backend_tokenizer.no_padding()
    inputs = words(text, return_tensors="pt", truncation=True, max_length=limit, padding=False)
    kept = {name: value for name, value in inputs.items() if name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        return model(**kept, output_hidden_states=True, return_dict=True)


def as_sentences(folder: Path, *modules: tuple[str, dict[str, Any]], limit: int | None = 128) -> Path:
    """Files that make a folder one of sentence-transformers; modules: those behind the network, with their settings."""
    listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for place, (kind, settings) in enumerate(modules, start=1):
        path = f"{place}_{kind}"
        listed.append({"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"})
        (folder / path).mkdir()
        if settings:
            (folder / path / "config.json").write_text(json.dumps(settings))
    (folder / "modules.json").write_text(json.dumps(listed))
    if limit is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": limit, "do_lower_case": False}))
    return folder


def pooling(mode: str) -> tuple[str, dict[str, Any]]:
    """The module Pooling, in the form of older folders."""
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
    return "Pooling", {"word_embedding_dimension": 32, **{f"pooling_mode_{one}": one == mode for one in modes}}


def cosine(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    one, other = one.astype(np.float64), other.astype(np.float64)
    found: NDArray[np.float64] = (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)
    return found
