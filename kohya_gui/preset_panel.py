"""What a preset is for, and what it would change, before it is applied."""

from __future__ import annotations

from collections.abc import Sequence

from kohya_gui.markup import esc
from kohya_gui.presets import Change, Preset
from trainer.errors import Problem


def choices(presets: dict[str, Preset]) -> list[tuple[str, str]]:
    """Return (shown, name) of every preset for the drop-down list."""
    return [(f"{preset.name} (own)" if preset.own else preset.title, name) for name, preset in presets.items()]


def preview(preset: Preset, changed: Sequence[Change]) -> str:
    """Return for whom the preset is and what it changes."""
    words = f'<p class="quiet">{esc(preset.description)}</p>' if preset.description else ""
    if not changed:
        return f'{words}<p class="quiet" id="preset-same">The form already is as this preset has it.</p>'
    rows = "".join(
        f"<tr><th>{esc(each.label)}</th><td>{esc(each.before)}</td><td>→</td><td><b>{esc(each.after)}</b></td></tr>"
        for each in changed
    )
    count = "1 setting" if len(changed) == 1 else f"{len(changed)} settings"
    return (
        f'{words}<details class="diff" open><summary>Changes {count}</summary>'
        f'<div class="scroll"><table><tbody>{rows}</tbody></table></div></details>'
    )


def refused(text: str) -> str:
    """Return a refusal, a line each."""
    lines = "".join(f"<p>{esc(line)}</p>" for line in text.splitlines())
    return f'<div class="problem-box" role="alert">{lines}</div>'


def told(text: str) -> str:
    """Return a short confirmation."""
    return f'<p class="told" role="status">{esc(text)}</p>'


def problem(text: str) -> Problem:
    """Return a problem that belongs to no setting."""
    return Problem("", text)
