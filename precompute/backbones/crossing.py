"""Where a network can be cut in two: the places that a single tensor crosses.

What a network computes forms a graph without circles. The features depend on the image by way of some of its nodes; a
node is a place to cut if no value passes it by, from a node before it to one behind. Parameters, buffers and what is
computed from them alone pass nothing by, since the part behind the cut holds them itself. Neither does a shape: it is
known before the image is, except for the number of images, which any activation tells (`Shape`).
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from precompute.backbones import layers
from precompute.backbones.families import family_of
from precompute.backbones.layers import INPUT, OUTPUT
from precompute.backbones.layout import BATCH
from precompute.backbones.load import Backbone
from precompute.backbones.whole import network_input
from precompute.errors import BackboneError

OTHER = BATCH + 1
"""A second number of images: a shape's numbers that are not the same for both follow from the number of images."""

SHAPE_ATTRIBUTES = ("shape", "ndim", "device", "dtype")
SHAPE_METHODS = ("size", "dim", "ndimension")
NEAREST = 2  # possible places named before and behind one that is not


@dataclass(frozen=True)
class Place:
    """A node at which one tensor crosses. layer: its shortest name · shape: of its output for one sample."""

    layer: str
    shape: tuple[int, ...]
    node: fx.Node


@dataclass(frozen=True)
class Shape:
    """What a question for a tensor's shape, device or dtype gave for BATCH and for OTHER images."""

    value: Any
    other: Any

    @property
    def known(self) -> bool:
        """Whether every number in it is fixed, or a multiple of the number of images."""
        try:
            self.rebuilt(None)
        except ValueError:
            return False
        return True

    def rebuilt(self, activation: fx.Node | None) -> Any:
        """The same for the batch of `activation`, as an argument of its graph; None only checks.

        Raises ValueError for a number that does not follow from the number of images.
        """
        return _rebuilt(self.value, self.other, activation)


def _rebuilt(value: Any, other: Any, activation: fx.Node | None) -> Any:
    if isinstance(value, tuple) and isinstance(other, tuple) and len(value) == len(other):
        return tuple(_rebuilt(one, two, activation) for one, two in zip(value, other, strict=True))
    if isinstance(value, torch.device):
        return activation and activation.graph.call_function(getattr, (activation, "device"))
    if type(value) is type(other) and value == other and isinstance(value, int | torch.dtype):
        return value
    if type(value) is type(other) is int and value % BATCH == 0 and value * OTHER == other * BATCH:
        if activation is None:
            return None
        count = activation.graph.call_method("size", (activation, 0))
        return count if value == BATCH else activation.graph.call_function(operator.mul, (count, value // BATCH))
    raise ValueError(f"{value!r} for {BATCH} images, {other!r} for {OTHER}")


@dataclass(frozen=True)
class Value:
    """What a node gave: the tensor's shape and whether it is of floating point, or anything else as it is."""

    shape: tuple[int, ...] | None
    floating: bool = False
    other: Any = None


class _Recorder(fx.Interpreter):
    """Runs a graph, and keeps what its nodes gave; of tensors only the shapes."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)
        self.values: dict[fx.Node, Value] = {}

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if isinstance(result, torch.Tensor):
            self.values[node] = Value(tuple(result.shape), result.is_floating_point())
        else:
            self.values[node] = Value(None, other=result if _asks_for_shape(node) else None)
        return result


def _asks_for_shape(node: fx.Node) -> bool:
    if node.op == "call_function":
        return (node.target is getattr and node.args[1] in SHAPE_ATTRIBUTES) or node.target is len
    return node.op == "call_method" and node.target in SHAPE_METHODS


def example_input(backbone: Backbone, count: int, *, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """What the network is called with, for `count` samples: random floats, the example's values where they are none."""
    first = next((one for one in backbone.network.parameters() if one.is_floating_point()), None)
    dtype = torch.float32 if first is None else first.dtype
    batch = tuple(torch.stack([one] * count) for one in backbone.preprocess.example())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        inputs = network_input(backbone.preprocess.device(), batch, dtype)
    return tuple(
        torch.randn(one.shape, generator=generator).to(one.dtype) if one.is_floating_point() else one for one in inputs
    )


@dataclass(frozen=True)
class Crossings:
    """A network's graph with what its nodes give, and where one tensor crosses it.

    names: torchvision's name for each node · features: the node that gives the input of the classifier, or the output ·
    pooling: what is done to it · values: for BATCH images · others: for OTHER images.
    """

    network: nn.Module
    graph: fx.Graph
    names: dict[fx.Node, str]
    features: fx.Node
    pooling: str
    values: dict[fx.Node, Value]
    others: dict[fx.Node, Value]

    @classmethod
    def of(cls, backbone: Backbone) -> Crossings:
        """Traces the network, and runs it twice on a few samples. Raises BackboneError where fx cannot trace it."""
        network = backbone.network
        family = family_of(backbone.name)
        graph, names = family.trace(network)
        last = layers.output_of(graph).args[0]
        try:
            layer, pooling, _ = family.default_layer(backbone.name, network)
        except BackboneError:
            layer, pooling = OUTPUT, "none"
        if layer != OUTPUT:
            features = next(node for node, name in names.items() if name == layer)
        elif isinstance(last, fx.Node):
            features = last
        else:
            raise BackboneError(
                "The output of the backbone is not one tensor.", hint="Its forward must return a single tensor."
            )
        runs = []
        for count in (BATCH, OTHER):
            recorder = _Recorder(network, graph)
            with torch.no_grad():
                recorder.run(*example_input(backbone, count))
            runs.append(recorder.values)
        return cls(network, graph, names, features, pooling, *runs)

    @cached_property
    def order(self) -> dict[fx.Node, int]:
        return {node: number for number, node in enumerate(self.graph.nodes)}

    @cached_property
    def shapes(self) -> dict[fx.Node, Shape]:
        """The questions for a shape whose answer is known without the tensor."""
        asked = {
            node: Shape(self.values[node].other, self.others[node].other)
            for node in self.graph.nodes
            if _asks_for_shape(node)
        }
        return {node: shape for node, shape in asked.items() if shape.known}

    @cached_property
    def from_image(self) -> set[fx.Node]:
        """The nodes whose values the image decides."""
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            reached = any(one in found for one in node.all_input_nodes) and node not in self.shapes
            if node.op == "placeholder" or reached:
                found.add(node)
        return found

    @cached_property
    def path(self) -> list[fx.Node]:
        """The nodes by way of which the features depend on the image, in the order of execution."""
        found, waiting = set(), [self.features] if self.features in self.from_image else []
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting += [one for one in node.all_input_nodes if one in self.from_image]
        return sorted(found, key=self.order.__getitem__)

    def passing(self, node: fx.Node) -> list[fx.Node]:
        """The nodes before `node` that are needed behind it, itself left out."""
        place = self.order[node]
        return [
            one
            for one in self.path
            if self.order[one] < place and any(self.order[user] > place for user in self._followers[one])
        ] + [one for one in self.path if one.op == "placeholder" and self.order[one] > place]

    @cached_property
    def _followers(self) -> dict[fx.Node, list[fx.Node]]:
        inside = set(self.path)
        return {node: [user for user in node.users if user in inside] for node in self.path}

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Where the network can be cut so that something is left to train, in the order of execution."""
        found = []
        reach, inputs = -1, [self.order[node] for node in self.path if node.op == "placeholder"]
        for node in self.path:  # reach: the last node that a node before this one hands its value to
            place = self.order[node]
            alone = reach <= place and max(inputs) <= place
            named = node.op == "placeholder" or node in self._aliases
            if alone and named and place < self._last_trained and self.crossable(node):
                found.append(Place(self.name_of(node), self._shape(node), node))
            reach = max([reach, *(self.order[user] for user in self._followers[node])])
        return tuple(found)

    def crossable(self, node: fx.Node) -> bool:
        """Whether it gives one tensor of floating point that begins with the batch."""
        first, second = self.values[node], self.others[node]
        if first.shape is None or second.shape is None or not first.floating or len(first.shape) < 2:
            return False
        return first.shape[0] == BATCH and second.shape[0] == OTHER and first.shape[1:] == second.shape[1:]

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        return (self.values[node].shape or ())[1:]

    def parameters_behind(self, layer: str) -> int:
        """How many numbers could be trained behind `layer`, without the classifier."""
        place, end = self.order[self.node_of(layer)], self.order[self.features]
        return sum(attribute_of(self.network, path).numel() for path in self._parameters_between(place, end))

    def parameters_before(self, node: fx.Node) -> set[str]:
        """The names of the parameters that what crosses at `node` depends on."""
        return self._parameters_between(-1, self.order[node])

    def _parameters_between(self, first: int, last: int) -> set[str]:
        """Of the nodes of the path behind the place `first`, up to and with the place `last`."""
        inside = (node for node in self.path if first < self.order[node] <= last)
        return {path for node in inside for path in self._parameters(node)}

    @cached_property
    def _last_trained(self) -> int:
        """The place of the last node of the path that has parameters, -1 where there is none."""
        return max((self.order[node] for node in self.path if self._parameters(node)), default=-1)

    def _parameters(self, node: fx.Node) -> list[str]:
        """The names of the parameters that this operation uses, also by way of what no image decides."""
        if node.op == "call_module":
            module = self.network.get_submodule(str(node.target))
            return [f"{node.target}.{name}" for name, _ in module.named_parameters()]
        if node.op == "get_attr":
            is_one = isinstance(attribute_of(self.network, str(node.target)), nn.Parameter)
            return [str(node.target)] if is_one else []
        fixed = [one for one in node.all_input_nodes if one not in self.from_image]
        return [name for one in fixed for name in self._parameters(one)]

    @cached_property
    def _aliases(self) -> dict[fx.Node, str]:
        """The shortest name of each node: a module's name stands for its last node."""
        last: dict[str, fx.Node] = {}
        for node, name in self.names.items():
            parts = name.split(".")
            for count in range(1, len(parts) + 1):
                last[".".join(parts[:count])] = node
        last |= {name: node for node, name in self.names.items()}  # a node of that very name comes first
        shortest: dict[fx.Node, str] = {}
        for name, node in last.items():
            if name in (INPUT, OUTPUT):  # these stand for something else
                continue
            if node not in shortest or len(name) < len(shortest[node]):
                shortest[node] = name
        return shortest

    @cached_property
    def _input(self) -> fx.Node:
        node: fx.Node = next(node for node in self.graph.nodes if node.op == "placeholder")
        return node

    def name_of(self, node: fx.Node) -> str:
        return INPUT if node.op == "placeholder" else self._aliases.get(node, self.names[node])

    def node_of(self, layer: str) -> fx.Node:
        """The node that `layer` names, as torchvision has it. Raises BackboneError for unknown names."""
        if layer == INPUT:
            return self._input
        last = layers.output_of(self.graph).args[0]
        if layer == OUTPUT and isinstance(last, fx.Node):
            return last
        found = [node for node, name in self.names.items() if name == layer or name.startswith(f"{layer}.")]
        if not found:
            raise layers.unknown_layer(layer, list(self.names.values()))
        return found[-1]

    def place_of(self, layer: str) -> Place:
        """The place that `layer` names. Raises BackboneError, with the nearest possible ones, where it is none."""
        node = self.node_of(layer)
        for place in self.places:
            if place.node is node:
                return place
        raise BackboneError(self._why_not(layer, node), hint=self._nearest(node))

    def _why_not(self, layer: str, node: fx.Node) -> str:
        place = self.order[node]
        if place >= self.order[self.features]:
            return f"Behind the layer {layer!r} there is nothing to train except the head."
        if node not in self.path:
            return f"The features do not depend on the layer {layer!r}."
        if passing := self.passing(node):
            others = ", ".join(dict.fromkeys(repr(self.name_of(one)) for one in passing))
            return (
                f"More than one tensor crosses a cut at the layer {layer!r}: the layers behind it also need {others}."
            )
        if not self.crossable(node):
            return f"The layer {layer!r} does not give one tensor that begins with the batch."
        return f"Between the layer {layer!r} and the features there are no parameters to train."

    def _nearest(self, node: fx.Node) -> str:
        at = [self.order[place.node] for place in self.places]
        split = bisect_left(at, self.order[node])
        named = [
            f"{side}: {', '.join(place.layer for place in places)}"
            for side, places in (
                ("before", self.places[max(0, split - NEAREST) : split]),
                ("behind", self.places[split : split + NEAREST]),
            )
            if places
        ]
        if not named:
            return "The network cannot be cut; train a head."
        return f"The nearest possible cuts are {'; '.join(named)}."


def attribute_of(module: nn.Module, path: str) -> Any:
    """The parameter, buffer or value that is at `path`, such as `encoder.pos_embedding`."""
    folder, _, name = path.rpartition(".")
    return getattr(module.get_submodule(folder), name)


def cuts(backbone: Backbone) -> tuple[str, ...]:
    """All layers of `backbone.network` where it can be cut in two, in the order of execution.

    Of a module that ends there the shortest name is given: `layer3`, not `layer3.1.relu_1`. Raises BackboneError where
    fx cannot trace the network.
    """
    return tuple(place.layer for place in Crossings.of(backbone).places)
