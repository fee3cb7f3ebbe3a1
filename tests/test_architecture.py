"""The house: which module may import which, what is public, and that nothing heavy loads unasked."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest
from conftest import ROOT, run_python

import precompute

# Who may import whom, one direction only. A module may also import the parts of its own group that stand in its set.
CACHE, HEADS = "precompute.cache", "precompute.heads"
ALLOWED = {
    "precompute": {"*"},  # the lazy front
    "precompute.errors": set(),
    "precompute.filelist": set(),
    "precompute.labels": set(),
    "precompute.owners": set(),
    "precompute.archive": set(),
    "precompute.engine": set(),
    "precompute.model_cache": set(),
    "precompute.system": set(),
    "precompute.formats": set(),
    "precompute.layout": set(),
    "precompute.folding": set(),
    "precompute.tiny": {"precompute.errors"},
    "precompute.transform": {"precompute.errors"},
    "precompute.sources": {f"precompute.{name}" for name in ("errors", "filelist", "formats", "labels")},
    "precompute.checkpoints": {"precompute.archive", "precompute.errors"},
    "precompute.layers": {"precompute.errors", "precompute.layout"},
    "precompute.jpeg": {"precompute.errors"},
    "precompute.stages": {"precompute.system"},
    "precompute.output": {"precompute.errors", "precompute.system"},
    "precompute.jpeg2000": {"precompute.errors"},
    CACHE: {f"precompute.{name}" for name in ("errors", "output", "system")},
    HEADS: {f"precompute.{name}" for name in ("errors", "output", "system")},
    "precompute.weights": {"precompute.checkpoints", "precompute.errors"},
    "precompute.decode": {f"precompute.{name}" for name in ("errors", "formats", "jpeg", "jpeg2000", "transform")},
    "precompute.torch_engine": {f"precompute.{name}" for name in ("engine", "errors", "folding", "transform")},
    "precompute.architectures": {"precompute.errors", "precompute.tiny"},
    "precompute.openvino_engine": {
        f"precompute.{name}" for name in ("engine", "errors", "model_cache", "system", "torch_engine", "transform")
    },
    "precompute.backbones": {
        f"precompute.{name}"
        for name in ("architectures", "checkpoints", "errors", "layers", "tiny", "transform", "weights")
    },
    "precompute.catalog": {f"precompute.{name}" for name in ("architectures", "errors", "layers", "tiny", "transform")},
    "precompute.stream": {
        f"precompute.{name}" for name in ("decode", "engine", "errors", "sources", "stages", "system", "transform")
    },
    "precompute.plan": {"precompute.errors", "precompute.sources", CACHE},
    "precompute.selection": {"precompute.errors", CACHE, HEADS},
    "precompute.leaks": {CACHE, HEADS},
    "precompute.grouping": {"precompute.errors", CACHE},
    "precompute.calibrating": {HEADS},
    "precompute.head_choice": {"precompute.errors", HEADS},
    "precompute.engines": {
        f"precompute.{name}" for name in ("engine", "errors", "openvino_engine", "torch_engine", "transform")
    },
    "precompute.machine": {"precompute.openvino_engine", "precompute.system"},
    "precompute.guard": {
        f"precompute.{name}"
        for name in ("backbones", "engine", "sources", "stream", "system", "torch_engine", "transform")
    },
    "precompute.remembered": {
        *(f"precompute.{name}" for name in ("errors", "plan", "sources", "system", "transform")),
        CACHE,
    },
    "precompute.kept": {*(f"precompute.{name}" for name in ("errors", "output", "owners", "plan")), CACHE},
    "precompute.membership": {"precompute.errors", "precompute.selection", CACHE},
    "precompute.protocols": {"precompute.errors", "precompute.selection", HEADS},
    "precompute.scoring": {
        *(f"precompute.{name}" for name in ("calibrating", "errors", "leaks", "selection")),
        CACHE,
        HEADS,
    },
    "precompute.learning_curve": {
        *(f"precompute.{name}" for name in ("errors", "head_choice", "selection")),
        CACHE,
        HEADS,
    },
    "precompute.rebuilding": {*(f"precompute.{name}" for name in ("backbones", "errors", "transform")), CACHE},
    "precompute.audit": {*(f"precompute.{name}" for name in ("errors", "sources", "stream", "system")), CACHE},
    "precompute.engine_audit": {f"precompute.{name}" for name in ("backbones", "engine", "guard", "torch_engine")},
    "precompute.choosing": {
        *(f"precompute.{name}" for name in ("backbones", "engine", "engines", "errors", "guard", "machine", "plan")),
        "precompute.transform",
        CACHE,
    },
    "precompute.working_file": {
        *(f"precompute.{name}" for name in ("errors", "kept", "output", "plan", "sources")),
        CACHE,
    },
    "precompute.training": {
        *(
            f"precompute.{name}"
            for name in ("calibrating", "errors", "grouping", "head_choice", "leaks", "membership", "output")
        ),
        *(f"precompute.{name}" for name in ("protocols", "scoring", "selection")),
        CACHE,
        HEADS,
    },
    "precompute.comparison": {
        *(f"precompute.{name}" for name in ("errors", "grouping", "membership", "selection")),
        CACHE,
        HEADS,
    },
    "precompute.plots": {f"precompute.{name}" for name in ("errors", "learning_curve", "output")},
    "precompute.provenance": {f"precompute.{name}" for name in ("backbones", "choosing", "system")},
    "precompute.rows": {
        *(f"precompute.{name}" for name in ("engine", "engine_audit", "owners", "plan", "sources", "stages", "stream")),
        "precompute.transform",
        CACHE,
    },
    "precompute.report": {*(f"precompute.{name}" for name in ("engine", "engine_audit", "sources", "stages")), CACHE},
    "precompute.preparing": {
        *(
            f"precompute.{name}"
            for name in ("backbones", "choosing", "engine", "guard", "machine", "remembered", "sources")
        ),
        "precompute.transform",
    },
    "precompute.prediction": {
        *(
            f"precompute.{name}"
            for name in ("backbones", "choosing", "decode", "errors", "guard", "machine", "rebuilding")
        ),
        *(f"precompute.{name}" for name in ("sources", "stream")),
        HEADS,
    },
    "precompute.run": {
        *(
            f"precompute.{name}"
            for name in ("decode", "engine_audit", "errors", "kept", "plan", "preparing", "provenance")
        ),
        *(f"precompute.{name}" for name in ("remembered", "report", "rows", "sources", "stages", "working_file")),
        CACHE,
    },
    "precompute.extraction": {
        *(
            f"precompute.{name}"
            for name in ("errors", "formats", "remembered", "report", "run", "sources", "working_file")
        ),
        CACHE,
    },
    "precompute.repairing": {
        *(
            f"precompute.{name}"
            for name in ("choosing", "decode", "errors", "plan", "preparing", "rebuilding", "report")
        ),
        *(f"precompute.{name}" for name in ("run", "sources", "working_file")),
        CACHE,
    },
    "precompute.forecasting": {
        *(
            f"precompute.{name}"
            for name in ("decode", "errors", "extraction", "guard", "plan", "preparing", "remembered")
        ),
        *(f"precompute.{name}" for name in ("sources", "stages", "stream", "system")),
        CACHE,
    },
    "precompute.demo": {
        *(f"precompute.{name}" for name in ("extraction", "output", "training", "working_file")),
        CACHE,
        HEADS,
    },
    "precompute.cli": {"*"},
    "precompute.__main__": {"precompute.cli"},
}


def module_files() -> list[tuple[str, Path]]:
    found = []
    for top, package in (("precompute", "precompute"), ("cache", CACHE), ("heads", HEADS)):
        for path in sorted((ROOT / top).rglob("*.py")):
            inside = path.relative_to(ROOT / top)
            if top == "precompute" and inside.parts[0] in ("cache", "heads"):
                continue  # the symlinks: seen under their own names
            parts = [package, *inside.with_suffix("").parts]
            found.append((".".join(parts).removesuffix(".__init__"), path))
    return found


def group_of(module: str) -> str:
    for package in (CACHE, HEADS, "precompute.cli"):
        if module == package or module.startswith(f"{package}."):
            return package
    return ".".join(module.split(".")[:2])


def imports_of(module: str, path: Path) -> set[str]:
    """Groups of precompute's own modules that `path` imports anywhere in it, also inside functions."""
    found = set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            # `from precompute import weights` imports a module, `from precompute.cache import Cache` a name
            found |= {f"{source}.{alias.name}" for alias in node.names} if source == "precompute" else {source}
    return {group_of(name) for name in found if name.split(".")[0] == "precompute"}


@pytest.mark.parametrize(("module", "path"), module_files(), ids=lambda value: str(value).replace(str(ROOT), ""))
def test_imports_run_one_way(module: str, path: Path) -> None:
    group = group_of(module)
    assert group in ALLOWED, f"{module} has no place in the layering; give it one in this test and in DESIGN's terms"
    allowed = ALLOWED[group]
    assert allowed == {"*"} or imports_of(module, path) <= allowed | {group}


def test_the_layering_has_no_cycle() -> None:
    done: set[str] = set()
    while remaining := {
        name for name in ALLOWED if name not in done and ALLOWED[name] != {"*"} and name != "precompute.__main__"
    }:
        free = {name for name in remaining if ALLOWED[name] <= done}
        assert free, f"a cycle among {sorted(remaining)}"
        done |= free


def test_public_names() -> None:
    assert sorted(precompute.__all__) == [
        "Backbone",
        "Cache",
        "CentroidHead",
        "Comparison",
        "Extraction",
        "FewShotCurve",
        "FewShotPoint",
        "Forecast",
        "KNNHead",
        "LogisticHead",
        "MLPHead",
        "PrecomputeError",
        "Prediction",
        "Predictions",
        "Progress",
        "RidgeHead",
        "RidgeRegressionHead",
        "SavedHead",
        "Scores",
        "Training",
        "__version__",
        "compare",
        "extract",
        "few_shot",
        "forecast",
        "load_backbone",
        "load_head",
        "open_cache",
        "predict",
        "repair",
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
        "assert not heavy, heavy"
    )
    done = run_python(f"{code}\n{check}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", ["cache", "heads"])
def test_bare_names_are_refused_with_the_right_one(folder: str) -> None:
    done = run_python(f"import {folder}")
    assert done.returncode != 0
    assert f"precompute.{folder}" in done.stderr


def test_every_exported_name_survives_the_import_of_the_modules() -> None:
    """A function with the name of its module would turn into the module."""
    for module, _ in module_files():
        import_module(module)
    assert all(callable(getattr(precompute, name)) for name in precompute.__all__ if name != "__version__")
