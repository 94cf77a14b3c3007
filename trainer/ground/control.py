"""How a long phase reports and obeys."""

from __future__ import annotations

import time
from collections.abc import Callable

from trainer.ground import events
from trainer.ground.commands import Command, Inbox
from trainer.ground.errors import Stopped
from trainer.ground.events import Emit

Progress = Callable[[str, int, int], None]
"""Told of (phase, done, total) by a long phase; raises Stopped when the phase is to end."""

ENDINGS = (Command.STOP, Command.ABORT)

_STAGE_SECONDS = 0.1
"""Least time between two Stage events of one phase: nobody sees more, and each one wakes the watchers."""


def progress_of(emit: Emit, inbox: Inbox) -> Progress:
    """Return the callback that long phases report to: it tells the watchers and obeys stop, abort and pause.

    Stop and abort stay in the inbox, so that whoever catches Stopped can still tell which it was.
    """
    last: dict[str, float] = {}

    def progress(phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total or now - last.get(phase, 0.0) > _STAGE_SECONDS:
            last[phase] = now
            emit(events.Stage(name=phase, done=done, total=total))
        if any(command in ENDINGS for command in inbox.peek()):
            raise Stopped(f"Stopped while busy with {phase} ({done} of {total}).")
        if Command.PAUSE in inbox.peek():
            pause(emit, inbox, step=0)

    return progress


def pause(emit: Emit, inbox: Inbox, step: int) -> None:
    """Wait until told to go on. A stop or abort ends the pause and stays in the inbox."""
    inbox.wait_for(Command.PAUSE)
    emit(events.Paused(step=step))
    answer = inbox.wait_for(Command.RESUME, *ENDINGS)
    if answer in ENDINGS:
        inbox.send(answer)
    emit(events.Resumed(step=step))
