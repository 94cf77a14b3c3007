"""The page: which tabs there are, and which panels stand in each. A new one is a class, and a line here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr

from kohya_gui.panels.datasets import DatasetsPanel
from kohya_gui.panels.desk import Desk, Panel
from kohya_gui.panels.fields import AdvancedFields, BasicFields
from kohya_gui.panels.plan import MemoryPanel, PicturesPanel, PlanPanel
from kohya_gui.panels.presets import PresetPanel
from kohya_gui.panels.queue import QueuePanel
from kohya_gui.panels.run import Controls, RunPanel, RunsPanel
from kohya_gui.panels.tools import ToolsPanel
from kohya_gui.panels.trial import TrialPanel
from kohya_gui.panels.undo import FormNote, UndoPanel
from kohya_gui.panels.wiring import QUIET
from kohya_gui.panels.workbench import WorkbenchPanel
from kohya_gui.parts.markup import panel
from kohya_gui.session import Session

FORM, WATCH = "form", "watch"
"""The two sides of the page."""


@dataclass(frozen=True, slots=True)
class Tab:
    """One tab: the name it is shown by in handlers, its title, its side, and the panels in it from top to bottom."""

    name: str
    title: str
    side: str
    panels: tuple[type[Panel], ...]


TABS = (
    Tab("basic", "Basic", FORM, (PresetPanel, BasicFields)),
    Tab("datasets", "Datasets", FORM, (DatasetsPanel,)),
    Tab("advanced", "Advanced", FORM, (AdvancedFields,)),
    Tab("tools", "Tools", FORM, (ToolsPanel,)),
    Tab("plan", "Plan", WATCH, (PlanPanel, MemoryPanel, PicturesPanel)),
    Tab("training", "Training", WATCH, (RunPanel, TrialPanel)),
    Tab("queue", "Queue", WATCH, (QueuePanel,)),
    Tab("runs", "Runs", WATCH, (RunsPanel,)),
)

ABOVE: dict[str, tuple[type[Panel], ...]] = {FORM: (FormNote, UndoPanel), WATCH: ()}
"""What stands above the tabs of a side."""


class Page(Desk):
    """Builds the page. `blocks` is what Gradio serves; `news` answers the pages that ask how the run stands."""

    def __init__(self, session: Session, tabs: Sequence[Tab] = TABS) -> None:
        super().__init__(session)
        with gr.Blocks(title="LoRA trainer", fill_width=True, analytics_enabled=False) as self.blocks:
            self.add(Controls)
            with gr.Row(elem_id="main"):
                for side in (FORM, WATCH):
                    with gr.Column(elem_id=f"{side}-side"):
                        self._side(side, [tab for tab in tabs if tab.side == side])
            self.add(WorkbenchPanel)
            self.dialog = panel(elem_id="dialog")
            self.fresh = gr.Button("", elem_id="fresh")
            for each in self.panels:
                each.wire()
            self.on(self.dialog.act, self.on_dialog, of_run=True)
            self.on(self.fresh.click, self.form_update)
            self.blocks.load(self.opened, None, [*self.outputs, *self.sides], **QUIET)

    def _side(self, side: str, tabs: Sequence[Tab]) -> None:
        for kind in ABOVE[side]:
            self.add(kind)
        with gr.Tabs(elem_id=f"{side}-tabs") as shown:
            for tab in tabs:
                with gr.Tab(tab.title, id=tab.name) as place:
                    self.tabs[tab.name] = (tab.title, shown)
                    for kind in tab.panels:
                        self.add(kind, place)
