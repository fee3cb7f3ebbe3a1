"""notebooks/ten_minutes.ipynb runs from top to bottom, and is committed without outputs."""

from __future__ import annotations

import json
import re

import pytest
from conftest import ROOT

NOTEBOOK = ROOT / "notebooks" / "ten_minutes.ipynb"


def test_it_is_committed_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::RuntimeWarning")
def test_it_runs_from_top_to_bottom(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs what development needs")
    nbclient = pytest.importorskip("nbclient", reason="needs what development needs")
    pytest.importorskip("ipykernel", reason="needs what development needs")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    shown = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert re.search(r"accuracy (9\d|100)\.\d%", shown), shown
    assert "10 a class" in shown
