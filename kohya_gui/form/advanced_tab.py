"""The advanced tab: every other setting, in the groups of the declarations, with a search over all of them."""

from __future__ import annotations

from collections.abc import Iterable

from kohya_gui.form.fields import group_markup
from trainer.settings.walk import Setting


def advanced_groups(settings: Iterable[Setting]) -> dict[str, list[Setting]]:
    """Return {group: settings}, both in the order of declaration."""
    groups: dict[str, list[Setting]] = {}
    for setting in settings:
        if setting.show.tab == "advanced":
            groups.setdefault(setting.show.group or setting.section.capitalize(), []).append(setting)
    return groups


def advanced_markup(settings: Iterable[Setting]) -> str:
    """Return the search box and the groups."""
    groups = "".join(group_markup(name, members) for name, members in advanced_groups(settings).items())
    return (
        '<div class="form advanced"><div class="search"><input type="search" data-search autocomplete="off" '
        'placeholder="Search settings: noise, rank, save ..." aria-label="Search settings">'
        '<button type="button" class="small" data-fold="open">Open all</button>'
        '<button type="button" class="small" data-fold="close">Close all</button></div>'
        '<p class="legend"><span class="dot own"></span>changed by you '
        '<span class="dot changed"></span>differs from the default, as the preset has it '
        '<span class="hint">F1 explains a field</span></p>'
        f'<p class="nothing" data-nothing hidden>No setting has these words. Try one word, or a name such as '
        f"min_snr_gamma.</p>{groups}</div>"
    )
