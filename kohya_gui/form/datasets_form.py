"""The datasets in the form: their tables as rows of fields, and what each edit makes of the tables.

A field is known by its place: "0.resolution" is of the first dataset, "0.1.num_repeats" of its second folder. An empty
field says nothing, so that what is above counts: the dataset, then the settings of the run.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kohya_gui.form import fields
from kohya_gui.parts.markup import button, esc
from trainer.config.datasets import SUBSETS, dataset_settings, subset_settings
from trainer.ground.errors import Problem
from trainer.pictures.scan import split_name
from trainer.settings.walk import Setting

Tables = list[dict[str, object]]

MOST = 200
"""Datasets, and folders of one, that the form takes."""

_SIZES = "sizes"
"""The field that stands for resolution and resolutions."""
_ROW = ("image_dir", "num_repeats", "class_tokens", "is_reg")
_WRONG = re.compile(r"dataset (\d+)(?:, subset (\d+))?: (\w+) ")
"""How what is wrong with a field begins."""
_PLACE = re.compile(r"(\d+)(?:\.(\d+))?\.(\w+)")


# --- edits ------------------------------------------------------------------------------------------------------------


def edited(tables: object, place: object, raw: object) -> Tables | None:
    """Return the tables after something was typed into a field, or None where there is no such field."""
    match = _PLACE.fullmatch(str(place))
    found = _copy(tables)
    if match is None or int(match[1]) >= len(found) or not isinstance(raw, str | bool):
        return None
    dataset, key = found[int(match[1])], match[3]
    if match[2] is None:
        if key == _SIZES:
            return _with_sizes(found, dataset, str(raw))
        return _set(found, dataset, dataset_settings(), key, raw)
    subsets = _subsets(dataset)
    if int(match[2]) >= len(subsets):
        return None
    return _set(found, subsets[int(match[2])], subset_settings(), key, raw)


def _set(
    tables: Tables, table: dict[str, object], known: Mapping[str, Setting], key: str, raw: str | bool
) -> Tables | None:
    if key not in known:
        return None
    setting = known[key]
    value = {"on": True, "off": False}.get(str(raw), raw) if setting.kind == "switch" else fields.read(setting, raw)
    table.pop(key, None)
    if raw != "" and not (key == "is_reg" and not raw):
        table[key] = value
    return tables


def _with_sizes(tables: Tables, dataset: dict[str, object], text: str) -> Tables:
    """Take "512", "512,768" or several of them with blanks or semicolons between."""
    sizes = [each for each in re.split(r"[;\s]+", re.sub(r"\s*([,x×])\s*", r"\1", text.strip())) if each]
    sizes = [size.replace("×", "x") for size in sizes]
    dataset.pop("resolution", None)
    dataset.pop("resolutions", None)
    if len(sizes) == 1:
        dataset["resolution"] = sizes[0]
    elif sizes:
        dataset["resolutions"] = sizes
    return tables


def with_dataset(tables: object) -> Tables:
    """Return the tables with one more dataset, with a folder to fill in."""
    found = _copy(tables)
    return [*found, {SUBSETS: [{"image_dir": ""}]}] if len(found) < MOST else found


def with_folder(tables: object, number: int, path: str = "") -> Tables:
    """Return the tables with one more folder in a dataset; what its name says is filled in."""
    found = _copy(tables)
    if number < len(found) and len(_subsets(found[number])) < MOST:
        found[number][SUBSETS] = [*_subsets(found[number]), _named(path)]
    return found


def without(tables: object, number: int, subset: int | None) -> Tables:
    """Return the tables without a dataset, or without one of its folders; a dataset without folders goes too."""
    found = _copy(tables)
    if number >= len(found):
        return found
    if subset is not None:
        found[number][SUBSETS] = [each for place, each in enumerate(_subsets(found[number])) if place != subset]
    if subset is None or not found[number][SUBSETS]:
        del found[number]
    return found


def of_folders(train: str, reg: str) -> Tables:
    """Return the dataset that the two folders of kohya's layout come to, each numbered folder in them one subset."""
    subsets = [*_numbered(train), *({**each, "is_reg": True} for each in _numbered(reg))]
    return [{SUBSETS: subsets or [{"image_dir": ""}]}]


def _numbered(root: str) -> list[dict[str, object]]:
    if not root:
        return []
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    except OSError:
        names = []
    inside = [name for name in names if (split_name(name) or (0, ""))[0] >= 1]
    return [_named(str(Path(root) / name)) for name in inside] or [{"image_dir": root}]


def _named(path: str) -> dict[str, object]:
    """Return the subset of a folder; a name such as 10_sks dog says repeats and class tokens."""
    repeats, tokens = split_name(Path(path).name) or (0, "")
    found: dict[str, object] = {"image_dir": path}
    if repeats >= 1:
        found["num_repeats"] = repeats
    if repeats >= 1 and tokens:
        found["class_tokens"] = tokens
    return found


def _copy(tables: object) -> Tables:
    found = copy.deepcopy(list(tables)) if isinstance(tables, list | tuple) else []
    return [each for each in found if isinstance(each, dict)]


def _subsets(dataset: Mapping[str, object]) -> list[dict[str, object]]:
    found = dataset.get(SUBSETS)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


# --- what is shown ----------------------------------------------------------------------------------------------------


def markup(tables: object, values: Mapping[str, object], problems: Iterable[Problem]) -> str:
    """Return the editor; `values` are the run's settings, which count where a dataset says nothing."""
    found = _copy(tables)
    wrong = list(dict.fromkeys(problem.message for problem in problems))
    if not found:
        return _invitation()
    cards = "".join(_dataset(number, each, values, wrong) for number, each in enumerate(found))
    elsewhere = [each for each in wrong if not each.startswith("dataset ")]
    return (
        f"{_lines(elsewhere)}{cards}<div class='closing'>{button('add-dataset', 'Add a dataset')}"
        f"{button('clear', 'Use the folders in Basic instead')}</div>"
    )


def _invitation() -> str:
    return (
        '<section class="card empty" id="no-datasets"><h3>Datasets</h3><p>Pictures come from the folders in Basic.</p>'
        '<p class="quiet">With datasets, each folder has its own row: repeats, class, captions. Each dataset has its '
        "own resolution, batch size and buckets, and one folder can be trained at several sizes.</p>"
        f"{button('from-folders', 'Begin with the folders in Basic', style='primary')} "
        f"{button('add-dataset', 'Begin with an empty dataset')}</section>"
    )


def _dataset(number: int, table: Mapping[str, object], values: Mapping[str, object], wrong: Sequence[str]) -> str:
    place = f"dataset {number + 1}"
    rows = "".join(
        _folder(number, index, each, {**values, **table}, wrong) for index, each in enumerate(_subsets(table))
    )
    known = dataset_settings()
    rest = [setting for key, setting in known.items() if setting.within == "dataset" and key not in _DATASET_ROW + _ROW]
    own = [message.partition(": ")[2] for message in wrong if message.startswith(f"{place}:")]
    lines = _lines(_in_labels(own, known))
    sizes = _text_field(f"{number}.{_SIZES}", "Resolution", str(values.get("resolution", "")), unit="pixels")
    batch = _text_field(f"{number}.batch_size", "Batch size", str(values.get("train_batch_size", "")))
    return (
        f'<section class="card dataset" data-dataset="{number}"><div class="dataset-head"><h3>Dataset {number + 1}</h3>'
        f"{_remove(f'{number}', f'dataset {number + 1}')}</div>"
        f'{lines}<div class="row">{sizes}{batch}</div>'
        '<p class="help">Several resolutions, as in 512 768, train the same folders at each of them.</p>'
        f"{_more(f'{number}', 'Buckets and validation', rest, table, values)}"
        f'<div class="folders">{rows}</div>{button("add-folder", "Add a folder", key=number)}</section>'
    )


_DATASET_ROW = ("resolution", "resolutions", "batch_size")


def _folder(
    number: int, index: int, table: Mapping[str, object], above: Mapping[str, object], wrong: Sequence[str]
) -> str:
    at, place = f"{number}.{index}", f"dataset {number + 1}, subset {index + 1}"
    own = [message.partition(": ")[2] for message in wrong if message.startswith((f"{place}:", f"{place} "))]
    lines = _lines(_in_labels(own, subset_settings()))
    rest = [setting for key, setting in subset_settings().items() if key not in _ROW]
    checked = " checked" if table.get("is_reg") is True else ""
    path = (
        f'<div class="field path"><label for="d{at}.image_dir">Folder</label><div class="with-button">'
        f'<input type="text" id="d{at}.image_dir" data-key="{at}.image_dir" autocomplete="off" spellcheck="false">'
        f'<button type="button" class="small" data-act="browse" data-key="{at}.image_dir" '
        f'aria-label="Choose the folder of {esc(place)}">Browse</button></div></div>'
    )
    return (
        f'<div class="folder-row{" wrong" if own else ""}" data-row="{at}">{lines}<div class="row">{path}'
        f"{_text_field(f'{at}.num_repeats', 'Repeats', str(above.get('num_repeats', 1)))}"
        f"{_text_field(f'{at}.class_tokens', 'Class', str(above.get('class_tokens', '')))}"
        f'<div class="field switch"><div class="field-head"><input type="checkbox" id="d{at}.is_reg" '
        f'data-key="{at}.is_reg"{checked}><label for="d{at}.is_reg">Regularisation</label></div></div>'
        f"{_remove(at, place)}</div>{_more(at, 'Captions and more', rest, table, above)}</div>"
    )


def _remove(at: str, what: str) -> str:
    return (
        f'<button type="button" class="small remove" data-act="remove" data-key="{at}" '
        f'aria-label="Remove {esc(what)}" title="Remove {esc(what)}">×</button>'
    )


def _more(
    at: str, title: str, settings: Sequence[Setting], table: Mapping[str, object], above: Mapping[str, object]
) -> str:
    said = sum(setting.key in table for setting in settings)
    count = f'<span class="quiet">{said} said here</span>' if said else ""
    inner = "".join(
        _field(f"{at}.{setting.key}", setting, above.get(setting.key, setting.default)) for setting in settings
    )
    return (
        f'<details class="folder" data-keep="{at}"><summary><b>{esc(title)}</b> {count}</summary>'
        f'<div class="fields">{inner}</div></details>'
    )


def _field(at: str, setting: Setting, inherited: object) -> str:
    """Return the field of a setting that may be left as it is above."""
    if setting.kind in ("switch", "choice"):
        choices = ("on", "off") if setting.kind == "switch" else tuple(each for each in setting.choices if each != "")
        options = "".join(f'<option value="{esc(each)}">{esc(each)}</option>' for each in choices)
        unsaid = f'<option value="">as above: {esc(fields.named(setting, inherited))}</option>'
        control = f'<select id="d{at}" data-key="{at}">{unsaid}{options}</select>'
        return f'<div class="field"><label for="d{at}">{esc(setting.show.label)}</label>{control}{_help(setting)}</div>'
    shown = "" if inherited in (None, "", (), []) else str(fields.write(setting, inherited))
    return _text_field(at, setting.show.label, shown, unit=setting.show.unit, more=_help(setting))


def _help(setting: Setting) -> str:
    return f'<p class="help">{esc(setting.help)}</p>'


def _text_field(at: str, label: str, inherited: str, *, unit: str = "", more: str = "") -> str:
    units = f'<span class="unit">{esc(unit)}</span>' if unit else ""
    return (
        f'<div class="field"><label for="d{at}">{esc(label)}</label>{units}<input type="text" id="d{at}" '
        f'data-key="{at}" autocomplete="off" spellcheck="false" placeholder="{esc(inherited or "empty")}">{more}</div>'
    )


def _in_labels(messages: Iterable[str], known: Mapping[str, Setting]) -> list[str]:
    """Return messages with the label of the field that each begins with in place of its key."""
    parted = [message.partition(" ") for message in messages]
    return [f"{known[key].show.label if key in known else key}{blank}{rest}" for key, blank, rest in parted]


def wrong_places(problems: Iterable[Problem]) -> list[str]:
    """Return the places of the fields that are wrong."""
    found = []
    for message in (problem.message for problem in problems):
        match = _WRONG.match(message)
        if match:
            subset = f".{int(match[2]) - 1}" if match[2] else ""
            key = _SIZES if match[3] in ("resolution", "resolutions") and not subset else match[3]
            found.append(f"{int(match[1]) - 1}{subset}.{key}")
    return found


def _lines(messages: Iterable[str]) -> str:
    return "".join(f'<p class="problem" role="alert">{esc(message)}</p>' for message in messages)


def shown_values(tables: object) -> dict[str, object]:
    """Return {place: what its field shows} of everything that the tables say."""
    found: dict[str, object] = {}
    for number, dataset in enumerate(_copy(tables)):
        found[f"{number}.{_SIZES}"] = _sizes(dataset)
        found |= _shown(f"{number}", dataset, dataset_settings())
        for index, subset in enumerate(_subsets(dataset)):
            found |= _shown(f"{number}.{index}", subset, subset_settings())
    return found


def _sizes(dataset: Mapping[str, object]) -> str:
    given = dataset.get("resolutions") or ([dataset["resolution"]] if "resolution" in dataset else [])
    texts = [fields.plain(each) if not isinstance(each, list) else ",".join(map(str, each)) for each in given]  # type: ignore[attr-defined]
    return "; ".join(re.sub(r"^(\d+),\1$", r"\1", text) for text in texts)


def _shown(at: str, table: Mapping[str, object], known: Mapping[str, Setting]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in table.items():
        if key not in known:
            continue
        if key == "is_reg":
            found[f"{at}.{key}"] = value is True
        elif known[key].kind == "switch":
            found[f"{at}.{key}"] = {True: "on", False: "off"}.get(value, str(value))  # type: ignore[call-overload]
        else:
            found[f"{at}.{key}"] = fields.write(known[key], value)
    return found
