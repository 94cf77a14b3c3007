"""The basic tab: what a first LoRA needs, in the order of the declarations' places."""

from __future__ import annotations

from collections.abc import Iterable

from kohya_gui.form.fields import fields_markup
from trainer.settings.walk import Setting


def basic_settings(settings: Iterable[Setting]) -> tuple[Setting, ...]:
    """Return the settings of this tab in order."""
    mine = [setting for setting in settings if setting.show.tab == "basic"]
    return tuple(sorted(mine, key=lambda setting: setting.show.place))


def basic_markup(settings: Iterable[Setting]) -> str:
    """Return the tab's fields."""
    return f'<div class="form basic">{fields_markup(basic_settings(settings))}</div>'
