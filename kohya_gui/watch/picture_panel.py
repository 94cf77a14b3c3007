"""The table of training pictures: how much of each was learned, what stands out first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kohya_gui.parts.folders import Folders
from kohya_gui.parts.markup import esc
from kohya_gui.parts.served import Pictures
from trainer.ground.paths import read_json
from trainer.results.run_record import PictureLoss, RunRecord

MOST_ROWS = 300

_REMARKS = {
    "learned by heart": "learned by heart",
    "never learned": "hardly learned",
}


def table(record: RunRecord, pictures: Pictures, folders: Folders) -> str:
    """Return the table; a row opens to the picture and its caption."""
    found = record.pictures
    if not found:
        return ""
    known = known_pictures(record, folders)
    rows = "".join(_row(each, known.get(each.name), pictures) for each in found[:MOST_ROWS])
    marked = sum(bool(each.remark) for each in found)
    words = f"{marked} stand out" if marked else "none stands out"
    more = f'<p class="quiet">and {len(found) - MOST_ROWS} more</p>' if len(found) > MOST_ROWS else ""
    return (
        f'<details class="card pictures" data-keep="pictures" id="picture-losses"><summary><h3>Training pictures '
        f'<span class="quiet">{len(found)}, {words}</span></h3></summary>'
        '<p class="quiet">The loss of each at fixed noise, without the LoRA and now. A click opens the picture.</p>'
        f'<div class="picture-rows">{rows}</div>{more}</details>'
    )


def _row(each: PictureLoss, known: tuple[Path, str] | None, pictures: Pictures) -> str:
    before = "–" if each.before is None else f"{each.before:.4f}"
    badge = f'<span class="badge {"warn" if each.remark else ""}">{_REMARKS.get(each.remark, "")}</span>'
    small, inside = '<i class="no-picture"></i>', '<p class="quiet">The picture is not where it was.</p>'
    if known:
        small = f'<img src="{pictures.thumbnail(known[0])}" alt="" loading="lazy">'
        inside = (
            f'<img src="{pictures.full(known[0])}" alt="{esc(each.name)}" loading="lazy"><p>{esc(known[1]) or "–"}</p>'
        )
    return (
        f'<details class="picture-row" data-picture="{esc(each.name)}"><summary>{small}<span class="picture-name">'
        f'{_name(each.name)}</span>{badge if each.remark else ""}<span class="picture-numbers">{before} → '
        f'{each.now:.4f}</span><span class="picture-change">{_change(each.change)}</span></summary>'
        f'<div class="picture-open">{inside}</div></details>'
    )


def _name(name: str) -> str:
    """Return the name with its folder set apart: where there is little room the file's own name is what counts."""
    folder, _, file = name.rpartition("/")
    return (f"<i>{esc(folder)}/</i>" if folder else "") + f"<b>{esc(file)}</b>"


def _change(learned: float) -> str:
    """Return by how much the loss has changed, with a true minus."""
    return f"{-learned:+.0%}".replace("-", "−")


def known_pictures(record: RunRecord, folders: Folders) -> Mapping[str, tuple[Path, str]]:
    """Return {name: (path, caption)} of the pictures that the run's report names and the page may show."""
    try:
        report: Any = read_json(record.folder.dataset)
        paths = [(Path(folder["path"]), picture) for folder in report["folders"] for picture in folder["pictures"]]
        found = {f"{path.name}/{each['name']}": (path / each["name"], each["caption"]) for path, each in paths}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {
        name: (path, str(caption))
        for name, (path, caption) in found.items()
        if not folders.problem(str(path)) and path.is_file()
    }
