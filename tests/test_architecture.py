"""The house: which module may import which, what is public, and that nothing heavy loads unasked."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
import torch
import torchvision
from conftest import ROOT, run_python

import precompute

HEADS = {"attentive", "base", "linear", "mlp", "neighbours", "scoring", "persistence"}
ROOMS: dict[str, str] = {
    "errors": "",
    "system": "errors",
    "sources": "errors system",
    "inputs": "errors system sources",
    "backbones": "errors system inputs",
    "engines": "errors system inputs backbones",
    "cache": "errors system",
    "extraction": "errors system sources inputs backbones engines cache",
    "heads": "errors system",
    "training": "errors system cache heads",
    "finetuning": "errors system sources inputs backbones engines cache extraction heads training",
    "evaluation": "errors system sources inputs backbones cache extraction heads training finetuning",
    "reports": "errors system sources inputs backbones cache extraction heads training finetuning evaluation",
    "schemas": "errors",
    "prediction": "errors system sources inputs backbones engines cache extraction heads training finetuning",
    "external": "errors system sources cache extraction",
    "graphs": "errors system sources inputs backbones cache extraction heads training finetuning",
    "export": "errors system cache heads training",
    "diagnosis": "errors system backbones engines cache",
    "demo": "errors system cache extraction heads training evaluation",
    "cli": (
        "errors system backbones cache extraction heads training finetuning evaluation reports prediction export "
        "external demo diagnosis schemas graphs"
    ),
    "__main__": "cli",
    # Inside heads/: what stands on what
    "heads.base": "errors system",
    "heads.scoring": "errors system heads.base",
    "heads.linear": "errors system heads.base heads.scoring",
    "heads.mlp": "errors system heads.base",
    "heads.attentive": "errors system heads.base heads.mlp",
    "heads.neighbours": "errors system heads.base heads.scoring",
    "heads.persistence": "errors system "
    "heads.base heads.scoring heads.linear heads.mlp heads.attentive heads.neighbours",
}
"""Who may import whom, one direction only; nobody imports what is not listed. precompute/__init__ may import all."""


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Each module of precompute by its name, `cache` and `heads` under the names they install as."""
    found = {}
    for top, package in (("precompute", "precompute"), ("cache", "precompute.cache"), ("heads", "precompute.heads")):
        for path in sorted((root / top).rglob("*.py")):
            inside = path.relative_to(root / top)
            if top == "precompute" and inside.parts[0] in ("cache", "heads"):
                continue  # the symlinks: seen under their own names
            found[".".join([package, *inside.with_suffix("").parts]).removesuffix(".__init__")] = path
    return found


def room_of(module: str) -> str:
    """`engines` for precompute.engines.torch, `heads.mlp` for precompute.heads.mlp.head, "" for precompute itself."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2]) if parts[:1] == ["heads"] and parts[1:2] and parts[1] in HEADS else "".join(parts[:1])


def imports_of(path: Path, known: dict[str, Path], *, in_functions: bool = True) -> set[str]:
    """Modules of precompute that `path` imports, also for type checkers alone; in_functions: and within functions."""
    found = set()
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if not in_functions and id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else str(node.module) for name in names}
    return {name for name in found if name.split(".")[0] == "precompute"}


def forbidden(root: Path) -> list[str]:
    """Imports from one room into another that ROOMS does not allow."""
    known, found = modules(root), []
    for module, path in known.items():
        room = room_of(module)
        for other in sorted(imports_of(path, known)):
            target = room_of(other) if room.startswith("heads.") else room_of(other).partition(".")[0]
            if room and target != room and target not in ROOMS.get(room, "").split():
                found.append(f"{module} imports {other}")
    return found


def circle(root: Path) -> list[str]:
    """Modules that import each other in a circle, also within a room, and also for types alone; empty if none do.

    An import within a function does not count: it runs when both modules are whole.
    """
    known = modules(root)
    needs = {name: imports_of(path, known, in_functions=False) & known.keys() - {name} for name, path in known.items()}
    while free := [name for name, others in needs.items() if not others & needs.keys()]:
        for name in free:
            del needs[name]
    return sorted(needs)


@pytest.mark.rotates(3)
def test_imports_run_one_way() -> None:
    assert forbidden(ROOT) == []
    assert {room_of(name) for name in modules()} - {""} <= ROOMS.keys()


@pytest.mark.rotates(3)
def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(ROOT) == []


def test_what_stands_in_no_room() -> None:
    loose = {path.stem for path in (ROOT / "precompute").glob("*.py")}
    assert loose <= {"__init__", "__main__", "errors", "prediction", "export", "demo"}


@pytest.mark.parametrize(
    ("module", "line", "found"),
    [
        ("precompute/sources/folder.py", "import precompute.engines.base", "precompute.engines.base"),
        pytest.param(
            *("precompute/engines/base.py", "from precompute.extraction import rows", "precompute.extraction.rows"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(
                "cache/reader.py",
                "from precompute.heads.scoring.scores import Scores",
                "precompute.heads.scoring.scores",
            ),
            marks=pytest.mark.slow,
        ),
        ("heads/base/rows.py", "def f():\n    from precompute.heads.linear.ridge import RidgeHead", "linear.ridge"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, module: str, line: str, found: str) -> None:
    for top in ("precompute", "cache", "heads"):
        ignore = ignore_patterns("__pycache__", *(("cache", "heads") if top == "precompute" else ()))
        copytree(ROOT / top, tmp_path / top, ignore=ignore)
    assert forbidden(tmp_path) == []
    with (tmp_path / module).open("a") as file:
        file.write(f"\n{line}\n")
    (error,) = forbidden(tmp_path)
    assert found in error


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a"), ("c", "a")):
        place = tmp_path / "precompute" / "sources"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.py").write_text(f"import precompute.sources.{other}\n")
    assert circle(tmp_path) == ["precompute.sources.a", "precompute.sources.b", "precompute.sources.c"]


def test_a_planted_circle_of_types_is_found_and_one_through_a_function_is_none(tmp_path: Path) -> None:
    room = tmp_path / "heads" / "mlp"
    room.mkdir(parents=True)
    (room / "a.py").write_text("import precompute.heads.mlp.b\n")
    (room / "b.py").write_text("def late():\n    import precompute.heads.mlp.a\n")
    assert circle(tmp_path) == []
    (room / "b.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from precompute.heads.mlp.a import A\n"
    )
    assert circle(tmp_path) == ["precompute.heads.mlp.a", "precompute.heads.mlp.b"]


def test_public_names() -> None:
    assert sorted(precompute.__all__) == [
        "AttentiveHead",
        "Backbone",
        "Cache",
        "CentroidHead",
        "Comparison",
        "Depth",
        "Diagnosis",
        "Exported",
        "Extraction",
        "FewShotCurve",
        "FewShotPoint",
        "Finding",
        "Forecast",
        "Imported",
        "KNNHead",
        "KNNRegressionHead",
        "LabelScores",
        "LogisticHead",
        "MLPHead",
        "MLPRegressionHead",
        "MultilabelKNNHead",
        "MultilabelLogisticHead",
        "MultilabelMLPHead",
        "MultilabelRidgeHead",
        "NumberScores",
        "PrecomputeError",
        "Prediction",
        "Predictions",
        "Progress",
        "Ranked",
        "Ranking",
        "Report",
        "RidgeHead",
        "RidgeRegressionHead",
        "SavedHead",
        "Scores",
        "SelectedHead",
        "Training",
        "Tuning",
        "__version__",
        "compare",
        "depth",
        "doctor",
        "export_features",
        "extract",
        "few_shot",
        "fine_tune",
        "forecast",
        "import_features",
        "load_backbone",
        "load_head",
        "open_cache",
        "predict",
        "predict_each",
        "rank",
        "repair",
        "report",
        "save_head",
        "train_head",
        "verify",
    ]
    for name in precompute.__all__:
        assert getattr(precompute, name) is not None


@pytest.mark.parametrize(
    "code",
    [
        "import precompute",
        "import precompute.heads",
        "import sys; sys.argv = ['precompute', '--help']; from precompute.cli import main\n"
        "try: main()\nexcept SystemExit as error: assert error.code == 0",
        "import sys; sys.argv = ['precompute', 'extract', '--help']; from precompute.cli import main\n"
        "try: main()\nexcept SystemExit as error: assert error.code == 0",
        "import sys; sys.argv = ['precompute', 'export-head', '--help']; from precompute.cli import main\n"
        "try: main()\nexcept SystemExit as error: assert error.code == 0",
    ],
    ids=["import precompute", "import precompute.heads", "--help", "extract --help", "export-head --help"],
)
def test_nothing_heavy_loads_unasked(code: str) -> None:
    check = (
        "import sys; heavy = {'torch', 'h5py', 'sklearn', 'numpy', 'PIL', 'rich'} & set(sys.modules)\n"
        "heavy |= {'timm', 'open_clip', 'transformers', 'soundfile', 'ray'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = run_python(f"{code}\n{check}")
    assert done.returncode == 0, done.stderr


COMPILER = "assert not (there := {'torch._dynamo', 'torch._inductor'} & set(sys.modules)), there\n"


@pytest.mark.rotates(6)
def test_an_extraction_without_compiling_does_not_load_the_compiler(photos: Path, tmp_path: Path) -> None:
    """A quarter of a start: torchvision imports it for detection networks, torch to fill what has no memory."""
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "w.pth")
    done = run_python(
        "import sys, precompute\n"
        f"made = precompute.extract({str(photos)!r}, {str(tmp_path / 'a.h5')!r}, backbone='squeezenet1_1',\n"
        f"                          weights={str(tmp_path / 'w.pth')!r}, compile='off')\n"
        f"assert made.computed == 24\n{COMPILER}"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_no_network_without_parameters_needs_the_compiler() -> None:
    done = run_python(
        "import sys\nfrom precompute.backbones import families\n"
        "for name in families.names():\n"
        "    model = families.build(name, seed=None)\n"
        "    assert name == 'tiny' or any(each.is_meta for each in model.parameters()), name\n"
        f"{COMPILER}"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_torchvision_has_the_compiler_where_it_needs_it() -> None:
    done = run_python(
        "import sys, precompute.backbones, torch, torchvision\n"
        "align = sys.modules['torchvision.ops.roi_align']\n"
        "assert align.is_compile_supported('cpu') is not None\n"
        "import torch._dynamo.utils\n"
        "assert sys.modules['torch._dynamo.utils'].__file__ and torch._dynamo.utils.counters is not None\n"
        "boxes = torch.tensor([[0, 1., 1., 10., 10.]])\n"
        "assert torchvision.ops.roi_align(torch.rand(1, 3, 20, 20), boxes, (3, 3)).shape == (1, 3, 3, 3)\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", ["cache", "heads"])
def test_bare_names_are_refused_with_the_right_one(folder: str) -> None:
    done = run_python(f"import {folder}")
    assert done.returncode != 0
    assert f"precompute.{folder}" in done.stderr


def test_every_exported_name_survives_the_import_of_the_modules() -> None:
    """A function with the name of its module would turn into the module."""
    for module in modules():
        import_module(module)
    assert all(callable(getattr(precompute, name)) for name in precompute.__all__ if name != "__version__")
