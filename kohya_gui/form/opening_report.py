"""What is said of a recipe before it is opened, as HTML: what stands in the way first, what is as it was last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kohya_gui.form import fields
from kohya_gui.form.opening import Opening
from kohya_gui.parts.markup import button, esc
from trainer.config import in_labels, known_settings
from trainer.ground.errors import Problem
from trainer.settings.kohya import Said
from trainer.settings.problems import shown


def dialog(opening: Opening, number: str) -> str:
    """Return the dialog's content; `number` is what the answer names it by."""
    report = opening.opened.report
    heading = f"Open {opening.name}?"
    agree = "Open without these" if report.unsupported else "Open"
    return (
        f'<div class="dialog opening" role="dialog" aria-modal="true" aria-label="{esc(heading)}" id="opening">'
        f"<h3>{esc(heading)}</h3><p>This is {esc(report.kind)}. Nothing has changed yet.</p>"
        f'<div class="changes">{_in_the_way(opening)}{_otherwise(report.said)}{_as_it_is(opening)}</div>'
        f'<div class="closing">{button("close", "Cancel")}'
        f"{button('open-agreed', agree, style='primary', number=number)}</div></div>"
    )


def refusal(name: str, text: str) -> str:
    """Return the dialog of what cannot be opened."""
    heading = f"{name} cannot be opened"
    lines = "".join(f"<p>{esc(in_labels(line))}</p>" for line in text.splitlines())
    return (
        f'<div class="dialog question" role="alertdialog" aria-modal="true" aria-label="{esc(heading)}">'
        f'<h3>{esc(heading)}</h3>{lines}<div class="closing">{button("close", "Close")}</div></div>'
    )


def _in_the_way(opening: Opening) -> str:
    """Return what is left out, or has to be corrected."""
    report = opening.opened.report
    missing = [f"{_label(key)}: {path}" for key, path in report.missing.items()]
    return "".join(
        (
            _list("Changes the result, and is not supported", map(_unsupported, report.unsupported), "obstacle"),
            _list(
                "Cannot be used as it stands; marked in the form where it has a field",
                map(_wrong, report.wrong),
                "obstacle",
            ),
            _list("Not on this computer, or not where the page may look; left out", missing, "warned"),
            _list("To be known besides", report.remarks),
            _list("Kept from the form, since the file has none to use", map(_label, opening.kept)),
        )
    )


def _otherwise(said: Iterable[Said]) -> str:
    rows = "".join(
        f"<tr><th><code>{esc(each.key)}</code></th><td>{esc(_written(each.before))}</td><td>→</td>"
        f"<td>{_became(each)}</td></tr>"
        for each in said
    )
    head = "<thead><tr><th>In the file</th><td></td><td></td><td>Here</td></tr></thead>"
    table = f'<div class="scroll"><table class="said">{head}<tbody>{rows}</tbody></table></div>'
    return f"<h4>Said otherwise here</h4>{table}" if rows else ""


def _became(said: Said) -> str:
    becomes = "<br>".join(
        f"{esc(_label(key))}: <b>{esc(_named(key, value))}</b>" for key, value in said.becomes.items()
    )
    why = f'<span class="quiet">{esc(in_labels(said.why))}</span>' if said.why else ""
    return "<br>".join(part for part in (becomes, why) if part) or "nothing"


def _as_it_is(opening: Opening) -> str:
    """Return what needs no attention, folded."""
    report = opening.opened.report
    assumed = [f"{_label(key)}: {_named(key, value)}" for key, value in report.assumed.items()]
    return "".join(
        (
            _folded("Left out by the file, and so as the program that wrote it has it", assumed),
            _folded("Taken as it stands", map(_label, report.taken)),
            _folded("Off in the file", report.off),
            _folded("Without effect on the result", report.unused),
            _folded("Not known here, and ignored", report.ignored),
        )
    )


def _list(title: str, rows: Iterable[str], style: str = "") -> str:
    items = "".join(f"<li>{esc(row)}</li>" for row in rows)
    return f'<h4 class="{style}">{esc(title)}</h4><ul class="{style}">{items}</ul>' if items else ""


def _folded(title: str, names: Iterable[str]) -> str:
    found = list(names)
    if not found:
        return ""
    return f"<details><summary>{esc(title)} ({len(found)})</summary><p>{esc(', '.join(found))}</p></details>"


def _unsupported(problem: Problem) -> str:
    said, stop, instead = problem.message.partition("would change the result; ")
    if problem.key == "datasets":  # it names a place and a key of its own
        place = said.partition(" is not supported by this program")[0]
        return f"{place}; {instead.rstrip('.')}" if stop else place
    value = f" = {_written(problem.value)}" if problem.value is not None else ""
    return f"{problem.key}{value}; {in_labels(instead)}" if stop else f"{problem.key}{value}"


def _wrong(problem: Problem) -> str:
    return f"{_label(problem.key)}: {in_labels(problem.message, problem.key)}"


def _label(key: str) -> str:
    known = known_settings()
    return known[key].show.label if key in known else key


def _named(key: str, value: object) -> str:
    known: Mapping[str, object] = known_settings()
    return fields.named(known_settings()[key], value) if key in known else _written(value)


def _written(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(_written, value))
    return value if isinstance(value, str) else shown(value)
