"""Opening recipes in the page: one report before anything changes, what cannot be used is marked, all of it undone."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from tests.helpers.browser import NEEDS_BROWSER, fill, open_more
from tests.helpers.page import App

pytestmark = NEEDS_BROWSER

RECIPE: dict[str, object] = {
    "LoRA_type": "Standard",
    "epoch": 3,
    "masked_loss_type": "",
    "enable_bucket": False,
    "max_resolution": "512,650",
    "max_train_steps": 0,
    "network_dim": 24,
    "optimizer": "AdamW",
    "pretrained_model_name_or_path": "D:/somebody/model.safetensors",
    "stop_text_encoder_training_pct": 0,
    "train_batch_size": "two",
    "train_inpainting": True,
}

DROP = """async ([name, bytes]) => {
    const files = new DataTransfer();
    files.items.add(new File([new Uint8Array(bytes)], name));
    for (const kind of ['dragenter', 'dragover', 'drop']) {
        document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: files, bubbles: true, cancelable: true}));
    }
}"""


def recipe(folder: Path, **fields: object) -> Path:
    path = folder / "recipe.json"
    path.write_text(json.dumps({**RECIPE, **fields}), encoding="utf-8")
    return path


def type_path(page: Page, path: Path) -> None:
    open_more(page)
    page.fill("#toml-path", str(path))
    page.click("#toml-open")


def report(page: Page) -> Locator:
    return page.locator("#opening")


def answer(page: Page, name: str) -> None:
    report(page).get_by_role("button", name=name, exact=True).click()
    expect(report(page)).to_have_count(0)


def test_a_recipe_is_told_of_before_it_changes_anything_and_is_taken_back(app: App, tab: Page) -> None:
    fill(tab, "network_dim", "7")
    path = recipe(app.folder)
    for name in ("Cancel", "Open without these"):
        type_path(tab, path)
        shown = report(tab)
        expect(shown).to_contain_text("This is a JSON file of kohya_ss. Nothing has changed yet.")
        for words in (
            "train_inpainting = true",
            "D:/somebody/model.safetensors",
            '"two" cannot be used',
            "512,648",
            "the VAE drops what is left over of 8 pixels",
            "stop_text_encoder_training_pct",
        ):
            expect(shown).to_contain_text(words)
        expect(tab.locator("#network_dim")).to_have_value("7")
        answer(tab, name)
        expect(tab.locator("#network_dim")).to_have_value("7" if name == "Cancel" else "24")
    expect(tab.locator("#train_batch_size")).to_have_value("two")
    expect(tab.locator("#train_batch_size")).to_have_attribute("aria-invalid", "true")
    expect(tab.locator("#resolution")).to_have_value("512,648")
    assert "D:/somebody" not in tab.locator("#pretrained_model_name_or_path").input_value()
    tab.locator("#undo .undo").get_by_role("button", name="Undo").click()
    expect(tab.locator("#network_dim")).to_have_value("7")


def test_a_file_is_dropped_and_a_command_line_is_pasted(app: App, tab: Page) -> None:
    text = list(recipe(app.folder).read_bytes())
    tab.evaluate(DROP, ["dropped.json", text])
    expect(report(tab)).to_contain_text("Open dropped.json?")
    answer(tab, "Open without these")
    expect(tab.locator("#network_dim")).to_have_value("24")
    header = json.dumps({"__metadata__": {"ss_network_module": "networks.lora", "ss_network_dim": "12"}}).encode()
    tab.evaluate(DROP, ["some.safetensors", [*struct.pack("<Q", len(header)), *header]])
    expect(report(tab)).to_contain_text("This is a LoRA file")
    answer(tab, "Open")
    expect(tab.locator("#network_dim")).to_have_value("12")
    tab.evaluate(DROP, ["picture.json", [0, 1, 2]])
    refused = tab.get_by_role("alertdialog", name="picture.json cannot be opened")
    refused.get_by_role("button", name="Close").click()
    expect(refused).to_have_count(0)
    open_more(tab)
    tab.fill("#pasted", "accelerate launch sdxl_train_network.py --network_dim 48 \\\n  --learning_rate $RATE")
    tab.click("#pasted-open")
    expect(report(tab)).to_contain_text("$RATE, which nothing here sets")
    answer(tab, "Open")
    expect(tab.locator("#network_dim")).to_have_value("48")
    expect(tab.locator("#learning_rate")).to_have_attribute("aria-invalid", "true")


def test_a_file_of_ours_that_holds_nothing_odd_opens_at_once(app: App, tab: Page) -> None:
    path = app.folder / "plain.toml"
    path.write_text("network_dim = 5\n")
    type_path(tab, path)
    expect(tab.locator("#network_dim")).to_have_value("5")
    expect(report(tab)).to_have_count(0)
