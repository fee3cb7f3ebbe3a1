"""Which axes of an activation are positions, so that a mean over them leaves one value for each channel.

Every axis has a role: B the batch, C channels, P positions. The image is BCPP, and each operation of the traced network
hands the roles on: a permutation moves them, a reshape splits or joins them, what keeps the shape keeps them. So the
map of a CNN ends as BCPP, that of Swin as BPPC, the tokens of ViT as BPC with one token in front that is no position.
Where a network cannot be followed, running it on a larger image tells: the axes that grow are the positions.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

import precompute.backbones._torchvision  # noqa: F401

# isort: split
from torchvision import ops

BATCH = 2  # images in a trial: an axis of one could be taken for any other
UNKNOWN = "?"
MAPS = (
    *(nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.MaxPool2d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d, nn.Upsample, nn.PixelShuffle),
    ops.Conv2dNormActivation,
)
"""Modules whose 4-D output is (batch, channels, height, width) by contract."""

MAP_FUNCTIONS = {
    *(functional.conv2d, functional.conv_transpose2d, functional.batch_norm, functional.interpolate),
    *(functional.max_pool2d, torch.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d),
    *(functional.adaptive_max_pool2d,),
}
RESHAPES = {"reshape", "view", "flatten", "unflatten"}
SWAPS = {"transpose", "swapaxes", "swapdims"}
PARTS = {"chunk", "split", "tensor_split"}
KEEPS = {"linear", "pad", "_patch_merging_pad"}  # other sizes, the same axes; the last is torchvision's, for Swin


@dataclass(frozen=True)
class Layout:
    """roles: one letter for each axis · prefix: tokens in front of the positions, where these have a single axis."""

    roles: str
    prefix: int = 0

    @property
    def positions(self) -> tuple[int, ...]:
        return tuple(axis for axis, role in enumerate(self.roles) if role == "P")

    @property
    def axes(self) -> tuple[str, ...]:
        """A name for each axis but the batch: channel, height and width, or token where positions have one axis."""
        places = iter(("height", "width") if len(self.positions) == 2 else ("token",) * len(self.positions))
        return tuple("channel" if role == "C" else next(places) for role in self.roles[1:])

    @property
    def clear(self) -> bool:
        """Whether it begins with the batch, and holds channels and nothing unknown."""
        return self.roles[0] == "B" and set(self.roles[1:]) <= {"C", "P"} and "C" in self.roles


def find_layouts(
    body: nn.Module, graph: fx.GraphModule | None, inputs: tuple[torch.Tensor, ...], names: Sequence[str]
) -> list[tuple[Layout | None, Any]]:
    """For each of `names` what `body` gives for `inputs`, BATCH samples, and its layout; one pass, as a rule.

    graph: `body` traced, where it can be. None where the layout cannot be found. Raises what `body` raises for such
    inputs.
    """
    with torch.inference_mode():
        follower = None if graph is None else _Follower(graph)
        outputs = by_name(body(*inputs) if follower is None else follower.run(*inputs), names)
        layouts = (
            follower.outputs if follower is not None and len(follower.outputs) == len(names) else [None] * len(names)
        )
        found: list[tuple[Layout | None, Any]] = []
        for name, features, known in zip(names, outputs, layouts, strict=True):
            layout = known
            if isinstance(features, torch.Tensor) and features.ndim == 2:
                layout = Layout("BC")
            elif isinstance(features, torch.Tensor) and features.ndim == 4 and (layout is None or not layout.clear):
                layout = _by_size(body, names, name, features, inputs)
            found.append((layout if layout is not None and layout.clear else None, features))
    return found


def by_name(outputs: Any, names: Sequence[str]) -> list[Any]:
    """What a cut network gives for each of `names`: the values of its dictionary, or the one thing that it gives."""
    named = isinstance(outputs, dict) and set(outputs) == set(names)
    return [outputs[name] if named else outputs for name in names]


def _by_size(
    body: nn.Module, names: Sequence[str], name: str, features: torch.Tensor, inputs: tuple[torch.Tensor, ...]
) -> Layout | None:
    """By running twice the size; only of images, (B, 3, H, W)."""
    if len(inputs) != 1 or inputs[0].ndim != 4:
        return None
    height, width = inputs[0].shape[2:]
    larger = inputs[0].new_zeros((BATCH, inputs[0].shape[1], 2 * height, 2 * width))
    try:
        other = by_name(body(larger), names)[list(names).index(name)]
    except (RuntimeError, AssertionError, ValueError):  # built for one size
        return None
    if not isinstance(other, torch.Tensor) or other.ndim != features.ndim:
        return None
    grown = [axis for axis in range(1, features.ndim) if other.shape[axis] > features.shape[axis]]
    return Layout("B" + "".join("P" if axis in grown else "C" for axis in range(1, 4))) if len(grown) == 2 else None


def _tensors(value: Any) -> list[torch.Tensor]:
    """The tensors of what a network gives: one, or several by name or place."""
    return [one for one in _values(value) if isinstance(one, torch.Tensor)]


def _values(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, tuple | list) else [value]


def _tensor(value: Any) -> torch.Tensor | None:
    """The tensor itself, or the first of several."""
    return next(iter(_tensors(value)), None)


def _nodes(value: Any) -> list[fx.Node]:
    """The nodes that a graph passes on, in the order of `_tensors`."""
    return [one for one in _values(value) if isinstance(one, fx.Node)]


class _Follower(fx.Interpreter):
    """Runs a graph, and hands the layout on from node to node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.layouts: dict[fx.Node, Layout] = {}
        self.from_image: set[fx.Node] = set()
        self.outputs: list[Layout | None] = []

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        tensor = _tensor(result)
        if node.op == "output":
            self.outputs = [self.layouts.get(one) for one in _nodes(node.args[0])]
        elif tensor is not None:
            tensors = [one for one in node.all_input_nodes if _tensor(self.env[one]) is not None]
            if node.op == "placeholder" or any(one in self.from_image for one in tensors):
                self.from_image.add(node)
            layout = self._after(node, tensor, tensors)
            if layout is not None and len(layout.roles) == tensor.ndim:
                self.layouts[node] = layout
        return result

    def _after(self, node: fx.Node, result: torch.Tensor, inputs: list[fx.Node]) -> Layout | None:
        module = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
        if node.op == "placeholder" or (isinstance(module, MAPS) and result.ndim == 4):
            return Layout("BCPP")
        name = str(getattr(node.target, "__name__", node.target))
        if name in ("cat", "concat"):
            return self._joined(node)
        known = [one for one in inputs if one in self.layouts]
        return self._carried(node, name, module, known, tuple(result.shape)) if known else None

    def _carried(
        self, node: fx.Node, name: str, module: Any, known: list[fx.Node], shape: tuple[int, ...]
    ) -> Layout | None:
        """What an operation makes of the layout of its first known input."""
        found: Layout | None = self.layouts[known[0]]
        before = self.layouts[known[0]]
        if isinstance(module, ops.Permute):
            found = _moved(before, tuple(module.dims), "permute")
        elif name == "permute" or name in SWAPS:
            found = _moved(before, self._numbers(node), name)
        elif name in RESHAPES:
            found = _reshaped(before, self._shape(known[0]), shape)
        elif node.target is operator.getitem and isinstance(self.env[known[0]], torch.Tensor):
            found = _indexed(before, node.args[1])
        elif name in PARTS:
            found = None if self._axis(node, 2, len(before.roles)) in before.positions else before
        elif node.target in MAP_FUNCTIONS:
            found = before if before.roles == "BCPP" else None
        elif isinstance(module, nn.Linear | ops.MLP) or name in KEEPS:
            found = None if before.prefix and before.roles[-1] == "P" else before
        else:  # what keeps the shape keeps the roles
            same = {self.layouts[one] for one in known if self._shape(one) == shape}
            found = same.pop() if len(same) == 1 else None
        return found

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        tensor = _tensor(self.env[node])
        return () if tensor is None else tuple(tensor.shape)

    @staticmethod
    def _numbers(node: fx.Node) -> tuple[int, ...]:
        """The arguments behind the first, as numbers."""
        given = (*node.args[1:], *node.kwargs.values())
        flat = [number for one in given for number in (one if isinstance(one, tuple | list) else [one])]
        return tuple(number for number in flat if isinstance(number, int))

    def _axis(self, node: fx.Node, place: int, count: int) -> int:
        """The argument `dim`, which is at `place` where it has no name, counted from the front."""
        axis = node.kwargs.get("dim", node.args[place] if len(node.args) > place else 0)
        return axis % count if isinstance(axis, int) else 0

    def _joined(self, node: fx.Node) -> Layout | None:
        """Of a concatenation. Tokens in front that no image decides, such as a class token, are no positions."""
        parts: Any = node.args[0] if node.args else node.kwargs["tensors"]
        images = [part for part in parts if part in self.from_image]
        layouts = {self.layouts.get(part) for part in images}
        layout = layouts.pop() if len(layouts) == 1 else None
        if layout is None:
            return None
        axis = self._axis(node, 1, len(layout.roles))
        fixed = list(parts)[: len(parts) - len(images)]
        if not fixed:
            return layout if layout.roles[axis] == "C" or not layout.prefix else None
        if list(parts)[len(fixed) :] != images or layout.positions != (axis,):
            return None
        return replace(layout, prefix=layout.prefix + sum(self._shape(part)[axis] for part in fixed))


def _moved(layout: Layout, numbers: tuple[int, ...], name: str) -> Layout | None:
    count = len(layout.roles)
    order = list(range(count))
    if name == "permute":
        order = [number % count for number in numbers]
    elif len(numbers) == 2:
        first, second = (number % count for number in numbers)
        order[first], order[second] = second, first
    if sorted(order) != list(range(count)):
        return None
    return replace(layout, roles="".join(layout.roles[axis] for axis in order))


def _reshaped(layout: Layout, before: tuple[int, ...], after: tuple[int, ...]) -> Layout | None:
    """Axes are split and joined within groups of equal product; a group of several roles becomes unknown."""
    if before == after:
        return layout
    if layout.prefix or prod(before) != prod(after) or not prod(before):
        return None
    roles, start, first = "", 0, 0
    while start < len(before) and first < len(after):
        stop, last = start + 1, first + 1
        while (have := prod(before[start:stop])) != (want := prod(after[first:last])):
            stop, last = (stop + 1, last) if have < want else (stop, last + 1)
        # An axis of one joins any other
        group = {layout.roles[axis] for axis in range(start, stop) if before[axis] > 1} or {layout.roles[start]}
        roles += (group.pop() if len(group) == 1 else UNKNOWN) * (last - first)
        start, first = stop, last
    return Layout(roles + roles[-1:] * (len(after) - first))  # axes of one at the end belong to those before


def _indexed(layout: Layout, index: Any) -> Layout | None:
    """Of x[index], for whole numbers and slices."""
    index = index if isinstance(index, tuple) else (index,)
    if layout.prefix or not all(isinstance(part, int | slice) for part in index):
        return None
    kept = [role for role, part in zip(layout.roles, index, strict=False) if isinstance(part, slice)]
    return Layout("".join(kept) + layout.roles[len(index) :])
