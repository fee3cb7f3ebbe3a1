"""`auto`: threads or processes, as a table by device says; the same blocks either way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from crashing import Numbers
from test_extraction import assert_same
from test_processes import children

from precompute import extract, open_cache
from precompute.errors import UsageError
from precompute.extraction.conduct import Conduct
from precompute.extraction.executors import auto
from precompute.extraction.executors.auto import AutoExecutor
from precompute.extraction.executors.base import Executor
from precompute.extraction.executors.names import opened


def test_a_cpu_is_left_to_threads(photos: Path, tmp_path: Path) -> None:
    with AutoExecutor(2) as executor:
        extract(photos, tmp_path / "a.h5", backbone="tiny", executor=executor)
        assert executor._processes is None
    assert executor.warnings == ()


@pytest.mark.slow
def test_processes_where_the_table_says_so_and_where_they_are_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precompute: Any
) -> None:
    def made(number: int, *options: str) -> None:
        done = precompute("extract", photos, "-b", "tiny", *options, "-o", tmp_path / f"{number}.h5")
        assert done.returncode == 0, done.stderr

    made(0, "--executor", "local")
    made(1, "--executor", "processes")
    monkeypatch.setattr(auto, "PROCESSES_FROM", {"cpu": 1})
    started: list[AutoExecutor] = []
    monkeypatch.setattr(AutoExecutor, "close", lambda self: started.append(self) or self._processes.close())
    made(2)
    assert [executor._processes is not None for executor in started] == [True]
    for number in (1, 2):
        assert_same(open_cache(tmp_path / "0.h5"), open_cache(tmp_path / f"{number}.h5"))
    assert children() == []


class Unsendable(Numbers):
    """A source that holds what no other process can have."""

    def __reduce__(self) -> Any:
        raise TypeError("a connection of this process alone")


@pytest.mark.slow
def test_what_cannot_be_sent_is_left_to_threads_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    monkeypatch.setenv("CRASHING", str(tmp_path))
    monkeypatch.setattr(auto, "PROCESSES_FROM", {"cpu": 1})
    done = extract(Unsendable(np.zeros(40, dtype=int)), tmp_path / "a.h5", backbone="crashing:make_network")
    assert done.computed == 40
    assert any("a connection of this process alone" in warning for warning in done.warnings)


def test_names_that_are_none_or_do_not_go_together() -> None:
    with pytest.raises(UsageError, match="executor must be auto, local, processes, ray or ray://HOST:PORT"):
        Conduct(executor="dask")
    for name in ("auto", "local", "processes", None):
        with pytest.raises(UsageError, match="--exact is about several machines"):
            Conduct(executor=name, exact=True)
    with opened("auto", workers=1) as executor:
        assert isinstance(executor, Executor)
