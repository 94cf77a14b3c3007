"""The datasets: one row a folder, added and removed, each dataset with its own size, batch and buckets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from kohya_gui.form import datasets_form
from kohya_gui.panels.desk import Seen
from kohya_gui.panels.path_panel import PathPanel
from kohya_gui.panels.wiring import Update, told
from kohya_gui.parts.markup import ASSETS
from trainer.config.datasets import KEY
from trainer.ground.errors import Problem

_SCRIPT = (ASSETS / "datasets.js").read_text(encoding="utf-8")


class DatasetsPanel(PathPanel):
    """The editor of the setting `datasets`. What it makes is a dataset_config."""

    name = "datasets"

    def build(self) -> Sequence[Any]:
        """Make the component."""
        self.component = gr.HTML(
            self._shown(()),
            html_template='<div class="form datasets" data-root></div>',
            js_on_load=_SCRIPT,
            apply_default_css=False,
            elem_id="datasets",
        )
        return [self.component]

    def wire(self) -> None:
        """Take what is typed and clicked."""
        self.desk.on(self.component.edit, self.on_edit)
        self.desk.on(self.component.act, self.on_act)

    def of_form(self, seen: Seen) -> Update:
        """Return the rows, with what is wrong in them."""
        found = (*seen.checked.problems, *(seen.survey.problems if seen.survey else ()))
        return {self.component: self._shown([problem for problem in found if problem.key == KEY])}

    def _shown(self, problems: Sequence[Problem]) -> dict[str, object]:
        values = self.session.draft.values
        tables = values[KEY]
        return {
            "markup": datasets_form.markup(tables, values, problems),
            "values": datasets_form.shown_values(tables),
            "wrong": datasets_form.wrong_places(problems),
        }

    @property
    def _tables(self) -> object:
        return self.session.draft.values[KEY]

    def on_edit(self, event: gr.EventData) -> Update:
        """A field was changed."""
        said = told(event)
        self._edit(said.get("key"), said.get("value"))
        return self.desk.form_update()

    def on_act(self, event: gr.EventData) -> Update:
        """A row or a dataset is to be added or removed, or a folder to be picked."""
        said = told(event)
        act, key = said.get("act"), str(said.get("key"))
        number, index = _numbers(key)
        draft, values = self.session.draft, self.session.draft.values
        if act == "browse":
            return self.ask_for(key, str(datasets_form.shown_values(values[KEY]).get(key) or ""))
        if act == "from-folders":
            folders = [str(values[each] or "") for each in ("train_data_dir", "reg_data_dir")]
            allowed = [folder if not self.session.folders.problem(folder) else "" for folder in folders]
            draft.change({KEY: datasets_form.of_folders(*allowed)}, "Datasets were made of the folders in Basic")
        elif act == "add-dataset":
            draft.change({KEY: datasets_form.with_dataset(values[KEY])})
        elif act == "add-folder":
            draft.change({KEY: datasets_form.with_folder(values[KEY], number)})
        elif act == "remove":
            what = f"Dataset {number + 1}" if index is None else f"Folder {index + 1} of dataset {number + 1}"
            draft.change({KEY: datasets_form.without(values[KEY], number, index)}, f"{what} was removed")
        elif act == "clear":
            draft.change({KEY: []}, "Pictures come from the folders in Basic")
        return self.desk.form_update()

    def picked(self, key: str, path: str) -> None:
        """Take a folder for a row."""
        self._edit(key, path)

    def _edit(self, key: object, value: object) -> None:
        found = datasets_form.edited(self._tables, key, value)
        if found is not None:
            self.session.draft.change({KEY: found})


def _numbers(key: str) -> tuple[int, int | None]:
    """Return the dataset and the folder that "0" or "0.1" names; far out of reach where it names none."""
    first, _, second = key.partition(".")
    number = int(first) if first.isdecimal() else datasets_form.MOST
    return number, int(second) if second.isdecimal() else None
