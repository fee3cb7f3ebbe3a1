"""Jobs that share a source by --shard, and the file that --reuse joins from theirs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Command, make_photos
from modalities import Samples

from precompute import extract, open_cache
from precompute.errors import CacheError, CacheKeyError, UsageError

pytestmark = pytest.mark.usefixtures("tiny_made_once")


def columns_equal(one: Path, other: Path) -> None:
    """Byte for byte all that a file holds of its samples; `provenance` tells of other runs."""
    a, b = open_cache(one), open_cache(other)
    assert a.key == b.key
    assert a.layout.columns.keys() == b.layout.columns.keys()
    for name in a.layout.columns.keys() - {"provenance"}:
        assert a.column(name).tobytes() == b.column(name).tobytes(), name


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """24 photos and a broken one."""
    folder = make_photos(tmp_path / "photos")
    (folder / "val" / "cats" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    return folder


@pytest.fixture
def some(samples: Samples) -> Samples:
    """26 samples, one of them twice and one broken."""
    with samples.together():
        samples.copy(samples.kind.named("train/cats/1"), samples.kind.named("val/dogs/again"))
        samples.write(samples.kind.named("val/cats/broken"), b"\x89 no more")
    return samples


def parts(samples: Samples, of: int) -> list[Path]:
    made = []
    for number in range(1, of + 1):
        made.append(samples.source.parent / f"part{number}.h5")
        samples.extract(made[-1], part=f"{number}/{of}")
    return made


@pytest.mark.rotates(3)
@pytest.mark.parametrize("of", [1, 4, 7])
def test_parts_that_are_joined_equal_one_run_and_nothing_is_computed(of: int, some: Samples, tmp_path: Path) -> None:
    some.extract(tmp_path / "whole.h5")
    made = parts(some, of)
    assert sum(len(open_cache(path)) for path in made) == len(open_cache(tmp_path / "whole.h5"))
    before = [path.read_bytes() for path in made]
    found = some.extract(tmp_path / "joined.h5", reuse=made)
    assert (found.computed, found.reused) == (0, len(open_cache(tmp_path / "whole.h5")))
    columns_equal(tmp_path / "joined.h5", tmp_path / "whole.h5")
    assert [path.read_bytes() for path in made] == before
    again = some.extract(tmp_path / "joined.h5")
    assert (again.computed, again.to_read) == (0, 0)


@pytest.mark.rotates(3)
def test_what_no_part_has_is_computed_and_what_is_no_longer_there_is_left_out(some: Samples, tmp_path: Path) -> None:
    made = parts(some, 3)
    with some.together():
        some.put("train/cats/new", 500)
        some.remove(next(name for name in some.names() if name.startswith("train/dogs/")))
    found = some.extract(tmp_path / "joined.h5", reuse=made[:2])
    assert 0 < found.computed < len(open_cache(made[2])) + 2
    some.extract(tmp_path / "whole.h5")
    columns_equal(tmp_path / "joined.h5", tmp_path / "whole.h5")
    assert not list(tmp_path.glob("*.kept")) + list(tmp_path.glob("*.partial"))


def test_rows_are_known_by_their_bytes_where_names_differ(some: Samples, tmp_path: Path) -> None:
    some.extract(tmp_path / "old.h5")
    with some.together():
        for name in some.names():
            if name.startswith("val/"):
                some.remove(name)
        for name in some.names():
            if "/cats/" in name:
                some.move(name, name.replace("cats", "felines"))
    found = some.extract(tmp_path / "new.h5", reuse=[tmp_path / "old.h5"])
    assert found.computed == 0
    assert found.copied == 6
    assert open_cache(tmp_path / "new.h5").classes == ("dogs", "felines")


def test_damaged_rows_of_another_file_are_not_taken(some: Samples, tmp_path: Path) -> None:
    some.extract(tmp_path / "whole.h5")
    content = bytearray((tmp_path / "whole.h5").read_bytes())
    content[content.index(open_cache(tmp_path / "whole.h5").features()[4].tobytes())] ^= 1
    (tmp_path / "damaged.h5").write_bytes(content)
    found = some.extract(tmp_path / "new.h5", reuse=[tmp_path / "damaged.h5"])
    assert found.computed == 1
    columns_equal(tmp_path / "new.h5", tmp_path / "whole.h5")


def test_what_cannot_be_reused_is_said(photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "random.h5", backbone="tiny", weights="random")
    with pytest.raises(CacheKeyError, match="no row of it can be used"):
        extract(photos, tmp_path / "new.h5", backbone="tiny", reuse=[tmp_path / "random.h5"])
    with pytest.raises(CacheError, match="does not exist"):
        extract(photos, tmp_path / "new.h5", backbone="tiny", reuse=[tmp_path / "nowhere.h5"])
    with pytest.raises(UsageError, match="same file"):
        extract(photos, tmp_path / "random.h5", backbone="tiny", weights="random", reuse=[tmp_path / "random.h5"])
    (tmp_path / "text.h5").write_text("no feature file")
    with pytest.raises(CacheError):
        extract(photos, tmp_path / "new.h5", backbone="tiny", reuse=[tmp_path / "text.h5"])
    assert not (tmp_path / "new.h5").exists()
    for part in ("0/4", "5/4", "1", "a/b", "-1/4", "1/0", "1/4/2"):
        with pytest.raises(UsageError, match="is I/N with I from 1 to N"):
            extract(photos, tmp_path / "new.h5", backbone="tiny", part=part)
    with pytest.raises(UsageError, match=r"part 1 of 1000 has none of them"):
        extract(photos, tmp_path / "new.h5", backbone="tiny", part="1/1000")


@pytest.mark.rotates(3)
def test_the_command(photos: Path, tmp_path: Path, precompute: Command) -> None:
    for number in (1, 2):
        done = precompute(
            "extract", "photos", "-b", "tiny", "--shard", f"{number}/2", "-o", f"{number}.h5", "--allow-skipped"
        )
        assert done.returncode == 0, done.stderr
    done = precompute("extract", "photos", "-b", "tiny", "--reuse", "1.h5", "--reuse", "2.h5", "-o", "all.h5")
    assert done.returncode == 3  # a broken image
    assert "nothing new" in done.stdout
    done = precompute("plan", "photos", "-b", "tiny", "--shard", "2/2", "-o", "2.h5", "--json")
    assert done.returncode == 0, done.stderr
    assert (json.loads(done.stdout)["images"], len(open_cache(tmp_path / "2.h5"))) == (13, 13)
    assert json.loads(done.stdout)["to_read"] <= 1
    assert precompute("plan", "photos", "-b", "tiny", "--shard", "3/2").returncode == 2
    done = precompute("info", "2.h5")
    assert "--shard 2/2" in done.stdout
    assert np.array_equal(open_cache(tmp_path / "all.h5").ok, open_cache(tmp_path / "all.h5").status == 1)
