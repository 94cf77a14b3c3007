"""Try it: what is drawn with a run's files, at which weights; the grids that were drawn; and the file to keep."""

from __future__ import annotations

from pathlib import Path

from kohya_gui.parts.markup import button, esc, number
from kohya_gui.parts.served import Pictures
from kohya_gui.session import View
from kohya_gui.tools.problems import problems
from kohya_gui.tools.worker import NOT_BEGUN, RUNNING, Work, Worker
from kohya_gui.watch import gallery
from kohya_gui.watch.gallery import Row, Shown
from trainer.config import TrainingConfig
from trainer.preview.prompts import SamplePrompt, first_prompt, settle
from trainer.preview.samplers import SAMPLERS
from trainer.settings.kohya import names_a_file
from trainer.trial import grid
from trainer.trial.grid import WEIGHTS, Trial

TOOLS = ("try", "keep")
"""The tools that are used here."""

SHOWN = 3
"""The newest trials; the others lie in the run's folder."""

_CHOSEN = 4
"""Files that are chosen at first, the newest."""


def of(view: View, worker: Worker) -> object:
    """Return what differs when the card does."""
    if view.record is None:
        return None
    changed = [(each.number, len(each.drawn)) for each in grid.trials(_where(view), SHOWN)]
    mine = worker.revision if is_of(worker.work, view) else None
    return view.snapshot.saved, view.live, changed, mine, worker.busy


def is_of(work: Work, view: View) -> bool:
    """Say whether a tool is at work, or was, on the files of this run."""
    about = str(getattr(work.arguments, "run", "") or getattr(work.arguments, "file", ""))
    if work.tool is None or work.tool.name not in TOOLS or view.record is None:
        return False
    folder = view.record.folder
    return Path(about) == folder.path or Path(about).resolve() in {path.resolve() for path in folder.lora_files()}


def _where(view: View) -> Path:
    assert view.record is not None
    return view.record.folder.path / grid.TRIED


def trial(view: View, worker: Worker, pictures: Pictures) -> str:
    """Return the card, nothing where the run has saved no file yet."""
    record = view.record
    if record is None or not record.files:
        return ""
    work = worker.work if is_of(worker.work, view) else Work()
    found, count = grid.trials(_where(view), SHOWN), grid.count(_where(view))
    config = record.config()
    names = [path.name for path in record.files.values()]
    final = record.folder.lora.name
    shown = "".join(
        _trial(each, pictures, view.name, final, live=view.live, first=place == 0) for place, each in enumerate(found)
    )
    more = f'<p class="quiet">{count - SHOWN} earlier in {esc(_where(view))}</p>' if count > SHOWN else ""
    return (
        f'<section class="card tried" id="tried"><h3>Try it {gallery.wide("tried") if found else ""}</h3>'
        f'<div class="standing">{_standing(work)}</div>'  # always there: what is typed after it keeps its place
        f"{_form(view.name, names, config, busy=worker.busy)}{shown}{more}</section>"
    )


def _standing(work: Work) -> str:
    """Return how the trial at work stands, or what was wrong with the last one."""
    box = problems(work)
    if work.status == RUNNING:
        share = 100 * work.done / work.total if work.total else 0.0
        words = f"{number(work.done)} of {number(work.total)}" if work.total else "..."
        phase = work.phase.capitalize() or "Beginning"
        return (
            f'<div class="line"><p class="quiet" role="status">{esc(phase)} {words}</p>'
            f"{button('stop-trial', 'Stop', id_='stop-trial')}</div>"
            f'<div class="progress{"" if work.total else " waiting"}" role="progressbar" '
            f'aria-label="Progress of the pictures" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{share:.0f}">'
            f'<i style="width:{share:.1f}%"></i></div>'
        )
    said = work.lines[-1] if work.lines and work.status != NOT_BEGUN else ""
    return box + (f'<p class="told" role="status">{esc(said)}</p>' if said else "")


def _form(name: str, files: list[str], config: TrainingConfig | None, *, busy: bool) -> str:
    prompt, seed = _usual(config)
    sampler = prompt.sample_sampler if prompt and prompt.sample_sampler else ""
    samplers = sorted({each for table in SAMPLERS.values() for each in table}, key=str)
    options = "".join(
        f'<option value="{esc(each)}"{" selected" if each == sampler else ""}>{esc(each) or "as the samples"}</option>'
        for each in ("", *samplers)
    )
    boxes = "".join(
        f'<label><input type="checkbox" name="file-{esc(file)}"{" checked" if place >= len(files) - _CHOSEN else ""}> '
        f"{esc(file)}</label>"
        for place, file in enumerate(files)
    )
    weights = ", ".join(f"{weight:g}" for weight in WEIGHTS)
    begin = button("try", "Draw", style="primary", id_="try-draw", name=name)
    waits = '<span class="quiet">Something is at work.</span>' if busy else begin
    return (
        '<details class="try-form" data-keep="try-form" open><summary>What to draw</summary><div class="try-fields">'
        '<label class="wide">Prompt<textarea name="prompt" rows="2" placeholder="the first of the samples">'
        f"{esc(prompt.prompt if prompt else '')}</textarea>"
        f'</label><label class="wide">Negative prompt<input name="negative" value="'
        f'{esc(prompt.negative_prompt if prompt else "")}"></label>'
        f'<label>Seed<input name="seed" inputmode="numeric" placeholder="as the samples" value="{seed}"></label>'
        f'<label>Steps<input name="steps" inputmode="numeric" placeholder="as the samples" value="'
        f'{(prompt.sample_steps if prompt else None) or ""}"></label>'
        f'<label>Sampler<select name="sampler">{options}</select></label>'
        f'<label>Weights<input name="weights" value="{weights}"></label>'
        f'<fieldset class="wide"><legend>Files</legend>{boxes}</fieldset></div><p>{waits}</p></details>'
    )


def _usual(config: TrainingConfig | None) -> tuple[SamplePrompt | None, object]:
    """Return the first of the run's prompts and its seed; of a file of prompts, which the tool alone reads, nothing."""
    prompts = config.sampling.sample_prompts.strip() if config else ""
    if config is None or not prompts or names_a_file(prompts):
        return None, ""
    prompt = first_prompt(config)
    return prompt, settle(prompt, config, 0).seed if prompt else ""


def _trial(each: Trial, pictures: Pictures, run: str, final: str, *, live: bool, first: bool) -> str:
    request = each.request
    facts = [f"seed {request.seed}"]
    facts += [f"{request.steps} steps"] if request.steps else []
    facts += [request.sampler] if request.sampler else []
    words = f'<span>{esc(request.prompt)}</span> <span class="quiet">{esc(", ".join(facts))}</span>'
    inside = grid_of(each, pictures, "" if live else run, final)
    return (
        f'<details class="trial" data-keep="trial-{esc(run)}-{each.number}"{" open" if first else ""}>'
        f"<summary>{words}</summary>{inside}</details>"
    )


def grid_of(each: Trial, pictures: Pictures, run: str = "", final: str = "") -> str:
    """Return a trial's grid; with `run` each file that is not its final one can be made that."""
    heads = [f"weight {weight:g}" for weight in each.request.weights]
    rows = []
    for row, file in enumerate(each.request.files):
        name = Path(file).name
        cells = [
            Shown(path, head, name) if (path := each.drawn.get((row, column))) else None
            for column, head in enumerate(heads)
        ]
        acts = ""
        if run and name == final:
            acts = '<span class="badge">the final one</span>'
        elif run:
            acts = button("keep", "Keep this one", name=run, file=name)
        rows.append(Row(name, cells, acts))
    return gallery.grid(rows, heads, pictures)
