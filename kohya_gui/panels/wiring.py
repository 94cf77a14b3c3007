"""How the page's events are wired to its handlers, and what an event says."""

from __future__ import annotations

from typing import Any

import gradio as gr

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
FORM: dict[str, Any] = {**QUIET, "trigger_mode": "multiple", "concurrency_id": "form", "concurrency_limit": 1}
"""Changes to the form are taken one after another, in order, and none is dropped."""

Update = dict[Any, Any]
"""{component: what it shows from now on}; components that are left out stay as they are."""


def told(event: gr.EventData | None) -> dict[str, object]:
    """Return what an event says, whoever made it up."""
    data = getattr(event, "_data", None)
    return data if isinstance(data, dict) else {}
