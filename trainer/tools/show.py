"""Say how a run stands or stood: what it came to, its files, what validation says of them."""

from __future__ import annotations

import json
import time

from trainer.ground.errors import StateError
from trainer.results.curves import summary
from trainer.results.run_record import RunReader, RunRecord, run_folder_at
from trainer.settings.section import Show as Shown
from trainer.settings.section import argument
from trainer.tools.tool import COMPLETED, Arguments, Desk, Tool


class ShowArguments(Arguments):
    """The run."""

    run: str = argument(..., Shown("Run", widget="file"))
    """The folder NAME.run of a run, a LoRA file of it, or OUTPUT_DIR/NAME."""

    json_: bool = argument(False, Shown("JSON"))
    """Print all there is as JSON, for programs."""


class Show(Tool[ShowArguments]):
    """Prints text or JSON."""

    name = "show"
    help = "show a run from its folder, under way or ended"
    arguments = ShowArguments
    positional = {"run": "RUN"}

    def run(self, arguments: ShowArguments, desk: Desk) -> int:
        folder = run_folder_at(arguments.run)
        if folder is None:
            raise StateError(
                f"run: there is no run at {arguments.run!r}.",
                "Name a folder that ends in .run, a LoRA file beside it, or OUTPUT_DIR/NAME.",
            )
        try:
            record = RunReader(folder).read()
        except OSError as error:
            raise StateError(f"run: {str(folder.events)!r} cannot be read: {error.strerror or error}.") from error
        desk.say(
            json.dumps(summary(record), indent=1, ensure_ascii=False) if arguments.json_ else "\n".join(lines(record))
        )
        return COMPLETED


def lines(record: RunRecord) -> list[str]:
    """Return a run as a person reads it, a line each."""
    seen, found = record.snapshot, []
    found.append(f"{record.name}: {seen.status}, step {seen.step:,} of {seen.total_steps:,}, in {record.folder.path}")
    if seen.started_at:
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(seen.started_at))
        resumed = f", {record.resumed}" if record.resumed else ""
        found.append(f"Begun {began}{resumed}")
    if seen.average_loss is not None:
        found.append(f"Loss: {seen.average_loss:.4f} on average")
    found += record.verdict
    best = record.judgement.best if record.held_out else None
    for step, path in record.files.items():
        found.append(f"File: {path}, step {step:,}{'  <- best by validation' if step == best else ''}")
    found += [f"Picture: {each.name} {each.remark} ({each.now:.4f})" for each in record.pictures if each.remark]
    found += [f"Note: {text}" for text in seen.warnings[-5:]]
    if seen.error:
        found += [f"Failed: {seen.error.message}", *([f"What to do: {seen.error.remedy}"] if seen.error.remedy else [])]
    if record.notes:
        found.append(f"Your notes: {record.notes}")
    return found
