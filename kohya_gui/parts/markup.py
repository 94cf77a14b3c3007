"""Text to HTML: escaping, numbers and sizes as people write them, and the HTML component that reports clicks."""

from __future__ import annotations

import html
import math
import time
from pathlib import Path
from typing import Any

import gradio as gr

from trainer.config import in_labels

ASSETS = Path(__file__).parents[1] / "assets"

# Gradio reads component values as Handlebars templates, so braces are escaped like angle brackets.
_TEMPLATE_SIGNS = {ord("{"): "&#123;", ord("}"): "&#125;", ord("$"): "&#36;", ord("`"): "&#96;"}

_SPARK = """
const said = (input) => input.type === 'checkbox' && !input.checked ? '' : input.value;
function report(chosen) {
  const typed = [...element.querySelectorAll('[name]')].map((input) => [input.name, said(input)]);
  trigger('act', {...chosen.closest('[data-of]')?.dataset, ...Object.fromEntries(typed), ...chosen.dataset});
}
element.addEventListener('click', (event) => {
  const chosen = event.target.closest('button[data-act]');
  if (chosen && element.contains(chosen)) report(chosen);
});
element.addEventListener('change', (event) => event.target.matches('select[data-act]') && report(event.target));
"""


def panel(value: str = "", **options: Any) -> gr.HTML:
    """Return HTML whose buttons and lists marked `data-act` report a click or a choice as the event `act`.

    It says all their data attributes, those of the nearest element around them that is marked `data-of`, and what
    stands in the fields of the same HTML, by their names.

    Not a subclass: for each of those Gradio writes a .pyi file beside the module.
    """
    return gr.HTML(value, js_on_load=_SPARK, apply_default_css=False, **options)


def news_panel(elem_id: str, part: str, markup: str = "") -> gr.HTML:
    """Return the place of one part of the news, which the page's script fills; clicks are reported as in `panel`."""
    return panel(f'<div data-part="{part}">{markup}</div>', elem_id=elem_id)


def esc(text: object) -> str:
    """Return text that HTML and Gradio's templates leave alone."""
    return html.escape(str(text), quote=True).translate(_TEMPLATE_SIGNS)


def number(value: float, digits: int = 3) -> str:
    """Return a number as people write it: 0.05, 1e-4, 12,345."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:,.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def size(count: int) -> str:
    """Return a number of bytes: 37.9 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def duration(seconds: float) -> str:
    """Return a duration: 45 s, 3 min 20 s, 2 h 05 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def clock(seconds: float) -> str:
    """Return a time of day."""
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def button(act: str, label: str, *, style: str = "", id_: str = "", **data: object) -> str:
    """Return a button that reports the event `act` with `data`. No key may be "path": Gradio takes that for a file."""
    extra = "".join(f' data-{name}="{esc(value)}"' for name, value in data.items())
    known = f' id="{esc(id_)}"' if id_ else ""
    return f'<button type="button"{known} class="small {style}" data-act="{esc(act)}"{extra}>{esc(label)}</button>'


def refused(text: str) -> str:
    """Return a refusal, a line each, with labels in place of keys."""
    lines = "".join(f"<p>{esc(in_labels(line))}</p>" for line in text.splitlines())
    return f'<div class="problem-box" role="alert">{lines}</div>'


def confirmed(text: str) -> str:
    """Return a short confirmation."""
    return f'<p class="told" role="status">{esc(text)}</p>'


def copyable(text: object) -> str:
    """Return a text that is there to be copied, with the button that does so."""
    copy = '<button type="button" class="small" data-copy>Copy</button>'
    return f'<div class="copyable"><code>{esc(text)}</code>{copy}</div>'
