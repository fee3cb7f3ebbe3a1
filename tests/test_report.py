"""A report of a cache and its heads: the same scores as `train-head`, and every sample where it belongs."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command, make_image
from PIL import Image
from sklearn.metrics import average_precision_score, confusion_matrix, mean_absolute_error

from precompute import compare, extract, fine_tune, import_features, load_head, open_cache, report, train_head
from precompute.errors import CacheError, HeadMismatchError, SourceError, TrainingError, UsageError
from precompute.heads import save_head
from precompute.reports.commands import without_folders

DATA = re.compile(r'<script type="application/json" id="document">(.*?)</script>', re.DOTALL)
PLAIN: dict[str, Any] = {"map": "none", "thumbnails": 0}


def document_in(page: Path) -> dict[str, Any]:
    found = json.loads(DATA.search(page.read_text())[1])
    assert isinstance(found, dict)
    return found


def made(out: Path, cache: Path, *heads: Path, **options: Any) -> dict[str, Any]:
    report(cache, heads, out / "report.html", **options)
    return document_in(out / "report.html")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 photos of three classes in train and val, hard to tell apart; one of val lies in train as well, and one of
    train under two classes. p.h5 of them, and three heads with what `train_head` said of them."""
    place = tmp_path_factory.mktemp("report")
    for number in range(90):
        image = make_image(number)
        image.paste((40 + 30 * (number % 3), 90, 120), (0, 0, 18, 14))
        out = place / "photos" / ("train" if number < 50 else "val") / "abc"[number % 3]
        out.mkdir(parents=True, exist_ok=True)
        image.save(out / f"{number}.png")
    shutil.copy(place / "photos/train/a/0.png", place / "photos/val/a/twin.png")
    shutil.copy(place / "photos/train/b/1.png", place / "photos/train/c/twin.png")
    extract(place / "photos", place / "p.h5", backbone="tiny")
    told = {
        "logistic": train_head(place / "p.h5", place / "logistic.safetensors", C=1.0, calibrated=True),
        "mlp": train_head(place / "p.h5", place / "mlp.safetensors", head="mlp", max_epochs=4, hidden=(8,)),
        "knn": train_head(place / "p.h5", place / "knn.safetensors", head="knn", k=3, similarity=0.99),
    }
    (place / "told.json").write_text(json.dumps({name: one.to_dict() for name, one in told.items()}))
    return place


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "told.json").read_text())
    return found


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The document of all three heads, compared, with map and pictures."""
    heads = [folder / f"{name}.safetensors" for name in ("logistic", "mlp", "knn")]
    return made(tmp_path_factory.mktemp("whole"), folder / "p.h5", *heads, compare=True)


def heads_of(document: dict[str, Any]) -> dict[str, Any]:
    return {head["kind"]: head for head in document["heads"]}


def predictions(folder: Path, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of val, their probabilities by the head's own file, and their classes."""
    cache = open_cache(folder / "p.h5")
    rows = np.flatnonzero(cache.split == "val")
    proba = load_head(folder / f"{kind}.safetensors").predict_proba(np.array(cache.features()[rows]))
    return rows, proba, cache.labels[rows]


def test_scores_are_those_of_train_head(whole: dict[str, Any], told: dict[str, Any]) -> None:
    for kind, head in heads_of(whole).items():
        (scored,) = head["scored"]
        then = told[kind]["scores"]["val"]
        values = {one["name"]: one for one in scored["metrics"]}
        assert scored["verdict"]["value"] == then["accuracy"]
        assert scored["verdict"]["interval"] == then["accuracy_interval"]
        for name, called in (("macro_f1", "macro F1"), ("log_loss", "log loss"), ("auc", "AUC, one vs rest")):
            assert values[called]["value"] == then[name]
            assert values[called]["interval"] == then["intervals"][name]
        assert scored["per_class"][1]["recall_interval"] == then["per_class"][1]["recall_interval"]
        assert scored["reliability"]["ece"] == then["calibration_error"]
        assert scored["reliability"]["temperature"] == told[kind]["calibration"]["temperature"]
        assert scored["reliability"]["applied"] == (kind == "logistic")
        leaks = told[kind]["leaks"]["val"]
        assert [scored["leaks"][name] for name in ("identical", "near", "similarity")] == [
            leaks["identical"],
            len(leaks["near"]),
            leaks["similarity"],
        ]
        without = told[kind]["without_leaks"]["val"]
        assert (scored["leaks"]["without"]["value"], scored["leaks"]["without"]["n"]) == (
            without["accuracy"],
            without["n"],
        )


def test_the_matrix_and_its_cells(whole: dict[str, Any], folder: Path) -> None:
    ids = whole["samples"]["id"]
    cache = open_cache(folder / "p.h5")
    for kind, head in heads_of(whole).items():
        rows, proba, true = predictions(folder, kind)
        (scored,) = head["scored"]
        said = proba.argmax(axis=1)
        assert scored["confusion"]["matrix"] == confusion_matrix(true, said, labels=[0, 1, 2]).tolist()
        items = scored["items"]
        assert [ids[place] for place in items["place"]] == [cache.ids[row] for row in rows]
        assert items["true"] == true.tolist()
        assert items["predicted"] == said.tolist()
        np.testing.assert_allclose(items["probability"], proba.max(axis=1), atol=1e-5)
        seen = 0
        for cell, members in scored["confusion"]["cells"].items():
            i, j = map(int, cell.split(","))
            assert len(members) == scored["confusion"]["matrix"][i][j]
            assert {(items["true"][one], items["predicted"][one]) for one in members} == {(i, j)}
            order = proba.max(axis=1)[members]
            assert (np.diff(order) <= 0).all()
            seen += len(members)
        assert seen == len(rows)
        wrong = np.flatnonzero(true != said)
        assert sorted(scored["mistakes"]) == wrong.tolist()
        assert (np.diff(proba.max(axis=1)[scored["mistakes"]]) <= 0).all()


def test_reliability_by_hand(whole: dict[str, Any], folder: Path) -> None:
    _, proba, true = predictions(folder, "logistic")
    confidence, right = proba.max(axis=1).astype(np.float64), proba.argmax(axis=1) == true
    found = heads_of(whole)["logistic"]["scored"][0]["reliability"]
    gap = 0.0
    for one in found["bins"]:
        inside = (confidence > one["low"]) & (confidence <= one["high"])
        assert one["n"] == inside.sum()
        if one["n"]:
            assert one["accuracy"] == right[inside].mean()
            assert one["confidence"] == pytest.approx(confidence[inside].mean())
            assert one["interval"][0] <= one["accuracy"] <= one["interval"][1]
            gap += inside.sum() * abs(one["accuracy"] - one["confidence"])
    assert found["ece"] == pytest.approx(gap / len(true))


def test_pairs_and_duplicates(whole: dict[str, Any]) -> None:
    ids = whole["samples"]["id"]
    pairs = heads_of(whole)["logistic"]["scored"][0]["leaks"]["pairs"]
    identical = [pair for pair in pairs if pair["kind"] == "identical"]
    assert [(ids[pair["a"]], ids[pair["b"]], pair["same_class"]) for pair in identical] == [
        ("val/a/twin.png", "train/a/0.png", True)
    ]
    near = [pair["similarity"] for pair in pairs if pair["kind"] == "near"]
    assert near == sorted(near, reverse=True)
    duplicates = whole["duplicates"]
    assert [{ids[place] for place in group} for group in duplicates["two_labels"]] == [
        {"train/b/1.png", "train/c/twin.png"}
    ]
    assert [{ids[place] for place in group} for group in duplicates["identical"]] == [
        {"train/a/0.png", "val/a/twin.png"}
    ]
    assert (duplicates["n_two_labels"], duplicates["n_identical"]) == (1, 1)


def test_the_map(whole: dict[str, Any], folder: Path) -> None:
    drawn, ids = whole["map"], whole["samples"]["id"]
    cache = open_cache(folder / "p.h5")

    def unpacked(name: str, dtype: str) -> np.ndarray:
        return np.frombuffer(base64.b64decode(drawn[name]), dtype)

    places = unpacked("place", "<u4")
    assert (drawn["rows"], drawn["of"], drawn["drawn"]) == (92, 92, "all rows")
    assert [ids[place] for place in places] == cache.ids
    assert unpacked("label", "<i2").tolist() == cache.labels.tolist()
    assert [whole["splits"][code] for code in unpacked("split", "i1")] == cache.split.tolist()
    x, y = unpacked("x", "<u2"), unpacked("y", "<u2")
    assert max(int(np.ptp(x)), int(np.ptp(y))) == 65535
    rows, proba, true = predictions(folder, "knn")
    right = np.frombuffer(base64.b64decode(drawn["right"]["knn.safetensors"]), "i1")
    assert right[rows].tolist() == (proba.argmax(axis=1) == true).tolist()
    assert set(np.delete(right, rows).tolist()) == {-1}


def test_pictures_are_small_and_those_of_their_samples(whole: dict[str, Any], folder: Path) -> None:
    ids, media = whole["samples"]["id"], whole["media"]
    assert media["kind"] == "image"
    assert len(media["of"]) == 92
    for place, uri in list(media["of"].items())[::7]:
        head, _, data = uri.partition(",")
        assert head == "data:image/jpeg;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        with Image.open(folder / "photos" / ids[int(place)]) as original:
            assert picture.size == original.size
            apart = np.abs(np.asarray(picture, float) - np.asarray(original.convert("RGB"), float))
        assert apart.mean() < 12
        assert "exif" not in picture.info


def test_heads_are_compared_in_pairs(whole: dict[str, Any], folder: Path) -> None:
    found = whole["comparison"]
    assert [(pair["a"], pair["b"]) for pair in found["pairs"]] == [(0, 1), (0, 2), (1, 2)]
    alone = compare(folder / "logistic.safetensors", folder / "knn.safetensors", folder / "p.h5").result
    pair = found["pairs"][1]
    assert (pair["difference"], tuple(pair["interval"]), pair["p"]) == (
        alone.difference,
        alone.interval,
        alone.p_value,
    )
    said = [predictions(folder, kind)[1].argmax(axis=1) for kind in ("logistic", "mlp", "knn")]
    rows = predictions(folder, "knn")[0]
    differ = [i for i in range(len(rows)) if len({int(one[i]) for one in said}) > 1]
    ids = open_cache(folder / "p.h5").ids
    assert [whole["samples"]["id"][one["place"]] for one in found["disagree"]] == [ids[rows[i]] for i in differ]
    assert [one["predicted"] for one in found["disagree"]] == [[int(one[i]) for one in said] for i in differ]


@pytest.mark.parametrize("by", ["groups", "groups_column"])
def test_heads_are_compared_by_the_groups_of_their_training(table: Path, tmp_path: Path, by: str) -> None:
    given: dict[str, Any] = {by: r"^(\d)" if by == "groups" else "person"}
    heads = [tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "c.safetensors"]
    train_head(table / "t.h5", heads[0], C=1.0, **given)
    train_head(table / "t.h5", heads[1], head="knn", k=7, **given)
    (tmp_path / "g.csv").write_text(
        "id,group\n" + "".join(f"{n}.png,{str(n)[0] if by == 'groups' else n // 4}\n" for n in range(60))
    )
    train_head(table / "t.h5", heads[2], head="centroid", groups_file=tmp_path / "g.csv")
    found = made(tmp_path, table / "t.h5", *heads[:2], compare=True, **PLAIN)["comparison"]["pairs"]
    alone = compare(heads[0], heads[1], table / "t.h5", groups_file=tmp_path / "g.csv")
    assert [(pair["groups"], pair["interval"], pair["p"], pair["notes"]) for pair in found] == [
        (alone.groups, list(alone.result.interval), alone.result.p_value, [])
    ]
    mixed = made(tmp_path, table / "t.h5", heads[0], heads[2], compare=True, **PLAIN)["comparison"]["pairs"]
    assert mixed[0]["groups"] is None
    assert "trained with groups, but compared image by image" in mixed[0]["notes"][0]


def test_heads_that_disagree_on_many_samples(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    split = np.repeat(["train", "test"], [200, 1400])
    np.savez(
        tmp_path / "f.npz",
        features=rng.normal(size=(1600, 4)).astype(np.float32),
        id=[f"{n:04d}" for n in range(1600)],
        label=np.array(["x", "y"])[rng.integers(0, 2, 1600)],
        split=split,
    )
    import_features(tmp_path / "f.npz", tmp_path / "f.h5", name="made")
    heads = [tmp_path / "one.safetensors", tmp_path / "other.safetensors"]
    train_head(tmp_path / "f.h5", heads[0], head="centroid", metric="euclidean")
    train_head(tmp_path / "f.h5", heads[1], head="knn", k=1)
    found = made(tmp_path, tmp_path / "f.h5", *heads, compare=True, **PLAIN)
    cache = open_cache(tmp_path / "f.h5")
    features = np.array(cache.features())[200:]
    one, other = (load_head(head).head.predict(features) for head in heads)
    differ = [f"{n + 200:04d}" for n in np.flatnonzero(one != other)]
    listed = [found["samples"]["id"][item["place"]] for item in found["comparison"]["disagree"]]
    assert found["comparison"]["n_disagree"] == len(differ) > 500
    assert len(listed) == len(set(listed)) == 500
    assert listed == sorted(set(listed) & set(differ))
    assert (listed[0], listed[-1]) == (differ[0], differ[-1])


def test_curves_of_epochs(whole: dict[str, Any], folder: Path) -> None:
    curves = [curve for curve in whole["curves"] if curve["kind"] == "history"]
    history = load_head(folder / "mlp.safetensors").head.history_
    assert [curve["y"] for curve in curves] == ["cross-entropy", "accuracy"]
    assert [point[:2] for point in curves[0]["lines"][0]["points"]] == [
        [one["epoch"], one["train_loss"]] for one in history
    ]


def test_how_it_was_made(whole: dict[str, Any], folder: Path, precompute: Command, tmp_path: Path) -> None:
    made_by = whole["made_by"]
    assert made_by["key"] == open_cache(folder / "p.h5").key
    assert ["backbone", "tiny"] in made_by["settings"]
    assert made_by["source"] == "photos"
    extracted, *trained, last = made_by["commands"]
    assert extracted == "precompute extract photos --backbone tiny -o p.h5"
    assert last.startswith("precompute report p.h5 logistic.safetensors mlp.safetensors knn.safetensors")
    # Each command makes the head again.
    for name in ("p.h5",):
        shutil.copy(folder / name, tmp_path / name)
    for command in trained:
        done = precompute(*command.split()[1:])
        assert done.returncode == 0, done.stderr
    for name in ("logistic", "mlp", "knn"):
        again, then = (load_head(where / f"{name}.safetensors") for where in (tmp_path, folder))
        assert again.metadata["training"]["scores"] == then.metadata["training"]["scores"]


def test_the_commands_that_make_it_again(folder: Path, precompute: Command, tmp_path: Path) -> None:
    """With --limit, a protocol, labels of a table and every option of the report, from another folder."""
    for number in range(60):
        out = tmp_path / "photos" / ("train", "val", "test")[number % 3]
        out.mkdir(parents=True, exist_ok=True)
        shutil.copy(
            folder / "photos/train" / "abc"[number % 3] / f"{number % 50 // 3 * 3 + number % 3}.png",
            out / f"{number}.png",
        )
    extract(tmp_path / "photos", tmp_path / "f.h5", backbone="tiny", limit=54)
    ids = open_cache(tmp_path / "f.h5").ids
    (tmp_path / "the labels.csv").write_text(
        "id,label\n" + "".join(f"{name},{'xy'[n % 2]}\n" for n, name in enumerate(ids))
    )
    (tmp_path / "g.csv").write_text("id,group\n" + "".join(f"{name},{n}\n" for n, name in enumerate(ids)))
    labels = {"labels": tmp_path / "the labels.csv"}
    train_head(tmp_path / "f.h5", tmp_path / "a.safetensors", protocol="simclr:caltech101", **labels)
    train_head(tmp_path / "f.h5", tmp_path / "b.safetensors", head="knn", k=3, **labels)
    given = {"compare": True, "map": "none", "seed": 7, "thumbnails": 9, "groups_file": tmp_path / "g.csv"}
    heads = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    then = made(tmp_path, tmp_path / "f.h5", *heads, layer=open_cache(tmp_path / "f.h5").layers[0], **labels, **given)
    commands = then["made_by"]["commands"]
    assert "--limit 54" in commands[0]
    assert "--protocol simclr:caltech101" in commands[1]
    assert str(tmp_path) not in "".join(commands)
    for name in ("f.h5", "a.safetensors", "b.safetensors", "report.html"):
        (tmp_path / name).unlink()
    for command in commands:
        done = precompute(*shlex.split(command)[1:])
        assert done.returncode == 0, done.stderr
    again = document_in(tmp_path / "report.html")
    assert again["comparison"] == then["comparison"]
    assert again["made_by"]["commands"] == commands
    assert len(again["media"]["of"]) == 9


def test_nothing_of_this_machine_is_in_it(folder: Path, tmp_path: Path) -> None:
    made(tmp_path, folder / "p.h5", folder / "knn.safetensors", folder / "mlp.safetensors", map="none", compare=True)
    page = (tmp_path / "report.html").read_text()
    assert str(folder) not in page
    assert str(tmp_path) not in page
    assert socket.gethostname() not in json.dumps(document_in(tmp_path / "report.html")["made_by"])


def test_notes_name_no_folders(table: Path, tmp_path: Path) -> None:
    """Of a comparison, of the table of labels, and in heads that hold the path of one."""
    secret = tmp_path / "of anna"
    secret.mkdir()
    (secret / "l.csv").write_text("id,label\n" + "".join(f"{n}.png,{'xy'[n % 2]}\n" for n in range(60)))
    heads = [secret / "one.safetensors", secret / "other.safetensors"]
    for head, k in zip(heads, (3, 5), strict=True):
        train_head(table / "t.h5", head, labels=secret / "l.csv", head="knn", k=k)
    saved = load_head(heads[0])
    assert "60 of 60 samples are in l.csv, which has 60 rows" in saved.metadata["training"]["notes"]
    saved.metadata["training"]["notes"] = [f"60 of 60 samples are in {secret}/l.csv, which has 60 rows, by path"]
    saved.metadata["training"]["selected_on"] = "hold-out"
    save_head(heads[0], saved.head, metadata=saved.metadata, overwrite=True)
    found = made(tmp_path, table / "t.h5", *heads, labels=secret / "l.csv", compare=True, **PLAIN)
    assert found["heads"][0]["notes"] == ["60 of 60 samples are in l.csv, which has 60 rows, by path"]
    assert found["comparison"]["pairs"][0]["notes"] == [
        "hold-out chose a setting of one.safetensors, so its score is optimistic"
    ]
    assert "anna" not in json.dumps(found)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("labels from /a b/c.csv: 3 classes", "labels from c.csv: 3 classes"),
        ("numbers from ../c.csv, -1.5 to 2e+06", "numbers from c.csv, -1.5 to 2e+06"),
        ("the input of the classifier is kept in /a/b c/d.h5", "the input of the classifier is kept in d.h5"),
        ("see '/home/anna/x/notes.txt', or ~/x/y.csv", "see 'notes.txt', or y.csv"),
        ("labels from column a/b: 3 classes", None),
        ("labels from 2 columns, several a sample: /m/09x 3, a/b 4", None),
        ("train/val share s3://bucket/a/b.png", None),
    ],
)
def test_words_without_folders(text: str, shown: str | None) -> None:
    assert without_folders(text) == (shown or text)


def test_it_is_the_same_again_but_for_its_date(folder: Path, tmp_path: Path) -> None:
    one, other = (made(tmp_path, folder / "p.h5", folder / "mlp.safetensors", thumbnails=20) for _ in range(2))
    assert len(one["media"]["of"]) == 20
    assert {**one, "made": ""} | {"map": {**one["map"], "seconds": 0}} == {**other, "made": ""} | {
        "map": {**other["map"], "seconds": 0}
    }


def test_without_heads(folder: Path, tmp_path: Path) -> None:
    found = made(tmp_path, folder / "p.h5", map="none")
    assert found["heads"] == []
    assert found["comparison"] is None
    assert found["classes"] == ["a", "b", "c"]
    cache = open_cache(folder / "p.h5")
    counts = [[int(((cache.labels == k) & (cache.split == s)).sum()) for s in ("train", "val")] for k in range(3)]
    assert [row[:2] for row in found["counts"]["per_class"]] == counts
    assert found["duplicates"]["n_two_labels"] == 1
    assert len(found["media"]["of"]) == 4  # the duplicates


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 photos of a table: `colours`, several a photo, `size`, a number, and `person`. t.h5 of them."""
    place = tmp_path_factory.mktemp("table")
    lines = ["path,colours,size,person,label"]
    for number in range(60):
        bright, warm = number % 2, (number // 2) % 2
        image = make_image(number)
        image.paste((200 * warm, 60, 200 * bright), (0, 0, 24, 20))
        image.save(place / f"{number}.png")
        colours = ";".join(name for name, there in (("bright", bright), ("warm", warm)) if there) or ";"
        lines.append(f"{number}.png,{colours},{bright + 0.5 * warm + number / 1000},p{number // 4},{'ab'[bright]}")
    (place / "t.csv").write_text("\n".join(lines) + "\n")
    extract(place / "t.csv", place / "t.h5", backbone="tiny", keep=["colours", "size", "person"])
    return place


def test_several_labels(table: Path, tmp_path: Path) -> None:
    head = tmp_path / "l.safetensors"
    then = train_head(table / "t.h5", head, label_column="colours", C=1.0)
    found = made(tmp_path, table / "t.h5", head, map="none")
    assert (found["task"], found["classes"]) == ("labels", ["bright", "warm"])
    (scored,) = found["heads"][0]["scored"]
    cache = open_cache(table / "t.h5")
    rows = [cache.ids.index(found["samples"]["id"][place]) for place in scored["items"]["place"]]
    texts = [bytes(value).decode() for value in cache.column("columns/colours")[rows]]
    true = np.array([["bright" in text, "warm" in text] for text in texts])
    assert scored["items"]["true"] == [np.flatnonzero(one).tolist() for one in true]
    proba = load_head(head).predict_proba(np.array(cache.features()[rows]))
    assert scored["verdict"]["value"] == then.scores["hold-out"].mean_average_precision
    assert scored["verdict"]["value"] == pytest.approx(average_precision_score(true, proba))
    assert scored["per_class"][0]["n"] == true[:, 0].sum()
    differ = (proba > 0.5) != true
    assert sorted(scored["mistakes"]) == np.flatnonzero(differ.any(axis=1)).tolist()
    surprise = np.where(differ, np.abs(proba - true), -1).max(axis=1)
    assert (np.diff(surprise[scored["mistakes"]]) <= 0).all()
    assert scored["confusion"] is None
    assert found["samples"]["target"][scored["items"]["place"][0]] == scored["items"]["true"][0]


def test_no_labels_and_unlabelled_are_two_things(table: Path, tmp_path: Path) -> None:
    written = {0: "", 1: ";", 2: "x;y"}
    (tmp_path / "l.csv").write_text(
        "id,label\n" + "".join(f"{n}.png,{written.get(n, 'xy'[n % 2])}\n" for n in range(60))
    )
    found = made(tmp_path, table / "t.h5", labels=tmp_path / "l.csv", thumbnails=0)
    target = dict(zip(found["samples"]["id"], found["samples"]["target"], strict=True))
    assert [target[f"{n}.png"] for n in range(4)] == [None, [], [0, 1], [1]]
    assert found["counts"]["unlabelled"] == 1


def test_numbers(table: Path, tmp_path: Path) -> None:
    head, other = tmp_path / "n.safetensors", tmp_path / "k.safetensors"
    then = train_head(table / "t.h5", head, label_column="size")
    train_head(table / "t.h5", other, label_column="size", head="knn")
    found = made(tmp_path, table / "t.h5", head, other, compare=True)
    (scored,) = found["heads"][0]["scored"]
    items = scored["items"]
    error = np.abs(np.subtract(items["true"], items["predicted"]))
    values = {one["name"]: one["value"] for one in scored["metrics"]}
    assert values["mean absolute error"] == pytest.approx(mean_absolute_error(items["true"], items["predicted"]))
    assert scored["verdict"]["value"] == then.scores["hold-out"].r2
    assert scored["mistakes"] == np.argsort(-error, kind="stable").tolist()
    assert np.frombuffer(base64.b64decode(found["map"]["value"]), "<f4").shape == (60,)
    assert found["comparison"]["pairs"][0]["p"] is not None
    apart = [abs(one["predicted"][0] - one["predicted"][1]) for one in found["comparison"]["disagree"]]
    assert apart == sorted(apart, reverse=True)


@pytest.mark.parametrize("by", ["column", "pattern", "file"])
def test_groups_are_those_of_the_training(table: Path, tmp_path: Path, by: str) -> None:
    (tmp_path / "g.csv").write_text("id,group\n" + "".join(f"{n}.png,{n // 4}\n" for n in range(60)))
    given: dict[str, Any] = {
        "column": {"groups_column": "person"},
        "pattern": {"groups": r"^(\d)"},
        "file": {"groups_file": tmp_path / "g.csv"},
    }[by]
    head = tmp_path / "g.safetensors"
    then = train_head(table / "t.h5", head, C=1.0, **given).to_dict()
    again = given if by == "file" else {}
    found = made(tmp_path, table / "t.h5", head, **PLAIN, **again)["heads"][0]
    (scored,) = found["scored"]
    assert scored["verdict"]["interval"] == then["scores"]["hold-out"]["intervals"]["accuracy"]
    assert found["groups"] == then["groups"]
    if by == "file":
        (note,) = [
            line for line in made(tmp_path, table / "t.h5", head, **PLAIN)["heads"][0]["notes"] if "group" in line
        ]
        assert "give --groups or --groups-file" in note


def test_labels_of_a_table(table: Path, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("id,label\n" + "".join(f"{n}.png,{'xy'[n % 2]}\n" for n in range(60)))
    head = tmp_path / "t.safetensors"
    then = train_head(table / "t.h5", head, labels=tmp_path / "l.csv", C=1.0)
    with pytest.raises(HeadMismatchError, match="which it does not hold") as refused:
        report(table / "t.h5", head, tmp_path / "r.html")
    assert refused.value.hint == "Give that table again: --labels FILE."
    found = made(tmp_path, table / "t.h5", head, labels=tmp_path / "l.csv", **PLAIN)
    assert found["classes"] == ["x", "y"]
    assert found["heads"][0]["scored"][0]["verdict"]["value"] == then.scores["hold-out"].accuracy


@pytest.mark.slow
def test_a_tail_on_the_activations_of_its_cache(photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "a.h5", backbone="tiny", layer="body.1", pooling="none")
    then = fine_tune(tmp_path / "a.h5", tmp_path / "tail.safetensors", epochs=2)
    found = made(tmp_path, tmp_path / "a.h5", tmp_path / "tail.safetensors", **PLAIN)["heads"][0]
    assert found["kind"] == "tail"
    assert found["scored"][0]["verdict"]["value"] == then.scores["val"].accuracy
    with pytest.raises(HeadMismatchError, match="takes the layer"):
        extract(photos, tmp_path / "b.h5", backbone="tiny")
        report(tmp_path / "b.h5", tmp_path / "tail.safetensors", tmp_path / "r.html")


def test_what_cannot_be_reported(folder: Path, table: Path, tmp_path: Path) -> None:
    def refused(error: type[Exception], match: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises(error, match=match):
            report(*arguments, **{"out": tmp_path / "r.html", **options})
        assert not (tmp_path / "r.html").exists()

    cache, head = folder / "p.h5", folder / "knn.safetensors"
    train_head(table / "t.h5", tmp_path / "n.safetensors", label_column="size")
    train_head(table / "t.h5", tmp_path / "c.safetensors")
    refused(HeadMismatchError, "does not hold the images", cache, tmp_path / "c.safetensors")
    refused(
        TrainingError, "predicts classes and .* numbers", table / "t.h5", [tmp_path / f"{n}.safetensors" for n in "cn"]
    )
    refused(UsageError, "Two heads have the name", cache, [head, head])
    refused(UsageError, "nothing to compare", cache, [head], compare=True)
    refused(UsageError, "thumbnails must be", cache, [head], thumbnails=-1)
    refused(UsageError, "map must be one of", cache, [head], map="some")
    refused(CacheError, "is not one of them", cache, [head], layer="nowhere")
    refused(UsageError, "root and columns", cache, [head], root="x")
    refused(SourceError, "does not exist|not a folder", cache, [head], source=tmp_path / "nowhere.csv")


def test_the_output_is_a_report_or_new(folder: Path, tmp_path: Path) -> None:
    cache = shutil.copy(folder / "p.h5", tmp_path / "p.h5")
    with pytest.raises(UsageError, match="which this command uses as well"):
        report(cache, (), cache, overwrite=True)
    out = tmp_path / "r.html"
    out.write_text("<!DOCTYPE html><p>A diary")
    with pytest.raises(UsageError, match="is no report of precompute"):
        report(cache, (), out, **PLAIN)
    assert out.read_text() == "<!DOCTYPE html><p>A diary"
    report(cache, (), out, overwrite=True, **PLAIN)
    first = document_in(out)
    report(cache, (), out, **PLAIN)  # its own is replaced
    assert document_in(out)["counts"] == first["counts"]
    with pytest.raises(UsageError, match="folder .* does not exist"):
        report(cache, (), tmp_path / "no" / "r.html", **PLAIN)


def test_the_command(folder: Path, precompute: Command) -> None:
    done = precompute("report", folder / "p.h5", folder / "knn.safetensors", "-o", "r.html", "--map", "none", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["rows"] == 92
    assert told["bytes"] == Path(told["path"]).stat().st_size
    assert told["heads"] == ["knn.safetensors"]
    assert told["map"] is None
    assert told["pictures"] == len(document_in(Path(told["path"]))["media"]["of"])
    again = precompute("report", folder / "p.h5", "-o", "r.html", "--thumbnails", 0)
    assert again.returncode == 0, again.stderr
    assert "t-SNE of" in again.stdout


def test_train_head_reports_in_one_go(folder: Path, precompute: Command, tmp_path: Path) -> None:
    given = ("train-head", folder / "p.h5", "--head", "knn", "--k", 3)
    assert precompute(*given, "--report", "r.html").returncode == 2
    done = precompute(*given, "-o", "k.safetensors", "--report", "r.html", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    found = document_in(tmp_path / "r.html")
    assert found["heads"][0]["scored"][0]["verdict"]["value"] == told["scores"]["val"]["accuracy"]
    assert told["report"]["bytes"] == (tmp_path / "r.html").stat().st_size
    (tmp_path / "r.html").write_text("mine")
    again = precompute(*given, "-o", "other.safetensors", "--report", "r.html")
    assert again.returncode == 2
    assert not (tmp_path / "other.safetensors").exists()  # before the training
