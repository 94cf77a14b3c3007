"""Train one run after another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trainer.config import TrainingConfig
from trainer.ground.commands import Command
from trainer.ground.errors import ConfigError, Problem, StateError
from trainer.queue import Entry, Queue, Worker, series
from trainer.queue.shelf import ENDED
from trainer.run import Run, Start
from trainer.settings.section import Show, argument
from trainer.tools.of_settings import OfSettings, SettingsArguments, read_settings
from trainer.tools.tool import COMPLETED, FAILED, STOPPED, Desk

_LOOK_SECONDS = 0.2


class QueueArguments(SettingsArguments):
    """Which runs."""

    files: tuple[str, ...] = argument((), Show("Settings", widget="list"))
    """The settings of the runs, a TOML file each; without any, what is left in the queue's folder is gone on with."""

    vary: tuple[str, ...] = argument((), Show("Series", widget="list", unit="KEY=VALUE,VALUE"))
    """Make a series of each file: a run for each value, with two settings for each pair of values."""

    folder: str = argument("queue", Show("Queue", widget="folder", unit="FOLDER"))
    """Where the queue is kept; the page's is presets/own/queue."""


class TrainQueue(OfSettings[QueueArguments]):
    """`python -m trainer queue RUN1.toml RUN2.toml ...`."""

    name = "queue"
    help = "train one run after another; one that fails does not end the others"
    arguments = QueueArguments
    positional = {"files": "RUN.toml"}
    repeated = (*OfSettings.repeated, "vary")

    def run(self, arguments: QueueArguments, desk: Desk) -> int:
        queue = Queue(Path(arguments.folder))
        configs, problems = [], []
        for file in arguments.files:
            try:
                configs.append(read_settings(arguments, desk, Path(file)))
            except ConfigError as error:
                problems += [Problem("", f"{file}: {problem}") for problem in error.problems]
        if problems:
            raise ConfigError(problems)
        values = series.varied(arguments.vary)
        if values and not configs:
            rule = "makes a series of each file, and none is named; name one, as in RUN.toml --vary network_dim=8,16."
            raise ConfigError([Problem("vary", rule)])
        if configs and values:
            for config in configs:
                series.add(queue, config, values)
        elif configs:
            queue.add_all(configs)
        elif queue.next() is None:
            usage = self.usage()
            way_out = f"{usage[:1].upper()}{usage[1:]}."
            raise StateError(f"There is nothing to do in the queue {arguments.folder!r}.", way_out)
        return self._work(queue, desk)

    def _work(self, queue: Queue, desk: Desk) -> int:
        """Work through the queue; Ctrl+C stops the run under way, which is gone on with the next time."""
        told = {entry.key for entry in queue.entries() if entry.state in ENDED}

        def begin(config: TrainingConfig, start: Start, beginning: Callable[[], None]) -> Run:
            run = Run(config, start, watch=desk.emit)
            desk.note(f"Run: {config.saving.output_name}")
            beginning()
            run.start()
            return run

        worker = Worker(queue, begin, desk.by)
        worker.go()
        inbox, asked = desk.listen(), None
        while worker.busy:
            worker.join(_LOOK_SECONDS)
            if inbox.wishes.ending is not asked:
                asked = inbox.wishes.ending
                worker.leave(asked or Command.STOP)
        for entry in queue.entries():
            if entry.key not in told:
                desk.say(_line(entry))
        if worker.trouble:
            raise StateError(worker.trouble)
        return STOPPED if asked else FAILED if worker.failures else COMPLETED


def _line(entry: Entry) -> str:
    why = f": {entry.why}" if entry.why else ""
    return f"{entry.name}: {entry.state}{why}"
