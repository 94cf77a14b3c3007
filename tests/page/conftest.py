"""One page for all tests that use it in a browser; each finds it as a newcomer does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

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


@pytest.fixture
def tab(app: App, page: Page) -> Page:
    """The page as a newcomer finds it: the demo in the form, no run under way, whatever other tests left."""
    begin_anew(app)
    opened(page, app)
    expect(page.locator("#start")).to_have_text("Start", timeout=PATIENCE)
    return page
