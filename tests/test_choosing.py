"""`auto` is a function of what is asked for, the machine, what a file was begun with, and the images."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command, list_images, make_image

from precompute import extract, load_backbone, open_cache
from precompute.engines import choice, devices, guard, machine
from precompute.engines.audit import LEAST_IMAGES, SHARE, EngineAudit, Shown
from precompute.engines.base import Engine, EngineChoice
from precompute.engines.choice import EXACT, Asked, Begun, candidates, choose
from precompute.engines.guard import IMAGES, LEAST_COSINE
from precompute.engines.machine import COMPILE_FROM, PREFERENCES, Machine
from precompute.engines.torch import Reference, TorchEngine
from precompute.errors import DeviceError, UsageError
from precompute.extraction import setup
from precompute.extraction.sampling import sample_of

AMX = Machine(bf16=True, openvino=("bf16", "fp16", "fp32"), compiler=True)
OLD = Machine(openvino=("fp32",), compiler=True)
PLAIN = Machine()


def pairs(asked: Asked, where: Machine, **options: object) -> list[tuple[str, str]]:
    return [(choice.engine, choice.precision) for choice in candidates(asked, where, **options).choices]


@pytest.mark.parametrize("module", [choice, guard, machine, devices, setup])
def test_nothing_that_chooses_looks_at_a_clock(module: object) -> None:
    assert "time" not in vars(module)
    assert "perf_counter" not in inspect.getsource(module)


def test_the_table_gives_the_order() -> None:
    assert pairs(Asked(), AMX) == [("openvino", "bf16"), ("openvino", "fp32"), ("torch", "bf16"), EXACT]
    assert pairs(Asked(), OLD) == [("openvino", "fp32"), EXACT]
    assert pairs(Asked(), PLAIN) == [EXACT]
    assert pairs(Asked(), dataclasses.replace(PLAIN, bf16=True)) == [("torch", "bf16"), EXACT]
    assert pairs(Asked(engine="openvino"), AMX) == [("openvino", "bf16"), ("openvino", "fp32")]
    assert pairs(Asked(engine="torch"), AMX) == [("torch", "bf16"), EXACT]


def test_no_table_ends_without_the_reference_and_fp16_is_never_chosen_on_a_cpu() -> None:
    for kind, lines in itertools.groupby(PREFERENCES, key=lambda line: line.kind):
        found = [(line.engine, line.precision) for line in lines]
        assert found[-1] == EXACT
        assert kind == "cuda" or not any(precision == "fp16" for _, precision in found)
    assert all(line.why for line in PREFERENCES)


def test_a_precision_that_only_torch_computes_is_computed_by_torch() -> None:
    """A head of bf16 features on a processor without bf16."""
    found = candidates(Asked(precision="bf16"), OLD)
    assert [(one.engine, one.precision) for one in found.choices] == [("torch", "bf16")]
    assert any("OpenVINO does not compute in bf16" in reason for reason in found.reasons)
    assert pairs(Asked(precision="bf16"), dataclasses.replace(OLD, engine="openvino")) == [("torch", "bf16")]
    with pytest.raises(DeviceError, match="does not compute in bf16"):
        candidates(Asked(precision="bf16", engine="openvino"), OLD)


def test_what_a_file_was_begun_with_comes_first_where_it_is_here() -> None:
    begun = Begun("torch", "bf16", 7, proved=frozenset({("torch", "bf16")}), words="as a.h5 was begun with")
    found = candidates(Asked(), AMX, begun=begun)
    assert found.choices[0] == EngineChoice("torch", "cpu", "bf16", 7)
    assert found.precision == "bf16"
    assert "bf16: as a.h5 was begun with" in found.reasons
    elsewhere = dataclasses.replace(begun, engine="openvino")
    assert pairs(Asked(), PLAIN, begun=elsewhere) == [("torch", "bf16")]
    assert pairs(Asked(precision="fp32"), AMX, begun=begun) == [EXACT, ("openvino", "fp32")]


def test_the_environment_says_what_auto_is_and_options_say_it_louder() -> None:
    told = dataclasses.replace(AMX, engine="torch", precision="fp32")
    assert pairs(Asked(), told) == [EXACT]
    assert pairs(Asked(engine="openvino", precision="bf16"), told) == [("openvino", "bf16")]
    with pytest.raises(UsageError, match="tensorflow"):
        candidates(Asked(), dataclasses.replace(AMX, engine="tensorflow"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_torch_compile_is_used_where_so_many_images_repay_it(precision: str) -> None:
    asked, enough = Asked(engine="torch", precision=precision), COMPILE_FROM["cpu"]

    def compiled(asked: Asked, images: int, where: Machine = AMX, **options: object) -> bool:
        return candidates(asked, where, images=images, **options).choices[0].compiled

    assert compiled(asked, enough)
    assert not compiled(asked, enough - 1)
    assert not compiled(asked, enough, dataclasses.replace(AMX, compiler=False))
    assert not compiled(dataclasses.replace(asked, compile="off"), enough)
    assert compiled(dataclasses.replace(asked, compile="on"), 1)
    assert not compiled(asked, enough, begun=Begun("torch", precision, 32, compiled=False))
    assert compiled(asked, 1, begun=Begun("torch", precision, 32, compiled=True))


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    folder = tmp_path / "noise" / "a"
    folder.mkdir(parents=True)
    for number in range(IMAGES + 8):
        make_image(number).save(folder / f"{number:04}.png")
    return folder.parent


class Wrong(TorchEngine):
    """An engine whose features are of no use: as wrong as a bad kernel would make them."""

    def finish(self) -> tuple[np.ndarray, ...]:
        return tuple(-tap for tap in super().finish())


@pytest.mark.rotates(3)
def test_the_first_that_passes_is_taken_and_the_reference_where_nothing_does(
    noise: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_backbone("tiny")
    images = sample_of(list_images(noise), model.preprocess, workers=1)
    made: list[EngineChoice] = []

    def make(module: torch.nn.Module, transform: object, choice: EngineChoice, *, identity: str | None) -> Engine:
        made.append(choice)
        kind = Wrong if (choice.engine, choice.precision) in wrong else TorchEngine
        return kind(module, transform, dataclasses.replace(choice, precision="fp32"))

    monkeypatch.setattr(choice, "make_engine", make)
    wrong = {("openvino", "bf16")}
    decision = choose(candidates(Asked(), AMX), model, images)
    assert (decision.choice.engine, decision.choice.precision, decision.storage) == ("openvino", "fp32", "float32")
    assert [trial.passed for trial in decision.trials] == [False, True]
    assert len(made) == 2
    wrong |= {("openvino", "fp32"), ("torch", "bf16")}
    decision = choose(candidates(Asked(), AMX), model, images)
    assert (decision.choice.engine, decision.choice.precision) == EXACT
    assert "nothing faster passes" in decision.choice.why
    assert not decision.warnings
    asked = choose(candidates(Asked(precision="bf16"), AMX), model, images)
    assert (asked.choice.engine, asked.choice.precision) == ("openvino", "bf16")
    assert "Features differ" in asked.warnings[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        decision.storage = "float16"  # type: ignore[misc]


@pytest.mark.rotates(3)
def test_the_reference_is_eager_fp32(noise: Path) -> None:
    model = load_backbone("resnet18", weights="random", transform={"resize": 64, "crop": 64})
    samples = sample_of(list_images(noise), model.preprocess, workers=1).samples
    pixels = torch.stack([one for (one,) in samples]).permute(0, 3, 1, 2)
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1)
        for values in (model.preprocess.transform.mean, model.preprocess.transform.std)
    )
    with torch.inference_mode():
        expected = model.module((pixels / 255 - mean) / std)[0].flatten(1).numpy()
    (got,) = Reference(model.module, model.preprocess)(samples)
    error = np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 1e-5


@pytest.mark.rotates(6)
def test_predict_and_repair_prove_what_they_take(
    noise: Path, tmp_path: Path, precompute: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With engines that go wrong after the training: nothing is predicted or repaired by them without a word."""
    pytest.importorskip("openvino", reason="needs pip install 'precompute[openvino]'")
    for number in range(8):
        (noise / "b").mkdir(exist_ok=True)
        make_image(100 + number).save(noise / "b" / f"{number}.png")
    extract(noise, tmp_path / "a.h5", backbone="tiny")
    assert precompute("train-head", "a.h5", "-o", "a.safetensors").returncode == 0
    monkeypatch.delenv("PRECOMPUTE_ENGINE")
    monkeypatch.delenv("PRECOMPUTE_PRECISION")
    from precompute.engines.openvino import OpenVINOEngine

    real = OpenVINOEngine.finish
    monkeypatch.setattr(OpenVINOEngine, "finish", lambda self: tuple(-tap for tap in real(self)))
    wrong = labels_of(precompute("predict", "a.safetensors", noise, "--format", "csv").stdout)
    data = bytearray((tmp_path / "a.h5").read_bytes())
    cache = open_cache(tmp_path / "a.h5")
    before = np.array(cache.features())
    data[cache.layout.columns[f"features/{cache.layers[0]}"].offset] ^= 1
    (tmp_path / "a.h5").write_bytes(data)
    done = precompute("verify", "a.h5", "--source", noise, "--repair")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(open_cache(tmp_path / "a.h5").features(), before, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(OpenVINOEngine, "finish", real)
    assert labels_of(precompute("predict", "a.safetensors", noise, "--format", "csv").stdout) == wrong


def labels_of(csv: str) -> list[list[str]]:
    """Id and class of each line."""
    return [line.split(",")[:2] for line in csv.splitlines()]


def test_the_audit_looks_at_one_image_in_a_thousand_and_at_sixteen_at_least() -> None:
    model = load_backbone("tiny")
    choice = EngineChoice("openvino", "cpu", "bf16", 16)
    for rows in (5, 1000, 40_000):
        audit = EngineAudit(model, choice, np.arange(rows), "float16")
        wanted = sum(map(audit.wants, range(rows)))
        assert wanted == max(min(rows, LEAST_IMAGES), round(rows * SHARE))


def test_the_audit_names_what_falls_below(noise: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the images come out wrong, after 32 others have proved the engine."""
    monkeypatch.setattr("precompute.engines.audit.TIME_SHARE", 1e6)  # as if it had been a long run
    model = load_backbone("tiny")
    samples = sample_of(list_images(noise), model.preprocess, workers=1).samples[:4]
    right = Reference(model.module, model.preprocess)(samples)[0].astype(np.float32)
    shown = [right[0], -right[1], right[2], right[3] * 0]
    audit = EngineAudit(model, EngineChoice("openvino", "cpu", "bf16", 16), np.arange(4), "float32")
    audit.show([Shown(f"{row}.png", (samples[row],), (shown[row],)) for row in range(4)])
    found = audit.finish()
    assert found is not None
    assert (found.images, found.below, set(found.named)) == (4, 2, {"1.png", "3.png"})
    assert found.worst == -1
    assert found.warning is not None
    assert "--precision fp32" in found.warning
    assert "1.png" in found.warning


@pytest.mark.rotates(3)
def test_the_summary_and_the_record_say_what_the_audit_found(
    noise: Path, tmp_path: Path, precompute: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="needs pip install 'precompute[openvino]'")
    monkeypatch.setenv("PRECOMPUTE_ENGINE", "openvino")
    assert precompute("extract", noise, "-b", "tiny", "-o", "short.h5").returncode == 0
    assert all("audit" not in record for record in open_cache(tmp_path / "short.h5").provenance)
    monkeypatch.setattr("precompute.engines.audit.TIME_SHARE", 1e6)  # as if it had been a long run
    done = precompute("extract", noise, "-b", "tiny", "-o", "a.h5", "--verbose")
    assert done.returncode == 0, done.stderr
    assert "images also ran in fp32 torch" in done.stdout
    assert re.search(r" images/s \(\d+\.\d s to start, then \d+\.\d/s\)", done.stdout)
    (audit,) = [record["audit"] for record in open_cache(tmp_path / "a.h5").provenance if "audit" in record]
    assert audit["images"] == LEAST_IMAGES
    assert audit["worst"] >= LEAST_COSINE
    shown = precompute("info", "a.h5").stdout
    assert "16 images also ran in fp32 torch" in shown
    assert "None" not in shown
    assert extract(noise, tmp_path / "b.h5", backbone="tiny", engine="torch", precision="fp32").audit is None
