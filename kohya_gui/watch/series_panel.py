"""Series: what is to be varied, and what came of the runs, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from kohya_gui.form.fields import named
from kohya_gui.parts.markup import button, duration, esc, number
from kohya_gui.parts.served import Pictures
from kohya_gui.watch import gallery
from kohya_gui.watch.gallery import Row, Shown
from trainer.config import known_settings
from trainer.queue.comparison import Result, best_of
from trainer.queue.series import FIXED, MOST_SETTINGS, Series

USUAL = ("learning_rate", "network_dim", "optimizer_type", "max_train_epochs", "network_type", "lr_scheduler")
"""What is offered first."""


def form() -> str:
    """Return the place where a series is made of what the form says."""
    known = known_settings()
    order = [*USUAL, *(key for key in known if key not in (*USUAL, *FIXED))]
    choices = "".join(f'<option value="{esc(key)}">{esc(known[key].show.label)} ({esc(key)})</option>' for key in order)
    hints = ("1e-4, 5e-5, 2e-5", "8, 16")
    lines = "".join(
        f'<div class="series-line"><label>{"And" if place else "Setting"}<select name="setting-{place}">'
        f'<option value="">–</option>{choices}</select></label><label>Values<input name="values-{place}" '
        f'placeholder="{hint}" spellcheck="false"></label></div>'
        for place, hint in zip(range(MOST_SETTINGS), hints, strict=True)
    )
    return (
        '<details class="card series-form" id="series-form" data-keep="series-form"><summary><h3>Series '
        '<span class="quiet">compare values of a setting</span></h3></summary><p class="quiet">What the form says, '
        "once for each value, or for each pair where two settings vary. The runs go into the queue, and a table tells "
        f"them apart at the end. With a semicolon between values they may hold commas: 512; 768,512.</p>{lines}"
        f"<p>{button('series-add', 'Add the runs to the queue', style='primary', id_='series-add')}</p></details>"
    )


def table(series: Series, rows: Sequence[Result], pictures: Pictures) -> str:
    """Return one series: a row for each run, then the last samples, a column for each run."""
    labels = [_label(key) for key in series.settings]
    lowest = best_of(list(rows))
    names = ("Run", *labels, "Status", "Best validation", "Time")
    heads = "".join(f"<th>{esc(head)}</th>" for head in names)
    body = "".join(_row(row, series.settings, names, best=row is lowest) for row in rows)
    remove = button("series-remove", "Remove the table", key=series.key)
    return (
        f'<section class="card series" data-series="{esc(series.name)}"><h3>Series {esc(series.name)}{remove}</h3>'
        f'<div class="scroll"><table class="comparison series-table"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{_samples(series.settings, rows, pictures)}</section>"
    )


def _row(row: Result, keys: Sequence[str], heads: Sequence[str], *, best: bool) -> str:
    link = f'<button type="button" class="link" data-open-run="{esc(row.name)}">{esc(row.name)}</button>'
    lowest = "–" if row.best is None else f"{row.best:.4f} at step {number(row.best_step)}"
    cells = [
        esc(row.name) if row.status == "waiting" else link,
        *(esc(_shown(key, value)) for key, value in zip(keys, row.values, strict=True)),
        f'<span class="badge {row.status}">{row.status}</span>',
        lowest + (' <span class="badge good">lowest</span>' if best else ""),
        "–" if row.seconds is None else duration(row.seconds),
    ]
    inside = "".join(f'<td data-head="{esc(head)}">{cell}</td>' for head, cell in zip(heads, cells, strict=True))
    return f'<tr data-member="{esc(row.name)}">{inside}</tr>'


def _label(key: str) -> str:
    known = known_settings()
    return known[key].show.label if key in known else key


def _shown(key: str, value: object) -> str:
    known = known_settings()
    return named(known[key], value) if key in known else str(value)


def _samples(keys: Sequence[str], rows: Sequence[Result], pictures: Pictures) -> str:
    drawn = [row for row in rows if row.samples]
    numbers = sorted({index for row in drawn for index in row.samples or {}})
    if not numbers:
        return ""
    values = [zip(keys, row.values, strict=True) for row in drawn]
    heads = [", ".join(f"{_label(key)} {_shown(key, value)}" for key, value in pairs) for pairs in values]
    shown = []
    for index in numbers:
        prompt = next(row.samples[index][0] for row in drawn if row.samples and index in row.samples)
        cells = [
            Shown(row.samples[index][1], head, prompt) if row.samples and index in row.samples else None
            for row, head in zip(drawn, heads, strict=True)
        ]
        shown.append(Row(prompt, cells))
    return f"<h4>Last samples</h4>{gallery.grid(shown, heads, pictures)}"
