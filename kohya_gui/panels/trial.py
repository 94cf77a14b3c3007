"""Try it, on the page of a run: its files are drawn at several weights by a tool, and one of them is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from kohya_gui.panels.desk import Panel
from kohya_gui.panels.news import SAID_SECONDS
from kohya_gui.panels.run import RunPanel
from kohya_gui.panels.wiring import Update, told
from kohya_gui.parts.dialogs import question
from trainer.ground.errors import ConfigError, Problem, StateError, TrainerError
from trainer.results.run_record import RunRecord
from trainer.settings.kohya import names_a_file
from trainer.tools import TOOLS

_FILE = "file-"


class TrialPanel(Panel):
    """Takes the clicks of the card that the run's page has; the news draw it."""

    name = "trial"

    def build(self) -> Sequence[Any]:
        """Make nothing: the card stands among the other parts of the run's page."""
        return []

    def wire(self) -> None:
        """Take clicks."""
        run = next(panel for panel in self.desk.panels if isinstance(panel, RunPanel))
        self.desk.on(run.places["tried"].act, self.on_act, of_run=True)

    def on_act(self, event: gr.EventData) -> Update:
        """Draw, stop drawing, or ask whether a file is to be the final one."""
        said = told(event)
        act = said.get("act")
        if act == "stop-trial":
            self.session.tools.stop()
        elif act == "try":
            self._begin("try", said)
        elif act == "keep":
            name, file = str(said.get("name")), str(said.get("file"))
            text = (
                f"{name}.safetensors becomes a copy of it.\nWhat is there now is kept in a file named after its step."
            )
            return self.desk.ask(
                question(self.name, f"Keep {file}?", text, "Keep this one", "keep", name=name, file=file)
            )
        return {}

    def answered(self, said: Mapping[str, object]) -> Update:
        """A file is to be the final one."""
        if said.get("act") == "keep":
            self._begin("keep", said)
        return {}

    def _begin(self, name: str, said: Mapping[str, object]) -> None:
        """Let the tool work; what is wrong with what was said stands in the card."""
        tool = TOOLS[name]
        try:
            record = self.session.looked_at(said.get("name"))
            paths = {path.name: str(path) for path in record.folder.lora_files()}
            chosen = {"file": paths.get(str(said.get("file")), "")}
            given = self._of_trial(said, record, paths) if name == "try" else chosen
            arguments = tool.read(given)
            self.session.tools.start(tool, arguments, lambda work: None)
        except ConfigError as error:
            about = tool.arguments.model_construct(run=str(self._folder(said)))
            self.session.tools.refuse(tool, error.problems, about)
        except TrainerError as error:
            self.desk.news.say(str(error), SAID_SECONDS, refused=True)

    def _of_trial(self, said: Mapping[str, object], record: RunRecord, paths: Mapping[str, str]) -> dict[str, object]:
        """Return the tool's arguments; a file of prompts is read for the first of them where the page may read it.

        Raises:
            ConfigError: it may not, or a number is none.
            StateError: no file is chosen.
        """
        config = record.config()
        prompts = config.sampling.sample_prompts.strip() if config else ""
        hidden = self.session.folders.problem(prompts) if names_a_file(prompts) else ""
        if hidden and not str(said.get("prompt") or "").strip():
            raise ConfigError([Problem("prompt", f"is empty. {hidden}")])
        return _of_trial(said, record, paths)

    def _folder(self, said: Mapping[str, object]) -> object:
        return self.session.looked_at(said.get("name")).folder.path


def _of_trial(said: Mapping[str, object], record: RunRecord, paths: Mapping[str, str]) -> dict[str, object]:
    """Return the tool's arguments of what stands in the form.

    Raises:
        ConfigError: a number is none.
        StateError: no file is chosen.
    """
    names = [path.name for path in record.files.values()]
    files = [paths[name] for name in names if name in paths and said.get(f"{_FILE}{name}")]
    if not files:
        raise StateError("No file is chosen.", "Choose one or more of the run's files.")
    given: dict[str, object] = {"run": str(record.folder.path), "files": files}
    problems = []
    for key, kind in (("seed", int), ("steps", int)):
        text = str(said.get(key) or "").strip()
        try:
            given |= {key: kind(text)} if text else {}
        except ValueError:
            problems.append(Problem(key, f"{text!r} is no whole number.", text))
    try:
        given["weights"] = [float(part) for part in str(said.get("weights") or "").replace(",", " ").split()]
    except ValueError:
        problems.append(
            Problem("weights", "numbers with commas between them, such as 0, 0.4, 0.7, 1.", said.get("weights"))
        )
    if problems:
        raise ConfigError(problems)
    given |= {key: str(said.get(key) or "") for key in ("prompt", "negative", "sampler")}
    return given
