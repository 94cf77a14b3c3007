"""What was found out about pictures, kept from run to run, so that only new and changed files are opened again.

A picture is the same as long as its name, length and times of change are. What is remembered lies in the user's cache
folder, a file for each folder of pictures and each kind of knowledge, and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from pathlib import Path

from trainer.ground.files import cache_folder, write_text
from trainer.ground.paths import read_json

WORTH = 500
"""Of fewer pictures everything is found out sooner than looked up."""

_FORMAT = "remembered/1"
_SETTLED = 2_000_000_000
"""Nanoseconds for which a file must have been left alone: what is written twice within one tick of the file system's
clock has the same times."""

logger = logging.getLogger(__name__)


class HeaderCache:
    """One text for each picture of a folder, such as its size. `kind` says what it is and how it was found out.

    `get` and `put` take a picture's name and its `os.stat`.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self._head = {"format": _FORMAT, "kind": kind, "folder": os.path.abspath(folder)}
        name = hashlib.sha256(json.dumps(self._head).encode()).hexdigest()[:32]
        self._path = cache_folder() / "pictures" / f"{name}.json"
        self._before = self._read()
        self._now: dict[str, str] = {}
        self._began = time.time_ns()

    def get(self, name: str, state: os.stat_result) -> str | None:
        """Return what is known of a picture, or None where nothing is or the file has changed."""
        known = self._before.get(name, "")
        text, _, stamp = known.partition(" ")
        if stamp != _stamp(state):
            return None
        self._now[name] = known
        return text

    def put(self, name: str, state: os.stat_result, text: str) -> None:
        """Remember a text without spaces about a picture; `state` is from before it was opened."""
        if max(state.st_mtime_ns, state.st_ctime_ns) < self._began - _SETTLED:
            self._now[name] = f"{text} {_stamp(state)}"

    def save(self) -> None:
        """Write what was got and put, if anything is new. A folder that cannot be written costs time, not the run."""
        if self._now == self._before:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, json.dumps({**self._head, "pictures": self._now}))
        except (OSError, UnicodeError) as error:
            logger.info("what was found out in %s is not remembered: %s", self._head["folder"], error)

    def _read(self) -> dict[str, str]:
        """Return what the file has, each picture's as one text: lists would take three times as long."""
        try:
            told = read_json(self._path)
            if any(told[key] != value for key, value in self._head.items()):
                return {}
            return {name: text for name, text in told["pictures"].items() if isinstance(text, str)}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return {}


def _stamp(state: os.stat_result) -> str:
    return f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"
