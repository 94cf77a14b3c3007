"""The page of a run, under way and long after: in two tabs, after a kill and a resume, laid over another, cloned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.helpers.browser import NEEDS_BROWSER, PATIENCE, comes_to, open_file, opened, small_run
from tests.helpers.page import start_app
from trainer.config import load_config
from trainer.ground.events import StepDone
from trainer.results.event_log import read_events
from trainer.run import train

pytestmark = NEEDS_BROWSER

PROMPT = "a sks emblem --w 64 --h 64 --s 2 --d 1"


def steps_of(folder: Path) -> list[int]:
    return [event.step for event in read_events(folder / "events.jsonl") if isinstance(event, StepDone)]


def plotted(page: Page) -> dict[str, object]:
    """What the plot holds: its run, and the steps of the curve of single steps."""
    page.wait_for_function(
        "() => { const plot = CURVES.shown.get(document.querySelector('[data-curves]')); "
        "return plot && plot.found && plot.found.name === plot.name; }"
    )
    return page.evaluate("""() => { const {found, other} = CURVES.shown.get(document.querySelector('[data-curves]'));
        return {name: found.name, other: other && other.name, resumes: found.marks.resumes, saves: found.marks.saves,
                steps: found.curves['each step'].x}; }""")


def test_killed_resumed_ended_and_looked_at_again(tmp_path: Path, browser: Browser) -> None:
    """Watched from two tabs and reloaded, the program killed in the middle, started again, resumed: nothing is lost."""
    app = start_app(tmp_path, tmp_path / "own")
    settings = {"max_train_steps": 120, "sample_prompts": PROMPT, "sample_every_n_steps": 15, "save_every_n_steps": 15}
    path = small_run(tmp_path, "cat", **settings, train_batch_size=1, save_state_minutes=0.001)
    page, other = browser.new_page(), None
    try:
        opened(page, app)
        open_file(page, path)
        page.click("#start")
        expect(page.locator("#samples img").first).to_be_attached(timeout=PATIENCE)
        expect(page.locator("#run-head h3")).to_contain_text("cat")
        other = opened(browser.new_page(), app)
        expect(other.locator("#run-head h3")).to_contain_text("cat")
        expect(other.locator("#curves canvas")).to_be_visible()
        page.reload()
        expect(page.locator("#curves canvas")).to_be_visible()
        app.process.kill()
        app.process.wait()
    finally:
        for each in (page, other):
            if each:
                each.close()
        app.process.kill()
    folder = tmp_path / "outputs" / "cat.run"
    before = steps_of(folder)
    assert before and before[-1] < 120, "killed too late to be in the middle"
    again = start_app(tmp_path, tmp_path / "own")
    page = browser.new_page()
    try:
        opened(page, again)
        expect(page.locator("#interruption")).to_contain_text("Interrupted after step")
        assert plotted(page)["steps"] == before
        page.locator("#interruption button", has_text="Resume").click()
        comes_to(page, "Finished")
        expect(page.locator("#ending")).to_contain_text("Done: cat.safetensors")
        page.evaluate("NEWS.ask()")
        expect(page.locator("[data-curves]")).to_have_attribute("data-step", "120")
        page.wait_for_function("() => CURVES.shown.get(document.querySelector('[data-curves]')).found?.step === 120")
        seen = plotted(page)
        assert seen["steps"] == list(range(1, 121)) == steps_of(folder)
        assert len(seen["resumes"]) == 1  # type: ignore[arg-type]
        expect(page.locator("#samples img")).to_have_count(8)
        expect(page.locator("#files tr")).to_have_count(8)
        expect(page.locator("#picture-losses")).to_contain_text("Training pictures")
        page.locator("#picture-losses > summary").click()
        page.locator(".picture-row summary").first.click()
        expect(page.locator(".picture-open img").first).to_have_js_property("naturalWidth", 64)
        page.close()
    finally:
        assert again.stop() == 0


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs that ended, of the terminal."""
    folder = tmp_path_factory.mktemp("two")
    for name, rate in (("one", 1e-3), ("two", 1e-4)):
        path = small_run(folder, name, max_train_steps=4, learning_rate=rate, output_dir=str(folder / "outputs"))
        train(load_config(path), emit=lambda event: None)
    return folder


def test_runs_of_last_month_are_opened_laid_over_cloned_renamed_deleted(two_runs: Path, browser: Browser) -> None:
    app = start_app(two_runs, two_runs / "own")
    page = browser.new_page()
    try:
        opened(page, app)
        expect(page.locator("#run-head h3")).to_contain_text("two")  # the newest is in front
        page.get_by_role("tab", name="Runs").click()
        page.locator("[data-open-run=one]").click()
        expect(page.locator("#run-head h3")).to_contain_text("one")
        page.reload()
        expect(page.locator("#run-head h3")).to_contain_text("one")
        assert plotted(page)["steps"] == [1, 2, 3, 4]
        page.locator("[data-compare]").select_option("two")
        expect(page.locator(".comparison")).to_contain_text("Learning rate")
        page.wait_for_function("() => CURVES.shown.get(document.querySelector('[data-curves]')).other")
        assert plotted(page)["other"] == "two"
        for group in ("Learning rate", "Gradient", "Time"):
            page.locator("[data-group]", has_text=group).click()
            expect(page.locator(".legend-line")).not_to_be_empty()

        page.fill("#notes textarea", "better at 0.8")
        page.locator("#notes button").click()
        expect(page.locator("#run-told")).to_contain_text("kept")
        assert (two_runs / "outputs" / "one.run" / "notes.txt").read_text() == "better at 0.8"
        (two_runs / "loras").mkdir()
        page.fill("#lora-folder", str(two_runs / "loras"))
        page.locator("#files [data-act=copy-file]").first.click()
        expect(page.locator("#run-told")).to_contain_text("Copied to")
        assert (two_runs / "loras" / "one.safetensors").read_bytes() == (
            two_runs / "outputs" / "one.safetensors"
        ).read_bytes()

        page.locator("#run-head button", has_text="Clone settings").click()
        expect(page.locator("#learning_rate")).to_have_value("0.001")
        expect(page.locator("#output_name")).to_have_value("one")
        page.get_by_role("tab", name="Training").click()
        page.locator("#run-head button", has_text="Rename").click()
        page.fill("[name=new_name]", "first")
        page.locator("#dialog button", has_text="Rename").click()
        expect(page.locator("#runs-told")).to_contain_text("one is first now")
        assert (two_runs / "outputs" / "first.safetensors").is_file()
        page.get_by_role("tab", name="Runs").click()
        page.locator("[data-open-run=two]").click()
        expect(page.locator("#run-head h3")).to_contain_text("two")
        page.locator("#run-head button", has_text="Delete").click()
        page.locator("#dialog button", has_text="Delete the run").click()
        expect(page.locator("#runs-told")).to_contain_text("two is deleted")
        assert not (two_runs / "outputs" / "two.run").exists()
        assert (two_runs / "outputs" / "two.safetensors").is_file()
        expect(page.locator("[data-open-run=two]")).to_have_count(0)
        assert re.search("Traceback", app.log.read_text(errors="replace")) is None
        page.close()
    finally:
        assert app.stop() == 0
