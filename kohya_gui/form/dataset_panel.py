"""Beside the form: what the scan of the pictures found. Counts, captions, buckets, thumbnails."""

from __future__ import annotations

from collections.abc import Sequence

from kohya_gui.form.survey import Survey
from kohya_gui.parts.markup import button, esc, number
from kohya_gui.parts.served import Pictures
from trainer.config import in_labels
from trainer.pictures.counts import BucketCount
from trainer.pictures.report import Folder, Picture

THUMBNAILS = 24
"""Pictures shown of each folder."""

MOST_TERMS = 3
"""Terms of pictures times repeats that are written out."""

NOTICES = 8


def dataset_panel(survey: Survey | None, pictures: Pictures) -> str:
    """Return the whole panel."""
    head = f"<h3>Pictures {button('scan', 'Scan again')}</h3>"
    if survey and survey.counting:
        return (
            '<section class="card" id="dataset"><h3>Pictures</h3><div class="empty" role="status">'
            "<p>Counting the pictures …</p>"
            '<p class="quiet">Large folders take a while, most of all for the first time. The form can be filled in '
            "meanwhile, and Start does not wait for it.</p></div></section>"
        )
    if survey is None or survey.report is None or survey.counts is None:
        if survey and survey.config.dataset.datasets:
            return (
                '<section class="card" id="dataset"><h3>Pictures</h3><div class="empty"><p>No pictures yet.</p>'
                '<p class="quiet">They come from the folders in Datasets; what is wrong there stands above.</p>'
                "</div></section>"
            )
        return (
            '<section class="card" id="dataset"><h3>Pictures</h3><div class="empty"><p>No pictures yet.</p>'
            '<p class="quiet">The picture folder holds one folder for each concept, named '
            "<code>REPEATS_trigger class</code>, such as <code>10_sks dog</code>. A folder with pictures directly in "
            "it works too.</p></div></section>"
        )
    report, counts = survey.report, survey.counts
    missing = sum(picture.caption_missing for folder in report.folders for picture in folder.pictures)
    total = report.train_images + report.reg_images
    facts = [
        ("pictures", number(counts.train_images)),
        ("regularisation", number(counts.reg_images) if counts.reg_images else "none"),
        ("samples an epoch", number(counts.samples)),
        ("with captions", f"{number(total - missing)} of {number(total)}"),
    ]
    cells = "".join(f"<div><b>{esc(value)}</b><span>{esc(name)}</span></div>" for name, value in facts)
    folders = "".join(_folder(folder, pictures) for folder in report.folders)
    return (
        f'<section class="card" id="dataset">{head}<div class="figures">{cells}</div>'
        f"{_notices(survey.notices)}{folders}{_buckets(counts.buckets)}</section>"
    )


def _notices(notices: Sequence[str]) -> str:
    if not notices:
        return ""
    rows = "".join(f"<li>{esc(in_labels(notice))}</li>" for notice in notices[:NOTICES])
    more = f"<li>and {len(notices) - NOTICES} more</li>" if len(notices) > NOTICES else ""
    return f'<ul class="notices">{rows}{more}</ul>'


def _folder(folder: Folder, pictures: Pictures) -> str:
    shown = "".join(_thumbnail(picture, pictures) for picture in folder.pictures[:THUMBNAILS])
    more = len(folder.pictures) - THUMBNAILS
    rest = f'<span class="rest">+{number(more)}</span>' if more > 0 else ""
    kind = '<span class="badge">regularisation</span>' if folder.regularisation else ""
    kind += f' <span class="badge">{esc(folder.place.partition(",")[0])}</span>' if folder.place else ""
    terms = [f"{many} × {repeats}" for repeats, many in folder.repeated.items()]
    count = f"{' + '.join(terms) if len(terms) <= MOST_TERMS else f'{len(folder.pictures)} pictures'} = {folder.count}"
    opened, keep = "" if folder.regularisation else " open", f"folder {folder.place} {folder.path}"
    return (
        f'<details class="folder" data-keep="{esc(keep)}"{opened}><summary><b>{esc(folder.name)}</b> {kind}'
        f'<span class="quiet">{count}</span></summary><div class="thumbs">{shown}{rest}</div></details>'
    )


def _thumbnail(picture: Picture, pictures: Pictures) -> str:
    name = picture.path.name
    words = f"{name}: {picture.caption or 'empty caption'}"
    kind = "uncaptioned" if picture.caption_missing else ""
    return (
        f'<a href="{pictures.full(picture.path)}" target="_blank" rel="noopener" class="{kind}" title="{esc(words)}">'
        f'<img src="{pictures.thumbnail(picture.path)}" alt="{esc(name)}" loading="lazy"></a>'
    )


def _buckets(buckets: Sequence[BucketCount]) -> str:
    most = max((bucket.samples for bucket in buckets), default=1)
    rows = "".join(
        f"<tr><th>{_of(bucket, buckets)}{bucket.resolution[0]} × {bucket.resolution[1]}</th>"
        f"<td>{number(bucket.images)}</td>"
        f'<td class="bar"><i style="width:{100 * bucket.samples / most:.0f}%"></i></td>'
        f"<td>{number(bucket.batches)}</td></tr>"
        for bucket in buckets
    )
    return (
        '<details class="folder" data-keep="buckets"><summary><b>Buckets</b> '
        f'<span class="quiet">{len(buckets)} in use</span></summary><table class="buckets"><thead><tr><th>size</th>'
        f"<th>pictures</th><th>samples</th><th>batches</th></tr></thead><tbody>{rows}</tbody></table></details>"
    )


def _of(bucket: BucketCount, buckets: Sequence[BucketCount]) -> str:
    """Return whose bucket it is, where there are several datasets; each of several resolutions counts as one."""
    return f"{bucket.dataset + 1}: " if len({each.dataset for each in buckets}) > 1 else ""
