"""Read the declarations: every setting of a configuration, with all that is known about it."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from trainer.settings.section import ANY, Entry, Resume, Section, Show, There, Within, declaration_of

Kind = Literal["switch", "integer", "number", "choice", "text", "list", "tables"]

DOCUMENT = "docs/settings.md"


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of a number; None where there is none. `ge` and `le` include the limit, `gt` and `lt` do not."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    multiple_of: float | None = None
    min_length: int | None = None
    max_length: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """One setting as declared. `help` is one paragraph, `tooltip` what more there is to say, `link` where it is told.

    `open_choices`: other values than `choices` may do as well. `accepts_list` marks a number that may also be a list of
    numbers; `accepts_share` one that is a whole number or a fraction. `rule` is the declared wording of what values are
    allowed, "" where type and bounds say it all. `within` says how far down it may be said otherwise, in a dataset or a
    subset. `changes_memory` is False where no value changes what a run takes of memory.
    """

    key: str
    section: str
    kind: Kind
    optional: bool
    accepts_list: bool
    choices: tuple[object, ...]
    open_choices: bool
    bounds: Bounds
    default: object
    zero_is_off: bool
    show: Show
    resume: Resume
    metadata: Entry | None
    sd_scripts: There | None
    help: str
    tooltip: str
    rule: str
    within: Within
    changes_memory: bool

    @property
    def link(self) -> str:
        return f"{DOCUMENT}#{self.key}"

    @property
    def entry(self) -> str:
        """The name of its entry in a file's metadata, "" where it has none."""
        return "" if self.metadata is None else self.metadata.name or f"ss_{self.key}"

    @property
    def argument(self) -> str:
        """The argument of sd-scripts that takes its value, "" where none does."""
        if self.sd_scripts is None or self.sd_scripts.name is None or self.sd_scripts.inside:
            return ""
        return self.sd_scripts.name or self.key

    def belongs_to(self, process: str) -> bool:
        """Say whether sd-scripts' trainers of models with this kind of process have the setting, if it has it."""
        return self.sd_scripts is None or self.sd_scripts.process in ("", process)


@cache
def sections_of(config: type) -> Mapping[str, type[Section]]:
    """Return {name: section class} of a dataclass whose fields are sections, in order."""
    hints = get_type_hints(config)
    return {field.name: hints[field.name] for field in dataclasses.fields(config)}


@cache
def settings_of(config: type) -> Mapping[str, Setting]:
    """Return {key: Setting} of every setting, in order. Raises TypeError if two sections declare the same key."""
    found: dict[str, Setting] = {}
    for name, section in sections_of(config).items():
        for key, setting in settings_in(name, section).items():
            if key in found:
                raise TypeError(f"{key} is declared in [{found[key].section}] and in [{name}]")
            found[key] = setting
    return found


@cache
def settings_in(name: str, section: type[Section]) -> Mapping[str, Setting]:
    """Return {key: Setting} of one section, in order; `name` is what it is called."""
    return {key: _setting(name, section, key, field) for key, field in section.model_fields.items()}


def _setting(name: str, section: type[Section], key: str, field: FieldInfo) -> Setting:
    declaration = declaration_of(section, key)
    members = _members(field.annotation)
    literals = tuple(value for member in members if get_origin(member) is Literal for value in get_args(member))
    choices = declaration.choices or literals
    help_line, _, tooltip = (field.description or "").partition("\n\n")
    return Setting(
        key=key,
        section=name,
        kind="tables" if declaration.show.widget == "tables" else _kind(members, choices),
        optional=type(None) in members,
        accepts_list=len(members) > 1 and any(get_origin(member) is tuple for member in members),
        choices=choices,
        open_choices=declaration.open_choices,
        bounds=_bounds(field),
        default=None if field.is_required() else field.default,
        zero_is_off=declaration.zero_is_off,
        show=declaration.show,
        resume=declaration.resume,
        metadata=declaration.metadata,
        sd_scripts=declaration.sd_scripts,
        help=_one_line(help_line),
        tooltip="\n\n".join(_one_line(paragraph) for paragraph in tooltip.split("\n\n")),
        rule=declaration.rule,
        within=declaration.within,
        changes_memory=declaration.changes_memory,
    )


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _kind(members: tuple[Any, ...], choices: tuple[object, ...]) -> Kind:
    if choices:
        return "choice"
    for type_, kind in _KINDS:
        if type_ in members:
            return kind
    return "list"


_KINDS: tuple[tuple[type, Kind], ...] = ((bool, "switch"), (float, "number"), (int, "integer"), (str, "text"))


def _bounds(field: FieldInfo) -> Bounds:
    names = [bound.name for bound in dataclasses.fields(Bounds)]
    limits = {name: getattr(item, name) for item in field.metadata for name in names if hasattr(item, name)}
    return Bounds(**limits)


def _one_line(paragraph: str) -> str:
    return " ".join(paragraph.split())


def visible(setting: Setting, values: Mapping[str, object]) -> bool:
    """Say whether a setting matters, given the values of the others; an unknown other setting hides nothing."""
    return all(
        bool(values[key]) if wanted == ANY else values[key] in wanted
        for key, wanted in setting.show.when.items()
        if key in values
    )
