"""Read what a model file says of itself, and write it anew with other words."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from PIL import Image, ImageOps

from trainer.adapters import read_header
from trainer.ground.errors import ConfigError, ModelError, Problem
from trainer.ground.paths import open_regular
from trainer.settings.section import Show, argument
from trainer.tools.asking import about, check_room, check_target, refusal
from trainer.tools.models import table_of
from trainer.tools.tool import COMPLETED, Arguments, Desk, Tool

_EDITED = ("metadata_title", "metadata_author", "metadata_description", "metadata_license", "metadata_tags")
_THUMBNAIL = "modelspec.thumbnail"
_SIDE, _QUALITY = 512, 85
_MOST_PICTURE = 256 << 20
_LONGEST = 2000
"""Characters of an entry that are shown; pictures and lists of tags can have millions."""


class MetadataArguments(Arguments):
    """Which file, and what it is to say. Names are those of the settings, and of sd-scripts'."""

    file: str = argument(..., Show("File", widget="file"))
    """A LoRA or a checkpoint, a .safetensors file. Without any other argument its metadata are told."""

    save_to: str = argument("", Show("Save to", widget="file"))
    """The .safetensors file to write with the new words."""

    metadata_title: str = argument("", Show("Title"))
    """The title, as modelspec.title; left out, that of the file stays, and so for all others."""

    metadata_author: str = argument("", Show("Author"))
    """Who made it."""

    metadata_description: str = argument("", Show("Description", widget="multiline"))
    """What it is."""

    metadata_license: str = argument("", Show("License"))
    """Under which license it may be used."""

    metadata_tags: str = argument("", Show("Tags"))
    """Tags, with commas between them."""

    thumbnail: str = argument("", Show("Thumbnail", widget="picture"))
    """A picture; it is made small and put into the file."""

    overwrite: bool = argument(False, Show("Overwrite"))
    """Replace the file to write where there is one."""


class Metadata(Tool[MetadataArguments]):
    """Prints JSON; entries of more than 2,000 characters are cut. What is written keeps every weight, byte for byte.

    The hashes that web UIs know LoRA files by, and ModelSpec's, are made anew.
    """

    name = "metadata"
    title = "Metadata"
    help = "read a model file's metadata, or write it with another title, author, tags or thumbnail"
    arguments = MetadataArguments
    positional = {"file": "FILE"}
    on_page = True

    def run(self, arguments: MetadataArguments, desk: Desk) -> int:
        path = Path(arguments.file)
        with about("file", arguments.file):
            table = table_of(path)
        edits = _edits(arguments)
        if not edits and not arguments.save_to:
            desk.say(json.dumps(_shown(table.metadata), indent=1, ensure_ascii=False))
            return COMPLETED
        if not edits:
            raise ConfigError([Problem("save_to", "goes together with something to change; give a title, or tags.")])
        if not arguments.save_to:
            raise ConfigError([Problem("save_to", "is not given; name the file to write.")])
        target = check_target(desk, arguments.save_to, [arguments.file], arguments.overwrite)
        check_room(target, path.stat().st_size)
        if arguments.thumbnail:
            edits[_THUMBNAIL] = _thumbnail(arguments.thumbnail)
        size = self.load().renewed(path, target, {**table.metadata, **edits}, is_lora(path), desk.progress())
        desk.wrote(target)
        desk.say(f"{target}: {size / 1e6:,.1f} MB with {', '.join(edits)}")
        return COMPLETED

    @staticmethod
    def load() -> ModuleType:
        """Import what needs torch."""
        from trainer.tools import renewing

        return renewing


def is_lora(path: Path) -> bool:
    """Say whether a file is a LoRA's, of a kind that is known."""
    try:
        read_header(path)
    except ModelError:
        return False
    return True


def _edits(arguments: MetadataArguments) -> dict[str, str]:
    """Return the entries that are to be other ones; the thumbnail's is empty so far."""
    given = {f"modelspec.{key.removeprefix('metadata_')}": getattr(arguments, key) for key in _EDITED}
    return {key: text for key, text in given.items() if text} | ({_THUMBNAIL: ""} if arguments.thumbnail else {})


def _shown(metadata: Mapping[str, str]) -> dict[str, object]:
    return {key: _opened(value) for key, value in sorted(metadata.items())}


def _opened(value: str) -> object:
    """Return an entry as a person reads it: JSON opened, what is long cut."""
    if len(value) > _LONGEST:
        return f"{value[:60]}... ({len(value):,} characters)"
    if value[:1] in "{[":
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _thumbnail(source: str) -> str:
    """Return a picture as a data URI of a small JPEG, as ModelSpec has it.

    Raises:
        ConfigError: it is no picture.
    """
    try:
        with open_regular(source, _MOST_PICTURE) as file, Image.open(file) as picture:
            turned = ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise refusal("thumbnail", source, f"it is no picture that can be read ({error})") from error
    turned.thumbnail((_SIDE, _SIDE))
    content = io.BytesIO()
    turned.save(content, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
