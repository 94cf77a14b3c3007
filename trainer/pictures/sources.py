"""Where pictures are said to be, before they are opened: a folder, or a file that lists pictures with captions."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.config import Dataset, Subset
from trainer.ground.errors import ConfigError, Problem
from trainer.ground.paths import MOST_RECORD, read_text
from trainer.pictures.findings import Findings, listed, pictures
from trainer.pictures.image_headers import EXTENSIONS
from trainer.pictures.listing import Listing, deeper, listing

KEY = "datasets"
_LINES = ".jsonl"


@dataclass(frozen=True, slots=True)
class Source:
    """A folder that was found to hold pictures, before these are opened.

    `files` are names of pictures in `path`, or whole paths; `names` all files beside them, by their own and their
    lower-case form. `captions` are texts by the name of the picture, None where they are in files of their own, which
    end in `extension`. `dataset` and `subset` are numbers from 0, `place` names them in messages. With `wildcards` any
    line of a caption is used.
    """

    path: Path
    repeats: int
    class_tokens: str
    regularisation: bool
    files: Sequence[str]
    names: Mapping[str, str]
    extension: str
    wildcards: bool
    captions: Mapping[str, str] | None = None
    name: str = ""
    dataset: int = 0
    subset: int = 0
    place: str = ""

    @property
    def title(self) -> str:
        """What it is called: its own name, else that of its folder, also where the path is "." or ends in ".."."""
        return self.name or self.path.name or self.path.resolve().name


def of_datasets(datasets: Sequence[Dataset], findings: Findings) -> list[Source]:
    """Return where the pictures of all subsets are.

    Raises:
        ConfigError: folders that do not exist, are empty or stand for two things, and lists that cannot be read; all of
            them at once.
    """
    problems: list[Problem] = []
    sources: list[Source] = []
    for number, dataset in enumerate(datasets):
        taken: dict[str, Subset] = {}
        for index, subset in enumerate(dataset.subsets):
            if subset.num_repeats == 0:
                _note(findings, f"{subset.place} is left out: its num_repeats is 0.")
                continue
            if _is_taken(subset, taken, findings, problems):
                continue
            found, problem = _source(subset, findings)
            problems += [problem] if problem and problem not in problems else []
            sources += [replace(found, dataset=number, subset=index)] if found else []
    if problems:
        raise ConfigError(problems)
    return sources


def _note(findings: Findings, notice: str) -> None:
    """Say something once, however many resolutions a dataset has."""
    if notice not in findings.notices:
        findings.notices.append(notice)


def _is_taken(subset: Subset, taken: dict[str, Subset], findings: Findings, problems: list[Problem]) -> bool:
    """Say whether an earlier subset of the dataset has the same folder or list, however its path is written."""
    named = subset.metadata_file or subset.image_dir
    first = taken.setdefault(os.path.realpath(named), subset)
    if first is subset or not named:
        return False
    if first.is_reg is subset.is_reg:
        _note(findings, f"{subset.place} has the same folder as {first.place}, {named}, which is used once, as there.")
    else:
        message = f"{subset.place}: {named} is {first.place} too, as pictures of the other kind; take one of them out."
        problems.append(Problem(KEY, message, named))
    return True


def _source(subset: Subset, findings: Findings) -> tuple[Source | None, Problem | None]:
    captions = subset.config.captions
    empty = Source(
        Path(subset.image_dir),
        subset.num_repeats,
        subset.class_tokens,
        subset.is_reg,
        (),
        {},
        captions.caption_extension,
        captions.enable_wildcard,
        place=subset.place,
    )
    try:
        return (_of_list(subset, empty) if subset.metadata_file else _of_folder(subset, empty, findings)), None
    except _Unusable as error:
        return None, Problem(KEY, f"{subset.place}: {error}", subset.metadata_file or subset.image_dir)


class _Unusable(Exception):
    """Why a subset cannot be used, and what to do."""


def _of_folder(subset: Subset, source: Source, findings: Findings) -> Source:
    path = subset.image_dir
    if not path:
        raise _Unusable("image_dir is not set; name the folder that holds its pictures.")
    if not os.path.isdir(path):
        what = "is a file, not a folder" if os.path.isfile(path) else "does not exist"
        raise _Unusable(f"image_dir {path!r} {what} (looked at {os.path.abspath(path)}); choose an existing folder.")
    found = findings.take(listing(Path(path)))
    below = list(deeper((found.path / name for name in found.folders), (found.path,)))
    if not found.pictures:
        raise _Unusable(_nothing_in(path, found, below))
    if below:
        where = listed([f"{each.path.name} ({len(each.pictures)})" for each in below])
        _note(findings, f"{path}: folders in it are not looked into: {where}. Give each a subset of its own.")
    return replace(source, files=found.pictures, names=found.names)


def _nothing_in(path: str, found: Listing, below: Sequence[Listing]) -> str:
    what = f"image_dir {path!r} holds no pictures; looked for {' '.join(EXTENSIONS)}."
    if found.left_out:
        what += f" Left out: {listed([each.name for each, _ in found.left_out])}."
    if below:
        where = listed([f"{each.path.name} ({pictures(len(each.pictures))})" for each in below])
        return f"{what} Folders in it are not looked into: {where}. Give each a subset of its own."
    return f"{what} Choose the folder that holds them."


def _of_list(subset: Subset, source: Source) -> Source:
    """Return the pictures that a metadata file lists.

    Raises:
        _Unusable: it cannot be read, lists nothing, or lists paths that nobody says where to look for.
    """
    path = Path(subset.metadata_file)
    try:
        text = read_text(path, MOST_RECORD)
        entries = dict(_lines(text) if path.suffix.lower() == _LINES else _object(text))
    except FileNotFoundError:
        message = f"(looked at {os.path.abspath(path)}); give the path of a .json or .jsonl file."
        raise _Unusable(f"metadata_file {str(path)!r} does not exist {message}") from None
    except (OSError, ValueError) as error:
        raise _Unusable(f"metadata_file {str(path)!r} cannot be read: {error}.") from None
    if not entries:
        raise _Unusable(f"metadata_file {str(path)!r} lists no pictures; leave the subset out, or set its num_repeats.")
    relative = [name for name in entries if not os.path.isabs(name)]
    if relative and not subset.image_dir:
        message = (
            f"lists pictures by paths that are not whole, such as {relative[0]!r}; name their folder as image_dir."
        )
        raise _Unusable(f"metadata_file {str(path)!r} {message}")
    separator, wildcards = subset.config.captions.caption_separator, source.wildcards
    captions = {name: _caption(entry, separator, wildcards, source.class_tokens) for name, entry in entries.items()}
    name = "" if subset.image_dir else path.name
    return replace(source, files=list(entries), captions=captions, name=name)


def _object(text: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield (path, entry) of {path: {"caption": ..., "tags": ...}}."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("it must be an object of pictures, each with caption and tags")
    for name, entry in found.items():
        if not isinstance(entry, dict):
            raise ValueError(f"the entry of {name!r} must be an object with caption and tags")
        yield name, entry


def _lines(text: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield (path, entry) of one object a line, with "image_path"; blank lines are passed over."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is not valid JSON: {error}") from None
        if not (isinstance(entry, dict) and isinstance(entry.get("image_path"), str)):
            raise ValueError(f"line {number} must be an object with image_path")
        yield entry["image_path"], entry


def _caption(entry: Mapping[str, object], separator: str, wildcards: bool, class_tokens: str) -> str:
    """Return caption and tags joined by the separator, as sd-scripts does; with wildcards, tags follow every line."""
    caption, tags = (str(entry.get(part) or "").strip() for part in ("caption", "tags"))
    lines = [line for part in caption.splitlines() if (line := part.strip())] or [""]
    if not caption and not tags:
        return class_tokens
    if wildcards:
        return "\n".join(_joined(line, tags, separator) for line in lines)
    return _joined("\n".join(lines), tags, separator)


def _joined(caption: str, tags: str, separator: str) -> str:
    return separator.join(part for part in (caption, tags) if part)
