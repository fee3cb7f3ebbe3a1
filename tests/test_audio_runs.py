"""Runs over clips keep the promises of runs over images: killed, resumed, in step with the folder, repaired."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Command, rows_there, run_python
from sounds import encoded, make_clips, sound, wav
from test_contracts import ENGINES

from precompute import extract, forecast, load_backbone, open_cache, predict, repair, train_head, verify
from precompute.engines.base import EngineChoice
from precompute.engines.choice import Decision
from precompute.engines.devices import make_engine
from precompute.engines.machine import Machine
from precompute.errors import CacheKeyError, UsageError
from precompute.extraction.executors.base import Work
from precompute.extraction.executors.local import LocalExecutor
from precompute.extraction.pipeline import MOST_PASSES, decoded_blocks
from precompute.extraction.timing import StageClock
from precompute.inputs.audio.formats import CLIPS
from precompute.inputs.audio.preprocess import LogMelPreprocess
from precompute.inputs.base import Inputs
from precompute.sources.folder import list_folder

pytest.importorskip("soundfile", reason="needs the extra `audio`")
pytest.importorskip("soxr", reason="needs the extra `audio`")

BACKBONE = "mel-statistics"


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """24 clips, WAV and FLAC: train and val of two classes, of one window to three."""
    return make_clips(tmp_path / "clips")


def rows_of(path: Path) -> dict[str, bytes]:
    """Features and what became of each clip, by id."""
    cache = open_cache(path)
    ids = [os.fsdecode(bytes(one)) for one in cache.column("samples/id")]
    return {
        name: cache.features()[row].tobytes()
        + bytes([cache.status[row]])
        + cache.column("samples/digest")[row].tobytes()
        for row, name in enumerate(ids)
    }


@pytest.mark.rotates(3)
def test_clips_are_extracted_trained_on_and_predicted(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    made = extract(clips, out, backbone=BACKBONE)
    assert (made.computed, made.layers) == (24, {"output": (192,)})
    cache = open_cache(out)
    assert cache.spec["transform"]["modality"] == "audio"
    assert cache.spec["transform"]["decoder"].keys() == {"soundfile", "libsndfile", "soxr", "quality"}
    assert verify(cache).whole
    assert extract(clips, out, backbone=BACKBONE).reused == 24
    training = train_head(out, tmp_path / "a.safetensors")
    assert training.scores["val"].accuracy > 0.8
    answered = predict(tmp_path / "a.safetensors", clips / "val")
    assert len(answered.items) == 12
    assert forecast(clips, backbone=BACKBONE).images == 24


@pytest.mark.rotates(3)
def test_a_row_is_what_the_clip_alone_leads_to(clips: Path, tmp_path: Path) -> None:
    """Whatever stands beside it in a batch, and however many windows that has."""
    extract(clips, tmp_path / "a.h5", backbone=BACKBONE, batch_size=4)
    whole = rows_of(tmp_path / "a.h5")
    chosen = sorted(whole)[3:24:7]
    for number, name in enumerate(chosen):
        place = tmp_path / f"alone{number}" / name
        place.parent.mkdir(parents=True)
        shutil.copy(clips / name, place)
        extract(tmp_path / f"alone{number}", tmp_path / f"{number}.h5", backbone=BACKBONE, batch_size=4)
        assert rows_of(tmp_path / f"{number}.h5") == {name: whole[name]}


@pytest.mark.parametrize("size", [1, 3, 16])
def test_blocks_of_clips_hold_each_once(clips: Path, size: int) -> None:
    model = load_backbone(BACKBONE)
    engine = make_engine(model.module, model.preprocess, EngineChoice("torch", "cpu", "fp32", size), identity=None)
    work = Work(list_folder(clips, CLIPS), model, Decision(engine.choice, engine, "float32"))
    blocks = list(LocalExecutor(3).blocks(work, np.arange(24)))
    rows = [item.row for block in blocks for item in block.decoded]
    assert sorted(rows) == list(range(24))
    assert all(block.features is not None and block.features[0].shape == (len(block), 192) for block in blocks)


@pytest.mark.rotates(6)
@pytest.mark.parametrize(("engine", "precision"), ENGINES, ids=" ".join)
def test_every_engine_computes_clips(clips: Path, tmp_path: Path, engine: str, precision: str) -> None:
    if not Machine.here().computes(engine, "cpu", precision):
        pytest.skip(f"{engine} does not compute in {precision} here")
    extract(clips, tmp_path / "exact.h5", backbone=BACKBONE, engine="torch", precision="fp32")
    extract(clips, tmp_path / "a.h5", backbone=BACKBONE, engine=engine, precision=precision)
    one, other = (open_cache(tmp_path / name).features().astype(np.float64) for name in ("a.h5", "exact.h5"))
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert cosines.min() > (0.9999 if precision == "fp32" else 0.99)


@pytest.mark.rotates(3)
def test_a_killed_run_goes_on_and_ends_like_one_that_was_not(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", per_class=40)
    out = tmp_path / "a.h5"
    command = [sys.executable, "-m", "precompute", "extract", clips, "-b", BACKBONE, "--batch-size", 2, "-o", out]
    process = subprocess.Popen(
        [*map(str, command), "--workers", "1"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not rows_there(tmp_path / "a.h5.partial"):
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    there = rows_there(tmp_path / "a.h5.partial")
    assert 0 < there < 160
    made = extract(clips, out, backbone=BACKBONE, batch_size=2)
    assert (made.reused, made.computed) == (there, 160 - there)
    extract(clips, tmp_path / "whole.h5", backbone=BACKBONE, batch_size=2)
    assert rows_of(out) == rows_of(tmp_path / "whole.h5")


@pytest.mark.rotates(3)
def test_the_file_follows_the_folder_and_duplicates_are_computed_once(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    names = sorted(path.relative_to(clips) for path in clips.rglob("*") if path.is_file())
    shutil.copy(clips / names[0], clips / names[0].with_name("again.wav"))
    made = extract(clips, out, backbone=BACKBONE)
    assert (made.computed, made.copied) == (24, 1)
    (clips / names[3]).unlink()
    (clips / names[5]).write_bytes(wav(sound(99, 1.0)))
    (clips / "new.wav").write_bytes(wav(sound(100, 1.0)))
    made = extract(clips, out, backbone=BACKBONE)
    assert (made.reused, made.computed, made.dropped) == (23, 2, 1)
    extract(clips, tmp_path / "fresh.h5", backbone=BACKBONE)
    assert rows_of(out) == rows_of(tmp_path / "fresh.h5")


def test_damaged_rows_are_found_and_repaired(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    extract(clips, out, backbone=BACKBONE)
    before = rows_of(out)
    column = open_cache(out).layout.columns["features/output"]
    with out.open("r+b") as file:
        file.seek(column.offset + 7 * 192 * 4)
        file.write(b"damage")
    assert verify(open_cache(out)).damaged.tolist() == [7]
    assert repair(out, clips).computed == 1
    assert rows_of(out) == before
    assert verify(open_cache(out)).whole


@pytest.mark.rotates(3)
def test_what_is_wrong_with_a_clip_is_said_and_no_row_shifts(clips: Path, tmp_path: Path) -> None:
    extract(clips, tmp_path / "good.h5", backbone=BACKBONE, transform={"max_seconds": 3.0})
    good = rows_of(tmp_path / "good.h5")
    bad = {
        "a-empty.wav": (b"", "UNDECODABLE"),
        "b-silent-header.wav": (wav(np.zeros(0)), "UNDECODABLE"),
        "c-cut.flac": (encoded(sound(0, 2), kind="FLAC")[:3000], "TRUNCATED"),
        "d-cut.ogg": (encoded(sound(0, 2), kind="OGG")[:5000], "TRUNCATED"),
        "e-html.mp3": (b"<html>404</html>", "UNDECODABLE"),
        "f-nan.wav": (encoded(np.full(100, np.nan), kind="WAV", subtype="FLOAT"), "UNDECODABLE"),
        "g-long.wav": (wav(sound(0, 3.1)), "TOO_LARGE"),
        "h-other.m4a": (b"\0\0\0\x1cftypM4A " + b"\0" * 50, "UNDECODABLE"),
    }
    for name, (raw, _) in bad.items():
        (clips / name).write_bytes(raw)
    (clips / "notes.txt").write_text("no clip")
    made = extract(clips, tmp_path / "a.h5", backbone=BACKBONE, transform={"max_seconds": 3.0})
    assert {name: reason for name, reason, _ in made.failed} == {name: reason for name, (_, reason) in bad.items()}
    assert made.ignored == ("1 not clips: notes.txt",)
    found = rows_of(tmp_path / "a.h5")
    assert {name: found[name] for name in good} == good
    with pytest.raises(CacheKeyError, match="max_seconds"):
        extract(clips, tmp_path / "a.h5", backbone=BACKBONE)


@pytest.mark.rotates(3)
def test_silence_has_features(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.wav").write_bytes(wav(np.zeros(5000)))
    (tmp_path / "clips" / "b.wav").write_bytes(wav(sound(0, 1)))
    assert not extract(tmp_path / "clips", tmp_path / "a.h5", backbone=BACKBONE).failures
    made = extract(tmp_path / "clips", tmp_path / "b.h5", backbone="resemblyzer", weights="random")
    assert not made.failures


@pytest.mark.rotates(3)
def test_windows_are_kept_as_views_behind_their_mean(clips: Path, tmp_path: Path) -> None:
    options = {"max_seconds": 4.0, "window": 0.5, "hop": 0.5}
    extract(clips, tmp_path / "pool.h5", backbone=BACKBONE, transform=options)
    extract(clips, tmp_path / "keep.h5", backbone=BACKBONE, transform={**options, "windows": "keep"})
    pooled, kept = open_cache(tmp_path / "pool.h5"), open_cache(tmp_path / "keep.h5")
    assert (pooled.views, kept.views) == (1, 9)
    assert np.array_equal(kept.plain_features(), pooled.features())
    for average in (False, True):
        head = tmp_path / f"{average}.safetensors"
        train_head(tmp_path / "keep.h5", head, average_views=average)
        assert len(predict(head, clips / "val").items) == 12
        assert len(predict(head, tmp_path / "keep.h5").items) == 24
    assert repair(tmp_path / "keep.h5", clips).computed == 0
    assert predict(tmp_path / "False.safetensors", tmp_path / "pool.h5").items


@pytest.mark.rotates(3)
def test_decoded_clips_wait_in_number_only_as_long_as_their_windows_are_few(tmp_path: Path) -> None:
    """However slowly they are taken: 8 batches of windows, and one clip for each thread."""
    (tmp_path / "clips").mkdir()
    for number in range(40):
        (tmp_path / "clips" / f"{number:02}.wav").write_bytes(wav(sound(number, 10.0)))  # ten windows
    made: list[int] = []

    class Counting(LogMelPreprocess):
        def inputs(self, raw: bytes, digest: bytes | None = None) -> Inputs:
            found = super().inputs(raw, digest)
            made.append(len(found.tensors))
            return found

    source = list_folder(tmp_path / "clips", CLIPS)
    blocks = decoded_blocks(source, np.arange(40), 8, Counting(), 2, None, StageClock())
    taken = 0
    for block in blocks:
        taken += sum(len(item.inputs) for item in block.decoded)
        time.sleep(0.2)  # as a network that takes its time
        assert sum(made) - taken <= MOST_PASSES * 8 + 3 * 10
    assert taken == 400


@pytest.mark.rotates(3)
def test_the_command_says_clips_and_groups_by_speaker(clips: Path, tmp_path: Path, precompute: Command) -> None:
    done = precompute("extract", "clips", "-b", BACKBONE, "-o", "a.h5", "--window", "0.5", "--hop", "0.25", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["computed"] == 24
    spec = open_cache(tmp_path / "a.h5").spec["transform"]
    assert (spec["window"], spec["hop"]) == (0.5, 0.25)
    done = precompute("train-head", "a.h5", "--groups", r"/(\d)\.", "--json")
    assert done.returncode == 0, done.stderr
    done = precompute("predict", "missing.safetensors", "clips")
    assert done.returncode == 1
    table = "path,label,split,speaker\n" + "".join(
        f"{path.relative_to(clips)},{path.parent.name},{path.parts[-3]},{path.stem}\n"
        for path in sorted(clips.rglob("*.*"))
    )
    (tmp_path / "clips.csv").write_text(table)
    done = precompute(
        "extract", "clips.csv", "--root", "clips", "-b", BACKBONE, "--keep-column", "speaker", "-o", "t.h5"
    )
    assert done.returncode == 0, done.stderr
    assert "24" in done.stdout
    done = precompute("train-head", "t.h5", "--groups-column", "speaker")
    assert done.returncode == 0, done.stderr
    assert "group" in done.stdout
    assert "trained on    12 clips" in done.stdout
    assert "val, 12 clips" in done.stdout
    assert "images" not in done.stdout
    done = precompute("few-shot", "t.h5", "--shots", "1,2")
    assert done.returncode == 0, done.stderr
    assert "12 clips of val" in done.stdout


@pytest.mark.rotates(3)
@pytest.mark.parametrize("missing", ["soundfile", "soxr"])
def test_without_the_extra_extract_names_the_install_line(clips: Path, tmp_path: Path, missing: str) -> None:
    done = run_python(
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"sys.argv = ['precompute', 'extract', {str(clips)!r}, '-b', 'mel-statistics']\n"
        f"sys.argv += ['-o', {str(tmp_path / 'a.h5')!r}]\n"
        "from precompute.cli import main\n"
        "main()\n"
    )
    assert done.returncode == UsageError.exit_code
    assert "pip install 'precompute[audio]'" in done.stderr
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.rotates(3)
def test_nothing_of_sound_is_loaded_for_images(photos: Path, tmp_path: Path) -> None:
    done = run_python(
        "import sys, precompute\n"
        f"precompute.extract({str(photos)!r}, {str(tmp_path / 'a.h5')!r}, backbone='tiny')\n"
        "assert not {'soundfile', 'soxr'} & set(sys.modules)\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.rotates(3)
def test_the_demo_makes_its_own_sounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from precompute.demo import audio

    monkeypatch.setattr(audio, "CLIPS", 20)
    result = audio.run_audio_demo(tmp_path / "demo")
    assert (result.labels, result.trained, result.tested) == (30, 60, 60)
    assert result.rows[0].all > 0.6  # of six kinds
    first = {path.name: path.read_bytes() for path in (tmp_path / "demo" / "sounds" / "train" / "tone").iterdir()}
    audio.write_sounds(str(tmp_path / "again"))
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "again" / "train" / "tone").iterdir()}
