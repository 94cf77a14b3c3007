"""Pictures in a grid, which `assets/gallery.js` opens large, leafs through and lays over one another.

Of a run: a row for each prompt, a column for each step, the base model first and a training picture beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kohya_gui.parts.folders import Folders
from kohya_gui.parts.markup import button, esc, number
from kohya_gui.parts.served import Pictures
from kohya_gui.session import View
from kohya_gui.watch.picture_panel import known_pictures
from trainer.ground.events import SampleReady
from trainer.results import prompt_changes

STEPS = 24
"""Columns: the base model and the newest steps; pictures of other steps lie in the run's folder."""


BASE, BESIDE = "base model", "training picture"
_KEPT = {BASE: "first", BESIDE: "beside"}
"""Columns that stay where they are while the others are scrolled."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One picture of a grid: where it lies, the words under it, and what it is of."""

    path: Path
    label: str
    title: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a grid: its heading, what can be done with it as HTML, and its pictures; None where there is none."""

    title: str
    cells: Sequence[Shown | None]
    acts: str = ""


def grid(rows: Sequence[Row], heads: Sequence[str], pictures: Pictures) -> str:
    """Return a grid of pictures that can be opened; the base model and what stands beside stay in sight."""
    head = "".join(f'<span class="{_KEPT.get(each, "")}">{esc(each)}</span>' for each in heads)
    drawn = "".join(
        f'<div class="grid-row"><p title="{esc(row.title)}"><span>{esc(row.title)}</span> {row.acts}</p>'
        f'<div class="grid-cells">'
        f"{''.join(_cell(each, place, column, pictures) for column, each in enumerate(row.cells))}</div></div>"
        for place, row in enumerate(rows)
    )
    return f'<div class="sheet" data-gallery><div class="grid-head">{head}</div>{drawn}</div>'


def _cell(shown: Shown | None, row: int, column: int, pictures: Pictures) -> str:
    if shown is None:
        return '<i class="no-sample"></i>'
    address = pictures.full(shown.path)
    words = f"{shown.title}, {shown.label}"
    kept = _KEPT.get(shown.label, "")
    return (
        f'<a href="{address}" target="_blank" rel="noopener" class="sample {kept}" data-row="{row}" '
        f'data-column="{column}" data-label="{esc(shown.label)}" title="{esc(words)}">'
        f'<img src="{address}" alt="{esc(words)}" loading="lazy"></a>'
    )


def samples(view: View, pictures: Pictures, folders: Folders) -> str:
    """Return a run's sample pictures, and, while it goes on, the place where its prompts can be changed."""
    found = view.snapshot.samples
    if not found:
        inside = _prompts(view) if view.snapshot.step else ""
        return f'<section class="card samples" id="samples"><h3>Samples</h3>{inside}</section>' if inside else ""
    every = sorted({sample.step for sample in found})
    steps = [*every[:1], *every[1:][1 - STEPS :]] if every[0] == 0 else every[-STEPS:]
    rows: dict[tuple[int, str], dict[int, SampleReady]] = {}
    for sample in found:
        rows.setdefault((sample.index, sample.prompt), {})[sample.step] = sample
    beside = list(known_pictures(view.record, folders).values()) if view.record else []
    heads = [*map(_head, steps), *([BESIDE] if beside else [])]
    shown = [
        Row(prompt, [*_of_prompt(prompt, by_step, steps), *_beside(beside, place)])
        for place, ((_, prompt), by_step) in enumerate(sorted(rows.items()))
    ]
    hidden = len(every) - len(steps)
    words = "1 step" if len(every) == 1 else f"{number(len(every))} steps"
    words += f", {number(hidden)} of them only in the folder samples" if hidden else ""
    more = f'<span class="quiet">{words}</span>'
    return (
        f'<section class="card samples" id="samples"><h3>Samples {more}{wide("samples")}</h3>'
        f"{grid(shown, heads, pictures)}{_prompts(view)}</section>"
    )


def wide(card: str) -> str:
    """Return the button that gives a card the whole window, and takes it back; `assets/gallery.js` does it."""
    words = "<span>Whole window</span><span>Back to the page</span>"
    return f'<button type="button" class="small" data-wide="{card}" aria-pressed="false">{words}</button>'


def _head(step: int) -> str:
    return BASE if step == 0 else f"step {number(step)}"


def _of_prompt(prompt: str, by_step: Mapping[int, SampleReady], steps: Sequence[int]) -> list[Shown | None]:
    return [Shown(Path(by_step[step].path), _head(step), prompt) if step in by_step else None for step in steps]


def _beside(known: Sequence[tuple[Path, str]], place: int) -> list[Shown]:
    """Return the training picture beside a row: one after another, so that several rows show several."""
    if not known:
        return []
    path, caption = known[place % len(known)]
    return [Shown(path, BESIDE, caption or path.name)]


def _prompts(view: View) -> str:
    """Return the place for other prompts, of a run under way."""
    if not view.live or view.record is None:
        return ""
    folder, config = view.record.folder, view.record.config()
    change = prompt_changes.acting(folder, view.snapshot.step)
    wanted = prompt_changes.asked(folder)
    text = wanted or (change.prompts if change else config.sampling.sample_prompts if config else "")
    waits = '<p class="told">From the next pictures on.</p>' if wanted is not None else ""
    use = button("change-prompts", "Use from the next pictures on", name=view.name)
    return (
        f'<details class="sample-prompts" data-keep="sample-prompts"><summary>Change the prompts</summary>'
        f'<textarea name="prompts" rows="4" aria-label="Sample prompts from the next pictures on" spellcheck="false">'
        f"{esc(text)}</textarea>{waits}<p>{use}</p></details>"
    )
