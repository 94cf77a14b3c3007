"""One report on a file of settings that was opened: what has become of everything that it says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from trainer.ground.errors import Problem
from trainer.settings.kohya import Said
from trainer.settings.problems import shown


@dataclass(frozen=True, slots=True)
class Report:
    """What has become of everything that a file says.

    `assumed` are values that the program which wrote the file takes where it is silent; `unsupported` changes the
    result; `wrong` are values that no setting can have; `missing` {key: path} of what is not on this computer.
    """

    kind: str
    taken: tuple[str, ...] = ()
    said: tuple[Said, ...] = ()
    assumed: Mapping[str, object] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    unsupported: tuple[Problem, ...] = ()
    wrong: tuple[Problem, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return what a person reads, a line each; keys stand for settings (`in_labels` says them with labels)."""
        return [
            f"Read as {self.kind}.",
            *listed("Taken as it stands", self.taken),
            *_rows("Said otherwise here", map(of_said, self.said)),
            *listed(SILENT, pairs(self.assumed)),
            *listed("Off in the file", self.off),
            *listed("Without effect on the result", self.unused),
            *listed("Not known here, and ignored", self.ignored),
            *_rows("Not supported here, though it changes the result", map(of_unsupported, self.unsupported)),
            *_rows("Cannot be used, and left out", map(str, self.wrong)),
            *_rows("Not on this computer, and left out", pairs(self.missing)),
            *_rows("To be known besides", self.remarks),
        ]


SILENT = "Left out by the file, and so as the program that wrote it has it"


def pairs(values: Mapping[str, object]) -> list[str]:
    """Return {key: value} as "key = value" each."""
    return [f"{key} = {shown(value)}" for key, value in values.items()]


def listed(title: str, names: Iterable[str]) -> list[str]:
    """Return a line of names behind its title, none where there are no names."""
    text = ", ".join(names)
    return [f"{title}: {text}."] if text else []


def _rows(title: str, rows: Iterable[str]) -> list[str]:
    """Return a title with its rows under it, nothing where there are none."""
    found = [f"  {row.rstrip('.')}." for row in rows]
    return [f"{title}:", *found] if found else []


def of_said(said: Said) -> str:
    """Return one line: the key and value of the file, what they have become, and why."""
    before = f"{said.key} {shown(said.before)}" if said.before not in ("", None) else said.key
    becomes = ", ".join(f"{key} {shown(value)}" for key, value in said.becomes.items())
    why = f" ({said.why})" if said.why and becomes else said.why
    return f"{before} -> {becomes}{why}" if becomes else f"{before}, {why}" if why else before


def of_unsupported(problem: Problem) -> str:
    """Return what is not supported without the words that its heading says."""
    said, stop, instead = problem.message.partition("would change the result; ")
    if problem.key == "datasets":  # it names a place and a key of its own
        place = said.partition(" is not supported by this program")[0]
        return f"{place}; {instead.rstrip('.')}" if stop else place
    value = f" = {shown(problem.value)}" if problem.value is not None else ""
    return f"{problem.key}{value}; {instead.rstrip('.')}" if stop else f"{problem.key}{value}"


def without_repeats(said: Iterable[Said]) -> tuple[Said, ...]:
    """Return what is said otherwise, once each, without what has the same name and value.

    What has become something and is then said otherwise once more is told with what it has become in the end.
    """
    found: list[Said] = []
    for each in said:
        if each in found or each.becomes == {each.key: each.before}:
            continue
        before = next((place for place, one in enumerate(found) if _led_to(one, each)), None)
        if before is None:
            found.append(each)
        else:
            first = found[before]
            rest = {key: value for key, value in first.becomes.items() if key != each.key}
            why = "; ".join(part for part in (first.why, each.why) if part)
            found[before] = replace(first, becomes={**rest, **each.becomes}, why=why)
    return tuple(found)


def _led_to(first: Said, then: Said) -> bool:
    """Say whether what one key has become is the value that another one is said of."""
    return first.key != then.key and then.key in first.becomes and first.becomes[then.key] == then.before
