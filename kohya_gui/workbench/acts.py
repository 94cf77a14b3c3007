"""What was done in the workbench and can be taken back, and what was taken back and can be done again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

MOST_ACTS = 200


@dataclass(frozen=True, slots=True)
class Act:
    """One thing that was done: what, in which folders, and how it is turned round; None where the captions' journal is.

    `turn` takes it back or, once that was done, does it again. No two acts have the same `number`.
    """

    title: str
    folders: frozenset[Path]
    turn: Callable[[], Turned] | None = None
    number: int = field(default_factory=count().__next__)


@dataclass(frozen=True, slots=True)
class Turned:
    """What became of an act: the one that turns it round again, and the folder to open; None: the open one stays."""

    act: Act
    opened: Path | None = None


class Acts:
    """The acts of all folders, the last of them at the end. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._done: list[Act] = []
        self._undone: list[Act] = []
        self._lock = threading.Lock()

    def did(self, act: Act) -> None:
        """Remember an act; what was taken back in its folders before it cannot be done again."""
        with self._lock:
            self._done = [*self._done, act][-MOST_ACTS:]
            self._undone = [each for each in self._undone if not each.folders & act.folders]

    def last(self, folders: Iterable[Path], *, undone: bool, captions: bool) -> Act | None:
        """Return the act of these folders that is turned round next, None where there is none.

        Args:
            undone: of those that were taken back.
            captions: whether the journal has a change of captions for it; acts that are in the journal count only then.
        """
        places = frozenset(folders)
        with self._lock:
            acts = self._undone if undone else self._done
            return next((each for each in reversed(acts) if each.folders & places and (each.turn or captions)), None)

    def turned(self, act: Act, now: Act, *, back: bool) -> None:
        """An act was taken back, or with `back` false done again; `now` is the one that turns it round."""
        with self._lock:
            before, after = (self._done, self._undone) if back else (self._undone, self._done)
            if act in before:
                before.remove(act)
            after.append(now)
            del after[:-MOST_ACTS]
