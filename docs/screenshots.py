"""Makes the pictures of the guides: the page in light and dark, wide and narrow, idle, training and finished.

    .venv/bin/python docs/screenshots.py [FOLDER]

Starts a page of its own in a temporary folder and trains the demo in it. Needs playwright and a Chromium.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from tests.helpers.page import CHROMIUM, QUIET_BROWSER, App, start_app  # noqa: E402

IMAGES = PROJECT / "docs" / "images"
SIZES = {1280: 860, 390: 844}
SCHEMES = ("light", "dark")
SHARE = 0.55
"""How far the demo is to be when the picture of the running page is taken."""
PATIENCE = 600_000
QUALITY = 82
SETTLING = 700
"""Milliseconds for thumbnails to arrive and scrolling to end."""


def main(folder: Path) -> None:
    """Take all pictures into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        (Path(place) / "demo").symlink_to(PROJECT / "demo")  # so that the form shows the demo's short paths
        app = start_app(Path(place), Path(place) / "own")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET_BROWSER)
        try:
            take_all(browser, app, folder)
        finally:
            browser.close()
            app.stop()


def take_all(browser: Browser, app: App, folder: Path) -> None:
    """Go through the life of a run, taking pictures."""
    each(browser, app, folder, "basic", lambda page: None)
    each(browser, app, folder, "advanced", show_advanced)
    page = opened(browser, app, 1280, "light")
    page.click("#start")
    page.wait_for_function(f"() => {{ {STEPS} return total && step >= total * {SHARE}; }}", timeout=PATIENCE)
    each(browser, app, folder, "running", show_training)
    expect(page.locator(".pill")).to_have_text(re.compile("Finished|Failed"), timeout=PATIENCE)
    each(browser, app, folder, "finished", show_training)


STEPS = """const [step, total] = document.querySelector('[data-number=step]').textContent.replaceAll(',', '').split('/')
    .map(Number);"""


def each(browser: Browser, app: App, folder: Path, name: str, prepare: Callable[[Page], None]) -> None:
    """Take one view in every width and scheme."""
    for width, scheme in product(SIZES, SCHEMES):
        page = opened(browser, app, width, scheme)
        prepare(page)
        page.wait_for_timeout(SETTLING)
        target = folder / f"{name}-{width}-{scheme}"
        page.screenshot(path=target.with_suffix(".png"))
        with Image.open(target.with_suffix(".png")) as picture:
            picture.convert("RGB").save(target.with_suffix(".webp"), quality=QUALITY, method=6)
        target.with_suffix(".png").unlink()
        page.context.close()


def opened(browser: Browser, app: App, width: int, scheme: str) -> Page:
    """Return the page, filled in."""
    context = browser.new_context(viewport={"width": width, "height": SIZES[width]}, color_scheme=scheme)
    page = context.new_page()
    page.goto(app.url)
    expect(page.locator("#plan section").first).to_be_attached()
    return page


def show_advanced(page: Page) -> None:
    """Open a group of the advanced tab."""
    page.get_by_role("tab", name="Advanced").click()
    page.locator(".group[data-group=Captions] summary").click()
    page.locator("[data-more=shuffle_caption]").click()


def show_training(page: Page) -> None:
    """Bring the run into sight."""
    page.get_by_role("tab", name="Training").click()
    page.locator("#curves canvas").first.wait_for()
    if page.viewport_size and page.viewport_size["width"] < min(size for size in SIZES if size > 900):
        page.locator("#watch-tabs").evaluate("tabs => tabs.scrollIntoView()")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
