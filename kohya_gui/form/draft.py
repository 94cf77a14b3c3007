"""What the form holds: a value for every setting, and the base that "changed by you" is counted from.

The server owns it, so that a reload, a second tab and a restarted browser show the same form.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from kohya_gui.form import fields
from kohya_gui.parts.folders import Folders
from trainer.config import TrainingConfig, datasets, in_labels, known_settings, problems_of, schedule_of
from trainer.ground.errors import Problem
from trainer.optimizers import kind_of
from trainer.results.run_folder import RunFolder, next_free_name
from trainer.settings.kohya import names_a_file
from trainer.settings.section import PATHS, PROCESS
from trainer.settings.walk import Setting, visible

NOTHING: Mapping[str, object] = {}

ALTERNATIVES = {"max_train_epochs": "max_train_steps", "max_train_steps": "max_train_epochs"}
"""Settings of which the one that was set last counts."""

LONGEST_TEXT = 200_000


@dataclass(frozen=True, slots=True)
class Checked:
    """The form's values, judged. `config` is None where there are problems.

    `usable` has defaults in place of the values that cannot be used, to look at the pictures all the same; it is None
    where even that does not make a configuration.
    """

    config: TrainingConfig | None
    usable: TrainingConfig | None
    problems: tuple[Problem, ...]
    notes: Mapping[str, str]


MOST_KEPT = 30
"""Acts that can be taken back."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The form as it was before an act, and the act in words: "Applied Demo"."""

    act: str
    values: Mapping[str, object]
    base: Mapping[str, object]
    base_name: str


class Draft:
    """The form's values. Safe to use from several threads.

    What replaces much of the form at once is named, and can be taken back; `said` names the last such act. `free_name`
    returns the name that a run begun now would have, for the folder and the name that are wished.
    """

    def __init__(self, folders: Folders, free_name: Callable[[Path, str], str] = next_free_name) -> None:
        self._folders = folders
        self._free_name = free_name
        self._lock = threading.Lock()
        self._values = defaults()
        self._base = defaults()
        self.base_name = ""
        self.said = ""
        self.revision = 0
        self._before: list[Kept] = []
        self._after: list[Kept] = []

    @property
    def values(self) -> dict[str, object]:
        """A copy of all values."""
        with self._lock:
            return dict(self._values)

    @property
    def base(self) -> dict[str, object]:
        """A copy of the values that the preset or file gave."""
        with self._lock:
            return dict(self._base)

    def edit(self, key: object, raw: object) -> None:
        """Take what was typed into one field. Unknown keys and odd kinds are not of the form, and are passed over."""
        setting = known_settings().get(key) if isinstance(key, str) else None
        if setting is None or not isinstance(raw, bool | str) or len(str(raw)) > LONGEST_TEXT:
            return
        self.change({setting.key: fields.read(setting, raw)})

    def change(self, values: Mapping[str, object], act: str = "") -> None:
        """Set some values; `act` names what can be taken back as one."""
        with self._lock:
            if act:
                self._keep(act)
            for key, value in values.items():
                self._values[key] = value
                other = ALTERNATIVES.get(key)
                if other and value and other not in values:
                    self._values[other] = None
            self.revision += 1

    def undo(self, key: object) -> None:
        """Return one field to the preset's value."""
        if isinstance(key, str) and key in self._base:
            self.change({key: self._base[key]})

    def lay(self, values: Mapping[str, object], name: str, act: str = "", base: Mapping[str, object] = NOTHING) -> None:
        """Replace everything; `base` is what changes are counted from, `values` themselves where it is left out."""
        with self._lock:
            if act:
                self._keep(act)
            self._values, self._base = dict(values), dict(base or values)
            self.base_name = name
            self.revision += 1

    def name_base(self, base: Mapping[str, object], name: str) -> None:
        """Count changes from something else from now on."""
        with self._lock:
            self._base, self.base_name = dict(base), name
            self.revision += 1

    # --- taking back ------------------------------------------------------------------------------------------------

    @property
    def can_undo(self) -> bool:
        """True where an act can be taken back."""
        return bool(self._before)

    @property
    def can_redo(self) -> bool:
        """True where an act that was taken back can be done again."""
        return bool(self._after)

    def take_back(self) -> None:
        """Bring the form back to before the last act; what was typed since then comes again with `bring_again`."""
        self._swap(self._before, self._after, "Taken back: ")

    def bring_again(self) -> None:
        """Do again what was taken back."""
        self._swap(self._after, self._before, "")

    def hide(self) -> None:
        """Say no more of the last act. It can still be taken back after the next."""
        with self._lock:
            self.said = ""
            self.revision += 1

    def _keep(self, act: str) -> None:
        self._before = [*self._before[1 - MOST_KEPT :], Kept(act, dict(self._values), dict(self._base), self.base_name)]
        self._after = []
        self.said = f"{act}."

    def _swap(self, source: list[Kept], target: list[Kept], words: str) -> None:
        with self._lock:
            if not source:
                return
            found = source.pop()
            target.append(Kept(found.act, self._values, self._base, self.base_name))
            self._values, self._base = dict(found.values), dict(found.base)
            self.base_name, self.said = found.base_name, f"{words}{found.act}."
            self.revision += 1

    def restore(self, values: Mapping[str, object], base: Mapping[str, object], name: str) -> None:
        """Take up a form as it was left."""
        with self._lock:
            self._values, self._base, self.base_name = dict(values), dict(base), name
            self.revision += 1

    def check(self) -> Checked:
        """Judge the values: each by its declaration, all by the rules that cross them, paths by the allowed folders."""
        values = self.values
        config, problems = problems_of(values)
        refused = refused_paths(self._folders, values)
        named = {one.key for one in refused} - {datasets.KEY}
        problems = (*(each for each in problems if each.key not in named), *refused)
        ordered = tuple(sorted(problems, key=lambda problem: _place(problem.key)))
        notes = {} if config is None or refused else self._notes(config)
        usable = config if not ordered else problems_of(_mended(values, ordered, refused))[0]
        return Checked(None if ordered else config, usable, ordered, notes)

    def _notes(self, config: TrainingConfig) -> dict[str, str]:
        saving, optimizer, schedule = config.saving, config.optimizer.optimizer_type, schedule_of(config, 0)
        arguments = ", ".join(kind_of(optimizer).arguments) or "what its package says"
        notes = {
            "optimizer_args": f"{optimizer} takes {arguments}.",
            "lr_scheduler_args": f"{schedule.title} takes {', '.join(schedule.arguments_taken) or 'none'}.",
        }
        if config.optimizer.unet_lr is not None:
            own = fields.plain(config.optimizer.unet_lr)
            notes["learning_rate"] = f"Not for the UNet: its own rate, {own}, is set under Advanced, Optimizer."
        if config.dataset.datasets:
            words = "For datasets that don't say their own: see Datasets."
            notes |= {"resolution": words, "train_batch_size": words}
        wished = RunFolder(Path(saving.output_dir), saving.output_name)
        free = self._free_name(wished.output_dir, wished.output_name)
        if free == wished.output_name:
            words = f"The LoRA becomes {wished.lora}"
        else:
            taken = "is there already" if wished.exists() else "is in the queue already"
            words = f"{wished.output_name} {taken}; the next run will be called {free}."
        return {**notes, "output_name": words}


def refused_paths(folders: Folders, values: Mapping[str, object]) -> tuple[Problem, ...]:
    """Return a problem for each path that leads out of the allowed folders."""
    problems = []
    for setting in known_settings().values():
        value = values.get(setting.key)
        if isinstance(value, str) and value and _may_be_path(setting, value):
            reason = folders.problem(value)
            if reason:
                problems.append(Problem(setting.key, reason, value))
    for place, value in datasets.paths_in(values.get(datasets.KEY, ())):
        reason = folders.problem(value)
        if reason:
            problems.append(Problem(datasets.KEY, f"{place}: {reason}", value))
    return tuple(problems)


def defaults() -> dict[str, object]:
    """Return every setting's default."""
    return {key: _plain(setting.default) for key, setting in known_settings().items()}


def is_form(found: object, keys: set[str]) -> bool:
    """Say whether something read from a file has a plain value, or a list of plain ones, for each of these keys."""
    return isinstance(found, dict) and set(found) == keys and all(map(_is_value, found.values()))


def _is_value(value: object) -> bool:
    if isinstance(value, list):
        return all(not isinstance(each, list) and (_is_value(each) or _is_table(each)) for each in value)
    return value is None or isinstance(value, bool | int | float | str)


def _is_table(value: object, depth: int = 0) -> bool:
    """Say whether something is a dataset, or a folder of one: a table of values, with one list of tables in it."""
    if not isinstance(value, dict) or depth > 1:
        return False
    inner = value.get(datasets.SUBSETS, [])
    others = (each for key, each in value.items() if key != datasets.SUBSETS)
    return isinstance(inner, list) and all(_is_table(each, depth + 1) for each in inner) and all(map(_is_value, others))


def payload(
    draft: Draft,
    checked: Checked,
    extra: Iterable[Problem] = (),
    notes: Mapping[str, str] | None = None,
    process: str = "",
    unused: Collection[str] = (),
) -> dict[str, object]:
    """Return what the fields are to show: texts, problems, notes, marks, and which do not matter at the moment.

    `process` is the name of the model's kind of process and `unused` what means nothing for it, once it is known.
    """
    values, base, settings = draft.values, draft.base, known_settings()
    problems: dict[str, str] = {}
    for problem in (*checked.problems, *extra):
        problems.setdefault(problem.key, in_labels(problem.message, problem.key))
    known = {**values, PROCESS: process} if process else values
    undo = {}
    for key, setting in settings.items():
        if values[key] != base[key]:
            whose = f"{draft.base_name}: " if draft.base_name else "Default: "
            undo[key] = f"Back to {whose}{fields.named(setting, base[key])}"
    return {
        "revision": draft.revision,
        "values": {key: fields.write(setting, values[key]) for key, setting in settings.items()},
        "problems": problems,
        "notes": {key: note for key, note in {**(notes or {}), **checked.notes}.items() if key not in problems},
        "undo": undo,
        "changed": [key for key, setting in settings.items() if values[key] != _plain(setting.default)],
        "hidden": [
            key
            for key, setting in settings.items()
            if (key in unused or not visible(setting, known)) and key not in problems
        ],
    }


def _mended(values: Mapping[str, object], problems: Iterable[Problem], refused: Iterable[Problem]) -> dict[str, object]:
    """Return the values with defaults for those that cannot be used; of datasets what can be used of them stays."""
    wrong = {problem.key for problem in problems}
    mended = {key: defaults()[key] if key in wrong else value for key, value in values.items()}
    if datasets.KEY in wrong and not any(problem.key == datasets.KEY for problem in refused):
        mended[datasets.KEY] = datasets.read(values[datasets.KEY]).tables
    return mended


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _place(key: str) -> int:
    keys = list(known_settings())
    return keys.index(key) if key in known_settings() else len(keys)


def _may_be_path(setting: Setting, value: str) -> bool:
    """True for paths, and for texts that an engine may take for the path of a file."""
    if setting.show.widget in PATHS or (setting.key == "sample_prompts" and names_a_file(value)):
        return True
    path = PurePath(value.strip())
    rooted = path.is_absolute() or ".." in path.parts or value.startswith(("~", "\\", "/"))
    return setting.kind == "text" and "\n" not in value and rooted and bool(path.suffix)
