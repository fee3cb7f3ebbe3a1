"""The page of a report in headless Chromium, from file://, driven by real clicks, moves, touches and keys."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsers import chromium, console, emulate, requested
from report_documents import HOSTILE, make_document, packed

from precompute.reports.render import render

CSS = "css selector"
OVERFLOW = """
const wide = document.documentElement.clientWidth;
if (document.documentElement.scrollWidth <= wide) return [];
return [...document.querySelectorAll('body *')].filter((item) => item.getBoundingClientRect().right > wide + 1)
  .map((item) => `${item.tagName} ${item.className}`).slice(0, 9);
"""
LISTENING = """
return [...document.querySelectorAll('body *')].filter((item) =>
  item.getAttributeNames().some((name) => name.startsWith('on'))).length;
"""
Open = Callable[..., "Page"]


class Page:
    """An open report: its elements by selector, its map in pixels, and keys and mouse."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver, self.address = driver, address

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements(CSS, selector))

    def one(self, selector: str) -> Any:
        return self.driver.find_element(CSS, selector)

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def click(self, selector: str) -> None:
        element = self.one(selector)
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        element.click()

    def keys(self, *keys: str) -> None:
        self.actions().send_keys(*keys).perform()

    def actions(self) -> Any:
        from selenium.webdriver import ActionChains

        return ActionChains(self.driver, duration=0)

    def wait(self, condition: Callable[[], Any]) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 60, poll_frequency=0.02).until(lambda _: condition())

    def frame(self) -> None:
        """Until what was asked for is drawn."""
        self.driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))"
        )

    def stage(self) -> tuple[Any, list[float]]:
        """The map's element, in view, and where its middle lies in its own pixels."""
        stage = self.one(".stage")
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", stage)
        self.frame()
        return stage, self.run(
            "const b = arguments[0]; return [b.offsetWidth / 2, b.offsetHeight / 2, b.clientLeft]", stage
        )

    def spot(self, x: float, y: float) -> tuple[int, int]:
        """A place of the map, from 0 to 1 on each axis, as an offset from the stage's middle."""
        _, (width, height, border) = self.stage()
        scale, left, top = json.loads(self.one(".stage").get_attribute("data-view"))
        return round(border + left + scale * x * 65535 - width), round(border + top + scale * y * 65535 - height)

    def hover(self, x: float, y: float) -> None:
        self.actions().move_to_element_with_offset(self.one(".stage"), *self.spot(x, y)).perform()
        self.frame()

    def drag(self, *corners: tuple[float, float]) -> None:
        first, *others = [self.spot(*corner) for corner in corners]
        stage = self.one(".stage")
        moves = self.actions().move_to_element_with_offset(stage, *first).click_and_hold()
        for corner in others:
            moves = moves.move_to_element_with_offset(stage, *corner)
        moves.release().perform()
        self.frame()

    def overflow(self) -> list[str]:
        """What sticks out of the page to the right, where anything does."""
        return list(self.run(OVERFLOW))


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.fixture
def show(driver: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens the page of a document; at the end nothing may have complained or been requested."""
    opened: list[str] = []
    console(driver), requested(driver)

    def show(document: dict[str, Any], **screen: Any) -> Page:
        path = tmp_path / f"report {len(opened)} #?%.html"
        path.write_text(render(document), encoding="utf-8")
        emulate(driver, **screen)
        driver.get(path.as_uri())
        opened.append(path.as_uri())
        page = Page(driver, path.as_uri())
        assert page.run("return document.documentElement.dataset.ready") == "yes", console(driver)
        return page

    yield show
    assert console(driver) == []
    assert set(requested(driver)) <= set(opened)


def two_clouds(**options: Any) -> dict[str, Any]:
    """A document of ants on the map's left and bees on its right; sample 0 alone in its upper middle."""
    document = make_document(classes=["ants", "bees"], samples=60, **options)
    label = np.array([document["samples"]["label"][at] for at in range(60)])
    rng = np.random.default_rng(3)
    x = np.where(label == 0, 0.15, 0.85) + rng.uniform(-0.14, 0.14, 60)
    y = rng.uniform(0.3, 1, 60)
    x[0], y[0] = 0.5, 0.0
    x[1], x[2], y[2] = 0.0, 1.0, 1.0
    document["map"] |= {"x": packed(np.round(x * 65535), "<u2"), "y": packed(np.round(y * 65535), "<u2")}
    document["where"] = [x.tolist(), y.tolist()]
    return document


@pytest.mark.slow
def test_parts_stand_in_order_and_lead_to_each_other(show: Open) -> None:
    page = show(make_document(compare=True))
    parts = ["verdict", "confusion", "classes", "mistakes", "leaks", "reliability", "curves", "map", "made"]
    assert [part.get_attribute("id") for part in page.all("main > section")] == parts
    assert [link.get_attribute("href").rpartition("#")[2] for link in page.all("nav a")] == parts
    page.click('nav a[href="#map"]')
    assert page.driver.current_url == f"{page.address}#map"
    assert page.overflow() == []


def test_a_cell_of_the_matrix_shows_its_samples_by_click_and_by_key(show: Open) -> None:
    from selenium.webdriver import Keys

    document = make_document(classes=["ants", "bees"])
    scored = document["heads"][0]["scored"][0]
    page = show(document)
    page.click(".matrix tbody tr:nth-child(1) td:nth-of-type(2)")
    wrong = scored["confusion"]["cells"]["0,1"]
    assert page.text(".chosen h3") == f"{len(wrong)} images of ants predicted as bees"
    ids = [document["samples"]["id"][scored["items"]["place"][item]] for item in wrong]
    assert [item.get_attribute("title") for item in page.all(".chosen .id")] == ids
    page.keys(Keys.ARROW_DOWN, Keys.ENTER)
    right = scored["confusion"]["matrix"][1][1]
    assert page.text(".chosen h3") == f"{right} images of bees predicted correctly"
    page.keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT, " ")
    assert page.text(".chosen h3").endswith("of bees predicted as ants")
    assert page.run("return document.activeElement.getAttribute('aria-selected')") == "true"
    assert len(page.all('.matrix [tabindex="0"]')) == 1


@pytest.mark.slow
def test_a_picture_opens_in_large_and_keys_lead_on(show: Open) -> None:
    from selenium.webdriver import Keys

    document = make_document()
    scored = document["heads"][0]["scored"][0]
    ids = [document["samples"]["id"][scored["items"]["place"][item]] for item in scored["mistakes"]]
    page = show(document)
    page.click("#mistakes .open")
    assert page.text(".viewer h2") == ids[0]
    assert page.run("return document.querySelector('.viewer img').naturalWidth") == 96
    page.keys(Keys.ARROW_RIGHT)
    assert page.text(".viewer h2") == ids[1]
    page.keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert page.text(".viewer h2") == ids[-1]
    page.keys(Keys.ESCAPE)
    assert not page.run("return document.querySelector('.viewer').open")
    assert page.run("return document.activeElement.closest('#mistakes') !== null")


@pytest.mark.slow
def test_another_head_is_shown(show: Open) -> None:
    document = make_document()
    page = show(document)
    stage = page.run("return document.querySelector('.stage')")
    first, second = (head["scored"][0]["verdict"]["words"] for head in document["heads"])
    assert page.text("#verdict .words") == first
    page.one(".choosers select").send_keys("head1")
    assert page.text("#verdict .words") == second
    assert page.run("return document.querySelector('.stage')") == stage  # where the map stood, it stays
    assert page.run("return document.activeElement.tagName") == "SELECT"


def test_heads_stand_side_by_side(show: Open) -> None:
    document = make_document(compare=True)
    page = show(document)
    (pair,) = document["comparison"]["pairs"]
    lines = [line.text for line in page.all(".compare .plain .line")]
    assert lines == [
        "Accuracy of head0.safetensors minus that of head1.safetensors: +4.1 points (95%: +1.0 to +7.2); "
        f"McNemar, p = 0.012; {pair['n']} images in 12 groups of val.",
        "3 left out: trained on by one of them.",
        "Val chose a setting of <b>head0</b>, so its score is optimistic.",
    ]
    assert [row.text.split()[0] for row in page.all(".compare tbody tr")[:2]] == [
        "head0.safetensors",
        "head1.safetensors",
    ]
    assert document["comparison"]["pairs"][0]["words"] in page.text(".compare")
    assert len(page.all("#reliability figure")) == 2
    assert "Recall of head1" in page.text("#classes thead")
    page.click(".compare summary")
    assert page.text(".compare summary") == "Where the heads disagree (1,234 images)"
    listed = len(document["comparison"]["disagree"])
    assert page.text(".compare details .muted") == f"Listed are {listed} of them, spread over the file."
    assert len(page.all(".compare .cards li, .compare .lines li")) == min(
        12 + 6, len(document["comparison"]["disagree"])
    ) or page.all(".compare .card")


def test_another_split_is_shown_of_compared_heads(show: Open) -> None:
    document = make_document(compare=True)
    first = document["heads"][0]
    test = json.loads(json.dumps(first["scored"][0])) | {"split": "test"}
    for row in test["per_class"]:
        row |= {"recall": 0.123, "recall_interval": None}
    test["verdict"]["value"] = 0.111
    document["splits"].append("test")
    first["scored"].append(test)
    page = show(document)
    side = page.text(".compare tbody")
    page.one('[data-of="Split"]').send_keys("test")
    cells = [cell.text for cell in page.all("#classes tbody tr:first-child td")]
    assert cells[2:4] == ["12.3%", "\u2013"]
    assert [item.text for item in page.all("#classes th bdi")] == [
        *("Recall of head0", "Recall of head1"),
        *("Precision of head0", "F1 of head0"),
    ]
    assert page.text("#classes .lead") == "On the split test."
    assert [len(figure.find_elements(CSS, "circle")) > 0 for figure in page.all("#reliability figure")] == [True, False]
    assert page.text(".compare h3") == "Heads side by side, on the split val"
    assert page.text(".compare tbody") == side  # which shows that split


def large_numbers() -> dict[str, Any]:
    """A document of 40 numbers, the first of which, 20231128.37, is predicted as 20231130.12."""
    document = make_document(task="number", classes=[], samples=40, heads=1)
    target = [20231128.37 + 1000 * at for at in range(40)]
    scored = document["heads"][0]["scored"][0]
    items = scored["items"]
    items["true"] = [target[place] for place in items["place"]]
    items["predicted"] = [value + 1.75 * (-1) ** at for at, value in enumerate(items["true"])]
    scored["mistakes"] = list(range(len(items["place"])))
    document["samples"]["target"] = target
    document["map"]["value"] = packed(target, "<f4")
    return document


def test_large_numbers_are_shown_with_the_digits_that_tell_them_apart(show: Open) -> None:
    from selenium.webdriver import Keys

    document = large_numbers()
    items = document["heads"][0]["scored"][0]["items"]
    true = items["true"][0]
    page = show(document)
    lines = [line.text for line in page.all("#mistakes .facts")[0].find_elements(CSS, ".line")]
    assert lines == [f"predicted {true + 1.75:,.2f}", f"true {true:,.2f}", "error +1.75"]
    ticks = [tick.text for tick in page.all("#confusion .tick")]
    assert ticks[:4] == ["20,240,000", "20,250,000", "20,260,000", "20,270,000"]
    page.click('.tools [aria-label="Show everything"]')
    page.keys(Keys.TAB, Keys.TAB, Keys.ARROW_RIGHT)
    at = int(page.one(".stage").get_attribute("data-current"))
    assert page.text(".near .line") == f"number {document['samples']['target'][at]:,.2f}"


def test_dots_of_numbers_are_walked_through_by_keys(show: Open) -> None:
    from selenium.webdriver import Keys

    document = large_numbers()
    items = document["heads"][0]["scored"][0]["items"]
    ids = [document["samples"]["id"][place] for place in items["place"]]
    page = show(document)
    label = lambda: str(page.run("return document.activeElement.getAttribute('aria-label')"))  # noqa: E731
    assert len(page.all('#confusion circle[tabindex="0"]')) == 1
    page.run("document.querySelector('#confusion circle[tabindex=\"0\"]').focus()")
    first = items["true"][0]
    assert label() == f"{ids[0]}: predicted {first + 1.75:,.2f}, true {first:,.2f}, error +1.75"
    page.keys(Keys.ARROW_RIGHT)
    assert label().startswith(f"{ids[1]}: ")
    page.keys(Keys.ARROW_UP, Keys.ARROW_UP, Keys.ARROW_DOWN, Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert label().startswith(f"{ids[0]}: ")
    page.keys(Keys.END)
    assert label().startswith(f"{ids[-1]}: ")
    assert page.run("return document.activeElement.getAttribute('role')") == "button"
    assert len(page.all('#confusion circle[tabindex="0"]')) == 1
    page.keys(Keys.ENTER)
    assert page.text(".viewer h2") == ids[-1]
    page.keys(Keys.ESCAPE)
    assert label().startswith(f"{ids[-1]}: ")


def test_hover_shows_the_sample(show: Open) -> None:
    document = two_clouds()
    page = show(document)
    page.hover(0.5, 0.0)
    assert page.text(".near .id") == document["samples"]["id"][0]
    assert page.run("return document.querySelector('.near img').naturalWidth") == 96
    page.hover(0.5, 0.5)
    assert page.one(".near").get_attribute("hidden") is not None
    page.hover(0.5, 0.0)
    page.actions().click().perform()
    assert page.text(".viewer h2") == document["samples"]["id"][0]


def selected(page: Page) -> list[str]:
    value = page.run("return JSON.stringify(document.querySelector('.selection textarea')?.value ?? '')")
    return json.loads(value).split("\n") if json.loads(value) else []


def test_lasso_lists_ids_and_copies_them(show: Open) -> None:
    from selenium.webdriver import Keys

    document = two_clouds()
    names = document["samples"]["id"]
    ants = [names[at] for at, x in enumerate(document["where"][0]) if x < 0.4]
    page = show(document)
    page.click('[data-tool-button="lasso"]')
    page.drag((0.4, 0.2), (0.4, 1.03), (-0.03, 1.03), (-0.03, 0.2))
    assert selected(page) == ants
    assert page.text(".selection h3") == f"{len(ants)} images selected"
    page.click(".selection .copy")
    page.wait(lambda: page.text(".selection .copy") == "Copied")
    page.run("const field = document.createElement('textarea'); document.body.prepend(field); field.focus()")
    page.actions().key_down(Keys.CONTROL).send_keys("v").key_up(Keys.CONTROL).perform()
    assert page.run("return document.querySelector('textarea').value").split("\n") == ants
    page.click(".selection .bar button:last-child")
    assert selected(page) == []


def test_a_selection_counts_all_labels_of_each_sample(show: Open) -> None:
    document = make_document(task="labels", samples=60, heads=1)
    target = document["samples"]["target"]
    target[5] = None  # unlabelled
    rarest = np.array([max(labels) if labels else -1 for labels in target])
    document["map"]["label"] = packed(rarest, "<i4")
    page = show(document)
    page.stage()
    page.click(".tools > button")
    counts = [sum(k in (labels or []) for labels in target) for k in range(3)]
    shown = page.text(".selection p").split(", ")
    assert sorted(shown) == [f"{name} {n}" for name, n in zip(document["classes"], counts, strict=True)]


def test_keys_alone_move_zoom_and_select(show: Open) -> None:
    from selenium.webdriver import Keys

    document = two_clouds()
    names = document["samples"]["id"]
    page = show(document)
    page.click('.tools [aria-label="Show everything"]')
    page.keys(Keys.TAB, Keys.TAB)
    assert page.run("return document.activeElement.className") == "stage"
    page.keys(Keys.ARROW_RIGHT)
    seen = {page.text(".near .id")}
    for key in (Keys.ARROW_DOWN, Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_DOWN):
        page.keys(key)
        seen.add(page.text(".near .id"))
        assert page.text(".map [role=status]").endswith(page.text(".near .id"))
    assert len(seen) > 2
    assert seen <= set(names)
    page.keys("v")
    page.frame()
    assert selected(page) == names
    page.keys("++")
    page.frame()
    assert float(page.one(".stage").get_attribute("data-zoom")) == pytest.approx(1.96)
    page.actions().key_down(Keys.SHIFT).send_keys(Keys.ARROW_RIGHT).key_up(Keys.SHIFT).perform()
    page.keys("v")
    assert 0 < len(selected(page)) < len(names)
    page.keys(Keys.ESCAPE, "0", "l")
    page.frame()
    assert selected(page) == []
    assert page.one(".stage").get_attribute("data-zoom") == "1.000"
    assert page.one('[data-tool-button="lasso"]').get_attribute("aria-pressed") == "true"
    page.keys("l", Keys.ARROW_UP, Keys.ENTER)
    assert page.text(".viewer h2") in names
    page.keys(Keys.ESCAPE)
    page.click(".legend.tall li:nth-child(2) button")
    assert selected(page) == [
        name for name, label in zip(names, document["samples"]["label"], strict=True) if label == 1
    ]


@pytest.mark.slow
def test_wheel_drag_and_touch(show: Open) -> None:
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    page = show(two_clouds())
    stage, _ = page.stage()
    wheel = ScrollOrigin.from_element(stage)
    page.actions().scroll_from_origin(wheel, 0, -120).perform()
    page.wait(lambda: not page.one(".hint").get_attribute("hidden"))
    assert stage.get_attribute("data-zoom") == "1.000"  # the page moves until the map is chosen
    page.stage()
    page.actions().move_to_element_with_offset(stage, *page.spot(0.5, 0.5)).click().perform()
    page.actions().scroll_from_origin(wheel, 0, -120).perform()
    page.wait(lambda: float(stage.get_attribute("data-zoom")) > 1.2)
    before = json.loads(stage.get_attribute("data-view"))
    page.actions().move_to_element(stage).click_and_hold().move_by_offset(40, 10).move_by_offset(
        20, 10
    ).release().perform()
    page.frame()
    after = json.loads(stage.get_attribute("data-view"))
    assert (after[0], after[1] - before[1], after[2] - before[2]) == pytest.approx((before[0], 60, 20))
    zoom = float(stage.get_attribute("data-zoom"))
    x, y = page.run(
        "const b = arguments[0].getBoundingClientRect(); return [b.left + b.width / 2, b.top + b.height / 2]", stage
    )
    for kind, apart in (("touchStart", 20), ("touchMove", 30), ("touchMove", 60), ("touchEnd", 0)):
        points = [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}] if apart else []
        page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    page.wait(lambda: float(stage.get_attribute("data-zoom")) > 1.5 * zoom)


def colours(page: Page) -> set[tuple[int, ...]]:
    """The colours of the map's pixels."""
    data = page.run("return document.querySelector('canvas.points').toDataURL()")
    from io import BytesIO

    from PIL import Image

    with Image.open(BytesIO(base64.b64decode(data.partition(",")[2]))) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}


@pytest.mark.slow
def test_colours_by_class_split_and_right(show: Open) -> None:
    page = show(two_clouds())
    page.stage()
    blue, orange, vermillion = (0, 0x72, 0xB2), (0xE6, 0x9F, 0), (0xD5, 0x5E, 0)
    assert {blue, orange} <= colours(page)
    page.click(".legend.tall li:nth-child(2) input")
    page.frame()
    assert orange not in colours(page)
    page.click('input[value="right"]')
    page.frame()
    assert {blue, vermillion} <= colours(page)
    assert [item.text for item in page.all(".legend.tall bdi")] == ["right", "wrong", "not scored"]
    page.click('input[value="split"]')
    assert [item.text for item in page.all(".legend.tall bdi")] == ["train", "val"]


@pytest.mark.slow
def test_more_classes_than_colours(show: Open) -> None:
    page = show(make_document(classes=[f"species {at}" for at in range(50)], samples=800, media=4))
    assert len(page.all(".legend.tall li")) == 8
    assert page.text(".legend.tall li:last-child bdi") == "other classes, or none"
    chosen = page.all(".legend.tall bdi")
    missing = next(f"species {at}" for at in range(50) if f"species {at}" not in [item.text for item in chosen])
    page.one(".map .field select").send_keys(missing)
    assert missing in [item.text for item in page.all(".legend.tall bdi")]
    assert len(page.all(".legend.tall li")) == 8
    assert len(page.all("#classes tbody tr")) == 25
    page.one("#classes input").send_keys("ES 49")
    assert [row.text.split("\n")[0] for row in page.all("#classes tbody td:first-child")] == ["species 49"]


@pytest.mark.slow
def test_classes_are_sorted(show: Open) -> None:
    page = show(make_document())
    names = lambda: [cell.text for cell in page.all("#classes tbody td:first-child")]  # noqa: E731
    assert names() == ["ants", "bees", "wasps"]
    page.click("#classes th:first-child button")
    page.click("#classes th:first-child button")
    assert names() == ["wasps", "bees", "ants"]
    assert page.one("#classes th:first-child").get_attribute("aria-sort") == "descending"
    assert page.run("return document.activeElement.textContent").startswith("Class")


def test_hostile_names_stay_text(show: Open) -> None:
    document = make_document(hostile=True, compare=True)
    document["notes"] = list(HOSTILE)
    document["heads"][0]["name"] = document["comparison"]["heads"][0] = HOSTILE[0]
    document["map"]["method"] = document["curves"][0]["title"] = document["curves"][0]["y"] = HOSTILE[2]
    document["made_by"]["commands"] = list(HOSTILE)
    page = show(document)
    page.click(".matrix td.miss")
    page.click("#mistakes .open")
    page.click('.viewer [aria-label="Close"]')
    page.stage()
    page.click(".tools > button")
    assert page.driver.title == HOSTILE[0]
    assert page.run("return document.querySelectorAll('script').length") == 2
    assert page.run(LISTENING) == 0
    assert page.all("img[src='x'], main script, main b") == []
    shown = page.run("return document.body.innerText")
    assert "\u202e" not in shown
    assert "photo\\u202egpj.exe" in shown
    assert "two\\u000alines" in shown
    copied = selected(page)
    assert "photo\u202egpj.exe 3" in copied  # what is copied is the id itself
    assert json.dumps("two\nlines\tand a tab 4", ensure_ascii=False) in copied  # one id, one line
    assert page.overflow() == []


@pytest.mark.parametrize(
    ("width", "hostile"),
    [
        (375, True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((375, False), (1200, True), (1200, False))),
    ],
)
def test_nothing_sticks_out_in_dark_on_a_phone_and_on_paper(show: Open, width: int, hostile: bool) -> None:
    document = make_document(
        compare=True, hostile=hostile, samples=200, classes=None if hostile else [f"class {at}" for at in range(20)]
    )
    page = show(document, width=width, height=800, dark=True)
    assert page.run("return getComputedStyle(document.documentElement).backgroundColor") == "rgb(21, 24, 28)"
    page.click(".matrix td.miss")
    assert page.overflow() == []
    emulate(page.driver, width=720, height=1000, dark=True, media="print")  # as wide as A4
    assert page.run("return getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert page.run("return getComputedStyle(document.querySelector('nav')).display") == "none"
    assert page.overflow() == []


@pytest.mark.slow
def test_the_theme_stays(show: Open) -> None:
    page = show(make_document(samples=40))
    paper = lambda: page.run("return getComputedStyle(document.querySelector('.points')).backgroundColor")  # noqa: E731
    assert paper() == "rgb(255, 255, 255)"
    page.click("#theme")
    page.click("#theme")
    assert page.text("#theme") == "Theme: dark"
    assert paper() == "rgb(21, 24, 28)"
    page.frame()
    assert (21, 24, 28) in colours(page)
    page.driver.get(page.address)
    assert paper() == "rgb(21, 24, 28)"
    page.click("#theme")
    assert page.text("#theme") == "Theme: auto"


EMPTY: dict[str, Any] = {"version": 1, "title": "nothing.h5"}
ODD: dict[str, Callable[[], dict[str, Any]]] = {
    "nothing": lambda: dict(EMPTY),
    "all None": lambda: dict.fromkeys(make_document(samples=40)),
    "no heads": lambda: (
        make_document(heads=0, samples=40)
        | {
            "counts": {
                "rows": 40,
                "with_features": 39,
                "failed": 1,
                "unlabelled": 0,
                "per_class": [[5, 4, 0, 0, 0]] * 3,
            }
        }
    ),
    "no map": lambda: make_document(samples=40) | {"map": None},
    "no media": lambda: make_document(samples=40, media=0),
    "no duplicates": lambda: make_document(samples=40) | {"duplicates": {"two_labels": [], "identical": []}},
    "one class": lambda: make_document(classes=["ants"], samples=40),
    "a thousand classes": lambda: make_document(classes=[f"class {at}" for at in range(1000)], samples=3000, media=4),
    "forty classes": lambda: make_document(classes=[f"class {at}" for at in range(40)], samples=800, media=4),
    "no mistakes": lambda: make_document(wrong=0, samples=40),
    "one point": lambda: make_document(samples=4, media=1),
    "labels of texts": lambda: make_document(task="labels", modality="text", samples=60, compare=True),
    "numbers": lambda: make_document(task="number", classes=[], samples=60, compare=True),
    "clips": lambda: make_document(modality="audio", samples=60),
    "no task": lambda: make_document(task=None, samples=40),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "all None" else pytest.mark.slow) for name in ODD]
)
def test_odd_documents(show: Open, name: str) -> None:
    page = show(ODD[name](), width=375, height=700)
    assert page.overflow() == []
    for word in ("undefined", "NaN", "[object", "null", "Infinity"):
        assert word not in page.run("return document.body.innerText"), word
    if page.all(".stage"):
        page.stage()
        page.click(".tools > button")
        assert selected(page)
    for selector in ("#mistakes .open", ".sample"):
        if page.all(selector):
            page.click(selector)
            assert page.run("return document.querySelector('.viewer').open")
            page.click('.viewer [aria-label="Close"]')


@pytest.mark.slow
def test_a_hundred_thousand_points(show: Open) -> None:
    document = make_document(samples=100_000, media=20, classes=[f"class {at}" for at in range(10)])
    page = show(document)
    page.stage()
    x, y = (np.frombuffer(base64.b64decode(document["map"][axis]), "<u2") / 65535 for axis in "xy")
    rng = np.random.default_rng(0)
    point = int(rng.integers(100_000))
    page.hover(x[point], y[point])
    scale, _, _ = json.loads(page.one(".stage").get_attribute("data-view"))
    shown = document["samples"]["id"].index(page.one(".near .id").get_attribute("title"))
    assert np.hypot(x[shown] - x[point], y[shown] - y[point]) * 65535 * scale < 3  # pixels
    page.click('[data-tool-button="lasso"]')
    corners = [(0.2, 0.2), (0.8, 0.2), (0.8, 0.7), (0.2, 0.7)]
    page.drag(*corners)
    a, b = (np.array(page.spot(*corner)) for corner in (corners[0], corners[2]))
    origin = np.array(page.spot(0, 0))
    span = np.array(page.spot(1, 1)) - origin
    inside = [
        np.count_nonzero((abs(x - 0.5) < 0.3 + s) & (abs(y - 0.45) < 0.25 + s)) for s in (-2 / min(span), 2 / min(span))
    ]
    assert inside[0] <= int(page.one(".selection").get_attribute("data-selected")) <= inside[1]
    assert (a < b).all()
