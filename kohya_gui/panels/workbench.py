"""The place of pictures and captions: the page's script fills it, and asks the workbench's own routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from kohya_gui.panels.desk import Panel

PLACES = (
    '<nav class="places" aria-label="Places">'
    '<button type="button" data-to-place="training" aria-pressed="true">Training</button>'
    '<button type="button" data-to-place="pictures" aria-pressed="false">Pictures</button></nav>'
)
"""The switch between the places of the page."""


class WorkbenchPanel(Panel):
    """Pictures and captions at full width, in place of the two sides."""

    name = "workbench"

    def build(self) -> Sequence[Any]:
        """Make the empty place."""
        gr.HTML('<div id="workbench" data-empty="true"></div>', elem_id="workbench-place")
        return []

    def wire(self) -> None:
        """Nothing: the page's script asks the workbench's routes."""
