"""What is asked before a run goes on otherwise than it was begun: what differs, and what that means."""

from __future__ import annotations

from collections.abc import Sequence

from kohya_gui.parts.markup import button, esc, number
from trainer.config import in_labels
from trainer.ground.errors import StateError
from trainer.results.resumption import Change, Resumption

HEADINGS = {
    "obstacle": "Not possible",
    "schedule": "Steps and learning rate",
    "models": "Model files",
    "data": "Pictures and noise",
    "settings": "Other settings",
}


def dialog(name: str, ahead: Resumption, *, with_form: bool) -> str:
    """Return the dialog's content; `with_form` where the form's settings are to replace the run's own."""
    heading = f"Resume {name} after step {number(ahead.step)}"
    groups = "".join(_group(about, [change for change in ahead.changes if change.about == about]) for about in HEADINGS)
    return (
        f'<div class="dialog" role="dialog" aria-modal="true" aria-label="{esc(heading)}" id="resume-dialog">'
        f"<h3>{esc(heading)}</h3><p>{_opening(ahead, with_form=with_form)}</p>"
        f'<div class="changes">{groups}</div><p class="quiet">{esc(in_labels(_meaning(ahead)))}</p>'
        f"{_closing(name, ahead, with_form=with_form)}</div>"
    )


def _opening(ahead: Resumption, *, with_form: bool) -> str:
    if ahead.exact:
        return "Nothing differs, and every step is done. To train on, raise the epochs in the form, then ask again."
    return f"{'The form differs' if with_form else 'Something has changed'} from the run as it was begun:"


def _group(about: str, changes: Sequence[Change]) -> str:
    if not changes:
        return ""
    rows = "".join(f"<li>{esc(in_labels(change.text).replace(' -> ', ' → '))}</li>" for change in changes)
    return f'<h4 class="{about}">{HEADINGS[about]}</h4><ul class="{about}">{rows}</ul>'


def _meaning(ahead: Resumption) -> str:
    try:
        ahead.check()
    except StateError as error:
        return error.remedy
    return "" if ahead.exact else ahead.lines()[-1]


def _closing(name: str, ahead: Resumption, *, with_form: bool) -> str:
    buttons = [button("close", "Cancel")]
    if with_form:
        buttons.append(button("reuse", "Bring its settings into the form", name=name))
    if not ahead.exact and not ahead.obstacles:
        source = "form" if with_form else "run"
        buttons.append(button("go-on", "Resume with these changes", style="primary", name=name, settings=source))
    return f'<div class="closing">{"".join(buttons)}</div>'
