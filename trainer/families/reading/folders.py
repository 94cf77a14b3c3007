"""Whether a model holds what its configurations say: its files, and in them all weights, by their headers alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from trainer.families.reading.configs import read_json
from trainer.families.reading.headers import read_model_header
from trainer.families.reading.hub import weight_files
from trainer.ground.errors import ModelError

_INDEX = "*.index.json"
_COMPLETE = "Copy or download the model again, whole."
_NAMED = 3

LEVEL = "text_model."
"""A level of text encoders that transformers 5 dropped from some of them."""

Shapes = Mapping[str, tuple[int, ...]]
"""{name of a weight: its shape}. A linear layer may lie in a file as a 1x1 convolution, and the other way round."""


def component_folder(folder: Path, component: str) -> Path:
    """Return where a component lies in a folder that is a whole model or the component alone."""
    return folder / component if (folder / component).is_dir() else folder


def check_component(folder: Path, layouts: Iterable[Shapes]) -> str:
    """See that a component's weights are in its folder; return its precision.

    Args:
        layouts: its weights, under the names of each layout that is read. Those of text encoders may have "text_model."
            before them or not, here and there.

    Raises:
        ModelError: a file is missing or damaged, or a weight is missing or has another shape.
    """
    if not folder.is_dir():
        raise ModelError(f"The folder {folder.parent} has no {folder.name}.", _COMPLETE)
    files = weight_files(folder)
    _check_index(folder, files)
    read = [read_model_header(file) for file in files]
    found = {name.removeprefix(LEVEL): shape for header in read for name, shape in header.shapes.items()}
    plain = [{name.removeprefix(LEVEL): shape for name, shape in names.items()} for names in layouts]
    check_weights(str(folder), "its", found, plain)
    return read[0].precision


def check_weights(where: str, whose: str, found: Shapes, layouts: Iterable[Shapes]) -> None:
    """See that all weights of a component are there, in the shapes that its configuration says.

    Args:
        where: the file or folder, and `whose` weights they are, for errors: "its", "the UNet's".
        layouts: its weights, under the names of each layout that is read; nothing is looked for where there is none.

    Raises:
        ModelError: a weight is missing or has another shape.
    """
    expected = max(layouts, key=lambda names: sum(name in found for name in names), default={})
    missing = [name for name in expected if name not in found]
    if missing:
        raise ModelError(
            f"{where} lacks {len(missing)} of {whose} {len(expected)} weights: {_some(missing)}.", _COMPLETE
        )
    odd = [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if _without_kernel(found[name]) != _without_kernel(shape)
    ]
    if odd:
        raise ModelError(
            f"{where} has {len(odd)} of {whose} weights in another shape than its configuration says: {_some(odd)}.",
            "Its configuration and its weights are not of the same model; copy or download both again.",
        )


def _check_index(folder: Path, files: list[Path]) -> None:
    """See that every file is there that the index of such files names."""
    there = {file.name for file in files}
    for index in sorted(folder.glob(_INDEX)):
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise ModelError(f"{index} has no table weight_map of file names.", _COMPLETE)
        wanted = set(places.values())
        # An index may be of another form of the same weights, of which no file was fetched.
        if wanted & there and wanted - there:
            raise ModelError(
                f"{folder} lacks {len(wanted - there)} of its {len(wanted)} files: {_some(sorted(wanted - there))}.",
                _COMPLETE,
            )


def _without_kernel(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:-2] if len(shape) == 4 and shape[-2:] == (1, 1) else shape


def _some(names: list[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
