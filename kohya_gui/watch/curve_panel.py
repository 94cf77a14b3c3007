"""The plot of a run: its place and its tools; `assets/curves.js` draws it from what the route `curves/` answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence

from starlette.requests import Request
from starlette.responses import Response

from kohya_gui.form.fields import named
from kohya_gui.parts.markup import esc
from kohya_gui.session import Session, View
from trainer.config import known_settings, to_flat
from trainer.results.curves import GROUPS, curves, pictures_of_a_step
from trainer.results.run_record import RunRecord
from trainer.settings.walk import Setting

TITLES = {"loss": "Loss", "rate": "Learning rate", "gradient": "Gradient", "time": "Time"}

MOST_COMPARED, MOST_LAID_OVER = 30, 5
"""Runs that are offered to be laid over, and that can be at once."""

_LONGEST = 80
"""Characters of a value that are shown."""
_OWN = frozenset({"output_name", "output_dir", "logging_dir"})
"""Settings that always differ and change nothing."""


def plot(view: View, names: Sequence[str]) -> str:
    """Return the place of the plot, with its tools; `names` are the runs that can be laid over it."""
    if view.record is None or not view.snapshot.step:
        return ""
    tabs = "".join(
        f'<button type="button" class="small" data-group="{group}" aria-pressed="{str(group == "loss").lower()}">'
        f"{TITLES[group]}</button>"
        for group in GROUPS
    )
    others = [name for name in names if name != view.name][:MOST_COMPARED]
    options = "".join(f'<option value="{esc(name)}">{esc(name)}</option>' for name in others)
    select = f'<select data-compare><option value="">another run</option>{options}</select>'
    compare = f'<label class="compare">Compare with {select}</label>' if others else ""
    return (
        f'<section class="card curves" data-curves="{esc(view.name)}" data-step="{view.snapshot.step}" '
        f'data-validated="{len(view.record.validated)}" data-live="{str(view.live).lower()}">'
        f'<div class="curve-tools"><div class="segments" role="group" aria-label="What is drawn">{tabs}</div>'
        '<label>Smoothing <input type="range" min="0" max="0.99" step="0.01" value="0.6" data-smooth '
        'aria-label="Smoothing"></label>'
        '<label><input type="checkbox" data-log> log</label>'
        '<label>Over <select data-over><option value="step">steps</option><option value="pictures">pictures seen'
        f"</option></select></label>{compare}"
        '<button type="button" class="small" data-whole hidden>Whole run</button></div>'
        '<div class="compared" data-own></div>'
        '<div class="plot" data-own tabindex="0" role="img" aria-label="The curves of the run"></div>'
        '<div class="legend-line" data-own></div><div class="plot-below" data-own></div></section>'
    )


def answer_curves(session: Session) -> Callable[[Request], Response]:
    """Return what answers GET curves/{name}?group=&low=&high=."""

    def answer(request: Request) -> Response:
        record = session.view(request.path_params["name"]).record
        if record is None or record.name != request.path_params["name"]:
            return Response("There is no such run.", 404)
        try:
            low, high = (_number(request, name, usual) for name, usual in (("low", 0.0), ("high", math.inf)))
            found = curves(record, request.query_params.get("group", "loss"), low, high)
        except ValueError as error:
            return Response(str(error), 400)
        return _json(found)

    return answer


def answer_comparison(session: Session) -> Callable[[Request], Response]:
    """Return what answers GET comparison/{name}?with=&with=: in which settings runs differ, and what came of each."""

    def answer(request: Request) -> Response:
        names = [request.path_params["name"], *request.query_params.getlist("with")[:MOST_LAID_OVER]]
        records = [session.view(name).record for name in names]
        found = [record for record in records if record is not None]
        if len(found) < 2 or [record.name for record in found] != names:
            return Response("There is no such run.", 404)
        pictures = {record.name: pictures_of_a_step(record) for record in found}
        return _json({"names": names, "rows": comparison(found), "pictures": pictures})

    return answer


def comparison(records: Sequence[RunRecord]) -> list[list[str]]:
    """Return rows of a label and the runs' values: results first, then the settings in which not all are alike."""
    rows = [
        ["Status", *(record.snapshot.status for record in records)],
        ["Steps done", *(f"{record.snapshot.step:,}" for record in records)],
        ["Loss, average", *(_loss(record.snapshot.average_loss) for record in records)],
        ["Validation, lowest", *(_loss(min((p.loss for p in record.series), default=None)) for record in records)],
    ]
    configs = [record.config() for record in records]
    values = [to_flat(config) if config else {} for config in configs]
    for key, setting in known_settings().items():
        row = [flat.get(key) for flat in values]
        if any(value != row[0] for value in row) and key not in _OWN:
            rows.append([setting.show.label, *(_shown(setting, key, flat) for flat in values)])
    return rows


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _shown(setting: Setting, key: str, flat: Mapping[str, object]) -> str:
    text = named(setting, flat[key]) if key in flat else "–"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _number(request: Request, name: str, usual: float) -> float:
    value = float(request.query_params.get(name, usual))
    if math.isnan(value):
        raise ValueError(f"{name} must be a number.")
    return value


def _json(found: object) -> Response:
    body = json.dumps(found, separators=(",", ":"))
    return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})
