"""The page in a real browser: nothing typed is lost, nothing is overwritten unasked, and all of it is seen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from tests.helpers.browser import NEEDS_BROWSER, fill, open_more, opened, small_run
from tests.helpers.page import App, start_app

pytestmark = NEEDS_BROWSER

LEAST_CONTRAST = 3.0

CONTRAST = """(element) => {
    const parts = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((each) => each / 255)
        .map((each) => each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
        .reduce((sum, each, place) => sum + each * [0.2126, 0.7152, 0.0722][place], 0);
    const solid = (node) => {
        for (; node; node = node.parentElement) {
            const found = parts(getComputedStyle(node).backgroundColor);
            if (found.length && (found[3] === undefined || found[3] > 0)) return found;
        }
        return [255, 255, 255];
    };
    const edge = light(parts(getComputedStyle(element).borderTopColor));
    return [solid(element), solid(element.parentElement)].map(light)
        .map((each) => (Math.max(each, edge) + 0.05) / (Math.min(each, edge) + 0.05));
}"""


def shows(page: Page, **values: str) -> None:
    """See that the fields come to these values."""
    for key, value in values.items():
        expect(page.locator(f"#{key}")).to_have_value(value)


def undo_line(page: Page) -> Locator:
    return page.locator("#undo .undo")


def own_pictures(folder: Path, name: str = "3_zwx dog") -> Path:
    """Make a folder of pictures of one's own."""
    (folder / name).mkdir(parents=True)
    Image.new("RGB", (512, 512), "red").save(folder / name / "one.png")
    return folder


# --- what is typed is not lost --------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["apply", "open", "reset", "defaults", "offer"])
def test_what_replaces_the_form_can_be_taken_back_and_brought_again(app: App, tab: Page, act: str) -> None:
    for key, text in {"network_dim": "7", "sample_prompts": "mine alone"}.items():
        fill(tab, key, text)
        expect(tab.locator(f"[data-field={key}]")).to_have_class(re.compile("own"))  # the program has it
    if act == "offer":
        before = {"learning_rate": tab.locator("#learning_rate").input_value()}
        tab.select_option("#optimizer_type", "Prodigy")
        tab.get_by_role("tab", name="Plan").click()
        tab.locator("#problems .small", has_text="Set Learning rate to 1").click()
        changed = {"learning_rate": "1"}
    else:
        if act == "apply":
            tab.select_option("#preset", "sd15-style")
            expect(tab.locator("#preset-preview")).to_contain_text("Apply changes")
            tab.click("#preset-apply")
        elif act == "open":
            open_more(tab)
            tab.fill("#toml-path", str(small_run(app.folder, "opened", sample_prompts="from the file")))
            tab.click("#toml-open")
        else:
            open_more(tab)
            tab.click("#reset-preset" if act == "reset" else "#reset-defaults")
        changed = {"network_dim": {"apply": "64", "open": "4", "reset": "8", "defaults": "32"}[act]}
        before = {"network_dim": "7", "sample_prompts": "mine alone"}
    shows(tab, **changed)
    undo_line(tab).get_by_role("button", name="Undo").click()
    shows(tab, **before)
    undo_line(tab).get_by_role("button", name="Redo").click()
    shows(tab, **changed)
    tab.reload()
    undo_line(tab).get_by_role("button", name="Undo").click()
    shows(tab, **before)
    undo_line(tab).get_by_role("button", name="Hide this").click()
    expect(undo_line(tab)).to_have_count(0)


def test_saving_over_a_preset_and_deleting_one_ask_first(app: App, tab: Page) -> None:
    kept = app.own / "mine.toml"
    open_more(tab)
    tab.click("#preset-save")
    expect(tab.locator("#preset-told")).to_contain_text("Type a name for the preset first")
    for rank, answers in (("5", []), ("6", ["Cancel"]), ("6", ["Save"])):
        fill(tab, "network_dim", rank)
        tab.fill("#preset-name", "mine")
        tab.click("#preset-save")
        question = tab.get_by_role("alertdialog", name="Save over it?")
        for answer in answers:
            assert "network_dim = 5" in kept.read_text()
            question.get_by_role("button", name=answer).click()
            expect(question).to_have_count(0)
        if answers != ["Cancel"]:
            expect(tab.locator("#preset-told")).to_contain_text("Saved as mine")
    assert "network_dim = 6" in kept.read_text()
    tab.select_option("#preset", "demo")
    expect(tab.locator("#preset-preview")).to_contain_text("Apply changes")
    expect(tab.locator("#preset-delete")).to_have_count(0)
    tab.select_option("#preset", "mine")
    for answer, there in (("Cancel", True), ("Delete", False)):
        tab.click("#preset-delete")
        question = tab.get_by_role("alertdialog", name="Delete the preset?")
        question.get_by_role("button", name=answer).click()
        expect(question).to_have_count(0)
        if not there:
            expect(tab.locator("#preset-told")).to_contain_text("Deleted mine")
        assert kept.exists() is there
    shows(tab, network_dim="6")


def test_no_file_is_written_over_and_no_folder_made_without_a_question(app: App, tab: Page) -> None:
    theirs, missing = app.folder / "pyproject.toml", app.folder / "new" / "deep" / "mine.toml"
    theirs.write_text("[project]\n")
    open_more(tab)
    question = tab.get_by_role("alertdialog", name="Save the settings?")
    for path, words in ((theirs, "not of this page's making"), (missing, "is not there yet")):
        tab.fill("#toml-path", str(path))
        tab.click("#toml-save")
        expect(question).to_contain_text(words)
        question.get_by_role("button", name="Cancel").click()
        expect(question).to_have_count(0)
    assert theirs.read_text() == "[project]\n"
    assert not missing.parent.exists()
    tab.click("#toml-save")
    question.get_by_role("button", name="Save").click()
    expect(tab.locator("#preset-told")).to_contain_text("Saved to")
    assert 'output_name = "demo"' in missing.read_text()
    link = app.folder / "link.toml"
    link.symlink_to(theirs)
    tab.fill("#toml-path", str(link))
    tab.click("#toml-save")
    expect(tab.locator("#preset-told")).to_contain_text("is a link")
    assert theirs.read_text() == "[project]\n"


# --- from the demo to one's own -------------------------------------------------------------------------------------


def test_own_pictures_leave_the_demo_in_one_step(app: App, tab: Page) -> None:
    fill(tab, "network_dim", "16")
    fill(tab, "train_data_dir", str(own_pictures(app.folder / "dogs")))
    shows(
        tab,
        output_name="zwx_dog",
        sample_prompts="zwx dog",
        reg_data_dir="",
        pretrained_model_name_or_path="",
        resolution="512,512",
        network_dim="16",
    )
    expect(tab.locator("#problems")).to_contain_text("Base model")
    expect(undo_line(tab)).to_contain_text("Your own pictures: what only the demo can use was dropped")
    undo_line(tab).get_by_role("button", name="Undo").click()
    shows(tab, output_name="demo")
    expect(tab.locator("#train_data_dir")).to_have_value(str(app.folder / "dogs"))
    fill(tab, "train_data_dir", "nowhere/at/all")
    shows(tab, output_name="demo")


# --- what is said is so ---------------------------------------------------------------------------------------------


def test_problems_speak_in_labels_and_a_refused_start_is_not_green(tab: Page) -> None:
    tab.select_option("#optimizer_type", "Prodigy")  # which takes one rate, and the demo has two
    expect(tab.locator("#problems")).to_contain_text("attention")
    expect(tab.locator("#problems")).not_to_contain_text(re.compile(r"[a-z]+_[a-z]+"))
    tab.click("#start")
    expect(tab.locator(".pill")).to_contain_text("Not started: ")
    expect(tab.locator(".pill")).to_have_class("pill refused")
    expect(tab.locator(".progress")).to_have_attribute("aria-valuenow", "0")


def test_the_steps_are_one_number_that_the_sum_reaches(tab: Page) -> None:
    expect(tab.locator("#total-steps")).to_have_text("672")
    expect(tab.locator(".steps .sum")).to_have_text(
        "(12 × 12 images × repeats + 24 × 1 + 24 × 1 regularisation + 96 taken again) ÷ 6 a batch = 48 an epoch; "
        "× 14 epochs = 672 steps"
    )
    fill(tab, "train_batch_size", "7")
    expect(tab.locator(".steps .sum")).to_contain_text(
        "÷ 7 a batch, rounded up, = 42 an epoch; × 14 epochs = 588 steps"
    )
    expect(tab.locator("#total-steps")).to_have_text("588")


def test_what_is_changed_in_one_tab_is_seen_in_the_other(app: App, tab: Page) -> None:
    other = opened(tab.context.new_page(), app)
    fill(other, "network_alpha", "3")
    tab.evaluate("NEWS.ask()")
    shows(tab, network_alpha="3")
    other.select_option("#preset", "sd15-style")
    other.click("#preset-apply")
    tab.evaluate("NEWS.ask()")
    shows(tab, network_alpha="32")


def test_a_preset_saved_in_one_tab_is_in_the_list_of_the_other(app: App, tab: Page) -> None:
    other = opened(tab.context.new_page(), app)
    tab.select_option("#preset", "sdxl-style")
    expect(tab.locator("#preset-preview")).to_contain_text("Apply changes")
    open_more(other)
    other.fill("#preset-name", "beside")
    other.click("#preset-save")
    expect(other.locator("#preset-told")).to_contain_text("Saved as beside")
    tab.evaluate("NEWS.ask()")
    expect(tab.locator("#preset option[value=beside]")).to_have_text("beside (own)")
    shows(tab, preset="sdxl-style")
    expect(tab.locator("#preset-preview")).to_contain_text("Apply changes")
    (app.own / "beside.toml").unlink()
    tab.evaluate("NEWS.ask()")
    expect(tab.locator("#preset option[value=beside]")).to_have_count(0)


def test_a_program_folder_that_cannot_be_written_costs_a_sentence(tmp_path: Path, page: Page) -> None:
    (tmp_path / "own").write_text("no folder")
    app = start_app(tmp_path, tmp_path / "own")
    try:
        opened(page, app)
        fill(page, "network_dim", "12")
        fill(page, "train_batch_size", "3")
        expect(page.locator(".steps .sum")).to_contain_text("÷ 3 a batch")
        page.evaluate("NEWS.ask()")
        expect(page.locator("#form-note")).to_contain_text("The form is not kept for the next start")
        open_more(page)
        page.fill("#preset-name", "mine")
        page.click("#preset-save")
        expect(page.locator("#preset-told")).to_contain_text("it cannot be written")
        assert "Traceback" not in app.log.read_text(errors="replace")
    finally:
        assert app.stop() == 0


# --- how it looks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_can_be_typed_in_or_pressed_has_an_edge_that_is_seen(app: App, tab: Page, scheme: str) -> None:
    tab.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    opened(tab, app)
    for place in ("#network_dim", "#sample_prompts", "#preset", "#preset-apply", "#optimizer_type", "[data-browse]"):
        for contrast in tab.locator(place).first.evaluate(CONTRAST):
            assert contrast >= LEAST_CONTRAST, (place, contrast)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_button_that_throws_away_is_in_a_warnings_colour(app: App, tab: Page, scheme: str) -> None:
    tab.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    opened(tab, app)
    shown, meant, plain = tab.evaluate("""() => {
        const abort = document.getElementById('abort'), probe = document.body.appendChild(document.createElement('i'));
        const colour = (each) => getComputedStyle(each).color;
        const plain = colour(document.getElementById('pause'));
        abort.style.transition = 'none';
        abort.disabled = false;
        probe.style.color = getComputedStyle(abort).getPropertyValue('--bad');
        return [colour(abort), colour(probe), plain];
    }""")
    assert shown == meant != plain


def test_there_is_one_heading_and_the_preset_box_is_a_plain_list(tab: Page) -> None:
    expect(tab.locator("h1")).to_have_text("LoRA trainer")
    expect(tab.locator("h1")).to_have_count(1)
    tab.focus("#preset")
    tab.keyboard.type("SDXL s")
    shows(tab, preset="sdxl-style")
    tab.keyboard.press("Tab")
    expect(tab.locator("#preset-apply")).to_be_focused()
    expect(tab.locator("#preset").get_by_role("option", name="Demo")).to_be_hidden()


@pytest.mark.parametrize("width", [1280, 1920, 2560])
def test_the_bar_stands_above_all_and_in_line_with_what_is_below(tab: Page, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 900})
    left, right = (
        tab.locator(place).evaluate("each => [each.getBoundingClientRect().left, each.getBoundingClientRect().right]")
        for place in ("#form-side", "#watch-side")
    )
    bar, buttons = (tab.locator(place).bounding_box() for place in ("#brand", "#controls"))
    assert bar and buttons
    assert bar["x"] == pytest.approx(left[0], abs=1)
    assert buttons["x"] + buttons["width"] == pytest.approx(right[1], abs=1)
    for scrolled in range(100, 220, 15):  # as the preset's label passes below it
        tab.evaluate(f"window.scrollTo(0, {scrolled})")
        assert tab.evaluate("Boolean(document.elementFromPoint(60, 60).closest('#top'))")


def test_on_a_phone_there_is_one_low_bar_and_the_run_is_a_tap_away(tab: Page) -> None:
    tab.set_viewport_size({"width": 390, "height": 844})
    settings, run = (tab.locator("#sides button", has_text=side) for side in ("Settings", "Run"))
    settings.click()  # where a run is known, the page begins with it
    expect(tab.locator("#network_dim")).to_be_visible()
    tab.evaluate("window.scrollTo(0, 900)")
    fixed = tab.evaluate("""[...document.querySelectorAll('body *')].filter((each) => {
        const kind = getComputedStyle(each).position, box = each.getBoundingClientRect();
        return (kind === 'fixed' || kind === 'sticky') && box.height && box.bottom > 0 && box.top < innerHeight
            && box.width > 100;
    }).map((each) => [each.id, each.getBoundingClientRect().height])""")
    assert [name for name, _ in fixed] == ["controls"]
    assert fixed[0][1] < 70
    for order in ("abort", "save-now", "pause"):
        expect(tab.locator(f"#{order}")).to_be_hidden()
    expect(tab.locator("#plan")).to_be_hidden()
    run.click()
    tab.get_by_role("tab", name="Plan").click()
    expect(tab.locator("#total-steps")).to_be_in_viewport()
    expect(tab.locator("#network_dim")).to_be_hidden()
