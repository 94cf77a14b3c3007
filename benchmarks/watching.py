"""What an open page costs the training that it shows: against the same with the page closed, and without any page.

The demo trains on one thread, in the page's process and in one of the command's, by turns; who has no turn is held
still. The browser stands in front, on the training's tab. Where it draws without a graphics card, it takes processor
and memory from the training beside it: that is part of the price.
"""

from __future__ import annotations

import json
import os
import subprocess
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
from tests.helpers.page import CHROMIUM, PROJECT, QUIET_BROWSER, start_app

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROUNDS, QUICK_ROUNDS = 12, 2
SECONDS, QUICK_SECONDS = 8.0, 3.0
SETTLING_SECONDS = 3.0
"""What opening or closing the page sets off is not counted: it happens once, not with every step."""
WARM_STEPS = 30
STEPS_PER_EPOCH, EPOCHS = 48, 500
"""The demo's, and more than will be trained."""
TAIL_BYTES = 20_000
WIDTH, HEIGHT = 1280, 860
PATIENCE_SECONDS = 180

TARGET = Target(1.02)


@dataclass(frozen=True, slots=True)
class Trainer:
    """A process that trains, and the folder of its run."""

    process: psutil.Process
    folder: Path

    def newest_step(self) -> tuple[int, float] | None:
        """Return the last step's number and when it was done, or None before the first."""
        log = self.folder / "events.jsonl"
        if not log.exists():
            return None
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            lines = file.read().splitlines()
        for line in reversed(lines):
            if line.startswith(b'{"event": "StepDone"') and line.endswith(b"}"):
                record = json.loads(line)
                return int(record["step"]), float(record["time"])
        return None

    def wait_until_warm(self) -> None:
        """Return after the first steps. Raises TimeoutError where there are none."""
        until = time.monotonic() + PATIENCE_SECONDS
        while (self.newest_step() or (0, 0.0))[0] < WARM_STEPS:
            if time.monotonic() > until:
                raise TimeoutError(f"{str(self.folder)!r}: no {WARM_STEPS} steps within {PATIENCE_SECONDS} s")
            time.sleep(0.2)


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
        sys.stderr.write(f"page/open over headless: left out, {reason}.\n")
        return
    turns: dict[str, list[Turn]] = {"open": [], "closed": [], "headless": []}
    with _page_training() as (url, ours, page), _headless_training(ours.folder) as headless:
        for _ in range(QUICK_ROUNDS if options.quick else ROUNDS):
            for name, each in turns.items():
                _take_turn(name, url, page, ours, headless)
                each.append(_turn(headless if name == "headless" else ours, options))
        ours.process.resume()
    opened = turns["open"]
    for name in ("headless", "closed"):
        cpu, wall = [[(turn.cpu, turn.wall)[which] for turn in turns[name]] for which in (0, 1)]
        yield ratio_row(f"page/open over {name}, CPU of a step", [turn.cpu for turn in opened], cpu, TARGET)
        yield ratio_row(f"page/open over {name}, time of a step", [turn.wall for turn in opened], wall, TARGET)
    for name, each in turns.items():
        yield median_row(f"page/{name}, step", [1000 * turn.wall for turn in each], "ms")
        yield median_row(f"page/{name}, beside the training", [1000 * turn.server for turn in each], "ms/s")
        yield median_row(f"page/{name}, browser", [1000 * turn.browser for turn in each], "ms/s")


def _take_turn(name: str, url: str, page: Page, ours: Trainer, headless: Trainer) -> None:
    """Let one of the two train, with the page open or closed."""
    first, second = (headless, ours) if name == "headless" else (ours, headless)
    second.process.suspend()
    first.process.resume()
    page.goto(url if name == "open" else "about:blank")
    if name == "open":
        page.locator("#curves canvas").wait_for()
    time.sleep(SETTLING_SECONDS)


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
def _page_training() -> Iterator[tuple[str, Trainer, Page]]:
    """Yield an app that trains the demo: its address, its process, and a browser's page."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        folder = Path(place)
        (folder / "demo").symlink_to(PROJECT / "demo")
        app = start_app(folder, folder / "own")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET_BROWSER)
        trainer = Trainer(psutil.Process(app.process.pid), folder / "outputs" / "demo.run")
        try:
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.goto(app.url)
            page.locator("#plan section").first.wait_for()
            for key, text in {"max_train_epochs": str(EPOCHS), "sample_prompts": ""}.items():
                page.fill(f"#{key}", text)
                page.press(f"#{key}", "Tab")
            page.locator("#total-steps", has_text=f"{STEPS_PER_EPOCH * EPOCHS:,}").wait_for()
            page.click("#start")
            trainer.wait_until_warm()
            yield app.url, trainer, page
        finally:
            browser.close()
            app.process.kill()
            app.process.wait()


@contextmanager
def _headless_training(run: Path) -> Iterator[Trainer]:
    """Yield the command that trains the same as a run, beside it."""
    settings, folder = run / "config.toml", run.parent.parent
    command = [sys.executable, "-m", "trainer", "train", str(settings), "--set", "output_name=headless"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            trainer = Trainer(psutil.Process(process.pid), run.with_name("headless.run"))
            trainer.wait_until_warm()
            yield trainer
        finally:
            process.kill()


def _turn(trainer: Trainer, options: Options) -> Turn:
    first = _spent(trainer)
    time.sleep(QUICK_SECONDS if options.quick else SECONDS)
    last = _spent(trainer)
    passed, steps = last.now - first.now, last.step - first.step
    wall = (last.at - first.at) / steps
    busy = (last.training + last.server - first.training - first.server) / passed
    return Turn(
        wall, busy * wall, max(0.0, last.server - first.server) / passed, (last.browser - first.browser) / passed
    )


def _spent(trainer: Trainer) -> Spent:
    used, now = trainer.process.cpu_times(), time.time()
    whole = used.user + used.system
    training = max(each.user_time + each.system_time for each in trainer.process.threads())
    others = [each for each in psutil.Process().children(recursive=True) if each.name().startswith("chrom")]
    browser = sum(sum(each.cpu_times()[:2]) for each in others)
    step, at = trainer.newest_step() or (0, now)
    return Spent(training, whole - training, browser, step, at, now)
