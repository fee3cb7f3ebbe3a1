"""The feature file: complete before the first feature, readable by anyone, and read without trust."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import run_command
from hypothesis import given, settings
from hypothesis import strategies as st

from precompute.cache import (
    Layer,
    RowWriter,
    Samples,
    Status,
    create,
    difference,
    key_of,
    open_cache,
    read_layout,
    verify,
)
from precompute.cache.creation import LARGE_FILE, bytes_needed
from precompute.cache.verification import finite
from precompute.errors import CacheError, CacheFormatError, DiskSpaceError

ROOT = Path(__file__).resolve().parent.parent
SPEC = {
    "backbone": "tiny",
    "transform": {"resize": 32},
    "layers": [{"name": "flatten", "pooling": "none", "axes": ["channel"]}],
}
WIDTH = 5


def samples(number: int, *, names: list[bytes] | None = None) -> Samples:
    ids = np.array(sorted(names) if names else [b"train/a/%06d.jpg" % row for row in range(number)])
    return Samples(
        ids=ids,
        sizes=np.arange(number, dtype=np.int64) + 100,
        mtimes=np.arange(number, dtype=np.int64) + 10**18,
        labels=np.arange(number, dtype=np.int32) % 2,
        splits=np.full(number, 1, dtype=np.uint8),
        classes=(b"a", b"b\xff"),
    )


def layers(dtype: str = "float32") -> dict[str, Layer]:
    return {"flatten": Layer((WIDTH,), np.dtype(dtype), ("channel",), "none")}


def make(path: Path, number: int = 6, *, fill: bool = True, dtype: str = "float32") -> np.ndarray:
    """A file of `number` rows; returns the features in it."""
    layout = create(str(path), spec=SPEC, samples=samples(number), layers=layers(dtype))
    values = np.random.default_rng(0).normal(size=(number, WIDTH)).astype(dtype)
    if fill:
        with RowWriter(str(path), layout) as writer:
            write(writer, np.arange(number), values)
    return values


def write(writer: RowWriter, rows: np.ndarray, values: np.ndarray, status: Status = Status.OK) -> None:
    digests = np.stack([np.frombuffer(hashlib.sha256(bytes([row % 256])).digest(), np.uint8) for row in rows])
    writer.write(
        rows,
        {"flatten": values},
        digests=digests,
        statuses=np.full(len(rows), status, dtype=np.uint8),
        sizes=rows + 100,
        mtimes=rows + 10**18,
    )


def test_round_trip(tmp_path: Path) -> None:
    values = make(tmp_path / "a.h5")
    cache = open_cache(tmp_path / "a.h5")
    np.testing.assert_array_equal(cache.features(), values)
    np.testing.assert_array_equal(cache.features("flatten"), values)
    assert cache.ids[2] == "train/a/000002.jpg"
    assert cache.classes == ("a", "b\udcff")
    assert cache.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert set(cache.split) == {"train"}
    assert cache.ok.all()
    assert cache.spec == SPEC
    assert cache.key == key_of(SPEC)
    assert verify(cache).whole


def test_the_whole_structure_is_there_before_the_first_row(tmp_path: Path) -> None:
    make(tmp_path / "a.h5", 1000, fill=False)
    size = os.path.getsize(tmp_path / "a.h5")
    before = (tmp_path / "a.h5").read_bytes()
    assert os.stat(tmp_path / "a.h5").st_blocks * 512 >= size  # reserved on disk, not a hole
    layout = read_layout(str(tmp_path / "a.h5"))
    with RowWriter(str(tmp_path / "a.h5"), layout) as writer:
        write(writer, np.arange(1000), np.ones((1000, WIDTH), np.float32))
    after = (tmp_path / "a.h5").read_bytes()
    assert len(after) == size
    inside = np.zeros(size, dtype=bool)
    for column in layout.columns.values():
        inside[column.offset : column.offset + column.nbytes] = True
    changed = np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8)
    assert changed.any()
    assert not (changed & ~inside).any()  # not one byte of HDF5 structure


def test_columns_are_aligned_and_plain_h5py_reads_them(tmp_path: Path) -> None:
    values = make(tmp_path / "a.h5", dtype="float16")
    for column in read_layout(str(tmp_path / "a.h5")).columns.values():
        assert column.offset % 4096 == 0, column
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["features/flatten"][:], values)
        assert file["features/flatten"].dtype == np.float16
        assert file["samples/id"][0] == b"train/a/000000.jpg"
        assert json.loads(file.attrs["spec"]) == SPEC
        status = file["samples/status"]
        meanings = status.attrs["flag_meanings"].decode().split()
        assert dict(zip(meanings, status.attrs["flag_values"].tolist(), strict=True))["TRUNCATED"] == 4


def test_features_of_large_files_begin_where_large_pages_do(tmp_path: Path) -> None:
    many = samples(LARGE_FILE // 4096)
    wide = {"flatten": Layer((2048,), np.dtype("f2"), ("channel",), "none")}
    layout = create(str(tmp_path / "a.h5"), spec=SPEC, samples=many, layers=wide)
    assert layout.columns["features/flatten"].offset % (256 * 1024) == 0
    assert layout.file_size < 1.05 * bytes_needed(many, wide)


def test_unlabelled_files_have_no_classes(tmp_path: Path) -> None:
    plain = samples(3)
    none = Samples(plain.ids, plain.sizes, plain.mtimes, np.full(3, -1, np.int32), np.zeros(3, np.uint8), ())
    maps = Layer((2, 3, 3), np.dtype("f4"), ("channel", "height", "width"), "none")
    spec = {**SPEC, "layers": [{"name": "layer4", "pooling": "none", "axes": ["channel", "height", "width"]}]}
    create(str(tmp_path / "a.h5"), spec=spec, samples=none, layers={"layer4": maps})
    cache = open_cache(tmp_path / "a.h5")
    assert cache.classes == ()
    assert cache.features().shape == (3, 2, 3, 3)
    assert not cache.ok.any()


@pytest.mark.rotates(3)
@settings(max_examples=30, deadline=None)
@given(names=st.sets(st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name), min_size=1, max_size=8))
def test_any_name_survives(names: set[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("names") / "a.h5"
    create(
        str(path),
        spec=SPEC,
        samples=samples(len(names), names=list(names)),
        layers=layers(),
    )
    assert [os.fsencode(name) for name in open_cache(path).ids] == sorted(names)


@pytest.mark.rotates(3)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_rows_in_any_order_and_grouping_give_the_same_file(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("order")
    values = make(folder / "once.h5", 8)
    layout = create(str(folder / "parts.h5"), spec=SPEC, samples=samples(8), layers=layers())
    order = np.array(data.draw(st.permutations(range(8))))
    cuts = sorted(data.draw(st.sets(st.integers(1, 7))))
    with RowWriter(str(folder / "parts.h5"), layout) as writer:
        for rows in np.split(order, cuts):
            write(writer, np.sort(rows), values[np.sort(rows)])
    assert (folder / "once.h5").read_bytes() == (folder / "parts.h5").read_bytes()


def test_a_changed_byte_is_found_wherever_it_matters(tmp_path: Path) -> None:
    make(tmp_path / "a.h5")
    layout = read_layout(str(tmp_path / "a.h5"))
    for name in (
        "features/flatten",
        "samples/digest",
        "samples/size",
        "samples/mtime_ns",
        "samples/status",
        "checksums/flatten",
    ):
        column = layout.columns[name]
        for row in range(6):
            broken = tmp_path / "broken.h5"
            shutil.copy(tmp_path / "a.h5", broken)
            with open(broken, "r+b") as file:
                file.seek(column.offset + row * column.row_bytes)
                byte = file.read(1)[0]
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 0x02]))  # of a status: OK becomes UNDECODABLE
            found = verify(open_cache(broken))
            assert found.damaged.tolist() == [row], (name, row)


def test_forgotten_rows_are_pending(tmp_path: Path) -> None:
    make(tmp_path / "a.h5")
    with RowWriter(str(tmp_path / "a.h5"), read_layout(str(tmp_path / "a.h5"))) as writer:
        writer.forget(np.array([1, 4]))
    cache = open_cache(tmp_path / "a.h5")
    assert verify(cache).pending.tolist() == [1, 4]
    assert np.flatnonzero(~cache.ok).tolist() == [1, 4]


def test_an_ok_row_with_nan_is_damage_even_under_a_right_checksum(tmp_path: Path) -> None:
    make(tmp_path / "a.h5", fill=False)
    values = np.ones((6, WIDTH), np.float32)
    values[3, 2] = np.nan
    with RowWriter(str(tmp_path / "a.h5"), read_layout(str(tmp_path / "a.h5"))) as writer:
        write(writer, np.arange(6), values)
    assert verify(open_cache(tmp_path / "a.h5")).damaged.tolist() == [3]


@pytest.mark.parametrize("dtype", ["<f2", "<f4"])
def test_what_is_not_finite_is_found_by_its_bits(dtype: str) -> None:
    limits = np.finfo(dtype)
    numbers = [0, -0.0, limits.max, limits.min, limits.smallest_subnormal, np.nan, -np.nan, np.inf, -np.inf]
    bits = np.random.default_rng(0).integers(0, 2**16, 4000, dtype=np.uint16)  # any pattern
    for rows in (np.array(numbers, dtype)[:, None], bits.view(dtype).reshape(-1, 2)):
        np.testing.assert_array_equal(finite(rows), np.isfinite(rows).all(axis=1))


def test_provenance_survives_a_torn_append(tmp_path: Path) -> None:
    make(tmp_path / "a.h5")
    layout = read_layout(str(tmp_path / "a.h5"))
    with RowWriter(str(tmp_path / "a.h5"), layout) as writer:
        assert writer.append_provenance([{"run": 1}])
        column = layout.columns["provenance"]
        with open(tmp_path / "a.h5", "r+b") as file:
            file.seek(column.offset + len(b'{"run":1}\n'))
            file.write(b'{"run": 2, "host": "half a li')
        assert open_cache(tmp_path / "a.h5").provenance == [{"run": 1}]
        assert writer.append_provenance([{"run": 3}])
        assert open_cache(tmp_path / "a.h5").provenance == [{"run": 1}, {"run": 3}]
        while writer.append_provenance([{"filler": "x" * 60_000}]):
            continue
        assert open_cache(tmp_path / "a.h5").provenance[:2] == [{"run": 1}, {"run": 3}]


@pytest.mark.rotates(3)
@pytest.mark.parametrize("locking", ["TRUE", "FALSE", ""])
def test_a_file_that_another_program_holds_locked_is_said_to_be_locked(tmp_path: Path, locking: str) -> None:
    make(tmp_path / "a.h5")
    environment = {"HDF5_USE_FILE_LOCKING": "TRUE"}
    code = (
        f"import h5py, sys; file = h5py.File({str(tmp_path / 'a.h5')!r}, 'r+'); print(1, flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"1\n"
        done = run_command(tmp_path, "info", "a.h5", env={"HDF5_USE_FILE_LOCKING": locking})
        assert holder.stdin is not None
        holder.stdin.close()
    if locking == "TRUE":
        assert done.returncode == 1
        assert "a.h5 is locked: another program has it open for writing." in done.stderr
        assert "HDF5_USE_FILE_LOCKING" in done.stderr
        assert "truncated" not in done.stderr
    else:
        assert done.returncode == 0, done.stderr


def test_the_torch_dataset_gives_rows_and_labels(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    values = make(tmp_path / "a.h5", dtype="float16")
    dataset = open_cache(tmp_path / "a.h5").dataset(split="train")
    features, label = dataset[3]
    assert features.dtype == torch.float32
    np.testing.assert_array_equal(features.numpy(), values[3].astype(np.float32))
    assert label == 1
    batch, labels = next(iter(torch.utils.data.DataLoader(dataset, batch_size=4)))
    np.testing.assert_array_equal(batch.numpy(), values[:4].astype(np.float32))
    assert labels.tolist() == [0, 1, 0, 1]


def test_a_layer_that_is_not_there_is_named(tmp_path: Path) -> None:
    make(tmp_path / "a.h5")
    with pytest.raises(CacheError, match="holds the layers flatten; 'avgpool' is not"):
        open_cache(tmp_path / "a.h5").features("avgpool")


def test_too_little_disk_is_known_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(DiskSpaceError, match=r"needs [\d,]+ bytes; [\d,]+ bytes are free"):
        create(
            str(tmp_path / "a.h5"),
            spec=SPEC,
            samples=samples(6),
            layers={"flatten": Layer((2**43,), np.dtype("f4"), ("channel",), "none")},
        )
    assert not list(tmp_path.iterdir())


def test_difference_names_each_setting() -> None:
    other = {"backbone": "resnet50", "transform": {"resize": 256}, "layers": [{**SPEC["layers"][0], "name": "avgpool"}]}
    assert difference(SPEC, other) == [
        "backbone: tiny -> resnet50",
        "layers[0].name: flatten -> avgpool",
        "transform.resize: 32 -> 256",
    ]
    assert difference(SPEC, SPEC) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@pytest.mark.rotates(3)
@given(first=st.dictionaries(st.text(), JSON, max_size=4), second=st.dictionaries(st.text(), JSON, max_size=4))
def test_keys_are_equal_exactly_where_the_specs_are(first: dict, second: dict) -> None:
    assert key_of(first) == key_of(json.loads(json.dumps(first)))
    assert key_of(first) == key_of(dict(reversed(first.items())))
    if key_of(first) == key_of(second):
        assert json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)


# Files that are not ours ---------------------------------------------------------------------------------------------


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a.h5")
    whole = (tmp_path / "a.h5").read_bytes()
    for length in [0, 1, 8, 100, *range(512, len(whole), 9973), len(whole) - 1]:
        (tmp_path / "short.h5").write_bytes(whole[:length])
        with pytest.raises(CacheFormatError, match=r"short\.h5"):
            open_cache(tmp_path / "short.h5")


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", os.urandom(4096), b"\x89HDF\r\n\x1a\n" + bytes(2000)],
    ids=["empty", "text", "noise", "signature"],
)
def test_a_file_that_is_no_hdf5_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.h5").write_bytes(content)
    with pytest.raises(CacheFormatError, match="not an HDF5 file"):
        open_cache(tmp_path / "x.h5")


def test_missing_files_folders_and_fifos_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.h5")
    for name, what in (("no.h5", "does not exist"), (".", "not an ordinary file"), ("fifo.h5", "not an ordinary file")):
        with pytest.raises(CacheFormatError, match=what):
            open_cache(tmp_path / name)


def spoil(path: Path, what: str) -> str:
    """Change a good file so that it breaks one rule of FORMAT.md; returns what the refusal must name."""
    secret = path.parent / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["features"] = np.ones((6, WIDTH), np.float32)
    with h5py.File(path, "r+") as file:
        if what == "foreign":
            file.attrs["format"] = np.bytes_("something-else")
            return "format"
        if what == "newer":
            file.attrs["version"] = np.int64(2)
            return "version 2"
        if what == "spec":
            file.attrs["spec"] = np.bytes_('{"backbone":"other"}')
            return "spec"
        if what == "no key":
            del file.attrs["key"]
            return "key"
        name = "features/flatten"
        del file[name]
        if what == "external link":
            file[name] = h5py.ExternalLink("secret.h5", "/features")
        elif what == "soft link":
            file[name] = h5py.SoftLink("/samples/digest")
        elif what == "chunked":
            file.create_dataset(name, data=np.ones((6, WIDTH), np.float32), chunks=(2, WIDTH))
        elif what == "filter":
            file.create_dataset(name, data=np.ones((6, WIDTH), np.float32), compression="gzip")
        elif what == "external storage":
            file.create_dataset(name, (6, WIDTH), "f4", external=[(str(secret), 0, 6 * WIDTH * 4)])
        elif what == "virtual":
            layout = h5py.VirtualLayout((6, WIDTH), "f4")
            layout[:] = h5py.VirtualSource(str(secret), "features", (6, WIDTH))
            file.create_virtual_dataset(name, layout)
        elif what == "objects":
            file.create_dataset(name, data=["a"] * 6, dtype=h5py.string_dtype())
        elif what == "group":
            file.create_group(name)
        elif what == "rows":
            file.create_dataset(name, data=np.ones((5, WIDTH), np.float32))
        elif what == "float64":
            file.create_dataset(name, data=np.ones((6, WIDTH)))
        elif what == "big-endian":
            file.create_dataset(name, data=np.ones((6, WIDTH), ">f4"))
    return name


@pytest.mark.parametrize(
    "what",
    "foreign,newer,spec,no key,external link,soft link,chunked,filter,external storage,virtual,objects,group,rows,"
    "float64,big-endian".split(","),
)
def test_what_the_format_forbids_is_refused_by_name(tmp_path: Path, what: str) -> None:
    make(tmp_path / "a.h5")
    named = spoil(tmp_path / "a.h5", what)
    with pytest.raises(CacheFormatError, match=named):
        open_cache(tmp_path / "a.h5")


# FORMAT.md -----------------------------------------------------------------------------------------------------------


def test_the_lines_of_format_md_read_a_file_without_precompute(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "cache" / "FORMAT.md").read_text(), re.DOTALL)
    assert code is not None
    assert "precompute" not in code[1]
    values = make(tmp_path / "ants.h5")
    check = (
        "import sys; assert 'precompute' not in sys.modules; np.save('features.npy', features); print(labels.tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"{code[1]}\n{check}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "flatten (6, 5) float32 b'train/a/000000.jpg' a" in done.stdout
    assert "[0, 1, 0, 1, 0, 1]" in done.stdout
    np.testing.assert_array_equal(np.load(tmp_path / "features.npy"), values)


def test_format_md_lists_every_status_and_column(tmp_path: Path) -> None:
    text = (ROOT / "cache" / "FORMAT.md").read_text()
    for status in Status:
        assert f"| {int(status)} | {status.name} |" in text
    make(tmp_path / "a.h5")
    for name in read_layout(str(tmp_path / "a.h5")).columns:
        assert f"`/{name.replace('flatten', '<layer>')}`" in text


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump (Debian: hdf5-tools) is not installed")
def test_h5dump_reads_it(tmp_path: Path) -> None:
    make(tmp_path / "a.h5")
    done = subprocess.run(["h5dump", "-H", str(tmp_path / "a.h5")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 'DATASET "flatten"' in done.stdout
