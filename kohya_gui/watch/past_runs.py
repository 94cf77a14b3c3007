"""The list of runs in the output folder, with what can be done with each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from kohya_gui.parts.markup import button, copyable, esc, number
from trainer.results.run_folder import PastRun

MOST_RUNS = 50


def runs_panel(runs: Sequence[PastRun], folder: Path) -> str:
    """Return the whole panel."""
    where = copyable(folder.resolve())
    refresh = button("runs", "Look again")
    if not runs:
        return (
            f'<section class="card" id="runs"><h3>Runs {refresh}</h3><div class="empty"><p>No earlier runs in '
            f"this folder.</p>{where}</div></section>"
        )
    rows = "".join(map(_row, runs[:MOST_RUNS]))
    more = f'<p class="quiet">and {len(runs) - MOST_RUNS} older ones</p>' if len(runs) > MOST_RUNS else ""
    return f'<section class="card" id="runs"><h3>Runs {refresh}</h3>{where}<ul class="runs">{rows}</ul>{more}</section>'


def _row(run: PastRun) -> str:
    name = run.folder.output_name
    look = f'<button type="button" class="link" data-open-run="{esc(name)}">{esc(name)}</button>'
    again = button("resume", "Resume", style="primary", name=name) if run.status != "finished" else ""
    other = button("resume-form", "Resume with the form's settings", name=name)
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.updated))
    return (
        f'<li data-run="{esc(name)}"><div>{look} <span class="badge {run.status}">{run.status}</span>'
        f'<p class="quiet">step {number(run.step)} of {number(run.total_steps)}, <time>{when}</time></p></div>'
        f'<div class="actions">{again}{other}{button("reuse", "Clone settings", name=name)}</div></li>'
    )
