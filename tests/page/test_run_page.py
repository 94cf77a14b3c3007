"""The page of a run, under way and long after: in two tabs, after a kill and a resume, laid over another, cloned."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.helpers.browser import NEEDS_BROWSER, PATIENCE, comes_to, open_file, opened, small_run
from tests.helpers.page import App, start_app
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
    return page.evaluate("""() => { const {found, others} = CURVES.shown.get(document.querySelector('[data-curves]'));
        return {name: found.name, others: others.map((each) => each.name),
                resumes: found.marks.resumes, saves: found.marks.saves, steps: found.curves['each step'].x}; }""")


def test_killed_resumed_ended_and_looked_at_again(tmp_path: Path, browser: Browser) -> None:
    """Watched from two tabs and reloaded, the program killed in the middle, started again, resumed: nothing is lost."""
    app = start_app(tmp_path, tmp_path / "own")
    settings = {"max_train_steps": 120, "sample_prompts": PROMPT, "sample_every_n_steps": 30, "save_every_n_steps": 30}
    path = small_run(tmp_path, "cat", **settings, train_batch_size=1, sample_at_first=True)
    page, other, folder = browser.new_page(), None, tmp_path / "outputs" / "cat.run"
    try:
        opened(page, app)
        open_file(page, path)
        page.click("#start")
        while not (steps_of(folder) if (folder / "events.jsonl").exists() else ()):
            page.wait_for_timeout(50)
        page.click("#pause")  # so that it is in its middle however long looking at it takes
        comes_to(page, "Paused")
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
    before = steps_of(folder)
    assert before and before[-1] < 120, "paused too late to be in the middle"
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
        expect(page.locator("#samples img")).to_have_count(6)  # of five samplings, and one that is learned
        expect(page.locator("#files tr")).to_have_count(4)
        expect(page.locator("#picture-losses")).to_contain_text("Training pictures")
        page.locator("#picture-losses > summary").click()
        page.locator(".picture-row summary").first.click()
        expect(page.locator(".picture-open img").first).to_have_js_property("naturalWidth", 64)
        page.close()
    finally:
        assert again.stop() == 0


def in_front(page: Page, tab: str) -> None:
    """Wait until a tab is in front, which an answer of the program may be slow to bring there."""
    expect(page.get_by_role("tab", name=tab, exact=True)).to_have_attribute("aria-selected", "true")


@pytest.fixture(scope="module")
def three_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs that ended, of the terminal; the first is logged for TensorBoard too."""
    folder = tmp_path_factory.mktemp("three")
    more: dict[str, dict[str, object]] = {
        "three": {"train_batch_size": 1},
        "one": {"learning_rate": 1e-3, "log_with": "tensorboard"},
        "two": {"learning_rate": 1e-4},
    }
    for name, settings in more.items():
        path = small_run(folder, name, max_train_steps=4, output_dir=str(folder / "outputs"), **settings)
        train(load_config(path), emit=lambda event: None)
    return folder


@pytest.fixture(scope="module")
def app(three_runs: Path) -> Iterator[App]:
    made = start_app(three_runs, three_runs / "own")
    yield made
    assert made.stop() == 0
    assert re.search("Traceback", made.log.read_text(errors="replace")) is None


@pytest.fixture
def page(app: App, browser: Browser) -> Iterator[Page]:
    """The page with the run "one" in front."""
    page = opened(browser.new_page(), app)
    page.get_by_role("tab", name="Runs").click()
    page.locator("[data-open-run=one]").click()
    expect(page.locator("#run-head h3")).to_contain_text("one")
    yield page
    page.close()


def test_runs_of_last_month_are_looked_at_and_laid_over(app: App, page: Page, three_runs: Path) -> None:
    page.reload()
    expect(page.locator("#run-head h3")).to_contain_text("one")
    assert plotted(page)["steps"] == [1, 2, 3, 4]
    page.locator("[data-compare]").select_option("two")
    expect(page.locator(".comparison")).to_contain_text("Learning rate")
    page.locator("[data-compare]").select_option("three")
    laid_over = "() => CURVES.shown.get(document.querySelector('[data-curves]')).others.length === {}"
    page.wait_for_function(laid_over.format(2))
    assert plotted(page)["others"] == ["two", "three"]
    expect(page.locator(".comparison tr").first).to_contain_text("onetwothree")
    spike = "Array(200).fill(0.1).with(50, 3)"
    line = f"{{steps: [...Array(200).keys()], values: {spike}, wild: {spike}}}"
    assert page.evaluate(f"extent([{line}], {{low: 0, high: 199}}, false).most") < 0.2, "a spike squeezes nothing"
    assert page.evaluate("ticks(0.09, 0.35, true)") == [0.1, 0.2, pytest.approx(0.3)]
    page.locator("[data-over]").select_option("pictures")
    expect(page.locator(".legend-line")).to_contain_text("three: smoothed")
    page.locator("[data-drop=two]").click()
    page.wait_for_function(laid_over.format(1))
    assert plotted(page)["others"] == ["three"]
    for group in ("Learning rate", "Gradient", "Time"):
        page.locator("[data-group]", has_text=group).click()
        expect(page.locator(".legend-line")).not_to_be_empty()

    page.fill("#notes textarea", "better at 0.8")
    page.locator("#notes button").click()
    expect(page.locator("#run-told")).to_contain_text("kept")
    assert (three_runs / "outputs" / "one.run" / "notes.txt").read_text() == "better at 0.8"
    (three_runs / "loras").mkdir()
    page.fill("#lora-folder", str(three_runs / "loras"))
    page.locator("#files [data-act=copy-file]").first.click()
    expect(page.locator("#run-told")).to_contain_text("Copied to")
    copy, original = (three_runs / folder / "one.safetensors" for folder in ("loras", "outputs"))
    assert copy.read_bytes() == original.read_bytes()


def test_tensorboard_answers_behind_the_guard(app: App, page: Page) -> None:
    board = f"{app.url}/{page.locator('#run-head a', has_text='TensorBoard').get_attribute('href')}"
    assert "<title>TensorBoard</title>" in page.request.get(board).text()
    assert "loss/current" in page.request.get(f"{board}data/plugin/timeseries/tags").text()
    assert page.request.get(board, headers={"Host": "elsewhere.example"}).status == 421
    assert page.request.post(board, headers={"Origin": "http://elsewhere.example"}).status == 403
    assert page.request.get(f"{app.url}/tensorboard/two/").status == 404


def test_on_a_phone_an_earlier_run_comes_first(app: App, browser: Browser) -> None:
    phone = opened(browser.new_page(viewport={"width": 390, "height": 844}), app)
    expect(phone.locator("#main")).to_have_attribute("data-side", "watch")
    phone.close()


def test_runs_are_cloned_renamed_and_deleted(app: App, page: Page, three_runs: Path) -> None:
    page.locator("#run-head button", has_text="Clone settings").click()
    expect(page.locator("#learning_rate")).to_have_value("0.001")
    expect(page.locator("#output_name")).to_have_value("one")
    in_front(page, "Plan")
    page.get_by_role("tab", name="Training").click()
    page.locator("#run-head button", has_text="Rename").click()
    page.fill("[name=new_name]", "first")
    page.locator("#dialog button", has_text="Rename").click()
    expect(page.locator("#runs-told")).to_contain_text("one is first now")
    assert (three_runs / "outputs" / "first.safetensors").is_file()
    in_front(page, "Runs")
    page.locator("[data-open-run=two]").click()
    in_front(page, "Training")
    expect(page.locator("#run-head h3")).to_contain_text("two")
    page.locator("#run-head button", has_text="Delete").click()
    page.locator("#dialog button", has_text="Delete the run").click()
    expect(page.locator("#runs-told")).to_contain_text("two is deleted")
    assert not (three_runs / "outputs" / "two.run").exists()
    assert (three_runs / "outputs" / "two.safetensors").is_file()
    expect(page.locator("[data-open-run=two]")).to_have_count(0)
