"""The queue in the page: filled while a run is paused, one failing, the program killed in the middle, Continue."""

from __future__ import annotations

import shutil
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from tests.helpers.browser import NEEDS_BROWSER, PATIENCE, comes_to, open_file, opened, small_run
from tests.helpers.page import PROJECT, start_app
from trainer.config import load_config
from trainer.ground import events
from trainer.results.event_log import read_events

pytestmark = NEEDS_BROWSER

UNJUDGED = {"max_validation_share": 0.0}
"""Runs that are about something else than validation."""


def stands(page: Page, name: str, words: str) -> None:
    expect(page.locator(f"[data-entry={name}] .badge")).to_have_text(words, timeout=PATIENCE)


def listed(page: Page) -> list[str]:
    return page.locator("#queue [data-entry]").evaluate_all("rows => rows.map((row) => row.dataset.entry)")


def add(page: Page, path: Path) -> None:
    open_file(page, path)
    page.click("#start")
    expect(page.locator(f"[data-entry={path.stem}]")).to_be_visible(timeout=PATIENCE)


def go_on(tmp_path: Path, browser: Browser) -> None:
    """Start the program again and let the queue go on: what was in the middle, what waits, and not what failed."""
    again = start_app(tmp_path, tmp_path / "own")
    page = opened(browser.new_page(), again)
    try:
        page.get_by_role("tab", name="Queue").click()
        stands(page, "middle", "interrupted")
        stands(page, "last", "waiting")
        expect(page.locator("#queue")).to_contain_text("The queue stands; 2 runs wait.")
        expect(page.locator("#start")).to_have_text("Start")
        page.click("#queue-continue")
        stands(page, "middle", "finished")
        stands(page, "last", "finished")
        stands(page, "bad", "failed")
        expect(page.locator("#start")).to_have_text("Start")
        page.locator("#queue-done [data-act=queue-clear]").click()
        expect(page.locator("#queue")).to_contain_text("Nothing waits.")
        assert "Traceback" not in again.log.read_text(errors="replace")
        page.close()
    finally:
        assert again.stop() == 0


def test_three_runs_one_failing_killed_in_the_middle_continued(tmp_path: Path, browser: Browser) -> None:
    (tmp_path / "models").mkdir()
    model = Path(shutil.copy(PROJECT / "demo" / "model.safetensors", tmp_path / "models" / "gone.safetensors"))
    first = small_run(tmp_path, "first", max_train_steps=40, **UNJUDGED)
    bad = small_run(tmp_path, "bad", pretrained_model_name_or_path=str(model))
    middle = small_run(tmp_path, "middle", max_train_steps=100, train_batch_size=1, **UNJUDGED)
    last = small_run(tmp_path, "last", network_dim=2, **UNJUDGED)
    app = start_app(tmp_path, tmp_path / "own")
    page = opened(browser.new_page(), app)
    try:
        open_file(page, first)
        page.click("#start")
        page.click("#pause")
        comes_to(page, "Paused")
        expect(page.locator("#start")).to_have_text("Add to queue")
        for path in (last, bad, middle):
            add(page, path)
        model.unlink()
        assert listed(page) == ["last", "bad", "middle"]
        page.locator("[data-entry=last] [data-act=queue-down]").click()
        expect(page.locator("#queue [data-entry]").first).to_have_attribute("data-entry", "bad")
        page.locator("[data-entry=last] [data-act=queue-down]").click()
        expect(page.locator("#queue [data-entry]").last).to_have_attribute("data-entry", "last")
        for name in ("bad", "middle", "last"):
            stands(page, name, "waiting")  # a paused run is waited for
        page.locator("[data-entry=last] [data-act=queue-open]").click()
        expect(page.locator("#network_dim")).to_have_value("2")
        page.click("#pause")
        stands(page, "bad", "failed")
        expect(page.locator("[data-entry=bad] .problem")).to_contain_text("gone.safetensors")
        begun = tmp_path / "outputs" / "middle.run" / "events.jsonl"
        while not (begun.exists() and '"StepDone"' in begun.read_text()):
            page.wait_for_timeout(50)
        page.click("#pause")  # so that it is in its middle, however slow the page is
        comes_to(page, "Paused")
    finally:
        app.process.kill()
        app.process.wait()
        page.close()
    outputs = tmp_path / "outputs"
    assert (outputs / "first.safetensors").is_file() and not (outputs / "middle.safetensors").exists()

    go_on(tmp_path, browser)
    log = list(read_events(outputs / "middle.run" / "events.jsonl"))
    assert [event.step for event in log if isinstance(event, events.StepDone)] == list(range(1, 101))
    sittings = [event for event in log if isinstance(event, events.Started)]
    assert [event.resumed for event in sittings] == [False, True]
    after = next(read_events(outputs / "last.run" / "events.jsonl"))
    assert sittings[-1].time < log[-1].time < after.time, "what was in the middle goes first"
    assert load_config(outputs / "last.run" / "config.toml").network.network_dim == 2
    assert (outputs / "last.safetensors").is_file() and not list((tmp_path / "own" / "queue").glob("*.toml"))
