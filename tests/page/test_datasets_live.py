"""The Datasets editor in a real browser."""

from __future__ import annotations

from playwright.sync_api import Page as Tab
from playwright.sync_api import expect

from tests.helpers.browser import NEEDS_BROWSER
from tests.helpers.page import App
from tests.helpers.pictures import write_folder

pytestmark = NEEDS_BROWSER


def test_rows_in_the_browser(tab: Tab, app: App) -> None:
    """Typed from field to field with the tab key: nothing is lost, and what is typed trains."""
    write_folder(app.folder / "pictures" / "3_cat", 2, (96, 64), "a cat")
    tab.get_by_role("tab", name="Datasets").click()
    tab.get_by_role("button", name="Begin with an empty dataset").click()
    folder = tab.get_by_label("Folder", exact=True)
    folder.fill(str(app.folder / "pictures" / "3_cat"))
    folder.press("Tab")
    tab.keyboard.press("Tab")
    tab.keyboard.type("4")
    tab.keyboard.press("Tab")
    tab.keyboard.type("cat")
    tab.keyboard.press("Tab")
    expect(tab.locator("[id='d0.0.is_reg']")).to_be_focused()
    sizes = tab.locator("[id='d0.sizes']")
    sizes.fill("64 96")
    sizes.press("Tab")
    tab.get_by_text("Captions and more").click()
    tab.locator("[id='d0.0.keep_tokens']").fill("one")
    tab.locator("[id='d0.0.keep_tokens']").press("Tab")
    expect(tab.locator("#datasets .problem").first).to_contain_text("Tags kept in front")
    expect(tab.locator("[id='d0.0.keep_tokens']")).to_be_visible()
    tab.locator("[id='d0.0.keep_tokens']").fill("1")
    tab.locator("[id='d0.0.keep_tokens']").press("Tab")
    expect(tab.locator("#datasets .problem")).to_have_count(0)
    expect(tab.locator("[id='d0.0.num_repeats']")).to_have_value("4")
    expect(tab.locator("[id='d0.0.class_tokens']")).to_have_value("cat")
    tab.get_by_role("tab", name="Plan").click()
    expect(tab.locator("#dataset")).to_contain_text("3_cat")
    expect(tab.locator("#dataset")).to_contain_text("16")
    tab.get_by_role("button", name="Remove dataset 1", exact=True).click()
    expect(tab.locator("#no-datasets")).to_be_visible()
    tab.get_by_role("button", name="Undo").first.click()
    expect(tab.locator("[id='d0.0.class_tokens']")).to_have_value("cat")
