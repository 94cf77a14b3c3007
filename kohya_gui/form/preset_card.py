"""The card of presets as HTML: the list, what a preset would change, and the fields to save and open with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kohya_gui.form.presets import Change, Preset
from kohya_gui.parts.markup import button, esc

LIST = "preset-list"
"""The part of the news that keeps the list of every open page as it is."""

LONGEST_UNBROKEN = 12
"""Signs of a value that stays on one line in the table of what a preset changes."""


def choice(presets: Mapping[str, Preset], chosen: str, shown: str = "") -> str:
    """Return the list of presets with one of them chosen, and what is shown of it."""
    listed = options(presets, chosen if chosen in presets else "")
    return (
        f'<div class="line"><label for="preset">Preset</label>'
        f'<select id="preset" name="preset" data-act="choose" data-part="{LIST}">{listed}</select>'
        f'{button("apply", "Apply", id_="preset-apply")}</div><div id="preset-preview">{shown}</div>'
    )


def options(presets: Mapping[str, Preset], chosen: str | None = None) -> str:
    """Return the presets as a list has them, with one chosen, "" for none of them; None leaves that to the page."""
    titles = {name: f"{preset.name} (own)" if preset.own else preset.title for name, preset in presets.items()}
    return "".join(
        f'<option value="{esc(name)}"{" selected" if name == chosen else ""}{"" if name else " hidden"}>'
        f"{esc(title)}</option>"
        for name, title in {"": "Choose a preset", **titles}.items()
    )


def more(path: str = "") -> str:
    """Return what is seldom used: saving, opening, resetting."""
    return (
        '<details data-keep="preset-more"><summary>Save, open, reset</summary>'
        '<div class="line"><label for="preset-name">Save the form as a preset named</label>'
        f'<input type="text" id="preset-name" name="preset_name" autocomplete="off" spellcheck="false">'
        f"{button('save-preset', 'Save', id_='preset-save')}</div>"
        '<div class="line"><label for="toml-path">Settings file</label>'
        f'<input type="text" id="toml-path" name="path_typed" value="{esc(path)}" autocomplete="off" '
        f'spellcheck="false">{button("browse", "Browse", id_="toml-browse")}'
        f"{button('open-file', 'Open', id_='toml-open')}{button('save-file', 'Save', id_='toml-save')}</div>"
        '<p class="quiet">Opens settings of this program, of kohya_ss, sd-scripts and LoRA_Easy_Training_Scripts, '
        "scripts (.sh, .bat, .ps1), what a LoRA file tells of its training, and of OneTrainer and ai-toolkit what "
        "means the same. A file can be dropped anywhere on the page.</p>"
        '<div class="line"><label for="pasted">Or paste a command line, or the text of such a file</label>'
        '<textarea id="pasted" name="pasted" rows="3" autocomplete="off" spellcheck="false"></textarea>'
        f"{button('open-pasted', 'Open what is pasted', id_='pasted-open')}</div>"
        '<div hidden><input type="text" name="dropped_name"><textarea name="dropped_text"></textarea>'
        f"{button('open-dropped', 'Open what was dropped', id_='dropped-open')}</div>"
        f'<div class="line">{button("as-preset", "Undo all changes", id_="reset-preset")}'
        f"{button('defaults', 'All defaults', id_='reset-defaults')}</div></details>"
    )


def preview(preset: Preset, changed: Sequence[Change]) -> str:
    """Return for whom the preset is and what it changes."""
    words = f'<p class="quiet">{esc(preset.description)}</p>' if preset.description else ""
    if preset.own:
        words += f"<p>{button('delete-preset', 'Delete this preset', id_='preset-delete')}</p>"
    if not changed:
        return f'{words}<p class="quiet" id="preset-same">The form already is as this preset has it.</p>'
    rows = "".join(
        f"<tr><th>{esc(each.label)}</th>{_cell(each.before)}<td>→</td>{_cell(each.after, 'b')}</tr>" for each in changed
    )
    return (
        f'{words}<details class="diff" open><summary>Apply changes {_count(changed)}</summary>'
        f'<div class="scroll"><table><tbody>{rows}</tbody></table></div></details>'
    )


def applied(preset: Preset) -> str:
    """Return what is said once a preset lies under the form."""
    return f"Applied {preset.name if preset.own else preset.title}"


def _count(changed: Sequence[Change]) -> str:
    return "1 setting" if len(changed) == 1 else f"{len(changed)} settings"


def _cell(text: str, tag: str = "span") -> str:
    """Return a cell of the table; only long values may be broken."""
    style = ' class="short"' if len(text) <= LONGEST_UNBROKEN else ""
    return f"<td{style}><{tag}>{esc(text)}</{tag}></td>"
