"""The graph of a network, by torch.fx as torchvision uses it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

import precompute.backbones._torchvision  # noqa: F401

# isort: split
import torchvision
from torchvision.models.feature_extraction import NodePathTracer

from precompute.errors import BackboneError


@dataclass(frozen=True)
class Tracing:
    """What torch.fx takes for one operation and does not look into: kinds of modules, and functions."""

    modules: tuple[type[nn.Module], ...]
    functions: tuple[Callable[..., Any], ...] = ()


TORCHVISION = Tracing(
    tuple(kind for kind in vars(torchvision.ops).values() if isinstance(kind, type) and issubclass(kind, nn.Module))
)
"""The defaults that create_feature_extractor's documentation states."""


def trace(model: nn.Module, tracing: Tracing = TORCHVISION) -> tuple[fx.Graph, dict[fx.Node, str]]:
    """The graph of `model` in eval mode and torchvision's name for each node, by torchvision's own tracer."""
    tracer = NodePathTracer(**tracer_options(tracing))
    try:
        graph = tracer.trace(model.eval())
    except Exception as error:
        raise untraceable(error) from error
    return graph, tracer.node_to_qualname


def tracer_options(tracing: Tracing) -> dict[str, Any]:
    """The same for `trace` and for create_feature_extractor, so that both see the same nodes."""
    return {
        "autowrap_modules": (math, torchvision.ops),
        "leaf_modules": list(tracing.modules),
        "autowrap_functions": tracing.functions,
    }


def untraceable(error: Exception) -> BackboneError:
    return BackboneError(
        f"torch.fx cannot trace the backbone, so it has no layers to choose from ({type(error).__name__}: {error}).",
        hint="Let the factory return a module whose output is the features, and use --layer output.",
    )
