"""Captions written by models: which kinds there are, and how pictures go through one, on a device that is held for it.

Nothing is written: what comes of it is a preview, as of any other change of captions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from trainer.gate import Gate
from trainer.ground.control import Progress
from trainer.ground.errors import ConfigError, DataError, ModelError, Problem, Stopped
from trainer.pictures.decoding import decoded, to_rgb
from trainer.workbench.album import Entry, caption_of
from trainer.workbench.changes import Preview, preview_texts
from trainer.workbench.texts import body_of, folded, tags_of

if TYPE_CHECKING:
    from PIL import Image

CAPTIONING = "captioning pictures"

REPLACE, APPEND, MISSING = "replace", "append", "missing"
MODES = (REPLACE, APPEND, MISSING)
"""What becomes of captions that are there: replaced, added to, or their pictures passed over."""

DEVICES = ("auto", "cpu", "cuda")


class Captioner(Protocol):
    """A loaded model. `batch` pictures go through it at once."""

    batch: int

    def texts(self, images: Sequence[Image.Image]) -> list[str]:
        """Return a caption for each picture, in mode RGB.

        Raises:
            ModelError: the model cannot work on them.
        """


class CaptionerSettings(ABC):
    """What a captioner is told; a kind of captioner is one class of these."""

    title: str
    model: str
    device: str

    @abstractmethod
    def missing_extra(self) -> str:
        """Return which package is missing and how to install it, "" where none is."""

    @abstractmethod
    def load(self, device: str, progress: Progress | None = None) -> Captioner:
        """Load the model for "cpu" or "cuda".

        Raises:
            ModelError: it is not there, is damaged, or is of another kind.
        """


def caption_pictures(
    entries: Sequence[Entry],
    settings: CaptionerSettings,
    *,
    mode: str = REPLACE,
    by: str = "started at the terminal",
    progress: Progress | None = None,
) -> Preview:
    """Return what a captioner says of pictures, as changes of their captions. Nothing is written.

    Stopped in the middle, it returns what there is by then. Pictures that cannot be read are refused by name.

    Raises:
        ConfigError: there is no such mode or device, or no model is named.
        ModelError: a package is missing, or the model cannot be used.
        StateError: somebody else has the device.
        Stopped: raised by `progress(phase, done, total)` before the first picture was captioned.
    """
    if mode not in MODES:
        raise ConfigError([Problem("mode", f"is {mode!r}; choose {', '.join(MODES)}.", mode)])
    if not settings.model.strip():
        raise ConfigError([Problem("model", "is not set; name a folder or a model of the hub.", settings.model)])
    if missing := settings.missing_extra():
        raise ModelError(missing)
    wanted, refused = _wanted(entries, mode)
    texts: dict[Entry, str] = {}
    with held(settings.device, settings.title, by) as device:
        captioner = settings.load(device, progress)
        try:
            for done, group in _groups(wanted, captioner.batch):
                if progress:
                    progress(CAPTIONING, done, len(wanted))
                _caption(group, captioner, texts, refused)
        except Stopped:
            if not texts:
                raise
    if progress and len(texts) + len(refused) >= len(wanted):
        progress(CAPTIONING, len(wanted), len(wanted))
    if mode == APPEND:
        texts = {entry: _appended(entry, text) for entry, text in texts.items()}
    count = "" if len(texts) == len(wanted) else f", {len(texts)} of {len(wanted)}"
    planned = preview_texts(f"captions by {settings.title}{count}", texts)
    return Preview(planned.title, planned.changes, planned.unchanged, (*planned.refused, *refused))


def _wanted(entries: Sequence[Entry], mode: str) -> tuple[list[Entry], list[tuple[Path, str]]]:
    """Return the pictures to caption, and (caption, why) of those whose captions cannot be read."""
    wanted, refused = [], []
    for entry in entries:
        try:
            if mode != MISSING or not caption_of(entry).strip():
                wanted.append(entry)
        except DataError as error:
            refused.append((entry.caption, str(error)))
    return wanted, refused


def _groups(entries: Sequence[Entry], size: int) -> Iterator[tuple[int, Sequence[Entry]]]:
    for start in range(0, len(entries), size):
        yield start, entries[start : start + size]


def _caption(
    group: Sequence[Entry], captioner: Captioner, texts: dict[Entry, str], refused: list[tuple[Path, str]]
) -> None:
    """Caption a few pictures; those that cannot be read are refused."""
    images, readable = [], []
    for entry in group:
        try:
            images.append(decoded(entry.picture, to_rgb))
            readable.append(entry)
        except DataError as error:
            refused.append((entry.caption, str(error)))
    if images:
        texts |= dict(zip(readable, captioner.texts(images), strict=True))


def _appended(entry: Entry, text: str) -> str:
    """Return a caption with what is new of a text behind it."""
    try:
        before = body_of(caption_of(entry))
    except DataError:
        return text
    there = {folded(tag) for tag in tags_of(before)}
    new = [tag for tag in tags_of(text) if folded(tag) not in there]
    return ", ".join([*([before] if before.strip() else []), *new])


@contextmanager
def held(wanted: str, what: str, by: str) -> Iterator[str]:
    """Hold the device that is wanted, and yield its name, "cpu" or "cuda".

    Raises:
        ConfigError: there is no such device.
        StateError: another has it.
    """
    if wanted not in DEVICES:
        raise ConfigError([Problem("device", f"is {wanted!r}; choose {', '.join(DEVICES)}.", wanted)])
    name, gate = load(wanted, what, by)
    gate.take()
    try:
        yield name
    finally:
        gate.leave()


def load(wanted: str, what: str, by: str) -> tuple[str, Gate]:
    """Return the device's name for torch, and its gate.

    Raises:
        ConfigError: PyTorch finds no such device.
    """
    import torch

    from trainer.training.device import gate_of

    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError([Problem("device", "is cuda, and PyTorch finds no such GPU here; leave it out.", wanted)])
    name = "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
    return name, gate_of(torch.device(name), what, by)
