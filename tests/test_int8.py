"""Activations of 8 bits: what codes and scales are, that all promises of the file hold for them, and who reads them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, Command, kill_in_the_middle, make_image, make_photos, run_python
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from test_parts import columns_equal

from precompute import (
    RidgeHead,
    compare,
    export_features,
    extract,
    few_shot,
    forecast,
    open_cache,
    predict,
    repair,
    train_head,
    verify,
)
from precompute.backbones.tiny import tiny
from precompute.cache import Layer, RowWriter, Samples, Status, create, quantise
from precompute.cache.quantised import QuantisedFeatures
from precompute.errors import CacheError, CacheKeyError, Stopped, UsageError
from precompute.heads import RowView, ViewRows

pytestmark = pytest.mark.usefixtures("tiny_made_once")
LAYERS = ["body", "embed"]
OPTIONS: dict[str, Any] = {"backbone": "tiny", "layer": LAYERS, "pooling": "none", "batch_size": 8}


def run(photos: Path, out: Path, **options: Any) -> Any:
    return extract(photos, out, **{**OPTIONS, "dtype": "int8", **options})


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 photos, of which one is there twice and one is broken."""
    folder = make_photos(tmp_path_factory.mktemp("int8") / "photos")
    shutil.copy(folder / "train/cats/1.png", folder / "val/dogs/again.png")
    (folder / "val/cats/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    return folder


@pytest.fixture(scope="module")
def whole(photos: Path) -> Path:
    run(photos, photos.parent / "whole.h5")
    return photos.parent / "whole.h5"


@pytest.fixture(scope="module")
def exact(photos: Path) -> Path:
    """The same features as float32."""
    run(photos, photos.parent / "exact.h5", dtype="float32", precision="fp32", engine="torch")
    return photos.parent / "exact.h5"


@pytest.fixture(scope="module")
def views(photos: Path) -> Path:
    run(photos, photos.parent / "views.h5", views=3, augment="flip,crop")
    return photos.parent / "views.h5"


# Codes and scales

NUMBERS = {"elements": st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, -0.0, 1e-40, -1e-45])}


@pytest.mark.rotates(3)
@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.tuples(st.just(("channel", "height", "width")), arrays.arrays(np.float32, (3, 2, 3, 4), **NUMBERS)),
        st.tuples(st.just(("token", "channel")), arrays.arrays(np.float32, (3, 4, 2), **NUMBERS)),
        st.tuples(st.just(("view", "channel", "token")), arrays.arrays(np.float32, (2, 3, 2, 4), **NUMBERS)),
    )
)
def test_a_value_is_half_a_step_off_at_most(case: tuple[tuple[str, ...], np.ndarray]) -> None:
    """Against float64, with the axes moved so that positions come last."""
    axes, x = case
    rows = quantise(x, axes)
    channel = 1 + axes.index("channel")
    positions = [axis for axis in range(1, x.ndim) if axis != channel and axes[axis - 1] != "view"]
    order = [axis for axis in range(x.ndim) if axis not in positions] + positions
    last = x.transpose(order).astype(np.float64).reshape(*rows.scales.shape[:-1], -1)
    codes = rows.codes.transpose(order).reshape(last.shape)
    values = rows.values().transpose(order).reshape(last.shape)
    low, high = last.min(axis=-1), last.max(axis=-1)
    np.testing.assert_array_equal(rows.scales[..., 0], low)
    assert not np.signbit(rows.scales[..., 0][low == 0]).any()
    np.testing.assert_allclose(rows.scales[..., 1], (high - low) / 255, rtol=1e-6, atol=2e-38)
    rounding = 4 * np.finfo(np.float32).eps * np.maximum(abs(low), abs(high))[..., None]
    assert (abs(values - last) <= rows.scales[..., 1, None] * 0.5001 + rounding + 3e-36).all()
    flat = low == high
    np.testing.assert_array_equal(values[flat], last[flat])
    assert not codes[flat].any()
    behind_relu = low == 0
    assert (values[behind_relu][last[behind_relu] == 0] == 0).all()
    assert rows.finite().all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3.4e38])
def test_a_row_that_has_no_scales_is_a_failed_one(bad: float) -> None:
    x = np.ones((3, 2, 4), np.float32)
    x[1, 1] = [bad, -3.4e38, 0, 1]
    rows = quantise(x, ("channel", "token"))
    assert rows.finite().tolist() == [True, False, True]
    assert not rows.codes[1].any()
    assert np.isnan(rows.scales[1]).all()
    np.testing.assert_array_equal(rows.values()[[0, 2]], x[[0, 2]])
    assert np.isnan(rows.values()[1]).all()


@pytest.mark.parametrize("axes", [("channel",), ("axis1", "axis2"), ("channel", "channel"), ("view", "channel")])
def test_what_has_no_channels_with_positions_is_refused(axes: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="8 bits are for channels with positions"):
        quantise(np.ones((2, *(3,) * len(axes)), np.float32), axes)
    shape = (3,) * len(axes)
    spec = {"layers": [{"name": "f", "pooling": "none", "axes": list(axes)}], "storage": "int8"}
    zeros = np.zeros(1, np.int64)
    samples = Samples(np.array([b"a"]), zeros, zeros, np.array([-1], np.int32), np.zeros(1, np.uint8), ())
    with pytest.raises(ValueError, match="needs channels with positions"):
        create("a.h5", spec=spec, samples=samples, layers={"f": Layer(shape, np.dtype("u1"), axes, "none")})


# The file


@pytest.mark.rotates(3)
def test_the_file_holds_codes_and_scales_of_the_very_activations(photos: Path, exact: Path, tmp_path: Path) -> None:
    result = run(photos, tmp_path / "a.h5", precision="fp32", engine="torch")
    assert (result.rows, result.computed, result.copied, result.dtype) == (26, 24, 1, "int8")
    assert result.failures == {"UNDECODABLE": 1}
    cache, floats = open_cache(tmp_path / "a.h5"), open_cache(exact)
    assert verify(cache).whole
    assert (cache.storage("body"), cache.storage("embed")) == ("int8", "float16")
    expected = floats.features("body")[floats.ok]
    with h5py.File(tmp_path / "a.h5") as file:
        assert json.loads(bytes(file.attrs["requires"])) == ["int8"]
        codes, scales = file["features/body"][:], file["scales/body"][:]
        assert codes.dtype == np.uint8
        assert (scales.dtype, scales.shape) == (np.float32, (26, 192, 2))
    low, high = expected.min(axis=(2, 3)), expected.max(axis=(2, 3))
    np.testing.assert_array_equal(scales[cache.ok], np.stack([low, (high - low) / np.float32(255)], axis=-1))
    assert np.isnan(scales[~cache.ok]).all()
    assert not codes[~cache.ok].any()
    values = np.asarray(cache.features("body"))
    assert np.isnan(values[~cache.ok]).all()
    assert np.linalg.norm(values[cache.ok] - expected) < 0.005 * np.linalg.norm(expected)
    np.testing.assert_array_equal(cache.features("embed"), np.float16(floats.features("embed")))
    assert result.bytes < open_cache(exact).layout.file_size


@pytest.mark.rotates(3)
def test_a_plan_and_a_dry_run_know_the_bytes(photos: Path, whole: Path, tmp_path: Path) -> None:
    columns = open_cache(whole).layout.columns
    dry = run(photos, tmp_path / "a.h5", dry_run=True)
    found = forecast(photos, tmp_path / "a.h5", **{**OPTIONS, "dtype": "int8"})
    assert (dry.bytes, dry.dtype) == (found.bytes, found.dtype)
    assert found.dtype == "int8"
    assert found.bytes == sum(column.nbytes for name, column in columns.items() if name != "classes")
    assert dry.key == open_cache(whole).key


def test_a_repeated_run_does_nothing_and_says_the_same(photos: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copy(whole, tmp_path / "a.h5")
    again = run(photos, tmp_path / "a.h5")
    assert (again.computed, again.reused, again.dtype) == (0, 26, "int8")
    assert again.layers == {"body": (192, 4, 4), "embed": (128,)}
    with pytest.raises(CacheKeyError, match="other settings") as caught:
        run(photos, tmp_path / "a.h5", dtype="float16")
    assert "storage: int8 -> float16" in str(caught.value)


@pytest.mark.rotates(6)
@pytest.mark.parametrize("views", [1, 3])
def test_a_killed_run_goes_on_where_it_was(views: int, tmp_path: Path, precompute: Command) -> None:
    make_photos(tmp_path / "more", per_class=60)
    command = ["extract", "more", "-b", "tiny", "--batch-size", "4", "--layer", "body:none", "--layer", "embed"]
    command += ["--dtype", "int8", "--views", str(views), *(["--augment", "flip,crop"] if views > 1 else []), "-o"]
    kept = kill_in_the_middle(command, tmp_path / "a.h5", rows=12, of=240)
    assert not len(verify(open_cache(tmp_path / "a.h5.partial")).damaged)
    assert json.loads(precompute(*command, "a.h5", "--json").stdout)["reused"] == kept
    assert precompute(*command, "b.h5").returncode == 0
    columns_equal(tmp_path / "a.h5", tmp_path / "b.h5")


@pytest.mark.rotates(3)
def test_a_changed_folder_is_brought_up_to_date(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    run(tmp_path / "photos", tmp_path / "a.h5")
    (tmp_path / "photos/train/cats/2.jpg").rename(tmp_path / "photos/train/dogs/moved.jpg")
    (tmp_path / "photos/train/cats/3.png").unlink()
    for number in range(30):
        make_image(99 + number).save(tmp_path / f"photos/val/dogs/new{number}.png")
    with pytest.raises(Stopped):
        run(tmp_path / "photos", tmp_path / "a.h5", stop=lambda: signal.SIGTERM)
    result = run(tmp_path / "photos", tmp_path / "a.h5")
    assert (result.rows, result.dropped) == (55, 2)
    run(tmp_path / "photos", tmp_path / "b.h5")
    columns_equal(tmp_path / "a.h5", tmp_path / "b.h5")
    assert verify(open_cache(tmp_path / "a.h5")).whole


@pytest.mark.rotates(3)
def test_parts_are_joined(photos: Path, whole: Path, tmp_path: Path) -> None:
    made = [tmp_path / f"{number}.h5" for number in (1, 2, 3)]
    for number, path in enumerate(made, start=1):
        run(photos, path, part=f"{number}/3")
    joined = run(photos, tmp_path / "joined.h5", reuse=made)
    assert joined.computed == 0
    columns_equal(tmp_path / "joined.h5", whole)


@pytest.mark.parametrize("column", ["features/body", "scales/body", "features/embed", "checksums/body"])
def test_bit_flips_are_found_and_mended(photos: Path, whole: Path, tmp_path: Path, column: str) -> None:
    shutil.copy(whole, tmp_path / "a.h5")
    found = open_cache(whole).layout.columns[column]
    data, rows = bytearray(whole.read_bytes()), [1, 7, 25]
    for row in rows:
        data[found.offset + (row + 1) * found.row_bytes - 1] ^= 0x10
    (tmp_path / "a.h5").write_bytes(data)
    assert verify(open_cache(tmp_path / "a.h5")).damaged.tolist() == rows
    with pytest.raises(CacheError, match="3 of 26 rows"):
        train_head(tmp_path / "a.h5", layer=column.partition("/")[2])
    done = repair(tmp_path / "a.h5", photos)
    assert (done.computed + done.copied, done.reused) == (3, 23)
    columns_equal(tmp_path / "a.h5", whole)


@pytest.mark.parametrize(("part", "factor"), [("body", 1e38), ("embed", 1e7)])
def test_activations_beyond_what_is_stored_are_failures(photos: Path, tmp_path: Path, part: str, factor: float) -> None:
    state = tiny().state_dict()
    name = next(name for name in reversed(state) if name.startswith(part) and name.endswith("weight"))
    state[name] = state[name] * factor
    torch.save(state, tmp_path / "big.pth")
    result = run(photos, tmp_path / "a.h5", weights=str(tmp_path / "big.pth"), precision="fp32", engine="torch")
    assert result.failures == {"UNDECODABLE": 1, "NON_FINITE": 25}
    cache = open_cache(tmp_path / "a.h5")
    assert verify(cache).whole
    for layer in LAYERS:
        assert np.isnan(np.asarray(cache.features(layer))).all()


def test_each_view_has_scales_of_its_own_and_view_0_is_the_plain_one(photos: Path, whole: Path, views: Path) -> None:
    cache, plain = open_cache(views), open_cache(whole)
    assert cache.features("body").shape == (26, 3, 192, 4, 4)
    assert cache.column("scales/body").shape == (26, 3, 192, 2)
    assert cache.plain_features("body").shape == (26, 192, 4, 4)
    for layer in LAYERS:
        assert cache.plain_features(layer).tobytes() == plain.features(layer).tobytes()
    assert cache.column("scales/body")[:, 0].tobytes() == plain.column("scales/body").tobytes()
    with h5py.File(views) as file:
        assert json.loads(bytes(file.attrs["requires"])) == ["views", "int8"]


@pytest.mark.rotates(3)
def test_other_settings_are_refused_before_anything_is_written(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for layer in (None, "embed", "body:mean", ["body:mean", "embed"]):
        for act in (extract, forecast):
            with pytest.raises(UsageError, match="int8 is for activations with positions") as caught:
                act(photos, tmp_path / "a.h5", backbone="tiny", layer=layer, dtype="int8")
            assert "--pooling none" in str(caught.value.hint)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("int8_mine.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def forward(self, x):\n"
        "        return x.reshape(len(x), 3, -1, 7).transpose(1, 2).reshape(len(x), 7, -1)\n"
        "def build():\n    return Net()\n"
    )
    with pytest.raises(UsageError, match="Which axis of 'output' holds the channels cannot be determined"):
        extract(photos, tmp_path / "a.h5", backbone="int8_mine:build", layer="output", pooling="none", dtype="int8")
    assert not list(tmp_path.glob("a.h5*"))
    with pytest.raises(UsageError, match="dtype must be one of"):
        extract(photos, tmp_path / "a.h5", backbone="tiny", dtype="int4")


@pytest.mark.rotates(3)
def test_tables_name_the_dtype_of_each_layer(precompute: Command, photos: Path, whole: Path) -> None:
    options = ["-b", "tiny", "--layer", "body:none", "--layer", "embed", "--dtype", "int8"]
    for command in (
        ["extract", str(photos), *options, "-o", "a.h5"],
        ["info", "a.h5"],
        ["plan", str(photos), *options],
    ):
        done = precompute(*command)
        assert "body, 192 x 4 x 4 int8" in done.stdout
        assert "embed, 128 float16" in done.stdout
    assert json.loads(precompute("info", "a.h5", "--json").stdout)["layers"] == {
        "body": {"shape": [192, 4, 4], "dtype": "int8"},
        "embed": {"shape": [128], "dtype": "float16"},
    }


# Reading

INDICES = [
    3,
    np.int64(-1),
    slice(None),
    slice(2, 9),
    slice(20, None, -3),
    [4, 0, 4],
    [],
    np.array([7, 7, -2]),
    np.array([[1, 2], [3, 4]]),
    np.arange(26) % 3 == 0,
    (5, 0),
    (slice(1, 3), 0),
    (slice(1, 3), slice(None), 2),
    (np.array([5, 1]), 1),
    (np.array([5, 1]), slice(1, 2), 0),
    (-1, 2, slice(None)),
]


@pytest.mark.parametrize("name", ["whole", "views"])
@pytest.mark.parametrize("index", INDICES, ids=lambda index: str(index).replace("\n", "")[:30])
def test_some_rows_are_those_of_the_whole_array(name: str, index: Any, request: pytest.FixtureRequest) -> None:
    features = open_cache(request.getfixturevalue(name)).features("body")
    array = np.asarray(features)
    found = features[index]
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array[index])


@pytest.mark.parametrize("name", ["whole", "views"])
def test_they_are_shown_in_other_shapes_without_being_computed(name: str, request: pytest.FixtureRequest) -> None:
    features = open_cache(request.getfixturevalue(name)).features("body")
    array = np.asarray(features)
    assert (features.shape, features.ndim, len(features)) == (array.shape, array.ndim, len(array))
    assert (features.size, features.nbytes, features.dtype) == (array.size, array.nbytes, array.dtype)
    lead = array.shape[:-3]
    for shape in {lead, (26,), (-1,), (np.prod(lead),)} - ({(26,)} if name == "views" else set()):
        for one in ((3072,), (192, 4, 4)):
            flat = features.reshape(*map(int, shape), *one)
            assert isinstance(flat, QuantisedFeatures)
            np.testing.assert_array_equal(np.asarray(flat), array.reshape(*map(int, shape), *one))
            np.testing.assert_array_equal(flat[[3, 1]], np.asarray(flat)[[3, 1]])
    samples = features.reshape(26, -1)
    assert isinstance(samples, QuantisedFeatures)
    np.testing.assert_array_equal(samples[[3, 1]], array.reshape(26, -1)[[3, 1]])
    np.testing.assert_array_equal(samples[5], array.reshape(26, -1)[5])
    np.testing.assert_array_equal(samples[2:4, 7], array.reshape(26, -1)[2:4, 7])
    again = features.reshape(-1, 3072).reshape(*lead, 3072)
    np.testing.assert_array_equal(again[2:4], array.reshape(*lead, 3072)[2:4])
    if name == "views":
        np.testing.assert_array_equal(again[:, 2][4:6], array.reshape(*lead, 3072)[4:6, 2])
        view = features[:, 1]
        assert isinstance(view, QuantisedFeatures)
        np.testing.assert_array_equal(np.asarray(view), array[:, 1])
        np.testing.assert_array_equal(features[[4, 2], 2, 5], array[[4, 2], 2, 5])
    assert [row.tobytes() for row in features] == [row.tobytes() for row in array]
    assert np.array(features, dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="cannot be seen as"):
        features.reshape(7, -1)
    with pytest.raises(ValueError, match="without a copy"):
        np.array(features, copy=False) if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else features.__array__(
            None, False
        )


@pytest.mark.parametrize("index", [None, ..., "a", (0, None), (slice(None), [1, 2]), 1.5], ids=str)
def test_what_is_no_rows_is_refused(whole: Path, index: Any) -> None:
    with pytest.raises(IndexError, match=r"Take rows first: features\[rows\]"):
        open_cache(whole).features("body")[index]


def test_row_views_read_them_as_they_read_an_array(whole: Path, views: Path) -> None:
    features, several = open_cache(whole).features("body"), open_cache(views).features("body")
    array, rows = np.asarray(features), np.array([9, 3, 4, 5, 20])
    for given_rows in (None, rows):
        view, same = RowView(features, given_rows), RowView(array, given_rows)
        assert (view.shape, view.dtype, view.working_dtype) == (same.shape, same.dtype, same.working_dtype)
        assert view.mapped and not same.mapped
        np.testing.assert_array_equal(view[:], same[:])
        np.testing.assert_array_equal(view.take([1, 3])[:], same.take([1, 3])[:])
        for (_, one), (_, other) in zip(view.blocks(3), same.blocks(3), strict=True):
            np.testing.assert_array_equal(one, other)
        view, same = ViewRows(several, given_rows), ViewRows(np.asarray(several), given_rows)
        np.testing.assert_array_equal(view[:], same[:])
        np.testing.assert_array_equal(view.every()[:], same.every()[:])
        np.testing.assert_array_equal(view.take([1, 3]).every()[:], same.take([1, 3]).every()[:])


def test_torch_datasets_give_floats(whole: Path, views: Path) -> None:
    cache, several = open_cache(whole), open_cache(views)
    for made in (cache.dataset("body"), pickle.loads(pickle.dumps(cache.dataset("body")))):
        values, _ = made[3]
        assert (values.dtype, values.shape) == (torch.float32, (192, 4, 4))
        assert np.array_equal(values, cache.features("body")[made.rows[3]])
    some = several.dataset("body", view=2).__getitems__([3, 1])
    assert np.array_equal(some[1][0], several.features("body")[several.ok][1][2])
    assert several.dataset("body", view=None)[0][0].shape == (3, 192, 4, 4)


MEMORY = """
import resource, sys
import numpy as np
from precompute.cache import open_cache
from precompute.heads import RowView
cache = open_cache(sys.argv[1])
view = RowView(cache.features("maps"))
list(view.blocks(8))[:0]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
total = 0.0
for _, block in view.blocks():
    total += float(block[:, 0].sum())
for rows in np.array_split(np.random.default_rng(0).permutation(len(view)), 40):
    total += float(view[rows][:, 0].sum())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_memory_is_flat_while_a_large_file_is_read(tmp_path: Path) -> None:
    rows, shape = 6000, (64, 32, 32)  # 390 MB of codes, 1.6 GB of values
    spec = {"layers": [{"name": "maps", "pooling": "none", "axes": ["channel", "height", "width"]}], "storage": "int8"}
    zeros = np.zeros(rows, np.int64)
    ids = np.array([b"%06d" % row for row in range(rows)])
    samples = Samples(ids, zeros, zeros, np.zeros(rows, np.int32), np.zeros(rows, np.uint8), (b"a",))
    layers = {"maps": Layer(shape, np.dtype("u1"), ("channel", "height", "width"), "none")}
    layout = create(str(tmp_path / "a.h5"), spec=spec, samples=samples, layers=layers)
    block = np.random.default_rng(0).normal(size=(200, *shape)).astype(np.float32)
    with RowWriter(str(tmp_path / "a.h5"), layout) as writer:
        for start in range(0, rows, 200):
            writer.write(
                np.arange(start, start + 200),
                {"maps": block},
                digests=np.zeros((200, 32), np.uint8),
                statuses=np.full(200, Status.OK, np.uint8),
                sizes=zeros[:200],
                mtimes=zeros[:200],
            )
    (tmp_path / "read.py").write_text(MEMORY)
    done = subprocess.run(
        [sys.executable, "read.py", "a.h5"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 800  # MiB: blocks, and the pages of the file that may stay


@pytest.mark.rotates(3)
def test_a_head_is_the_one_of_the_floats_and_predicts_images_as_it_does_rows(
    photos: Path, whole: Path, tmp_path: Path
) -> None:
    cache = open_cache(whole)
    train_head(whole, tmp_path / "head", layer="body", head="ridge", alpha=1.0)
    found = predict(tmp_path / "head", whole)
    train = cache.ok & (cache.split == "train")
    X = np.asarray(cache.features("body")).reshape(26, -1)
    other = RidgeHead(alpha=1.0).fit(X[train], np.array(cache.classes)[cache.labels][train])
    assert [item.label for item in found.items] == other.predict(X[cache.ok]).tolist()
    of_images = predict(tmp_path / "head", photos)
    assert [item.id for item in of_images.items] == [item.id for item in found.items]
    np.testing.assert_allclose(
        [item.probability for item in of_images.items], [item.probability for item in found.items], atol=1e-6
    )
    train_head(whole, tmp_path / "vector", layer="embed", head="ridge", alpha=1.0)  # of the same file, in float16
    one, other_one = predict(tmp_path / "vector", photos), predict(tmp_path / "vector", whole)
    np.testing.assert_allclose(
        [item.probability for item in one.items], [item.probability for item in other_one.items], atol=1e-6
    )


@pytest.mark.rotates(4)
@pytest.mark.parametrize("head", ["logistic", "mlp", "knn", "centroid"])
def test_every_head_trains_on_views_of_8_bits(head: str, photos: Path, views: Path, tmp_path: Path) -> None:
    options = {"C": 0.1} if head == "logistic" else {"k": 3} if head == "knn" else {}
    options |= {"max_epochs": 2, "hidden": (4,)} if head == "mlp" else {}
    train_head(views, tmp_path / "head", layer="body", head=head, average_views=True, **options)
    of_cache, of_images = predict(tmp_path / "head", views), predict(tmp_path / "head", photos)
    np.testing.assert_allclose(
        [item.probability for item in of_images.items], [item.probability for item in of_cache.items], atol=1e-5
    )


def test_export_compare_and_few_shot_read_them(whole: Path, tmp_path: Path) -> None:
    cache = open_cache(whole)
    values = np.asarray(cache.features("body"))[cache.ok]
    export_features(whole, tmp_path / "a.npz", layer="body")
    with np.load(tmp_path / "a.npz") as file:
        assert file["features"].dtype == np.float32
        np.testing.assert_array_equal(file["features"], values)
    export_features(whole, tmp_path / "a.csv", layer="body")
    lines = (tmp_path / "a.csv").read_text().splitlines()
    first = np.array(lines[1].split(",")[3:], dtype=np.float32)
    np.testing.assert_array_equal(first, values[0].ravel())
    train_head(whole, tmp_path / "maps", layer="body", head="ridge")
    train_head(whole, tmp_path / "vector", layer="embed", head="ridge")
    assert compare(tmp_path / "maps", tmp_path / "vector", whole)
    assert few_shot([whole], layer="body", shots=[2], draws=2, head="ridge")


def test_an_older_reader_refuses_it_by_what_it_requires(whole: Path) -> None:
    done = run_python(
        "import precompute.cache.check as check\n"
        "check.KNOWN_FEATURES = frozenset({'views'})\n"
        f"check.read_layout({str(whole)!r})"
    )
    assert "requires 'int8', which this precompute does not know" in done.stderr
