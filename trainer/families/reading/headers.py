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
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from trainer.families.reading.pickles import UNPICKLING_ERRORS, InertUnpickler, Tensor
from trainer.ground.errors import ModelError
from trainer.ground.paths import MISSING, open_regular
from trainer.ground.safetensors_header import LONGEST_NAME, HeaderError, read_table

CONFIGS_ENTRY = "component_configs"
"""Metadata entry (in a pickle: top-level entry) with the JSON of the component configurations of a checkpoint."""

SAFETENSORS = "safetensors"
PICKLE = "pickle"

_MOST_PICKLE_BYTES = 3 << 20
"""The lists of weights of the largest models stay below a megabyte; a longer one would only cost time and memory."""

_START = 8
_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_NO_MODELS = {
    b"\x89PNG\r\n\x1a\n": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"RIFF": "a WebP picture, or a sound or film",
    b"BM": "a BMP picture",
    b"%PDF": "a PDF document",
    b"<!DOCTYP": "a web page, such as a download's sign-in,",
    b"<!doctyp": "a web page, such as a download's sign-in,",
    b"<html": "a web page, such as a download's sign-in,",
    b"GGUF": "a GGUF file, made for drawing,",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"version ": "the place of a file that Git LFS has not fetched",
}
"""What else is chosen as a model, by its first bytes."""
_LEGACY_PICKLES_BEFORE_DATA = 3
"""Before PyTorch 1.6 a file began with three pickles (magic number, protocol, system) ahead of the weights."""

_PRECISIONS = {
    "F32": "fp32", "F16": "fp16", "BF16": "bf16", "F64": "fp64", "F8_E4M3": "fp8", "F8_E5M2": "fp8",
    "Float": "fp32", "Half": "fp16", "BFloat16": "bf16", "Double": "fp64",
}  # fmt: skip
"""The common names of dtypes, from those of safetensors and of PyTorch's storages."""

_SAFE_DOWNLOAD = "Copy or download the file again."


@dataclass(frozen=True, slots=True)
class Header:
    """Names and shapes of the tensors of one file, its text metadata, and the container it is in.

    `precision` is the dtype that most numbers of the file have: "fp32", "fp16", "bf16", "fp8", ... `name` is the
    file's.
    """

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    container: str
    precision: str = ""
    name: str = ""

    def has(self, *prefixes: str) -> bool:
        """True when a tensor's name begins with one of `prefixes`."""
        return any(name.startswith(prefixes) for name in self.shapes)

    def ends(self, *suffixes: str) -> bool:
        """True when a tensor's name ends with one of `suffixes`."""
        return any(name.endswith(suffixes) for name in self.shapes)


def read_model_header(path: Path) -> Header:
    """Read the header of a safetensors file or of a PyTorch pickle.

    Raises:
        ModelError: the file is missing, empty, cut short, damaged, or neither of the two.
    """
    with _opened(path) as file:
        start = file.read(_START)
        file.seek(0)
        if other := next((what for magic, what in _NO_MODELS.items() if start.startswith(magic)), ""):
            raise ModelError(f"{path} is {other} and no model.", "Choose a .safetensors or .ckpt file.")
        if start.startswith(_ZIP_MAGIC):
            return _read_zip(path, file)
        if _is_legacy_pickle(start):
            return _read_legacy_pickle(path, file)
        return _read_safetensors(path, file, path.stat().st_size)


def container_of(path: Path) -> str:
    """Say which container a model file is in, by its first bytes.

    Raises:
        ModelError: there is no such file, or it cannot be read.
    """
    with _opened(path) as file:
        start = file.read(_START)
    return PICKLE if start.startswith(_ZIP_MAGIC) or _is_legacy_pickle(start) else SAFETENSORS


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with open_regular(path) as file:
            yield file
    except MISSING as error:
        where = "" if Path(path).is_absolute() else f" It is looked for in the folder {str(Path.cwd())!r}."
        raise ModelError(f"There is no model file at {path}.{where}", "Check the path.") from error
    except OSError as error:
        raise ModelError(
            f"The model file {path} cannot be read: {error.strerror or error}.", "Choose a .safetensors or .ckpt file."
        ) from error


def _is_legacy_pickle(start: bytes) -> bool:
    return start.startswith(_PICKLE_MAGIC) and start[1:2] < b"\x06"


def _damaged(path: Path, what: str, cause: Exception | None = None) -> NoReturn:
    raise ModelError(f"The model file {path} is damaged: {what}.", _SAFE_DOWNLOAD) from cause


def _read_safetensors(path: Path, file: BinaryIO, size: int) -> Header:
    try:
        table = read_table(file, size)
    except HeaderError as error:
        _damaged(path, str(error), error)
    shapes = {name: entry.shape for name, entry in table.entries.items()}
    precision = _precision((entry.dtype, entry.shape) for entry in table.entries.values())
    return Header(shapes, table.metadata, SAFETENSORS, precision, path.name)


def _read_zip(path: Path, file: BinaryIO) -> Header:
    try:
        with zipfile.ZipFile(file) as archive:
            name = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
            if name is None:
                raise ModelError(
                    f"{path} is a zip archive and no model.", "Unpack it and choose the .safetensors or .ckpt inside."
                )
            if archive.getinfo(name).file_size > _MOST_PICKLE_BYTES:
                _damaged(path, "its list of weights is too long to be one")
            content = io.BytesIO(archive.read(name))
    # The last three: what zipfile raises for an entry that is compressed in another way, encrypted, or torn.
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, zlib.error) as error:
        _damaged(path, "the archive is cut short", error)
    return _header_of(path, content, before=0)


def _read_legacy_pickle(path: Path, file: BinaryIO) -> Header:
    return _header_of(path, io.BytesIO(file.read(_MOST_PICKLE_BYTES)), before=_LEGACY_PICKLES_BEFORE_DATA)


def _header_of(path: Path, stream: BinaryIO, before: int) -> Header:
    try:
        for _ in range(before):
            InertUnpickler(stream).load()
        content = InertUnpickler(stream).load()
    except UNPICKLING_ERRORS as error:
        _damaged(path, "its list of weights cannot be read", error)
    if not isinstance(content, dict):
        _damaged(path, "it holds no table of weights")
    weights = content.get("state_dict", content)
    if not isinstance(weights, dict):
        _damaged(path, "its entry state_dict is no table of weights")
    tensors = {str(name): value for name, value in weights.items() if isinstance(value, Tensor)}
    if any(len(name) > LONGEST_NAME for name in tensors):
        _damaged(path, "nothing in a model has so long a name as one of its weights")
    shapes = {name: value.shape for name, value in tensors.items()}
    precision = _precision((value.dtype, value.shape) for value in tensors.values())
    described = content.get(CONFIGS_ENTRY)
    metadata = {CONFIGS_ENTRY: described} if isinstance(described, str) else {}
    return Header(shapes, metadata, PICKLE, precision, path.name)


def _precision(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """Return the common name of the dtype that most numbers have; empty where there are none."""
    counts: Counter[str] = Counter()
    for dtype, shape in tensors:
        counts[dtype] += math.prod(shape)
    if not counts:
        return ""
    dtype = counts.most_common(1)[0][0]
    return _PRECISIONS.get(dtype, dtype.lower())


def described(path: Path, header: Header) -> dict[str, dict[str, Any]]:
    """Return the configurations of components that a file carries in its own header, by component; often none.

    Raises:
        ModelError: the entry is something else.
    """
    try:
        found = json.loads(header.metadata.get(CONFIGS_ENTRY, "{}"))
        if not isinstance(found, dict) or not all(isinstance(config, dict) for config in found.values()):
            raise TypeError("no table of tables")
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelError(
            f"The metadata entry {CONFIGS_ENTRY} of {path} is no table of configurations.", "Make the file again."
        ) from error
    return found
