"""The hostile set: every case is refused or skipped with its reason; none crashes, hangs, takes more than 1 GiB, runs
code, or reads a file it names."""

from __future__ import annotations

import faulthandler
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Command, make_image
from forks import Forks
from PIL import Image

SECONDS = 10
MEBIBYTES = 1024
ALLOWED = 2 * 2**30  # of private memory above the start: a runaway ends there, and not with the machine
CANARY = "a-canary-that-nobody-may-read"


# In child processes: the real functions, one case after another


def open_one(path: Path) -> dict[str, Any]:
    from precompute.cache import open_cache, verify

    cache = open_cache(path)
    found = verify(cache)
    columns = [cache.ids, cache.classes, cache.split.tolist(), cache.labels.tolist(), cache.ok.tolist()]
    _ = [cache.column(f"columns/{name}") for name in cache.columns]
    return {"good": found.good.tolist(), "whole": found.whole, "columns": columns, "records": len(cache.provenance)}


def load_one_head(path: Path) -> dict[str, Any]:
    from precompute.prediction import predict

    return {"predictions": len(predict(path, path.parent.parent / "photos" / "plain" / "good.jpg").items)}


def load_one_tail(path: Path) -> dict[str, Any]:
    from precompute.backbones.load import load_backbone
    from precompute.finetuning.tail_file import load_tail

    saved = load_tail(path)
    head: Any = saved.attach(load_backbone("tiny", layer="body")).head
    return {"classes": head.predict(np.zeros((1, *saved.shape), np.float32)).tolist()}


def load_one_checkpoint(path: Path) -> dict[str, Any]:
    from precompute.backbones.load import load_backbone

    return {"digest": load_backbone("tiny", weights=str(path)).weights}


def decode_one(path: Path) -> dict[str, Any]:
    from precompute.inputs.images.decode import decode
    from precompute.inputs.images.transform import Transform
    from precompute.sources.files import read_file

    return {"shape": list(decode(read_file(os.fsencode(path)).data, Transform()).shape)}


FUNCTIONS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "caches": open_one,
    "heads": load_one_head,
    "tails": load_one_tail,
    "weights": load_one_checkpoint,
    "images": decode_one,
}


def try_kinds(folder: Path, kinds: list[str]) -> None:
    """Each kind in a process of its own, which prints into files named after it; forked, to import once for all."""
    warm_up()
    for kind in kinds:
        process = os.fork()
        if process == 0:
            for number, name in enumerate((f"{kind}.out", f"{kind}.err"), start=1):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT, 0o644), number)
            try_all(kind, folder)
            os._exit(0)
        Path(f"{kind}.status").write_text(str(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])))


def try_all(kind: str, folder: Path) -> None:
    """Print a line of JSON before and after each case."""
    from precompute.inputs.images.decode import quiet_pillow

    faulthandler.enable()
    warm_up()  # once more: of memory that is its parent's, a process counts what it has used itself
    before = memory("VmRSS")
    with quiet_pillow():
        for path in sorted((folder / kind).iterdir()):
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            began = time.monotonic()
            limit = memory("VmData") + ALLOWED
            resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
            say({"name": path.name})
            signal.alarm(SECONDS)  # nobody handles it: the process dies, also inside of C
            try:
                told = {"error": "", "message": "", **FUNCTIONS[kind](path)}
            except Exception as error:  # noqa: BLE001 - which one is what the test asks
                message = getattr(error, "message", str(error))
                told = {"error": type(error).__name__, "message": message, "reason": getattr(error, "reason", "")}
            signal.alarm(0)
            told |= {"seconds": time.monotonic() - began, "mebibytes": (memory("VmHWM") - before) >> 20}
            say({"name": path.name, **told})


def say(told: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


def warm_up() -> None:
    """Import what the functions import, which is no case's memory or time."""
    from precompute.backbones.load import load_backbone
    from precompute.cache import open_cache, verify  # noqa: F401
    from precompute.finetuning import tail_file
    from precompute.inputs.images.decode import decode
    from precompute.inputs.images.transform import Transform
    from precompute.prediction import predict  # noqa: F401

    buffer = io.BytesIO()
    make_image(0).save(buffer, "PNG")
    decode(buffer.getvalue(), Transform())
    tail_file.tail_of(load_backbone("tiny", layer="body"), "body")


def memory(name: str) -> int:
    """Bytes, from /proc/self/status."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


# The set and what came of it


def make_set(folder: Path, *options: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        from make_hostile import main

        assert main([str(folder), *options]) == 0
    return folder


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("hostile") / "set"
    yield make_set(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def tried(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it stands what became of the set."""
    return run_kinds(hostile, tmp_path_factory.mktemp("tried"), *FUNCTIONS)


def run_kinds(folder: Path, place: Path, *kinds: str) -> Path:
    (place / "canary_module.py").write_text("import os\nos.mkdir('ran')\nmake = None\n")
    subprocess.run(
        [sys.executable, __file__, str(folder), *kinds],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"},
        timeout=600,
        check=True,
    )
    return place


def outcomes(kind: str, folder: Path, place: Path) -> dict[str, dict[str, Any]]:
    """What the real functions did with each case. All that holds for every case is asserted here."""
    status, output, errors = (
        (place / f"{kind}.{name}").read_text(errors="backslashreplace") for name in ("status", "out", "err")
    )
    lines = [json.loads(line) for line in output.splitlines()]
    assert status == "0", f"{lines[-1:]} ended the process with {status}: {errors}"
    cases = {line["name"]: line for line in lines if "error" in line}
    assert set(cases) == set(os.listdir(folder / kind))
    assert CANARY not in output + errors
    assert not (folder / "ran").exists()
    assert not (place / "ran").exists()
    for name, told in cases.items():
        assert told["mebibytes"] < MEBIBYTES, told
        assert told["seconds"] < SECONDS, told
        assert told["error"] or not told["message"], told
        if told["error"] and kind != "images":
            assert name in told["message"], told
    return cases


# Caches

LINK = "is a link to somewhere else"
STORED = "is not stored contiguously inside the file"
KIND = r"`(features/flatten|samples/label)` is \S.* \("
TRUST = r"its spec cannot be trusted \("
TABLE = "its ids, labels, splits or classes are not those it was made with"
OBJECTS = "holds references or variable-length values"
STRUCTURE = "is damaged: its HDF5 structure cannot be read"
HDF5 = "is not an HDF5 file that can be opened"
REFUSED = {
    r"(soft|external)_link_\w+": LINK,
    r"external_storage\w*|virtual|chunked|gzip|fletcher|compact": STORED,
    "vlen_ids|vlen_numbers|references|regions": OBJECTS,
    "compound|compound_deep|opaque|complex|float64|integers|big_endian|big_endian_labels|scalar_features": KIND,
    "one_dimension|shape_one_more": KIND,
    "null_features": "`features/flatten` has no shape",
    "enum_members": "`samples/status` is an enum, not plain numbers",
    "group_for_dataset|named_type": "`features/flatten` is not a dataset",
    "group_in_itself|layer_not_utf8|layers_other": "it does not hold the layers that its spec names",
    r"layers_(none|no_list|twice|no_text)": r"it does not hold the layers|its spec does not say what its layers are",
    "axes_missing": "`features/flatten`: it has no `axes` attribute",
    "axes_vlen": "`features/flatten`: its attribute `axes` has an unexpected type",
    "axes_other|pooling_other|axes_more": "axes and pooling of `features/flatten` are not those that its spec names",
    "columns_3000": "it holds 3002 further columns",
    "columns_vlen": OBJECTS,
    "columns_(short|complex|wide)": r"`columns/site` is \S* ?\(|is truncated: `columns/site` ends at byte",
    "columns_without_digest": "`columns/site`: it has no `digest` attribute",
    "column_digest_other|column_changed": "its column `columns/site` is not the one it was made with",
    "requires_x": "requires 'x', which this precompute does not know",
    "requires_escape": r"requires '\\x1b\]0;owned\\x07', which this precompute does not know",
    r"requires_(text|numbers|deep|not_utf8)": "its attribute `requires` cannot be understood",
    "dataset_for_group": "`checksums` is not a group",
    "layer_twice|offset_in_the_digests": "overlap",
    "layers_3000": "it holds 3001 layers",
    "no_layers": "it holds 0 layers",
    "no_checksums": "`checksums/flatten` is missing",
    "root_in_itself": "`samples/id` is missing|is not a column",
    "no_table|of_another_kind|requires_missing": r"it has no `\w+` attribute",
    r"version_\w+|format_vlen|table_reference|spec_in_dense_storage": r"its attribute `\w+` has an unexpected type",
    "format_other": "its format is",
    "newer": "has format version 2; this precompute reads version 1",
    r"spec_(?!in_dense)\w+|key_other": TRUST,
    r"table_(other|short)|labels_swapped|ids_swapped|class_renamed|split_changed": TABLE,
    r"forged_label_\w+": "it has labels without a class",
    "never_written|array_type|long_ids|offset_undefined": "is truncated: `[a-z/]+` ends at byte",
    r"offset_(?!in_the_digests|undefined)\w+|\w+_2_to_\d+": f"{STRUCTURE}|is truncated: ",  # by HDF5
    "shape_empty|rows_none": f"{STRUCTURE}|{KIND}",  # HDF5 1.14 can read it
    r"cut_\d+|random_bytes|signature_and_noise|empty|zeros|text|loop": HDF5,
    "rows_10_to_10": "the names of its 10,000,000,000 samples were never written",
    "folder|fifo|zero": "is not an ordinary file",
    "nowhere": "does not exist",
    "int8_no_scales": "`scales` is missing",
    "int8_no_scales_of_maps": "`scales/maps` is missing",
    "int8_scales_no_group": "`scales` is not a group",
    r"int8_scales_(short|of_one_channel|of_positions|float64|big_endian)|int8_other_channel": (
        r"`scales/maps` is \S+ \(.*\), not float32 \(6, [23], 2\)"
    ),
    "int8_scales_are_the_vectors": r"`scales/maps` is float16 \(6, 3\), not float32 \(6, 3, 2\)",
    "int8_scales_vlen": OBJECTS,
    "int8_scales_chunked": STORED,
    "int8_scales_never_written": "is truncated: `scales/maps` ends at byte",
    "int8_scales_(external|soft)": LINK,
    "int8_codes_signed|int8_codes_float32": r"`features/maps` is \S+ \(",
    "int8_codes_of_the_vector": r"`features/vector` is uint8 \(",
    "int8_no_channel|int8_two_channels": "none of its layers has channels with positions",
    "int8_not_required|int8_not_in_spec|int8_storage_no_text": "does not say whether it holds 8 bits",
}
OPENED = {
    "good|attributes_1000|unknown_members|later_split|followed_by_more|user_block|layer_escape|layer_long": [
        0,
        1,
        2,
        3,
        4,
        5,
    ],
    r"provenance_(?!2_to)\w+": [0, 1, 2, 3, 4, 5],
    r"forged_ids_\w+": [0, 1, 2, 3, 4, 5],  # whoever made them says so himself
    "nan_in_a_good_row|status_unknown": [1, 2, 3, 4, 5],
    "rows_exchanged": [2, 3, 4, 5],
    "int8_good": [0, 1, 2, 3, 4, 5],
    r"int8_forged_\w+": [1, 2, 3, 4, 5],
    "int8_scale_changed": [0, 2, 3, 4, 5],
}


@pytest.mark.slow
def test_caches_are_refused_by_name_or_hold_only_right_rows(hostile: Path, tried: Path) -> None:
    cases = outcomes("caches", hostile, tried)
    assert len(cases) > 100
    good = cases["good.h5"]
    assert good["whole"]
    for file, told in cases.items():
        name = file.removesuffix(".h5")
        if rows := [rows for pattern, rows in OPENED.items() if re.fullmatch(pattern, name)]:
            assert told["error"] == "", told
            assert told["good"] == rows[0]
            assert name.startswith(("forged", "later")) or told["columns"][:4] == good["columns"][:4]
            assert told["whole"] == (len(rows[0]) == 6 and not name.startswith("forged"))
            continue
        why = [message for pattern, message in REFUSED.items() if re.fullmatch(pattern, name)]
        assert len(why) == 1, f"{name}: {told}"
        assert told["error"] == "CacheFormatError", told
        assert re.search(why[0], told["message"]), f"{why[0]}: {told}"


# Heads and weights


@pytest.mark.slow
def test_tails_are_refused_and_run_nothing(hostile: Path, tried: Path) -> None:
    cases = outcomes("tails", hostile, tried)
    assert len(cases) > 50
    reasons = {
        "folder|loop": "cannot be read: ",
        "fifo|zero": "is not a regular file",
        "factory": "is code: canary_module:make",
        "spec_\\w+|weights_other": "was trained behind",
        r"arrays_(missing|more|other)|layer_behind": "does not hold the parameters of the tail",
        "layer_nowhere": "no layer",
        "layer_number": "no layer|does not hold",
        "width": "takes 7 features",
        r"shape_(other|huge)": "does not take|holds more than",
        r"\w*": "is not (a whole tail file|a tail that this precompute reads): .",
    }
    for file, told in cases.items():
        name = file.removesuffix(".safetensors")
        if name == "good":
            assert told["classes"], told
            continue
        why = next(why for pattern, why in reasons.items() if re.fullmatch(pattern, name))
        assert told["error"] in ("HeadFormatError", "HeadMismatchError", "HeadError", "BackboneError"), told
        assert re.search(why, told["message"]), told


@pytest.mark.slow
def test_heads_are_refused_and_run_nothing(hostile: Path, tried: Path) -> None:
    cases = outcomes("heads", hostile, tried)
    assert len(cases) > 65
    reasons = {
        "spec_code": "names a backbone that is code: canary_module:make",
        r"spec_(foreign_weights|huge_transform)": "no longer at",
        r"spec_(none|no_object)": "does not say which features it was trained on",
        r"(multilabel-)?(logistic|mlp|knn|ridge)|centroid|(mlp|knn|ridge)-regression": "does not say which features",
        "selected|attentive": "does not say which features",
        r"layers_\w+": "The list of layers in the head",
        "folder|loop": "cannot be read: ",
        "fifo|zero": "is not a regular file",
        r"\w*": "is not (a whole head file|a head that this precompute reads): .",
    }
    for file, told in cases.items():
        name = file.removesuffix(".safetensors")
        why = next(message for pattern, message in reasons.items() if re.fullmatch(pattern, name))
        assert re.search(why, told["message"]), told
        assert told["error"] in ("HeadFormatError", "HeadMismatchError", "HeadError"), told


@pytest.mark.slow
def test_weights_are_refused_and_run_nothing(hostile: Path, tried: Path) -> None:
    cases = outcomes("weights", hostile, tried)
    assert len(cases) > 60
    reasons = {
        r"code|code_legacy|zip_with_code": r"it holds Python objects \(posix.mkdir\)",
        "pickle|joblib": "it is not a checkpoint, or is damaged",
        "header_200_mb|header_many_tensors|tensors_300000": "its header has .* more than the limit",
        "twice": "names a tensor twice",
        r"sparse_(256_gb|legacy|zip|tar)": "of its [0-9,]+ bytes, most were never written",
        r"\w+_2_to_40|sparse_tensor|complex|float8": "'a', torch.* is not stored as plain numbers",
        "deep_key|deep_key_legacy|many_lists_legacy": "its pickle has more than 50,000 tuples or",
        "many_sets|pickle_in_capitals": "its pickle has .* more than the limit",
        "zip_bomb": "it is compressed, or its records overlap: it would take 2,147,48",
        "records_overlap": "it is compressed, or its records overlap",
        r"two_pickles\w*": "two records of one name",
        r"archive_\w+|two_directories": "truncated, or is followed by something else",
        "records_10_to_6": "its directory has .* more than the limit",
        "name_with_nul": "directory of its zip archive is damaged",
        "pickle_nowhere": "no data.pkl",
        "deep_list|huge_memo|names_no_strings": "holds no state dict",
        "zip|legacy|plain": "do not fit tiny",
        "folder|fifo|zero": "is not a file",
        "loop": "cannot be read: Too many levels",
        r"\w*": "cannot be loaded safely: .",
    }
    for file, told in cases.items():
        why = next(message for pattern, message in reasons.items() if re.fullmatch(pattern, file.split(".")[0]))
        assert told["error"] == "WeightsError", told
        assert re.search(why, told["message"]), f"{why}: {told}"


# Images

EITHER = "decoded or not"
IMAGES = {
    r"lying_\w+|one_pixel_\w+|tile_\w+": "TOO_LARGE",
    "j2k_(lying|large|blocks|precincts|layers|tiles_without_end)|avif_smaller_than_said": "TOO_LARGE|UNREADABLE",
    r"j2k_(tiles_missing|components\w*|box_without_end)": "TRUNCATED|UNREADABLE",
    "heif": "UNDECODABLE",
    # Whatever its decoder makes of it, in less than a gibibyte
    "j2k_empty|avif_larger_than_said": EITHER,
    "scans_10000": "TOO_LARGE",
    r"text_bomb\w*|profile_bomb|chunks_empty|chunk_2_to_31|bmp_\w+|strip_to_itself": "TRUNCATED",
    "directory_65535|strips_2_to_32|no_pixels|nothing|postscript|svg|xpm": "UNDECODABLE",
    "big_tiff_loop": "UNDECODABLE|TRUNCATED",  # by Pillow's release
    # The first picture is whole; what stands behind it is not read.
    r"cut_(animated.(gif|png)|several.(jpg|tif))": "",
    r"cut_\S+": "TRUNCATED|UNDECODABLE",
    r"frames_\w+|blocks_gif|directory_(loop|of_itself)|exif_loop|mpf_lying|markers_200000|profiles_255": "",
    r"pixels_too_many|polyglot_\w+|strip_bomb": "",
    "tag_2_to_32": "|UNDECODABLE",  # by Pillow's release
}


@pytest.mark.slow
def test_images_are_refused_with_a_reason_or_decoded(hostile: Path, tried: Path) -> None:
    cases = outcomes("images", hostile, tried)
    assert len(cases) > 75
    for name, told in cases.items():
        wanted = next((reason for pattern, reason in IMAGES.items() if re.fullmatch(pattern, name)), None)
        assert wanted is not None, told
        if not told["error"]:
            assert wanted == EITHER or re.fullmatch(wanted, ""), told
            assert told.get("shape") == [3, 224, 224], told
        elif wanted != EITHER:
            assert told["error"] == "SampleError", told
            assert re.fullmatch(wanted, told["reason"]), told
            assert told["message"], told


@pytest.mark.slow
@pytest.mark.daily(2)
def test_images_of_a_hundred_million_pixels_stay_below_a_gibibyte(tmp_path: Path) -> None:
    largest = make_set(tmp_path / "set", "--largest")
    cases = outcomes("images", largest, run_kinds(largest, tmp_path, "images"))
    reasons = {name: told["reason"] for name, told in cases.items() if told["error"]}
    assert reasons == {"cmyk_progressive": "TOO_LARGE", "webp_beyond": "TOO_LARGE"}


@pytest.mark.rotates(5)
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "RGB"])
def test_large_pictures_that_are_made_in_strips_have_no_seam(mode: str) -> None:
    """Strips keep memory low; the pixels are those of the whole picture made at once."""
    from precompute.inputs.images.decode import STRIP_PIXELS, decode
    from precompute.inputs.images.transform import Transform

    generator = np.random.default_rng(0)
    width, height = 1300, 1100
    assert width * height > STRIP_PIXELS
    noise = generator.integers(0, 256, (height, width, 4), dtype=np.uint8)
    transform, exif = Transform(resize=1100, crop=1000), Image.Exif()
    exif[0x0112] = 6
    if mode == "I;16":
        deep = generator.integers(0, 65536, (height, width), dtype=np.uint16)
        image, options = Image.fromarray(deep), {}
        grey = np.round(deep / 257).astype(np.uint8)
        whole = Image.fromarray(grey).convert("RGB")
    else:
        image = Image.fromarray(noise)
        image = image.convert("RGB").quantize(16) if mode == "P" else image.convert(mode)
        options = {"transparency": 3} if mode == "P" else {}
        image.info.update(options)
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        whole = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif, **options)
    expected = transform.apply_pil(whole.transpose(Image.Transpose.ROTATE_270))
    assert bool((decode(buffer.getvalue(), transform) == expected).all())
    if mode == "RGB":
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", exif=exif)
        pixels = np.array(Image.open(buffer).transpose(Image.Transpose.ROTATE_270))
        expected = transform.apply_tensor(torch.from_numpy(pixels).permute(2, 0, 1))
        assert bool((decode(buffer.getvalue(), transform) == expected).all())


# A source folder

BROKEN = {
    b"plain/canary.jpg": "UNDECODABLE",
    b"plain/cut.jpg": "TRUNCATED",
    b"plain/empty.png": "UNDECODABLE",
    b"plain/lying.png": "TOO_LARGE",
    b"plain/sparse.jpg": "UNREADABLE",
    b"plain/text.jpg": "UNDECODABLE",
}


@pytest.mark.rotates(3)
def test_a_folder_of_traps_is_extracted_and_no_name_is_lost(forks: Forks, hostile: Path, tmp_path: Path) -> None:
    from precompute.cache import Status, open_cache, verify

    photos = hostile / "photos"
    status = forks.run(tmp_path, "extract", photos, "-b", "tiny", "-o", "out.h5", "--json")
    output, errors = forks.output.read_text(), forks.errors.read_text()
    assert status == 3, errors
    assert "Traceback" not in errors
    assert CANARY not in output + errors
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e\u2066]", errors), "a name may not command the terminal"
    told = json.loads(output)
    odd = os.listdir(os.fsencode(photos / "odd \udcff\nclass"))
    assert len(odd) >= 18
    deep = b"plain/" + b"deep/" * 60 + b"bottom.jpg"
    expected = sorted([*(b"odd \xff\nclass/" + name for name in odd), b"plain/good.jpg", deep, *BROKEN])
    cache = open_cache(tmp_path / "out.h5")
    assert cache.column("samples/id").tolist() == expected
    assert [os.fsencode(name) for name in cache.ids] == expected
    assert [os.fsencode(name) for name in cache.classes] == [b"odd \xff\nclass", b"plain"]
    found = {os.fsencode(name): Status(code).name for name, code in zip(cache.ids, cache.status, strict=True)}
    assert found == {name: BROKEN.get(name, "OK") for name in expected}
    assert verify(cache).whole
    assert told["rows"] == len(expected)


# The command line


@pytest.mark.rotates(6)
@pytest.mark.parametrize("name", ["external_link_group", "rows_10_to_10", "zero", "fifo", "spec_deep", "cut_07"])
@pytest.mark.parametrize("command", ["verify", "info"])
def test_commands_refuse_caches_without_a_traceback(
    hostile: Path, precompute: Command, command: str, name: str
) -> None:
    done = precompute(command, hostile / "caches" / f"{name}.h5")
    assert done.returncode == 1
    assert f"{name}.h5" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize("name", ["pickle", "spec_code", "header_2_to_63", "sparse_100_gb"])
def test_predict_refuses_heads_without_a_traceback(hostile: Path, precompute: Command, name: str) -> None:
    done = precompute("predict", hostile / "heads" / f"{name}.safetensors", hostile / "photos" / "plain")
    assert done.returncode == 1
    assert f"{name}.safetensors" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.rotates(3)
@pytest.mark.parametrize("name", ["code.pth", "zip_bomb.pth", "meta_2_to_40.pth", "header_2_to_63.safetensors"])
def test_extract_refuses_weights_without_a_traceback(hostile: Path, precompute: Command, name: str) -> None:
    photos, weights = hostile / "photos" / "plain", hostile / "weights" / name
    done = precompute("extract", photos, "-b", "tiny", "--weights", weights, "-o", "out.h5")
    assert done.returncode == 1
    assert name in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


if __name__ == "__main__":
    try_kinds(Path(sys.argv[1]), sys.argv[2:])
