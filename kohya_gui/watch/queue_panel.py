"""The queue as it is seen: the runs that wait, in their order, and those that are done."""

from __future__ import annotations

from collections.abc import Sequence

from kohya_gui.parts.markup import button, esc, number
from trainer.config import in_labels
from trainer.queue import Entry
from trainer.queue.shelf import ENDED, TO_DO, UNDER_WAY

_STYLES = {UNDER_WAY: "training"}


def queue(
    entries: Sequence[Entry], current: str, trouble: str, *, going: bool, busy: bool, paused: bool = False
) -> str:
    """Return the panel. `current` is the entry that is trained, `busy` says that any run is under way, or `paused`."""
    done = [entry for entry in entries if entry.state in ENDED and entry.key != current]
    to_do = [entry for entry in entries if entry not in done]
    problem = f'<p class="problem" role="alert">{esc(trouble)}</p>' if trouble else ""
    if not entries:
        return (
            f'<section class="card" id="queue"><h3>Queue</h3>{problem}<div class="empty"><p>Nothing waits.</p>'
            '<p class="quiet">While a run is under way, Start becomes "Add to queue": what the form says is then '
            "trained after it.</p></div></section>"
        )
    waiting = sum(entry.state in TO_DO and entry.key != current for entry in entries)
    rows = "".join(_to_do(entry, place, len(to_do), current) for place, entry in enumerate(to_do))
    listed = f'<ol class="runs queue">{rows}</ol>' if rows else '<p class="quiet">All is done.</p>'
    return (
        f'<section class="card" id="queue"><h3>Queue {_order(waiting, going=going)}</h3>'
        f"{problem}{_standing(waiting, going=going, busy=busy, paused=paused)}{listed}</section>{_done(done)}"
    )


def _order(waiting: int, *, going: bool) -> str:
    if going:
        return button("queue-hold", "Hold after this run", id_="queue-hold")
    return button("queue-continue", "Continue", style="primary", id_="queue-continue") if waiting else ""


def _standing(waiting: int, *, going: bool, busy: bool, paused: bool) -> str:
    count = "1 run waits" if waiting == 1 else f"{number(waiting)} runs wait"
    if going:
        one = "is paused" if paused else "is under way"
        words = f"{count} for the one that {one}." if waiting else f"The last one {one}."
    elif waiting:
        after = " The run under way goes on." if busy and not paused else ""
        words = f"The queue stands; {count}.{after}"
    else:
        return ""
    return f'<p class="quiet" role="status">{words}</p>'


def _to_do(entry: Entry, place: int, count: int, current: str) -> str:
    """Return one entry with what can be done with it."""
    under_way = entry.key == current or entry.state == UNDER_WAY
    state = UNDER_WAY if under_way else entry.state
    words = entry.why if entry.why == "paused" else state
    badge = f'<span class="badge {_STYLES.get(words, words)}">{esc(words)}</span>'
    name, facts = esc(entry.name), _facts(entry, under_way=under_way)
    acts = [button("queue-open", "Open", key=entry.key)] if entry.config else []
    if not under_way:
        up, down = ("disabled" if place == edge else "" for edge in (0, count - 1))
        acts.insert(0, _arrow("queue-up", "↑", f"Move {entry.name} up", entry.key, up))
        acts.insert(1, _arrow("queue-down", "↓", f"Move {entry.name} down", entry.key, down))
        acts.append(button("queue-remove", "Remove", style="danger", key=entry.key))
    return (
        f'<li data-entry="{esc(entry.name)}"><div><b>{name}</b> {badge}<p class="quiet">{facts}</p></div>'
        f'<div class="actions">{"".join(acts)}</div></li>'
    )


def _arrow(act: str, sign: str, words: str, key: str, disabled: str) -> str:
    return (
        f'<button type="button" class="small arrow" data-act="{act}" data-key="{esc(key)}" aria-label="{esc(words)}" '
        f'title="{esc(words)}" {disabled}>{sign}</button>'
    )


def _facts(entry: Entry, *, under_way: bool) -> str:
    if entry.config is None:
        return esc(in_labels(entry.why))
    saving, record = entry.config.saving, entry.record
    facts = [f"in {saving.output_dir}"]
    if record and record.snapshot.total_steps and not under_way:
        facts.insert(0, f"step {number(record.snapshot.step)} of {number(record.snapshot.total_steps)}")
    return esc(", ".join(facts))


def _done(entries: Sequence[Entry]) -> str:
    if not entries:
        return ""
    rows = "".join(map(_ended, entries))
    return (
        f'<section class="card" id="queue-done"><h3>Done {button("queue-clear", "Clear the list")}</h3>'
        f'<ul class="runs queue">{rows}</ul></section>'
    )


def _ended(entry: Entry) -> str:
    look = (
        f'<button type="button" class="link" data-open-run="{esc(entry.name)}">{esc(entry.name)}</button>'
        if entry.record
        else f"<b>{esc(entry.name)}</b>"
    )
    why = f'<p class="problem">{esc(in_labels(entry.why))}</p>' if entry.why else ""
    words = "Resume" if entry.state == "stopped" else "Try again"
    again = "" if entry.state == "finished" else button("queue-again", words, key=entry.key)
    form = button("queue-open", "Open", key=entry.key) if entry.config else ""
    badge = f'<span class="badge {entry.state}">{entry.state}</span>'
    return (
        f'<li data-entry="{esc(entry.name)}"><div>{look} {badge}{why}</div>'
        f'<div class="actions">{again}{form}{button("queue-remove", "Remove", key=entry.key)}</div></li>'
    )
