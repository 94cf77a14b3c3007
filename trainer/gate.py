"""Who has a device: one training, tool or captioner at a time, also between processes. Torch-free.

A gate is a lock file in the user's cache folder, one for each device, and beside it a text that says who holds it. The
system lets the lock go when its process ends, however that ends, so no gate stays shut behind a dead one.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from trainer.ground.errors import StateError
from trainer.ground.files import cache_folder, write_text
from trainer.ground.paths import read_json

FOLDER = "devices"
"""Name of the folder of locks in the cache folder."""

WAITING = "waiting for the device"
"""The phase of what waits for a gate."""

_LOOK_AGAIN_SECONDS = 0.2

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a device: `what` is done with it, `by` whom, in which process, since which second of the Unix epoch."""

    what: str
    by: str
    pid: int
    since: float

    def __str__(self) -> str:
        when = time.strftime("%H:%M", time.localtime(self.since))
        return f"{self.what}, {self.by} (process {self.pid}, since {when})"


class Gate:
    """The way to one device. `device` names it in every process alike, `title` for people ("the CPU").

    Held, it keeps others out; `leave` may be called at any time, also twice. Where the cache folder cannot be written
    there is no gate, and nothing is refused.
    """

    def __init__(self, device: str, title: str, what: str, by: str) -> None:
        self.title = title
        self._what, self._by = what, by
        self._path = cache_folder() / FOLDER / f"{_as_file_name(device)}.lock"
        self._lock = FileLock(self._path, thread_local=False)

    def take(self, waiting: Callable[[], None] | None = None, otherwise: str = "") -> None:
        """Take the device. While another has it, `waiting` is called again and again, which may raise to give up.

        `otherwise` is what else can be done about it, to end the sentence that says what to do.

        Raises:
            StateError: another has it, and there is no `waiting`.
        """
        while not self.try_to_take():
            if waiting is None:
                raise StateError(
                    f"{self.title} is in use: {self.holder() or 'a program that does not say who it is'}.",
                    f"Wait until that ends, or pause or stop it there{otherwise}.",
                )
            waiting()
            time.sleep(_LOOK_AGAIN_SECONDS)

    def try_to_take(self) -> bool:
        """Take the device if nobody has it, and say whether it is ours now."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            holder = Holder(self._what, self._by, os.getpid(), time.time())
            write_text(self._told, json.dumps(asdict(holder)))
        except Timeout:
            return False
        except OSError as error:
            logger.info("no gate before %s: %s", self.title, error)
        return True

    def leave(self) -> None:
        """Let others in."""
        self._lock.release(force=True)

    def holder(self) -> Holder | None:
        """Return who said last that the device is theirs, None where nobody did."""
        try:
            said = read_json(self._told)
            return Holder(str(said["what"]), str(said["by"]), int(said["pid"]), float(said["since"]))
        except (OSError, ValueError, LookupError, TypeError):
            return None

    @property
    def _told(self) -> Path:
        return self._path.with_suffix(".json")


def _as_file_name(device: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "-_" else "-" for sign in device)
