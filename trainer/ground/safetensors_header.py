"""The header of a safetensors file, checked against the format and the file's size before anything in it is believed.

Eight bytes (little-endian length), a JSON table of that length, then the tensors' bytes, each once and without gaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO

MOST_HEADER_BYTES = 1 << 24
"""Headers of the largest models stay below a megabyte; a longer one would only cost time and memory."""

_PREFIX = 8
_METADATA = "__metadata__"
LONGEST_NAME = 512
"""Characters of the name of a tensor, or of an entry of the metadata; those of models have some hundred at most."""
_MOST_DIMENSIONS, _LARGEST_DIMENSION = 8, 1 << 40
_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
"""Bytes of a number; of a dtype that is not listed the size is not checked."""


class HeaderError(ValueError):
    """The text says what is wrong, as a clause that can follow "the file is damaged:"."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: its dtype in the format's words, its shape, and its bytes from `begin` to `end` within the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Table:
    """What a file says of itself. `start` is where the data begins."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    start: int


def read_table(file: BinaryIO, size: int) -> Table:
    """Return the table of the file of `size` bytes; it is read from its beginning.

    Raises:
        HeaderError: it is not a whole safetensors file.
    """
    if size < _PREFIX:
        raise HeaderError(f"it has {size} bytes and no header")
    file.seek(0)
    length = int.from_bytes(file.read(_PREFIX), "little")
    if length > MOST_HEADER_BYTES or _PREFIX + length > size:
        raise HeaderError("its header is cut short, or it is no safetensors file and no PyTorch checkpoint")
    try:
        document = json.loads(file.read(length))
        metadata = _texts(document.pop(_METADATA, None) or {})
        _check_names((*document, *metadata))
        entries = {name: _entry(record) for name, record in document.items()}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise HeaderError("its header is not that of a safetensors file") from error
    start = _PREFIX + length
    _check_places(entries.values(), size - start)
    return Table(entries, metadata, start)


def _check_names(names: Iterable[str]) -> None:
    if any(len(name) > LONGEST_NAME for name in names):
        raise ValueError("nothing has so long a name")


def _texts(metadata: Mapping[Any, Any]) -> dict[str, str]:
    if not all(isinstance(value, str) for value in metadata.values()):
        raise TypeError("metadata that is no text")
    return dict(metadata)


def _entry(record: Mapping[str, Any]) -> Entry:
    shape, (begin, end), dtype = tuple(record["shape"]), record["data_offsets"], record["dtype"]
    if not isinstance(dtype, str) or not all(type(number) is int for number in (begin, end, *shape)):
        raise TypeError("a number is expected")
    if len(shape) > _MOST_DIMENSIONS or not all(0 <= side <= _LARGEST_DIMENSION for side in shape):
        raise ValueError("no tensor has this shape")
    if dtype in _BYTES and math.prod(shape) * _BYTES[dtype] != end - begin:
        raise ValueError("the shape does not fit the bytes")
    return Entry(dtype, shape, begin, end)


def _check_places(entries: Iterable[Entry], available: int) -> None:
    """See that the tensors fill the data from its first byte to its last, each byte belonging to one."""
    places = sorted((entry.begin, entry.end) for entry in entries)
    end = places[-1][1] if places else 0
    if end != available:
        raise HeaderError(f"its header promises {end:,} bytes of weights and the file has {available:,}")
    if places and (places[0][0] != 0 or any(one[1] != other[0] for one, other in pairwise(places))):
        raise HeaderError("its header gives bytes to two tensors or to none")
