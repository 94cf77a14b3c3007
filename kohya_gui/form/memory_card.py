"""Beside the plan: the memory that the run would take, what holds it, and what would make it fit a smaller card."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kohya_gui.form import fields
from kohya_gui.parts.markup import button, esc, size
from trainer.config import known_settings
from trainer.forecast import asking
from trainer.forecast.forecast import GB, Fit, Forecast
from trainer.ground.errors import RunError
from trainer.planning.plan import Plan

QUIET_SECONDS = 2.0
"""So long nothing may have changed in the form before a forecast is begun."""

_WORKING = "It is being worked out."
_LOOKING = "Settings that fit are being looked for."


@dataclass(frozen=True, slots=True)
class Memory:
    """What the card shows: `words` while there is nothing else, what was found for so many bytes, the time if known."""

    forecast: Forecast | None = None
    words: str = ""
    fit: Fit | None = None
    time: str = ""


class Forecaster:
    """Has forecasts made in the background, one at a time, of the form as it was last. Any thread may ask."""

    def __init__(self, seconds: float = QUIET_SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._plan: Plan | None = None
        self._timed: Plan | None = None
        self._most = 0
        self._thread: threading.Thread | None = None
        self.shown = Memory()

    def of(self, plan: Plan | None) -> None:
        """The form comes to this plan now; None where it comes to none."""
        with self._changed:
            if plan is None or (reason := asking.why_not(plan)):
                self._plan, self.shown = None, Memory(words=reason if plan is not None else "")
            elif self._plan is None or asking.key_of(plan) != asking.key_of(self._plan):
                self._plan, self._most = plan, 0
                self.shown = Memory(asking.known(asking.key_of(plan)), _WORKING)
                self._begin()
            elif plan is not self._plan:
                # As much memory, but perhaps other steps.
                self._plan, self.shown = plan, replace(self.shown, time="")
                self._begin()
            self._changed.notify_all()

    def fit(self, most: int) -> None:
        """Look for settings that take at most so many bytes."""
        with self._changed:
            if self._plan is not None and most > 0:
                self._most, self.shown = most, Memory(self.shown.forecast, _LOOKING, time=self.shown.time)
                self._begin()
                self._changed.notify_all()

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="forecast", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                # Whoever types changes a plan with every key.
                while self._changed.wait(self._seconds):
                    pass
                plan, most, shown = self._plan, self._most, self.shown
                timed = plan is self._timed
                if plan is None or (shown.forecast is not None and timed and not (most and shown.fit is None)):
                    self._thread = None
                    return
            found = _found(plan, most, shown)
            with self._changed:
                if plan is self._plan and most == self._most:
                    self.shown, self._timed = found, plan
                    if found.forecast is None or (most and found.fit is None):
                        self._thread = None  # it failed, and would again
                        return


def _found(plan: Plan, most: int, shown: Memory) -> Memory:
    try:
        forecast = shown.forecast or asking.forecast(plan)
        pace = asking.earlier(plan, forecast.name)
        time = pace.words(plan.timetable.total_steps) if pace else ""
        fit = shown.fit if shown.fit and shown.fit.most == most else asking.fit(plan, most) if most else None
        return Memory(forecast, "", fit, time)
    except RunError as error:
        return Memory(shown.forecast, error.message, time=shown.time)


def memory_card(memory: Memory) -> str:
    """Return the card; empty where there is nothing to say."""
    if memory == Memory():
        return ""
    parts = [_forecast(memory.forecast)] if memory.forecast else []
    if memory.words and not (memory.forecast and memory.words == _WORKING):
        parts.append(f'<p class="quiet">{esc(memory.words)}</p>')
    if memory.time:
        parts.append(f'<p id="memory-time">Time: {esc(memory.time)}</p>')
    if memory.forecast:
        most = memory.fit.most if memory.fit else 0
        value = f' value="{most / GB:g}"' if most else ""
        parts.append(
            '<p class="fit"><label>The card has <input type="number" name="card" min="1" max="1000" step="any"'
            f"{value}> GB</label> {button('fit', 'Fit to my card')}</p>"
        )
    if memory.fit:
        parts.append(_fit(memory.fit))
    return f'<section class="card" id="memory"><h3>Memory and time</h3>{"".join(parts)}</section>'


def _forecast(forecast: Forecast) -> str:
    largest = forecast.largest
    rows = "".join(f"<tr><th>{esc(name)}</th><td>{size(count)}</td></tr>" for name, count in largest.holders)
    where = "this computer's memory" if forecast.device == "cpu" else "the graphics card's memory"
    others = ", ".join(f"{phase.name} {size(phase.peak)}" for phase in forecast.phases if phase is not largest)
    host = f"<p>Beside it in the computer's memory: {size(forecast.host)}</p>" if forecast.host else ""
    notes = "".join(f'<p class="quiet">{esc(each)}</p>' for each in forecast.notices)
    less = f'<p class="quiet">Less {esc(others)}</p>' if others else ""
    return (
        f'<p class="big"><b id="memory-peak">{size(forecast.peak)}</b> of {where} at most, {esc(largest.name)}</p>'
        f'<table class="rates"><tbody>{rows}</tbody></table>{less}{host}{notes}'
    )


def _fit(fit: Fit) -> str:
    peak = size(fit.forecast.peak)
    if fit.fits and not fit.values:
        return '<p class="told" role="status">It fits as it is.</p>'
    words = fit_words(fit.values)
    if fit.fits:
        return f'<p role="status">It fits with {peak}:</p>{button("take-fit", words)}'
    lower = "lower the resolution as well"
    least = f"It does not fit: the least is {peak}; {lower}."
    return f'<p role="status">{least}</p>' + (button("take-fit", words) if words else "")


def fit_words(values: Mapping[str, object]) -> str:
    """Return what a click does, in words: "Turn on Gradient checkpointing, set Batch size to 1"."""
    found = [fields.assignment(known_settings()[key], value) for key, value in values.items()]
    return ", ".join([*found[:1], *(word[0].lower() + word[1:] for word in found[1:])])
