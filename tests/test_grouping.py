"""Groups: what the user says belongs together is never on both sides of a split."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import Command, make_image, make_photos
from hypothesis import given
from hypothesis import strategies as st

from precompute import extract, open_cache, train_head
from precompute.errors import TrainingError, UsageError
from precompute.heads import evaluate, folds
from precompute.training import groups
from precompute.training.groups import group_names, join
from precompute.training.splits import HOLDOUT, digest_groups, parts_of, whole_rows

PATIENTS = r"patient_(\d+)"


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("abcdefgh")), min_size=1, max_size=30))
def test_chains_of_equal_files_and_equal_names_are_one_group(samples):
    digests, names = np.array([digest for digest, _ in samples]), [name for _, name in samples]
    found = join(digests, names)
    expected = list(range(len(samples)))  # by hand: merge until nothing changes
    for _ in samples:
        for i, (d, g) in enumerate(samples):
            for j, (e, h) in enumerate(samples):
                if d == e or g == h:
                    expected[i] = expected[j] = min(expected[i], expected[j])
    assert np.array_equal(found[:, None] == found, np.array(expected)[:, None] == np.array(expected))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.h5: 12 patients with 4 pictures each, of two classes; one picture lies under two patients."""
    folder = tmp_path_factory.mktemp("scans")
    for number in range(48):
        label = ("ill", "well")[number // 4 % 2]
        place = folder / "photos" / label
        place.mkdir(parents=True, exist_ok=True)
        make_image(number).save(place / f"patient_{number // 4}_{number % 4}.png")
    shutil.copy(folder / "photos/ill/patient_0_0.png", folder / "photos/ill/patient_2_9.png")
    extract(folder / "photos", folder / "a.h5", backbone="tiny")
    return folder


def patients(cache, rows) -> set[str]:
    return {cache.ids[row].split("_")[1] for row in rows}


@pytest.mark.rotates(3)
def test_no_patient_is_on_both_sides_of_hold_out_and_folds(scans: Path) -> None:
    cache = open_cache(scans / "a.h5")
    rows = np.arange(len(cache))
    together = join(digest_groups(cache), group_names(cache, rows, pattern=PATIENTS))
    assert len(set(together.tolist())) == 11, "patients 0 and 2 share a picture"
    for seed in range(10):
        parts, _ = parts_of(cache, whole_rows(cache, cache.layers[0]), seed, together)
        train, held = patients(cache, parts["train"]), patients(cache, parts[HOLDOUT])
        assert not train & held
        assert ("0" in train) == ("2" in train)
        for inside, out in folds(cache.labels, groups=together, n_folds=4, seed=seed):
            assert not patients(cache, inside) & patients(cache, out)
    plain, _ = parts_of(cache, whole_rows(cache, cache.layers[0]), 0)
    assert patients(cache, plain["train"]) & patients(cache, plain[HOLDOUT]), "without groups they are"


def test_a_table_says_the_same_as_a_pattern(scans: Path, tmp_path: Path) -> None:
    cache = open_cache(scans / "a.h5")
    lines = [f"{name},p{name.split('_')[1]}" for name in cache.ids]
    (tmp_path / "groups.csv").write_text("\n".join(["id,group", *lines, "elsewhere.png,p99"]) + "\n")
    by_file = train_head(cache, groups_file=tmp_path / "groups.csv", C=1.0)
    by_pattern = train_head(cache, groups=PATIENTS, C=1.0)
    assert by_file.groups == by_pattern.groups == 11
    assert by_file.scores[HOLDOUT].to_dict() == by_pattern.scores[HOLDOUT].to_dict()
    assert by_file.leaks[HOLDOUT].grouped == 0
    assert train_head(cache, C=1.0).groups is None


def test_groups_across_given_splits_are_leaks(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", per_class=5)
    extract(photos, tmp_path / "a.h5", backbone="tiny")
    training = train_head(tmp_path / "a.h5", groups=r"(\d)\.", C=1.0)  # 0 to 4, in train as in val
    assert training.leaks["val"].grouped == training.rows["val"] == 10
    assert any(line.startswith("10 images of val share a group") for line in training.notes)
    assert train_head(tmp_path / "a.h5", groups=r"^(\w+)/", C=1.0).leaks["val"].grouped == 0


def test_the_intervals_draw_whole_patients(scans: Path) -> None:
    cache = open_cache(scans / "a.h5")
    training = train_head(cache, groups=PATIENTS, C=1.0)
    together = join(digest_groups(cache), group_names(cache, np.arange(len(cache)), pattern=PATIENTS))
    rows = parts_of(cache, whole_rows(cache, cache.layers[0]), 0, together)[0][HOLDOUT]
    proba = training.head.predict_proba(np.array(cache.features()[rows]))
    true = np.array(cache.classes)[cache.labels[rows]]
    by_patient = evaluate(true, proba, training.head.classes_, groups=together[rows])
    assert training.scores[HOLDOUT].to_dict() == by_patient.to_dict()
    by_image = evaluate(true, proba, training.head.classes_)
    assert by_image.log_loss == by_patient.log_loss
    assert by_image.intervals != by_patient.intervals


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"groups": r"patient_([0-5])_"}, r"24 of 49 ids in .*a\.h5 do not match --groups .*'ill/patient_10_0\.png'"),
        ({"groups": r"patient_\d+"}, "no part in parentheses"),
        ({"groups": r"patient_(\d+"}, "is not a regular expression"),
        ({"groups": r"(x)?patient"}, "49 of 49 ids"),
        ({"groups": PATIENTS, "groups_file": "groups.csv"}, "contradict each other"),
        ({"groups_file": "nowhere.csv"}, "nowhere.csv cannot be read: No such file"),
    ],
)
def test_groups_that_cannot_be_used_are_refused(scans: Path, given: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train_head(scans / "a.h5", **given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have the columns id and group"),
        ("name,patient\na,b\n", "must have the columns id and group"),
        ("id,group\nill/patient_0_0.png,p0\n", r"48 of 49 ids .* are not in .*g\.csv"),
        ("id,group\na,b\na,c\n", "line 3: 'a' has two groups, 'b' and 'c'"),
        ("id,group\na,\n", "line 2: 'a' has no group"),
        ("id,group\na\n", "line 2: 'a' has no group"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(scans: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "g.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        train_head(scans / "a.h5", groups_file=tmp_path / "g.csv")


def test_one_group_for_all_leaves_nothing_to_hold_out(scans: Path) -> None:
    with pytest.raises(TrainingError, match="too few images to hold any out.*two groups"):
        train_head(scans / "a.h5", groups="(patient)")


def test_on_the_command_line(scans: Path, precompute: Command) -> None:
    done = precompute("train-head", scans / "a.h5", "--groups", PATIENTS, "--C", "1")
    assert done.returncode == 0, done.stderr
    assert "11 groups kept whole" in done.stdout
    done = precompute("train-head", scans / "a.h5", "--groups", "nothing(x)")
    assert done.returncode == 2
    assert "ill/patient_0_0.png" in done.stderr


@pytest.mark.rotates(3)
def test_a_pattern_that_takes_endless_time_is_refused_with_the_id(tmp_path: Path, precompute: Command) -> None:
    photos = make_photos(tmp_path / "photos", per_class=2)
    make_image(99).save(photos / "train/cats" / f"{'a' * 60}.png")
    extract(photos, tmp_path / "a.h5", backbone="tiny")
    done = precompute("train-head", tmp_path / "a.h5", "--groups", "(a+)+$", "--C", "1")
    assert done.returncode == 2
    assert "--groups '(a+)+$'" in done.stderr
    assert f"could not be matched with the id {'train/cats/' + 'a' * 60 + '.png'!r}" in done.stderr
    assert "Repetitions of repetitions" in done.stderr


def test_the_limit_of_time_holds_outside_the_main_thread_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "SECONDS_PER_ID", 0.1)
    with ThreadPoolExecutor(1) as pool:
        good = ["b\udcff/p1", "c/p2"]
        assert pool.submit(groups._search, r"p(\d)", good).result() == ["1", "2"]
        with pytest.raises(UsageError, match=r"'\(a\+\)\+\$' could not be matched with the id 'b/a+!' within 0\.1"):
            pool.submit(groups._search, "(a+)+$", ["a", "b/" + "a" * 60 + "!", "a"]).result()


@pytest.mark.rotates(3)
def test_many_ids_that_are_slow_together_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "SECONDS", 1)
    with pytest.raises(UsageError, match=r"could not be matched with 1,000 ids in 1 seconds"):
        groups._search(r"(a+)+$", ["a" * 22 + "!"] * 1000)
