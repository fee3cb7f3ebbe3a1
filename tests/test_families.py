"""Families of backbones: whose a name is by its form, and names that a shell completes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torchvision
from conftest import run_command, run_python
from torchvision.models import list_models

from precompute.backbones import families
from precompute.backbones.families import completion, family_of, is_factory, packages_of, registry
from precompute.backbones.families.base import Family
from precompute.system.code import is_code


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("tiny", "tiny"),
        ("resnet18", "torchvision"),
        ("no_such_network", "torchvision"),
        ("mine:build", "factory"),
        ("mine.nets:build", "factory"),
        ("a:b:c", "factory"),
        (":build", "factory"),
        ("timm.models:resnet18", "factory"),
    ],
)
def test_the_form_of_a_name_says_whose_it_is(name: str, module: str) -> None:
    assert type(family_of(name)).__module__ == f"precompute.backbones.families.{module}"
    assert is_factory(name) == (module == "factory") == is_code(name)


@pytest.mark.parametrize("name", ["timm:resnet18", "timm:resnet18.a1_in1k", "timm:./folder", "timm:/a:b", "timm:"])
def test_a_prefix_is_no_factory(name: str) -> None:
    assert not is_factory(name)
    assert registry.prefix_of(name) == "timm"
    assert "timm" in packages_of(name)


def test_the_releases_that_decide_a_name_without_a_prefix_are_no_family_s() -> None:
    """Or the records of files from before there were families would say something else."""
    assert [packages_of(name) for name in ("tiny", "resnet18", "mine:build")] == [()] * 3


def test_every_family_is_one_file_and_one_line() -> None:
    folder = Path(registry.__file__).parent
    modules = {*registry.PREFIXES.values(), *registry.BARE, "factory"}
    for module in modules:
        assert (folder / f"{module}.py").is_file()
    for name in ("tiny", "resnet18", "mine:build"):
        assert isinstance(family_of(name), Family)


def test_names_without_a_prefix_are_those_of_tiny_and_torchvision() -> None:
    assert families.names() == ["tiny", *list_models(module=torchvision.models)]


# Completion


def test_the_names_that_a_shell_completes_are_torchvision_s() -> None:
    assert list(completion.TORCHVISION) == list_models(module=torchvision.models)


@pytest.mark.parametrize(
    ("begun", "found"),
    [
        ("resnet1", ["resnet101", "resnet152", "resnet18"]),
        ("ti", ["tiny", "timm:"]),
        ("timm", ["timm:"]),
        ("mine:", []),
        ("zzz", []),
    ],
)
def test_what_is_typed_is_completed(begun: str, found: list[str]) -> None:
    assert completion.completions(begun) == found


@pytest.mark.rotates(3)
def test_a_shell_gets_the_names(tmp_path: Path) -> None:
    """By click's own protocol, for bash."""
    asked = {"_PRECOMPUTE_COMPLETE": "bash_complete", "COMP_WORDS": "precompute extract -b resnet1", "COMP_CWORD": "3"}
    done = run_command(tmp_path, env=asked)
    assert done.stdout.split() == ["plain,resnet101", "plain,resnet152", "plain,resnet18"]


def test_completing_loads_no_torch() -> None:
    done = run_python(
        "import sys\nfrom precompute.backbones.families.completion import completions\n"
        "assert completions('vit_b') and completions('timm') == ['timm:']\n"
        "assert not {'torch', 'torchvision', 'timm', 'numpy'} & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr


# Without the library


WITHOUT = """
import sys
sys.modules["timm"] = None  # as if it were not installed
from precompute.cli import main
sys.argv = ["precompute", *{arguments!r}]
main()
"""


@pytest.mark.rotates(6)
@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", ".", "-b", "timm:resnet18", "--json"],
        ["backbones", "timm:resnet", "--json"],
        ["backbones", "timm:resnet18", "--layers", "--json"],
    ],
    ids=" ".join,
)
def test_a_library_that_is_missing_is_named_with_its_install_line(photos: Path, arguments: list[str]) -> None:
    arguments = [str(photos) if one == "." else one for one in arguments]
    done = run_python(WITHOUT.format(arguments=arguments))
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert "needs timm" in error["message"]
    assert "pip install 'precompute[timm]'" in error["hint"]


@pytest.mark.rotates(3)
def test_completion_without_the_library_is_empty() -> None:
    done = run_python(
        "import sys\nsys.modules['timm'] = None\n"
        "from precompute.backbones.families.completion import completions\nassert completions('timm:res') == []"
    )
    assert done.returncode == 0, done.stderr
