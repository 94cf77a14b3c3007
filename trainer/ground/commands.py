"""What a run can be told, and the two ways in: an inbox for this process and a file for any other.

A run asks its inbox at the end of every step and inside every long phase.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import deque
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


class Inbox:
    """A queue of commands, safe to fill from any thread or signal handler."""

    def __init__(self) -> None:
        self._queue: deque[Command] = deque()
        self._arrived = threading.Event()
        self._control: Path | None = None

    def watch(self, folder: Path) -> None:
        """Also take commands from the control file in `folder`."""
        self._control = folder / CONTROL_FILE

    def send(self, command: Command) -> None:
        """Add a command."""
        self._queue.append(command)
        self._arrived.set()

    def take(self) -> list[Command]:
        """Return the commands that have arrived, oldest first, and forget them."""
        self._fetch()
        return [self._queue.popleft() for _ in range(len(self._queue))]

    def peek(self) -> tuple[Command, ...]:
        """Return the waiting commands without forgetting them."""
        self._fetch()
        return tuple(self._queue)

    def wait_for(self, *wanted: Command) -> Command:
        """Sleep until one of `wanted` has arrived; forget that one and return it. Others stay in the inbox."""
        while True:
            for command in self.peek():
                if command in wanted:
                    self._queue.remove(command)
                    return command
            self._arrived.wait(_POLL_SECONDS)
            self._arrived.clear()

    def _fetch(self) -> None:
        if self._control:
            self._queue.extend(_read_control(self._control))


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
