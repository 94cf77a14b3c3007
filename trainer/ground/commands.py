"""What a run can be told, and the two ways in: an inbox for this process and a file for any other.

A run asks its inbox at the end of every step and inside every long phase. Commands are states to reach: see `Wishes`.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import deque
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

CONTROL_FILE = "control"
"""Name inside a run's folder. One command a line; the run removes the file when it has read it."""

_CONTROL_LIMIT = 4096
"""Bytes read from a control file; more cannot be an honest list of commands."""

_POLL_SECONDS = 0.2
"""Seconds between two looks at the control file while waiting."""


class Command(StrEnum):
    """STOP saves and finishes; ABORT ends without a final file; PAUSE frees the device until RESUME."""

    STOP = "stop"
    ABORT = "abort"
    PAUSE = "pause"
    RESUME = "resume"
    SAVE_NOW = "save_now"
    SAMPLE_NOW = "sample_now"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a run is to reach: to have ended, to be waiting, to have saved, to have drawn its sample pictures.

    Commands are such states and not toggles, so what was asked for twice is reached once.
    """

    ending: Command | None = None
    pausing: bool = False
    saving: bool = False
    sampling: bool = False

    def after(self, command: Command) -> Wishes:
        """Return what is wished for once `command` has come too. Who asks to stop and then to abort means abort."""
        match command:
            case Command.STOP:
                return replace(self, ending=self.ending or command)
            case Command.ABORT:
                return replace(self, ending=command)
            case Command.PAUSE:
                return replace(self, pausing=True)
            case Command.RESUME:
                return replace(self, pausing=False)
            case Command.SAVE_NOW:
                return replace(self, saving=True)
            case Command.SAMPLE_NOW:
                return replace(self, sampling=True)

    @property
    def waiting(self) -> bool:
        """True where a pause is asked for, and no end."""
        return self.pausing and self.ending is None


class Inbox:
    """What a run was told and has not reached. Any thread or signal handler may fill it; the run's thread reads."""

    def __init__(self) -> None:
        self._queue: deque[Command] = deque()
        self._arrived = threading.Event()
        self._control: Path | None = None
        self._wishes = Wishes()

    def watch(self, folder: Path) -> None:
        """Also take commands from the control file in `folder`."""
        self._control = folder / CONTROL_FILE

    def send(self, command: Command) -> None:
        """Add a command."""
        self._queue.append(command)
        self._arrived.set()

    @property
    def wishes(self) -> Wishes:
        """What all commands up to now come to."""
        if self._control:
            self._queue.extend(_read_control(self._control))
        while self._queue:
            self._wishes = self._wishes.after(self._queue.popleft())
        return self._wishes

    def saved(self) -> None:
        """Take note that what there is now is saved."""
        self._wishes = replace(self.wishes, saving=False)

    def sampled(self) -> None:
        """Take note that the sample pictures of now are drawn."""
        self._wishes = replace(self.wishes, sampling=False)

    def sleep(self) -> None:
        """Wait until something may have arrived."""
        self._arrived.wait(_POLL_SECONDS)
        self._arrived.clear()


def _read_control(path: Path) -> list[Command]:
    """Read and remove the control file. Only a regular file counts: a link could lead out of the run's folder.

    One that is empty, or that the system does not let go of, is still being written: the next look takes it.
    """
    claimed = path.with_name(f"{path.name}.taken")
    try:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or not found.st_size:
            return []
        os.replace(path, claimed)
        # Between the look and the claim a link may have taken the file's place.
        with open(claimed, "rb", opener=_without_following) as file:
            words = file.read(_CONTROL_LIMIT).decode(errors="replace").split()
        claimed.unlink()
    except OSError:
        return []
    known = {command.value for command in Command}
    return [Command(word) for word in words if word in known]


def _without_following(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0))
