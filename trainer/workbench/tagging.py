"""Taggers of the WD14 kind: an ONNX network that gives a number to each tag of a list.

Pictures are prepared as SmilingWolf's own program for these models does (wd-tagger, app.py): on white, padded to a
square, scaled with BICUBIC to the network's side, 448 pixels, and given as BGR from 0 to 255 in the order height,
width, channel.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray
from PIL import Image

from trainer.families.reading.hub import snapshot
from trainer.ground.control import Progress
from trainer.ground.errors import ConfigError, ModelError, Problem
from trainer.ground.paths import MOST_RECORD, read_text
from trainer.workbench.captioners import CaptionerSettings
from trainer.workbench.texts import folded

MODEL_FILE, TAGS_FILE = "model.onnx", "selected_tags.csv"

RATING, GENERAL, CHARACTER = 9, 0, 4
"""Categories in the list of tags."""

_SHORTEST_SPACED = 4
"""Shorter tags are drawn faces such as ^_^, which keep their underscores."""

_ERRORS = (
    *("EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "ModelLoaded", "NoModel"),
    *("NoSuchFile", "NotImplemented", "RuntimeException"),
)
"""What onnxruntime raises."""


@dataclass(frozen=True)
class TaggerSettings(CaptionerSettings):
    """A tagger: `model` is a folder with model.onnx and selected_tags.csv, or a name on the hub.

    Tags whose number reaches the threshold of their kind are taken, characters first, then by number; `unwanted` ones
    are not. With `underscores` they are written as in the list, else with blanks. `rating` adds the likeliest rating.
    """

    model: str
    general_threshold: float = 0.35
    character_threshold: float = 0.85
    unwanted: tuple[str, ...] = ()
    underscores: bool = False
    rating: bool = False
    device: str = "auto"
    batch_size: int = 1
    title = "the tagger"

    def __post_init__(self) -> None:
        problems = [
            Problem(key, f"is {value}; it must be from 0 to 1.", value)
            for key in ("general_threshold", "character_threshold")
            if not (isinstance(value := getattr(self, key), int | float) and math.isfinite(value) and 0 <= value <= 1)
        ]
        if not 1 <= self.batch_size <= 256:
            problems.append(Problem("batch_size", f"is {self.batch_size}; it must be from 1 to 256.", self.batch_size))
        if problems:
            raise ConfigError(problems)

    def missing_extra(self) -> str:
        if find_spec("onnxruntime"):
            return ""
        return "Taggers need the package onnxruntime. Run: pip install onnxruntime"

    def load(self, device: str, progress: Progress | None = None) -> Tagger:
        """Load the network, and from the hub where it is not here."""
        folder = Path(self.model)
        if not folder.exists():
            folder = snapshot(self.model, [MODEL_FILE, TAGS_FILE], progress)
        file = folder if folder.is_file() else folder / MODEL_FILE
        return Tagger(self, _session(file, device), read_tags(file.with_name(TAGS_FILE)))


@dataclass(frozen=True, slots=True)
class Tag:
    """One tag of a list: its name as it is written there, and its category."""

    name: str
    category: int


def read_tags(path: Path) -> tuple[Tag, ...]:
    """Return the tags of a selected_tags.csv, in the order of the network's numbers.

    Raises:
        ModelError: it is not there, or has no columns name and category.
    """
    try:
        rows = csv.DictReader(io.StringIO(read_text(path, MOST_RECORD)))
        found = tuple(Tag(row["name"], int(row["category"])) for row in rows)
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(
            f"The tagger's list of tags, {path}, cannot be read: {reason}.",
            f"Put the model's {TAGS_FILE}, with the columns name and category, beside its {MODEL_FILE}.",
        ) from error
    if not found:
        raise ModelError(f"The tagger's list of tags, {path}, is empty.", "Download it again.")
    return found


def _session(path: Path, device: str) -> Any:
    """Return the loaded network.

    Raises:
        ModelError: the file is not there or is no network.
    """
    import onnxruntime

    if not path.is_file():
        raise ModelError(f"There is no {path.name} in {path.parent}.", "Choose the folder of a WD14 tagger.")
    there = onnxruntime.get_available_providers()
    wanted = [each for each in ("CUDAExecutionProvider",) if device == "cuda" and each in there]
    try:
        return onnxruntime.InferenceSession(str(path), providers=[*wanted, "CPUExecutionProvider"])
    except errors() as error:
        reason = str(error).splitlines()[0][:300]
        raise ModelError(f"The tagger {path} cannot be loaded: {reason}", "Download it again.") from error


def errors() -> tuple[type[BaseException], ...]:
    """Return what onnxruntime raises where a network is damaged or does not fit what it is given."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return tuple(getattr(state, name) for name in _ERRORS if hasattr(state, name))


class Tagger:
    """A loaded tagger.

    Raises:
        ModelError: the network takes or gives something else than a WD14 tagger.
    """

    def __init__(self, settings: TaggerSettings, session: Any, tags: Sequence[Tag]) -> None:
        self._settings, self._session, self._tags = settings, session, tags
        inputs, outputs = session.get_inputs(), session.get_outputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or shape[3] != 3 or not isinstance(shape[1], int):
            raise ModelError(
                f"{settings.model} takes {shape}; a WD14 tagger takes pictures as [number, side, side, 3].",
                "Choose another model.",
            )
        last = outputs[0].shape[-1]
        if isinstance(last, int) and last != len(tags):
            raise ModelError(
                f"{settings.model} gives {last} numbers, but its list has {len(tags)} tags.", "Download both again."
            )
        self._input, self._output = inputs[0].name, outputs[0].name
        self.side = int(shape[1])
        self.batch = 1 if isinstance(shape[0], int) else settings.batch_size
        self._unwanted = {folded(tag.replace("_", " ")) for tag in settings.unwanted}

    def scores(self, images: Sequence[Image.Image]) -> NDArray[numpy.float32]:
        """Return a number from 0 to 1 for each tag of each picture: float32 [pictures, tags].

        Raises:
            ModelError: the network cannot work on them.
        """
        given = numpy.stack([prepared(image, self.side) for image in images])
        try:
            (found,) = self._session.run([self._output], {self._input: given})
        except errors() as error:
            reason = str(error).splitlines()[0][:300]
            raise ModelError(f"{self._settings.model} cannot work on a picture: {reason}") from error
        return numpy.asarray(found, dtype=numpy.float32)

    def texts(self, images: Sequence[Image.Image]) -> list[str]:
        """Return the tags of each picture, with ", " between them."""
        return [", ".join(self._chosen(scores)) for scores in self.scores(images)]

    def _chosen(self, scores: NDArray[numpy.float32]) -> list[str]:
        settings = self._settings
        # As many bits as the scores have: 0.35 is then reached by 0.35.
        least = {
            GENERAL: numpy.float32(settings.general_threshold),
            CHARACTER: numpy.float32(settings.character_threshold),
        }
        found: list[tuple[bool, float, str]] = []
        ratings: list[tuple[float, str]] = []
        for tag, score in zip(self._tags, scores, strict=True):
            if tag.category == RATING:
                ratings.append((float(score), tag.name))
            elif tag.category in least and score >= least[tag.category]:
                found.append((tag.category != CHARACTER, -float(score), tag.name))
        names = [name for _, _, name in sorted(found)]
        if settings.rating and ratings:
            names.append(max(ratings)[1])
        wanted = [name for name in names if folded(name.replace("_", " ")) not in self._unwanted]
        return wanted if settings.underscores else [spaced(name) for name in wanted]


def spaced(name: str) -> str:
    """Return a tag with blanks for underscores, unless it is a drawn face."""
    return name.replace("_", " ") if len(name) >= _SHORTEST_SPACED else name


def prepared(image: Image.Image, side: int) -> NDArray[numpy.float32]:
    """Return a picture in mode RGB as the network takes it: float32 [side, side, 3], BGR from 0 to 255."""
    longer = max(image.size)
    square = Image.new("RGB", (longer, longer), (255, 255, 255))
    square.paste(image, ((longer - image.width) // 2, (longer - image.height) // 2))
    if longer != side:
        square = square.resize((side, side), Image.Resampling.BICUBIC)
    return numpy.ascontiguousarray(numpy.asarray(square, dtype=numpy.float32)[:, :, ::-1])
