"""Weights: named by their contents, understood in every wrapping, and never the way in for code."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from precompute.backbones import families
from precompute.backbones.checkpoints import load_file
from precompute.backbones.layers import final_classifier
from precompute.backbones.weights import digest_of
from precompute.backbones.weights import fit_into as fit_into_with
from precompute.errors import WeightsError

fit_into = functools.partial(fit_into_with, find_classifier=final_classifier)
State = dict[str, torch.Tensor]


def state_of(seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(4, 3, 2, 2, generator=generator),
        "conv.bias": torch.randn(4, generator=generator),
        "norm.num_batches_tracked": torch.tensor(seed),
    }


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 5)).eval()


# Digest


def test_digest_does_not_depend_on_the_kind_of_file(tmp_path: Path) -> None:
    state = state_of()
    torch.save(state, tmp_path / "a.pth")
    save_file(dict(reversed(state.items())), tmp_path / "b.safetensors")
    one, other = (load_file(str(tmp_path / name)) for name in ("a.pth", "b.safetensors"))
    assert digest_of(one) == digest_of(other) == digest_of(state)
    assert len(digest_of(state)) == 64


def test_digest_does_not_depend_on_the_layout_in_memory() -> None:
    state = state_of()
    strided = {**state, "conv.weight": state["conv.weight"].to(memory_format=torch.channels_last)}
    assert digest_of(strided) == digest_of(state)


CHANGES: dict[str, Callable[[State], State]] = {
    "one bit of one value": lambda s: {**s, "conv.bias": torch.nextafter(s["conv.bias"], torch.tensor(torch.inf))},
    "a name": lambda s: {name.replace("conv.b", "conv.B"): value for name, value in s.items()},
    "a shape": lambda s: {**s, "conv.weight": s["conv.weight"].reshape(3, 4, 2, 2)},
    "a dtype": lambda s: {**s, "norm.num_batches_tracked": s["norm.num_batches_tracked"].to(torch.int32)},
    "a dtype of the same bytes": lambda s: {**s, "conv.bias": s["conv.bias"].view(torch.int32)},
    "a tensor left out": lambda s: {name: value for name, value in s.items() if name != "conv.bias"},
    "a tensor more": lambda s: {**s, "extra": torch.zeros(0)},
    "two tensors exchanged": lambda s: {**s, "conv.weight": s["conv.weight"].flip(0)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_digest_changes_with(change: str) -> None:
    assert digest_of(CHANGES[change](state_of())) != digest_of(state_of())


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.float16, torch.complex64, torch.float8_e4m3fn])
def test_digest_takes_every_dtype_and_empty_tensors(dtype: torch.dtype) -> None:
    one = {
        "a": torch.zeros(2, dtype=dtype),
        "empty": torch.zeros(0, 3, dtype=dtype),
        "single": torch.zeros((), dtype=dtype),
    }
    assert digest_of(one) != digest_of({**one, "a": torch.ones(2).to(dtype)})


# Wrappings


@pytest.mark.rotates(3)
@given(
    prefixes=st.lists(st.sampled_from(["module.", "_orig_mod.", "model.", "backbone."]), max_size=3),
    keys=st.lists(st.sampled_from(["state_dict", "model", "model_state_dict", "teacher"]), max_size=2),
)
def test_wrappings_of_training_scripts_are_understood(
    tmp_path_factory: pytest.TempPathFactory, prefixes: list[str], keys: list[str]
) -> None:
    model = network()
    checkpoint: dict[str, Any] = {"".join(prefixes) + name: value for name, value in model.state_dict().items()}
    for key in keys:
        checkpoint = {"epoch": 3, key: checkpoint, "optimizer": {"lr": 0.1}}
    path = tmp_path_factory.mktemp("weights") / "checkpoint.pth"
    torch.save(checkpoint, path)
    other = network()
    assert fit_into(other, load_file(str(path)), source="checkpoint.pth", model_name="small") == ()
    assert digest_of(other.state_dict()) == digest_of(model.state_dict())


def test_half_precision_weights_are_loaded_as_the_model_s_own() -> None:
    model = network()
    fit_into(model, {name: value.half() for name, value in network().state_dict().items()}, source="a", model_name="b")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_missing_batch_counter_is_not_missed() -> None:
    state = {name: value for name, value in network().state_dict().items() if "num_batches" not in name}
    fit_into(network(), state, source="converted.pth", model_name="small")


def test_names_of_old_densenet_checkpoints_are_understood() -> None:
    new = families.build("densenet121", seed=0).state_dict()
    old = {name.replace("norm1.", "norm.1.").replace("conv1.", "conv.1.") if "denselayer" in name else name: value
           for name, value in new.items()}  # fmt: skip
    assert old.keys() != new.keys()
    model = families.build("densenet121", seed=None)
    assert fit_into(model, old, source="densenet121.pth", model_name="densenet121") == ()
    assert digest_of(model.state_dict()) == digest_of(new)


# What does not fit


def test_missing_unexpected_and_differently_shaped_names_are_listed() -> None:
    state = network().state_dict()
    state["strange"] = state.pop("1.running_mean")
    state["0.weight"] = torch.zeros(4, 1, 2, 2)
    with pytest.raises(WeightsError) as caught:
        fit_into(network(), state, source="other.pth", model_name="small")
    message = caught.value.message
    assert "other.pth do not fit small" in message
    assert "1 missing: 1.running_mean" in message
    assert "1 unexpected: strange" in message
    assert "0.weight (4, 1, 2, 2) instead of (4, 3, 2, 2)" in message


def test_weights_of_another_network_are_refused() -> None:
    other = families.build("resnet34", seed=0).state_dict()
    with pytest.raises(WeightsError, match=r"96 unexpected: .*, \.\.\.") as caught:
        fit_into(families.build("resnet18", seed=None), other, source="resnet34.pth", model_name="resnet18")
    assert "-b" in caught.value.hint


# The final classifier is cut away, so it may be another one


@pytest.mark.parametrize("classifier", ["ten classes", "none", "two layers"])
def test_another_final_classifier_is_no_obstacle(classifier: str) -> None:
    whole = network().state_dict()
    state = {name: value for name, value in whole.items() if not name.startswith("3.")}
    if classifier == "ten classes":
        state |= {"3.weight": torch.zeros(10, 36), "3.bias": torch.zeros(10)}
    elif classifier == "two layers":
        state |= {"3.1.weight": torch.zeros(10, 36), "3.1.bias": torch.zeros(10)}
    model = network()
    (note,) = fit_into(model, state, source="tuned.pth", model_name="small")
    assert note.startswith("tuned.pth has no 3" if classifier == "none" else "tuned.pth has another 3")
    x = torch.rand(2, 3, 4, 4)
    original = network()
    original.load_state_dict(whole)
    assert torch.equal(model[:3](x), original[:3](x))
    assert model(x).isnan().all(), "scores of a classifier that was never loaded must not look real"


def test_the_digest_is_the_same_whichever_other_classifier_was_cut_away() -> None:
    state = network().state_dict()
    digests = set()
    for classes in (2, 10):
        model = network()
        fit_into(
            model,
            {**state, "3.weight": torch.rand(classes, 36), "3.bias": torch.rand(classes)},
            source="",
            model_name="",
        )
        digests.add(digest_of(model.state_dict()))
    assert len(digests) == 1
    assert digests != {digest_of(state)}


def test_googlenet_saved_after_training_has_no_auxiliary_heads() -> None:
    whole = families.build("googlenet", seed=None)
    state = {
        name: torch.zeros(value.shape, dtype=value.dtype)
        for name, value in whole.state_dict().items()
        if not name.startswith("aux")
    }
    notes = fit_into(whole, state, source="googlenet.pth", model_name="googlenet")
    assert [note.split(";")[0] for note in notes] == ["googlenet.pth has no aux1", "googlenet.pth has no aux2"]


def test_published_weights_fit(mobilenet_weights: Path, squeezenet_weights: Path, tmp_path: Path) -> None:
    for name, path in (("mobilenet_v2", mobilenet_weights), ("squeezenet1_1", squeezenet_weights)):
        model = families.build(name, seed=None)
        copy = shutil.copy(path, tmp_path)
        assert fit_into(model, load_file(copy), source=copy, model_name=name) == ()
        assert digest_of(model.state_dict()) == digest_of(load_file(str(path)))
