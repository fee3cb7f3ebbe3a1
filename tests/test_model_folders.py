"""Folders of models from strangers: nothing in them is run, no file elsewhere is read, each refusal names a file."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_folders import Change, Runs, linked, pickled, written

from precompute import load_backbone
from precompute.errors import BackboneError, PrecomputeError, WeightsError

timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'precompute[timm]'")
save_for_hf = import_module("timm.models._hub").save_for_hf  # the lowest timm names it nowhere else


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "vit"
    save_for_hf(timm.create_model("test_vit", num_classes=3), path, safe_serialization=True)
    return path


def config(**changes: Any) -> Change:
    """With other values at the first level of config.json."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def settings(**changes: Any) -> Change:
    """With other values in its pretrained_cfg."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        found = json.loads(path.read_text())
        found["pretrained_cfg"].update(changes)
        path.write_text(json.dumps(found))

    return change


HEADER = 10 * 2**30

HOSTILE: dict[str, tuple[Change, str, str]] = {
    "link for config": (linked("config.json"), r"config\.json is a link to .*out of the folder", "copy"),
    "link for weights": (linked("model.safetensors"), r"model\.safetensors is a link to .*out of the folder", "copy"),
    "folder for config": (lambda f: (f / "config.json").unlink() or (f / "config.json").mkdir(), "is not a file", ""),  # type: ignore[func-returns-value]
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json cannot be read: No such file", ""),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"holds no model\.safetensors", "--weights"),
    "a pickle": (pickled("pytorch_model.bin"), r"pytorch_model\.bin, a form that can run code", "--weights PATH"),
    "another pickle": (pickled("model.pth"), r"model\.pth, a form that can run code", "--weights PATH"),
    "header of 10 GB": (
        written("model.safetensors", HEADER.to_bytes(8, "little") + b"{}"),
        r"model\.safetensors cannot be loaded safely",
        "",
    ),
    "cut weights": (lambda f: os.truncate(f / "model.safetensors", 5000), r"model\.safetensors cannot be loaded", ""),
    "large config": (written("config.json", b" " * (3 * 2**20)), r"config\.json has more than", ""),
    "config of another kind": (written("config.json", b"[1]"), r"config\.json holds no JSON object", ""),
    "no JSON": (written("config.json", b"\xff{"), r"config\.json holds no JSON", ""),
    "deep JSON": (written("config.json", b"[" * 10**6), r"config\.json holds no JSON", ""),
    "no architecture": (written("config.json", b'{"model_type": "bert"}'), r"config\.json names no architecture", ""),
    "no name of timm's": (config(architecture="os.system"), r"config\.json names the architecture 'os\.system'", ""),
    "a name with a path": (config(architecture="local-dir:/etc"), "names the architecture 'local-dir:/etc'", ""),
    "code to load": (config(model_args={"checkpoint_path": "/tmp/x.pth"}), "'checkpoint_path' to be passed", "factory"),
    "weights asked for": (config(model_args={"pretrained": True}), "'pretrained' to be passed", "factory"),
    "absurd width": (config(model_args={"embed_dim": 10**9}), r"config\.json gives embed_dim as 1000000000", ""),
    "absurd depth": (config(model_args={"depth": 10**6}), r"config\.json gives depth as 1000000", ""),
    "no number": (config(model_args={"mlp_ratio": float("inf")}), r"config\.json gives mlp_ratio as inf", ""),
    "larger than its weights": (config(model_args={"embed_dim": 1024}), r"config\.json describes a network of", ""),
    "too many tokens": (
        config(model_args={"img_size": 2048, "patch_size": 4}),
        "into more than 65,536 tokens",
        "",
    ),
    "absurd picture": (settings(input_size=[3, 10**6, 10**6]), r"config\.json gives input_size", ""),
    "other channels": (settings(input_size=[5, 160, 160]), "other than three channels", ""),
    "no deviation": (settings(std=[0, 0, 0]), r"config\.json gives std", ""),
    "no crop": (settings(crop_pct=0), r"config\.json gives crop_pct", ""),
    "odd interpolation": (settings(interpolation="random"), "interpolation must be one of", ""),
    "border": (settings(crop_mode="border"), "crop_mode 'border'", "factory"),
    "settings of no kind": (config(pretrained_cfg=[]), r"config\.json gives pretrained_cfg", ""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_is_refused_by_name(good: Path, tmp_path: Path, name: str) -> None:
    change, says, hint = HOSTILE[name]
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    change(folder)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(PrecomputeError, match=says) as caught:
        load_backbone(f"timm:{folder}")
    assert isinstance(caught.value, WeightsError | BackboneError)
    assert hint in caught.value.hint
    assert {path.name for path in tmp_path.iterdir()} == before
    assert not Path("was-run").exists()


@pytest.mark.rotates(3)
def test_where_a_folder_says_to_load_from_is_not_looked_at(good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    settings(
        url="http://127.0.0.1:9/x.pth", file=str(tmp_path / "x.pth"), hf_hub_id="no/where", source="hf-hub",
        custom_load="hf", state_dict={"a": 1}, hf_hub_filename="x.bin",
    )(folder)  # fmt: skip
    assert load_backbone(f"timm:{folder}").weights == load_backbone(f"timm:{good}").weights


@pytest.mark.rotates(3)
def test_a_pickled_state_dict_may_be_named_and_is_not_run(good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    torch.save(timm.create_model(f"local-dir:{good}", pretrained=True).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    named = load_backbone(f"timm:{folder}", weights=str(folder / "pytorch_model.bin"))
    assert named.weights == load_backbone(f"timm:{good}").weights
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(WeightsError, match="cannot be loaded safely"):
        load_backbone(f"timm:{folder}", weights=str(folder / "pytorch_model.bin"))
    assert not Path("was-run").exists()


@pytest.mark.rotates(3)
def test_the_links_of_the_hub_s_own_cache_are_followed(good: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--timm--vit"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(good / name, repository / "blobs" / f"of-{name}")
        (snapshot / name).symlink_to(f"../../blobs/of-{name}")
    assert load_backbone(f"timm:{snapshot}").weights == load_backbone(f"timm:{good}").weights
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(good / "config.json")
    with pytest.raises(WeightsError, match="out of the folder"):
        load_backbone(f"timm:{snapshot}")
