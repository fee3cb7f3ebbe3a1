"""Reports of real files, opened in a browser from a disk: each task and modality, without an error or a request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsers import chromium, console, requested
from conftest import make_image
from modalities import FOLDERS, Kind

from precompute import extract, report, train_head

SHOWN = """
return [...document.querySelectorAll(arguments[0])].filter((item) => item.naturalWidth > 0 || item.textContent).length;
"""


def of_modality(place: Path, kind: Kind) -> None:
    made = kind.make(place, per_class=12)
    made.extract(place / "c.h5")
    for name in ("logistic", "knn"):
        train_head(place / "c.h5", place / f"{name}.safetensors", head=name)


def of_task(place: Path, column: str) -> None:
    lines = ["path,colours,size"]
    for number in range(60):
        bright, warm = number % 2, (number // 2) % 2
        image = make_image(number)
        image.paste((200 * warm, 60, 200 * bright), (0, 0, 10, 10))
        image.save(place / f"{number}.png")
        colours = ";".join(name for name, there in (("bright", bright), ("warm", warm)) if there) or ";"
        lines.append(f"{number}.png,{colours},{bright + 0.5 * warm + number / 1000}")
    (place / "t.csv").write_text("\n".join(lines) + "\n")
    extract(place / "t.csv", place / "c.h5", backbone="tiny", keep=[column])
    for name in ("mlp", "knn"):
        options: dict[str, Any] = {"max_epochs": 5} if name == "mlp" else {}
        train_head(place / "c.h5", place / f"{name}.safetensors", head=name, label_column=column, **options)


MAKERS: dict[str, Callable[[Path], None]] = {
    **{kind.name: lambda place, kind=kind: of_modality(place, kind) for kind in FOLDERS},  # type: ignore[misc]
    "labels": lambda place: of_task(place, "colours"),
    "number": lambda place: of_task(place, "size"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", MAKERS)
def test_a_report_of_real_files_opens(what: str, tmp_path: Path) -> None:
    MAKERS[what](tmp_path)
    heads = sorted(tmp_path.glob("*.safetensors"))
    report(tmp_path / "c.h5", heads, tmp_path / "two.html", compare=True)
    report(tmp_path / "c.h5", heads[:1], tmp_path / "one.html")
    report(tmp_path / "c.h5", (), tmp_path / "none.html")
    with chromium() as driver:
        for name in ("two", "one", "none"):
            address = (tmp_path / f"{name}.html").as_uri()
            driver.get(address)
            text = driver.find_element("css selector", "main").text
            assert console(driver) == []
            assert set(requested(driver)) <= {address}
            assert "precompute extract" in text
            assert driver.find_elements("css selector", "#map canvas")
            if name != "none":
                assert "95%" in driver.find_element("css selector", "#verdict").text
            for word in ("undefined", "NaN", "[object Object]"):
                assert word not in text
        if what == "image":
            driver.get((tmp_path / "one.html").as_uri())
            driver.find_element("css selector", ".matrix tbody tr:nth-child(1) td:nth-of-type(1)").click()
            assert driver.execute_script(SHOWN, ".chosen img") > 0
