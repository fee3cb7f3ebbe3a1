"""Where a network can be cut: nodes by torch.fx, and which of them enters the final classifier."""

from __future__ import annotations

import contextlib
import difflib
import math

import torch
import torchvision
from torch import fx, nn
from torchvision.models.feature_extraction import NodePathTracer, create_feature_extractor

from precompute.backbones.layout import find_layout
from precompute.errors import BackboneError

OUTPUT = "output"
"""The layer name for what the whole module returns."""

POOLINGS = ("none", "mean")
AXES = {
    "CPP": ("channel", "height", "width"),
    "PPC": ("height", "width", "channel"),
    "PC": ("token", "channel"),
    "CP": ("channel", "token"),
}
"""What the roles of a layout (see `layout`), less the batch, are called in a feature file."""

PASSING = (nn.Dropout, nn.Identity, nn.Dropout2d)  # in eval mode these hand on what they get


class Truncated(nn.Module):
    """A network cut behind one node: (B, 3, H, W) -> (B, *shape), averaged over `positions`, which are axes.

    prefix: tokens in front of the first of them that are no positions, and are left out.
    """

    def __init__(self, body: nn.Module, layer: str, positions: tuple[int, ...] = (), prefix: int = 0) -> None:
        super().__init__()
        self.body = body
        self.layer = layer
        self.positions = positions
        self.prefix = prefix

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.body(images)
        if isinstance(features, dict):
            features = features[self.layer]
        if not isinstance(features, torch.Tensor):
            raise BackboneError(
                f"The layer {self.layer!r} gives a {type(features).__name__}, not a tensor.",
                hint="Name another layer with --layer.",
            )
        if self.prefix:
            features = features.narrow(self.positions[0], self.prefix, features.shape[self.positions[0]] - self.prefix)
        return features.mean(dim=self.positions) if self.positions else features


def node_names(model: nn.Module) -> list[str]:
    """All nodes of `model` in eval mode, as torchvision names them. Raises BackboneError where fx cannot trace it."""
    return list(_trace(model)[1].values())


def cut(model: nn.Module, layer: str, pooling: str, size: int = 224) -> Truncated:
    """`model` up to and with the node `layer`, everything behind it removed.

    As in torchvision, a module's name stands for its last node (`layer4`). With the pooling "mean" its output for
    images of `size` x `size` is averaged over positions, wherever their axes are; tokens in front that stand for no
    position, such as ViT's class token, are left out. What has no positions, (B, C), stays as it is.
    Raises BackboneError for unknown names, and where the axes of positions cannot be told.
    """
    body = model.eval() if layer == OUTPUT else _cut_graph(model, layer)
    if pooling != "mean":
        return Truncated(body, layer).eval()
    try:
        found, shape = find_layout(body.eval(), _graph_of(body), size)
    except (RuntimeError, AssertionError, ValueError):  # of images of this size: whoever runs it next says so
        return Truncated(body, layer).eval()
    if len(shape) < 2:
        return Truncated(body, layer).eval()
    if found is None:
        raise BackboneError(
            f"Which axes of the layer {layer!r}, {' x '.join(map(str, shape))} for one image, are positions cannot be "
            "told, so there is no mean over them.",
            hint="Take --pooling none, a layer nearby, or a factory that averages itself.",
        )
    return Truncated(body, layer, found.positions, found.prefix).eval()


def axes_of(module: Truncated, shape: tuple[int, ...], size: int) -> tuple[str, ...]:
    """A word for each axis of `shape`, one image's features; `axis1` and so on where nothing is known of them."""
    if len(shape) == 1:
        return ("channel",)
    roles = ""
    if not module.positions:  # else one mean was taken already
        with contextlib.suppress(RuntimeError, AssertionError, ValueError):  # of two images at once, where one ran
            found, whole = find_layout(module.body, _graph_of(module.body), size)
            roles = found.roles[1:] if found is not None and whole == shape else ""
    return AXES.get(roles, tuple(f"axis{number}" for number in range(1, len(shape) + 1)))


def _graph_of(body: nn.Module) -> fx.GraphModule | None:
    if isinstance(body, fx.GraphModule):
        return body
    try:
        return fx.GraphModule(body, _trace(body)[0])
    except BackboneError:
        return None


def _cut_graph(model: nn.Module, layer: str) -> fx.GraphModule:
    names = node_names(model)
    if not any(name == layer or name.startswith(f"{layer}.") for name in names):
        parts = {name[:dot] for name in names for dot, letter in enumerate(name) if letter == "."}
        close = difflib.get_close_matches(layer, [*names, *sorted(parts)], n=5, cutoff=0.4)
        also = f" Close: {', '.join(close)}." if close else ""
        raise BackboneError(
            f"The backbone has no layer {layer!r}.{also}",
            hint=f"Its {len(names)} layers end with {', '.join(names[-6:])}. "
            "See all of them with `precompute backbones NAME --layers`.",
        )
    try:
        body: fx.GraphModule = create_feature_extractor(model, return_nodes={layer: layer}, suppress_diff_warning=True)
    except Exception as error:
        raise _untraceable(error) from error
    return body


def default_layer(model: nn.Module) -> tuple[str, str, int]:
    """(layer, pooling, width) of what enters the final classifier of a traceable classification model.

    The final classifier is the last Linear or Conv2d on the way to the output. In front of a Linear dropout is
    skipped, since it hands on what it gets. In front of a 1x1 convolution that acts as classifier (SqueezeNet) the
    map is averaged over its positions. Raises BackboneError where no such layer exists.
    """
    graph, names = _trace(model)
    modules = dict(model.named_modules())
    node = _classifier_node(graph, modules)
    classifier = modules[node.target]
    node = node.all_input_nodes[0]
    while (node.op == "call_module" and isinstance(modules[node.target], PASSING)) or _is_dropout(node):
        node = node.all_input_nodes[0]
    if node.op == "placeholder":
        raise BackboneError("The backbone is a single linear layer.", hint="Name a layer with --layer.")
    if isinstance(classifier, nn.Conv2d):
        return names[node], "mean", classifier.in_channels
    return names[node], "none", classifier.in_features


def final_classifier(model: nn.Module) -> str:
    """The name of the module that `default_layer` takes for the final classifier, such as `fc`. Raises as that does."""
    return str(_classifier_node(_trace(model)[0], dict(model.named_modules())).target)


def _classifier_node(graph: fx.Graph, modules: dict[str, nn.Module]) -> fx.Node:
    node: fx.Node = next(node for node in graph.nodes if node.op == "output")
    while node.op != "call_module" or not isinstance(modules[str(node.target)], nn.Linear | nn.Conv2d):
        inputs = node.all_input_nodes
        if len(inputs) != 1 or inputs[0].op == "placeholder":
            raise BackboneError("The backbone does not end in a linear classifier.", hint="Name a layer with --layer.")
        node = inputs[0]
    return node


def _is_dropout(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in (nn.functional.dropout, nn.functional.dropout2d)


def _trace(model: nn.Module) -> tuple[fx.Graph, dict[fx.Node, str]]:
    """The graph of `model` in eval mode and torchvision's name for each node, by torchvision's own tracer."""
    # The defaults that create_feature_extractor's documentation states, so that both see the same nodes
    whole = [kind for kind in vars(torchvision.ops).values() if isinstance(kind, type) and issubclass(kind, nn.Module)]
    tracer = NodePathTracer(autowrap_modules=(math, torchvision.ops), leaf_modules=whole)
    try:
        graph = tracer.trace(model.eval())
    except Exception as error:
        raise _untraceable(error) from error
    return graph, tracer.node_to_qualname


def _untraceable(error: Exception) -> BackboneError:
    return BackboneError(
        f"torch.fx cannot trace the backbone, so it has no layers to choose from ({type(error).__name__}: {error}).",
        hint=f"Let the factory return a module whose output is the features, and use --layer {OUTPUT}.",
    )
