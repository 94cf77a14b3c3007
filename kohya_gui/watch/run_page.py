"""What the page of a run has besides its numbers: what can be done with it, the verdict, files, settings, notes."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.parse import quote

from kohya_gui.form.fields import named
from kohya_gui.parts.dialogs import overlay
from kohya_gui.parts.markup import button, copyable, esc, number, size
from kohya_gui.parts.served import Pictures
from kohya_gui.session import View
from kohya_gui.watch.run_panel import STATUS_WORDS
from kohya_gui.watch.tensorboard import folder_of
from trainer.config import known_settings, to_flat
from trainer.results.run_record import RunRecord


def head(view: View) -> str:
    """Return the heading: which run this is, and what can be done with it."""
    record = view.record
    if record is None:
        return ""
    seen, name = view.snapshot, record.name
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(seen.started_at)) if seen.started_at else ""
    at = "" if view.live else f"step {number(seen.step)} of "  # the bar tells the step of the one under way
    facts = [f"{at}{number(seen.total_steps)}{' steps' if view.live else ''}"]
    facts += [f"begun {began}"] if began else []
    facts += [record.resumed] if record.resumed else []
    acts = [button("reuse", "Clone settings", name=name)]
    if folder_of(record) is not None:
        board = f"tensorboard/{quote(name, safe='')}/"
        acts += [f'<a class="small" href="{board}" target="_blank" rel="noopener">TensorBoard</a>']
    if not view.live:
        first = button("resume", "Resume", style="primary", name=name) if seen.status != "finished" else ""
        acts = [first, *acts, button("resume-form", "Resume with the form's settings", name=name)]
        acts += [button("rename", "Rename", name=name), button("delete", "Delete", style="danger", name=name)]
    return (
        f'<section class="card run-head" id="run-head" data-run-name="{esc(name)}"><h3>{esc(name)} '
        f'<span class="badge {esc(seen.status)}">{esc(STATUS_WORDS.get(seen.status, seen.status))}</span></h3>'
        f'<p class="quiet">{esc(", ".join(facts))}</p><div class="actions">{"".join(acts)}</div></section>'
    )


def verdict(view: View) -> str:
    """Return what validation says of the run, the warning of overfitting first of all."""
    record = view.record
    said = record.verdict if record else ()
    if record is None or not said:
        return ""
    warns = record.held_out and record.judgement.overfitting
    lines = "".join(f"<p>{esc(line)}</p>" for line in said)
    style = " warn-card" if warns else ""
    return f'<section class="card{style}" id="verdict"><h3>Validation</h3>{lines}</section>'


def better_than_final(view: View) -> str:
    """Return the name of the saved file that validation finds better than the final one, "" where it finds none."""
    record, ended = view.record, view.snapshot.finished
    if record is None or ended is None or not record.held_out:
        return ""
    judged, files = record.judgement, record.files
    last = max((step for step, path in files.items() if path.name == Path(ended.path).name), default=None)
    measured = any(point.step == last for point in record.series)
    if judged.best is None or last is None or not measured or last in judged.as_good:
        return ""
    return files[judged.best].name


def files(view: View, pictures: Pictures, lora_folder: str) -> str:
    """Return the LoRA files that are there, the newest first: to download, or to copy to where a program finds them."""
    record = view.record
    if record is None or not view.snapshot.saved:
        return ""
    told = {saved.step: saved for saved in view.snapshot.saved}
    judged = record.judgement
    best = judged.best if record.held_out else None
    rows = "".join(
        _file(record, step, path, told[step].epoch, pictures, best=step == best, as_good=step in judged.as_good)
        for step, path in reversed(record.files.items())
    )
    return (
        f'<section class="card" id="files"><h3>Files</h3>{copyable(record.folder.output_dir.resolve())}'
        f'<div class="scroll"><table class="files"><tbody>{rows}</tbody></table></div>'
        f'<div class="line lora-folder"><label for="lora-folder">LoRA folder of your program</label>'
        f'<input id="lora-folder" name="folder" value="{esc(lora_folder)}" placeholder="/path/to/ComfyUI/models/loras" '
        'spellcheck="false"></div></section>'
    )


def _file(
    record: RunRecord, step: int, path: Path, epoch: int, pictures: Pictures, *, best: bool, as_good: bool
) -> str:
    loss = next((point.loss for point in record.series if point.step == step), None)
    mark = ""
    if record.held_out:
        word, style = ("best", "good") if best else ("as good" if as_good else "", "")
        mark = f' <span class="badge {style}">{word}</span>' if word else ""
    judged = f"validation {loss:.4f}" if loss is not None else ""
    copy = button("copy-file", "Copy", name=record.name, file=path.name)
    try:
        length = size(path.stat().st_size)
    except OSError:
        return ""
    return (
        f'<tr><td><a href="{pictures.download(path)}" download>{esc(path.stem)}<wbr>{esc(path.suffix)}</a>{mark}</td>'
        f"<td>epoch {epoch}</td>"
        f"<td>step {number(step)}</td><td>{judged}</td><td>{length}</td><td>{copy}</td></tr>"
    )


def settings(view: View) -> str:
    """Return the settings that are not the defaults, by their labels."""
    config = view.record.config() if view.record else None
    if config is None:
        return ""
    flat = to_flat(config)
    rows = ""
    for key, setting in known_settings().items():
        value, default = flat[key], setting.default
        if value != (list(default) if isinstance(default, tuple) else default):
            rows += f"<tr><th>{esc(setting.show.label)}</th><td>{esc(named(setting, value).strip()[:400])}</td></tr>"
    return (
        '<details class="card run-settings" data-keep="run-settings"><summary><h3>Settings '
        '<span class="quiet">that are not the defaults</span></h3></summary>'
        f'<div class="scroll"><table class="rates">{rows}</table></div></details>'
    )


def notes(view: View) -> str:
    """Return the place for what a person wants to remember of the run."""
    record = view.record
    if record is None:
        return ""
    save = button("write-notes", "Save notes", name=record.name)
    return (
        f'<section class="card notes" id="notes"><h3>Notes {save}</h3><textarea name="notes" rows="3" '
        f'aria-label="Notes on this run" placeholder="What you want to remember of this run">{esc(record.notes)}'
        "</textarea></section>"
    )


def rename_dialog(of: str, name: str, refusal: str = "") -> str:
    """Return the question for another name."""
    problem = f'<p class="problem" role="alert">{esc(refusal)}</p>' if refusal else ""
    return overlay(
        of,
        '<div class="dialog question" role="dialog" aria-modal="true" aria-label="Rename the run"><h3>Rename '
        f'{esc(name)}</h3><p>Its LoRA files are renamed with it.</p><input class="text" name="new_name" '
        f'value="{esc(name)}" aria-label="New name" spellcheck="false">{problem}<div class="closing">'
        f"{button('close', 'Cancel')}{button('rename-to', 'Rename', style='primary', name=name)}</div></div>",
    )


def delete_dialog(of: str, record: RunRecord) -> str:
    """Return the question whether a run is to go, with its files or without."""
    count = len(list(record.folder.lora_files()))
    what = "1 LoRA file" if count == 1 else f"{count} LoRA files"
    both = button("delete-all", f"Delete it and {what}", style="danger", name=record.name) if count else ""
    return overlay(
        of,
        '<div class="dialog question" role="alertdialog" aria-modal="true" aria-label="Delete the run?">'
        f"<h3>Delete {esc(record.name)}?</h3><p>Its settings, log, samples, notes and resume states go, and cannot be "
        f'brought back.</p><p>{esc(what)} stay where they are unless you say so.</p><div class="closing">'
        f"{button('close', 'Cancel')}{both}{button('delete-run', 'Delete the run', style='primary', name=record.name)}"
        "</div></div>",
    )
