"""What every source, every preprocessing and every backbone must do. A test class of a new kind subclasses these."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from precompute.backbones.load import Backbone
from precompute.errors import ImageError
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

    def test_the_rest_takes_a_batch(self, preprocess: Preprocess, raws: list[bytes]) -> None:
        batch = [torch.stack(one) for one in zip(*map(preprocess.host, raws), strict=True)]
        made = preprocess.device()(*batch)
        values = made if isinstance(made, tuple) else (made,)
        assert all(len(value) == len(raws) for value in values)
        assert all(value.dtype == torch.float32 for value in values if value.is_floating_point())

    @pytest.mark.parametrize("raw", [b"", b"\0", b"no sample at all"])
    def test_bytes_that_are_no_sample_are_refused_with_a_reason(self, preprocess: Preprocess, raw: bytes) -> None:
        with pytest.raises(ImageError) as caught:
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
        assert json.loads(json.dumps(spec, allow_nan=False)) == spec
