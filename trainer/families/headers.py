"""What a model file holds, read from its header: names, shapes and metadata, never the weights themselves.

Two containers are read, told apart by their first bytes and not by their suffix:

- safetensors: an 8-byte length, then JSON;
- PyTorch's pickles (`.ckpt`, `.pt`, `.bin`): the pickle is unpickled with every class replaced by an inert stand-in,
  so nothing in the file can run, and storages are not read.

Neither needs torch, and both take milliseconds.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from trainer.errors import ModelError

CONFIGS_ENTRY = "component_configs"
"""Metadata entry (in a pickle: top-level entry) with the JSON of the component configurations of a checkpoint."""

SAFETENSORS = "safetensors"
PICKLE = "pickle"

_MOST_HEADER_BYTES = 100_000_000
"""The limit that the safetensors library sets; also a bound for what a pickle may make us read."""

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_LEGACY_PICKLES_BEFORE_DATA = 3
"""Before PyTorch 1.6 a file began with three pickles (magic number, protocol, system) ahead of the weights."""

_TENSOR_BUILDERS = frozenset({"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_qtensor"})
_SAFE_DOWNLOAD = "Copy or download the file again."


@dataclass(frozen=True, slots=True)
class Header:
    """Names and shapes of the tensors of one file, its text metadata, and the container it is in."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    container: str

    def has(self, *prefixes: str) -> bool:
        """True when a tensor's name begins with one of `prefixes`."""
        return any(name.startswith(prefixes) for name in self.shapes)

    def ends(self, *suffixes: str) -> bool:
        """True when a tensor's name ends with one of `suffixes`."""
        return any(name.endswith(suffixes) for name in self.shapes)


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file or of a PyTorch pickle.

    Raises:
        ModelError: the file is missing, empty, cut short, damaged, or neither of the two.
    """
    if not path.is_file():
        raise ModelError(f"There is no model file at {path}.", "Check the path; it is relative to the working folder.")
    try:
        with path.open("rb") as file:
            start = file.read(8)
            file.seek(0)
            if start.startswith(_ZIP_MAGIC):
                return _read_zip(path, file)
            if start.startswith(_PICKLE_MAGIC) and start[1:2] < b"\x06":
                return _read_legacy_pickle(path, file)
            return _read_safetensors(path, file, path.stat().st_size)
    except OSError as error:
        raise ModelError(f"The model file {path} cannot be read ({error.strerror}).") from error


def _damaged(path: Path, what: str, cause: Exception | None = None) -> NoReturn:
    raise ModelError(f"The model file {path} is damaged: {what}.", _SAFE_DOWNLOAD) from cause


def _read_safetensors(path: Path, file: BinaryIO, size: int) -> Header:
    if size < struct.calcsize("<Q"):
        _damaged(path, f"it has {size} bytes and no header")
    (length,) = struct.unpack("<Q", file.read(8))
    if length > _MOST_HEADER_BYTES or 8 + length > size:
        _damaged(path, "its header is cut short, or it is no safetensors file and no PyTorch checkpoint")
    try:
        entries = json.loads(file.read(length))
        metadata = entries.pop("__metadata__", None) or {}
        shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        _damaged(path, "its header is not that of a safetensors file", error)
    if 8 + length + end != size:
        _damaged(path, f"its header promises {8 + length + end:,} bytes and the file has {size:,}")
    return Header(shapes, metadata, SAFETENSORS)


def _read_zip(path: Path, file: BinaryIO) -> Header:
    try:
        with zipfile.ZipFile(file) as archive:
            name = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
            if name is None:
                raise ModelError(
                    f"{path} is a zip archive and no model.", "Unpack it and choose the .safetensors or .ckpt inside."
                )
            if archive.getinfo(name).file_size > _MOST_HEADER_BYTES:
                _damaged(path, "its list of weights is too long to be one")
            content = io.BytesIO(archive.read(name))
    except (zipfile.BadZipFile, EOFError) as error:
        _damaged(path, "the archive is cut short", error)
    return _header_of(path, content, before=0)


def _read_legacy_pickle(path: Path, file: BinaryIO) -> Header:
    return _header_of(path, file, before=_LEGACY_PICKLES_BEFORE_DATA)


def _header_of(path: Path, stream: BinaryIO, before: int) -> Header:
    try:
        for _ in range(before):
            _InertUnpickler(stream).load()
        content = _InertUnpickler(stream).load()
    # A damaged pickle can fail in any of these ways; all of them mean the same to the user.
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        _damaged(path, "its list of weights cannot be read", error)
    if not isinstance(content, dict):
        _damaged(path, "it holds no table of weights")
    weights = content.get("state_dict", content)
    if not isinstance(weights, dict):
        _damaged(path, "its entry state_dict is no table of weights")
    shapes = {name: value.shape for name, value in weights.items() if isinstance(value, _Tensor)}
    described = content.get(CONFIGS_ENTRY)
    metadata = {CONFIGS_ENTRY: described} if isinstance(described, str) else {}
    return Header(shapes, metadata, PICKLE)


@dataclass(frozen=True, slots=True)
class _Tensor:
    shape: tuple[int, ...]


class Inert:
    """Stands in for every class and function that a pickle names: takes everything, does nothing."""

    def __new__(cls, *_: object, **__: object) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __call__(self, *_: object, **__: object) -> Inert:
        return self

    def __setstate__(self, _: object) -> None:
        pass

    def __setitem__(self, _: object, __: object) -> None:
        pass

    def append(self, _: object) -> None:
        """Take one item of a list."""

    def extend(self, _: object) -> None:
        """Take the items of a list."""


def _tensor(_storage: object, _offset: object, shape: tuple[int, ...], *_: object) -> _Tensor:
    return _Tensor(tuple(shape))


def _first(value: object, *_: object) -> object:
    """Stands for `torch._utils._rebuild_parameter`: a parameter is its tensor."""
    return value


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if module == "collections" and name == "OrderedDict":
            return OrderedDict
        if module == "torch._utils" and name in _TENSOR_BUILDERS:
            return _tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _first
        return Inert

    def persistent_load(self, _: object) -> None:
        """Storages stay where they are."""
