"""One page for all tests that use it in a browser; each finds it as a newcomer does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.helpers.browser import PATIENCE, opened
from tests.helpers.page import CHROMIUM, QUIET_BROWSER, App, begin_anew, start_app


@pytest.fixture(scope="session")
def browser_type_launch_args() -> dict[str, object]:
    return {"executable_path": CHROMIUM, "args": QUIET_BROWSER}


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("app")
    running = start_app(folder, folder / "own")
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="session")
def window(browser: Browser) -> Iterator[BrowserContext]:
    """One window for the tests' pages, so that the files that every page is made of come over once."""
    made = browser.new_context()
    yield made
    made.close()


@pytest.fixture
def page(window: BrowserContext) -> Iterator[Page]:
    """A page of its own. Of what pages keep in the browser, only the wish to be notified outlives one."""
    yield window.new_page()
    for each in window.pages:
        each.close()
    window.clear_cookies()


@pytest.fixture
def tab(app: App, page: Page) -> Page:
    """The page as a newcomer finds it: the demo in the form, no run under way, whatever other tests left."""
    begin_anew(app)
    opened(page, app)
    expect(page.locator("#start")).to_have_text("Start", timeout=PATIENCE)
    return page
