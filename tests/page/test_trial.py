"""The samples of a run as a grid to leaf through, prompts changed on the way, its files tried out, one of them kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.helpers.browser import NEEDS_BROWSER, PATIENCE, comes_to, open_file, opened, small_run
from tests.helpers.page import PROJECT, App, start_app
from trainer.ground.events import SampleReady
from trainer.results import prompt_changes
from trainer.results.event_log import read_events
from trainer.results.run_folder import RunFolder

pytestmark = NEEDS_BROWSER

PROMPT = "a sks emblem --w 64 --h 64 --s 2 --d 1"
OTHER = "a red ring --w 64 --h 64 --s 2 --d 2"


def data_of(path: Path) -> bytes:
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def label(page: Page) -> str:
    return page.locator("#lightbox .what b").inner_text()


def half_of_the_pictures(folder: Path) -> Path:
    """Return a folder with six of the demo's pictures: epochs of 36 steps of two."""
    [concept] = [each for each in (PROJECT / "demo" / "pictures").iterdir() if each.is_dir()]
    (folder / "pictures" / concept.name).mkdir(parents=True)
    for path in sorted(concept.iterdir())[:12]:  # each picture is followed by its caption
        shutil.copy(path, folder / "pictures" / concept.name)
    return folder / "pictures"


def change_prompts(page: Page) -> None:
    """Want another prompt beside the first; a file that may not be read is refused."""
    page.locator(".sample-prompts summary").click()
    expect(page.locator("#samples [name=prompts]")).to_have_value(PROMPT)
    page.fill("#samples [name=prompts]", "/etc/passwd.txt")
    page.locator("[data-act=change-prompts]").click()
    expect(page.locator("#run-told")).to_contain_text("outside the folders")
    page.fill("#samples [name=prompts]", f"{PROMPT}\n{OTHER}")
    page.locator("[data-act=change-prompts]").click()
    expect(page.locator(".sample-prompts .told")).to_contain_text("From the next pictures on")


def leaf_through(page: Page) -> None:
    """Go from picture to picture, lay two over one another, and see all of them over the whole window."""
    page.locator("#samples a.sample").first.click()
    expect(page.locator("#lightbox .frame .over")).to_have_js_property("naturalWidth", 64)
    assert label(page) == "base model"
    page.keyboard.press("ArrowRight")
    assert label(page) == "step 36"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert label(page) == "base model", "there is nothing before it"
    page.keyboard.press("ArrowDown")
    expect(page.locator("#lightbox .what span")).to_contain_text("a red ring")
    page.keyboard.press("ArrowUp")
    page.locator("#lightbox select").select_option(label="step 108")
    expect(page.locator("#lightbox .two .under")).to_be_visible()
    frame = page.locator("#lightbox .frame").bounding_box()
    assert frame is not None and abs(frame["width"] - frame["height"]) < 1, "as its square pictures, the seam as well"
    page.locator("#lightbox input").fill("25")
    assert page.evaluate("getComputedStyle(document.querySelector('#lightbox .under')).clipPath").count("75%") == 1
    page.keyboard.press("Escape")
    expect(page.locator("#lightbox")).not_to_be_visible()
    page.locator("#samples [data-wide]").click()
    box = page.locator("#samples").bounding_box()
    assert box is not None and box["width"] == page.evaluate("document.documentElement.clientWidth")
    expect(page.locator("#samples [data-wide]")).to_have_text("Back to the page", use_inner_text=True)
    page.locator("#samples [data-wide]").click()  # nothing lies over it
    box = page.locator("#samples").bounding_box()
    assert box is not None and box["width"] < page.evaluate("document.documentElement.clientWidth")


def stands_at_the_newest(page: Page) -> None:
    """In a narrow place the grid is scrolled to its newest pictures, and stays where a person scrolls it to."""
    sheet, ask = "document.querySelector('#samples .sheet')", "NEWS.ask()"
    page.evaluate(f"{sheet}.style.width = '300px'; {ask}")
    at_the_end = f"() => {sheet}.scrollLeft + {sheet}.clientWidth > {sheet}.scrollWidth - 2"
    page.wait_for_function(f"() => {sheet}.scrollLeft > 50 && ({at_the_end})()")
    wide = f"{sheet}.querySelector('.grid-cells > *').getBoundingClientRect().width"
    page.wait_for_function(f"() => Math.abs(3 * {wide} + 2 * 8 - 300) < 1")  # none is cut off
    page.evaluate(f"new Promise((done) => {{ {sheet}.onscroll = done; {sheet}.scrollLeft = 0; }}).then(() => {ask})")
    assert page.evaluate(f"{sheet}.scrollLeft") == 0
    page.evaluate(f"{sheet}.onscroll = null; {sheet}.style.width = ''")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("trial")
    made = start_app(folder, folder / "own")
    yield made
    assert made.stop() == 0
    assert "Traceback" not in made.log.read_text(errors="replace")


def test_grid_lightbox_prompts_trial_and_the_one_to_keep(app: App, browser: Browser) -> None:
    settings: dict[str, object] = {"sample_prompts": PROMPT, "sample_at_first": True}
    settings |= {"sample_every_n_epochs": 1, "save_every_n_epochs": 1}
    settings |= {"train_data_dir": str(half_of_the_pictures(app.folder)), "learning_rate": 3e-3}
    path = small_run(app.folder, "cat", **settings, max_train_epochs=3, train_batch_size=2)
    context = browser.new_context(permissions=["notifications"])
    context.add_init_script(
        "window.told = []; window.Notification = class { static permission = 'default';"
        "static async requestPermission() { return Notification.permission = 'granted'; }"
        "constructor(title, about) { told.push([title, about.body]); } close() {} }"
    )
    page = opened(context.new_page(), app)
    folder = RunFolder(app.folder / "outputs", "cat")
    open_file(page, path)
    page.click("[data-notify]")
    expect(page.locator("[data-notify]")).to_have_attribute("aria-pressed", "true")
    page.click("#start")
    while not (folder.events.exists() and any(isinstance(each, SampleReady) for each in read_events(folder.events))):
        page.wait_for_timeout(50)
    page.click("#pause")  # so that the run is in its first epochs, however slow the page is
    comes_to(page, "Paused")
    expect(page.locator("#samples a.sample").first).to_be_visible(timeout=PATIENCE)
    change_prompts(page)
    page.click("#pause")
    comes_to(page, "Finished")
    expect(page.locator("#samples .grid-row")).to_have_count(2, timeout=PATIENCE)
    page.wait_for_function("() => told.length > 0")  # it comes once the run has let go of all, after its last words
    assert page.evaluate("told") == [["cat is finished", "step 108 of 108"]]

    heads = ["base model", "step 36", "step 72", "step 108", "training picture"]
    expect(page.locator("#samples .grid-head span")).to_have_text(heads)
    drawn = [event for event in read_events(folder.events) if isinstance(event, SampleReady)]
    first = min(event.step for event in drawn if event.index == 1)
    assert [each.step for each in prompt_changes.changes(folder)] == [first]
    leaf_through(page)
    stands_at_the_newest(page)
    page.click("#ending [data-go=tried]")
    expect(page.locator("#tried h3")).to_be_in_viewport()
    page.fill("#tried [name=weights]", "0, 0.5, 1")
    page.fill("#tried [name=steps]", "two")
    page.click("#try-draw")
    expect(page.locator("#tried .problem-box")).to_contain_text("no whole number")
    page.fill("#tried [name=steps]", "2")
    page.click("#try-draw")
    expect(page.locator("#tried .told")).to_contain_text("9 pictures", timeout=PATIENCE)
    expect(page.locator("#tried a.sample")).to_have_count(9)
    expect(page.locator("#tried .grid-head span")).to_have_text(["weight 0", "weight 0.5", "weight 1"])
    wanted, before = data_of(folder.output_dir / "cat-000001.safetensors"), data_of(folder.lora)
    assert wanted != before
    page.locator("#tried [data-act=keep][data-file='cat-000001.safetensors']").click()
    page.locator("#dialog [data-act=keep]").click()
    expect(page.locator("#tried .told")).to_contain_text("cat.safetensors is cat-000001", timeout=PATIENCE)
    assert data_of(folder.lora) == wanted
    assert data_of(folder.output_dir / "cat-step00000108.safetensors") == before
    expect(page.locator("#files")).to_contain_text("cat-step00000108.safetensors")
    context.close()


def test_a_series_of_two_values(app: App, browser: Browser) -> None:
    path = small_run(app.folder, "dog", sample_prompts=PROMPT, sample_every_n_steps=4, validate_every_n_steps=2)
    page = opened(browser.new_page(), app)
    open_file(page, path)
    page.get_by_role("tab", name="Queue").click()
    page.locator("#series-form summary").click()
    page.select_option("[name=setting-0]", "network_dim")
    page.fill("[name=values-0]", "0, 2")
    page.click("#series-add")
    expect(page.locator("#queue-told")).to_contain_text("Rank")
    page.fill("[name=values-0]", "2, 4")
    page.click("#series-add")
    expect(page.locator("#queue-told")).to_contain_text("2 runs are in the queue")
    rows = page.locator(".series-table tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.locator(".badge.finished")).to_have_count(2, timeout=PATIENCE)
    expect(rows.nth(1)).to_contain_text("at step")
    expect(page.locator(".series a.sample")).to_have_count(2, timeout=PATIENCE)
    expect(page.locator(".series-table .badge.good")).to_have_count(1)
    page.close()
