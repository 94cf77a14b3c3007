"""Finds the pictures and captions of a training: kohya's folder layout, headers only, in a fixed order.

    train_data_dir/10_tok class/*.png  *.txt        each picture 10 times an epoch, class token "tok class"
    reg_data_dir/1_class/*.png                      regularisation pictures
    train_data_dir/*.png                            a plain folder of pictures: once an epoch

Layout and counting are sd-scripts' (`library/config_util.py`, `library/train_util.py`). What lies deeper than this is
counted and named, and not used.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from trainer.config import TrainingConfig, datasets_of
from trainer.ground.errors import ConfigError, DataError, Problem
from trainer.pictures.caption_files import read_caption
from trainer.pictures.findings import (
    Findings,
    left_out,
    lie_deeper,
    listed,
    pictures,
    refuse_foreign,
    short,
)
from trainer.pictures.held_out import with_held_out
from trainer.pictures.image_headers import EXTENSIONS, UNREADABLE, why_unreadable
from trainer.pictures.listing import Listing, deeper, listing
from trainer.pictures.remarks import ALPHA, FILE, MOST_REPEATS, Remark
from trainer.pictures.report import DatasetReport, Folder, Picture
from trainer.pictures.sizes import Sizes
from trainer.pictures.sources import KEY, Source, of_datasets

Progress = Callable[[str, int, int], None]

PHASE = "scanning pictures"

_REPEATS = re.compile(r"\s*(\d+)\s*(?:_(.*))?", re.DOTALL)
MOST_SAMPLES = 5_000_000
"""Samples of an epoch: its order is kept in memory."""

_TRAINING, _REGULARISATION = "train_data_dir", "reg_data_dir"
_PROJECT_PICTURES = {_TRAINING: "img", _REGULARISATION: "reg"}
"""What kohya_ss calls the folders of numbered folders in a project's folder."""

_LAYOUT = "Pictures belong in subfolders named REPEATS_NAME, such as '10_mycat cat', or directly in the chosen folder"


def scan(config: TrainingConfig, progress: Progress | None = None) -> DatasetReport:
    """Return all pictures and captions that the dataset settings point at, in the order of their paths.

    Only headers are read, and of large folders only those of pictures that are new or changed since the last scan.
    Pictures that cannot be read are left out and named.

    Raises:
        ConfigError: a folder is not set, does not exist, or holds the folders of pictures one step deeper.
        DataError: a folder has no readable picture, a caption is not UTF-8, or repeats are beyond all measure.
        Stopped: raised by `progress(phase, done, total)`.
    """
    findings = Findings()
    sources = sources_of(config, findings)
    sources = [without_masks(source, findings) for source in sources]
    total = sum(len(source.files) for source in sources)
    folders: list[Folder] = []
    seen: dict[object, tuple[Picture, ...]] = {}
    done = 0
    for source in sources:
        # One folder may be in several datasets, one for each resolution.
        same = (source.path, source.extension, source.wildcards, source.class_tokens, source.name, tuple(source.files))
        if same not in seen:
            seen[same] = _read_pictures(source, findings, partial(_tell, progress, done, total))
        folders.append(_folder(source, seen[same]))
        done += len(source.files)
    _tell(progress, done, total, 0)
    _require_pictures(config, folders, findings)
    refuse_foreign(findings.foreign)
    notices = (*findings.notices, *findings.summaries())
    found = DatasetReport(
        folders=tuple(folder for folder in folders if folder.pictures),
        notices=notices,
        unreadable=tuple(findings.unreadable),
    )
    return with_held_out(found, config, lambda others: scan(others, progress))


def without_masks(source: Source, findings: Findings) -> Source:
    """Return a source without the files beside its pictures that are their masks."""
    masks = findings.remarks.masks(source.path) if source.captions is None else frozenset()
    return replace(source, files=[name for name in source.files if name not in masks]) if masks else source


def _tell(progress: Progress | None, before: int, total: int, more: int) -> None:
    if progress:
        progress(PHASE, before + more, total)


def _read_pictures(source: Source, findings: Findings, tell: Callable[[int], None]) -> tuple[Picture, ...]:
    """Return the pictures of a source that can be read; `tell` is told how many of them were looked at."""
    found = []
    sizes = Sizes(source.path, len(source.files))
    for number, name in enumerate(source.files):
        tell(number)
        found.append(_read_picture(source, name, findings, sizes))
    sizes.save()
    return tuple(picture for picture in found if picture)


def split_name(name: str) -> tuple[int, str] | None:
    """Return (repeats, class token) of a folder named N_class, or None where it is not named so.

    As with sd-scripts a bare number counts too, and everything after the first underscore is the class token.
    """
    match = _REPEATS.fullmatch(name)
    return (int(match[1]), (match[2] or "").strip()) if match else None


def sources_of(config: TrainingConfig, findings: Findings) -> list[Source]:
    """Return the folders and lists with the pictures of a training, before any picture or caption is opened.

    Raises:
        ConfigError, DataError: as `scan` does of folders.
    """
    if datasets := datasets_of(config):
        return of_datasets(datasets, findings)
    chosen = [(_TRAINING, config.dataset.train_data_dir, False)]
    if config.dataset.reg_data_dir:
        chosen.append((_REGULARISATION, config.dataset.reg_data_dir, True))
    problems = [problem for key, value, _ in chosen if (problem := _folder_problem(key, value))]
    if problems:
        raise ConfigError(problems)
    sources = []
    for key, value, regularisation in chosen:
        root = Path(value)
        sources += _sources_below(key, root, regularisation, findings, config)
    return sources


def _folder_problem(key: str, value: str) -> Problem | None:
    if not value:
        return Problem(key, "is not set; name the folder that holds your pictures.", value)
    if not os.path.isdir(value):
        what = "is a file, not a folder" if os.path.isfile(value) else "is no folder"
        what = what if os.path.exists(value) else "does not exist"
        if os.path.islink(value) and not os.path.exists(value):
            what = f"is a link to {os.readlink(value)!r}, which is not there"
        return Problem(key, f"{value!r} {what} (looked at {os.path.abspath(value)}); choose an existing folder.", value)
    try:
        os.scandir(value).close()
    except OSError as error:
        return Problem(key, f"{value!r} cannot be opened: {error.strerror}; change its permissions.", value)
    return None


def _sources_below(
    key: str, root: Path, regularisation: bool, findings: Findings, config: TrainingConfig
) -> list[Source]:
    """Return the N_class folders below `root` that hold pictures; where there are none, `root` itself if it does.

    Raises:
        ConfigError: the pictures are in a folder below.
        DataError: there are none.
    """
    top = findings.take(listing(root))
    inside = [findings.take(listing(root / name)) for name in top.folders]
    below = list(deeper((each.path / name for each in inside for name in each.folders), (root, *_paths(inside))))
    numbered = [each for each in inside if (split_name(each.path.name) or (0, ""))[0] >= 1]
    used = [each for each in numbered if each.pictures]
    if not used and not top.pictures:
        raise _nothing_found(key, root, findings, inside, below)
    _tell_unused(root, top, inside, below, findings)
    if used:
        return [_source(each, regularisation, config) for each in used]
    return [_plain_source(root, regularisation, top, findings, config)]


def _paths(found: Iterable[Listing]) -> Iterator[Path]:
    return (each.path for each in found)


def _tell_unused(
    root: Path, top: Listing, inside: Sequence[Listing], below: Sequence[Listing], findings: Findings
) -> None:
    """Say which pictures that were seen are not used for where they lie, and which numbered folders have none."""
    numbered = [each for each in inside if (split_name(each.path.name) or (0, ""))[0] >= 1]
    passed_over = [each.path.name for each in inside if each.pictures and not split_name(each.path.name)]
    switched_off = [each.path.name for each in inside if each.pictures and (split_name(each.path.name) or (1,))[0] == 0]
    empty = [each.path.name for each in numbered if not each.pictures]
    if switched_off:
        findings.notices.append(f"{root}: left out, as their names say 0 repeats: {listed(switched_off)}.")
    if passed_over:
        rule = f"the name does not begin with repeats, as in '10_{_class_of(passed_over[0])}'"
        findings.notices.append(f"{root}: not used, as {rule}: {listed(passed_over)}.")
    if top.pictures and len(empty) < len(numbered):
        what = f"{pictures(len(top.pictures))} beside the numbered subfolders"
        findings.notices.append(f"{root}: {what} not used: {listed(top.pictures)}.")
    if empty:
        findings.notices.append(f"{root}: no pictures in {listed(empty)}.")
    if below:
        findings.notices.append(lie_deeper(root, below))


def _class_of(name: str) -> str:
    """Return a folder's name without repeats that do not count, as in 0_cat or -1_cat."""
    return re.sub(r"^\s*[-+]?\d+\s*_", "", name).strip() or name


def _source(found: Listing, regularisation: bool, config: TrainingConfig) -> Source:
    """Return a numbered folder.

    Raises:
        DataError: its name asks for more repeats than anyone can mean.
    """
    repeats, class_tokens = split_name(found.path.name) or (1, "")
    if repeats > MOST_REPEATS:
        raise DataError(
            f"{_REGULARISATION if regularisation else _TRAINING}: the name of the folder {short(found.path)} asks for "
            f"more than {MOST_REPEATS:,} repeats of each picture.",
            f"Name it with the repeats in an epoch, such as '10_{class_tokens or 'mycat cat'}'.",
        )
    return _of_layout(found.path, repeats, class_tokens, regularisation, found, config)


def _of_layout(
    path: Path, repeats: int, class_tokens: str, regularisation: bool, found: Listing, config: TrainingConfig
) -> Source:
    captions = config.captions
    return Source(
        path,
        repeats,
        class_tokens,
        regularisation,
        found.pictures,
        found.names,
        captions.caption_extension,
        captions.enable_wildcard,
    )


def _plain_source(
    root: Path, regularisation: bool, found: Listing, findings: Findings, config: TrainingConfig
) -> Source:
    """Return a folder chosen directly: once an epoch, unless its own name says how often."""
    resolved = root.resolve()
    repeats, _ = split_name(resolved.name) or (0, "")
    if repeats >= 1:
        source = _source(replace(found, path=resolved), regularisation, config)
        times = "1 repeat" if repeats == 1 else f"{repeats:,} repeats"
        findings.notices.append(
            f"{root} is itself a numbered folder: its name gives {times} and the class "
            f"'{source.class_tokens}'. Choose the folder that holds it to train all numbered folders in there."
        )
        return replace(source, path=root)
    findings.notices.append(
        f"{root} is a plain folder of pictures: it counts as 1 repeat. For more, put them into a subfolder named "
        f"REPEATS_NAME, such as '10_{_class_of(resolved.name)}'."
    )
    return _of_layout(root, 1, resolved.name, regularisation, found, config)


def _read_picture(source: Source, name: str, findings: Findings, sizes: Sizes) -> Picture | None:
    path = source.path / name
    remark = findings.remarks.of(path)
    if remark.skip:
        findings.skipped.append(path)
        return None
    try:
        size, length = sizes.of(name)
    except UNREADABLE as error:
        findings.unreadable.append((path, why_unreadable(path, error)))
        return None
    caption = read_caption(source, name, findings) if source.captions is None else source.captions[name]
    found = Picture(
        path=path,
        size=size,
        caption=source.class_tokens if caption is None else caption,
        bytes=length,
        caption_missing=caption is None,
    )
    return _as_said(found, remark) if remark else found


def _as_said(picture: Picture, remark: Remark) -> Picture:
    """Return a picture with what pictures.json says of it.

    Raises:
        DataError: its crop reaches beyond the picture, or its mask is not there.
    """
    path = picture.path
    if remark.crop:
        left, top, width, height = remark.crop
        if left + width > picture.size[0] or top + height > picture.size[1]:
            raise DataError(
                f"{path.parent / FILE}: the crop of {path.name}, {list(remark.crop)}, reaches beyond the picture, "
                f"which is {picture.size[0]}x{picture.size[1]}.",
                "Correct it there or in the workbench, or remove it.",
            )
    mask = path.parent / remark.mask if remark.mask and remark.mask != ALPHA else None
    if mask and not mask.is_file():
        raise DataError(
            f"{path.parent / FILE}: the mask of {path.name}, {remark.mask}, is not there.",
            "Put it back, or remove it from that file.",
        )
    return replace(picture, repeats=remark.repeats, crop=remark.crop, mask=mask, alpha_mask=remark.mask == ALPHA)


def _folder(source: Source, pictures: tuple[Picture, ...]) -> Folder:
    return Folder(
        path=source.path,
        name=source.title,
        repeats=source.repeats,
        class_tokens=source.class_tokens,
        regularisation=source.regularisation,
        pictures=pictures,
        dataset=source.dataset,
        subset=source.subset,
        place=source.place,
    )


def _require_some(folders: Sequence[Folder], findings: Findings) -> None:
    """Refuse folders whose pictures are all left out by what is said of them."""
    skipped = {path.parent for path in findings.skipped}
    for folder in folders:
        if not folder.pictures and folder.path in skipped and not any(each.pictures for each in folders):
            raise DataError(
                f"{folder.path / FILE} leaves out all pictures that there are to train.",
                remedy="Take some of them in again, there or in the workbench.",
            )


def _require_pictures(config: TrainingConfig, folders: Sequence[Folder], findings: Findings) -> None:
    """Refuse a setting none of whose pictures could be read, and more samples than an epoch can have."""
    _require_some(folders, findings)
    for key, regularisation in ((_TRAINING, False), (_REGULARISATION, True)):
        here = [folder for folder in folders if folder.regularisation is regularisation and not folder.place]
        if here and not any(folder.pictures for folder in here):
            reasons = "; ".join(f"{path.name}: {reason}" for path, reason in findings.unreadable[:5])
            raise DataError(
                f"{key}: none of the pictures in {getattr(config.dataset, key)} can be read ({reasons}).",
                remedy=f"Pictures must be intact files of these kinds: {_kinds()}.",
            )
    for folder in folders:
        if folder.place and not folder.pictures:
            reasons = "; ".join(f"{path.name}: {reason}" for path, reason in findings.unreadable[:5])
            raise DataError(
                f"{KEY}: none of the pictures of {folder.place}, {short(folder.path)}, can be read ({reasons}).",
                remedy=f"Pictures must be intact files of these kinds: {_kinds()}.",
            )
    if not any(not folder.regularisation for folder in folders):
        raise DataError(
            f"{KEY}: all folders are of regularisation pictures, so there is nothing to learn.",
            remedy="Add the folder with the pictures to learn, without is_reg.",
        )
    subsets = [dataset.subsets for dataset in datasets_of(config)]
    if subsets and all(subsets[each.dataset][each.subset].diff_output_preservation for each in folders):
        raise DataError(
            f"{KEY}: all pictures are to stay as the base model has them, so there is nothing to learn.",
            remedy="Say diff_output_preservation only of the folders that are not to be learned.",
        )
    samples = sum(folder.count for folder in folders if not folder.regularisation)
    if samples > MOST_SAMPLES:
        largest = max(folders, key=lambda folder: folder.count)
        key = KEY if largest.place else _TRAINING
        raise DataError(
            f"{key}: pictures times repeats are {samples:,} samples an epoch; {MOST_SAMPLES:,} are the most.",
            remedy=f"Give {short(largest.path)} fewer than its {largest.repeats:,} repeats, and train more epochs.",
        )


def _nothing_found(
    key: str, root: Path, findings: Findings, inside: Sequence[Listing], below: Sequence[Listing]
) -> ConfigError | DataError:
    """Return the refusal of a folder without pictures: what was looked for, where, and what was there instead."""
    place = root.resolve()
    what = f"no pictures in {place} or in its numbered subfolders. Looked for {_kinds()}."
    what += "".join(f" {line}" for line in left_out(findings.unreadable))
    likely = _likely(key, place, below)
    if likely:
        folder, count = likely
        message = f"{what} {folder} has {pictures(count)} in numbered folders: choose that."
        return ConfigError([Problem(key, message, str(root), {key: str(folder)})])
    unnumbered = [each.path.name for each in inside if each.pictures]
    if unnumbered:
        name = f"10_{_class_of(unnumbered[0])}"
        what += f" There are pictures in {listed(unnumbered)}: rename to '{name}', or choose it directly."
    elif below:
        what += f" {lie_deeper(place, [replace(each, path=each.path.resolve()) for each in below])}"
    elif split_name(place.name):
        what += f" '{place.name}' looks like one of the numbered folders: choose the folder that holds it."
    elif not any(os.scandir(root)):
        what += " It is empty: if it belongs to another drive, see that the drive is there."
    return DataError(f"{key}: {what}", remedy=f"{_LAYOUT}.")


def _likely(key: str, root: Path, below: Iterable[Listing]) -> tuple[Path, int] | None:
    """Return the folder that was meant, which holds numbered folders with pictures, and how many there are.

    That is one below the chosen one, as `img` is in kohya's project folder (img, log, model, reg), or `img` beside it.
    """
    beside = root.parent / _PROJECT_PICTURES[key]
    if not below and beside.is_dir() and beside != root:
        below = [listing(beside / name) for name in listing(beside).folders]
    counts: Counter[Path] = Counter()
    for each in below:
        if (split_name(each.path.name) or (0, ""))[0] >= 1:
            counts[each.path.resolve().parent] += len(each.pictures)
    named = [path for path in counts if path.name == _PROJECT_PICTURES[key]]
    others = [path for path in counts if path.name not in _PROJECT_PICTURES.values()]
    found = max(named or others, key=counts.__getitem__, default=None)
    return (found, counts[found]) if found and counts[found] else None


def _kinds() -> str:
    return " ".join(EXTENSIONS)
