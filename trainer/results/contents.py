"""What a run rests on, by content: the files of its models, its pictures and captions. Torch-free.

Models are told from one another by a fingerprint: the length, the header and samples from all over a file, so that a
checkpoint of gigabytes takes a few milliseconds. Of pictures the record keeps length, time of change and the sha256 of
all bytes, which a thread finds out while the training goes on; a file is read again only where its time has changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from trainer.config import TrainingConfig, known_settings, to_flat
from trainer.families import cached_folder
from trainer.ground.files import sha256_of, write_text
from trainer.ground.paths import open_regular, read_json
from trainer.ground.safetensors_header import HeaderError, read_table
from trainer.pictures.report import DatasetReport, Picture

_WHOLE = 16 << 20
"""Bytes up to which a file is taken whole."""
_HEAD, _SAMPLE, _SAMPLES = 1 << 20, 1 << 16, 128
"""Bytes from behind a larger file's header; bytes and number of the samples after them."""
_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".json")
"""Files that a model's folder is made of."""

logger = logging.getLogger(__name__)


def fingerprint(path: Path) -> str:
    """Return what tells the content of a file, or of a model's folder, from any other; "" where there is none."""
    try:
        if not path.is_dir():
            return _of_file(path, *_state(path))
        files = sorted(each for each in path.rglob("*") if each.suffix.lower() in _ENDINGS and each.is_file())
        parts = [[str(each.relative_to(path)), _of_file(each, *_state(each))] for each in files]
    except OSError:
        return ""
    return hashlib.blake2b(json.dumps(parts).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _state(path: Path) -> tuple[int, int]:
    state = os.stat(path)
    return state.st_size, state.st_mtime_ns


@lru_cache(maxsize=256)
def _of_file(path: Path, size: int, changed: int) -> str:
    """Return the fingerprint of a file; its length and time make what is remembered of it true."""
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open_regular(path) as file:
        digest.update(_header(path, file, size))
        if size <= _WHOLE:
            digest.update(file.read(_WHOLE))
            return digest.hexdigest()
        digest.update(file.read(_HEAD))
        for number in range(_SAMPLES):
            file.seek(_HEAD + (size - _HEAD - _SAMPLE) * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def _header(path: Path, file: BinaryIO, size: int) -> bytes:
    """Read the header of a safetensors file and return it in one order; nothing is read of any other file.

    safetensors writes the texts of a file's metadata in another order each time, so that equal files differ in bytes.
    """
    if path.suffix.lower() != ".safetensors":
        return b""
    try:
        table = read_table(file, size)
    except HeaderError:
        file.seek(0)
        return b""
    tensors = {name: [entry.dtype, entry.begin, *entry.shape] for name, entry in table.entries.items()}
    return json.dumps([tensors, dict(table.metadata)], sort_keys=True).encode("utf-8", "surrogateescape")


def of_models(config: TrainingConfig) -> dict[str, str]:
    """Return {setting: fingerprint} of each file or folder that the settings name for a model."""
    settings = to_flat(config)
    named = {key: settings[key] for key, each in known_settings().items() if each.show.widget in ("file", "files")}
    found = {
        key: " ".join(map(_of_source, value if isinstance(value, list) else [value])) for key, value in named.items()
    }
    return {key: print_ for key, print_ in found.items() if print_}


def _of_source(source: object) -> str:
    """Return the fingerprint of what a setting names: a path, or a name on a hub; "" where there is none."""
    return fingerprint(cached_folder(str(source)) or Path(str(source))) if source else ""


@dataclass(frozen=True, slots=True)
class PictureContent:
    """One picture: bytes, time of its last change in nanoseconds, sha256 of its bytes, and of its caption.

    The former is empty where it was not found out. `said` is what pictures.json says of it, with its mask's sha256.
    """

    size: int
    changed: int
    sha256: str
    caption: str
    said: str = ""


@dataclass(frozen=True, slots=True)
class Changed:
    """Names of pictures whose bytes, of those whose captions, and of those whose remarks are other than they were."""

    pictures: tuple[str, ...]
    captions: tuple[str, ...]
    said: tuple[str, ...]


def _seen(picture: Picture) -> PictureContent:
    caption = hashlib.sha256(picture.caption.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return PictureContent(*_state(picture.path), "", caption, _said(picture))


def _said(picture: Picture) -> str:
    if picture.mask is None:
        return picture.said
    return f"{picture.said} {sha256_of(picture.mask)}"


def _pictures(report: DatasetReport) -> Iterator[Picture]:
    """Yield each picture file once; one that is in several datasets has all its different captions."""
    found: dict[Path, list[Picture]] = {}
    for folder in report.folders:
        for picture in folder.pictures:
            found.setdefault(picture.path, []).append(picture)
    for same in found.values():
        captions = dict.fromkeys(each.caption for each in same)
        yield replace(same[0], caption="\0".join(captions))


def read(path: Path) -> dict[str, PictureContent]:
    """Return {path of the picture: content} of a record; what cannot be read is not there."""
    try:
        return {name: PictureContent(**content) for name, content in read_json(path).items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def changed(before: Mapping[str, PictureContent], report: DatasetReport) -> Changed:
    """Compare the pictures that are there now with a record. Only those whose time has changed are read."""
    pictures, captions, said = [], [], []
    for picture in _pictures(report):
        old = before.get(str(picture.path))
        if old is None:
            continue
        try:
            now = _seen(picture)
            if _differs(old, now, picture.path):
                pictures.append(picture.path.name)
        except OSError:
            continue
        if old.caption != now.caption:
            captions.append(picture.path.name)
        if old.said != now.said:
            said.append(picture.path.name)
    return Changed(tuple(pictures), tuple(captions), tuple(said))


def _differs(old: PictureContent, now: PictureContent, path: Path) -> bool:
    if old.size != now.size:
        return True
    if old.changed == now.changed:
        return False
    # Not found out before the run was killed: that it was written to is all that is known.
    return not old.sha256 or sha256_of(path) != old.sha256


class Recorder:
    """Keeps the record of a run's pictures on a thread: at once what the system knows of them, then what is in them."""

    def __init__(self, path: Path, report: DatasetReport) -> None:
        self._path = path
        self._pictures = list(_pictures(report))
        self._found: dict[str, PictureContent] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="contents", daemon=True)

    def begin(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def _work(self) -> None:
        """Write the record with the checksums that are known from before, and again with the others."""
        before = read(self._path)
        for picture in self._pictures:
            try:
                now, old = _seen(picture), before.get(str(picture.path))
            except OSError:
                continue
            same = old is not None and (old.size, old.changed) == (now.size, now.changed)
            self._found[str(picture.path)] = replace(now, sha256=old.sha256) if same and old else now
        self._write()
        for name, content in list(self._found.items()):
            if self._ended.is_set():
                break
            if not content.sha256:
                self._found[name] = _with_checksum(Path(name), content)
        self._write()

    def _write(self) -> None:
        try:
            write_text(self._path, json.dumps({name: asdict(each) for name, each in self._found.items()}))
        except (OSError, UnicodeError) as error:
            logger.info("what the pictures hold is not remembered: %s", error)

    def end(self) -> None:
        """Leave the record as far as it has come."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()


def _with_checksum(path: Path, content: PictureContent) -> PictureContent:
    """Return the content with its checksum, unless the file was changed or is gone since it was looked at."""
    try:
        found = sha256_of(path)
        return replace(content, sha256=found) if _state(path) == (content.size, content.changed) else content
    except OSError:
        return content
