"""What was wrong with a tool's work, as HTML."""

from __future__ import annotations

from kohya_gui.parts.markup import esc
from kohya_gui.tools.worker import BROKEN, ENDED, Work
from trainer.settings.wording import in_labels


def problems(work: Work) -> str:
    """Return what was wrong with the work that was done last; that it was stopped is no fault."""
    broken = (
        "It ended by a fault of the program; the terminal has the details."
        if work.status == BROKEN and not work.problems
        else ""
    )
    settings = work.tool.settings if work.tool else {}
    texts = [*(in_labels(str(problem), settings) for problem in work.problems), *([broken] if broken else [])]
    lines = "".join(f"<p>{esc(text)}</p>" for text in texts)
    way = 'class="quiet" role="status"' if work.status == ENDED else 'class="problem-box" role="alert"'
    return f"<div {way}>{lines}</div>" if lines else ""
