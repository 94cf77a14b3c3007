"""Beside the form: what each block of the model gets of the adapter."""

from __future__ import annotations

from collections.abc import Iterable

from kohya_gui.form.survey import Survey
from kohya_gui.parts.markup import esc, number
from trainer.adapters.table import Row, table
from trainer.ground.errors import ModelError


def blocks_card(survey: Survey) -> str:
    """Return the table, folded; nothing while the model is not known, or where no layer is left to train."""
    plan = survey.plan
    if plan is None:
        return ""
    try:
        rows = table(plan.spec, plan.targets, plan.parts, plan.rates)
    except ModelError:  # it stands among what is in the way
        return ""
    head = "".join(f'<th scope="col">{word}</th>' for word in ("Block", "Layers", "Rank", "Alpha", "Rate"))
    body = "".join(map(_row, rows))
    return (
        '<section class="card" id="blocks"><details><summary>What each block gets</summary>'
        '<p class="hint">The number before a block is its place, from 0, in lists of ranks and alphas by block.</p>'
        f'<div class="diff"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        "</details></section>"
    )


def _row(row: Row) -> str:
    place = "" if row.index is None else f"{row.index} "
    cells = (f"{row.layers} of {row.of}", _range(row.ranks), _range(row.alphas), _range(row.rates))
    shown = "".join(f"<td>{esc(cell)}</td>" for cell in cells)
    return f'<tr{"" if row.layers else " class=quiet"}><th scope="row">{esc(place + row.title)}</th>{shown}</tr>'


def _range(values: Iterable[float]) -> str:
    """Return different values as a person reads them: "4", "4 to 16"."""
    found = [f"{value:g}" if value < 1 else number(value) for value in values]
    return f"{found[0]} to {found[-1]}" if len(found) > 1 else "".join(found)
