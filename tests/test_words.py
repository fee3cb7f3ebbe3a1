"""What commands say of texts and clips: no word of images."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import Command, kind_named
from modalities import Samples

from precompute.inputs.kinds import files_of
from precompute.system.samples import WORDS

WRONG = re.compile("image|photo|picture", re.IGNORECASE)


@pytest.fixture(params=["texts of a table", "sound"])
def others(request: pytest.FixtureRequest, tmp_path: Path) -> Samples:
    """Samples with a leak, one under two classes, and a broken one."""
    found = kind_named(request.param).make(tmp_path)
    with found.together():
        found.copy(found.kind.named("train/cats/0"), found.kind.named("val/dogs/copy"))
        found.write(found.kind.named("val/dogs/broken"), b"")
    return found


@pytest.mark.parametrize("modality", WORDS)
def test_files_and_words_agree(modality: str) -> None:
    kind, words = files_of(modality), WORDS[modality]
    assert (kind.single, kind.plural) == (words.single, words.plural)
    assert words.single.endswith(f" {words.one}")


@pytest.mark.rotates(3)
def test_commands_call_texts_and_clips_what_they_are(others: Samples, tmp_path: Path, precompute: Command) -> None:
    source, unit = others.source.name, others.kind.unit
    one = unit.removesuffix("s")

    def said(status: int, *arguments: object) -> str:
        done = precompute(*arguments)
        text = done.stdout + done.stderr
        assert done.returncode == status, text
        assert not WRONG.search(text), text
        assert "Traceback" not in text
        return text

    with_backbone = (source, "-b", others.backbone)
    assert f"{unit}  " in said(0, "plan", *with_backbone)
    assert f"26 {unit}, computed unless" in said(0, "extract", *with_backbone, "-o", "a.h5", "--dry-run")
    told = said(3, "extract", *with_backbone, "-o", "a.h5")
    assert (
        re.search(rf"24 {unit}( in \d+ windows)? with torch", told)
        and f"{unit}/s" in told
        and f"rows of {unit} seen before" in told
    )
    said(3, "extract", *with_backbone, "-o", "a.h5")
    assert f"{unit} changed " in said(0, "verify", "a.h5", "--source", source)
    assert re.search(rf"class +{unit} ", said(0, "info", "a.h5"))
    told = said(0, "train-head", "a.h5", "-o", "a.safetensors", "--C", "1", "--per-class")
    for words in (
        f"13 {unit}",
        f"byte-identical to training {unit}",
        f"trained on +12 {unit}",
        f"1 {unit} occur under",
    ):
        assert re.search(words, told), told
    assert f"13 {unit}" in said(0, "info", "a.safetensors")
    assert re.search(rf"26 of 26 {unit}\n", told := said(3, "predict", "a.safetensors", source))
    assert re.search(rf"\n *{one} +class", told)
    said(3, "predict", "a.safetensors", "a.h5")
    assert f"6 {unit} of val" in said(0, "few-shot", "a.h5", "--shots", "1,2", "--draws", "2").replace("13", "6")
    assert f"different training {unit}" in said(1, "few-shot", "a.h5", "--shots", "50")
    said(0, "train-head", "a.h5", "-o", "b.safetensors", "--head", "centroid")
    assert re.search(rf"{unit} +12 of val", said(0, "compare", "a.safetensors", "b.safetensors", "a.h5"))
    said(2, "predict", "a.safetensors", "a.h5", "--batch-size", "3")
    said(0, "train-head", "a.h5", "--groups", r"(\d|copy)")
    said(2, "train-head", "a.h5", "--groups", r"(\d)")
    said(0, "export-head", "a.safetensors", "-o", "a.joblib")
    said(2, "extract", *with_backbone, "-o", "v.h5", "--views", "2", "--augment", "flip")
    said(2, "extract", *with_backbone, "-o", "v.h5", "--resize", "32")
    said(2, "extract", *with_backbone, "-o", "v.h5", "--dtype", "int8")
    said(2, "extract", *with_backbone, "-o", "a.h5", "--limit", "3")


@pytest.mark.rotates(3)
def test_damage_is_said_in_their_words(others: Samples, tmp_path: Path, precompute: Command) -> None:
    from precompute import open_cache

    others.extract(tmp_path / "a.h5")
    cache = open_cache(tmp_path / "a.h5")
    column = cache.layout.columns[f"features/{cache.layers[0]}"]
    data = bytearray((tmp_path / "a.h5").read_bytes())
    data[column.offset] ^= 1
    (tmp_path / "a.h5").write_bytes(data)
    done = precompute("verify", "a.h5")
    assert done.returncode == 1
    assert f"with the source of the {others.kind.unit}" in done.stderr
    done = precompute("verify", "a.h5", "--source", others.source.name, "--repair", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["whole"]
    assert not WRONG.search(done.stdout + done.stderr)


TEXTS = ("-b", "lengths:make_attention")


@pytest.mark.parametrize(
    "command",
    [
        ("depth", "texts.csv", *TEXTS, "-o", "d"),
        ("rank", "texts.csv", *TEXTS, "-b", "tiny"),
        ("fine-tune", "texts.csv", *TEXTS, "-o", "a.safetensors"),
        ("fine-tune", "texts.csv", *TEXTS, "--cut", "auto"),
        ("fine-tune", "texts.csv", "-b", "lengths:make_attention", "--freeze-to", "0", "-o", "a.safetensors"),
    ],
    ids=" ".join,
)
def test_what_is_for_images_alone_refuses_a_factory_of_texts(
    command: tuple[str, ...], tmp_path: Path, precompute: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(Path(__file__).parent / "lengths.py", tmp_path)
    (tmp_path / "texts.csv").write_text("text,label,split\n" + "".join(f"a {n},c{n % 2},train\n" for n in range(40)))
    done = precompute(*command)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "images alone so far, and lengths:make_attention takes texts" in " ".join(done.stderr.split())
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["lengths.py", "texts.csv"]
