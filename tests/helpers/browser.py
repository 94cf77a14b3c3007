"""What tests do with the page in a real browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.helpers.page import CHROMIUM, PROJECT, App

NEEDS_BROWSER = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium; put one on the PATH or name it in TRAINER_CHROMIUM"),
]

PATIENCE = 600_000
"""Milliseconds for what includes loading a model on a busy machine."""

SOON = 300
"""Milliseconds between two questions for news; a person's page asks less often, and no test has to wait for it."""

expect.set_options(timeout=60_000)


def opened(page: Page, app: App) -> Page:
    """Open the page, and return when the server has said what the form holds. From then on it asks for news often."""
    page.goto(app.url)
    expect(page.locator("#basic-fields [data-field]").first).to_be_attached()
    expect(page.locator("#plan section").first).to_be_attached()
    page.evaluate(f"Object.assign(NEWS, {{RUNNING: {SOON}, IDLE: {SOON}}}); NEWS.ask()")
    return page


def fill(page: Page, key: str, text: str) -> None:
    """Type into a field and leave it."""
    page.fill(f"#{key}", text)
    page.press(f"#{key}", "Tab")


def open_more(page: Page) -> None:
    """Open what the presets have besides the list."""
    if not page.locator("#toml-open").is_visible():
        page.locator("#preset-more summary").click()


def open_file(page: Page, path: Path) -> None:
    """Fill the form from a settings file."""
    open_more(page)
    page.fill("#toml-path", str(path))
    page.click("#toml-open")
    expect(page.locator("#preset-told")).to_contain_text("Opened")


def comes_to(page: Page, words: str) -> None:
    """Wait until the run's status is this."""
    expect(page.locator(".pill")).to_have_text(words, timeout=PATIENCE)


def small_run(folder: Path, name: str, **changes: object) -> Path:
    """Write the settings of a run of a few steps, and return their path."""
    values: dict[str, object] = {
        "pretrained_model_name_or_path": str(PROJECT / "demo" / "model.safetensors"),
        "train_data_dir": str(PROJECT / "demo" / "pictures"),
        "output_name": name,
        "resolution": "64,64",
        "enable_bucket": False,
        "network_dim": 4,
        "network_alpha": 4.0,
        "text_encoder_lr": 0.0,
        "train_batch_size": 2,
        "max_train_steps": 4,
        "mixed_precision": "no",
        "save_every_n_epochs": 0,
        **changes,
    }
    path = folder / f"{name}.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return path
