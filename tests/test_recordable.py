"""What keeps a forward pass out of a CUDA graph is found before anything is recorded, on any device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pictures import images

from precompute import load_backbone
from precompute.backbones.whole import WholeNetwork
from precompute.engines.graphs import NotRecordableError, check_recordable

Tensors = tuple[torch.Tensor, ...]

LOOKS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a value": lambda x: x * x.sum().item(),
    "a condition": lambda x: x if x.sum() > 0 else -x,
    "places": lambda x: x.nonzero(),
    "a mask": lambda x: x[x > 0],
    "a mask that is written to": lambda x: x.index_put((x > 0,), torch.tensor(0.0)),
    "distinct values": lambda x: torch.unique(x),
    "a comparison of all": lambda x: x + torch.equal(x, x),
    "another device": lambda x: x.to("meta"),
    "a list": lambda x: torch.tensor([one.item() for one in x[0]]),
}
DOES_NOT = {
    "places that are known": lambda x: x[torch.tensor([1, 0])][:, [0, 1]],
    "a choice": lambda x: torch.where(x > 0, x, -x),
    "a constant": lambda x: x * torch.tensor(2.0) + 1,
    "a maximum": lambda x: x.max(dim=0).values,
}


@pytest.mark.parametrize("name", LOOKS)
def test_it_is_refused_before_it_is_recorded(name: str) -> None:
    with pytest.raises(NotRecordableError, match="needs the host"):
        check_recordable(lambda x: (LOOKS[name](x),), (torch.ones(3, 4),))


@pytest.mark.parametrize("name", DOES_NOT)
def test_it_is_allowed(name: str) -> None:
    check_recordable(lambda x: (DOES_NOT[name](x),), (torch.ones(3, 4),))


def test_too_little_memory_is_no_error() -> None:
    def run(x: torch.Tensor) -> Tensors:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(NotRecordableError, match="too little memory"):
        check_recordable(run, (torch.ones(3, 4),))


@pytest.mark.rotates(3)
@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "swin_t", "swin_v2_t", "maxvit_t", "convnext_tiny"])
def test_networks_of_torchvision_are_allowed(name: str) -> None:
    backbone = load_backbone(name, weights="random")
    network = WholeNetwork(backbone.preprocess.device(), backbone.module, torch.float32).eval()
    pictures = images(2, backbone.preprocess.transform.crop)
    check_recordable(network, tuple(torch.stack(one) for one in zip(*pictures, strict=True)))


@pytest.mark.rotates(3)
@pytest.mark.parametrize("kind", ["bert", "deberta-v2"])
def test_language_models_are_allowed(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", minversion="5.24", reason="needs the extra `hf`")
    from language_models import save

    backbone = load_backbone(f"hf:{save(tmp_path / kind, kind)}")
    network = WholeNetwork(backbone.preprocess.device(), backbone.module, torch.float32).eval()
    given = backbone.preprocess.host(b"what is it and where have all the people gone?")
    check_recordable(network, tuple(torch.stack((one, one)) for one in given))
