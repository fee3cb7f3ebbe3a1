"""The commands and the Python of the docs run: page by page, in order, on small samples with the names of the docs.

Backbones whose weights are not at hand are replaced by networks with random weights at 32 pixels (SUBSTITUTES); what
needs a GPU, a cluster, an object store or a hub is only parsed, and stands in ONLY_PARSED with its reason.
tests/test_docs.py parses all commands, and tests/test_readme.py compares output.
"""

from __future__ import annotations

import csv
import re
import shlex
import shutil
import sys
import tomllib
import wave
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Command, make_image

sys.path.insert(0, str(ROOT / "scripts"))
from consoles import Block, blocks, steps

PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (*sorted((ROOT / "docs").rglob("*.md")), ROOT / "cache/FORMAT.md", ROOT / "CONTRIBUTING.md")
    if path.name != "start.md" and "decisions" not in path.parts
]

SMALL = "--weights random --resize 32 --crop 32"
SUBSTITUTES = [
    (r"-b resnet(18|50)( --weights \S+)?", f"-b resnet18 {SMALL}"),
    (r"-b mobilenet_v2( --weights \S+)?", f"-b mobilenet_v2 {SMALL}"),
    (r"-b (timm|open_clip|hf):\S+ (?=.*(photos|dino))", "-b tiny "),
    (r"photos (.*)-b (timm|open_clip|hf):\S+", r"photos \1-b tiny"),
    (r"-b hf:\S+(?=.* minilm\.h5|.* trec\.h5)", "-b ngram-hash"),
    (r"^HF_HUB_OFFLINE=1 ", ""),
    (r"torchvision:CIFAR10 --root data -b \S+", "photos -b tiny"),
    (r"--shots 1,2,5,10,25,50", "--shots 1,2"),
    (r"extract labels\.csv (?!.*--root)", "extract labels.csv --root photos "),
    (r"--expect 300", "--expect 20"),
    (r"^(precompute extract .*)$", r"\1 --overwrite"),  # examples of one page may give one name to several outputs
    (r"--draws 5", "--draws 2"),
    (r"few-shot photos\.h5 --json", "few-shot photos.h5 --shots 1,2 --draws 2 --json"),
    (r"-o photos-depth --shots .*", "-o photos-depth --shots 2 --draws 2 --methods pixels,head"),
]
"""Pattern in a command of the docs, and what runs in its place."""

ONLY_PARSED = [
    (r"s3://", "an object store: tests/test_remote.py"),
    (r"--executor ray", "a cluster: tests/test_ray.py"),
    (r"\bvit_b_16\b", "at 224 pixels alone, minutes of a CPU"),
    (r"\.tar'", "shards: tests/test_shards.py"),
    (
        r"hf:|timm:|open_clip:",
        "a hub, or a folder of the reader's: tests/test_hf_*.py, test_timm.py, test_open_clip.py",
    ),
    (r"^precompute (rank|fine-tune|depth)", "minutes: tests/test_rank.py, test_tail_training.py, test_depth.py"),
    (
        r"hf-dataset:|torchvision:|beans|train\.parquet",
        "data sets: tests/test_hf_datasets.py, test_torchvision_sets.py",
    ),
    (r"tail\.safetensors|(full|head|deep)\.safetensors", "what fine-tune made: tests/test_whole_networks.py"),
    (r"squeezenet|sq_ants", "heads of photos that are not shipped: tests/test_real_photos.py"),
    (r"inside\.h5", "an error, shown: tests/test_cuts.py"),
    (r"--resume|resemblyzer", "weights that are not shipped: tests/test_audio_runs.py"),
    (r"--decoder nvjpeg|--device cuda", "a GPU: tests/test_cuda.py"),
    (r"\.(onnx|pt2)\b", "half a minute: tests/test_graphs.py"),
    (r"^precompute demo", "CI runs it as scripts/demo"),
    (r"--protocol simclr:", "test photos: tests/test_protocols.py"),
    (
        r"^(pip|head|eval|export|sbatch|SOURCE=|clip_benchmark|python scripts/|python3 -m venv|scripts/|\.ci/)",
        "no precompute",
    ),
    (r"^(find|cat|rm|cd|mkdir|ls|make|snakemake|dvc|git|docker|conda|embedding-atlas|renumics|jq)\b", "no precompute"),
]
"""Pattern in a command, and why it is only parsed."""

CLASSES = ("ants", "bees")


def name_of(split: str, label: str, number: int) -> str:
    return f"{split}/{label}/bird{number}_{label}.{'png' if number % 2 else 'jpg'}"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all samples that the docs name."""
    folder = tmp_path_factory.mktemp("docs")
    rows = []
    for split, each in (("train", 6), ("val", 4), ("test", 4)):
        for label in CLASSES:
            for number in range(each):
                name = name_of(split, label, number)
                (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
                make_image(len(rows)).save(folder / "photos" / name)
                rows.append((name, label, split, number))
    shutil.copytree(folder / "photos/test", folder / "new-photos")
    for name in ("hymenoptera", "digits", "flowers"):
        shutil.copytree(folder / "photos", folder / name)
    tables = {
        "labels.csv": (
            "path",
            "label",
            "split",
            "labels",
            "card_count",
            "species",
            "fold",
            "finding",
            "part",
            "patient",
        ),
        "animals.csv": ("file", "species", "split", "animal"),
        "tags.csv": ("path", "tags:label", "split"),
        "columns.csv": ("path", "label", "split", "dog", "beach"),
        "ages.csv": ("path", "split", "age"),
    }
    for table, columns in tables.items():
        with (folder / table).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([column.partition(":")[2] or column for column in columns])
            for name, label, split, number in rows:
                known = {
                    **{"path": name, "file": name, "label": label, "split": split, "species": label, "finding": label},
                    **{"labels": "king ace" if number % 2 else "king", "card_count": number, "age": number + 0.5},
                    **{
                        "dog": number % 2,
                        "beach": int(label == "bees"),
                        "animal": f"{label}{number}",
                        "patient": number,
                    },
                    **{"fold": split, "part": split, "tags": "dog;beach" if number % 2 else "beach" if number else ";"},
                }
                writer.writerow([known[column.partition(":")[0]] for column in columns])
    (folder / "files.txt").write_text("".join(f"photos/{name}\n" for name, *_ in rows))
    for table in ("questions.csv", "trec.csv", "more.csv"):
        with (folder / table).open("w") as file:
            file.write("text,label,split\n")
            for number in range(24):
                split = "train" if number < 12 else "test"
                file.write(f"{('Who wrote', 'How many are')[number % 2]} book {number}?,{number % 2},{split}\n")
    for place in ("sounds/train", "sounds/test", "new-sounds/test"):
        for label in range(2):
            for take, speaker in enumerate(("ann", "bob", "cleo", "dan")):
                clip = folder / place / str(label) / f"{label}_{speaker}_{take}.wav"
                clip.parent.mkdir(parents=True, exist_ok=True)
                sound = np.sin(np.arange(8000) * (0.1 + 0.2 * label + 0.01 * take)) * 9000
                with wave.open(str(clip), "wb") as file:
                    file.setparams((1, 2, 16000, 0, "NONE", ""))
                    file.writeframes(sound.astype("<i2").tobytes())
    np.savez(folder / "clip.npz", features=np.random.default_rng(0).normal(size=(24, 8)), label=np.arange(24) % 2)
    shutil.copy(folder / "clip.npz", folder / "more-clip.npz")
    return folder


TINY = "precompute extract photos -b tiny -o {}"
BEFORE: dict[str, list[str]] = {
    "docs/concepts/intervals.md": [
        TINY.format("photos.h5"),
        "precompute train-head photos.h5 -o logistic.safetensors",
        "precompute train-head photos.h5 --head knn -o knn.safetensors",
    ],
    "docs/concepts/leaks.md": [TINY.format("photos.h5")],
    "docs/concepts/calibration.md": [TINY.format("photos.h5")],
    "docs/features.md": [
        TINY.format("photos.h5"),
        "precompute import more-clip.npz -o more-clip.h5 --name clip-vit-b32",
    ],
    "docs/heads.md": [
        "precompute extract labels.csv --root photos --keep-column finding --keep-column part --keep-column patient "
        "-b tiny -o scans.h5",
        TINY.format("ants.h5"),
        TINY.format("photos.h5"),
        f"precompute extract photos -b resnet18 {SMALL} --layer layer4 --pooling none -o tokens.h5",
    ],
    "docs/mlp.md": [TINY.format("photos.h5")],
    "docs/targets.md": [
        "precompute extract labels.csv --root photos --label-column labels --keep-column card_count "
        f"-b mobilenet_v2 {SMALL} -o cards.h5",
        "precompute train-head cards.h5 --label-separator ' ' -o logistic.safetensors",
        "precompute train-head cards.h5 --label-separator ' ' --head knn -o knn.safetensors",
    ],
    "docs/few-shot.md": [TINY.format("photos.h5")],
    "docs/explore.md": [TINY.format("photos.h5")],
    "docs/report.md": [
        TINY.format("photos.h5"),
        "precompute train-head photos.h5 -o photos.safetensors",
        "precompute train-head photos.h5 -o logistic.safetensors",
        "precompute train-head photos.h5 --head mlp --max-epochs 3 -o mlp.safetensors",
    ],
    "docs/deploy.md": [TINY.format("photos.h5"), "precompute train-head photos.h5 -o photos.safetensors"],
    "docs/scores.md": [TINY.format("ants.h5")],
    "docs/trust.md": [TINY.format("ants.h5")],
    "docs/performance.md": [TINY.format("photos.h5")],
    "cache/FORMAT.md": [
        TINY.format("ants.h5"),
        f"precompute extract photos -b resnet18 {SMALL} --layer layer3 --pooling none --dtype int8 -o maps.h5",
    ],
}
"""What a page takes for granted."""


def commands_of(page: str) -> list[str]:
    found = []
    for block in blocks((ROOT / page).read_text()):
        if block.language == "console":
            found += [step.command for step in steps(block.text)]
        elif block.language == "sh":
            text = re.sub(r" *\\\n *", " ", block.text)
            found += [re.sub(r"\s+# .*$", "", line) for line in text.splitlines() if line.strip()]
    return found


def only_parsed(command: str) -> str | None:
    return next((reason for pattern, reason in ONLY_PARSED if re.search(pattern, command)), None)


def substituted(command: str) -> str:
    for pattern, replacement in SUBSTITUTES:
        command = re.sub(pattern, replacement, command)
    return command


def python_of(page: str) -> list[Block]:
    return [block for block in blocks((ROOT / page).read_text()) if block.language == "python"]


RUN = [page for page in PAGES if any(only_parsed(substituted(command)) is None for command in commands_of(page))]


@pytest.mark.rotates(10)
@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_run(
    page: str, template: Path, tmp_path: Path, precompute: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    for block in blocks((ROOT / page).read_text()):
        if name := re.match(r"# (\w+\.(?:py|toml))\n", block.text):
            (tmp_path / name[1]).write_text(block.text)
    for block in blocks((ROOT / page).read_text()):
        if block.language == "toml" and not (tmp_path / "run.toml").exists():
            (tmp_path / "run.toml").write_text(block.text)
    for command in (*BEFORE.get(page, ()), *map(substituted, commands_of(page))):
        if only_parsed(command) is None:
            line, _, stdout = command.partition(" > ")
            program, *arguments = shlex.split(line)
            assert program == "precompute", f"{page}: {command}: neither run nor in ONLY_PARSED"
            if page in BEFORE and "--overwrite" not in arguments and "-o" in arguments:
                (tmp_path / arguments[arguments.index("-o") + 1]).unlink(missing_ok=True)
            done = precompute(*arguments)
            assert done.returncode == 0, f"{page}: {command}:\n{done.stdout}{done.stderr}"
            if stdout:
                (tmp_path / stdout).write_text(done.stdout)


def test_what_is_not_run_is_little_and_has_its_reason() -> None:
    commands = [
        substituted(command) for page in PAGES for command in commands_of(page) if command.startswith("precompute")
    ]
    assert sum(only_parsed(command) is None for command in commands) >= len(commands) / 2
    for pattern, reason in ONLY_PARSED:
        assert reason
        for name in re.findall(r"test_\w+\.py", reason):
            assert (ROOT / "tests" / name).exists(), f"{pattern}: {name}"


def test_extras_and_scripts_that_the_docs_name_are_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for page in ("README.md", *PAGES):
        text = (ROOT / page).read_text()
        for names in re.findall(r"pip install '(?:precompute|\.)\[([\w,-]+)\]'", text):
            assert {*names.split(",")} <= {*extras}, f"{page}: {names}"
        for name in re.findall(r"^(?:\$ )?python (scripts/\w+\.py)", text, re.MULTILINE):
            assert (ROOT / name).exists(), f"{page}: {name}"


PRELUDE = {
    "docs/text.md": "import torch\nfrom precompute.inputs.base import Preprocess\n",
    "docs/mlp.md": "import numpy as np\ny = np.arange(60) % 2\nX = y[:, None] + np.random.normal(size=(60, 8))\n",
}
NOT_RUN = {
    "docs/tails.md": "needs a tail of resnet18 with ImageNet's weights: tests/test_tails.py does the same",
    "docs/whole-networks.md": "needs a whole network trained: tests/test_whole_networks.py does the same",
    "docs/explore.md": "opens a window of a tool that is not installed",
}
"""Pages whose Python is only compiled, and why."""


@pytest.mark.rotates(5)
@pytest.mark.parametrize("page", [page for page in PAGES if python_of(page)])
def test_the_python_of_a_page_runs(
    page: str, template: Path, tmp_path: Path, precompute: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    for command in BEFORE.get(page, ()):
        assert precompute(*shlex.split(command)[1:]).returncode == 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names: dict[str, object] = {}
    exec(PRELUDE.get(page, ""), names)
    for block in python_of(page):
        if page in NOT_RUN:
            compile(block.text, page, "exec")
            continue
        if page == "docs/coming-from.md" and "import precompute" not in block.text:
            compile(block.text, page, "exec")  # how another library does it
            continue
        if page == "docs/coming-from.md":
            precompute("extract", "photos", "-b", "tiny", "-o", "photos.h5")
        code = block.text.replace('backbone="resnet50"', 'backbone="tiny"')
        exec(compile("\n" * block.line + code, page, "exec"), names)
