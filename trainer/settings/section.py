"""One declaration per setting.

A section is a frozen, strict pydantic model. Each of its fields is declared with `setting(default, Show(...), ...)` and
a docstring under it: the first paragraph is the help line, the rest the tooltip. The declaration says what another
value means to a run that is resumed, which entry of a LoRA file's metadata it writes, and how sd-scripts has it.
Validation, the TOML key with its comment, the widget, the documentation, the command line, import and export, the
file's metadata and the resume dialog all read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from trainer.ground.paths import normalised

Tab = Literal["basic", "advanced", "datasets"]
Widget = Literal[
    "auto", "file", "files", "folder", "picture", "text", "multiline", "choice", "checkbox", "number", "slider", "list",
    "tables",
]  # fmt: skip

ANY = "*"
"""In `Show.when`: any value that is neither unset, nor empty, nor zero, nor false."""

PROCESS = "process"
"""In `Show.when`: not a setting but the kind of process that the model has, once the model is known."""

FILES = "files"
"""The widget of a list of paths."""

PATHS = ("file", FILES, "folder", "picture")


@dataclass(frozen=True, slots=True)
class Show:
    """How a setting is shown.

    `when` says for which values of other settings this one matters, as plain data: {"optimizer_type": ("AdamW",)}, or
    ANY in place of the tuple; `PROCESS` stands among them for the model's kind of process. `place` orders the basic
    tab; settings without one keep the order of declaration. `also` are other names that people know the setting by,
    for searching and for what to suggest in place of a wrong key.
    """

    label: str
    tab: Tab = "advanced"
    group: str = ""
    widget: Widget = "auto"
    unit: str = ""
    when: Mapping[str, tuple[object, ...] | str] = field(default_factory=dict)
    place: int = 0
    also: tuple[str, ...] = ()


Resume = Literal["free", "rounding", "learning", "schedule", "data", "beginning", "fixed"]
"""What another value means to a run that is resumed with it.

free: no number of the training changes. rounding: the same is computed in another way, and differs by its rounding.
learning: from the next step on something else is learned. schedule: the rates or the length are others. data: pictures
and random numbers are another series. beginning: nothing, since only a run that begins anew reads it. fixed: it cannot
be, since the saved state would not fit.
"""


Within = Literal["", "dataset", "subset"]
"""How far down a setting may be said otherwise: for the whole run alone, for a dataset, or for a subset of one."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The entry of a LoRA file's metadata that a setting writes.

    `name` is "" for `ss_` and the setting's key. `write` makes the entry's value of the setting's. `of_run`: what the
    run found out stands there, such as the optimizer's class or what "auto" became; `trainer.results.metadata` writes
    it.
    """

    name: str = ""
    write: Callable[[Any], object] | None = None
    of_run: bool = False


class Absence(Enum):
    """What stands in place of a default of sd-scripts where there is none."""

    REQUIRED = "required there, or random"


@dataclass(frozen=True, slots=True)
class Follows:
    """The default of an argument of sd-scripts that takes another's value."""

    key: str


@dataclass(frozen=True, slots=True)
class There:
    """How sd-scripts has a setting.

    `default`: what it takes where a file leaves the argument out, in the form that is kept here. `matters`: leaving it
    out changes what is learned or written, so that a recipe without it means that default; else ours is kept. `name`:
    the argument's name there, if another. `once`: names that it had before. `inside`: the argument that it is packed
    into, as name=value. `switches`: {argument: value of ours} of arguments there that are true for one value of this
    setting; `name` is then None where no argument takes the value itself. `process`: the kind of process whose trainers
    alone have it, "" for all. `opposite`: a name that it had before for its reverse.
    """

    default: object
    matters: bool = True
    name: str | None = ""
    once: tuple[str, ...] = ()
    inside: str = ""
    switches: Mapping[str, object] = field(default_factory=dict)
    process: str = ""
    opposite: str = ""


OWN_NAME = Entry()
"""The setting is the entry of its own name, behind `ss_`."""

NO_ENTRY = None
"""The file's metadata has no entry of its own for the setting."""

NOT_THERE = None
"""sd-scripts has no such argument."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a setting declares beyond its type, bounds and default.

    `resume`, `metadata` and `sd_scripts`: see `Resume`, `Entry` and `There`. `choices`: the values allowed where a
    registry, not the type, lists them; with `open_choices` whatever `parse` lets through as well. `zero_is_off`: 0 is
    read as None and None is written as 0. `parse`: brings accepted spellings into the stored form; raises ValueError
    with the rule. `rule`: the words for "it must be ..." where type and bounds do not say it all. `within`: see
    `Within`. `changes_memory`: False where a run takes the same memory with any value, so that a forecast of it holds.
    """

    show: Show
    resume: Resume
    metadata: Entry | None
    sd_scripts: There | None
    choices: tuple[str, ...] = ()
    zero_is_off: bool = False
    parse: Callable[[Any], Any] | None = None
    rule: str = ""
    within: Within = ""
    open_choices: bool = False
    changes_memory: bool = True


def setting(
    default: object,
    show: Show,
    *,
    resume: Resume,
    metadata: Entry | None,
    sd_scripts: There | None,
    choices: tuple[str, ...] = (),
    zero_is_off: bool = False,
    parse: Callable[[Any], Any] | None = None,
    rule: str = "",
    within: Within = "",
    open_choices: bool = False,
    changes_memory: bool = True,
    **bounds: Any,
) -> Any:
    """Declare one setting. `bounds` are pydantic's: ge, gt, le, lt, multiple_of, min_length, max_length."""
    if resume not in get_args(Resume):
        raise TypeError(f"resume={resume!r} is none of {', '.join(get_args(Resume))}")
    declaration = Declaration(
        show,
        resume,
        metadata,
        sd_scripts,
        choices=choices,
        zero_is_off=zero_is_off,
        parse=parse,
        rule=rule,
        within=within,
        open_choices=open_choices,
        changes_memory=changes_memory,
    )
    return Field(default, json_schema_extra={"declaration": declaration}, **bounds)  # type: ignore[dict-item]


def argument(default: object, show: Show, **declared: Any) -> Any:
    """Declare an argument of a tool: as a setting, but no run, no file and no other program knows of it."""
    return setting(default, show, resume="free", metadata=NO_ENTRY, sd_scripts=NOT_THERE, **declared)


class Section(BaseModel):
    """A group of settings: frozen, strict, without unknown keys, without NaN or infinity."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    @field_validator("*", mode="before")
    @classmethod
    def _prepare(cls, value: object, info: ValidationInfo) -> object:
        declaration = declaration_of(cls, str(info.field_name))
        return prepared(value, declaration)


def declaration_of(section: type[Section], key: str) -> Declaration:
    extra = section.model_fields[key].json_schema_extra
    if not isinstance(extra, dict):
        raise TypeError(f"{section.__name__}.{key} is not declared with setting()")
    declaration = extra["declaration"]
    assert isinstance(declaration, Declaration)
    return declaration


def prepared(value: object, declaration: Declaration) -> object:
    """Return the value in the form that is stored, as far as its declaration can tell. Raises ValueError."""
    if isinstance(value, list):
        value = tuple(value)
    if declaration.zero_is_off and not isinstance(value, bool) and isinstance(value, int | float) and value == 0:
        return None
    if declaration.show.widget in PATHS and isinstance(value, str):
        value = normalised(value)
    if declaration.show.widget == FILES and isinstance(value, tuple):
        value = tuple(normalised(each) if isinstance(each, str) else each for each in value)
    if declaration.parse is not None and value is not None:
        value = declaration.parse(value)
    if declaration.choices and value not in declaration.choices and not declaration.open_choices:
        raise ValueError("")
    return value
