"""Networks of transformers: made by its own classes from config.json, filled with tensors that we have read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import nn

from precompute.backbones.checkpoints import StateDict
from precompute.backbones.families.hf_encoder import Parts
from precompute.backbones.families.hf_folder import CONFIG, HFFolder, values_in
from precompute.backbones.families.hf_models import ModelType
from precompute.errors import BackboneError, WeightsError

INSTALL = "pip install 'precompute[hf]'"
COUNTERS = ("position_ids", "token_type_ids", "num_batches_tracked")
"""Ends of names of tensors that count up, as older releases have saved them; a network makes its own."""

HEADS = (
    *("cls.", "lm_head.", "classifier.", "qa_outputs.", "predictions.", "discriminator_predictions."),
    *("generator_predictions.", "generator_lm_head.", "vocab_transform.", "vocab_layer_norm.", "vocab_projector."),
)
"""Beginnings of names of what is behind the features: heads of a task. Where the names of a network's own tensors
begin with its prefix (`bert.`), all others are such heads."""

NAMES_SHOWN = 8
MAX_BUFFERS = 2**26  # a large Swin with windows of 12 keeps 2**19


@cache
def library() -> ModuleType:
    """transformers. Raises BackboneError where it is not installed."""
    try:
        import transformers
        import transformers.modeling_utils
    except ImportError as error:
        raise BackboneError(
            f"A backbone hf:NAME needs transformers: {error}.", hint=f"Install it: {INSTALL}"
        ) from error
    return transformers


def kind_of_network(folder: HFFolder, kind: ModelType, parts: Parts) -> tuple[Any, Any]:
    """(class, configuration) in transformers. Raises BackboneError where it has none."""
    transformers, where = library(), f"{folder.path}/{CONFIG}"
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    name = folder.config["model_type"]
    if name not in known:
        raise BackboneError(
            f"{where} names the model_type {name[:64]!r}, which transformers {transformers.__version__} does not have.",
            hint="Update transformers, or call the network in your own factory: package.module:factory.",
        )
    try:
        with _quiet():
            config = known[name].from_dict(dict(folder.config))
        if parts.tower:
            whole, config = config, getattr(config, parts.tower)
            if hasattr(whole, "projection_dim"):  # what a whole CLIP projects to, whatever its tower says
                config.projection_dim = whole.projection_dim
        if parts.network is not None:
            found = getattr(transformers, parts.network)
        else:
            found = transformers.AutoModel._model_mapping[type(config)]
            found = found[0] if isinstance(found, tuple) else found
    except Exception as error:  # of whatever class the library raises for values of a stranger
        raise BackboneError(
            f"transformers takes {where} for no model ({_one_line(error)}).",
            hint="Use a folder saved by transformers.",
        ) from error
    config._attn_implementation = kind.attention
    return found, config


def random_network(folder: HFFolder, kind: ModelType, parts: Parts, seed: int) -> nn.Module:
    """With random weights; the caller's random state stays as it was."""
    found, config = kind_of_network(folder, kind, parts)
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        return _frozen(_made(found, config, kind, folder))


def on_meta(folder: HFFolder, kind: ModelType, parts: Parts) -> nn.Module:
    """Without memory for its parameters."""
    found, config = kind_of_network(folder, kind, parts)
    with torch.device("meta"), _quiet():
        return _frozen(_made(found, config, kind, folder))


def filled_network(
    folder: HFFolder, kind: ModelType, parts: Parts, state: StateDict, source: str
) -> tuple[nn.Module, tuple[str, ...], bool]:
    """The network with `state`, notes worth telling, and whether its pooler was there.

    source: where `state` comes from. Raises WeightsError with the names where a tensor of the network is not in it, or
    has another shape, or where it holds one that the network has no place for. A pooler that is missing becomes NaN.
    """
    _check_size(folder, kind, parts, state, source)
    found, config = kind_of_network(folder, kind, parts)
    # Its own lists of what may be missing are left out: such a tensor would be random
    whole: Any = type(
        found.__name__,
        (found,),
        {
            "_keys_to_ignore_on_load_missing": None,
            "_keys_to_ignore_on_load_unexpected": None,
            "__module__": found.__module__,
        },
    )
    try:
        with torch.random.fork_rng(devices=[]), _quiet():
            network, info = whole.from_pretrained(
                None,
                config=config,
                state_dict=dict(state),
                dtype=torch.float32,
                attn_implementation=kind.attention,
                output_loading_info=True,
            )
    except Exception as error:
        raise WeightsError(
            f"The weights {source} do not fit {found.__name__}: {_one_line(error)}",
            hint=f"Check that {folder.path}/{CONFIG} belongs to them.",
        ) from error
    network.__class__ = found
    prefix = f"{found.base_model_prefix}."
    missing = sorted(one for one in info["missing_keys"] if not one.endswith(COUNTERS))
    poolers = [one for one in missing if parts.pooler and one.startswith(parts.pooler)]
    extra = sorted(one for one in info["unexpected_keys"] if not one.endswith(COUNTERS))
    inside = any(one.startswith(prefix) for one in state)
    heads = [
        one
        for one in extra
        if one.startswith((*HEADS, *kind.unused)) or (inside and not one.startswith(prefix) and one in state)
    ]
    _complain(
        source,
        found.__name__,
        missing=[one for one in missing if one not in poolers],
        unexpected=[one for one in extra if one not in heads],
        other=sorted(str(one[0] if isinstance(one, tuple) else one) for one in info["mismatched_keys"]),
    )
    for name, value in network.named_parameters():
        if name in poolers:
            value.data.fill_(torch.nan)  # so that nobody takes it for a real one
    tops = sorted({one.partition(".")[0] for one in heads})
    notes = (f"{source} also holds {', '.join(tops[:NAMES_SHOWN])}, which the features do not need",) if tops else ()
    return _frozen(network), notes, not poolers


def _made(found: Any, config: Any, kind: ModelType, folder: HFFolder) -> Any:
    try:
        return found._from_config(config, attn_implementation=kind.attention, dtype=torch.float32)
    except Exception as error:
        raise BackboneError(
            f"transformers cannot make the network that {folder.path}/{CONFIG} describes ({_one_line(error)}).",
            hint="Use a folder saved by transformers.",
        ) from error


def _frozen(network: Any) -> nn.Module:
    if hasattr(network, "loss_type"):
        network.loss_type = "ForMaskedLM"  # any: a tracer asks for every attribute, and the library's log fills up
    frozen: nn.Module = network.eval().requires_grad_(False)
    for module in frozen.modules():
        if getattr(module, "loss_type", "") is None:  # a tracer looks at all attributes, and transformers complains
            module.loss_type = "ForCausalLM"  # type: ignore[assignment]
    return frozen


def _check_size(folder: HFFolder, kind: ModelType, parts: Parts, state: StateDict, source: str) -> None:
    """Before memory is taken for it: a network has as many values as its file. Up to twice as many do no harm, and what
    is missing is named later."""
    network = on_meta(folder, kind, parts)
    if (
        buffers := sum(one.numel() for one in network.buffers())
    ) > MAX_BUFFERS:  # Swin's grow by its window's fourth power
        raise WeightsError(
            f"{folder.path}/{CONFIG} describes a network that keeps {buffers:,} values in addition to its parameters.",
            hint="Use a folder saved by transformers.",
        )
    named = network.named_parameters()
    wanted = sum(one.numel() for name, one in named if not (parts.pooler and name.startswith(parts.pooler)))
    there = values_in(state)
    if wanted > 2 * there:
        raise WeightsError(
            f"{folder.path}/{CONFIG} describes a network of {wanted:,} parameters, and {source} holds {there:,}.",
            hint="Use a folder saved by transformers.",
        )


def _complain(source: str, name: str, **wrong: Sequence[str]) -> None:
    lines = [
        f"  {len(names)} {kind if kind != 'other' else 'of another shape'}: {', '.join(names[:NAMES_SHOWN])}"
        f"{', ...' if len(names) > NAMES_SHOWN else ''}"
        for kind, names in wrong.items()
        if names
    ]
    if lines:
        raise WeightsError(
            "\n".join([f"The weights {source} do not fit {name}:", *lines]),
            hint="Check that they were trained for this model, and saved whole.",
        )


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:400]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own reports and bars: what is missing is an error here."""
    logging = library().utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
