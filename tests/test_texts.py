"""Texts: from tables, folders, lists and memory to features, with every promise that holds for images."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, SHARED, Command, rows_there, run_python
from contracts import PreprocessContract, SourceContract
from test_extraction import assert_same

from precompute import extract, load_backbone, open_cache, verify
from precompute.errors import CacheKeyError, SampleError, SourceError, UsageError, WeightsError
from precompute.extraction.forecast import forecast
from precompute.extraction.repair import repair
from precompute.extraction.source_comparison import compare_source
from precompute.inputs.kinds import files_of, modality_of_name, modality_of_spec
from precompute.inputs.text.decode import MAX_TEXT_BYTES, text_of
from precompute.inputs.text.ngrams import WIDTH, NgramPreprocess, hashed
from precompute.sources.base import Reading, Source
from precompute.sources.memory import texts_of
from precompute.sources.registry import open_source

KIND = files_of("text")
BACKBONE = "ngram-hash"
Rows = list[tuple[str, str, str]]


def rows(count: int = 24) -> Rows:
    """(text, label, split); quotation marks, line ends and letters beyond ASCII among them."""
    odd = ['a "quoted" word', "two\nlines, one text", "naïve café 東京", "semi;colon", " blanks around "]
    return [
        (f"{odd[number % 5]} number {number}", f"class{number % 3}", "train" if number % 4 else "test")
        for number in range(count)
    ]


def write_csv(path: Path, table: Rows, header: tuple[str, ...] = ("text", "label", "split")) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, "excel-tab" if path.suffix == ".tsv" else "excel")
        writer.writerows([header, *table])
    return path


def write_parquet(path: Path, table: Rows) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = dict(zip(("text", "label", "split"), zip(*table, strict=True), strict=True))
    parquet.write_table(pyarrow.table({name: list(values) for name, values in columns.items()}), path, row_group_size=5)
    return path


def write_folder(path: Path, table: Rows) -> Path:
    for number, (text, label, split) in enumerate(table):
        place = path / split / label
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:03}.txt").write_text(text, encoding="utf-8", newline="")
    return path


WRITERS: dict[str, Callable[[Path, Rows], Path]] = {
    "csv": lambda place, table: write_csv(place / "t.csv", table),
    "tsv": lambda place, table: write_csv(place / "t.tsv", table),
    "parquet": lambda place, table: write_parquet(place / "t.parquet", table),
    "folder": lambda place, table: write_folder(place / "texts", table),
}
TABLES = ["csv", "parquet"]


def open_texts(path: Any, **columns: str) -> Source:
    return open_source(path, KIND, reading=Reading.of(None, columns))


class TestSources(SourceContract):
    """The contract of sources, for each way in which texts may lie."""

    @pytest.fixture(params=[*WRITERS, "memory"])
    def source(self, request: pytest.FixtureRequest, tmp_path: Path) -> Source:
        if request.param == "memory":
            return texts_of([text for text, _, _ in rows()])
        return open_texts(WRITERS[request.param](tmp_path, rows()))


class TestNgrams(PreprocessContract):
    @pytest.fixture
    def preprocess(self) -> NgramPreprocess:
        return NgramPreprocess()

    @pytest.fixture
    def raws(self) -> list[bytes]:
        return [b"a text", "東京".encode()]

    @pytest.mark.parametrize("raw", [b"", b"\0", b"a \0 inside", b" \n\t", b"\xff\xfe", b"\xef\xbb\xbf"])
    def test_bytes_that_are_no_sample_are_refused_with_a_reason(self, preprocess: Any, raw: bytes) -> None:
        with pytest.raises(SampleError) as caught:
            preprocess.host(raw)
        assert caught.value.reason == "UNDECODABLE"


def test_a_text_of_a_megabyte_is_taken_and_a_longer_one_is_not() -> None:
    assert len(text_of(b"a" * MAX_TEXT_BYTES)) == MAX_TEXT_BYTES
    with pytest.raises(SampleError) as caught:
        text_of(b"a" * (MAX_TEXT_BYTES + 1))
    assert caught.value.reason == "TOO_LARGE"


def test_hashed_ngrams_are_the_same_to_the_last_bit_everywhere() -> None:
    found = hashed("The quick brown fox, naïve 東京; THE fox!")
    assert found.dtype == np.float32
    assert found.shape == (WIDTH,)
    assert float(np.linalg.norm(found)) == pytest.approx(1, abs=1e-6)
    assert hashlib.sha256(found.astype("<f4").tobytes()).hexdigest() == (
        "7b9447fe1a3dbf878b61ca518930377157f4eb73bb1ffebe2e69ad86b8f98453"
    )


def test_what_shares_words_is_nearer_than_what_does_not() -> None:
    one, other, third = map(hashed, ("the cat sat", "The cat sits.", "quarterly revenue grew"))
    assert one @ other > 0.3 > abs(one @ third) + 0.1


@pytest.mark.rotates(3)
def test_every_source_gives_the_same_features(tmp_path: Path) -> None:
    expected = {text: hashed(text) for text, _, _ in rows()}
    for name, write in WRITERS.items():
        if name == "parquet":
            pytest.importorskip("pyarrow")
        source = write(tmp_path, rows())
        result = extract(source, tmp_path / f"{name}.h5", backbone=BACKBONE)
        assert (result.rows, result.classes, result.unit) == (24, 3, "texts")
        assert result.splits == {"train": 18, "test": 6}
        cache, listed = open_cache(tmp_path / f"{name}.h5"), open_texts(source)
        for row in range(24):
            text = listed.read(row).data.decode()
            np.testing.assert_array_equal(cache.features()[row], expected[text])
            assert cache.column("samples/digest")[row].tobytes() == hashlib.sha256(text.encode()).digest()
    texts = [text for text, _, _ in rows()]
    extract(texts, tmp_path / "memory.h5", backbone=BACKBONE)
    np.testing.assert_array_equal(
        open_cache(tmp_path / "memory.h5").features(), np.stack([expected[text] for text in texts])
    )


def test_a_list_names_files_of_texts(tmp_path: Path) -> None:
    write_folder(tmp_path / "texts", rows())
    paths = sorted((tmp_path / "texts").rglob("*.txt"))
    (tmp_path / "some.txt").write_text("\n".join(str(path.relative_to(tmp_path)) for path in paths[:5]))
    assert len(open_texts(tmp_path / "some.txt")) == 5
    assert len(open_texts(paths[:7])) == 7  # objects of Path; strings would be texts


@pytest.mark.rotates(3)
def test_the_settings_name_what_the_samples_are(tmp_path: Path) -> None:
    extract(["a text"], tmp_path / "a.h5", backbone=BACKBONE)
    spec = open_cache(tmp_path / "a.h5").spec
    assert spec["transform"]["modality"] == "text" == modality_of_spec(spec) == modality_of_name(BACKBONE)
    assert modality_of_name("tiny") == modality_of_name("resnet18") == "image"
    assert modality_of_name("mine:make") is None
    assert "modality" not in load_backbone("tiny").spec(precision="fp32", storage="float32")["transform"]
    for strange in (
        None,
        [],
        {"transform": []},
        {"transform": {"modality": ["text"]}},
        {"transform": {"modality": "x"}},
    ):
        assert modality_of_spec(strange) == "image"


BROKEN = {3: b"", 4: b"\xff\xfe no utf-8", 5: b"a \0 byte", 6: b"x" * (MAX_TEXT_BYTES + 1), 7: b"  "}


def spoiled(kind: str, place: Path) -> Path:
    """The 24 texts, of which five are none."""
    data = [text.encode() for text, _, _ in rows()]
    for number, raw in BROKEN.items():
        data[number] = raw
    if kind == "folder":
        (place / "texts").mkdir()
        for number, raw in enumerate(data):
            (place / "texts" / f"{number:03}.txt").write_bytes(raw)
        return place / "texts"
    if kind == "csv":
        lines = [b"text"] + [b'"' + raw.replace(b'"', b'""') + b'"' for raw in data]
        (place / "t.csv").write_bytes(b"\r\n".join(lines) + b"\r\n")
        return place / "t.csv"
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    values: list[bytes | None] = [*data]
    values[3] = None
    parquet.write_table(pyarrow.table({"text": pyarrow.array(values, pyarrow.binary())}), place / "t.parquet")
    return place / "t.parquet"


@pytest.mark.rotates(3)
@pytest.mark.parametrize("kind", ["folder", "csv", "parquet"])
def test_what_is_no_text_keeps_its_row_and_says_why(kind: str, tmp_path: Path) -> None:
    source = spoiled(kind, tmp_path)
    result = extract(source, tmp_path / "a.h5", backbone=BACKBONE)
    assert result.failures == {"UNDECODABLE": 4, "TOO_LARGE": 1}
    assert {reason for _, reason, _ in result.failed} == {"UNDECODABLE", "TOO_LARGE"}
    details = "\n".join(detail for _, _, detail in result.failed)
    for words in ("not UTF-8: byte 0xff", "NUL", "an empty text", "more than 1,048,576"):
        assert words in details
    cache = open_cache(tmp_path / "a.h5")
    assert np.flatnonzero(~cache.ok).tolist() == sorted(BROKEN)
    for row in set(range(24)) - {*BROKEN}:
        np.testing.assert_array_equal(cache.features()[row], hashed(rows()[row][0]))
    again = extract(source, tmp_path / "a.h5", backbone=BACKBONE)
    assert (again.reused, again.computed) == (24, 0)


@pytest.mark.rotates(3)
@pytest.mark.parametrize("kind", [*WRITERS])
def test_equal_texts_are_computed_once(kind: str, tmp_path: Path) -> None:
    table = rows()
    table[20] = (table[2][0], "class1", "test")
    result = extract(WRITERS[kind](tmp_path, table), tmp_path / "a.h5", backbone=BACKBONE)
    assert (result.rows, result.computed, result.copied) == (24, 23, 1)


@pytest.mark.rotates(3)
@pytest.mark.parametrize("kind", TABLES)
def test_a_table_that_changed_is_brought_up_to_date(kind: str, tmp_path: Path) -> None:
    """Rows that moved are known by their bytes, and the file equals one made from nothing."""
    table = rows()
    source = WRITERS[kind](tmp_path, table)
    extract(source, tmp_path / "a.h5", backbone=BACKBONE)
    table = [("a new first row", "class0", "train"), *table[:10], ("an edited one", "class2", "test"), *table[11:-2]]
    WRITERS[kind](tmp_path, table)
    synced = extract(source, tmp_path / "a.h5", backbone=BACKBONE)
    assert (synced.rows, synced.computed, synced.dropped) == (23, 2, 1)
    assert synced.copied + synced.reused == 21
    extract(source, tmp_path / "b.h5", backbone=BACKBONE)
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "b.h5"))


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_that_was_only_written_again_is_not_read(kind: str, tmp_path: Path) -> None:
    source = WRITERS[kind](tmp_path, rows())
    extract(source, tmp_path / "a.h5", backbone=BACKBONE)
    before = os.stat(tmp_path / "a.h5")
    WRITERS[kind](tmp_path, rows())
    os.utime(source, (1, 1))
    again = extract(source, tmp_path / "a.h5", backbone=BACKBONE)
    assert (again.reused, again.copied, again.computed) == (24, 0, 0)
    assert os.stat(tmp_path / "a.h5").st_mtime_ns == before.st_mtime_ns


def test_ids_are_those_of_the_table_where_it_has_them(tmp_path: Path) -> None:
    table = [("b", "second", "x"), ("a", "first", "y")]
    source = open_texts(write_csv(tmp_path / "t.csv", table, ("key", "body", "label")), id="key", text="body")
    assert source.table.ids.tolist() == [b"a", b"b"]
    assert [source.read(row).data for row in range(2)] == [b"first", b"second"]
    assert source.table.classes == (b"x", b"y")
    numbered = open_texts(write_csv(tmp_path / "n.csv", table, ("key", "text", "label")))
    assert numbered.table.ids.tolist() == [b"row/000000000", b"row/000000001"]


def test_blank_lines_long_fields_and_a_byte_order_mark_move_no_text(tmp_path: Path) -> None:
    long = "word " * 60_000  # more than Python's limit for a field
    path = tmp_path / "t.csv"
    path.write_text(
        f'\ufefftext,label\r\n\r\n"{long}",a\n\n"line 1\n\nline 2",b\r\nlast,c', encoding="utf-8", newline=""
    )
    source = open_texts(path)
    assert [source.read(row).data.decode() for row in (2, 0, 1)] == ["last", long, "line 1\n\nline 2"]
    assert csv.field_size_limit() == 131_072


@pytest.mark.rotates(3)
def test_long_texts_are_read_by_many_threads_and_the_programs_own_limit_of_a_field_is_back(tmp_path: Path) -> None:
    """Seen: a thread that was done put the limit of all back, and another one's text was too long."""
    texts = [f"{number} " + "word " * 30_000 for number in range(16)]
    source = open_texts(write_csv(tmp_path / "t.csv", [(text, "a", "train") for text in texts]))
    before, interval = csv.field_size_limit(200_000), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(source.read, [*range(16)] * 10))
        assert csv.field_size_limit() == 200_000
    finally:
        sys.setswitchinterval(interval)
        csv.field_size_limit(before)
    assert [raw.data.decode() for raw in found] == texts * 10


@pytest.mark.rotates(3)
def test_a_table_of_more_rows_than_a_block(tmp_path: Path) -> None:
    count = 40_000
    path = tmp_path / "t.csv"
    path.write_text("text\n" + "".join(f"text {number}\n" for number in range(count)))
    source = open_texts(path)
    assert len(source) == count
    assert all(source.read(row).data == b"text %d" % row for row in (0, 16_383, 16_384, 32_768, count - 1))


def test_a_table_that_changes_while_it_is_read_is_no_other_tables_text(tmp_path: Path) -> None:
    source = open_texts(write_csv(tmp_path / "t.csv", rows()))
    write_csv(tmp_path / "t.csv", rows()[1:])
    with pytest.raises(SampleError, match="has changed"):
        source.read(0)


@pytest.mark.parametrize(
    ("header", "columns", "message"),
    [
        (("body", "label", "split"), {}, "no column 'text'"),
        (("text", "label", "split"), {"text": "body"}, "no column 'body'"),
        (("text", "text", "split"), {}, "2 columns 'text'"),
    ],
)
def test_a_column_that_is_not_there_is_named(
    header: tuple[str, ...], columns: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        open_texts(write_csv(tmp_path / "t.csv", rows(), header), **columns)
    assert "--text-column" in str(caught.value.hint)


def test_a_table_of_paths_of_texts(tmp_path: Path) -> None:
    write_folder(tmp_path / "texts", rows())
    paths = [str(path.relative_to(tmp_path)) for path in sorted((tmp_path / "texts").rglob("*.txt"))]
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *((path, "a") for path in paths)])
    assert open_texts(tmp_path / "t.csv").table.ids.tolist() == sorted(path.encode() for path in paths)


def test_what_holds_images_alone_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(SourceError, match="an array of images"):
        open_texts(tmp_path / "a.npy")
    with pytest.raises(UsageError, match="takes images"):
        open_source(write_csv(tmp_path / "t.csv", rows()), files_of("image"), reading=Reading.of(None, {"text": "x"}))


@pytest.mark.rotates(3)
def test_all_commands_agree_about_a_table(tmp_path: Path, precompute: Command) -> None:
    """plan, --dry-run, extract, train-head, predict, verify --source, repair: each finds the texts by the backbone."""
    write_csv(tmp_path / "t.csv", rows(60))
    planned = forecast(tmp_path / "t.csv", tmp_path / "t.h5", backbone=BACKBONE)
    assert (planned.images, planned.to_read, planned.unit) == (60, 60, "texts")
    dry = precompute("extract", "t.csv", "-b", BACKBONE, "-o", "t.h5", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "60 texts" in dry.stdout
    done = precompute("extract", "t.csv", "-b", BACKBONE, "-o", "t.h5")
    assert done.returncode == 0, done.stderr
    assert "60 texts with torch" in done.stdout
    assert 0 < planned.bytes <= os.stat(tmp_path / "t.h5").st_size  # which has room for records too
    assert precompute("train-head", "t.h5", "-o", "t.safetensors").returncode == 0
    answers = json.loads(precompute("predict", "t.safetensors", "t.csv", "--json").stdout)
    cached = json.loads(precompute("predict", "t.safetensors", "t.h5", "--json").stdout)
    for one, other in zip(answers["predictions"], cached["predictions"], strict=True):
        assert one.pop("probability") == pytest.approx(other.pop("probability"), abs=1e-6)
        assert {**one, "true": None} == {**other, "true": None}
    assert precompute("verify", "t.h5", "--source", "t.csv").returncode == 0
    assert compare_source(open_cache(tmp_path / "t.h5"), tmp_path / "t.csv").same
    found = open_cache(tmp_path / "t.h5").layout.columns["features/output"]
    data = bytearray((tmp_path / "t.h5").read_bytes())
    data[found.offset + 9 * found.row_bytes] ^= 0x10
    (tmp_path / "t.h5").write_bytes(data)
    mended = repair(tmp_path / "t.h5", tmp_path / "t.csv")
    assert (mended.computed, mended.reused, mended.unit) == (1, 59, "texts")
    assert verify(open_cache(tmp_path / "t.h5")).whole


@pytest.mark.rotates(3)
def test_a_finished_file_is_known_again_without_torch(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", rows())
    extract(tmp_path / "t.csv", tmp_path / "t.h5", backbone=BACKBONE)
    done = run_python(
        "import os, sys\nfrom precompute import extract\n"
        f"os.chdir({os.getcwd()!r})\n"
        f"assert extract({str(tmp_path / 't.csv')!r}, {str(tmp_path / 't.h5')!r}, backbone='ngram-hash').reused == 24\n"
        "assert 'torch' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("rank", "t.csv", "-b", BACKBONE, "-b", "tiny"),
        ("depth", "t.csv", "-b", BACKBONE, "-o", "d"),
        ("fine-tune", "t.csv", "-b", BACKBONE, "-o", "a.safetensors"),
        ("fine-tune", "t.csv", "-b", BACKBONE, "--cut", "auto"),
    ],
)
def test_commands_for_images_say_so(command: tuple[str, ...], tmp_path: Path, precompute: Command) -> None:
    write_csv(tmp_path / "t.csv", rows())
    done = precompute(*command)
    assert done.returncode in (1, 2)
    assert "images alone so far, and ngram-hash takes texts" in " ".join(done.stderr.split())


def test_a_backbone_without_weights_or_transform_says_so(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights"):
        extract(["a"], tmp_path / "a.h5", backbone=BACKBONE, weights="random")
    with pytest.raises(UsageError, match="crop"):
        extract(["a"], tmp_path / "a.h5", backbone=BACKBONE, transform={"crop": 3})
    with pytest.raises(UsageError, match="--views"):
        extract(["a"], tmp_path / "a.h5", backbone=BACKBONE, views=2, augment="flip")


def test_texts_and_images_have_no_file_together(photos: Path, tmp_path: Path) -> None:
    extract(["a"], tmp_path / "a.h5", backbone=BACKBONE)
    with pytest.raises(CacheKeyError):
        extract(photos, tmp_path / "a.h5", backbone="tiny")


def command(source: str, out: str) -> list[str]:
    return ["extract", source, "-b", "lengths:make_attention", "-o", out, "--batch-size", "4"]


@pytest.mark.rotates(6)
@pytest.mark.parametrize("kind", ["csv", "folder"])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_killed_runs_end_as_if_nothing_had_happened(kind: str, signum: int, tmp_path: Path) -> None:
    """Texts of three lengths, whose last rows of a length come late."""
    table = [(f"{number} " + "letters " * (number % 5), "a", "train") for number in range(600)]
    source = WRITERS[kind](tmp_path, table).name
    shutil.copy(ROOT / "tests" / "lengths.py", tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-m", "precompute"]
    process = subprocess.Popen(
        [*run, *command(source, "a.h5")],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    partial = tmp_path / "a.h5.partial"
    while process.poll() is None and not rows_there(partial):
        time.sleep(0.001)
    process.send_signal(signum)
    status = process.wait()
    assert status in (0, -signum, 128 + signum)
    before = rows_there(partial)
    done = subprocess.run(
        [*run, *command(source, "a.h5"), "--json"], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reused"] >= before
    subprocess.run([*run, *command(source, "b.h5")], cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "b.h5"))
    assert verify(open_cache(tmp_path / "a.h5")).whole


@pytest.mark.rotates(3)
def test_the_demo_on_texts(tmp_path: Path, precompute: Command) -> None:
    done = precompute("demo", "--text", "--folder", "kept", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["accuracy"] > 0.8
    assert (found["trained"], found["tested"], len(found["classes"])) == (180, 180, 5)
    assert sorted(os.listdir(tmp_path / "kept")) == ["questions.csv", "questions.h5", "questions.safetensors"]


def test_questions_of_trec_are_listed_with_their_classes_and_splits(tmp_path: Path) -> None:
    path = SHARED / "data" / "text" / "trec.csv"
    if not path.exists():
        pytest.skip("needs ../shared/data/text/trec.csv, which is not there")
    source = open_texts(path)
    assert len(source) == 5952
    assert source.table.classes == (b"ABBR", b"DESC", b"ENTY", b"HUM", b"LOC", b"NUM")
    assert np.bincount(source.table.splits).tolist() == [0, 5452, 0, 500]
