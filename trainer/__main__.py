"""The headless door: `python -m trainer NAME ...` asks for one of the tools. `trainer/tools` has them.

Exit codes: 0 completed; 1 failed while training; 2 refused before it; 3 stopped.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TextIO

from trainer.faststart import libraries
from trainer.ground.commands import Command, Inbox
from trainer.ground.errors import ConfigError, RunError, Stopped, TrainerError
from trainer.results import sinks
from trainer.tools import TOOLS, Desk, command_line
from trainer.tools.tool import COMPLETED, FAILED, REFUSED, STOPPED

__all__ = ["COMPLETED", "FAILED", "REFUSED", "STOPPED", "listen", "main"]


def main(words: Sequence[str] | None = None) -> int:
    """Run the tool that the words ask for and return the exit code."""
    start_logging()
    libraries.quieten()
    console = sinks.Console(sys.stderr)

    def complain(error: TrainerError) -> None:
        console.close()
        for problem in error.problems if isinstance(error, ConfigError) else (error,):
            note(str(problem))

    try:
        tool, arguments = command_line.read(TOOLS, words)
        code: int = tool.run(arguments, Desk(say, note, complain, console, listening))
    except TrainerError as error:
        complain(error)
        if isinstance(error, RunError):
            return FAILED
        return STOPPED if isinstance(error, Stopped) else REFUSED
    finally:
        console.close()
    return code


def start_logging() -> None:
    """Let warnings of libraries reach the error stream, shown as everything else is."""

    class Formatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return sinks.writable(super().format(record), sys.stderr)

    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def listening() -> Inbox:
    """Return an inbox that signals fill."""
    inbox = Inbox()
    listen(inbox)
    return inbox


def listen(inbox: Inbox) -> None:
    """Make Ctrl-C and SIGTERM stop the run: it saves and finishes. A second Ctrl-C ends it without the final file."""
    asked: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        inbox.send(Command.ABORT if asked else Command.STOP)
        asked.append(number)

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)


def note(line: str) -> None:
    """Write what there is to know beside the results."""
    say(sinks.one_line(line), sys.stderr)


def say(text: str, stream: TextIO | None = None) -> None:
    """Write one text and a line break, to the output where no stream is named."""
    stream = stream or sys.stdout
    stream.write(f"{sinks.writable(text, stream)}\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main())
