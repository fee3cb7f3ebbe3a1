"""Where a network can be cut: nodes by torch.fx, and which of them enters the final classifier."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn

import precompute.backbones._torchvision  # noqa: F401

# isort: split
from torchvision.models.feature_extraction import create_feature_extractor

from precompute.backbones.layout import BATCH, Layout, by_name, find_layouts
from precompute.backbones.tracing import TORCHVISION, Tracing, trace, tracer_options, untraceable
from precompute.errors import BackboneError

OUTPUT = "output"
"""The layer name for what the whole module returns."""

INPUT = "input"
"""The layer name for the input of the network, behind the part of the preprocessing that runs on the device."""

POOLINGS = ("none", "mean")
ALL_BLOCKS = "all-blocks"
"""The layer name for the output of each stage or block."""

DOMINANT = 0.9
POOLS = (nn.MaxPool2d, nn.AvgPool2d)
PASSING = (nn.Dropout, nn.Identity, nn.Dropout2d)  # in eval mode these hand on what they get


@dataclass(frozen=True)
class Tap:
    """Where features are taken: a layer, how they are pooled, their shape for one sample, and a name for each axis."""

    layer: str
    pooling: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]


@dataclass(frozen=True)
class Pooling:
    """The mean over `positions`, which are axes. prefix: tokens in front of the first of them that are left out."""

    positions: tuple[int, ...] = ()
    prefix: int = 0

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        if self.prefix:
            size = features.shape[self.positions[0]] - self.prefix
            features = features.narrow(self.positions[0], self.prefix, size)
        return features.mean(dim=self.positions) if self.positions else features


class Truncated(nn.Module):
    """A network cut behind the last of its taps: its input -> for each tap (B, *shape)."""

    def __init__(self, body: nn.Module, layers: Sequence[str], poolings: Sequence[Pooling]) -> None:
        super().__init__()
        self.body = body
        self.layers = tuple(layers)
        self.poolings = tuple(poolings)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = by_name(self.body(*inputs), self.layers)
        parts = zip(self.layers, outputs, self.poolings, strict=True)
        return tuple(pool(_checked(output, layer)) for layer, output, pool in parts)


def _checked(features: object, layer: str) -> torch.Tensor:
    if not isinstance(features, torch.Tensor):
        raise BackboneError(
            f"The layer {layer!r} gives a {type(features).__name__}, not a tensor.",
            hint="Name another layer with --layer.",
        )
    return features


def node_names(model: nn.Module) -> list[str]:
    """All nodes of `model` in eval mode, as torchvision names them. Raises BackboneError where fx cannot trace it."""
    return list(trace(model)[1].values())


def layer_names(model: nn.Module, tracing: Tracing = TORCHVISION) -> list[str]:
    """The nodes of `model` in the order of execution, with `input` for the input of it, where that is one tensor.

    Raises BackboneError where fx cannot trace it.
    """
    names = trace(model, tracing)[1]
    inputs = [node for node in names if node.op == "placeholder"]
    return [INPUT if [node] == inputs else name for node, name in names.items()]


def cut(
    model: nn.Module,
    wanted: Sequence[tuple[str, str]],
    inputs: tuple[torch.Tensor, ...],
    tracing: Tracing = TORCHVISION,
) -> tuple[Truncated, tuple[Tap, ...]]:
    """`model` up to and with the last of `wanted`, pairs of a node and a pooling; everything behind it removed.

    As in torchvision, a module's name stands for its last node (`layer4`). With the pooling "mean" an output is
    averaged over positions, wherever their axes are; tokens in front that stand for no position, such as ViT's class
    token, are left out. What has no positions, (B, C), stays as it is. inputs: BATCH samples, to find shapes and axes.
    Raises BackboneError for unknown names, for what is not a batch of features, and where the axes of positions cannot
    be found; and what `model` raises for such inputs.
    """
    layers = [layer for layer, _ in wanted]
    if INPUT in layers:
        _check_input(inputs)
    if set(layers) == {INPUT}:
        body: nn.Module = _Input().eval()
    else:
        body = _cut_graph(model, layers, tracing) if _is_cut(model, layers, tracing) else model.eval()
    taps, poolings = [], []
    for (layer, pooling), (layout, shape) in zip(wanted, _layouts(body.eval(), layers, inputs, tracing), strict=True):
        pool = Pooling()
        if pooling == "mean" and len(shape) >= 2:
            if layout is None:
                raise BackboneError(
                    f"Which axes of the layer {layer!r}, {' x '.join(map(str, shape))} for one image, are positions "
                    "cannot be determined, so there is no mean over them.",
                    hint="Use --pooling none, a layer nearby, or a factory that averages itself.",
                )
            pool = Pooling(layout.positions, layout.prefix)
            kept = tuple(size for axis, size in enumerate(shape, start=1) if axis not in layout.positions)
            taps.append(Tap(layer, pooling, kept, ("channel",) * len(kept)))
        else:
            axes = layout.axes if layout is not None else tuple(f"axis{place}" for place in range(1, len(shape) + 1))
            taps.append(Tap(layer, pooling, shape, axes))
        poolings.append(pool)
    return Truncated(body, layers, poolings).eval(), tuple(taps)


class _Input(nn.Module):
    """The input of the network; a copy, since the tensor itself may be the memory of a batch."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.clone()


def _check_input(inputs: tuple[torch.Tensor, ...]) -> None:
    if len(inputs) != 1 or not inputs[0].is_floating_point():
        kinds = ", ".join(f"{tuple(one.shape)} {one.dtype}" for one in inputs)
        raise BackboneError(
            f"The input of the network is not one tensor of floats ({kinds}), so it cannot be a layer.",
            hint=f"Name another layer than {INPUT}.",
        )


def _layouts(
    body: nn.Module, layers: Sequence[str], inputs: tuple[torch.Tensor, ...], tracing: Tracing
) -> list[tuple[Layout | None, tuple[int, ...]]]:
    """Of each layer, unpooled, the layout and the shape for one sample."""
    found = []
    graph = _graph_of(body, tracing)
    for layer, (layout, output) in zip(layers, find_layouts(body, graph, inputs, layers), strict=True):
        features = _checked(output, layer)
        if features.ndim < 2 or features.shape[0] != BATCH:
            raise BackboneError(
                f"The layer {layer!r} gives shape {tuple(features.shape)} for {BATCH} images, which does not begin "
                "with the batch.",
                hint="Name a layer whose output is (batch, features...) with --layer.",
            )
        found.append((layout, tuple(features.shape[1:])))
    return found


def _graph_of(body: nn.Module, tracing: Tracing) -> fx.GraphModule | None:
    if isinstance(body, fx.GraphModule):
        return body
    try:
        return fx.GraphModule(body, trace(body, tracing)[0])
    except BackboneError:
        return None


def _is_cut(model: nn.Module, layers: Sequence[str], tracing: Tracing) -> bool:
    """Whether `model` is run by its graph; for its output alone only where it has one that gives a tensor."""
    if list(layers) != [OUTPUT]:
        return True
    try:
        return isinstance(output_of(trace(model, tracing)[0]).args[0], fx.Node)
    except BackboneError:
        return False


def output_of(graph: fx.Graph) -> fx.Node:
    node: fx.Node = next(node for node in graph.nodes if node.op == "output")
    return node


def _cut_graph(model: nn.Module, layers: Sequence[str], tracing: Tracing) -> fx.GraphModule:
    graph, qualified = trace(model, tracing)
    names = list(qualified.values())
    last = output_of(graph).args[0]
    if OUTPUT in layers and not isinstance(last, fx.Node):
        raise BackboneError("The output of the backbone is not one tensor.", hint="Leave --layer output out.")
    nodes = {layer: layer for layer in layers if layer != INPUT}
    if isinstance(last, fx.Node) and OUTPUT in nodes:
        nodes[OUTPUT] = qualified[last]
    for layer in nodes.values():
        if not any(name == layer or name.startswith(f"{layer}.") for name in names):
            raise unknown_layer(layer, names)
    try:
        body: fx.GraphModule = create_feature_extractor(
            model,
            return_nodes={node: layer for layer, node in nodes.items()},
            tracer_kwargs=tracer_options(tracing),
            suppress_diff_warning=True,
        )
    except Exception as error:
        raise untraceable(error) from error
    # torchvision's own kind of module comes out of copying with the graph of training mode
    return _keeping(fx.GraphModule(body, body.graph), layers)


def _keeping(body: fx.GraphModule, layers: Sequence[str]) -> fx.GraphModule:
    """With its outputs in this order; what the network continues with is copied, or operations in place change it."""
    output = output_of(body.graph)
    kept: dict[str, fx.Node] = {}
    nodes: dict[str, fx.Node] = dict(cast(Any, output.args[0]))  # the dictionary that torchvision makes
    if INPUT in layers:  # by its kind: its name may be that of a module as well
        nodes[INPUT] = next(node for node in body.graph.nodes if node.op == "placeholder")
    for layer, node in nodes.items():
        kept[layer] = node
        if len(node.users) > 1 or layer == INPUT:
            with body.graph.inserting_after(node):
                kept[layer] = body.graph.call_function(torch.clone, (node,))
    output.args = ({layer: kept[layer] for layer in layers},)
    body.graph.lint()
    body.recompile()
    return body


def unknown_layer(layer: str, names: list[str]) -> BackboneError:
    parts = {name[:dot] for name in names for dot, letter in enumerate(name) if letter == "."}
    close = difflib.get_close_matches(layer, [*names, *sorted(parts)], n=5, cutoff=0.4)
    also = f" Close: {', '.join(close)}." if close else ""
    return BackboneError(
        f"The backbone has no layer {layer!r}.{also}",
        hint=f"Its {len(names)} layers end with {', '.join(names[-6:])}. "
        "See all of them with `precompute backbones NAME --layers`.",
    )


def blocks(model: nn.Module, tracing: Tracing = TORCHVISION) -> list[str]:
    """The stages or blocks of a traceable network, in the order of execution, without the part with its classifier.

    They are the parts of several operations at the first level that has more than one (a part that holds nine tenths
    of them all is looked into); where a network has no such parts (VGG), its poolings. Raises BackboneError where it
    has neither.
    """
    graph, qualified = trace(model, tracing)
    names = list(dict.fromkeys(qualified.values()))
    try:
        classifier = final_classifier(model, tracing)
    except BackboneError:
        classifier = ""
    prefix = ""
    while True:
        sizes: dict[str, int] = {}
        for name in names:
            if name.startswith(prefix) and "." in name[len(prefix) :]:
                part = prefix + name[len(prefix) :].partition(".")[0]
                sizes[part] = sizes.get(part, 0) + 1
        parts = [part for part, size in sizes.items() if size > 1 and not f"{classifier}.".startswith(f"{part}.")]
        largest = max(parts, key=sizes.__getitem__, default="")
        if not largest or sizes[largest] < DOMINANT * sum(sizes[part] for part in parts):
            break
        prefix = f"{largest}."
    if parts:
        return parts
    modules = dict(model.named_modules())
    pools = [
        qualified[node] for node in graph.nodes if node.op == "call_module" and isinstance(modules[node.target], POOLS)
    ]
    if not pools:
        raise BackboneError(
            "The backbone has no blocks that can be identified.", hint="Name the layers: --layer A --layer B."
        )
    return pools


def default_layer(model: nn.Module, tracing: Tracing = TORCHVISION) -> tuple[str, str, int]:
    """(layer, pooling, width) of the input of the final classifier of a traceable classification model.

    The final classifier is the last Linear or Conv2d on the way to the output. In front of a Linear dropout is
    skipped, since it passes on what it gets. In front of a 1x1 convolution that acts as classifier (SqueezeNet) the
    map is averaged over its positions. Raises BackboneError where no such layer exists.
    """
    graph, names = trace(model, tracing)
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


def final_classifier(model: nn.Module, tracing: Tracing = TORCHVISION) -> str:
    """The name of the module that `default_layer` takes for the final classifier, such as `fc`. Raises as that does."""
    return str(_classifier_node(trace(model, tracing)[0], dict(model.named_modules())).target)


def _classifier_node(graph: fx.Graph, modules: dict[str, nn.Module]) -> fx.Node:
    node = output_of(graph)
    while node.op != "call_module" or not isinstance(modules[str(node.target)], nn.Linear | nn.Conv2d):
        inputs = node.all_input_nodes
        if len(inputs) != 1 or inputs[0].op == "placeholder":
            raise BackboneError("The backbone does not end in a linear classifier.", hint="Name a layer with --layer.")
        node = inputs[0]
    return node


def _is_dropout(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in (nn.functional.dropout, nn.functional.dropout2d)
