"""A headless Chromium for tests of pages: real input events, the console, and what was requested over the network.

Nothing is downloaded: the browser and its driver must be on this machine, else the test skips and says what is missing.
With PRECOMPUTE_REQUIRE_BROWSER=1 it fails instead.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def _missing(what: str) -> None:
    if os.environ.get("PRECOMPUTE_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{what}; PRECOMPUTE_REQUIRE_BROWSER=1 wants it")
    pytest.skip(what)


@contextmanager
def chromium(width: int = 1200, height: int = 900) -> Iterator[Any]:
    """A selenium driver of a headless Chromium, with logs of the console and of the network; skips without one."""
    try:
        from selenium import webdriver
        from selenium.common.exceptions import WebDriverException
    except ImportError:
        _missing("needs selenium, which is not installed")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        _missing("needs Chromium and chromedriver, which are not there")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio"):
        options.add_argument(argument)
    # What a browser asks of its maker on its own would stand in the log of the network
    for argument in ("--disable-background-networking", "--disable-component-update", "--no-first-run"):
        options.add_argument(argument)
    options.add_argument(f"--window-size={width},{height}")
    if os.getuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium refuses to run as root with it
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    try:
        # A driver that is named is used as it is: selenium then neither looks for another one nor downloads it.
        session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    except WebDriverException as error:
        _missing(f"Chromium does not start: {str(error.msg).splitlines()[0]}")
    try:
        yield session
    finally:
        session.quit()


def console(driver: Any) -> list[str]:
    """Messages of the console since the last call: errors of scripts and of the policy among them."""
    return [entry["message"] for entry in driver.get_log("browser")]


def requested(driver: Any) -> list[str]:
    """Addresses that pages asked for since the last call, `data:` ones aside."""
    found = []
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            address = message["params"]["request"]["url"]
            if not address.startswith("data:"):
                found.append(address)
    return found


def emulate(driver: Any, *, width: int = 0, height: int = 0, dark: bool = False, media: str = "") -> None:
    """A screen of this size (0: the window's), a preference for dark, and paper instead of a screen with "print"."""
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": media, "features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]},
    )
    if width:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    else:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
