"""What every source, preprocessing, backbone, engine and executor must do: test classes that a new kind subclasses."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import list_images, make_photos

from precompute.backbones.load import Backbone, load_backbone
from precompute.engines.base import Engine, EngineChoice, Tensors
from precompute.engines.choice import Decision
from precompute.engines.torch import TorchEngine
from precompute.errors import SampleError, SourceError
from precompute.extraction.executors.base import Executor, Work
from precompute.extraction.executors.packing import packed, unpacked
from precompute.extraction.pipeline import Block
from precompute.inputs.base import Preprocess
from precompute.sources.base import Source


class SourceContract:
    """Subclasses give `source`, a fixture: a source of three samples or more."""

    def test_the_table_is_ordered_and_whole(self, source: Source) -> None:
        table = source.table
        ids = table.ids.tolist()
        assert ids == sorted(set(ids))
        assert len(source) == len(ids) >= 3
        columns = (table.sizes, table.mtimes, table.labels, table.splits)
        assert [column.dtype for column in columns] == [np.int64, np.int64, np.int32, np.uint8]
        assert all(column.shape == (len(ids),) for column in columns)
        assert table.labels.min() >= -1
        assert table.labels.max() < len(table.classes)
        assert list(table.classes) == sorted(set(table.classes))

    def test_each_row_is_read_with_the_stamps_of_the_table_from_any_thread(self, source: Source) -> None:
        rows = list(range(len(source)))
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(source.read, rows))
        for row, raw in zip(rows, together, strict=True):
            assert raw == source.read(row)
            assert (raw.size, raw.mtime) == (source.table.sizes[row], source.table.mtimes[row])

    def test_the_order_holds_each_row_once(self, source: Source) -> None:
        rows = np.arange(1, len(source))
        assert sorted(np.concatenate(list(source.order(rows))).tolist()) == rows.tolist()

    def test_it_is_there_and_has_names_for_messages(self, source: Source) -> None:
        assert source.alive()
        assert source.name
        assert source.origin
        assert all(source.sample_name(row).isprintable() for row in range(len(source)))

    def test_it_can_be_pickled_by_others_such_as_ray(self, source: Source) -> None:
        assert [source.read(row) for row in range(len(source))]  # with what it keeps once it has been read
        again = pickle.loads(pickle.dumps(source))
        assert [again.read(row) for row in range(len(again))] == [source.read(row) for row in range(len(source))]

    @pytest.mark.rotates(6)
    def test_another_process_reads_the_same(self, source: Source) -> None:
        sent = packed(source)
        code = (
            "import sys, pickle\n"
            "sys.path[:] = eval(sys.argv[1])\n"
            "from precompute.extraction.executors.packing import unpacked\n"
            "source = unpacked(int(sys.argv[2]), eval(sys.argv[3]))\n"
            "found = [source.read(row) for row in range(len(source))], source.alive(), source.table.ids.tolist()\n"
            "sys.stdout.buffer.write(pickle.dumps(found))\n"
        )
        command = [sys.executable, "-c", code, str(sys.path), str(sent.memory.fd), str(sent.places)]
        done = subprocess.run(command, pass_fds=[sent.memory.fd], stdout=subprocess.PIPE, check=True)
        sent.memory.close()
        found = pickle.loads(done.stdout)
        assert found == ([source.read(row) for row in range(len(source))], True, source.table.ids.tolist())

    def test_it_claims_no_file_that_it_does_not_read(self, source: Source, tmp_path: Path) -> None:
        (tmp_path / "other.h5").write_bytes(b"not a sample")
        assert not source.reads(str(tmp_path / "other.h5"))


class PreprocessContract:
    """Subclasses give the fixtures `preprocess` and `raws`, the bytes of two samples or more."""

    def test_the_spec_is_json_and_says_the_same_each_time(self, preprocess: Preprocess) -> None:
        spec = preprocess.spec()
        assert spec
        assert json.loads(json.dumps(spec, allow_nan=False)) == spec == preprocess.spec()
        assert preprocess.modality
        assert preprocess.views >= 1

    def test_the_same_bytes_give_the_same_tensors_in_the_form_of_the_example(
        self, preprocess: Preprocess, raws: list[bytes]
    ) -> None:
        example = preprocess.example()
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(preprocess.host, raws))
        for raw, tensors in zip(raws, together, strict=True):
            again = preprocess.host(raw)
            assert all(torch.equal(one, other) for one, other in zip(tensors, again, strict=True))
            assert [(one.shape, one.dtype) for one in tensors] == [(one.shape, one.dtype) for one in example]

    def test_a_view_follows_from_the_bytes_and_its_number_alone(
        self, preprocess: Preprocess, raws: list[bytes]
    ) -> None:
        example = [(one.shape, one.dtype) for one in preprocess.example()]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(preprocess.all_views, raws[::-1]))[::-1]
        plain = preprocess.plain()
        assert (plain.views, plain.augment_spec()) == (1, None)
        assert plain.spec() == preprocess.spec()
        for raw, views in zip(raws, together, strict=True):
            assert len(views) == preprocess.views
            for number, tensors in enumerate(views):
                assert [(one.shape, one.dtype) for one in tensors] == example
                again = preprocess.host(raw, number)
                assert all(torch.equal(one, other) for one, other in zip(tensors, again, strict=True))
            assert all(torch.equal(one, other) for one, other in zip(views[0], plain.host(raw), strict=True))

    def test_it_is_the_same_once_it_was_sent_to_another_process(
        self, preprocess: Preprocess, raws: list[bytes]
    ) -> None:
        sent = packed(preprocess)
        again = unpacked(sent.memory.fd, sent.places)
        sent.memory.close()
        assert again.spec() == preprocess.spec()
        for raw in raws:
            ours, theirs = preprocess.inputs(raw), again.inputs(raw)
            assert (ours.weights, ours.cut) == (theirs.weights, theirs.cut)
            for one, other in zip(ours.tensors, theirs.tensors, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    def test_the_rest_takes_a_batch(self, preprocess: Preprocess, raws: list[bytes]) -> None:
        batch = [torch.stack(one) for one in zip(*map(preprocess.host, raws), strict=True)]
        made = preprocess.device()(*batch)
        values = made if isinstance(made, tuple) else (made,)
        assert all(len(value) == len(raws) for value in values)
        assert all(value.dtype == torch.float32 for value in values if value.is_floating_point())

    @pytest.mark.parametrize("raw", [b"", b"\0", b"no sample at all"])
    def test_bytes_that_are_no_sample_are_refused_with_a_reason(self, preprocess: Preprocess, raw: bytes) -> None:
        with pytest.raises(SampleError) as caught:
            preprocess.host(raw)
        assert caught.value.reason in ("UNDECODABLE", "TRUNCATED")


class BackboneContract:
    """Subclasses give `backbone`, a fixture."""

    def test_one_pass_gives_each_tap_in_its_shape(self, backbone: Backbone) -> None:
        batch = tuple(torch.stack([one] * 3) for one in backbone.preprocess.example())
        with torch.inference_mode():
            features = backbone.body()(*batch)
        assert [tuple(one.shape) for one in features] == [(3, *tap.shape) for tap in backbone.taps]

    def test_taps_are_named_once_in_order_with_a_word_for_each_axis(self, backbone: Backbone) -> None:
        names = [tap.layer for tap in backbone.taps]
        assert names == sorted(set(names))
        assert all(len(tap.axes) == len(tap.shape) for tap in backbone.taps)

    def test_it_is_frozen(self, backbone: Backbone) -> None:
        assert not backbone.module.training
        assert not any(parameter.requires_grad for parameter in backbone.module.parameters())

    def test_the_spec_names_its_layers(self, backbone: Backbone) -> None:
        spec = backbone.spec(precision="fp32", storage="float32")
        assert [one["name"] for one in spec["layers"]] == [tap.layer for tap in backbone.taps]
        assert [one["axes"] for one in spec["layers"]] == [list(tap.axes) for tap in backbone.stored]
        assert json.loads(json.dumps(spec, allow_nan=False)) == spec


@cache
def two_taps() -> Backbone:
    """A small network for engines."""
    options = {"resize": 40, "crop": 32}
    return load_backbone("resnet18", weights="random:1", layer=["layer2", "flatten"], transform=options)


class EngineContract:
    """Subclasses give `engine`, a fixture: one for `two_taps()` and BATCH samples at a time."""

    BATCH = 4

    def samples(self, count: int) -> list[Tensors]:
        (example,) = two_taps().preprocess.example()
        generator = torch.Generator().manual_seed(0)
        return [(torch.randint(0, 256, example.shape, generator=generator, dtype=torch.uint8),) for _ in range(count)]

    def test_each_tap_gives_a_row_for_each_sample(self, engine: Engine) -> None:
        for count in (self.BATCH, 1):
            found = engine(self.samples(count))
            assert [one.shape for one in found] == [(count, *tap.shape) for tap in two_taps().taps]
            assert {one.dtype for one in found} == {np.dtype("float32")}
            assert all(np.isfinite(one).all() for one in found)

    def test_a_row_depends_on_its_sample_alone(self, engine: Engine) -> None:
        samples = self.samples(self.BATCH)
        together = engine(samples)
        for others in (samples[::-1], samples[2:3], [samples[2], samples[2]]):
            found = engine(others)
            place = next(place for place, other in enumerate(others) if other is samples[2])
            for one, all_of_them in zip(found, together, strict=True):
                assert one[place].tobytes() == all_of_them[2].tobytes()

    def test_batches_under_way_come_out_in_their_order_and_in_memory_of_their_own(self, engine: Engine) -> None:
        samples = self.samples(3 * engine.depth + 1)
        expected = [engine([sample]) for sample in samples]
        found = list(engine.map([sample] for sample in samples))
        for one, other in zip(found, expected, strict=True):
            assert [tap.tobytes() for tap in one] == [tap.tobytes() for tap in other]

    def test_a_sample_may_be_written_over_once_its_batch_has_started(self, engine: Engine) -> None:
        (sample,) = self.samples(1)
        expected = engine([sample])
        engine.start([sample])
        sample[0].zero_()
        assert [tap.tobytes() for tap in engine.finish()] == [tap.tobytes() for tap in expected]

    def test_it_says_what_it_is(self, engine: Engine) -> None:
        assert engine.batch_size == engine.choice.batch_size == self.BATCH
        assert engine.depth >= 1
        assert isinstance(engine.notes, tuple)


class ExecutorContract:
    """Subclasses give `executor`, a fixture."""

    BROKEN = 5

    @pytest.fixture(params=[1, 3], ids=["one view", "three views"])
    def work(self, request: pytest.FixtureRequest, tmp_path: Path) -> Work:
        """24 pictures: one is truncated, and two are byte-identical."""
        photos = make_photos(tmp_path / "photos")
        paths = sorted(path for path in photos.rglob("*") if path.is_file())
        paths[self.BROKEN].write_bytes(paths[self.BROKEN].read_bytes()[:60])
        shutil.copyfile(paths[10], paths[20].with_suffix(paths[10].suffix))
        if paths[10].suffix != paths[20].suffix:
            paths[20].unlink()
        views: int = request.param
        backbone = load_backbone("tiny", views=views, augment="flip,crop" if views > 1 else None)
        engine = TorchEngine(backbone.module, backbone.preprocess, EngineChoice("torch", "cpu", "fp32", 4))
        return Work(list_images(photos), backbone, Decision(engine.choice, engine, "float32"))

    def collect(self, blocks: list[Block]) -> dict[int, str]:
        """What became of each row; a row that comes twice is a mistake."""
        found: dict[int, str] = {}
        for block in blocks:
            for kind in ("decoded", "failed", "same"):
                for item in getattr(block, kind):
                    assert item.row not in found
                    found[item.row] = kind
        return found

    def test_each_row_comes_once_with_the_features_it_would_have_alone(self, executor: Executor, work: Work) -> None:
        rows = np.arange(2, 24)
        blocks = list(executor.blocks(work, rows))
        assert self.collect(blocks) == {row: "failed" if row == self.BROKEN else "decoded" for row in rows.tolist()}
        for block in blocks:
            for place, item in enumerate(block.decoded):
                raw = work.source.read(item.row)
                assert (item.digest, item.size, item.mtime) == (
                    hashlib.sha256(raw.data).digest(),
                    raw.size,
                    raw.mtime,
                )
                (expected,) = work.decision.engine(list(work.backbone.preprocess.all_views(raw.data)))
                assert block.features is not None
                assert block.features[0].shape[1:] == work.backbone.stored[0].shape
                assert block.features[0][place].tobytes() == expected.tobytes()

    def test_what_cannot_be_decoded_says_why(self, executor: Executor, work: Work) -> None:
        (failed,) = (item for block in executor.blocks(work, np.array([self.BROKEN, 6])) for item in block.failed)
        assert failed.error is not None
        assert failed.error.reason in ("TRUNCATED", "UNDECODABLE")
        assert failed.digest == hashlib.sha256(work.source.read(self.BROKEN).data).digest()

    def test_bytes_that_somebody_else_has_are_not_decoded(self, executor: Executor, work: Work) -> None:
        lock, owners = threading.Lock(), dict[bytes, int]()

        def claim(digest: bytes, row: int) -> bool:
            with lock:
                return owners.setdefault(digest, row) == row

        blocks = list(executor.blocks(work, np.arange(24), claim=claim))
        found = self.collect(blocks)
        same = [item for block in blocks for item in block.same]
        assert len(found) == 24
        assert len(same) == 1
        assert {same[0].row, owners[same[0].digest]} == {10, 20}
        assert same[0].tensors is None

    def test_once_it_is_stopped_nothing_further_is_begun(self, executor: Executor, work: Work) -> None:
        blocks: list[Block] = []
        for block in executor.blocks(work, np.arange(24), stop=lambda: bool(blocks)):
            blocks.append(block)  # noqa: PERF402 - it is asked in between
        assert 0 < len(self.collect(blocks)) < 24

    def test_tensors_stay_where_they_are_wanted(self, executor: Executor, work: Work) -> None:
        blocks = list(executor.blocks(work, np.arange(24), keep=lambda row: row in (3, 17)))
        kept = {item.row for block in blocks for item in block.decoded if item.tensors is not None}
        assert kept == {3, 17}

    def test_closing_it_early_leaves_nothing_behind(self, executor: Executor, work: Work) -> None:
        before = threading.active_count()
        blocks = executor.blocks(work, np.arange(24))
        next(blocks)
        blocks.close()
        assert threading.active_count() <= before
        assert len(self.collect(list(executor.blocks(work, np.arange(24))))) == 24

    def test_a_source_that_has_gone_away_ends_it(self, executor: Executor, work: Work, tmp_path: Path) -> None:
        shutil.rmtree(tmp_path / "photos")
        with pytest.raises(SourceError, match="disappeared"):
            list(executor.blocks(work, np.arange(24)))

    def test_no_rows_give_no_blocks(self, executor: Executor, work: Work) -> None:
        assert list(executor.blocks(work, np.arange(0))) == []
