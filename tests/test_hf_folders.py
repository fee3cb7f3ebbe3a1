"""Folders of transformers from strangers: nothing in them is run, no file elsewhere is read, refusals name a file."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_folders import Change, Runs, linked, pickled, written

from precompute import load_backbone
from precompute.errors import BackboneError, PrecomputeError, UsageError, WeightsError

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'precompute[hf]'")

from language_models import as_sentences, pooling, save

CODE = """
import os
os.mkdir("was-run")
from transformers import BertConfig as Config, BertModel as Model
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_sentences(save(tmp_path_factory.mktemp("good") / "bert"), pooling("mean_tokens"), ("Normalize", {}))


def values(name: str, **changes: Any) -> Change:
    """With other values at the first level of a JSON file, which may be new."""

    def change(folder: Path) -> None:
        path = folder / name
        found = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**found, **changes}))

    return change


def with_code(**said: Any) -> Change:
    """Code beside config.json, which asks for it."""

    def change(folder: Path) -> None:
        (folder / "modeling.py").write_text(CODE)
        values("config.json", **said)(folder)

    return change


def modules(kind: str, path: str = "1_Pooling") -> Change:
    """The second module is of another kind, or in another folder."""

    def change(folder: Path) -> None:
        found = json.loads((folder / "modules.json").read_text())
        found[1].update(type=kind, path=path)
        (folder / "modules.json").write_text(json.dumps(found))

    return change


def indexed(*names: str) -> Change:
    """An index instead of the weights."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        table = {f"a{place}": name for place, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))

    return change


def words(**changes: Any) -> Change:
    """With other parts of the tokenizer."""
    return values("tokenizer.json", **changes)


HEADER = 10 * 2**30
HOSTILE: dict[str, tuple[Change, str, str]] = {
    "a pickle": (pickled("pytorch_model.bin"), r"pytorch_model\.bin, a form that can run code", "--weights PATH"),
    "another pickle": (pickled("model.ckpt"), r"model\.ckpt, a form that can run code", "--weights PATH"),
    "code": (
        with_code(auto_map={"AutoConfig": "modeling.Config", "AutoModel": "modeling.Model"}),
        r"config\.json requests that code be run \(auto_map: .*modeling\.Config",
        "factory",
    ),
    "code from elsewhere": (
        with_code(auto_map={"AutoModel": "someone/else--modeling.Model"}), "requests that code", "factory",
    ),
    "code of a kind unknown": (with_code(model_type="mine", auto_map={"AutoModel": "modeling.Model"}), "code", ""),
    "code by its name alone": (
        with_code(model_type="mine"), r"config\.json names the model_type .mine., which transformers", ""
    ),
    "code for a tokenizer": (
        values("tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling.Words", None]}),
        r"tokenizer_config\.json requests that code",
        "factory",
    ),
    "code deep inside": (values("config.json", text_config={"auto_map": {"A": "b.C"}}), "that code be run", "factory"),
    "code of a module": (modules("modeling.Pooling"), r"modules\.json requests that code", "factory"),
    "a module like the real one": (modules("sentence_transformers_x.models.Pooling"), "requests that code", "factory"),
    "a module elsewhere": (modules("sentence_transformers.models.Pooling", "../1_Pooling"), "names the folder", ""),
    "settings of a module with code": (
        values("sentence_bert_config.json", model_args={"trust_remote_code": True}), "requests that code", "factory",
    ),
    "link for config": (linked("config.json"), r"config\.json is a link to .*out of the folder", "copy"),
    "link for weights": (linked("model.safetensors"), r"model\.safetensors is a link to .*out of the folder", "copy"),
    "link for a tokenizer": (linked("tokenizer.json"), r"tokenizer\.json is a link to .*out of the folder", "copy"),
    "link for a module": (linked("1_Pooling/config.json"), r"config\.json is a link to .*out of the folder", "copy"),
    "link for a folder": (linked("1_Pooling"), r"config\.json is a link to .*out of the folder", "copy"),
    "header of 10 GB": (
        written("model.safetensors", HEADER.to_bytes(8, "little") + b"{}"),
        r"model\.safetensors cannot be loaded safely",
        "",
    ),
    "cut weights": (lambda f: os.truncate(f / "model.safetensors", 5000), r"model\.safetensors cannot be loaded", ""),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"holds no model\.safetensors", "--weights"),
    "an index of a path": (indexed("../part.safetensors"), r"index\.json does not name files", ""),
    "an index of a pickle": (indexed("part.safetensors", "pytorch_model.bin"), r"index\.json does not name files", ""),
    "an index of what is not there": (indexed("nowhere.safetensors"), r"nowhere\.safetensors cannot be read", ""),
    "an index of a link": (
        lambda f: indexed("link.safetensors")(f) or (f / "link.safetensors").symlink_to("/etc/passwd"),  # type: ignore[func-returns-value]
        r"link\.safetensors is a link to /etc/passwd",
        "",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"has no tokenizer\.json", "AutoTokenizer"),
    "no JSON for a tokenizer": (written("tokenizer.json", b"\xff{"), r"tokenizer\.json describes no tokenizer", ""),
    "another kind of tokenizer": (written("tokenizer.json", b'{"model": 1}'), "describes no tokenizer", ""),
    "a tokenizer that panics": (
        words(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "describes no tokenizer", "",
    ),
    "a template that panics": (
        words(post_processor={
            "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}], "pair": [],
            "special_tokens": {},
        }),
        "describes no tokenizer",
        "",
    ),
    "a token there is not": (
        words(post_processor={"type": "BertProcessing", "sep": ["[SEP]", 10**6], "cls": ["[CLS]", 2]}),
        r"tokenizer\.json has the token 1,000,000, and its network knows",
        "",
    ),
    "large config": (written("config.json", b" " * (3 * 2**20)), r"config\.json has more than", ""),
    "no JSON": (written("config.json", b"\xff{"), r"config\.json holds no JSON", ""),
    "deep JSON": (written("config.json", b"[" * 10**6), r"config\.json holds no JSON", ""),
    "no kind": (written("config.json", b'{"architecture": "vit"}'), r"config\.json names no model_type", ""),
    "quantised": (values("config.json", quantization_config={"quant_method": "gptq"}), "quantised weights", "float32"),
    "absurd width": (values("config.json", hidden_size=10**9), r"config\.json gives hidden_size as 1000000000", ""),
    "absurd depth": (values("config.json", num_hidden_layers=10**5), "gives num_hidden_layers as 100000", ""),
    "no number": (values("config.json", layer_norm_eps=float("nan")), "gives layer_norm_eps as nan", ""),
    "another depth": (values("config.json", num_hidden_layers=3), r"missing: encoder\.layer\.2", ""),
    "larger than its weights": (values("config.json", intermediate_size=2**20), "describes a network of", ""),
    "a width of text": (values("config.json", hidden_size="wide"), "transformers (takes|cannot)", ""),
    "heads that do not divide": (values("config.json", num_attention_heads=5), "transformers cannot make", ""),
    "an activation there is not": (values("config.json", hidden_act="os.system"), "transformers cannot make", ""),
    "an absurd limit": (values("sentence_bert_config.json", max_seq_length=-3), "gives max_seq_length as -3", ""),
    "a decoder": (values("config.json", is_decoder=True), "holds a decoder", "factory"),
    "a prompt that is none": (
        values("config_sentence_transformers.json", default_prompt_name="x", prompts={}), "names the prompt 'x'", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_is_refused_by_name(
    good: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, says, hint = HOSTILE[name]
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    change(folder)
    before = {path.name for path in tmp_path.iterdir()}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PrecomputeError, match=says) as caught:
        load_backbone(f"hf:{folder}")
    assert isinstance(caught.value, WeightsError | BackboneError)
    assert str(folder) in caught.value.message
    assert hint in caught.value.hint
    assert {path.name for path in tmp_path.iterdir()} == before


def test_places_that_files_name_are_not_looked_at(good: Path, tmp_path: Path) -> None:
    """A tokenizer from elsewhere, a model to begin from, an implementation to fetch."""
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    elsewhere = {
        "tokenizer_file": str(tmp_path / "no.json"), "vocab_file": "/etc/passwd", "name_or_path": "/etc",
        "special_tokens_map_file": "/etc/passwd", "tokenizer_class": "NoSuch", "added_tokens_decoder": {"1": "x"},
    }  # fmt: skip
    values("tokenizer_config.json", **elsewhere)(folder)
    values("config.json", _name_or_path="/etc", attn_implementation="someone/kernels", _attn_implementation="x/y")(
        folder
    )
    one, other = load_backbone(f"hf:{folder}"), load_backbone(f"hf:{good}")
    assert one.weights == other.weights
    assert one.spec(precision="fp32", storage="float32") == other.spec(precision="fp32", storage="float32")


def test_a_pickled_state_dict_may_be_named_and_is_not_run(good: Path, tmp_path: Path) -> None:
    import transformers

    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    state: Any = transformers.AutoModel.from_pretrained(good)
    torch.save(state.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    named = load_backbone(f"hf:{folder}", weights=str(folder / "pytorch_model.bin"))
    assert named.weights == load_backbone(f"hf:{good}").weights
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(WeightsError, match="cannot be loaded safely"):
        load_backbone(f"hf:{folder}", weights=str(folder / "pytorch_model.bin"))
    assert not Path("was-run").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hf:./nowhere", "There is no folder ./nowhere"),
        ("hf:", "is not a model on the Hugging Face hub"),
        ("hf:a/b/c", "is not a model on the Hugging Face hub"),
        ("hf:a/b@", "is not a model on the Hugging Face hub"),
        ("hf:a b/c", "is not a model on the Hugging Face hub"),
    ],
)
def test_what_is_no_name_is_said_so(name: str, says: str) -> None:
    with pytest.raises(BackboneError, match=says):
        load_backbone(name)


def test_options_of_texts_are_checked(good: Path) -> None:
    for length in (2, 200, -1):
        with pytest.raises(UsageError, match="max_length must lie between 3 and 140"):
            load_backbone(f"hf:{good}", transform={"max_length": length})
    with pytest.raises(UsageError, match="crop cannot be set for a backbone that takes texts"):
        load_backbone(f"hf:{good}", transform={"crop": 3})
