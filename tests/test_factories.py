"""Factories: a user's own network, named package.module:factory, is a backbone like any other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from reference import features, real_photo, reference

from precompute.backbones.load import load_backbone
from precompute.backbones.weights import digest_of
from precompute.errors import BackboneError, WeightsError
from precompute.inputs.images.transform import Transform


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to stand in, with room for a module `mine`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = list(sys.path)
    yield tmp_path
    assert sys.path == path, "the search path is left as it was"
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def write(folder: Path, code: str, name: str = "mine.py") -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(f"import torch\nfrom torch import nn\n{code}")


SMALL_NET = """
def build():
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
"""


def test_a_factory_of_the_current_folder_is_a_backbone(package: Path) -> None:
    write(package, SMALL_NET)
    backbone = load_backbone("mine:build")
    assert (backbone.name, backbone.taps[0].layer, backbone.taps[0].shape) == ("mine:build", "3", (4,))
    assert backbone.source == {"kind": "factory"}
    assert backbone.preprocess.transform == Transform()
    model = sys.modules["mine"].build()
    torch.testing.assert_close(features(backbone, real_photo()), reference(model, "4", backbone, real_photo()))


def test_a_factory_in_a_package_with_weights_from_a_file(package: Path) -> None:
    write(package, "", "mine/__init__.py")
    write(package, SMALL_NET, "mine/nets.py")
    state = load_backbone("mine.nets:build").module.state_dict()
    model = sys.modules["mine.nets"].build()
    other = {name: value + 1 for name, value in model.state_dict().items()}
    torch.save(other, package / "weights.pth")
    backbone = load_backbone("mine.nets:build", weights="weights.pth")
    assert backbone.weights == digest_of(other)
    assert backbone.source == {"kind": "file", "path": str(package / "weights.pth")}
    assert digest_of(backbone.module.state_dict()) != digest_of(state)


def test_a_factory_in_half_precision_is_tried_in_half_precision(package: Path) -> None:
    write(package, SMALL_NET.replace("nn.Linear(4, 2))", "nn.Linear(4, 2)).bfloat16()"))
    assert load_backbone("mine:build").taps[0].shape == (4,)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def build(): raise KeyError('checkpoint')", "mine:build failed: KeyError: 'checkpoint'"),
        ("def build(size): pass", "mine:build failed: TypeError"),
        ("def other(): pass", "mine:build failed: AttributeError"),
        ("syntax error", "mine:build failed: SyntaxError"),
        ("import no_such_package", "mine:build failed: ModuleNotFoundError: No module named 'no_such_package'"),
        ("def build(): return {'fc': 1}", "mine:build returned a dict"),
        ("build = 3", "mine:build failed: TypeError"),
    ],
)
def test_a_factory_that_fails_says_why(package: Path, code: str, message: str) -> None:
    write(package, code)
    with pytest.raises(BackboneError, match=message) as caught:
        load_backbone("mine:build")
    assert "mine import build" in caught.value.hint or "torch.nn.Module" in caught.value.hint


@pytest.mark.parametrize("name", ["nowhere:build", ":build", "mine:", "a:b:c"])
def test_a_factory_that_is_not_there(package: Path, name: str) -> None:
    with pytest.raises(BackboneError, match="failed"):
        load_backbone(name)


def test_an_untraceable_module_gives_its_output_and_a_note(package: Path) -> None:
    write(
        package,
        "class Net(nn.Module):\n    def forward(self, x): return x.mean((2, 3)) if x.sum() >= 0 else -x[:, :, 0, 0]\n",
    )
    backbone = load_backbone("mine:Net")
    assert (backbone.taps[0].layer, backbone.taps[0].shape) == ("output", (3,))
    assert any("torch.fx cannot trace" in note for note in backbone.notes)
    with pytest.raises(BackboneError, match="cannot trace"):
        load_backbone("mine:Net", layer="mean")


def test_a_module_without_classifier_gives_its_output_and_a_note(package: Path) -> None:
    write(package, "class Net(nn.Module):\n    def forward(self, x): return torch.cat([x, x], 1).mean((2, 3))\n")
    backbone = load_backbone("mine:Net")
    assert (backbone.taps[0].layer, backbone.taps[0].shape) == ("output", (6,))
    assert any("does not end in a linear classifier" in note for note in backbone.notes)


def test_a_factory_decides_about_its_own_weights(package: Path) -> None:
    write(package, SMALL_NET)
    with pytest.raises(WeightsError, match="its own weights"):
        load_backbone("mine:build", weights="random")


def test_a_layer_whose_output_does_not_begin_with_the_batch_is_refused(package: Path) -> None:
    write(package, "class Net(nn.Module):\n    def forward(self, x): return x.mean()\n")
    with pytest.raises(BackboneError, match="does not begin with the batch"):
        load_backbone("mine:Net", layer="output")
