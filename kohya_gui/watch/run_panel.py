"""The run as its snapshot tells it: where it stands, what there is to say of it, its log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from kohya_gui.parts.markup import button, clock, duration, esc, number, size
from trainer.config import in_labels
from trainer.ground import events
from trainer.ground.events import Event
from trainer.results.sinks import pause_in_words
from trainer.results.snapshot import RunSnapshot

STATUS_WORDS = {
    "idle": "Ready",
    "preparing": "Preparing",
    "training": "Training",
    "paused": "Paused",
    "stopping": "Stopping",
    "finished": "Finished",
    "stopped": "Stopped",
    "failed": "Failed",
    "interrupted": "Interrupted",
    "unreadable": "Unreadable",
}

TRAINING = "training"
"""The phase whose progress is the step."""

_BELL = (
    '<button type="button" class="bell" data-own data-notify aria-pressed="false" '
    'aria-label="Notify me when a run ends"><svg viewBox="0 0 24 24" width="17" height="17" aria-hidden="true">'
    '<path d="M12 3a6 6 0 0 0-6 6v4l-2 3h16l-2-3V9a6 6 0 0 0-6-6zm-2 15a2 2 0 0 0 4 0" fill="none" '
    'stroke="currentColor" stroke-width="2" stroke-linejoin="round"/></svg></button>'
)
"""Whether the browser notifies of a run's end: the page's script knows, and keeps the button."""

_AGAIN, _ANEW = "Resume from the last saved state", "Begin again at step 0"
"""What resuming comes to: with a state to go on from, and without."""

SHOWN_WARNINGS = 3
"""The newest; the log has them all."""


def controls(snapshot: RunSnapshot, *, busy: bool) -> dict[str, bool]:
    """Return which buttons can be used, by their ids."""
    training = busy and snapshot.status in ("preparing", "training", "paused")
    underway = busy and snapshot.status == "training"
    return {
        "start": True,
        "pause": training,
        "stop": busy,
        "abort": busy,
        "save-now": underway,
        "sample-now": underway,
    }


# --- the bar ----------------------------------------------------------------------------------------------------------


def bar(snapshot: RunSnapshot, *, busy: bool, asked: str = "", refused: bool = False) -> str:
    """Return the line that is always in sight.

    `asked` is what was asked for and is not so yet, or, where it was `refused`, why: then it is not of the last run.
    """
    status = snapshot.status if busy or snapshot.status not in ("preparing", "training") else "stopping"
    words, phase = (asked, "") if asked else (STATUS_WORDS[status], _phase(snapshot))
    if asked and not busy:
        status, snapshot = "refused" if refused else "asked", RunSnapshot()
    name = Path(snapshot.folder).stem if snapshot.folder else ""
    title = f'<span class="run-name" title="{esc(snapshot.folder)}">{esc(name)}</span>' if name else ""
    return (
        f'<div class="bar" data-status="{status}"><div class="bar-head"><span class="pill {status}">{esc(words)}</span>'
        f'{title}<span class="phase">{esc(phase)}</span>{_BELL}</div>'
        f"{_progress(snapshot)}{_numbers(snapshot)}</div>"
    )


def _phase(snapshot: RunSnapshot) -> str:
    match snapshot.status:
        case "idle":
            return "Press Start to train what the form says."
        case "finished":
            return f"in {duration(snapshot.ended_at - snapshot.started_at)}"
        case "failed":
            return f"at step {number(snapshot.step)}" if snapshot.folder else "before it began"
        case "stopped":
            return f"after step {number(snapshot.step)}"
    phase = snapshot.phase.capitalize()
    if snapshot.phase == TRAINING or not snapshot.phase:
        return ""
    if snapshot.phase_total:
        return f"{phase}: {number(snapshot.phase_done)} of {number(snapshot.phase_total)}"
    return f"{phase} ..."


def share(snapshot: RunSnapshot) -> float:
    """Return how much of the steps, or of the phase before them, is done: 0 to 1."""
    done, total = _done_of(snapshot)
    return min(1.0, done / total) if total else (1.0 if snapshot.status == "finished" else 0.0)


def _done_of(snapshot: RunSnapshot) -> tuple[int, int]:
    preparing = snapshot.phase not in ("", TRAINING) and snapshot.status in ("preparing", "training")
    return (snapshot.phase_done, snapshot.phase_total) if preparing else (snapshot.step, snapshot.total_steps)


def _progress(snapshot: RunSnapshot) -> str:
    waiting = " waiting" if snapshot.status == "preparing" and not _done_of(snapshot)[1] else ""
    return (
        f'<div class="progress{waiting}" role="progressbar" aria-label="Progress" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{100 * share(snapshot):.0f}">'
        f'<i style="width:{100 * share(snapshot):.2f}%"></i></div>'
    )


def _numbers(snapshot: RunSnapshot) -> str:
    def cell(name: str, value: str, key: str) -> str:
        return f'<div><span>{name}</span><b data-number="{key}">{esc(value)}</b></div>'

    none = "–"
    step = f"{number(snapshot.step)} / {number(snapshot.total_steps)}" if snapshot.total_steps else none
    epoch = f"{snapshot.epoch} / {snapshot.total_epochs}" if snapshot.total_epochs else none
    running = snapshot.status in ("training", "paused", "stopping") and snapshot.seconds_per_step > 0
    cells = (
        cell("step", step, "step"),
        cell("epoch", epoch, "epoch"),
        cell("loss", f"{snapshot.average_loss:.4f}" if snapshot.average_loss is not None else none, "loss"),
        cell("speed", speed(snapshot.seconds_per_step), "speed"),
        cell("left", duration(snapshot.seconds_left) if running else none, "left"),
        cell("memory", size(snapshot.memory) if snapshot.memory else none, "memory"),
    )
    return f'<div class="numbers">{"".join(cells)}</div>'


def speed(seconds_per_step: float) -> str:
    """Return the speed as kohya's console does: it/s, or s/it where a step takes longer than a second."""
    if seconds_per_step <= 0:
        return "–"
    if seconds_per_step < 1:
        return f"{1 / seconds_per_step:.2f} it/s"
    return f"{seconds_per_step:.2f} s/it"


# --- the training tab -------------------------------------------------------------------------------------------------


def message(snapshot: RunSnapshot, better: str = "", *, kept: bool = True) -> str:
    """Return what the user should know or do now: an error with its remedy, what to do with the result, warnings.

    `better` is the saved file that validation finds better than the final one, `kept` says that there is a state to
    go on from.
    """
    warnings = list(dict.fromkeys(reversed(snapshot.warnings)))[:SHOWN_WARNINGS]  # each resume may say one again
    parts = [_warnings(warnings)] if warnings else []
    if snapshot.error is not None:
        parts.insert(0, _failure(snapshot, snapshot.error, kept=kept))
    elif snapshot.finished is not None:
        parts.insert(0, _ending(snapshot, snapshot.finished, better, kept=kept))
    elif snapshot.status == "interrupted":
        parts.insert(0, _interruption(snapshot, kept=kept))
    elif snapshot.status == "paused":
        parts.insert(0, _pause(snapshot.paused or events.Paused(step=snapshot.step)))
    elif snapshot.status == "preparing" and not snapshot.folder:
        parts.append(
            '<section class="card"><div class="empty"><p>The run is being prepared.</p><p class="quiet">Its loss, '
            "sample pictures and files appear here once the model is loaded.</p></div></section>"
        )
    elif snapshot.status == "idle":
        parts.append(
            '<section class="card"><div class="empty"><p>There is no run to look at yet.</p><p class="quiet">Press '
            "Start: the loss, sample pictures and files appear here.</p></div></section>"
        )
    return "".join(parts)


def _warnings(texts: Sequence[str]) -> str:
    """Return warnings, the newest first; a single one is a sentence, several are a list."""
    if len(texts) == 1:
        return f'<section class="card warn-card"><p>{esc(in_labels(texts[0]))}</p></section>'
    rows = "".join(f"<li>{esc(in_labels(text))}</li>" for text in texts)
    return f'<section class="card warn-card"><h3>Notes, the newest first</h3><ul>{rows}</ul></section>'


def _failure(snapshot: RunSnapshot, error: events.Failed, *, kept: bool) -> str:
    lines = "".join(f"<p>{esc(in_labels(line))}</p>" for line in error.message.splitlines())
    remedy = f'<p class="remedy"><b>What to do:</b> {esc(in_labels(error.remedy))}</p>' if error.remedy else ""
    heading = "The run failed" if snapshot.folder else "Not started"
    again = ""
    if snapshot.folder and snapshot.step:
        name = Path(snapshot.folder).stem
        own = button("resume", _AGAIN if kept else _ANEW, style="primary", name=name)
        other = button("resume-form", "Resume with the form's settings", name=name)
        again = f'<p class="actions">{own} {other}</p>'
    return f'<section class="card bad" id="failure" role="alert"><h3>{heading}</h3>{lines}{remedy}{again}</section>'


def _interruption(snapshot: RunSnapshot, *, kept: bool) -> str:
    again = button("resume", _AGAIN if kept else _ANEW, style="primary", name=Path(snapshot.folder).stem)
    end = "." if kept else ", and before it had saved a state to go on from."
    left = " What was trained up to its last saved state is kept." if kept else ""
    return (
        f'<section class="card warn-card" id="interruption"><h3>Interrupted after step {number(snapshot.step)}</h3>'
        f"<p>The program ended before the run did{end}{left}</p>"
        f'<p class="actions">{again}</p></section>'
    )


def _pause(paused: events.Paused) -> str:
    """Return what a pause has reached: it says of the state and the device what is so."""
    return (
        f'<section class="card"><h3>Paused</h3><p>{esc(pause_in_words(paused))} Press Continue to go on from the same '
        "place.</p></section>"
    )


def _ending(snapshot: RunSnapshot, finished: events.Finished, better: str, *, kept: bool) -> str:
    if not finished.path:
        listed = " What was saved on the way is listed below." if snapshot.saved else ""
        again = " It can be resumed from its last saved state." if snapshot.step and kept else ""
        return (
            '<section class="card" id="ending"><h3>Ended without a file</h3><p>The run was ended before its file was '
            f"written.{listed}{again}</p></section>"
        )
    path = Path(finished.path)
    word = "Stopped early and saved" if finished.stopped else "Done"
    name = Path(snapshot.folder).stem
    if finished.stopped:
        more = f"<p>{button('resume', 'Train the rest', name=name)}</p>"
    else:
        on = button("resume-form", "Train on with the form's settings", name=name)
        more = f'<p class="quiet">Not enough? Raise the epochs in the form, then go on from here. {on}</p>'
    first = ""
    if better:
        first = f"<p>By validation an earlier file is better: {esc(better)}. It is among the files below.</p>"
    return (
        f'<section class="card good-card" id="ending"><h3>{word}: {esc(path.name)}</h3>'
        f"<p>Copy it to your program's LoRA folder: <code>ComfyUI/models/loras</code> or "
        f"<code>stable-diffusion-webui/models/Lora</code>. In the latter, write "
        f"<code>&lt;lora:{esc(path.stem)}:1&gt;</code> and the trigger word into the prompt.</p>{first}"
        '<p class="quiet">Too strong, or too weak? <button type="button" class="link" data-go="tried">Try it</button> '
        f"draws the saved files at several weights side by side; the one that you keep becomes the final one.</p>{more}"
        "</section>"
    )


def log(entries: Iterable[Event]) -> str:
    """Return the log, the newest line first."""
    lines = [
        f"<li><time>{clock(event.time)}</time><span>{esc(words)}</span></li>"
        for event in entries
        if (words := line(event))
    ]
    if not lines:
        return ""
    rows = "".join(reversed(lines))
    return f'<details class="card log" data-keep="log" open><summary><h3>Log</h3></summary><ol>{rows}</ol></details>'


def line(event: Event) -> str:
    """Return an event as a line of the log, or an empty text for those that have none."""
    match event:
        case events.Started():
            word = f"Resumed after step {event.step}" if event.resumed else "Started"
            return f"{word}: {number(event.total_steps)} steps, {event.total_epochs} epochs, in {event.folder}"
        case events.EpochDone():
            return f"Epoch {event.epoch} done at step {number(event.step)}, loss {event.loss:.4f}"
        case events.Saved():
            return f"Saved {Path(event.path).name}, {size(event.bytes)}"
        case events.SampleReady():
            return f"Sample after step {number(event.step)}: {event.prompt.split(' --')[0]}"
        case events.Validated() if event.base and event.on != "table":
            return f"Validation loss of the model without the LoRA: {event.loss:.4f}"
        case events.Validated() if event.of_series:
            return f"Validation loss after step {number(event.step)}: {event.loss:.4f}"
        case events.PromptsChanged():
            return f"From the pictures after step {number(event.step)} on, other prompts are drawn"
        case events.Warned():
            return f"Note: {in_labels(event.message)}"
        case events.Paused():
            return pause_in_words(event)
        case events.Resumed():
            return "Going on"
        case events.Finished():
            return f"{'Stopped' if event.stopped else 'Finished'} after {duration(event.seconds)}"
        case events.Failed():
            return f"Failed: {in_labels(event.message)}"
    return ""
