"""wav2vec 2.0, HuBERT, Whisper and CLAP from folders that transformers has saved: a row is what the library says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from contracts import BackboneContract, PreprocessContract
from sounds import RATE, encoded, make_clips, sound, wav

from precompute import extract, load_backbone, open_cache, predict, repair, train_head
from precompute.backbones.load import Backbone
from precompute.errors import BackboneError, CacheKeyError, PrecomputeError, UsageError, WeightsError
from precompute.inputs.audio.filterbanks import FilterbankPreprocess
from precompute.inputs.audio.spectrograms import ClapPreprocess, WhisperPreprocess
from precompute.inputs.audio.waveform import WaveformPreprocess, receptive_field
from precompute.inputs.base import Preprocess

pytest.importorskip("soundfile", reason="needs the extra `audio`")
pytest.importorskip("soxr", reason="needs the extra `audio`")
transformers = pytest.importorskip("transformers", minversion="5.24", reason="needs the extra `hf`")

from hf_sounds import FORMS, extractor, library_feature, network, saved  # noqa: E402

NAMES = [*FORMS, "whisper", "clap", "ast"]
EXACT = {"rtol": 1e-4, "atol": 1e-4}
"""Sums of the same numbers in another order, in fp32; features are about 1, those of CLAP about 0.3."""

WINDOWS = {"whisper": 30, "clap": 10}


def feature_of(backbone: Backbone, raw: bytes) -> np.ndarray:
    made = backbone.preprocess.inputs(raw)
    with torch.inference_mode():
        (features,) = backbone.body()(*(torch.stack(one) for one in zip(*made.tensors, strict=True)))
    return backbone.preprocess.merge(features.numpy(), made.weights or ())


def clip(wave: np.ndarray, rate: int) -> bytes:
    """A file that holds these values as they are, but for float32."""
    return encoded(wave, rate, kind="WAV", subtype="FLOAT")


def rate_of(name: str) -> int:
    return 48_000 if name == "clap" else RATE


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.rotates(3)
def test_a_feature_is_what_the_library_says_of_the_clip_alone(name: str, tmp_path: Path) -> None:
    """Whatever its length, so through padding to each of the lengths of windows."""
    model, made = saved(tmp_path, name)
    backbone, rate = load_backbone(f"hf:{tmp_path}"), rate_of(name)
    for seconds in (0.03, 0.2, 0.625, 1.2) if name == "ast" else (0.03, 0.2, 0.625, 1.3, 4.0):
        wave = sound(round(100 * seconds), seconds, rate)
        expected = library_feature(name, model, made, wave.astype(np.float32))
        np.testing.assert_allclose(feature_of(backbone, clip(wave, rate)), expected, **EXACT)


@pytest.mark.parametrize("form", ["wav2vec2, group", "wav2vec2, layer"])
def test_a_group_norm_sees_padding_and_ours_does_not(form: str, tmp_path: Path) -> None:
    """The trap: the library's own padded call is another feature where `feat_extract_norm` is group."""
    model, made = saved(tmp_path, form)
    wave = sound(1, 0.5).astype(np.float32)
    alone = library_feature(form, model, made, wave)
    given = made([wave, np.zeros(4 * RATE, np.float32)], sampling_rate=RATE, padding=True, return_tensors="pt")
    real = (len(wave) - 400) // 320 + 1
    with torch.inference_mode():
        padded = model(given["input_values"]).last_hidden_state[0, :real].mean(0).numpy()
    assert np.abs(padded - alone).max() > 0.01  # without a mask both kinds see it
    np.testing.assert_allclose(feature_of(load_backbone(f"hf:{tmp_path}"), clip(wave, RATE)), alone, **EXACT)


@pytest.mark.rotates(3)
@pytest.mark.parametrize("name", ["wav2vec2, group", "wav2vec2, layer", "whisper", "clap"])
def test_a_long_clip_is_the_mean_over_its_windows_by_their_frames(name: str, tmp_path: Path) -> None:
    model, made = saved(tmp_path, name)
    rate, seconds = rate_of(name), {"whisper": 37.0, "clap": 23.0}.get(name, 4.7)
    wave = sound(2, seconds, rate).astype(np.float32)
    if name in WINDOWS:
        backbone, size = load_backbone(f"hf:{tmp_path}"), WINDOWS[name] * rate
        parts = [wave[start : start + size] for start in range(0, len(wave), size)]
        weights = [-(-len(one) // 320) if name == "whisper" else len(one) // 480 for one in parts]
        found = [library_feature(name, model, made, one) for one in parts]
    else:
        # Normalised as a whole; a window reaches 80 samples into the next, so that each frame lies in one
        backbone = load_backbone(f"hf:{tmp_path}", transform={"window": 2.0, "hop": 2.0})
        whole = made(wave, sampling_rate=RATE, return_tensors="pt")["input_values"]
        parts = [whole[:, start : start + 32_080] for start in range(0, len(wave), 32_000)]
        with torch.inference_mode():
            states = [model(one).last_hidden_state[0] for one in parts]
        weights, found = [len(one) for one in states], [one.mean(0).numpy() for one in states]
        assert sum(weights) == (len(wave) - 400) // 320 + 1
    assert len(parts) == {"whisper": 2}.get(name, 3)
    expected = np.average(found, axis=0, weights=weights)
    np.testing.assert_allclose(feature_of(backbone, clip(wave, rate)), expected, **EXACT)


def test_a_long_clip_of_a_filterbank_is_no_cut_off_one(tmp_path: Path) -> None:
    """The library leaves out what is behind the last frame that the network takes; here it is further windows."""
    model, made = saved(tmp_path, "ast")
    wave = sound(2, 3.1).astype(np.float32)
    parts = [wave[start : start + 127 * 160 + 400] for start in range(0, len(wave), 128 * 160)]
    weights = [(len(one) - 400) // 160 + 1 for one in parts]
    assert (len(parts), sum(weights)) == (3, (len(wave) - 400) // 160 + 1)
    expected = np.average([library_feature("ast", model, made, one) for one in parts], axis=0, weights=weights)
    np.testing.assert_allclose(feature_of(load_backbone(f"hf:{tmp_path}"), clip(wave, RATE)), expected, **EXACT)


@pytest.mark.parametrize("name", ["wav2vec2, group", "whisper"])
def test_hidden_layers_are_the_librarys(name: str, tmp_path: Path) -> None:
    model, made = saved(tmp_path, name)
    wave = sound(3, 0.7).astype(np.float32)
    backbone = load_backbone(f"hf:{tmp_path}", layer=["encoder.layers.0", "output"])
    found = backbone.preprocess.inputs(clip(wave, RATE))
    given = made(wave, sampling_rate=RATE, return_tensors="pt")
    with torch.inference_mode():
        features = backbone.body()(*(torch.stack(one) for one in zip(*found.tensors, strict=True)))
        called = model.encoder if name == "whisper" else model
        hidden = called(
            **{key: one for key, one in given.items() if key != "attention_mask"}, output_hidden_states=True
        )
    real = int(found.weights[0]) if found.weights else 0
    np.testing.assert_allclose(features[0][0], hidden.hidden_states[1][0, :real].mean(0), **EXACT)
    np.testing.assert_allclose(features[1][0], hidden.last_hidden_state[0, :real].mean(0), **EXACT)


@pytest.mark.rotates(3)
def test_each_pooling_is_that_of_the_library(tmp_path: Path) -> None:
    model, made = saved(tmp_path / "w", "wav2vec2, group")
    wave = sound(4, 0.8).astype(np.float32)
    with torch.inference_mode():
        states = model(made(wave, sampling_rate=RATE, return_tensors="pt")["input_values"]).last_hidden_state[0]
    highest = load_backbone(f"hf:{tmp_path / 'w'}", pooling="max")
    np.testing.assert_allclose(feature_of(highest, clip(wave, RATE)), states.amax(0), **EXACT)
    with pytest.raises(BackboneError, match="has no 'cls' pooling"):
        load_backbone(f"hf:{tmp_path / 'w'}", pooling="cls")
    with pytest.raises(BackboneError, match="has no 'none' pooling"):
        load_backbone(f"hf:{tmp_path / 'w'}", pooling="none")
    model, made = saved(tmp_path / "c", "clap")
    wave = sound(4, 0.8, 48_000).astype(np.float32)
    given = made(wave, sampling_rate=48_000, return_tensors="pt")["input_features"]
    with torch.inference_mode():
        expected = model.audio_model(input_features=given).pooler_output[0]
    pooler = load_backbone(f"hf:{tmp_path / 'c'}", pooling="pooler")
    np.testing.assert_allclose(feature_of(pooler, clip(wave, 48_000)), expected, **EXACT)
    projection = feature_of(load_backbone(f"hf:{tmp_path / 'c'}"), clip(wave, 48_000))
    np.testing.assert_allclose(np.linalg.norm(projection), 1, rtol=1e-5)


# The road


@pytest.mark.parametrize("name", ["wav2vec2, group", "whisper", "clap"])
@pytest.mark.rotates(6)
def test_clips_are_extracted_trained_on_predicted_and_repaired(name: str, tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", per_class=2)
    saved(tmp_path / "model", name)
    backbone, out = f"hf:{tmp_path / 'model'}", tmp_path / "a.h5"
    made = extract(clips, out, backbone=backbone, engine="torch", precision="fp32", batch_size=3)
    assert (made.computed, made.passes, made.unit) == (8, 8, "clips")
    cache = open_cache(out)
    assert cache.spec["backbone"] == f"hf:{name.partition(',')[0]}"
    assert cache.spec["backend"]["transformers"] == transformers.__version__
    assert extract(clips, out, backbone=backbone).reused == 8
    assert repair(out, clips).computed == 0
    train_head(out, tmp_path / "a.safetensors")
    assert len(predict(tmp_path / "a.safetensors", clips / "val").items) == 4
    # A row is the clip's alone: other neighbours, and batches of another size
    (tmp_path / "few").mkdir()
    for number in (0, 1):
        path = clips / "val" / "low" / f"{number}.{('wav', 'flac')[number]}"
        (tmp_path / "few" / path.name).write_bytes(path.read_bytes())
    ids = [bytes(one).rstrip(b"\0").decode() for one in cache.column("samples/id")]
    rows = [ids.index(f"val/low/{one}") for one in ("0.wav", "1.flac")]
    for size in (3, 1):
        extract(tmp_path / "few", tmp_path / f"{size}.h5", backbone=backbone, engine="torch", precision="fp32",
                batch_size=size)  # fmt: skip
        found = open_cache(tmp_path / f"{size}.h5").features()
        np.testing.assert_allclose(found, cache.features()[rows], rtol=1e-5, atol=1e-5)
        if size == 3:
            assert np.array_equal(found, cache.features()[rows])


@pytest.mark.rotates(3)
def test_clips_of_every_kind_have_features(tmp_path: Path) -> None:
    """Silent, of one sample, 8 channels, 192 kHz, several windows; a broken one says why."""
    saved(tmp_path / "model", "wav2vec2, group")
    clips = tmp_path / "clips"
    clips.mkdir()
    many = np.stack([sound(seed, 0.5) for seed in range(8)], axis=1)
    for name, raw in {
        "channels.wav": wav(many),
        "fast.wav": wav(sound(1, 0.5, 192_000), 192_000),
        "long.wav": wav(sound(2, 21.0)),
        "one.wav": wav(np.array([0.5])),
        "silent.wav": wav(np.zeros(5000)),
        "torn.flac": encoded(sound(0, 2), kind="FLAC")[:3000],
    }.items():
        (clips / name).write_bytes(raw)
    made = extract(clips, tmp_path / "a.h5", backbone=f"hf:{tmp_path / 'model'}", engine="torch", precision="fp32")
    assert [(name, reason) for name, reason, _ in made.failed] == [("torn.flac", "TRUNCATED")]
    assert (made.computed, made.passes) == (5, 7)
    features = open_cache(tmp_path / "a.h5").features()[:5]
    assert np.isfinite(features).all()
    mean = clip(many.mean(axis=1), RATE)
    (tmp_path / "mean").mkdir()
    (tmp_path / "mean" / "a.wav").write_bytes(mean)
    extract(tmp_path / "mean", tmp_path / "b.h5", backbone=f"hf:{tmp_path / 'model'}", engine="torch", precision="fp32")
    # 16 bits of eight channels, and their mean before rounding
    np.testing.assert_allclose(open_cache(tmp_path / "b.h5").features()[0], features[0], atol=0.02)


@pytest.mark.rotates(3)
def test_windows_are_kept_and_counted(tmp_path: Path, precompute: Command) -> None:
    saved(tmp_path / "model", "wav2vec2, layer")
    clips = make_clips(tmp_path / "clips", per_class=2)
    options = {"window": 0.5, "hop": 0.5, "max_seconds": 2.0, "windows": "keep"}
    made = extract(clips, tmp_path / "a.h5", backbone=f"hf:{tmp_path / 'model'}", transform=options)
    assert made.batch_size == 8  # of windows as long as these may be
    cache = open_cache(tmp_path / "a.h5")
    assert (made.views, made.windows, cache.views, cache.windows) == (5, 4, 5, 4)
    seconds = [0.2 + 0.2 * (seed % 12) for seed in range(1, 9)]
    assert made.passes == sum(max(1, -(-(int(one * RATE) - 400 + 320) // 8000)) for one in seconds) < 5 * 8
    training = train_head(tmp_path / "a.h5")
    (words,) = (one for one in training.notes if one.startswith("trained"))
    each = "the mean of each clip's windows and up to 4 of them"
    assert words == f"trained on {each}, in which a clip counts once; scored by that mean"
    done = precompute("extract", "clips", "-b", "hf:./model", "-o", "b.h5", "--window", "0.5", "--hop", "0.5")
    assert done.returncode == 0, done.stderr
    assert f"8 clips in {made.passes} windows" in done.stdout


@pytest.mark.rotates(3)
def test_the_key_knows_what_decides_a_feature(tmp_path: Path) -> None:
    """Settings of the extractor, of the network, and no name of a folder or of a program."""
    clips = make_clips(tmp_path / "clips", per_class=1)
    saved(tmp_path / "model", "wav2vec2, layer")
    backbone = f"hf:{tmp_path / 'model'}"
    extract(clips, tmp_path / "a.h5", backbone=backbone)
    (tmp_path / "model").rename(tmp_path / "moved")
    assert extract(clips, tmp_path / "a.h5", backbone=f"hf:{tmp_path / 'moved'}").reused == 4
    for file, changed in (
        ("preprocessor_config.json", {"do_normalize": False}),
        ("config.json", {"layer_norm_eps": 0.1}),
    ):
        path = tmp_path / "moved" / file
        before = path.read_text()
        path.write_text(json.dumps({**json.loads(before), **changed}))
        with pytest.raises(CacheKeyError):
            extract(clips, tmp_path / "a.h5", backbone=f"hf:{tmp_path / 'moved'}")
        path.write_text(before)


# Traps of the field


def test_weights_are_computed_with_in_fp32_whatever_the_checkpoint_has(tmp_path: Path) -> None:
    model, made = saved(tmp_path, "wav2vec2, group")
    model.half().save_pretrained(tmp_path)
    wave = sound(5, 0.5).astype(np.float32)
    expected = library_feature("wav2vec2", model.float(), made, wave)
    backbone = load_backbone(f"hf:{tmp_path}")
    assert {one.dtype for one in backbone.network.parameters()} == {torch.float32}
    np.testing.assert_allclose(feature_of(backbone, clip(wave, RATE)), expected, **EXACT)


@pytest.mark.parametrize("name", ["Wav2Vec2ForCTC", "Wav2Vec2ForPreTraining", "WhisperForConditionalGeneration"])
def test_checkpoints_of_a_task_give_the_features_of_their_network(name: str, tmp_path: Path) -> None:
    """Heads are left out; the vector that training hides frames with may be missing, as it is from published ones."""
    kind = "whisper" if name.startswith("Whisper") else "wav2vec2, group"
    base, made = saved(tmp_path, kind)
    whole = getattr(transformers, name)(base.config)
    inner = whole.model if kind == "whisper" else whole.wav2vec2
    inner.load_state_dict(base.state_dict())
    whole.save_pretrained(tmp_path)
    if kind != "whisper":
        from safetensors.torch import load_file, save_file

        state = load_file(tmp_path / "model.safetensors")
        del state["wav2vec2.masked_spec_embed"]
        save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    wave = sound(6, 0.5).astype(np.float32)
    expected = library_feature(kind, base, made, wave)
    np.testing.assert_allclose(feature_of(load_backbone(f"hf:{tmp_path}"), clip(wave, RATE)), expected, **EXACT)


def test_older_names_of_weights_are_read(tmp_path: Path) -> None:
    """`weight_g` and `weight_v`, as most published files of wav2vec 2.0 have them."""
    from safetensors.torch import load_file, save_file

    model, made = saved(tmp_path, "wav2vec2, group")
    state = load_file(tmp_path / "model.safetensors")
    place = "encoder.pos_conv_embed.conv."
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        state[f"{place}{old}"] = state.pop(f"{place}parametrizations.weight.{new}")
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    wave = sound(7, 0.5).astype(np.float32)
    expected = library_feature("wav2vec2", model, made, wave)
    np.testing.assert_allclose(feature_of(load_backbone(f"hf:{tmp_path}"), clip(wave, RATE)), expected, **EXACT)


def test_a_layer_that_is_missing_is_an_error_and_never_random(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved(tmp_path, "wav2vec2, group")
    state = load_file(tmp_path / "model.safetensors")
    # Under another name, so that the file is as large as it was
    state["lm_head.weight"] = state.pop("encoder.layers.1.feed_forward.output_dense.weight")
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match="output_dense"):
        load_backbone(f"hf:{tmp_path}")


def test_the_rate_is_that_of_the_extractor(tmp_path: Path) -> None:
    model, made = saved(tmp_path, "wav2vec2, group", sampling_rate=8000)
    backbone = load_backbone(f"hf:{tmp_path}")
    assert backbone.preprocess.spec()["rate"] == 8000
    wave = sound(8, 0.5, 8000).astype(np.float32)
    with torch.inference_mode():
        values = made(wave, sampling_rate=8000, return_tensors="pt")["input_values"]
        expected = model(values).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(feature_of(backbone, clip(wave, 8000)), expected, **EXACT)


def test_settings_may_stand_in_the_file_of_a_processor(tmp_path: Path) -> None:
    saved(tmp_path, "wav2vec2, group", do_normalize=False)
    plain = load_backbone(f"hf:{tmp_path}").preprocess.spec()
    path = tmp_path / "preprocessor_config.json"
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": json.loads(path.read_text())}))
    path.unlink()
    assert load_backbone(f"hf:{tmp_path}").preprocess.spec() == plain
    assert plain["normalize"] == "none"
    (tmp_path / "processor_config.json").unlink()
    with pytest.raises(BackboneError, match=r"has no preprocessor_config\.json"):
        load_backbone(f"hf:{tmp_path}")


DAY = 24 * 3600


@pytest.mark.parametrize(
    ("name", "settings", "word"),
    [
        ("wav2vec2, group", {"sampling_rate": 10**9}, "sampling_rate"),
        ("wav2vec2, group", {"sampling_rate": "16000"}, "sampling_rate"),
        ("wav2vec2, group", {"do_normalize": 1}, "do_normalize"),
        ("wav2vec2, group", {"padding_value": 1.0}, "padding_value"),
        ("wav2vec2, group", {"feature_extractor_type": "SeamlessM4TFeatureExtractor"}, "SeamlessM4T"),
        ("wav2vec2, group", {"auto_map": {"AutoFeatureExtractor": "code.Extractor"}}, "auto_map"),
        ("whisper", {"n_fft": 10**9}, "n_fft"),
        ("whisper", {"chunk_length": DAY}, "chunk_length"),
        ("whisper", {"chunk_length": 0}, "chunk_length"),
        ("whisper", {"hop_length": 10**9}, "hop_length"),
        ("whisper", {"hop_length": 1}, "out of range"),
        ("whisper", {"feature_size": 10**9}, "feature_size"),
        ("whisper", {"feature_size": 128}, "128 bands"),
        ("whisper", {"sampling_rate": 384_000, "chunk_length": 120}, "out of range"),
        ("whisper", {"dither": 1e-5}, "dither"),
        ("ast", {"sampling_rate": 8000}, "sampling_rate"),
        ("ast", {"std": 0}, "std"),
        ("ast", {"max_length": 10**9}, "max_length"),
        ("ast", {"max_length": 1024}, "frames"),
        ("clap", {"truncation": "fusion"}, "fusion"),
        ("clap", {"truncation": "rand"}, "fusion"),
        ("clap", {"padding": "wrap"}, "padding"),
        ("clap", {"max_length_s": DAY}, "max_length_s"),
        ("clap", {"fft_window_size": 1021, "hop_length": 480}, "out of range"),
        ("clap", {"frequency_max": 1e9}, "frequency_max"),
        ("clap", {"frequency_max": float("nan")}, "frequency_max"),
        ("clap", {"frequency_min": 14_000}, "frequency_max"),
    ],
    ids=str,
)
@pytest.mark.rotates(4)
def test_settings_out_of_bounds_are_refused_by_name(
    name: str, settings: dict[str, Any], word: str, models: dict[str, Path]
) -> None:
    """Before memory is taken: a window of a day or a frame of 10^9 samples would need more than there is."""
    path = models[name] / "preprocessor_config.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), **settings}))
    try:
        with pytest.raises(PrecomputeError, match=word) as caught:
            load_backbone(f"hf:{models[name]}")
        assert "preprocessor_config.json" in str(caught.value)
    finally:
        path.write_text(before)


@pytest.mark.parametrize(
    ("name", "settings", "word"),
    [
        ("wav2vec2, group", {"conv_stride": [5, 2, 2, 2, 2, 2, 1000]}, "conv"),
        ("wav2vec2, group", {"conv_kernel": [10, 3]}, "conv"),
        ("wav2vec2, group", {"conv_kernel": "ten"}, "conv_kernel"),
        ("wav2vec2, group", {"conv_kernel": [1024] * 7, "conv_stride": [1000] * 7}, "convolutions"),
        ("wav2vec2, group", {"add_adapter": True}, "add_adapter"),
        ("whisper", {"max_source_positions": 700}, "frames"),
        ("clap", {"audio_config": {"enable_fusion": True}}, "fusion"),
    ],
    ids=str,
)
def test_networks_that_are_not_computed_are_refused_by_name(
    name: str, settings: dict[str, Any], word: str, models: dict[str, Path]
) -> None:
    path = models[name] / "config.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), **settings}))
    try:
        with pytest.raises(PrecomputeError, match=word):
            load_backbone(f"hf:{models[name]}")
    finally:
        path.write_text(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of each kind; whoever changes one brings it back."""
    found = {}
    for name in ("wav2vec2, group", "whisper", "clap", "ast"):
        found[name] = tmp_path_factory.mktemp("model")
        saved(found[name], name)
    return found


@pytest.mark.rotates(3)
def test_windows_of_networks_that_take_one_length_cannot_be_set(models: dict[str, Path]) -> None:
    for name in ("whisper", "clap", "ast"):
        with pytest.raises(UsageError, match="windows of"):
            load_backbone(f"hf:{models[name]}", transform={"window": 5.0})
        assert load_backbone(f"hf:{models[name]}", transform={"hop": 1.0}).preprocess.spec()["hop"] == 1.0


# Preprocessing, beside the library's extractors


@pytest.mark.parametrize("seconds", [0.01, 1.3, 29.999, 30.0])
def test_whispers_spectrogram_is_the_librarys(seconds: float) -> None:
    wave = sound(9, seconds).astype(np.float32)
    wave[len(wave) // 2 :] *= 1e-3
    expected = extractor("whisper")(wave, sampling_rate=RATE, return_tensors="pt")["input_features"]
    preprocess = WhisperPreprocess()
    (made,) = preprocess.windows_of(wave).tensors
    found, _ = preprocess.device()(*(one[None] for one in made))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("seconds", [0.025, 1.0, 1.29])
def test_kaldis_filterbank_is_the_librarys(seconds: float) -> None:
    """Also of silence, whose logarithms are that of the floor, and of a sound with an offset."""
    wave = (sound(9, seconds) + 0.1).astype(np.float32)
    wave[len(wave) // 2 :] = 0
    expected = extractor("ast")(wave, sampling_rate=RATE, return_tensors="pt")["input_values"]
    preprocess = FilterbankPreprocess(1.28, 1.28, frames=128, mels=32, mean=-4.2677393, deviation=4.5689974)
    (made,) = preprocess.windows_of(wave).tensors
    found = preprocess.device()(*(one[None] for one in made))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
@pytest.mark.parametrize("seconds", [0.04, 3.3, 10.0])
def test_claps_spectrogram_is_the_librarys(padding: str, seconds: float) -> None:
    wave = sound(10, seconds, 48_000).astype(np.float32)
    expected = extractor("clap", padding=padding)(wave, sampling_rate=48_000, return_tensors="pt")["input_features"]
    preprocess = ClapPreprocess(padding=padding)
    (made,) = preprocess.windows_of(wave).tensors
    found = preprocess.device()(*(one[None] for one in made))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)  # of decibels


def test_waveforms_are_normalised_to_the_bit_and_padded_behind_that() -> None:
    wave = (3 * sound(11, 0.4) + 0.5).astype(np.float32)
    expected = extractor("wav2vec2")(wave, sampling_rate=RATE, return_tensors="np")["input_values"][0]
    (made,) = WaveformPreprocess().windows_of(wave).tensors
    assert np.array_equal(made[0][: len(wave)].numpy(), expected)
    assert not made[0][len(wave) :].any()
    assert made[1].item() == len(wave)


def test_lengths_of_windows_hold_each_clip() -> None:
    preprocess = WaveformPreprocess()
    assert preprocess.lengths == (10_000, 19_920, 40_080, 80_080, 160_080)
    for samples in (1, 9_999, 10_001, 80_080, 80_081, 160_080, 160_081, 500_000):
        made = preprocess.windows_of(np.ones(samples, np.float32))
        lengths = {len(one[0]) for one in made.tensors}
        assert len(lengths) == 1
        assert lengths <= set(preprocess.lengths)
        assert len(made.tensors) == 1 or lengths == {160_080}
    assert receptive_field((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)) == (400, 320)


class TestWaveformPreprocess(PreprocessContract):
    @pytest.fixture(params=["pool", "keep"])
    def preprocess(self, request: pytest.FixtureRequest) -> Preprocess:
        return WaveformPreprocess(window=1.0, hop=1.0, max_seconds=4.0, windows=request.param)

    @pytest.fixture
    def raws(self) -> list[bytes]:
        return [wav(sound(0, 2.5)), encoded(sound(1, 0.9, 44_100), 44_100, kind="FLAC")]


class TestWhisperPreprocess(TestWaveformPreprocess):
    @pytest.fixture
    def preprocess(self) -> Preprocess:
        return WhisperPreprocess(1.0, 1.0, chunk=1.0)


class TestFilterbankPreprocess(TestWaveformPreprocess):
    @pytest.fixture
    def preprocess(self) -> Preprocess:
        return FilterbankPreprocess(1.28, 1.28, frames=128, mels=32)


class TestClapPreprocess(TestWaveformPreprocess):
    @pytest.fixture
    def preprocess(self) -> Preprocess:
        return ClapPreprocess(1.0, 1.0, chunk=1.0)


@pytest.mark.parametrize("name", ["wav2vec2, group", "whisper", "clap", "ast"])
class TestSoundBackbones(BackboneContract):
    @pytest.fixture
    def backbone(self, name: str, models: dict[str, Path]) -> Backbone:
        return load_backbone(f"hf:{models[name]}")


def test_a_random_network_is_the_same_for_its_seed(models: dict[str, Path]) -> None:
    place = f"hf:{models['wav2vec2, group']}"
    one, again, other = (load_backbone(place, weights=f"random:{seed}") for seed in (1, 1, 2))
    assert one.weights == again.weights != other.weights
    assert network("clap").config.audio_config.enable_fusion is False
