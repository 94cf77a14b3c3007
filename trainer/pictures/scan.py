"""Finds the pictures and captions of a training: kohya's folder layout, headers only, in a fixed order.

    train_data_dir/10_tok class/*.png  *.txt        each picture 10 times an epoch, class token "tok class"
    reg_data_dir/1_class/*.png                      regularisation pictures
    train_data_dir/*.png                            a plain folder of pictures: once an epoch

Layout and counting are sd-scripts' (`library/config_util.py`, `library/train_util.py`). Folders are not searched
deeper than this, so links that lead in circles do no harm.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import PIL
from PIL import Image

from trainer.config import TrainingConfig
from trainer.ground.errors import ConfigError, DataError, Problem
from trainer.pictures.header_cache import WORTH, HeaderCache
from trainer.pictures.image_headers import EXTENSIONS, FOREIGN_EXTENSIONS, UNREADABLE, read_size
from trainer.pictures.report import DatasetReport, Folder, Picture

Progress = Callable[[str, int, int], None]

PHASE = "scanning pictures"

_REPEATS = re.compile(r"\s*(\d+)\s*(?:_(.*))?", re.DOTALL)
_FALLBACK_EXTENSION = {".caption": ".txt"}
_SIZES = f"sizes, Pillow {PIL.__version__}"
_NAMED = 20
"""A notice about many files names this many of them."""

_LAYOUT = "Pictures belong in subfolders named REPEATS_NAME, such as '10_mycat cat', or directly in the chosen folder"


@dataclass(slots=True)
class _Findings:
    """What there is to say about the pictures, gathered on the way."""

    notices: list[str] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    longer: list[str] = field(default_factory=list)
    other_extension: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Source:
    """A folder that was found to hold pictures, before these are opened."""

    path: Path
    repeats: int
    class_tokens: str
    regularisation: bool
    files: tuple[str, ...]
    names: dict[str, str]


def scan(config: TrainingConfig, progress: Progress | None = None) -> DatasetReport:
    """Return all pictures and captions that the dataset settings point at, in the order of their paths.

    Only headers are read, and of large folders only those of pictures that are new or changed since the last scan.
    Pictures that cannot be read are left out and named.

    Raises:
        ConfigError: a folder is not set or does not exist.
        DataError: a folder has no readable picture, or a caption is not UTF-8.
        Stopped: raised by `progress(phase, done, total)`.
    """
    findings = _Findings()
    sources = _sources(config, findings)
    total = sum(len(source.files) for source in sources)
    folders, done = [], 0
    for source in sources:
        pictures = []
        sizes = HeaderCache(_SIZES, source.path) if len(source.files) >= WORTH else None
        for name in source.files:
            if progress:
                progress(PHASE, done, total)
            pictures.append(_read_picture(source, name, config, findings, sizes))
            done += 1
        if sizes:
            sizes.save()
        folders.append(_folder(source, [picture for picture in pictures if picture]))
    if progress:
        progress(PHASE, done, total)
    _require_pictures(config, folders, findings)
    notices = (*findings.notices, *_summaries(findings, config.captions.enable_wildcard))
    return DatasetReport(
        folders=tuple(folder for folder in folders if folder.pictures),
        notices=notices,
        unreadable=tuple(findings.unreadable),
    )


def split_name(name: str) -> tuple[int, str] | None:
    """Return (repeats, class token) of a folder named N_class, or None where it is not named so.

    As with sd-scripts a bare number counts too, and everything after the first underscore is the class token.
    """
    match = _REPEATS.fullmatch(name)
    return (int(match[1]), (match[2] or "").strip()) if match else None


def _sources(config: TrainingConfig, findings: _Findings) -> list[_Source]:
    """Return the folders with pictures of both settings; every problem with the settings at once."""
    chosen = [("train_data_dir", config.dataset.train_data_dir, False)]
    if config.dataset.reg_data_dir:
        chosen.append(("reg_data_dir", config.dataset.reg_data_dir, True))
    problems = [problem for key, value, _ in chosen if (problem := _folder_problem(key, value))]
    if problems:
        raise ConfigError(problems)
    sources = []
    for key, value, regularisation in chosen:
        root = Path(value)
        found = _sources_below(root, regularisation, findings)
        if not found:
            raise _nothing_found(key, root, findings)
        sources += found
    return sources


def _folder_problem(key: str, value: str) -> Problem | None:
    if not value:
        return Problem(key, "is not set; name the folder that holds your pictures.", value)
    if not os.path.isdir(value):
        what = "is a file, not a folder" if os.path.isfile(value) else "does not exist"
        return Problem(key, f"{value!r} {what} (looked at {os.path.abspath(value)}); choose an existing folder.", value)
    try:
        os.scandir(value).close()
    except OSError as error:
        return Problem(key, f"{value!r} cannot be opened: {error.strerror}; change its permissions.", value)
    return None


def _sources_below(root: Path, regularisation: bool, findings: _Findings) -> list[_Source]:
    """Return the N_class folders below `root` that hold pictures; where there are none, `root` itself if it does."""
    sources, passed_over = [], []
    for path in _subfolders(root):
        files, names = _pictures_in(path, findings)
        if not files:
            continue
        repeats, class_tokens = split_name(path.name) or (0, "")
        if repeats >= 1:
            sources.append(_Source(path, repeats, class_tokens, regularisation, files, names))
        else:
            passed_over.append(path.name)
    files, names = _pictures_in(root, findings)
    if passed_over and (sources or files):
        rule = f"the name does not begin with repeats, as in '10_{passed_over[0]}'"
        findings.notices.append(f"{root}: not used, as {rule}: {_listed(passed_over)}.")
    if sources:
        if files:
            what = f"{_pictures(len(files))} beside the numbered subfolders"
            findings.notices.append(f"{root}: {what} not used: {_listed(files)}.")
        return sources
    return [_plain_source(root, regularisation, files, names, findings)] if files else []


def _plain_source(
    root: Path, regularisation: bool, files: tuple[str, ...], names: dict[str, str], findings: _Findings
) -> _Source:
    """Return a folder chosen directly: once an epoch, unless its own name says how often."""
    name = root.resolve().name
    repeats, class_tokens = split_name(name) or (0, "")
    if repeats >= 1:
        findings.notices.append(
            f"{root} is itself a numbered folder: its name gives {repeats} repeats and the class '{class_tokens}'. "
            "Choose the folder that holds it to train all numbered folders in there."
        )
        return _Source(root, repeats, class_tokens, regularisation, files, names)
    findings.notices.append(
        f"{root} is a plain folder of pictures: it counts as 1 repeat. For more, put them into a subfolder named "
        f"REPEATS_NAME, such as '10_{name}'."
    )
    return _Source(root, 1, name, regularisation, files, names)


def _subfolders(root: Path) -> list[Path]:
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    return [root / name for name in names if os.path.isdir(root / name)]


def _pictures_in(folder: Path, findings: _Findings) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the picture files in `folder`, sorted, and all its file names by their lower-case form."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and _is_file(entry))
    except OSError as error:
        findings.unreadable.append((folder, f"the folder cannot be opened: {error.strerror}"))
        return (), {}
    files = []
    for name in names:
        extension = os.path.splitext(name)[1].lower()
        if extension in EXTENSIONS:
            files.append(name)
        elif extension in FOREIGN_EXTENSIONS:
            findings.unreadable.append((folder / name, f"{extension} is not read; save it as png, jpg or webp"))
    return tuple(files), {name.lower(): name for name in names} | {name: name for name in names}


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Say whether an entry is a file, also by way of a link. One that cannot be asked is none."""
    try:
        return entry.is_file()
    except OSError:
        return False


def _read_picture(
    source: _Source, name: str, config: TrainingConfig, findings: _Findings, sizes: HeaderCache | None
) -> Picture | None:
    path = source.path / name
    try:
        state = os.stat(path)
        size = _size_in(sizes.get(name, state)) if sizes else None
        if size is None:
            size = read_size(path)
            if sizes:
                sizes.put(name, state, f"{size[0]}x{size[1]}")
    except UNREADABLE as error:
        findings.unreadable.append((path, _reason(path, error)))
        return None
    caption = _read_caption(source, name, config.captions.caption_extension, findings)
    return Picture(
        path=path,
        size=size,
        caption=source.class_tokens if caption is None else caption,
        bytes=state.st_size,
        caption_missing=caption is None,
    )


def _size_in(text: str | None) -> tuple[int, int] | None:
    """Return the width and height that are written as 64x48."""
    width, _, height = (text or "").partition("x")
    return (int(width), int(height)) if width.isdecimal() and height.isdecimal() else None


def _reason(path: Path, error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        if path.suffix.lower() == ".jxl":
            return "reading JPEG XL needs the package pillow-jxl-plugin"
        return "not a picture, or damaged" if path.stat().st_size else "the file is empty"
    return str(error) or type(error).__name__


def _read_caption(source: _Source, name: str, extension: str, findings: _Findings) -> str | None:
    """Return the caption's lines, stripped and without blank ones, or None where there is no caption file.

    Raises:
        DataError: the file is not UTF-8 or cannot be read.
    """
    stem = os.path.splitext(name)[0]
    extension = extension if extension.startswith(".") else f".{extension}"
    for candidate in (extension, _FALLBACK_EXTENSION.get(extension, ".caption")):
        found = source.names.get(stem + candidate) or source.names.get((stem + candidate).lower())
        if found:
            if candidate != extension:
                findings.other_extension.append(found)
            lines = _caption_lines(os.path.join(source.path, found))
            if not lines:
                findings.empty.append(found)
            elif len(lines) > 1:
                findings.longer.append(found)
            return "\n".join(lines)
    findings.missing.append(name)
    return None


def _caption_lines(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"caption_extension: the caption {path} is not UTF-8 text (byte {error.start} cannot be read).",
            remedy="Save it as UTF-8 in a text editor.",
        ) from error
    except OSError as error:
        raise DataError(
            f"caption_extension: the caption {path} cannot be read: {error.strerror}.",
            remedy="Check its permissions or remove it.",
        ) from error
    return [stripped for line in text.split("\n") if (stripped := line.strip())]


def _folder(source: _Source, pictures: list[Picture]) -> Folder:
    return Folder(
        path=source.path,
        name=source.path.name or source.path.resolve().name,
        repeats=source.repeats,
        class_tokens=source.class_tokens,
        regularisation=source.regularisation,
        pictures=tuple(pictures),
    )


def _require_pictures(config: TrainingConfig, folders: Sequence[Folder], findings: _Findings) -> None:
    """Refuse a setting none of whose pictures could be read."""
    for key, regularisation in (("train_data_dir", False), ("reg_data_dir", True)):
        here = [folder for folder in folders if folder.regularisation is regularisation]
        if here and not any(folder.pictures for folder in here):
            reasons = "; ".join(f"{path.name}: {reason}" for path, reason in findings.unreadable[:5])
            raise DataError(
                f"{key}: none of the pictures in {getattr(config.dataset, key)} can be read ({reasons}).",
                remedy=f"Pictures must be intact files of these kinds: {_kinds()}.",
            )


def _nothing_found(key: str, root: Path, findings: _Findings) -> DataError:
    """Return the refusal of a folder without pictures: what was looked for, where, and what was there instead."""
    hint = "".join(f" {path.name}: {reason}." for path, reason in findings.unreadable[:_NAMED])
    unnumbered = [path.name for path in _subfolders(root) if _pictures_in(path, _Findings())[0]]
    if unnumbered:
        hint += f" There are pictures in {_listed(unnumbered)}: rename to '10_{unnumbered[0]}', or choose it directly."
    elif split_name(root.resolve().name):
        hint += f" '{root.resolve().name}' looks like one of the numbered folders: choose the folder that holds it."
    return DataError(
        f"{key}: no pictures in {root.resolve()} or in its numbered subfolders. Looked for {_kinds()}.{hint}",
        remedy=f"{_LAYOUT}.",
    )


def _summaries(findings: _Findings, wildcards: bool) -> Iterator[str]:
    for path, reason in findings.unreadable[:_NAMED]:
        yield f"Left out {'/'.join(path.parts[-2:])}: {reason}."
    if len(findings.unreadable) > _NAMED:
        yield f"Left out {len(findings.unreadable) - _NAMED} more pictures; the dataset report names them."
    if findings.missing:
        count = _pictures(len(findings.missing))
        yield f"No caption for {count}, the folder's name is used: {_listed(findings.missing)}."
    if findings.empty:
        yield f"Empty captions, trained without a text: {_listed(findings.empty)}."
    if findings.longer and not wildcards:
        yield f"Only the first line is used (enable_wildcard picks any line) of: {_listed(findings.longer)}."
    if findings.other_extension:
        yield f"Captions with the other usual extension are used: {_listed(findings.other_extension)}."


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


def _kinds() -> str:
    return " ".join(EXTENSIONS)
