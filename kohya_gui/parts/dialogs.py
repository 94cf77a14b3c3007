"""What lies over the page until it is answered. A dialog says whose it is, and that panel gets the answer."""

from __future__ import annotations

from kohya_gui.parts.markup import button, esc


def overlay(of: str, content: str) -> str:
    """Return a dialog over the page; `of` is the name of the panel that opened it and is told the answer."""
    return f'<div class="overlay" data-of="{esc(of)}">{content}</div>'


def question(of: str, heading: str, text: str, yes: str, act: str, **data: str) -> str:
    """Return a question with two answers: Cancel, which changes nothing, and `yes`, which reports `act` with `data`."""
    lines = "".join(f"<p>{esc(line)}</p>" for line in text.splitlines())
    return overlay(
        of,
        f'<div class="dialog question" role="alertdialog" aria-modal="true" aria-label="{esc(heading)}">'
        f'<h3>{esc(heading)}</h3>{lines}<div class="closing">{button("close", "Cancel")}'
        f"{button(act, yes, style='primary', **data)}</div></div>",
    )
