"""Trains as the command does, with notes of what happened when.

python -m benchmarks.watched TIMES.json train RUN.toml [arguments of the command]
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

from benchmarks.moments import note, write
from trainer import __main__ as command
from trainer.ground import events
from trainer.ground.events import Event
from trainer.results import sinks


class Watch(sinks.Console):
    """The terminal's lines, with a note of every event."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        note("ready")

    def __call__(self, event: Event) -> None:
        """Note an event and show it."""
        match event:
            case events.Stage():
                note(event.name, done=event.done, total=event.total)
            case events.StepDone():
                note("step", step=event.step)
            case events.Saved():
                note(f"saved {event.kind}", bytes=event.bytes)
            case _:
                note(type(event).__name__)
        super().__call__(event)


def main() -> int:
    """Train, write the notes and return the exit code."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    command.sinks.Console = Watch  # type: ignore[misc]
    code = command.main(sys.argv[2:])
    note("end")
    import torch

    write(sys.argv[1], torch)
    return code


if __name__ == "__main__":
    sys.exit(main())
