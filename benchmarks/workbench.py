"""The workbench at 10,000 pictures: the server's time of the first picture, what scrolling fetches, and its memory.

The first paint is what a page asks before it shows anything: the folder opened, the pictures listed, the first rows.
Thumbnails that are fetched are counted where the browser stands still on its way down, against those that it showed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil

from benchmarks import scanning
from benchmarks.options import Options
from benchmarks.rows import Row, Target, median_row
from benchmarks.watching import lack
from tests.helpers.page import CHROMIUM, QUIET_BROWSER, App, start_app

if TYPE_CHECKING:
    from playwright.sync_api import Page

PICTURES, QUICK_PICTURES = 10_000, 500
TRIES = 5
ROWS = 100
STOPS, ROUNDS = 12, 3
STILL_SECONDS = 0.6
PATIENCE_SECONDS = 120

FIRST_PAINT = Target(1.0)
IN_VIEW = Target(1.0)
FLAT = Target(1.1)


def measure(options: Options) -> Iterator[Row]:
    """Yield the rows; those of a browser only where there is one."""
    number = QUICK_PICTURES if options.quick else PICTURES
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        pictures = scanning.write(folder / "pictures", number)
        app = start_app(folder, folder / "own")
        try:
            seconds = [first_paint(app, pictures) for _ in range(TRIES)]
            yield Row(f"page/workbench, first paint of {number}, first time", seconds[0], "s", target=FIRST_PAINT)
            yield median_row(f"page/workbench, first paint of {number}", seconds[1:], "s", FIRST_PAINT)
            reason = lack()
            if reason:
                sys.stderr.write(f"page/workbench, scrolling: left out, {reason}.\n")
                return
            yield from scrolled(app, pictures, number)
        finally:
            app.stop()


def first_paint(app: App, pictures: Path) -> float:
    """Return the seconds that the server takes until the first rows can be shown."""
    with httpx.Client(base_url=app.url, timeout=PATIENCE_SECONDS) as client:
        client.post("/workbench/errand").raise_for_status()  # the connection is there
        began = time.perf_counter()
        token = client.post("/workbench/open", json={"path": str(pictures)}).raise_for_status().json()["token"]
        ids = client.post(f"/workbench/{token}/view", json={}).raise_for_status().json()["ids"]
        client.post(f"/workbench/{token}/rows", json={"ids": ids[:ROWS]}).raise_for_status()
        seconds = time.perf_counter() - began
        until = time.monotonic() + PATIENCE_SECONDS
        while not client.post(f"/workbench/{token}/about").json()["complete"] and time.monotonic() < until:
            time.sleep(0.2)  # what is read behind the first pictures is not to disturb the next try
        return seconds


def scrolled(app: App, pictures: Path, number: int) -> Iterator[Row]:
    """Yield what scrolling through all pictures fetches, and how the server's memory grows by doing it again."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET_BROWSER)
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 860})
            fetched: set[str] = set()
            page.on("request", lambda request: fetched.add(request.url) if "/small/" in request.url else None)
            page.goto(app.url)
            page.click("[data-to-place=pictures]")
            page.fill("#wb-path", str(pictures))
            page.press("#wb-path", "Enter")
            page.locator(".wb-count", has_text=f"{number:,} pictures").wait_for()
            memory, shown = [], 0
            for turn in range(ROUNDS):
                seen = down(page)
                shown = shown or seen
                if not turn:
                    token = page.evaluate("BENCH.token")
                    own = sum(token in address for address in fetched)
                    yield Row("page/workbench, thumbnails fetched over seen", own / shown, "x", target=IN_VIEW)
                memory.append(psutil.Process(app.process.pid).memory_info().rss)
        finally:
            browser.close()
    yield Row("page/workbench, memory of the server", memory[0] / 2**20, "MiB")
    yield Row("page/workbench, memory after scrolling again", memory[-1] / memory[0], "x", target=FLAT)


def down(page: Page) -> int:
    """Scroll from the first picture to the last, with stops; return how many pictures were seen at the stops."""
    page.evaluate("BENCH.grid.scrollTop = 0")
    seen: set[int] = set()
    for stop in range(STOPS):
        page.evaluate(f"BENCH.grid.scrollTop = BENCH.grid.scrollHeight * {stop} / {STOPS}")
        time.sleep(STILL_SECONDS)
        seen.update(page.evaluate("[...BENCH.cells.keys()].map((place) => BENCH.ids[place])"))
    return len(seen)
