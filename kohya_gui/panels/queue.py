"""The queue: what waits, what can be done with it, and Continue after the program was started anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from kohya_gui.panels.desk import Panel
from kohya_gui.panels.news import Part
from kohya_gui.panels.wiring import Update, told
from kohya_gui.parts.markup import confirmed, news_panel, panel, refused
from kohya_gui.watch import queue_panel, series_panel
from trainer.config import to_flat
from trainer.ground.errors import StateError, TrainerError
from trainer.queue import series
from trainer.queue.comparison import results
from trainer.queue.shelf import ENDED
from trainer.results.run_folder import RunFolder
from trainer.results.run_record import RunReader
from trainer.results.snapshot import RunSnapshot

_SERIES_SECONDS = 2.0
"""Least time between two looks at the runs of all series while one is under way."""


class QueuePanel(Panel):
    """The runs that wait for one another."""

    name = "queue"

    def build(self) -> Sequence[Any]:
        """Make the place of what is refused, and the list, which the news fill."""
        self.answer = panel(elem_id="queue-told")
        self.list = news_panel("queue-panel", "queue")
        self.form = panel(series_panel.form(), elem_id="series-make")
        self.series = news_panel("series-panel", "series")
        self.desk.news.add("queue", Part(self._of, self._draw))
        self.desk.news.add("series", Part(self._of_series, self._draw_series, seconds=_SERIES_SECONDS))
        self._readers: dict[RunFolder, RunReader] = {}
        return [self.answer]

    def _of(self, run: RunSnapshot) -> object:
        worker = self.session.queue_worker
        return run.status, self.session.queue.signature, worker.going, worker.current, worker.trouble, self.session.busy

    def _draw(self, run: RunSnapshot) -> str:
        worker = self.session.queue_worker
        entries = self.session.queue.entries()
        going, busy = worker.going, self.session.busy
        paused = busy and run.status == "paused"
        return queue_panel.queue(entries, worker.current, worker.trouble, going=going, busy=busy, paused=paused)

    def _of_series(self, run: RunSnapshot) -> object:
        return self.session.queue.signature, run.status, run.folder, len(run.samples)

    def _draw_series(self, run: RunSnapshot) -> str:
        queue, pictures = self.session.queue, self.session.pictures
        found = [(each, results(each, self._readers)) for each in series.all_of(queue)]
        return "".join(series_panel.table(each, rows, pictures) for each, rows in found)

    def wire(self) -> None:
        """Take clicks."""
        for each in (self.list, self.form, self.series):
            self.desk.on(each.act, self.on_act, of_run=True)

    def on_act(self, event: gr.EventData) -> Update:
        """Do what a button of the list says."""
        said = told(event)
        try:
            if said.get("act") == "series-add":
                return {self.answer: confirmed(self._add_series(said))}
            return {self.answer: "", **self._done(str(said.get("act")), said.get("key"))}
        except TrainerError as error:
            return {self.answer: refused(str(error))}
        finally:
            self.desk.news.draw_again("queue")

    def _done(self, act: str, key: object) -> Update:
        queue, worker = self.session.queue, self.session.queue_worker
        match act:
            case "queue-continue":
                worker.go()
            case "queue-hold":
                worker.hold()
            case "queue-clear":
                for entry in queue.entries():
                    if entry.state in ENDED:
                        queue.remove(entry.key)
            case "queue-up" | "queue-down":
                queue.move(queue.named(key).key, -1 if act == "queue-up" else 1)
            case "queue-open":
                return self._open(key)
            case "queue-again":
                queue.again(queue.named(key).key)
            case "series-remove":
                series.remove(queue, str(key))
            case "queue-remove":
                if key == worker.current:
                    raise StateError(f"{queue.named(key).name!r} is under way.", "Stop it first.")
                queue.remove(queue.named(key).key)
        return {}

    def _add_series(self, said: Mapping[str, object]) -> str:
        """Put the runs of a series into the queue, and return how many these are."""
        pairs = [
            (str(said.get(f"setting-{place}") or ""), str(said.get(f"values-{place}") or "")) for place in range(2)
        ]
        made = self.session.add_series([f"{key}={values}" for key, values in pairs if key])
        return f"{len(made.members)} runs are in the queue."

    def _open(self, key: object) -> Update:
        """Bring the settings of an entry into the form; the entry stays as it is."""
        entry = self.session.queue.named(key)
        if entry.config is None:
            return {}
        words = f"The settings of {entry.name} in the queue were taken"
        self.session.draft.lay(to_flat(entry.config), entry.name, words)
        return self.desk.form_update()
