"""How a long phase reports and obeys: it stops, saves and pauses in the middle of whatever it does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from trainer.ground import events
from trainer.ground.commands import Inbox
from trainer.ground.errors import Stopped
from trainer.ground.events import Emit

Progress = Callable[[str, int, int], None]
"""Told of (phase, done, total) by a long phase; raises Stopped when the phase is to end."""

_STAGE_SECONDS = 0.1
"""Least time between two Stage events of one phase: nobody sees more, and each one wakes the watchers."""


class Keeper(Protocol):
    """What has a run's work in its hands: it can save it, and put it aside for a pause."""

    def save_now(self) -> None:
        """Save what there is to save."""

    def pause(self, phase: str) -> None:
        """Save, free the device, and wait until told to go on."""


class Control:
    """The callback that long phases report to: it tells the watchers, and obeys stop, abort, save and pause.

    Stop and abort stay in the inbox, so that whoever catches Stopped can still tell which it was. `keeper` is there
    once there is something to save; `on_device` says that the model is being brought to the device before that.
    """

    def __init__(self, emit: Emit, inbox: Inbox) -> None:
        self.keeper: Keeper | None = None
        self.on_device = False
        self._emit = emit
        self._inbox = inbox
        self._last: dict[str, float] = {}

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Take note of progress, and do what was asked for since the last time.

        Raises:
            Stopped: the run is to end.
        """
        now = time.monotonic()
        if done >= total or now - self._last.get(phase, 0.0) > _STAGE_SECONDS:
            self._last[phase] = now
            self._emit(events.Stage(name=phase, done=done, total=total))
        self._refuse_to_go_on(phase, done, total)
        if self._inbox.wishes.saving:
            self._save_now()
        if self._inbox.wishes.waiting:
            self._pause(phase)
            self._refuse_to_go_on(phase, done, total)

    def _refuse_to_go_on(self, phase: str, done: int, total: int) -> None:
        if self._inbox.wishes.ending:
            raise Stopped(f"Stopped while {phase} ({done} of {total}).")

    def _save_now(self) -> None:
        if self.keeper:
            self.keeper.save_now()
        else:
            self._emit(events.Warned(message="Nothing was trained yet, so there is nothing to save."))
        self._inbox.saved()

    def _pause(self, phase: str) -> None:
        if self.keeper:
            self.keeper.pause(phase)
        else:
            paused = events.Paused(step=0, phase=phase, saved=False, device_free=not self.on_device)
            wait(self._emit, self._inbox, paused, self._save_now)


def progress_of(emit: Emit, inbox: Inbox) -> Control:
    """Return the callback that long phases report to."""
    return Control(emit, inbox)


def wait(emit: Emit, inbox: Inbox, paused: events.Paused, save_now: Callable[[], None]) -> None:
    """Tell of a pause and wait until told to go on or to end. Who wants to save meanwhile is served."""
    emit(paused)
    while inbox.wishes.waiting:
        if inbox.wishes.saving:
            save_now()
            inbox.saved()
        inbox.sleep()
    emit(events.Resumed(step=paused.step))
