"""The state of a run as one immutable value, folded from its events.

The window and the console read a snapshot and never consume it, so any number of tabs see the same run.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trainer.ground import events
from trainer.ground.events import Event, SampleReady, Saved, StepDone

LISTED = 500
"""Newest samples, files and warnings that a snapshot lists, so that a run of any length stays light."""

RING_SIZE = 1000
"""Events kept in memory; the run's `events.jsonl` has them all."""


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """What there is to know about a run at one moment. `status` is one of the words in `STATUSES`."""

    status: str = "idle"
    folder: str = ""
    phase: str = ""
    phase_done: int = 0
    phase_total: int = 0
    step: int = 0
    total_steps: int = 0
    epoch: int = 0
    total_epochs: int = 0
    loss: float | None = None
    average_loss: float | None = None
    lr: dict[str, float] = field(default_factory=dict)
    step_size: float | None = None
    memory: int = 0
    seconds_per_step: float = 0.0
    started_at: float = 0.0
    ended_at: float = 0.0
    samples: tuple[SampleReady, ...] = ()
    saved: tuple[Saved, ...] = ()
    warnings: tuple[str, ...] = ()
    paused: events.Paused | None = None
    before_pause: str = ""
    error: events.Failed | None = None
    finished: events.Finished | None = None
    revision: int = 0

    @property
    def seconds_left(self) -> float:
        """Estimated seconds until the last step, from the smoothed step time."""
        return max(0, self.total_steps - self.step) * self.seconds_per_step

    @property
    def active(self) -> bool:
        """True while the run holds a thread."""
        return self.status in ("preparing", "training", "paused", "stopping")


STATUSES = ("idle", "preparing", "training", "paused", "stopping", "finished", "stopped", "failed", "interrupted")

_SMOOTHING = 0.1
"""Weight of the newest step in the smoothed step time."""


def fold(snapshot: RunSnapshot, event: Event) -> RunSnapshot:
    """Return the snapshot after one more event."""
    change = _FOLDS.get(type(event))
    fields = change(snapshot, event) if change else {}
    return dataclasses.replace(snapshot, revision=snapshot.revision + 1, **fields)


def _started(snapshot: RunSnapshot, event: events.Started) -> dict[str, Any]:
    return {
        "status": "preparing",
        "folder": event.folder,
        "step": event.step,
        "epoch": math.ceil(event.step / max(1, event.steps_per_epoch)),
        "total_steps": event.total_steps,
        "total_epochs": event.total_epochs,
        "started_at": snapshot.started_at or event.time,
        "ended_at": 0.0,
        "paused": None,
        "error": None,
        "finished": None,
    }


def _stage(snapshot: RunSnapshot, event: events.Stage) -> dict[str, Any]:
    status = snapshot.status
    if status == "idle":
        status = "preparing"
    return {
        "status": status,
        "phase": event.name,
        "phase_done": event.done,
        "phase_total": event.total,
        "started_at": snapshot.started_at or event.time,
    }


def _step_done(snapshot: RunSnapshot, event: StepDone) -> dict[str, Any]:
    before = snapshot.seconds_per_step
    return {
        "status": "training" if snapshot.status != "stopping" else "stopping",
        "phase": "training",
        "phase_done": event.step,
        "phase_total": snapshot.total_steps,
        "step": event.step,
        "epoch": event.epoch,
        "loss": event.loss,
        "average_loss": event.average_loss,
        "lr": dict(event.acting_lr or event.lr),
        "step_size": event.step_size,
        "memory": event.memory,
        "seconds_per_step": before + _SMOOTHING * (event.seconds - before) if before else event.seconds,
    }


def _finished(snapshot: RunSnapshot, event: events.Finished) -> dict[str, Any]:
    status = "stopped" if event.stopped else "finished"
    return {"status": status, "finished": event, "phase": "", "ended_at": event.time}


def _failed(snapshot: RunSnapshot, event: events.Failed) -> dict[str, Any]:
    return {"status": "failed", "error": event, "phase": "", "ended_at": event.time}


def _kept(earlier: tuple[Any, ...], newest: object) -> tuple[Any, ...]:
    return (*earlier[1 - LISTED :], newest)


_FOLDS: dict[type[Event], Callable[[RunSnapshot, Any], dict[str, Any]]] = {
    events.Started: _started,
    events.Stage: _stage,
    events.StepDone: _step_done,
    events.EpochDone: lambda snapshot, event: {"epoch": event.epoch},
    events.Saved: lambda snapshot, event: {"saved": _kept(snapshot.saved, event)} if event.kind == "lora" else {},
    events.SampleReady: lambda snapshot, event: {"samples": _kept(snapshot.samples, event)},
    events.Warned: lambda snapshot, event: {"warnings": _kept(snapshot.warnings, event.message)},
    events.Paused: lambda snapshot, event: {"status": "paused", "paused": event, "before_pause": snapshot.status},
    events.Resumed: lambda snapshot, event: {"status": snapshot.before_pause or "training", "paused": None},
    events.Finished: _finished,
    events.Failed: _failed,
}


class Board:
    """Holds the newest snapshot and a bounded, numbered ring of events; written by one thread, read by any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._snapshot = RunSnapshot()
        self._ring: deque[tuple[int, Event]] = deque(maxlen=RING_SIZE)

    def post(self, event: Event) -> None:
        """Fold one event in."""
        with self._lock:
            self._snapshot = fold(self._snapshot, event)
            self._ring.append((self._snapshot.revision, event))

    @property
    def snapshot(self) -> RunSnapshot:
        """The newest snapshot."""
        return self._snapshot

    def since(self, number: int) -> list[tuple[int, Event]]:
        """Return the kept events with a number above `number`."""
        with self._lock:
            return [(each, event) for each, event in self._ring if each > number]
