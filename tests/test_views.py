"""Extraction with several views: what lands in the file, and that nothing else decides it than picture and settings."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import Command, kill_in_the_middle, make_image, make_photos, rows_there
from test_extraction import assert_same
from test_parts import columns_equal

from precompute import extract, forecast, open_cache, repair, verify
from precompute.cache import Layer, Samples, create, plain_spec
from precompute.engines.machine import Machine
from precompute.errors import CacheError, CacheFormatError, CacheKeyError, Stopped, UsageError
from precompute.inputs.base import Preprocess

AUGMENT = "flip,crop,color"
OWN = "from torchvision.transforms import v2\nown = v2.RandomResizedCrop(32, antialias=True)\n"


def run(photos: Path, out: Path, **options: Any) -> Any:
    return extract(photos, out, backbone="tiny", **{"views": 4, "augment": AUGMENT, "batch_size": 8, **options})


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 photos, of which one is there twice and one is broken."""
    folder = make_photos(tmp_path_factory.mktemp("views") / "photos")
    shutil.copy(folder / "train/cats/1.png", folder / "val/dogs/again.png")
    (folder / "val/cats/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    return folder


@pytest.fixture(scope="module")
def whole(photos: Path) -> Path:
    run(photos, photos.parent / "whole.h5")
    return photos.parent / "whole.h5"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A transform of the user's own, in the current folder."""
    (tmp_path / "views_mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield "views_mine:own"
    sys.modules.pop("views_mine", None)


@pytest.mark.rotates(3)
def test_the_file_holds_each_view_and_the_result_counts_their_passes(photos: Path, tmp_path: Path) -> None:
    result = run(photos, tmp_path / "a.h5")
    cache = open_cache(tmp_path / "a.h5")
    assert (result.rows, result.computed, result.copied, result.views, result.passes) == (26, 24, 1, 4, 96)
    assert result.failures == {"UNDECODABLE": 1}
    assert cache.views == 4
    assert cache.features().shape == (26, 4, 128)
    assert cache.plain_features().shape == (26, 128)
    assert verify(cache).whole
    assert np.isnan(cache.features()[~cache.ok]).all()
    rows = cache.features()[cache.ok].reshape(-1, 128)
    assert len(np.unique(rows, axis=0)) == len(rows) - 4  # those of the picture that is there twice
    with h5py.File(tmp_path / "a.h5") as file:
        assert bytes(file["features/embed.4"].attrs["axes"]) == b"sample view channel"
        assert bytes(file.attrs["requires"]) == b'["views"]'


@pytest.mark.rotates(3)
def test_duplicates_have_the_same_views(whole: Path) -> None:
    cache = open_cache(whole)
    one, other = (cache.ids.index(name) for name in ("train/cats/1.png", "val/dogs/again.png"))
    assert cache.features()[one].tobytes() == cache.features()[other].tobytes()


@pytest.mark.rotates(3)
@pytest.mark.parametrize("layer", [None, ["embed", "body:mean"]], ids=str)
def test_view_0_is_the_row_of_a_file_without_views(layer: Any, photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "views.h5", layer=layer)
    extract(photos, tmp_path / "plain.h5", backbone="tiny", batch_size=8, layer=layer)
    views, plain = open_cache(tmp_path / "views.h5"), open_cache(tmp_path / "plain.h5")
    for name in plain.layers:
        assert views.plain_features(name).tobytes() == plain.features(name).tobytes()
    assert plain.spec["views"] == 1
    assert "augment" not in plain.spec
    assert plain_spec(views.spec) == plain.spec
    assert plain_spec(plain.spec) == plain.spec


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow), 8])
def test_workers_and_places_in_batches_make_no_difference(
    workers: int, batch: int, photos: Path, whole: Path, tmp_path: Path
) -> None:
    """Another batch size may round otherwise: the rows of one are compared among themselves."""
    run(photos, tmp_path / "a.h5", workers=workers, batch_size=batch)
    run(photos, tmp_path / "b.h5", workers=3, batch_size=batch, views=4)
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "b.h5"))
    if batch == 8:
        assert_same(open_cache(tmp_path / "a.h5"), open_cache(whole))


@pytest.mark.parametrize("views", [3, 7, pytest.param(40, marks=pytest.mark.slow)])
def test_a_view_does_not_depend_on_how_many_there_are(views: int, photos: Path, whole: Path, tmp_path: Path) -> None:
    result = run(photos, tmp_path / "a.h5", views=views)
    assert result.passes == views * 24
    some, four = open_cache(tmp_path / "a.h5").features(), open_cache(whole).features()
    shared = min(views, 4)
    assert some[:, :shared].tobytes() == four[:, :shared].tobytes()


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(photos: Path, tmp_path: Path, own: str, precompute: Command) -> None:
    make_photos(tmp_path / "more", per_class=100)
    command = ["extract", "more", "-b", "tiny", "--batch-size", "8", "--views", "3", "--augment", f"{own},flip,color"]
    kept = kill_in_the_middle([*command, "-o"], tmp_path / "a.h5", rows=20, of=400)
    result = json.loads(precompute(*command, "-o", "a.h5", "--json").stdout)
    assert (result["reused"], result["computed"], result["passes"]) == (kept, 400 - kept, 3 * (400 - kept))
    torch.manual_seed(3)
    extract(
        tmp_path / "more", tmp_path / "b.h5", backbone="tiny", batch_size=8, views=3, augment=[own, "flip", "color"]
    )
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "b.h5"))


@pytest.mark.rotates(3)
def test_a_stopped_run_with_several_passes_a_block_goes_on(photos: Path, tmp_path: Path) -> None:
    """Three samples of seven views fill seven passes of three."""
    calls = iter([0, 1])
    with pytest.raises(Stopped):
        run(photos, tmp_path / "a.h5", views=7, batch_size=3, stop=lambda: next(calls, 0))
    done = rows_there(tmp_path / "a.h5.partial")
    assert 0 < done < 24
    assert run(photos, tmp_path / "a.h5", views=7, batch_size=3).reused >= done
    run(photos, tmp_path / "b.h5", views=7, batch_size=3)
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "b.h5"))


@pytest.mark.rotates(3)
def test_a_changed_folder_is_brought_up_to_date(photos: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(photos, tmp_path / "photos")
    run(folder, tmp_path / "a.h5")
    (folder / "train/cats/0.jpg").rename(folder / "train/dogs/moved.jpg")
    make_image(77).save(folder / "train/cats/2.jpg")
    make_image(78).save(folder / "val/cats/new.png")
    (folder / "val/dogs/0.jpg").unlink()
    result = run(folder, tmp_path / "a.h5")
    assert (result.computed, result.passes) == (2, 8)
    run(folder, tmp_path / "b.h5")
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "b.h5"))
    again = run(folder, tmp_path / "a.h5")
    assert (again.computed, again.passes, again.views, again.layers) == (0, 0, 4, {"embed.4": (4, 128)})


@pytest.mark.rotates(3)
def test_parts_are_joined_without_a_pass(photos: Path, whole: Path, tmp_path: Path) -> None:
    made = []
    for number in (1, 2, 3):
        made.append(tmp_path / f"part{number}.h5")
        run(photos, made[-1], part=f"{number}/3")
    joined = run(photos, tmp_path / "joined.h5", reuse=made)
    assert (joined.computed, joined.passes) == (0, 0)
    columns_equal(tmp_path / "joined.h5", whole)


def test_a_limit_cuts_the_samples_and_not_the_views(photos: Path, whole: Path, tmp_path: Path) -> None:
    assert run(photos, tmp_path / "a.h5", limit=5).passes == 20
    assert open_cache(tmp_path / "a.h5").features().tobytes() == open_cache(whole).features()[:5].tobytes()


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        ({"views": 5}, "views: 4 -> 5"),
        ({"augment": "flip,crop"}, "augment.steps[2]"),
        ({"views": 1, "augment": None}, "augment.draws"),
    ],
)
def test_other_views_are_another_key(other: dict[str, Any], differs: str, photos: Path, whole: Path) -> None:
    with pytest.raises(CacheKeyError) as caught:
        run(photos, whole, **other)
    assert differs in str(caught.value)


def test_damaged_rows_are_repaired_with_all_of_their_views(photos: Path, whole: Path, tmp_path: Path) -> None:
    data = bytearray(whole.read_bytes())
    column = open_cache(whole).layout.columns["features/embed.4"]
    data[column.offset + 3 * column.row_bytes - 8] ^= 1  # in the last view of the third row
    (tmp_path / "a.h5").write_bytes(data)
    assert verify(open_cache(tmp_path / "a.h5")).damaged.tolist() == [2]
    mended = repair(tmp_path / "a.h5", photos)
    assert (mended.computed, mended.passes) == (1, 4)
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(whole))


@pytest.mark.rotates(3)
def test_a_file_does_not_decide_which_transform_runs(photos: Path, tmp_path: Path, own: str) -> None:
    result = run(photos, tmp_path / "a.h5", augment=own)
    assert result.passes == 96
    assert run(photos, tmp_path / "a.h5", augment=own).computed == 0
    data = bytearray((tmp_path / "a.h5").read_bytes())
    data[open_cache(tmp_path / "a.h5").layout.columns["features/embed.4"].offset] ^= 1
    (tmp_path / "b.h5").write_bytes(data)
    with pytest.raises(CacheError, match="names a transform that is code: views_mine:own") as caught:
        repair(tmp_path / "b.h5", photos)
    assert "--augment views_mine:own" in caught.value.hint
    assert repair(tmp_path / "b.h5", photos, augment=own).computed == 1
    assert_same(open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "b.h5"))


@pytest.mark.rotates(3)
def test_other_parameters_of_a_transform_of_ones_own_are_another_key(photos: Path, tmp_path: Path, own: str) -> None:
    run(photos, tmp_path / "a.h5", augment=own)
    (tmp_path / "views_mine.py").write_text(OWN.replace("(32,", "(32, scale=(0.5, 1.0),"))
    sys.modules.pop("views_mine")
    with pytest.raises(CacheKeyError, match=r"augment.steps\[0\].transform: .*0.08.* -> .*0.5"):
        run(photos, tmp_path / "a.h5", augment=own)


@pytest.mark.rotates(3)
def test_one_view_that_is_not_finite_fails_the_sample(photos: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from precompute.extraction import rows

    real = rows.RowRun._write

    def poisoned(self: Any, block: Any) -> Any:
        for place, item in enumerate(block.decoded):
            if item.row == 4:
                block.features[0][place, 3, 7] = np.inf
        return real(self, block)

    monkeypatch.setattr(rows.RowRun, "_write", poisoned)
    result = run(photos, tmp_path / "a.h5")
    assert result.failures["NON_FINITE"] == 1
    cache = open_cache(tmp_path / "a.h5")
    assert np.isnan(cache.features()[4]).all()
    assert verify(cache).whole


@pytest.mark.rotates(3)
def test_float16_and_further_engines_hold_views(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "a.h5", dtype="float16")
    cache = open_cache(tmp_path / "a.h5")
    assert cache.features().dtype == np.float16
    assert verify(cache).whole
    for engine, precision in (("torch", "bf16"), ("openvino", "fp32")):
        if Machine.here().computes(engine, "cpu", precision):
            result = run(photos, tmp_path / f"{engine}.h5", engine=engine, precision=precision)
            assert result.passes == 96
            assert result.audit is None or result.audit.worst > 0.99


@pytest.mark.rotates(3)
def test_an_audit_names_the_view_that_it_compared(photos: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from precompute.engines import audit

    monkeypatch.setattr(audit, "TIME_SHARE", 1e9)
    monkeypatch.setattr(audit, "LEAST_COSINE", 2.0)  # everything is below it
    result = run(photos, tmp_path / "a.h5", precision="bf16", engine="torch")
    assert result.audit is not None
    assert 10 < result.audit.images <= 16  # of broken ones and of duplicates there is nothing to compare
    assert all("(view " in name for name in result.audit.named)


# What is asked for, and told


@pytest.mark.parametrize(
    "options", [{"views": 0}, {"views": 8, "augment": None}, {"views": 1}, {"augment": "blur"}], ids=str
)
def test_what_makes_no_sense_is_refused_before_anything_is_read(options: Any, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        run(photos, tmp_path / "a.h5", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.rotates(3)
def test_a_factory_with_a_preprocessing_of_its_own_makes_its_own_views(tmp_path: Path) -> None:
    from test_contracts import array_source

    with pytest.raises(UsageError, match="makes its own views"):
        extract(array_source(), tmp_path / "a.h5", backbone="test_contracts:make_network", views=2, augment=["flip"])
    result = extract(array_source(), tmp_path / "a.h5", backbone="test_views:noisy_network", batch_size=8)
    assert (result.views, result.passes) == (3, 1200)
    extract(array_source(), tmp_path / "b.h5", backbone="test_contracts:make_network", batch_size=8)
    noisy, plain = open_cache(tmp_path / "a.h5"), open_cache(tmp_path / "b.h5")
    assert noisy.plain_features().tobytes() == plain.features().tobytes()


def noisy_network() -> tuple[torch.nn.Module, Preprocess]:
    """Vectors, and each of them twice more with something added."""
    from test_contracts import Vectors, make_network

    class Noisy(Vectors):
        views = 3

        def host(self, raw: bytes, view: int = 0) -> tuple[torch.Tensor, ...]:
            (values,) = super().host(raw)
            return (values + view,)

    return make_network()[0], Noisy()


@pytest.mark.rotates(3)
def test_plan_says_what_views_cost(photos: Path, tmp_path: Path, precompute: Command) -> None:
    found = forecast(photos, backbone="tiny", views=4, augment=AUGMENT, batch_size=8)
    plain = forecast(photos, backbone="tiny", batch_size=8)
    assert (found.views, found.passes, plain.passes) == (4, 4 * 26, 26)
    assert found.layers == {"embed.4": (4, 128)}
    assert found.bytes - plain.bytes == 26 * 3 * 128 * 4
    done = precompute("plan", photos, "-b", "tiny", "--views", "4", "--augment", AUGMENT)
    assert done.returncode == 0, done.stderr
    assert "4 of each sample: 104 forward passes at most" in done.stdout
    assert "4 views x 128 float32" in done.stdout


@pytest.mark.rotates(3)
def test_the_command_and_info_say_it(photos: Path, tmp_path: Path, precompute: Command) -> None:
    arguments = ("extract", photos, "-b", "tiny", "--views", "4", "--augment", AUGMENT, "--batch-size", "8", "-o")
    shown = precompute(*arguments, "a.h5", "--allow-skipped")
    assert shown.returncode == 0, shown.stderr
    assert "24 images in 4 views each, 96 forward passes" in shown.stdout
    assert "4 views x 128 float32" in shown.stdout
    told = precompute("info", "a.h5")
    assert "embed.4, 4 views x 128 float32" in told.stdout
    assert f"--augment {AUGMENT}" in told.stdout
    assert "--views 4" in told.stdout
    assert json.loads(precompute("info", "a.h5", "--json").stdout)["views"] == 4
    dry = precompute(*arguments, "b.h5", "--dry-run")
    assert "4 of each image" in dry.stdout
    refused = precompute("extract", photos, "-b", "tiny", "--views", "4", "-o", "c.h5")
    assert refused.returncode == 2
    assert "--augment flip,crop,color" in refused.stderr


# Reading


def test_the_dataset_gives_the_plain_view_one_of_them_or_all(whole: Path) -> None:
    cache = open_cache(whole)
    plain, third, every = cache.dataset(), cache.dataset(view=2), cache.dataset(view=None)
    row = plain.rows[3]
    assert torch.equal(plain[3][0], torch.from_numpy(np.array(cache.features()[row, 0])))
    assert torch.equal(third[3][0], torch.from_numpy(np.array(cache.features()[row, 2])))
    assert every[3][0].shape == (4, 128)
    import pickle

    assert torch.equal(pickle.loads(pickle.dumps(third))[3][0], third[3][0])
    assert torch.equal(third.__getitems__([3])[0][0], third[3][0])
    with pytest.raises(CacheError, match="none has the number 4"):
        cache.dataset(view=4)


def made_file(path: Path, axes: dict[str, tuple[str, ...]], shapes: dict[str, tuple[int, ...]], **spec: Any) -> None:
    zeros = np.zeros(2, np.int64)
    samples = Samples(np.array([b"a", b"b"]), zeros, zeros, np.array([-1, -1], np.int32), np.zeros(2, np.uint8), ())
    named = [{"name": name, "pooling": "none", "axes": list(words)} for name, words in axes.items()]
    layers = {name: Layer(shapes[name], np.dtype("f4"), words, "none") for name, words in axes.items()}
    create(str(path), spec={"layers": named, **spec}, samples=samples, layers=layers)


@pytest.mark.parametrize(
    ("axes", "shapes", "views", "message"),
    [
        ({"a": ("view", "channel")}, {"a": (3, 5)}, 4, "its layers hold 3 views"),
        ({"a": ("view", "channel")}, {"a": (3, 5)}, 1, "its layers hold 3 views"),
        ({"a": ("channel",)}, {"a": (5,)}, 3, "its layers hold 1 views"),
        ({"a": ("channel", "view")}, {"a": (5, 3)}, 3, "views are the second axis"),
        ({"a": ("view", "view")}, {"a": (3, 3)}, 3, "views are the second axis"),
        ({"a": ("view", "channel"), "b": ("channel",)}, {"a": (3, 5), "b": (5,)}, 3, "views are the second axis"),
        ({"a": ("view", "channel"), "b": ("view", "channel")}, {"a": (3, 5), "b": (2, 5)}, 3, "hold 2, 3 views"),
        ({"a": ("view",)}, {"a": (3,)}, 3, "its layers hold 3 views"),
        ({"a": ("view", "channel")}, {"a": (1, 5)}, 1, "its layers hold 1 views"),
    ],
)
def test_views_that_contradict_each_other_are_refused(
    axes: Any, shapes: Any, views: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CacheFormatError, match=message):
        made_file(tmp_path / "a.h5", axes, shapes, views=views)


def test_a_file_that_does_not_require_views_of_its_reader_is_refused(whole: Path, tmp_path: Path) -> None:
    shutil.copy(whole, tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.attrs["requires"] = np.bytes_(b"[]")
    with pytest.raises(CacheFormatError, match="does not say whether it holds views"):
        open_cache(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.attrs["requires"] = np.bytes_(b'["views", "more"]')
    with pytest.raises(CacheFormatError, match="requires 'more'"):
        open_cache(tmp_path / "a.h5")
