"""Language models of transformers: features as the library computes them, whatever stands beside a text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, run_command, run_python
from hub_server import COMMIT, Hub
from numpy.typing import NDArray

from precompute import extract, load_backbone, open_cache, predict, train_head
from precompute.backbones.load import Backbone
from precompute.errors import BackboneError, HeadMismatchError, UsageError, WeightsError

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'precompute[hf]'")

from language_models import TEXTS, WORDS, as_sentences, cosine, of_library, pooling, save

KINDS = ["bert", "roberta", "distilbert", "electra", "mpnet", "albert", "xlm-roberta", "camembert"]
KINDS += ["deberta-v2", "modernbert", "nomic_bert"]
KIND = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "bert")


def features(backbone: Backbone, text: str) -> NDArray[Any]:
    inputs = tuple(one[None] for one in backbone.preprocess.host(text.encode()))
    with torch.inference_mode():
        found: NDArray[Any] = backbone.body()(*inputs)[0][0].numpy()
    return found


def near(given: NDArray[Any], expected: torch.Tensor) -> None:
    np.testing.assert_allclose(given, expected.numpy(), rtol=1e-4, atol=1e-5)


# Features


@KIND
def test_features_are_what_the_library_gives_for_the_text_alone(kind: str, tmp_path: Path) -> None:
    """Padded to a fixed length here, and not at all there."""
    folder = save(tmp_path / kind, kind)
    backbone = load_backbone(f"hf:{folder}")
    assert (backbone.name, backbone.preprocess.modality, backbone.unit) == (f"hf:{kind}", "text", "texts")
    assert [(tap.layer, tap.pooling, tap.shape) for tap in backbone.taps] == [("output", "mean", (32,))]
    for text in TEXTS[::2]:
        near(features(backbone, text), of_library(folder, text).last_hidden_state[0].mean(0))


@pytest.mark.rotates(3)
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_each_pooling_is_right(kind: str, tmp_path: Path) -> None:
    folder = save(tmp_path / kind, kind)
    for text in TEXTS[:2]:
        given = of_library(folder, text)
        (tokens,) = given.last_hidden_state
        expected = {"mean": tokens.mean(0), "cls": tokens[0], "max": tokens.amax(0), "pooler": given.pooler_output[0]}
        for name, value in expected.items():
            near(features(load_backbone(f"hf:{folder}", pooling=name), text), value)


def test_hidden_layers_are_pooled_over_the_same_tokens(bert: Path) -> None:
    backbone = load_backbone(f"hf:{bert}", layer=["all-blocks", "output:cls"])
    assert [(tap.layer, tap.pooling) for tap in backbone.taps] == [
        ("encoder.layer.0", "mean"), ("encoder.layer.1", "mean"), ("output", "cls"),
    ]  # fmt: skip
    given = of_library(bert, TEXTS[1])
    inputs = tuple(one[None] for one in backbone.preprocess.host(TEXTS[1].encode()))
    found = backbone.body()(*inputs)
    for features_, states in zip(found, given.hidden_states[1:], strict=False):
        near(features_[0].numpy(), states[0].mean(0))
    near(found[2][0].numpy(), given.last_hidden_state[0, 0])
    with pytest.raises(BackboneError, match=r"no layer 'encoder\.layer\.2'"):
        load_backbone(f"hf:{bert}", layer="encoder.layer.2")
    with pytest.raises(BackboneError, match="no 'pooler' pooling"):
        load_backbone(f"hf:{bert}", layer="encoder.layer.0:pooler")


@pytest.mark.rotates(3)
@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet"])
def test_a_row_depends_neither_on_its_neighbours_nor_on_their_number(kind: str, tmp_path: Path) -> None:
    """Where no text of a batch is padded transformers computes otherwise, by itself."""
    folder = save(tmp_path / kind, kind)
    backbone = load_backbone(f"hf:{folder}")
    full = next(" ".join(["no"] * n) for n in range(1, 40) if all_real(backbone, " ".join(["no"] * n)))
    texts = [full, *TEXTS[:2], full]
    extract(texts, tmp_path / "all.h5", backbone=f"hf:{folder}", batch_size=4)
    extract(texts[:1], tmp_path / "one.h5", backbone=f"hf:{folder}", batch_size=4)
    both = [np.asarray(open_cache(tmp_path / name).features())[0] for name in ("all.h5", "one.h5")]
    assert np.array_equal(*both)
    near(both[0], of_library(folder, full).last_hidden_state[0].mean(0))


def all_real(backbone: Backbone, text: str) -> bool:
    return bool(backbone.preprocess.host(text.encode())[1].all())


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet"])
def test_the_longest_text_that_a_network_takes(kind: str, tmp_path: Path) -> None:
    """Of RoBERTa two tokens fewer than it has positions."""
    folder = save(tmp_path / kind, kind)
    longest = 140 if kind == "bert" else 138
    backbone = load_backbone(f"hf:{folder}", transform={"max_length": longest})
    text = " ".join(["so"] * 200)
    ids, mask = backbone.preprocess.host(text.encode())
    assert len(ids) == mask.sum() == longest
    given = of_library(folder, " ".join(["so"] * (longest - 2)), limit=longest)
    near(features(backbone, text), given.last_hidden_state[0].mean(0))
    with pytest.raises(UsageError, match=f"between 3 and {longest}"):
        load_backbone(f"hf:{folder}", transform={"max_length": longest + 1})


@pytest.mark.rotates(6)
@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta"])
def test_openvino_gives_the_same_for_every_length(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    folder = save(tmp_path / kind, kind)
    texts = [*TEXTS, *(text.upper() for text in TEXTS[::2])]
    rows = {}
    for size in (1, 3):
        out = tmp_path / f"{size}.h5"
        extract(texts, out, backbone=f"hf:{folder}", engine="openvino", precision="fp32", batch_size=size)
        rows[size] = np.asarray(open_cache(out).features())
    np.testing.assert_allclose(rows[1], rows[3], rtol=1e-4, atol=1e-5)
    for row, text in zip(rows[1], texts, strict=True):
        near(row, of_library(folder, text).last_hidden_state[0].mean(0))


def test_padding_and_truncation_of_the_tokenizer_s_own_file_are_off(bert: Path) -> None:
    """all-MiniLM-L6-v2's pads and cuts to 128, where its other files say 256 and 512; this one cuts to 20."""
    backbone = load_backbone(f"hf:{bert}")
    lengths = [len(backbone.preprocess.host(text.encode())[0]) for text in TEXTS]
    assert lengths[0] == 8
    assert max(lengths) > 64
    shapes = {shape[0].shape for shape in backbone.preprocess.examples()}
    assert {(one,) for one in lengths} <= shapes
    assert max(shapes) == (128,)


def test_a_model_that_is_set_to_give_tuples_gives_the_same(bert: Path, tmp_path: Path) -> None:
    """And hidden states, and whatever else config.json may say of the form of outputs."""
    folder = shutil.copytree(bert, tmp_path / "bert")
    change(folder, return_dict=False, output_hidden_states=True, output_attentions=True)
    for name in ("mean", "pooler"):
        one, other = (load_backbone(f"hf:{place}", pooling=name) for place in (bert, folder))
        assert np.array_equal(features(one, TEXTS[0]), features(other, TEXTS[0]))


def test_weights_of_16_bits_are_computed_with_in_32(bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(bert, tmp_path / "bert")
    state = {name: value.half() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    change(folder, dtype="float16")
    backbone = load_backbone(f"hf:{folder}")
    assert {value.dtype for value in backbone.network.parameters()} == {torch.float32}
    near(features(backbone, TEXTS[0]), of_library(folder, TEXTS[0]).last_hidden_state[0].mean(0))


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# What is asked for, and what there is not


def test_a_pooling_is_asked_for_and_not_guessed(bert: Path, tmp_path: Path) -> None:
    """Of a kind that stands in no table."""
    folder = save(tmp_path / "ernie", "ernie")
    with pytest.raises(BackboneError, match="does not guess") as caught:
        load_backbone(f"hf:{folder}")
    assert "--pooling mean|cls" in caught.value.hint
    near(
        features(load_backbone(f"hf:{folder}", pooling="mean"), TEXTS[1]),
        of_library(folder, TEXTS[1]).last_hidden_state[0].mean(0),
    )
    with pytest.raises(UsageError, match="pooling must be one of auto, none, mean, cls"):
        load_backbone(f"hf:{bert}", pooling="median")
    with pytest.raises(UsageError, match="pooling must be one of auto, none, mean"):
        load_backbone("tiny", pooling="cls")


def test_a_network_whose_features_depend_on_padding_is_refused(tmp_path: Path) -> None:
    """ConvBERT's convolutions reach from padding into the text."""
    folder = save(tmp_path / "convbert", "convbert")
    with pytest.raises(BackboneError, match="ConvBertModel makes of a text depends on how far it is padded"):
        load_backbone(f"hf:{folder}", pooling="mean")


def test_a_pooler_that_is_not_there_is_never_random(bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "bert")
    without(folder, "pooler.dense.weight", "pooler.dense.bias")
    near(features(load_backbone(f"hf:{folder}"), TEXTS[0]), of_library(bert, TEXTS[0]).last_hidden_state[0].mean(0))
    with pytest.raises(BackboneError, match="no 'pooler' pooling"):
        load_backbone(f"hf:{folder}", pooling="pooler")


def without(folder: Path, *names: str, **more: torch.Tensor) -> None:
    """Its weights without those of these names, and with further ones."""
    from safetensors.torch import load_file, save_file

    state = {name: value for name, value in load_file(folder / "model.safetensors").items() if name not in names}
    save_file({**state, **more}, folder / "model.safetensors", {"format": "pt"})


def test_no_value_of_a_network_is_random_unasked(bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "bert")
    without(folder, "encoder.layer.1.output.dense.weight", strange=torch.zeros(3))
    with pytest.raises(WeightsError) as caught:
        load_backbone(f"hf:{folder}")
    assert "1 missing: encoder.layer.1.output.dense.weight" in caught.value.message
    assert "1 unexpected: strange" in caught.value.message
    other = shutil.copytree(bert, tmp_path / "other")
    without(other, **{"encoder.layer.1.output.dense.weight": torch.zeros(32, 99)})
    with pytest.raises(WeightsError, match=r"encoder\.layer\.1\.output\.dense\.weight|mismatch"):
        load_backbone(f"hf:{other}")


def test_heads_of_a_task_are_left_out_and_named(bert: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "masked", head="BertForMaskedLM")
    backbone = load_backbone(f"hf:{folder}")
    assert backbone.notes == (f"{folder} also holds cls, which the features do not need",)
    near(features(backbone, TEXTS[0]), of_library(folder, TEXTS[0]).last_hidden_state[0].mean(0))
    with pytest.raises(BackboneError, match="no 'pooler' pooling"):
        load_backbone(f"hf:{folder}", pooling="pooler")


def test_weights_in_several_files_from_a_file_and_random_ones(bert: Path, tmp_path: Path) -> None:
    import transformers

    whole = load_backbone(f"hf:{bert}")
    model: Any = transformers.AutoModel.from_pretrained(bert)
    parts = shutil.copytree(bert, tmp_path / "parts")
    (parts / "model.safetensors").unlink()
    model.save_pretrained(parts, max_shard_size="10KB")
    assert len(list(parts.glob("*.safetensors"))) > 2
    assert load_backbone(f"hf:{parts}").weights == whole.weights
    torch.save({f"bert.{name}": value for name, value in model.state_dict().items()}, tmp_path / "w.pth")
    assert load_backbone(f"hf:{bert}", weights=str(tmp_path / "w.pth")).weights == whole.weights
    before = torch.random.get_rng_state()
    digests = [load_backbone(f"hf:{bert}", weights=one).weights for one in ("random", "random:0", "random:1")]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.random.get_rng_state(), before)


# Files of features and heads


def test_the_key_names_the_library_and_all_that_decides(bert: Path, tmp_path: Path) -> None:
    import transformers

    spec = load_backbone(f"hf:{bert}").spec(precision="fp32", storage="float32")
    assert spec["backend"]["transformers"] == transformers.__version__
    assert spec["backend"]["attention"] == "sdpa"
    assert spec["transform"]["max_length"] == 128
    folder = shutil.copytree(bert, tmp_path / "bert")
    change(folder, layer_norm_eps=0.1)
    other = load_backbone(f"hf:{folder}").spec(precision="fp32", storage="float32")
    assert other["backend"]["config"] != spec["backend"]["config"]
    change(folder, layer_norm_eps=1e-12, transformers_version="4.0", architectures=["X"], _name_or_path="/etc")
    assert load_backbone(f"hf:{folder}").spec(precision="fp32", storage="float32") == spec


@pytest.mark.slow
def test_a_run_with_nothing_to_do_does_not_load_the_library(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text\n" + "\n".join(WORDS))
    extract(tmp_path / "t.csv", tmp_path / "a.h5", backbone=f"hf:{bert}")
    done = run_python(
        "import sys, precompute\n"
        f"made = precompute.extract({str(tmp_path / 't.csv')!r}, {str(tmp_path / 'a.h5')!r}, backbone='hf:{bert}')\n"
        "assert (made.computed, made.unit) == (0, 'texts')\n"
        "assert not {'transformers', 'tokenizers'} & set(sys.modules)\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.rotates(3)
def test_a_head_finds_its_folder_again_and_no_other(bert: Path, tmp_path: Path) -> None:
    place = shutil.copytree(bert, tmp_path / "bert")
    table = tmp_path / "texts.csv"
    lines = [
        f"{'so' if n % 2 else 'no'} {word},{'odd' if n % 2 else 'even'}" for n, word in enumerate(TEXTS[3].split())
    ]
    table.write_text("text,label\n" + "\n".join(line.replace(",,", ",") for line in lines if line.count(",") == 1))
    extract(table, tmp_path / "a.h5", backbone=f"hf:{place}", pooling="cls", transform={"max_length": 32})
    assert (
        extract(table, tmp_path / "a.h5", backbone=f"hf:{place}", pooling="cls", transform={"max_length": 32}).computed
        == 0
    )
    train_head(tmp_path / "a.h5", tmp_path / "head.safetensors")
    plain = predict(tmp_path / "head.safetensors", table).items
    moved = place.rename(tmp_path / "moved")
    with pytest.raises(HeadMismatchError, match="no longer at"):
        predict(tmp_path / "head.safetensors", table)
    assert predict(tmp_path / "head.safetensors", table, backbone=f"hf:{moved}").items == plain
    change(moved, layer_norm_eps=0.1)
    with pytest.raises(HeadMismatchError, match=r"backend\.config"):
        predict(tmp_path / "head.safetensors", table, backbone=f"hf:{moved}")


# Sentence-transformers


@pytest.mark.rotates(3)
@pytest.mark.parametrize("mode", ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"])
def test_the_modules_of_sentence_transformers_are_followed(mode: str, tmp_path: Path) -> None:
    sentences = pytest.importorskip("sentence_transformers")
    folder = as_sentences(save(tmp_path / "bert"), pooling(mode), *([("Normalize", {})] if mode == "cls_token" else []))
    expected = sentences.SentenceTransformer(str(folder), device="cpu").encode(list(TEXTS))
    backbone = load_backbone(f"hf:{folder}")
    given = np.stack([features(backbone, text) for text in TEXTS])
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)
    assert backbone.taps[0].pooling == mode.removesuffix("_tokens").removesuffix("_token")


def test_small_letters_prompts_and_limits_of_sentence_transformers(tmp_path: Path) -> None:
    sentences = pytest.importorskip("sentence_transformers")
    folder = as_sentences(save(tmp_path / "bert"), pooling("mean_tokens"), limit=16)
    words = json.loads((folder / "tokenizer.json").read_text())
    words["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(words))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16, "do_lower_case": True}))
    settings = {"prompts": {"query": "what is "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    expected = sentences.SentenceTransformer(str(folder), device="cpu").encode(list(TEXTS))
    backbone = load_backbone(f"hf:{folder}")
    given = np.stack([features(backbone, text) for text in TEXTS])
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)
    assert backbone.spec(precision="fp32", storage="float32")["transform"]["max_length"] == 16


@pytest.mark.parametrize(
    ("modules", "says"),
    [
        ([pooling("lasttoken")], r"1_Pooling/config\.json pools by lasttoken"),
        ([pooling("mean_tokens"), ("Dense", {"in_features": 32})], "the module Dense"),
        ([("Pooling", {"pooling_mode": ["cls", "mean"]})], "pools by cls and mean"),
    ],
)
def test_modules_that_there_are_not_are_refused(modules: list[Any], says: str, tmp_path: Path) -> None:
    folder = as_sentences(save(tmp_path / "bert"), *modules)
    with pytest.raises(WeightsError, match=says):
        load_backbone(f"hf:{folder}")


@pytest.mark.rotates(3)
def test_real_questions_have_the_features_that_sentence_transformers_gives(trec: Path, minilm: Path) -> None:
    sentences = pytest.importorskip("sentence_transformers")
    texts = [line.rsplit(",", 2)[0].strip('"') for line in trec.read_text().splitlines()[-60:]]
    expected = sentences.SentenceTransformer(str(minilm), device="cpu").encode(texts)
    backbone = load_backbone(f"hf:{minilm}")
    given = np.stack([features(backbone, text) for text in texts])
    assert cosine(given, expected).min() >= 0.99999


# Lengths


@pytest.mark.rotates(3)
def test_texts_that_are_cut_off_are_counted_and_named(bert: Path, tmp_path: Path, precompute: Command) -> None:
    """In the run that computes them, also one that goes on; they are samples as any others."""
    table = tmp_path / "texts.csv"
    table.write_text("text,label\n" + "".join(f'"{text}",{n % 2}\n' for n, text in enumerate(TEXTS)))
    few = precompute("extract", "texts.csv", "-b", f"hf:{bert}", "--max-length", 10, "-o", "a.h5", "--limit", 3)
    assert few.returncode == 0, few.stderr
    done = precompute("extract", "texts.csv", "-b", f"hf:{bert}", "--max-length", 10, "-o", "a.h5", "--json")
    found = json.loads(done.stdout)
    assert (found["cut"], found["computed"]) == (3, 3)
    assert found["cut_named"] == ["row/000000003", "row/000000004", "row/000000005"]
    cache = open_cache(tmp_path / "a.h5")
    assert cache.ok.all()
    assert cache.spec["transform"]["max_length"] == 10
    assert [record["cut"]["samples"] for record in cache.provenance if "cut" in record] == [1, 3]
    again = precompute("extract", "texts.csv", "-b", f"hf:{bert}", "--max-length", 10, "-o", "a.h5")
    assert "nothing new" in again.stdout
    assert "cut off" not in again.stdout
    plain = precompute("extract", "texts.csv", "-b", f"hf:{bert}", "--max-length", 10, "-o", "b.h5")
    assert "4 of the 6 texts computed in this run, at the end (--max-length)" in " ".join(plain.stdout.split())
    assert "row/000000001" in plain.stderr
    told = precompute("info", "a.h5").stdout
    assert "cut off" in told
    assert "4 samples, at the end, by 2 runs" in told
    assert "None" not in told
    train_head(tmp_path / "a.h5", tmp_path / "head.safetensors")
    warned = predict(tmp_path / "head.safetensors", table).warnings
    assert any("4 texts are longer than the backbone takes" in one for one in warned)


def test_an_engine_proves_itself_on_lengths_that_were_not_met(bert: Path) -> None:
    """Between the shortest and the longest that were, by shorter texts with more padding."""
    backbone = load_backbone(f"hf:{bert}")
    host, between = backbone.preprocess.host, backbone.preprocess.between
    met = [host(TEXTS[0].encode()), host(TEXTS[-1].encode())]
    lengths = [len(one[0]) for one in met]
    assert lengths == [8, 96]
    made = between(met)
    assert [len(one[0]) for one in made] == [12, 16, 24, 32, 48, 64]
    with torch.inference_mode():
        (expected,) = backbone.body()(*(one[None] for one in met[0]))
        for one in made:
            (given,) = backbone.body()(*(part[None] for part in one))
            near(given.numpy(), expected)
    assert between(met[:1]) == between([]) == []


def test_what_is_cut_off_is_what_the_library_cuts_off(bert: Path) -> None:
    import transformers

    words = transformers.AutoTokenizer.from_pretrained(bert)
    words.backend_tokenizer.no_padding()
    backbone = load_backbone(f"hf:{bert}", transform={"max_length": 12})
    for text in TEXTS:
        ids, mask = backbone.preprocess.host(text.encode())
        expected = words(text, truncation=True, max_length=12, padding=False)["input_ids"]
        assert ids[mask == 1].tolist() == expected
        whole = words(text, padding=False, truncation=True)["input_ids"]
        assert backbone.preprocess.inputs(text.encode()).cut == (len(whole) > 12)


# The hub


class Models(Hub):
    """Serves a folder as a repository of a model."""

    def answer(self, address: str) -> tuple[bytes, dict[str, str]] | None:
        if address.startswith("/api/models/"):
            return super().answer(address.replace("/api/models/", "/api/datasets/", 1))
        return super().answer(f"/datasets{address}" if "/resolve/" in address else address)


FETCH = """
import json, os
from precompute.backbones.families.registry import family_of
from precompute.backbones.hub import cached_repositories, hub_folder
from precompute.errors import PrecomputeError
for repository, revision in {asked!r}:
    try:
        found = hub_folder(repository, ["*.json", "model.safetensors", "[0-9]_*/config.json"], revision)
        names = sorted(os.path.relpath(os.path.join(place, name), found.path)
                       for place, _, files in os.walk(found.path) for name in files)
        print(json.dumps([found.path, found.revision, names, cached_repositories()]))
    except PrecomputeError as error:
        print(json.dumps([error.message, error.hint]))
"""


def fetched(asked: list[tuple[str, str | None]], **around: str) -> list[Any]:
    done = run_python(FETCH.format(asked=asked), **around)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def served(bert: Path, tmp_path: Path) -> Path:
    """A repository with more than the files that are wanted."""
    folder = shutil.copytree(bert, tmp_path / "served")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    (folder / "modeling.py").write_text("raise SystemExit('it was run')")
    return folder


@pytest.mark.rotates(3)
def test_a_folder_of_the_hub_is_fetched_once_and_pinned(served: Path, bert: Path, tmp_path: Path) -> None:
    with Models(served, "some/bert") as hub:
        around = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        (found,) = fetched([("some/bert", "main")], **around)
        path, revision, names, cached = found
        assert (revision, cached) == (COMMIT, ["some/bert"])
        assert names == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
        assert not [one for one in hub.requests if "pytorch_model" in one or "modeling" in one]
    assert load_backbone(f"hf:{path}").weights == load_backbone(f"hf:{bert}").weights  # its links lead into the cache
    asked = [("some/bert", None), ("some/bert", COMMIT), ("some/other", None)]
    offline = fetched(asked, **{**around, "HF_HUB_OFFLINE": "1"})
    assert offline[:2] == [found, found]
    message, hint = offline[2]
    assert "some/other" in message
    assert str(tmp_path / "home") in message
    assert "-b hf:./folder" in hint


@pytest.mark.rotates(3)
def test_a_gated_model_says_how_to_get_it(served: Path, tmp_path: Path) -> None:
    with Gated(served, "some/bert") as hub:
        around = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        ((message, hint),) = fetched([("some/bert", None)], **around)
    assert "some/bert" in message
    assert "config.json" in message
    assert "hf auth login" in hint


@pytest.mark.slow
def test_a_model_by_its_name_is_found_again(served: Path, bert: Path, tmp_path: Path) -> None:
    """By a head, at the commit that it was trained on, without a network."""
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"{word} it,{n % 2}\n" for n, word in enumerate(WORDS)))
    with Models(served, "some/bert") as hub:
        around = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        done = run_command(tmp_path, "extract", "t.csv", "-b", "hf:some/bert@main", "-o", "a.h5", env=around)
        assert done.returncode == 0, done.stderr
    source = {"kind": "hub", "repository": "some/bert", "revision": COMMIT}
    assert open_cache(tmp_path / "a.h5").last_run["weights"] == source
    train_head(tmp_path / "a.h5", tmp_path / "head.safetensors")
    offline = {**around, "HF_HUB_OFFLINE": "1"}
    done = run_command(tmp_path, "predict", "head.safetensors", "t.csv", env=offline)
    assert done.returncode == 0, done.stderr
    done = run_command(tmp_path, "backbones", "hf:", "--json", env=offline)
    assert [one["name"] for one in json.loads(done.stdout)["backbones"]] == ["hf:some/bert"]


class Gated(Models):
    """Says that it has it, and gives it to nobody."""

    refusal = 403, "GatedRepo"

    def answer(self, address: str) -> tuple[bytes, dict[str, str]] | None:
        return None
