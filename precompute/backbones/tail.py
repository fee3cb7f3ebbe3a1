"""The part of a network behind a cut, or one of the user's own: from the activation of one layer to features."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn

from precompute.backbones.crossing import Crossings, Place, attribute_of, example_input
from precompute.backbones.layers import INPUT, POOLINGS
from precompute.backbones.layout import BATCH
from precompute.backbones.load import Backbone
from precompute.errors import BackboneError, UsageError
from precompute.system.code import current_folder_importable, is_code, load_attribute

TAIL = "tail"
"""Under this name fx keeps what a Tail knows of itself, also in copies."""

RESERVED = ("layer", "shape", "width")
TOLERANCE = 1e-4  # relative L2 between a network and its two parts, far above rounding


class Tail(fx.GraphModule):
    """A network behind one of its layers: (B, *shape) floats -> features (B, width), the input of its classifier.

    layer, shape: the layer and the shape of its activation for one sample. The names in the state dict are those of the
    whole network, such as `layer4.0.conv1.weight`; it holds only what is behind the layer, as copies. Its input is
    never changed in place. The classifier is not part of it, nor dropout directly in front of that.

    Every part stays in eval mode, also under `train()`: BatchNorm keeps the statistics it was trained with, which few
    images cannot estimate, and dropout and stochastic depth pass on what they get. So training changes parameters only.
    """

    @property
    def layer(self) -> str:
        return str(self.meta[TAIL][0])

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.meta[TAIL][1])

    @property
    def width(self) -> int:
        return int(self.meta[TAIL][2])

    def train(self, mode: bool = True) -> Tail:  # noqa: ARG002
        """Does nothing, see the class. Gradients do not depend on it."""
        for module in self.modules():
            module.training = False
        return self


class UntracedTail(nn.Module):
    """A whole network that torch.fx cannot trace, as the tail behind `input`; otherwise as `Tail`, names included.

    Its output counts as the features, as it does for `extract`.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, ...], width: int, *, copies: bool) -> None:
        super().__init__()
        self._modules, self._parameters, self._buffers = network._modules, network._parameters, network._buffers
        self._non_persistent_buffers_set = network._non_persistent_buffers_set
        self._whole = (network,)  # in a tuple it is no part of this module, which would change the names
        self._about, self._copies = (shape, width), copies

    @property
    def layer(self) -> str:
        return INPUT

    @property
    def shape(self) -> tuple[int, ...]:
        return self._about[0]

    @property
    def width(self) -> int:
        return self._about[1]

    def forward(self, activation: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self._whole[0](activation.clone() if self._copies else activation)
        return features.flatten(1)

    def train(self, mode: bool = True) -> UntracedTail:  # noqa: ARG002
        """Does nothing, as with `Tail`."""
        return self


def tail_of(backbone: Backbone, layer: str, *, crossings: Crossings | None = None) -> Tail | UntracedTail:
    """What is behind `layer` of `backbone.network`, up to the input of its final classifier.

    layer: a name as `extract` takes it, or `input`, behind which the whole network lies. crossings: of this backbone,
    where they are known already. Parameters are copies, in fp32, and require gradients, except those that the part in
    front of the cut uses as well, or the two parts would no longer be one network. The backbone stays as it is. Two
    random samples run through the network and through the tail, whose features must agree.

    Raises BackboneError for unknown layers; for pooled ones; where more than one tensor crosses the cut, with the
    nearest layers at which one does; where nothing to train is behind; and where the network cannot be traced, unless
    the layer is `input`.
    """
    _check_not_pooled(backbone, layer)
    try:
        crossings = crossings or Crossings.of(backbone)
    except BackboneError:
        if layer != INPUT:
            raise
        return _untraced(backbone)
    place = crossings.place_of(layer)
    graph = _graph_behind(crossings, place)
    _check_names(graph)
    activation, features = _activation_and_features(backbone, crossings, place)
    plain = copy.deepcopy(fx.GraphModule(crossings.network, graph)).float()
    if _changes_its_input(plain, activation):
        entry = next(iter(plain.graph.nodes))
        with plain.graph.inserting_after(entry):
            copied = plain.graph.call_function(torch.clone, (entry,))
        entry.replace_all_uses_with(copied, delete_user_cb=lambda user: user is not copied)
    tail = Tail(plain, plain.graph)
    tail.meta[TAIL] = (layer, place.shape, features.shape[1])
    tail.train()
    _require_gradients(tail, crossings, place)
    _check_agrees(tail, activation, features)
    return tail


def _untraced(backbone: Backbone) -> UntracedTail:
    """The whole network as it is. Raises BackboneError where it does not make one tensor into one."""
    inputs = example_input(backbone, BATCH, seed=1)
    network = copy.deepcopy(backbone.network).float().eval().requires_grad_(True)
    if len(inputs) != 1 or not inputs[0].is_floating_point():
        raise BackboneError(
            f"The input of {backbone.name} is not one tensor of floats, so it has no tail behind {INPUT!r}.",
            hint="Train a head with train-head.",
        )
    given = inputs[0].float()
    before = given._version
    with torch.no_grad():
        features = network(given)
    if not isinstance(features, torch.Tensor) or features.ndim < 2 or len(features) != BATCH:
        raise BackboneError(
            f"The output of {backbone.name} is not one tensor (B, ...).", hint="Let the factory return the features."
        )
    shape, width = tuple(given.shape[1:]), features.flatten(1).shape[1]
    return UntracedTail(network, shape, width, copies=given._version != before)


def _require_gradients(tail: Tail, crossings: Crossings, place: Place) -> None:
    network = crossings.network
    shared = {id(attribute_of(network, name)) for name in crossings.parameters_before(place.node)}
    for name, parameter in tail.named_parameters():
        parameter.requires_grad_(id(attribute_of(network, name)) not in shared)


def _check_not_pooled(backbone: Backbone, layer: str) -> None:
    name, _, suffix = layer.rpartition(":")
    pooled = name if suffix in POOLINGS and suffix != "none" else ""
    pooled = pooled or next((tap.layer for tap in backbone.taps if tap.layer == layer and tap.pooling != "none"), "")
    if pooled:
        raise BackboneError(
            f"The features of the layer {pooled!r} are averaged over its positions; the tail needs them unpooled.",
            hint=f"Extract it with --layer {pooled}:none.",
        )


def _graph_behind(crossings: Crossings, place: Place) -> fx.Graph:
    """From the activation to the pooled features, (B, d)."""
    behind = {place.node}
    for node in crossings.path:
        if any(one in behind for one in node.all_input_nodes):
            behind.add(node)
    needed = _needed(crossings, place.node, behind)
    graph = fx.Graph()
    entry = graph.placeholder("activation")
    made: dict[fx.Node, Any] = {place.node: entry}
    for node in crossings.graph.nodes:
        if node not in needed or node is place.node:
            continue
        if node in crossings.shapes and not needed.issuperset(node.all_input_nodes):
            made[node] = crossings.shapes[node].rebuilt(entry)
        else:
            made[node] = graph.node_copy(node, made.__getitem__)
    graph.output(_pooled(graph, made[crossings.features], crossings))
    graph.lint()
    return graph


def _needed(crossings: Crossings, cut: fx.Node, behind: set[fx.Node]) -> set[fx.Node]:
    """The nodes that the part behind the cut runs; a shape of what is before it is not requested again."""
    found, waiting = set(), [crossings.features]
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        before = node in crossings.shapes and not behind.issuperset(
            one for one in node.all_input_nodes if one in crossings.from_image
        )
        if node is not cut and not before:
            waiting += node.all_input_nodes
    return found


def _pooled(graph: fx.Graph, features: Any, crossings: Crossings) -> fx.Node:
    shape = crossings.values[crossings.features].shape or ()
    if crossings.pooling == "mean" and len(shape) == 4:  # in front of a convolution: channels, height, width
        return graph.call_method("mean", (features, (2, 3)))
    return features if len(shape) == 2 else graph.call_method("flatten", (features, 1))


def _check_names(graph: fx.Graph) -> None:
    taken = {str(node.target).partition(".")[0] for node in graph.nodes if node.op in ("call_module", "get_attr")}
    if clash := sorted(taken.intersection(RESERVED)):
        raise BackboneError(
            f"The network has a part called {clash[0]!r}, a name that its tail needs for itself.",
            hint="Rename it in the module that the factory returns.",
        )


class _Keeping(fx.Interpreter):
    """Runs a graph and keeps what one node gave, as it was then."""

    def __init__(self, module: nn.Module, graph: fx.Graph, wanted: tuple[fx.Node, ...]) -> None:
        super().__init__(module, graph=graph)
        self.kept: dict[fx.Node, torch.Tensor] = {}
        self.wanted = wanted

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if node in self.wanted:
            self.kept[node] = result.detach().clone()
        return result


def _activation_and_features(
    backbone: Backbone, crossings: Crossings, place: Place
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the whole network gives for two random samples, at the cut and as features."""
    runner = _Keeping(crossings.network, crossings.graph, (place.node, crossings.features))
    with torch.no_grad():
        runner.run(*example_input(backbone, BATCH, seed=1))
    features = runner.kept[crossings.features].float()
    if crossings.pooling == "mean" and features.ndim == 4:
        features = features.mean((2, 3))
    return runner.kept[place.node].float(), features.flatten(1)


def _changes_its_input(tail: nn.Module, activation: torch.Tensor) -> bool:
    """Also where the values come out the same: torch counts the operations in place on a tensor."""
    given = activation.clone()
    with torch.no_grad():
        tail(given)
    return bool(given._version)


def _check_agrees(tail: Tail, activation: torch.Tensor, features: torch.Tensor) -> None:
    with torch.no_grad():
        given = tail(activation)
    error = float((given - features).norm() / features.norm().clamp_min(1e-30))
    if given.shape != features.shape or not error <= TOLERANCE:
        raise BackboneError(
            f"The network cut at the layer {tail.layer!r} differs from the whole network: relative L2 "
            f"error {error:.1e}.",
            hint="It changes values in place that the cut separates, or draws random numbers; cut it elsewhere.",
        )


def own_tail(name: str, backbone: Backbone, layer: str, *, seed: int = 0) -> nn.Module:
    """A module of the user's own instead of what is behind `layer`: (B, *shape) floats -> features (B, d).

    name: `package.module:factory`, also from the current folder. The factory is called with the shape of the activation
    of one sample, a tuple, after seeding torch with `seed`; the module it returns is tried on two random samples. Any
    layer will do, pooled ones too, since nothing of the network behind it is used. Parameters become fp32.

    Raises BackboneError where the factory fails, returns no module, or one that does not give (B, d) for (B, *shape),
    and UsageError where `name` is no such name.
    """
    if not is_code(name):
        raise UsageError(f"Your own tail is named package.module:factory. Got {name!r} instead.", hint="See --tail.")
    shape = _shape_at(backbone, layer)
    module_name, _, attribute = name.partition(":")
    with current_folder_importable(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            made = load_attribute(name)(shape)
        except Exception as error:
            raise BackboneError(
                f"The tail {name} failed: {type(error).__name__}: {error}",
                hint=f"Check it with: python -c 'from {module_name} import {attribute}; {attribute}({shape})'",
            ) from error
    if not isinstance(made, nn.Module):
        raise BackboneError(
            f"The tail {name} returned a {type(made).__name__}.",
            hint=f"It must return a torch.nn.Module that takes (B, {_words(shape)}) floats and gives (B, d).",
        )
    tail = made.cpu().float().eval().requires_grad_(True)
    _check_own(name, tail, shape)
    return tail


def _shape_at(backbone: Backbone, layer: str) -> tuple[int, ...]:
    for tap in backbone.taps:
        if tap.layer == layer:
            return tap.shape
    return backbone.family.cut(backbone.network, [(layer, "none")], example_input(backbone, BATCH))[1][0].shape


def _check_own(name: str, tail: nn.Module, shape: tuple[int, ...]) -> None:
    samples = torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(1))
    wanted = f"It must give features (B, d), floats, for (B, {_words(shape)})."
    given = samples.clone()
    try:
        with torch.no_grad():
            features = tail(given)
    except Exception as error:
        raise BackboneError(
            f"The tail {name} does not take activations of {_words(shape)}: {type(error).__name__}: {error}",
            hint=wanted,
        ) from error
    if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != BATCH:
        what = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise BackboneError(f"The tail {name} gives {what} for {BATCH} samples.", hint=wanted)
    if not features.is_floating_point() or not features.isfinite().all():
        raise BackboneError(f"The tail {name} gives no finite floats for random activations.", hint=wanted)
    if not torch.equal(given, samples):
        raise BackboneError(
            f"The tail {name} changes its input in place.", hint="Copy it first, or leave inplace=True out."
        )


def _words(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
