"""The page as people use it: a real process, a real browser, a real training of the demo model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from safetensors.numpy import load_file
from safetensors.torch import save_file

from tests.helpers.browser import NEEDS_BROWSER, PATIENCE, comes_to, fill, open_file, open_more, opened, small_run
from tests.helpers.families import TINY
from tests.helpers.page import PROJECT, App, start_app
from trainer.ground.events import Event, StepDone
from trainer.results.event_log import read_events
from trainer.training.device import gate_of
from trainer.training.precision import own_device

pytestmark = NEEDS_BROWSER


def problem(page: Page, key: str) -> str:
    return f"[data-field={key}] .problem"


def step_shown(page: Page) -> int:
    return int(page.inner_text("[data-number=step]").split("/")[0].replace(",", "").replace("–", "0"))


def is_step(event: Event) -> bool:
    return isinstance(event, StepDone)


# --- the form -------------------------------------------------------------------------------------------------------


def test_five_wrong_values_say_so_at_their_fields_and_in_one_list(tab: Page) -> None:
    wrong = {
        "resolution": "banana",
        "network_dim": "abc",
        "learning_rate": "-1",
        "max_train_epochs": "-3",
        "train_batch_size": "0",
    }
    right = {key: tab.input_value(f"#{key}") for key in wrong}
    for key, text in wrong.items():
        fill(tab, key, text)
    for key in wrong:
        expect(tab.locator(problem(tab, key))).to_contain_text("cannot be used")
    expect(tab.locator("#problems h3")).to_have_text("5 settings need attention")
    expect(tab.locator("#problems li")).to_have_count(5)
    tab.click("#start")
    expect(tab.locator(".pill")).to_contain_text("Not started")
    tab.locator("#problems .link", has_text="Rank").click()
    expect(tab.locator("#network_dim")).to_be_focused()
    for key, text in right.items():
        fill(tab, key, text)
    expect(tab.locator("#problems")).to_have_count(0)
    for key in wrong:
        expect(tab.locator(problem(tab, key))).to_be_hidden()


def test_what_is_typed_survives_a_reload_and_shows_in_another_tab(app: App, tab: Page) -> None:
    fill(tab, "network_alpha", "4")
    expect(tab.locator("[data-field=network_alpha]")).to_have_class(re.compile("own"))
    tab.reload()
    expect(tab.locator("#network_alpha")).to_have_value("4")
    other = opened(tab.context.new_page(), app)
    expect(other.locator("#network_alpha")).to_have_value("4")
    other.locator("[data-undo=network_alpha]").click()
    expect(other.locator("#network_alpha")).to_have_value("8")


def test_search_and_visibility_in_the_advanced_tab(tab: Page) -> None:
    tab.get_by_role("tab", name="Advanced").click()
    tab.fill("[data-search]", "huber")
    expect(tab.locator("#huber_c")).to_be_visible()
    expect(tab.locator("#noise_offset")).to_be_hidden()
    tab.fill("[data-search]", "")
    tab.locator(".group[data-group=Loss]").evaluate("group => group.open = true")
    expect(tab.locator("#huber_c")).to_be_hidden()
    tab.select_option("#loss_type", "huber")
    expect(tab.locator("#huber_c")).to_be_visible()
    tab.locator("[data-undo=loss_type]").click()
    expect(tab.locator("#huber_c")).to_be_hidden()


def test_the_tab_key_leads_from_field_to_field_and_f1_explains_one(tab: Page) -> None:
    tab.focus("#learning_rate")
    for key in ("network_dim", "network_alpha", "resolution"):
        tab.keyboard.press("Tab")
        expect(tab.locator(f"#{key}")).to_be_focused()
    tip = tab.locator("#resolution-more")
    tab.keyboard.press("F1")
    expect(tip).to_be_visible()
    expect(tab.locator("#resolution")).to_have_attribute("aria-describedby", re.compile("resolution-more"))
    tab.keyboard.press("Tab")
    expect(tip.locator("a").first).to_be_focused()
    tab.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    tab.locator("[data-more=resolution]").click()
    expect(tip).to_be_visible()


@pytest.mark.parametrize("optimizer", ["Prodigy", "DAdaptAdam"])
def test_an_optimizer_with_one_rate_offers_it_in_one_click(tab: Page, optimizer: str) -> None:
    """The demo has a rate for each part; whoever chooses Prodigy is led out without knowing that."""
    before = tab.locator("#learning_rate").input_value()
    tab.select_option("#optimizer_type", optimizer)
    tab.locator("#problems .small", has_text="Set Learning rate to 1").click()
    expect(tab.locator("#problems")).to_have_count(0)
    expect(tab.locator("#learning_rate")).to_have_value("1")
    expect(tab.locator("#advice")).not_to_contain_text("exactly 1")
    tab.get_by_role("tab", name="Advanced").click()
    expect(tab.locator("#unet_lr")).to_have_value("")
    expect(tab.locator("#text_encoder_lr")).to_have_value("1")
    tab.get_by_role("tab", name="Basic").click()
    open_more(tab)
    tab.click("#reset-preset")
    expect(tab.locator("#optimizer_type")).to_have_value("AdamW")
    expect(tab.locator("#learning_rate")).to_have_value(before)


def test_the_advice_of_a_rate_of_one_is_one_click_too(tab: Page) -> None:
    open_more(tab)
    tab.click("#reset-defaults")
    expect(tab.locator("#learning_rate")).to_have_value("0.0001")
    tab.select_option("#optimizer_type", "DAdaptAdam")
    tab.locator("#advice .small", has_text="Set Learning rate to 1").click()
    expect(tab.locator("#learning_rate")).to_have_value("1")


def test_a_folder_is_picked_in_the_dialog(app: App, tab: Page) -> None:
    (app.folder / "mine" / "3_zwx dog").mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(app.folder / "mine" / "3_zwx dog" / "one.png")
    tab.click("[data-browse=train_data_dir]")
    tab.locator(".chips button", has_text="Home").click()
    tab.locator(".entries button", has_text="mine/").click()
    expect(tab.locator(".where")).to_have_text(str(app.folder / "mine"))
    tab.locator(".closing .primary").click()
    expect(tab.locator("#train_data_dir")).to_have_value(str(app.folder / "mine"))
    expect(tab.locator("#dataset .folder").first).to_contain_text("3_zwx dog")
    expect(tab.locator("#dataset img").first).to_have_js_property("naturalWidth", 64)
    tab.locator("#undo button", has_text="Undo").click()
    tab.locator("[data-undo=train_data_dir]").click()
    expect(tab.locator("#dataset .folder").first).to_contain_text("sks emblem")


def test_what_suits_a_recognised_model_is_a_click_away(app: App, tab: Page) -> None:
    tensors = {key: torch.zeros(1) for key in TINY["sdxl"].original()}
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(1, 4, 1, 1)
    save_file(tensors, app.folder / "sd_xl.safetensors")
    tab.locator("#terminal summary").click()
    fill(tab, "pretrained_model_name_or_path", str(app.folder / "sd_xl.safetensors"))
    model = tab.locator("[data-field=pretrained_model_name_or_path]")
    expect(model.locator(".note")).to_contain_text("Stable Diffusion XL (fp32), made for 1024 × 1024")
    expect(tab.locator("#problems .link")).to_have_text("Picture folder")  # the demo's went with its model
    expect(tab.locator("#terminal")).to_have_attribute("open", "")  # sent anew, and still as it was left
    expect(tab.locator("#resolution")).to_have_value("512,512")
    model.locator(".offers button", has_text="Set Resolution to 1024,1024").click()
    expect(tab.locator("#resolution")).to_have_value("1024,1024")
    model.locator(".offers button", has_text="Preset: SDXL style").click()
    expect(tab.locator("#preset-preview")).to_contain_text("Apply changes")
    tab.click("#preset-apply")
    expect(tab.locator("#network_dim")).not_to_have_value("8")


def test_on_a_phone_nothing_is_wider_than_the_screen(tab: Page) -> None:
    tab.set_viewport_size({"width": 390, "height": 844})
    fill(tab, "pretrained_model_name_or_path", "/models/" + "a_very_long_name" * 20 + ".safetensors")
    expect(tab.locator("#problems")).to_be_attached()
    fill(tab, "sample_prompts", "w" * 2000)
    fill(tab, "output_name", "n" * 150)
    expect(tab.locator("[data-field=output_name] .note, [data-field=output_name] .problem").first).to_be_attached()
    for side in ("Advanced", "Training", "Runs"):
        if side == "Training":
            tab.locator("#sides button", has_text="Run").click()
        tab.get_by_role("tab", name=side).click()
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390, side


def test_a_path_outside_the_allowed_folders_is_refused(tab: Page) -> None:
    fill(tab, "train_data_dir", "/etc")
    expect(tab.locator(problem(tab, "train_data_dir"))).to_contain_text("outside the folders")
    tab.locator("[data-undo=train_data_dir]").click()
    expect(tab.locator(problem(tab, "train_data_dir"))).to_be_hidden()


def test_a_saved_preset_is_there_after_a_restart(app: App, tab: Page, browser: Browser) -> None:
    fill(tab, "network_dim", "6")
    open_more(tab)
    tab.fill("#preset-name", "six")
    tab.click("#preset-save")
    expect(tab.locator("#preset-told")).to_contain_text("Saved as six")
    tab.select_option("#preset", label="Demo")
    tab.click("#preset-apply")
    expect(tab.locator("#network_dim")).to_have_value("8")

    again = start_app(app.folder, app.own)
    try:
        page = opened(browser.new_page(), again)
        page.select_option("#preset", label="six (own)")
        expect(page.locator("#preset-preview")).to_contain_text("Rank")
        page.click("#preset-apply")
        expect(page.locator("#network_dim")).to_have_value("6")
        page.select_option("#preset", label="Demo")
        page.click("#preset-apply")
        expect(page.locator("#network_dim")).to_have_value("8")
        page.close()
    finally:
        assert again.stop() == 0


def test_the_page_asks_nobody_else(app: App, page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    opened(page, app)
    page.get_by_role("tab", name="Advanced").click()
    expect(page.locator("#advanced-fields [data-field]").first).to_be_attached()
    assert asked
    assert [url for url in asked if not url.startswith((app.url, "data:", "blob:"))] == []


def test_an_open_page_draws_nothing_while_nothing_happens(app: App, page: Page) -> None:
    """Every frame is paid for by the training: the loop that Gradio's loading screen leaves behind must be gone."""
    page.add_init_script(
        "const counted = requestAnimationFrame; window.asked = 0;"
        "window.requestAnimationFrame = (then) => { window.asked += 1; return counted(then); };"
    )
    opened(page, app)
    page.wait_for_function("() => window.asked > 0")

    def asked_in_a_second() -> int:
        before = int(page.evaluate("window.asked"))
        page.wait_for_timeout(1000)
        return int(page.evaluate("window.asked")) - before

    assert any(asked_in_a_second() < 10 for _ in range(10)), "frames without end"  # the screen's springs come to rest


def test_a_page_whose_program_is_gone_says_so(tab: Page) -> None:
    tab.route("**/news/*", lambda route: route.abort())
    tab.evaluate("NEWS.ask()")
    expect(tab.locator(".pill")).to_have_text("The program does not answer")
    tab.unroute("**/news/*")
    tab.evaluate("NEWS.ask()")
    expect(tab.locator(".pill")).not_to_have_text("The program does not answer")


# --- the run --------------------------------------------------------------------------------------------------------


def test_nothing_typed_then_start_watch_reload_second_tab_stop(app: App, tab: Page) -> None:
    for order in ("pause", "stop", "save-now", "sample-now", "abort"):
        expect(tab.locator(f"#{order}")).to_be_disabled()
    expect(tab.locator("#total-steps")).to_have_text(re.compile(r"^\d+$"))  # once the pictures are looked at
    planned = tab.inner_text("#total-steps")
    tab.click("#start")
    expect(tab.locator("#samples img").first).to_have_js_property("naturalWidth", 64, timeout=PATIENCE)
    expect(tab.locator("[data-number=step]")).to_have_text(re.compile(rf"^[1-9]\d* / {planned}$"), timeout=PATIENCE)
    loss, step, name = tab.inner_text("[data-number=loss]"), step_shown(tab), tab.inner_text(".run-name")
    expect(tab.locator("[data-number=loss]")).not_to_have_text(loss)
    expect(tab.locator("#curves canvas")).to_have_count(1)
    assert "Traceback" not in app.log.read_text(errors="replace"), "opening the page or the start failed unseen"

    tab.reload()
    expect(tab.locator(".pill")).to_have_text("Training")
    assert step_shown(tab) >= step
    other = opened(tab.context.new_page(), app)
    expect(other.locator(".run-name")).to_have_text(name)
    expect(other.locator("#start")).to_have_text("Add to queue")

    other.click("#pause")
    expect(other.locator("#pause")).to_have_text("Continue")
    expect(tab.locator("#pause")).to_have_text("Continue")
    paused = step_shown(other)
    tab.click("#pause")
    expect(tab.locator("[data-number=step]")).not_to_have_text(re.compile(rf"^{paused} /"))

    other.click("#stop")
    expect(other.locator(".pill")).to_have_text(re.compile("Stopping|Stopped"))
    answered = time.time()
    comes_to(other, "Stopped")
    comes_to(tab, "Stopped")
    folder = app.folder / "outputs" / f"{name}.run"
    steps = [event for event in read_events(folder / "events.jsonl") if is_step(event)]
    assert sum(event.time > answered for event in steps) <= 1
    other.get_by_role("tab", name="Training").click()
    expect(other.locator("#ending")).to_contain_text(f"{name}.safetensors")
    expect(other.locator("#files-panel")).to_contain_text(f"{name}.safetensors")
    assert (app.folder / "outputs" / f"{name}.safetensors").stat().st_size > 100_000
    assert (folder / "config.toml").is_file()
    other.get_by_role("tab", name="Runs").click()
    expect(other.locator(f"[data-run={name}] .badge")).to_have_text("stopped")


def test_who_has_the_device_is_told_in_the_page(tab: Page) -> None:
    gate = gate_of(own_device(), "training 'cat'", "started at the terminal")
    gate.take()
    try:
        tab.click("#start")
        comes_to(tab, "Failed")
    finally:
        gate.leave()
    expect(tab.locator("#failure h3")).to_have_text("Not started")
    expect(tab.locator("#failure")).to_contain_text("in use: training 'cat', started at the terminal (process")


def test_the_terminal_is_told_that_the_page_trains(app: App, tab: Page) -> None:
    open_file(tab, small_run(app.folder, "long", max_train_steps=100_000))  # there until it is aborted
    tab.click("#start")
    expect(tab.locator("[data-number=step]")).to_have_text(re.compile(r"^[1-9]"), timeout=PATIENCE)
    name = tab.inner_text(".run-name")
    command = [sys.executable, "-m", "trainer", "train", str(small_run(app.folder, "beside"))]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=app.folder, timeout=300, check=False
    )
    assert ended.returncode == 2
    assert f"in use: training '{name}', started in the page (process {app.process.pid}, since" in ended.stderr
    assert not (app.folder / "outputs" / "beside.safetensors").exists()
    expect(tab.locator(".pill")).to_have_text("Training")


def test_a_stopped_run_is_listed_and_goes_on_where_it_stopped(app: App, tab: Page) -> None:
    tab.click("#start")
    comes_to(tab, "Training")
    expect(tab.locator("[data-number=step]")).to_have_text(re.compile(r"^[1-9]"), timeout=PATIENCE)
    tab.click("#stop")
    comes_to(tab, "Stopped")
    stopped_at, name = step_shown(tab), tab.inner_text(".run-name")
    tab.get_by_role("tab", name="Runs").click()
    tab.locator(f"[data-run={name}]").get_by_role("button", name="Resume", exact=True).click()
    comes_to(tab, "Training")
    expect(tab.locator("#log")).to_contain_text(f"Resumed after step {stopped_at}:", timeout=PATIENCE)
    expect(tab.locator("[data-number=step]")).not_to_have_text(re.compile(rf"^{stopped_at} /"))
    tab.click("#abort")
    question = tab.get_by_role("alertdialog", name="Abort the run?")
    question.get_by_role("button", name="Cancel").click()
    expect(question).to_have_count(0)
    expect(tab.locator("#abort")).to_be_enabled()
    tab.click("#abort")
    question.get_by_role("button", name="Abort", exact=True).click()
    comes_to(tab, "Stopped")
    expect(tab.locator("#ending")).to_contain_text("without a file")


def test_page_and_terminal_train_the_same_bytes(app: App, tab: Page) -> None:
    path = small_run(app.folder, "same")
    open_file(tab, path)
    tab.click("#start")
    comes_to(tab, "Finished")
    command = [sys.executable, "-m", "trainer", "train", str(path), "--set", f"output_dir={app.folder / 'headless'}"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=app.folder, timeout=300)
    page, terminal = (load_file(app.folder / name / "same.safetensors") for name in ("outputs", "headless"))
    assert list(page) == list(terminal)
    assert all(page[key].tobytes() == terminal[key].tobytes() for key in page)


def test_a_finished_run_is_trained_on_with_changes_that_are_asked_about_first(app: App, tab: Page) -> None:
    open_file(tab, small_run(app.folder, "more"))
    tab.click("#start")
    comes_to(tab, "Finished")
    tab.locator("#ending button", has_text="Train on").click()
    dialog = tab.locator("#resume-dialog")
    expect(dialog).to_contain_text("Nothing differs")
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_have_count(0)

    tab.get_by_role("tab", name="Advanced").click()
    tab.locator(".group[data-group=Training]").evaluate("group => group.open = true")
    fill(tab, "max_train_steps", "6")
    tab.get_by_role("tab", name="Basic").click()
    fill(tab, "learning_rate", "5e-5")
    fill(tab, "network_dim", "8")
    tab.get_by_role("tab", name="Runs").click()
    tab.locator("[data-run=more] button", has_text="Resume with the form's settings").click()
    expect(dialog).to_contain_text("“Rank” 4 → 8: the saved state does not fit that.")
    expect(dialog.locator(".primary")).to_have_count(0)
    tab.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    fill(tab, "network_dim", "4")
    tab.locator("[data-run=more] button", has_text="Resume with the form's settings").click()
    expect(dialog).to_contain_text("Resume more after step 4")
    expect(dialog).to_contain_text("Steps in all 4 → 6: 2 are left instead of 0.")
    expect(dialog).to_contain_text("“Learning rate” 0.0001 → 5e-05")
    expect(dialog).to_contain_text("another run than was begun")
    dialog.locator(".primary").click()
    expect(tab.locator("#log")).to_contain_text("Resumed after step 4", timeout=PATIENCE)
    comes_to(tab, "Finished")
    assert step_shown(tab) == 6
    log = read_events(app.folder / "outputs" / "more.run" / "events.jsonl")
    assert [event.step for event in log if isinstance(event, StepDone)] == [1, 2, 3, 4, 5, 6]


def test_a_stopped_run_goes_on_with_more_pictures_after_it_was_asked(app: App, tab: Page) -> None:
    folder = app.folder / "growing" / "2_zwx dog"
    folder.mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (64, 64), (50 * number, 90, 120)).save(folder / f"{number}.png")
    settings = {"train_data_dir": str(folder.parent), "max_train_steps": 0, "max_train_epochs": 50}
    open_file(tab, small_run(app.folder, "grown", **settings))
    tab.click("#start")
    expect(tab.locator("[data-number=step]")).to_have_text(re.compile(r"^[1-9]\d* / 200$"), timeout=PATIENCE)
    tab.click("#stop")
    comes_to(tab, "Stopped")
    stopped_at = step_shown(tab)
    for number in range(4, 6):
        Image.new("RGB", (64, 64), (40 * number, 90, 120)).save(folder / f"{number}.png")
    tab.locator("#ending button", has_text="Train the rest").click()
    dialog = tab.locator("#resume-dialog")
    expect(dialog).to_contain_text(f"Resume grown after step {stopped_at}")
    expect(dialog).to_contain_text("Pictures 4 → 6 (2 new, 0 gone)")
    expect(dialog).to_contain_text("Steps in all 200 → 300")
    dialog.get_by_role("button", name="Resume with these changes").click()
    expect(dialog).to_have_count(0)
    expect(tab.locator("[data-number=step]")).to_have_text(re.compile(r"^\d+ / 300$"), timeout=PATIENCE)
    expect(tab.locator("#log")).to_contain_text(f"Resumed after step {stopped_at}:")
    expect(tab.locator("[data-number=step]")).not_to_have_text(re.compile(rf"^{stopped_at} /"), timeout=PATIENCE)


def test_an_error_while_training_is_told_and_the_page_lives_on(app: App, tab: Page) -> None:
    folder = app.folder / "broken" / "2_zwx dog"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "torn.png")
    open_file(tab, small_run(app.folder, "torn", train_data_dir=str(app.folder / "broken")))
    expect(tab.locator("#dataset .folder").first).to_contain_text("2_zwx dog")
    with (folder / "torn.png").open("r+b") as file:  # after the page has looked at it
        file.truncate(5000)
    tab.click("#start")
    comes_to(tab, "Failed")
    expect(tab.locator("#failure")).to_contain_text("torn.png")
    expect(tab.locator("#failure .remedy")).to_be_visible()
    open_file(tab, small_run(app.folder, "after"))
    tab.click("#start")
    comes_to(tab, "Finished")
