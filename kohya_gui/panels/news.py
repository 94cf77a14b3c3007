"""News of the run for the open pages: its parts with numbers, of which a page asks for what is newer than it has.

A plain route answers, not Gradio's queue: every tab asks once a second, and what that takes is taken from the training.
A part is drawn once for all tabs, and only when it changed; the page's script, `news.js`, changes what differs.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from kohya_gui.session import Session, View
from kohya_gui.watch import run_panel
from trainer.results.snapshot import RunSnapshot

SAID_SECONDS = 6.0
"""How long words stand that no change of the run's status answers."""

MOST_NAME = 300
"""Letters of a run's name."""

MOST_VIEWS = 12
"""Runs of which it is remembered how their page looks, those last asked for."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the page. It is drawn anew when what it is `of` differs, and not sooner than after `seconds`."""

    of: Callable[[RunSnapshot], object]
    draw: Callable[[RunSnapshot], str]
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ViewPart:
    """One part of a run's page, as `Part`, of the run that a tab looks at."""

    of: Callable[[View], object]
    draw: Callable[[View], str]


@dataclass(slots=True)
class Drawn:
    """How a part looks, what of, when it was drawn, and the number of its last change."""

    html: str = ""
    of: object = None
    at: float = -math.inf
    number: int = 0


@dataclass(frozen=True, slots=True)
class Said:
    """Words that stand in the bar instead of the status, while the run's state begins with this and until a moment."""

    words: str = ""
    state: tuple[object, ...] = ()
    until: float = 0.0
    refused: bool = False


def _ending(run: RunSnapshot, *, busy: bool) -> dict[str, object]:
    """Return what a notification of a run's end says."""
    words = run.error.message if run.error else f"step {run.step:,} of {run.total_steps:,}"
    name = Path(run.folder).stem if run.folder else ""
    over = not busy and not run.active
    return {
        "status": run.status,
        "active": not over and run.status != "idle",
        "name": name,
        "words": words if over else "",
    }


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
        self._view_parts: dict[str, ViewPart] = {}
        self._views: OrderedDict[str, dict[str, Drawn]] = OrderedDict()

    def add(self, name: str, part: Part | ViewPart) -> None:
        """Take up a part of the page, which it has under `data-part`."""
        if isinstance(part, Part):
            self._parts[name], self._drawn[name] = part, Drawn()
        else:
            self._view_parts[name] = part

    def draw_again(self, name: str) -> None:
        """Draw a part anew at the next question, for what it is of has changed outside the program."""
        with self._lock:
            for drawn in (self._drawn, *self._views.values()):
                if name in drawn:
                    drawn[name].of = None

    # --- what was asked for -----------------------------------------------------------------------------------------

    def say(self, words: str, seconds: float = math.inf, *, refused: bool = False, to_the_end: bool = False) -> None:
        """Show what was asked for or refused, until the run does something about it, or for some seconds.

        `to_the_end`: whatever else it does, until it has ended; a paused run goes on for a moment to end itself.
        """
        state = self._state()[:2] if to_the_end else self._state()
        self._said = Said(words, state, time.monotonic() + seconds, refused)

    @property
    def refused(self) -> bool:
        """True while what stands there is a refusal."""
        return self._said.refused and bool(self.words)

    @property
    def words(self) -> str:
        """What was said last, while it stands."""
        said = self._said
        return said.words if said.state == self._state()[: len(said.state)] and time.monotonic() < said.until else ""

    def _state(self) -> tuple[object, ...]:
        session = self._session
        return session.runs_started, session.busy, session.snapshot.status

    # --- what is new ------------------------------------------------------------------------------------------------

    def since(self, number: int, looked_at: str = "") -> dict[str, object] | None:
        """Return what changed after `number`, with the number to ask with next; None when nothing did.

        `looked_at` is the run whose page is open, "" for the one of the last start, or the newest.
        """
        with self._lock:
            self._draw()
            drawn = {**self._drawn, **self._draw_view(looked_at)}
            if number == self._number:
                return None
            if number > self._number:  # of a program whose clock was ahead
                number = 0
            newer = {name: each.html for name, each in drawn.items() if each.number > number}
            busy = self._session.busy or self._session.tools.busy
            about = {"controls": self._controls, "busy": busy, "form": self._form}
            return {"number": self._number, "parts": newer, **about}

    def _draw_view(self, looked_at: str) -> dict[str, Drawn]:
        """Draw the parts of one run's page that differ."""
        drawn = self._views.setdefault(looked_at, {name: Drawn() for name in self._view_parts})
        self._views.move_to_end(looked_at)
        while len(self._views) > MOST_VIEWS:
            self._views.popitem(last=False)
        view = self._session.view(looked_at)
        for name, part in self._view_parts.items():
            self._renew(drawn[name], (view.name, view.live, part.of(view)), partial(part.draw, view))
        return drawn

    def _renew(self, drawn: Drawn, of: object, draw: Callable[[], str]) -> None:
        if drawn.of == of:
            return
        html = draw()
        if drawn.html != html or not drawn.number:
            self._number += 1
            drawn.number = self._number
        drawn.html, drawn.of, drawn.at = html, of, time.monotonic()

    def _draw(self) -> None:
        run, busy, now = self._session.snapshot, self._session.busy, time.monotonic()
        for name, part in self._parts.items():
            drawn = self._drawn[name]
            if not (busy and now - drawn.at < part.seconds):
                self._renew(drawn, (self._session.runs_started, part.of(run)), partial(part.draw, run))
        usable = run_panel.controls(run, busy=busy)
        share = f"{100 * run_panel.share(run):.1f}%"
        controls = {
            "usable": usable,
            "start": "Add to queue" if self._session.queues else "Start",
            "pause": "Continue" if run.status == "paused" else "Pause",
            "run": _ending(run, busy=busy),
            "there": self._session.run is not None,
            "share": share if busy else "0%",
        }
        form = self._session.form_revision
        if (controls, form) != (self._controls, self._form):
            self._controls, self._form = controls, form
            self._number += 1

    def answer(self, request: Request) -> Response:
        """Answer GET news/{number}: what is new as JSON, or nothing."""
        new = self.since(request.path_params["number"], request.query_params.get("run", "")[:MOST_NAME])
        headers = {"Cache-Control": "no-store"}
        if new is None:
            return Response(status_code=204, headers=headers)
        return Response(json.dumps(new), media_type="application/json", headers=headers)
