"""The tool at work, on a thread of its own, and what it has said; one at a time for all open pages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.faststart import libraries
from trainer.ground import events
from trainer.ground.commands import Command, Inbox
from trainer.ground.errors import ConfigError, Problem, RunError, StateError, Stopped, TrainerError
from trainer.ground.events import Event
from trainer.tools.tool import COMPLETED, FAILED, REFUSED, STOPPED, Desk, Tool

BY = "started in the page"

RUNNING, DONE, FAULTS, NOT_BEGUN, ENDED, BROKEN = "running", "finished", "failed", "refused", "stopped", "broken"
_STATUS: Mapping[int, str] = {COMPLETED: DONE, FAILED: FAULTS, REFUSED: NOT_BEGUN, STOPPED: ENDED}
MOST_LINES = 2000


@dataclass(frozen=True, slots=True)
class Work:
    """One use of a tool as far as it has come: what it said, what is wrong, its phase, and the files that it wrote."""

    tool: Tool[Any] | None = None
    arguments: object = None
    status: str = ""
    lines: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    phase: str = ""
    done: int = 0
    total: int = 0
    written: tuple[Path, ...] = ()


class Worker:
    """Runs tools. Methods may be called from any thread."""

    def __init__(self) -> None:
        self.work = Work()
        self.revision = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._inbox = Inbox()

    @property
    def busy(self) -> bool:
        """True while a tool is at work; from the moment on that it is shown as ended another may begin."""
        return self.work.status == RUNNING

    @property
    def title(self) -> str:
        """What is at work, or was last."""
        return self.work.tool.title if self.work.tool else ""

    def refuse(self, tool: Tool[Any], problems: tuple[Problem, ...], arguments: object = None) -> None:
        """Show what is wrong with what was given to a tool, where none is at work."""
        with self._lock:
            if not self.busy:
                self._set(Work(tool, arguments, NOT_BEGUN, problems=problems))

    def start(self, tool: Tool[Any], arguments: object, ended: Callable[[Work], None]) -> None:
        """Let a tool work; `ended` is told how it went.

        Raises:
            StateError: another is at work.
        """
        with self._lock:
            if self.busy:
                raise StateError(f"{self.title} is at work.", "Wait until it ends, or stop it.")
            self._inbox = Inbox()
            self._set(Work(tool, arguments, RUNNING))
            self._thread = threading.Thread(target=self._run, args=(tool, arguments, ended), name="tool", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Let the tool end; it leaves nothing half done behind."""
        self._inbox.send(Command.STOP)

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended."""
        if self._thread:
            self._thread.join(timeout)

    def _run(self, tool: Tool[Any], arguments: object, ended: Callable[[Work], None]) -> None:
        status = BROKEN
        desk = Desk(self._say, self._say, self._complain, self._heard, lambda: self._inbox, BY, self._wrote)
        try:
            # The page loads them ahead on another thread: two at once would each find halves of the other's.
            libraries.load()
            status = _STATUS[tool.run(arguments, desk)]
        except TrainerError as error:
            self._complain(error)
            status = ENDED if isinstance(error, Stopped) else BROKEN if isinstance(error, RunError) else NOT_BEGUN
        finally:
            work = replace(self.work, status=status, phase="")
            ended(work)
            self._set(work)

    def _set(self, work: Work) -> None:
        self.work = work
        self.revision += 1

    def _say(self, text: str) -> None:
        self._set(replace(self.work, lines=(*self.work.lines, *text.splitlines())[-MOST_LINES:]))

    def _complain(self, error: TrainerError) -> None:
        found = error.problems if isinstance(error, ConfigError) else (Problem("", str(error)),)
        self._set(replace(self.work, problems=(*self.work.problems, *found)))

    def _heard(self, event: Event) -> None:
        if isinstance(event, events.Stage):
            self._set(replace(self.work, phase=event.name, done=event.done, total=event.total))

    def _wrote(self, path: Path) -> None:
        self._set(replace(self.work, written=(*self.work.written, path)))
