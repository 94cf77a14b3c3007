"""How well a page can be seen: the contrast of texts, and of the edges of what can be pressed or typed in."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Locator

LEAST_TEXT, LEAST_EDGE = 4.5, 3.0
"""Of WCAG 2.2, 1.4.3 and 1.4.11."""

_FAINT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")


def faint_parts(place: Locator) -> tuple[int, list[str]]:
    """Return how many visible texts and edges there are in an element, and which of them have too little contrast.

    What cannot be used at the moment, and pictures, are left out.
    """
    count, faint = place.evaluate(_FAINT, [LEAST_TEXT, LEAST_EDGE])
    return int(count), [str(each) for each in faint]
