"""Which cuts are worth a trial, and what each costs: bytes on disk, seconds an epoch, parameters trained."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import ceil, prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from precompute.backbones.crossing import Crossings, example_input
from precompute.backbones.layers import INPUT, Tap
from precompute.backbones.layout import BATCH
from precompute.backbones.load import Backbone
from precompute.backbones.tail import Tail, UntracedTail, tail_of
from precompute.errors import BackboneError

MOST, LEAST = 0.97, 0.01
"""A cut is proposed where between these shares of the parameters are behind it: neither all of them nor none."""

COUNT = 3  # proposals for a network of several resolutions
LAST_BLOCKS = (1, 2, 4)  # of a network of one resolution, such as ViT, that are trained
CHANNEL = "channel"
SCALE_BYTES = 8  # of int8: a minimum and a step for each channel of a sample
TRIAL_STEPS, TRIAL_SECONDS = 3, 2.0  # of training, timed; whichever is reached first


@dataclass(frozen=True)
class Proposal:
    """One cut and its cost.

    shape: of the activation of one sample · bytes_per_sample: of it as float16 · bytes_per_sample_int8: as 8 bits by
    channel · parameters: those behind the cut, without an output layer · share: what part of the whole network without
    its classifier they are · gflops: 10^9 multiply-adds of the tail for one sample, forward · gflops_share: what part
    of the whole network's.
    """

    layer: str
    shape: tuple[int, ...]
    bytes_per_sample: int
    bytes_per_sample_int8: int
    parameters: int
    share: float
    gflops: float
    gflops_share: float

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "shape": list(self.shape)}


@dataclass(frozen=True)
class Price:
    """A proposal for a number of samples. bytes, bytes_int8: of their activations · seconds: an epoch, measured."""

    proposal: Proposal
    samples: int
    views: int
    bytes: int
    bytes_int8: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return {**self.proposal.to_dict(), "bytes": self.bytes, "bytes_int8": self.bytes_int8, "seconds": self.seconds}


def propose(backbone: Backbone, *, crossings: Crossings | None = None) -> tuple[Proposal, ...]:
    """Up to three cuts of `backbone.network`, in the order of execution. crossings: as in `tail_of`.

    Where its blocks have several resolutions (ResNet, MobileNet, Swin): behind the last block of one, for the last
    resolutions behind which not almost everything lies. Where all have the same (ViT): before the last 4, 2 and 1
    blocks. Raises BackboneError where the network cannot be traced, or cut nowhere.
    """
    crossings = crossings or Crossings.of(backbone)
    whole = _cost(tail_of(backbone, crossings.places[0].layer, crossings=crossings)) if crossings.places else (0, 0.0)
    found = []
    for tap in _candidates(backbone, crossings, whole[0]):
        parameters, gflops = _cost(tail_of(backbone, tap.layer, crossings=crossings))
        found.append(
            Proposal(
                layer=tap.layer,
                shape=tap.shape,
                bytes_per_sample=2 * prod(tap.shape),
                bytes_per_sample_int8=_int8_bytes(tap),
                parameters=parameters,
                share=parameters / whole[0],
                gflops=gflops,
                gflops_share=gflops / whole[1] if whole[1] else 1.0,
            )
        )
    if not found:
        raise BackboneError(
            f"{backbone.name} has no layer with a part worth training behind it.",
            hint="Train a head with train-head, or everything with fine-tune SOURCE.",
        )
    return tuple(found)


def price(
    backbone: Backbone,
    proposals: Iterable[Proposal],
    *,
    samples: int,
    views: int = 1,
    batch_size: int = 32,
    device: str = "cpu",
    crossings: Crossings | None = None,
) -> tuple[Price, ...]:
    """What each of `proposals` costs for so many samples with so many views.

    An epoch takes one view of each sample. Its seconds are those of a few training steps on random activations, times
    the number of batches: for display alone, since they depend on what else the machine does.
    """
    crossings = crossings or Crossings.of(backbone)
    prices = []
    for one in proposals:
        step = step_seconds(tail_of(backbone, one.layer, crossings=crossings), min(batch_size, samples), device)
        rows = samples * views
        stored, stored_int8 = rows * one.bytes_per_sample, rows * one.bytes_per_sample_int8
        prices.append(Price(one, samples, views, stored, stored_int8, ceil(samples / batch_size) * step))
    return tuple(prices)


def step_seconds(tail: Tail | UntracedTail, batch_size: int, device: str = "cpu") -> float:
    """The median time of a training step, forward, backward and update, on random activations."""
    network = nn.Sequential(tail, nn.Linear(tail.width, 2)).to(device)
    optimizer = torch.optim.AdamW(network.parameters())
    activations = torch.randn(batch_size, *tail.shape, generator=torch.Generator().manual_seed(0)).to(device)
    if activations.ndim == 4:  # as in training: faster on CPUs and GPUs alike
        network = network.to(memory_format=torch.channels_last)
        activations = activations.to(memory_format=torch.channels_last)
    times: list[float] = []
    while len(times) <= TRIAL_STEPS and sum(times) < TRIAL_SECONDS:
        begun = time.perf_counter()
        optimizer.zero_grad()
        loss = network(activations).square().mean()
        loss.backward()
        optimizer.step()
        loss.item()  # waits for a GPU
        times.append(time.perf_counter() - begun)
    steps = sorted(times[1:] or times)  # the first one also makes what the others find
    return steps[len(steps) // 2]


def _candidates(backbone: Backbone, crossings: Crossings, whole: int) -> list[Tap]:
    """The blocks to cut behind, or any places where a network has no blocks."""
    at = {place.node: place.layer for place in crossings.places}
    try:
        named = [name for name in backbone.family.blocks(crossings.network) if crossings.node_of(name) in at]
    except BackboneError:
        named = []
    chosen = _chosen(backbone, crossings, named, whole)
    if len(chosen) < 2:
        several = [place.layer for place in crossings.places if place.layer != INPUT and prod(place.shape[1:]) > 1]
        more = _chosen(backbone, crossings, several, whole)
        chosen = max(chosen, more, key=len)
    return chosen


def _chosen(backbone: Backbone, crossings: Crossings, names: Sequence[str], whole: int) -> list[Tap]:
    if not names:
        return []
    taps = {
        tap.layer: tap
        for tap in backbone.family.cut(
            backbone.network, [(one, "none") for one in names], example_input(backbone, BATCH)
        )[1]
    }
    places = {name: positions_of(taps[name]) for name in names}
    if len(set(places.values())) == 1 and len(names) > max(LAST_BLOCKS):
        return [taps[names[-1 - count]] for count in sorted(LAST_BLOCKS, reverse=True)]
    last: dict[tuple[int, ...], str] = {}
    for name in names:
        if LEAST <= crossings.parameters_behind(name) / whole <= MOST:
            last[places[name]] = name
    return [taps[name] for name in list(last.values())[-COUNT:]]


def positions_of(tap: Tap) -> tuple[int, ...]:
    """The sizes of all axes but channels: the resolution."""
    return tuple(size for size, axis in zip(tap.shape, tap.axes, strict=True) if axis != CHANNEL)


def _int8_bytes(tap: Tap) -> int:
    if len(tap.shape) == 1:  # stored as float16
        return 2 * tap.shape[0]
    channels = prod(size for size, axis in zip(tap.shape, tap.axes, strict=True) if axis == CHANNEL)
    return prod(tap.shape) + SCALE_BYTES * channels


def _cost(tail: Tail | UntracedTail) -> tuple[int, float]:
    """Parameters, and 10^9 multiply-adds for one sample."""
    counter = FlopCounterMode(display=False)
    with counter:  # with gradients: without them torch takes fused attention, which the counter does not know
        tail(torch.zeros(1, *tail.shape))
    return sum(one.numel() for one in tail.parameters()), counter.get_total_flops() / 2e9
