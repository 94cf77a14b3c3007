"""The dialog that picks a folder or a file among the allowed ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kohya_gui.form.opening import ENDINGS
from kohya_gui.form.presets import PROJECT
from kohya_gui.parts.folders import MODEL_ENDINGS, PICTURE_ENDINGS, Folders, Listing, Refused
from kohya_gui.parts.markup import button, esc
from trainer.config import known_settings
from trainer.settings.section import FILES
from trainer.settings.walk import Setting

_ENDINGS: Mapping[str, tuple[str, ...]] = {"file": MODEL_ENDINGS, FILES: MODEL_ENDINGS, "picture": PICTURE_ENDINGS}
"""Widget -> the files that may be picked for it."""

TOML_FILE = "toml-file"
"""Stands in for a setting's key where the dialog looks for a settings file."""


def endings(key: str, setting: Setting | None) -> tuple[str, ...]:
    """Return the kinds of files that may be picked for a setting; none where it wants a folder."""
    if key == TOML_FILE:
        return ENDINGS
    return _ENDINGS.get(setting.show.widget, ()) if setting is not None else ()


def dialog(folders: Folders, key: str, at: str, of: Setting | None = None) -> str:
    """Return the dialog's content for the folder `at`; `of` is what is declared under `key`, if it is no setting."""
    setting = of or known_settings().get(key)
    title = f"Choose: {setting.show.label}" if setting else "Choose a settings file"
    wanted = endings(key, setting)
    try:
        listing = folders.listing(str(folders.nearest(at)), wanted)
    except Refused as refusal:
        return f'<div class="dialog"><h3>{esc(title)}</h3><p class="problem">{esc(refusal)}</p>{_closing()}</div>'
    return (
        f'<div class="dialog" role="dialog" aria-modal="true" aria-label="{esc(title)}">'
        f"<h3>{esc(title)}</h3>{_roots(folders, key)}"
        f'<p class="where"><code>{esc(listing.path)}</code></p>{_entries(listing, key)}'
        f"{_closing(listing, key, wanted)}</div>"
    )


def _roots(folders: Folders, key: str) -> str:
    chips = "".join(button("look", _short(root), key=key, at=root) for root in folders.roots)
    return f'<div class="chips">{chips}</div>'


def _short(root: Path) -> str:
    names = {PROJECT: "Program", Path.home(): "Home"}
    return names.get(root) or root.name or str(root)


def _entries(listing: Listing, key: str) -> str:
    rows = []
    if listing.parent is not None:
        rows.append(_entry("look", "↑ up", key, listing.parent))
    rows += [_entry("look", f"{name}/", key, listing.path / name) for name in listing.folders]
    rows += [_entry("pick", name, key, listing.path / name) for name in listing.files]
    if not rows:
        rows.append('<li class="quiet">Nothing in here.</li>')
    if listing.more:
        rows.append('<li class="quiet">and more; type the path instead.</li>')
    return f'<ul class="entries">{"".join(rows)}</ul>'


def _entry(act: str, label: str, key: str, path: Path) -> str:
    data = f'data-act="{act}" data-key="{esc(key)}" data-at="{esc(path)}"'
    return f'<li><button type="button" {data}>{esc(label)}</button></li>'


def _closing(listing: Listing | None = None, key: str = "", wanted: tuple[str, ...] = ()) -> str:
    use = ""
    if listing is not None and key != TOML_FILE:
        words = "Use this folder" if not wanted else "Use this folder (diffusers layout)"
        use = button("pick", words, style="primary", key=key, at=listing.path)
    return f'<div class="closing">{button("close", "Cancel")}{use}</div>'
