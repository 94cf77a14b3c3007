"""How the tool at work stands, as HTML: its phase, what it said, what is wrong, and what it wrote."""

from __future__ import annotations

import re

from kohya_gui.parts.markup import button, esc, number
from kohya_gui.parts.served import Pictures
from kohya_gui.tools.problems import problems
from kohya_gui.tools.worker import BROKEN, DONE, ENDED, FAULTS, NOT_BEGUN, RUNNING, Work
from kohya_gui.watch import trial_panel
from trainer.tools.verify import BAR, LONGEST
from trainer.trial import grid

_ROW = re.compile(rf"(\S.*?) {{2,}}(\d+\.\d{{4}})(?:  ({BAR}+))?")
"""A line of a chart: what, its number, a bar."""

_WORDS = {
    RUNNING: "At work", DONE: "Done", FAULTS: "Found a fault", NOT_BEGUN: "Refused", ENDED: "Stopped", BROKEN: "Failed",
}  # fmt: skip
_CLASS = {
    RUNNING: "training",
    DONE: "finished",
    FAULTS: "failed",
    NOT_BEGUN: "failed",
    ENDED: "stopped",
    BROKEN: "failed",
}


def markup(work: Work, served: Pictures) -> str:
    """Return the card of a tool's work, nothing where none was begun."""
    if work.tool is None:
        return ""
    pill = f'<span class="pill {_CLASS[work.status]}">{_WORDS[work.status]}</span>'
    head = f"<h3>{esc(work.tool.title)} {pill}{_stop(work)}</h3>"
    drawn = "".join(trial_panel.grid_of(trial, served) for path in work.written if (trial := grid.read(path)))
    inside = f"{head}{_progress(work)}{problems(work)}{_written(work, served)}{_lines(work)}{drawn}"
    return f'<section class="card tool-work">{inside}</section>'


def _stop(work: Work) -> str:
    return button("stop-tool", "Stop", id_="stop-tool") if work.status == RUNNING else ""


def _progress(work: Work) -> str:
    if work.status != RUNNING:
        return ""
    phase = work.phase or "beginning"
    share = 100 * work.done / work.total if work.total else 0.0
    waiting = "" if work.total else " waiting"
    count = f" {number(work.done)} of {number(work.total)}" if work.total else ""
    return (
        f'<p class="quiet">{esc(phase[:1].upper() + phase[1:])}{count}</p>'
        f'<div class="progress{waiting}" role="progressbar" '
        f'aria-label="Progress of the tool" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{share:.0f}">'
        f'<i style="width:{share:.1f}%"></i></div>'
    )


def _written(work: Work, served: Pictures) -> str:
    """Return the files that were written: links to those that can be downloaded."""
    parts = []
    for path in work.written:
        if path.is_file():
            link = f'<a class="small" href="{served.download(path)}" download>Download {esc(path.name)}</a>'
        else:
            link = esc(path.name)
        parts.append(f'<p class="wrote">{link} <code>{esc(path)}</code></p>')
    return "".join(parts)


def _lines(work: Work) -> str:
    text = "".join(map(_line, work.lines))
    return f'<pre class="tool-said" role="status" tabindex="0">{text}</pre>' if text else ""


def _line(text: str) -> str:
    """Return a line; one of a chart has a bar where a terminal gets a row of signs."""
    row = _ROW.fullmatch(text)
    if row is None:
        return f"{esc(text)}\n"
    width = 100 * len(row[3] or "") // LONGEST
    return (
        f'<span class="row"><span>{esc(row[1])}</span><b>{row[2]}</b><span><i style="width:{width}%"></i></span></span>'
    )
