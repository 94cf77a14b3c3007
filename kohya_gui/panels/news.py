"""News of the run for the open pages: its parts with numbers, of which a page asks for what is newer than it has.

A plain route answers, not Gradio's queue: every tab asks once a second, and what that takes is taken from the training.
A part is drawn once for all tabs, and only when it changed; the page's script, `news.js`, changes what differs.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from kohya_gui.session import Session
from kohya_gui.watch import run_panel
from trainer.results.snapshot import RunSnapshot

CURVE_SECONDS = 2.0
"""Least time between two drawings of a curve while it grows: a few pixels, at the price of all the numbers."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the page. It is drawn anew when what it is `of` differs, and not sooner than after `seconds`."""

    of: Callable[[RunSnapshot], object]
    draw: Callable[[RunSnapshot], str]
    seconds: float = 0.0


@dataclass(slots=True)
class Drawn:
    """How a part looks, what of, when it was drawn, and the number of its last change."""

    html: str = ""
    of: object = None
    at: float = -math.inf
    number: int = 0


@dataclass(frozen=True, slots=True)
class Said:
    """Words that stand in the bar instead of the status, while the run's `state` is this one and until a moment."""

    words: str = ""
    state: object = None
    until: float = 0.0
    refused: bool = False


class News:
    """Draws the parts and numbers their changes. Methods may be called from any thread."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._said = Said()
        # Numbers begin with the clock, so that a page that outlived the program gets everything anew.
        self._number = time.time_ns() // 1_000_000
        self._controls: object = None
        self._form = 0
        self._parts: dict[str, Part] = {}
        self._drawn: dict[str, Drawn] = {}

    def add(self, name: str, part: Part) -> None:
        """Take up a part of the page, which it has under `data-part`."""
        self._parts[name], self._drawn[name] = part, Drawn()

    def draw_again(self, name: str) -> None:
        """Draw a part anew at the next question, for what it is of has changed outside the program."""
        with self._lock:
            self._drawn[name].of = None

    # --- what was asked for -----------------------------------------------------------------------------------------

    def say(self, words: str, seconds: float = math.inf, *, refused: bool = False) -> None:
        """Show what was asked for or refused, until the run does something about it, or for some seconds."""
        self._said = Said(words, self._state(), time.monotonic() + seconds, refused)

    @property
    def refused(self) -> bool:
        """True while what stands there is a refusal."""
        return self._said.refused and bool(self.words)

    @property
    def words(self) -> str:
        """What was said last, while it stands."""
        said = self._said
        return said.words if said.state == self._state() and time.monotonic() < said.until else ""

    def _state(self) -> tuple[object, ...]:
        session = self._session
        return session.runs_started, session.busy, session.snapshot.status

    # --- what is new ------------------------------------------------------------------------------------------------

    def since(self, number: int) -> dict[str, object] | None:
        """Return what changed after `number`, with the number to ask with next; None when nothing did."""
        with self._lock:
            self._draw()
            if number == self._number:
                return None
            if number > self._number:  # of a program whose clock was ahead
                number = 0
            newer = {name: drawn.html for name, drawn in self._drawn.items() if drawn.number > number}
            about = {"controls": self._controls, "busy": self._session.busy, "form": self._form}
            return {"number": self._number, "parts": newer, **about}

    def _draw(self) -> None:
        run, busy, now = self._session.snapshot, self._session.busy, time.monotonic()
        for name, part in self._parts.items():
            drawn, of = self._drawn[name], (self._session.runs_started, part.of(run))
            if drawn.of == of or (busy and now - drawn.at < part.seconds):
                continue
            html = part.draw(run)
            if drawn.html != html or not drawn.number:
                self._number += 1
                drawn.number = self._number
            drawn.html, drawn.of, drawn.at = html, of, now
        usable = run_panel.controls(run, busy=busy)
        share = f"{100 * run_panel.share(run):.1f}%"
        controls = {
            "usable": usable,
            "pause": "Continue" if run.status == "paused" else "Pause",
            "there": self._session.run is not None,
            "share": share if busy else "0%",
        }
        form = self._session.draft.revision
        if (controls, form) != (self._controls, self._form):
            self._controls, self._form = controls, form
            self._number += 1

    def answer(self, request: Request) -> Response:
        """Answer GET news/{number}: what is new as JSON, or nothing."""
        new = self.since(request.path_params["number"])
        headers = {"Cache-Control": "no-store"}
        if new is None:
            return Response(status_code=204, headers=headers)
        return Response(json.dumps(new), media_type="application/json", headers=headers)
