"""What an open page costs the training that it shows: a real browser beside it, open and closed by turns.

The demo trains on one thread; the browser stands in front, on the training's tab. Where the browser draws without a
graphics card, it takes processor and memory from the training beside it: that is part of the price. Measured on Linux.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from benchmarks.options import Options
from benchmarks.rows import Row, Target, median_row, ratio_row
from tests.helpers.page import CHROMIUM, PROJECT, QUIET_BROWSER, App, start_app

if TYPE_CHECKING:
    from playwright.sync_api import Page

PAIRS, QUICK_PAIRS = 12, 2
SECONDS, QUICK_SECONDS = 10.0, 3.0
SETTLING_SECONDS = 3.0
"""What opening or closing the page sets off is not counted: it happens once, not with every step."""
WARM_STEPS = 30
EPOCHS = 500
"""More than will be trained."""
TAIL_BYTES = 200_000
WIDTH, HEIGHT = 1280, 860
PATIENCE = 180_000

TARGET = Target(1.02)


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU seconds up to one moment, and the newest step: its number and when it was done."""

    training: float
    server: float
    browser: float
    step: int
    at: float
    now: float


@dataclass(frozen=True, slots=True)
class Turn:
    """One stretch of training: seconds a step, by the clock and of the app's CPU; CPU seconds a second of the rest."""

    wall: float
    cpu: float
    server: float
    browser: float


def measure(options: Options) -> Iterator[Row]:
    """Yield the rows, or none where there is no browser to watch with."""
    reason = lack()
    if reason:
        sys.stderr.write(f"page/open over closed: left out, {reason}.\n")
        return
    turns: dict[str, list[Turn]] = {"open": [], "closed": []}
    with _training() as (app, page):
        for _ in range(QUICK_PAIRS if options.quick else PAIRS):
            for name, each in turns.items():
                page.goto(app.url if name == "open" else "about:blank")
                if name == "open":
                    page.locator("#curves svg").wait_for()
                each.append(_turn(app, QUICK_SECONDS if options.quick else SECONDS))
    opened, closed = turns["open"], turns["closed"]
    yield ratio_row("page/open over closed", [each.cpu for each in opened], [each.cpu for each in closed], TARGET)
    wall = [[each.wall for each in turn] for turn in (opened, closed)]
    yield ratio_row("page/open over closed, by the clock", *wall, TARGET)
    for name, turn in turns.items():
        yield median_row(f"page/{name}, step", [1000 * each.wall for each in turn], "ms")
        yield median_row(f"page/{name}, CPU of a step", [1000 * each.cpu for each in turn], "ms")
        yield median_row(f"page/{name}, CPU of the server", [1000 * each.server for each in turn], "ms/s")
        yield median_row(f"page/{name}, CPU of the browser", [1000 * each.browser for each in turn], "ms/s")


def lack() -> str:
    """Return what is missing, in words; an empty text where nothing is."""
    if sys.platform != "linux":
        return "CPU time of single threads is read as Linux tells it"
    if CHROMIUM is None:
        return "there is no Chromium; put one on the PATH or name it in TRAINER_CHROMIUM"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed; it comes with the extra test"
    return ""


@contextmanager
def _training() -> Iterator[tuple[App, Page]]:
    """Yield an app that trains the demo, and a browser's page."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        (folder / "demo").symlink_to(PROJECT / "demo")
        app = start_app(folder, folder / "own")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET_BROWSER)
        try:
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.goto(app.url)
            page.locator("#plan section").first.wait_for()
            for key, text in {"max_train_epochs": str(EPOCHS), "sample_prompts": ""}.items():
                page.fill(f"#{key}", text)
                page.press(f"#{key}", "Tab")
            page.locator("#total-steps", has_text=f"{48 * EPOCHS:,}").wait_for()
            page.click("#start")
            page.wait_for_function(
                f"() => parseInt(document.querySelector('[data-number=step]').textContent) > {WARM_STEPS}",
                timeout=PATIENCE,
            )
            yield app, page
        finally:
            browser.close()
            app.process.kill()
            app.process.wait()


def _turn(app: App, seconds: float) -> Turn:
    time.sleep(SETTLING_SECONDS)
    first = _spent(app)
    time.sleep(seconds)
    last = _spent(app)
    passed, steps = last.now - first.now, last.step - first.step
    wall = (last.at - first.at) / steps
    busy = (last.training + last.server - first.training - first.server) / passed
    return Turn(wall, busy * wall, (last.server - first.server) / passed, (last.browser - first.browser) / passed)


def _spent(app: App) -> Spent:
    trainer = psutil.Process(app.process.pid)
    used, now = trainer.cpu_times(), time.time()
    whole = used.user + used.system
    training = max(each.user_time + each.system_time for each in trainer.threads())
    others = [each for each in psutil.Process().children(recursive=True) if each.name().startswith("chrom")]
    browser = sum(sum(each.cpu_times()[:2]) for each in others)
    step, at = _newest_step(app.folder / "outputs" / "demo.run" / "events.jsonl")
    return Spent(training, whole - training, browser, step, at, now)


def _newest_step(log: Path) -> tuple[int, float]:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        lines = file.read().splitlines()
    for line in reversed(lines):
        if line.startswith(b'{"event": "StepDone"') and line.endswith(b"}"):
            record = json.loads(line)
            return int(record["step"]), float(record["time"])
    raise RuntimeError(f"{str(log)!r} tells of no step")
