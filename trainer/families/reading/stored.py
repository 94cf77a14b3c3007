"""The numbers of model files: read in parts, and converted part by part while they are at hand."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor

from trainer.ground.errors import ModelError
from trainer.ground.paths import open_regular
from trainer.ground.safetensors_header import Entry, HeaderError, read_table

PART = 1 << 20
"""Bytes that are read and converted at once: so few that they stay in a core's own memory in between."""

_SHAPES_ALONE = ContextVar("shapes_alone", default=False)

_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The dtypes of safetensors files that models have."""


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Within the context, weights are read as tensors on "meta": their shapes and dtypes, without a number."""
    token = _SHAPES_ALONE.set(True)
    try:
        yield
    finally:
        _SHAPES_ALONE.reset(token)


def only_shapes() -> bool:
    """Say whether this is within `shapes_alone`."""
    return _SHAPES_ALONE.get()


class SafeFile:
    """An open safetensors file, of which a tensor is read when it is asked for.

    Read, not mapped: the pages of a mapped file count as this process's memory, as much as the file has, and where
    another program makes the file shorter, the process is killed.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError or HeaderError."""
        self._file = open_regular(path)
        try:
            self._table = read_table(self._file, os.fstat(self._file.fileno()).st_size)
        except (OSError, HeaderError):
            self._file.close()
            raise
        self.metadata = self._table.metadata
        # Kept from one tensor to the next: what is freed between them leaves gaps that nothing fills.
        self._part = torch.empty(PART, dtype=torch.uint8)
        self._wide = torch.empty(PART // 2)

    def __enter__(self) -> SafeFile:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def keys(self) -> Iterable[str]:
        """Return the names of the tensors."""
        return self._table.entries.keys()

    def tensor(self, name: str, wanted: torch.dtype | None = None) -> Tensor:
        """Return a tensor, in memory of its own; without its numbers within `shapes_alone`.

        Args:
            wanted: the dtype that floats are converted to, with never more than a part of them in memory twice.

        Raises:
            ModelError: its bytes cannot be read, or are of a dtype that is not known.
        """
        entry = self._table.entries[name]
        stored = _DTYPES.get(entry.dtype)
        if stored is None:
            raise ModelError(f"The weight {name} is stored as {entry.dtype}, which is not read.")
        dtype = wanted if wanted and stored.is_floating_point else stored
        if only_shapes():
            return torch.empty(entry.shape, dtype=dtype, device="meta")
        try:
            self._file.seek(self._table.start + entry.begin)
            made = self._converted(entry, stored, dtype) if dtype != stored else self._bytes(entry).view(stored)
        except (OSError, EOFError) as error:
            raise unreadable([Path(self._file.name)], error) from error
        return made.view(entry.shape)

    def _bytes(self, entry: Entry) -> Tensor:
        made = torch.empty(entry.end - entry.begin, dtype=torch.uint8)
        self._read_into(made)
        return made

    def _converted(self, entry: Entry, stored: torch.dtype, dtype: torch.dtype) -> Tensor:
        count = (entry.end - entry.begin) // stored.itemsize
        made = torch.empty(count, dtype=dtype)
        for each in made.split(len(self._part) // stored.itemsize):
            part = self._part[: each.numel() * stored.itemsize]
            self._read_into(part)
            _convert(part.view(stored), each, self._wide)
        return made

    def _read_into(self, room: Tensor) -> None:
        count = self._file.readinto(room.numpy())  # type: ignore[attr-defined]
        if count != room.numel():
            raise EOFError("it became shorter while it was read")


def converted(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy in a dtype, contiguous."""
    if value.is_meta or not value.is_contiguous():
        return value.to(dtype, copy=True, memory_format=torch.contiguous_format)
    made = torch.empty_like(value, dtype=dtype)
    count, wide = PART // value.itemsize, torch.empty(PART // 2)
    for part, room in zip(value.view(-1).split(count), made.view(-1).split(count), strict=True):
        _convert(part, room, wide)
    return made


def _convert(part: Tensor, room: Tensor, wide: Tensor) -> None:
    """Write numbers into a room of another dtype.

    From float16 to bfloat16 by way of float32, which has all numbers of both: what comes out is the same, and PyTorch
    has vector instructions for either half of the way, for the whole none, which takes four times as long.

    Args:
        wide: float32, of as many numbers as a part can have; it is written over.
    """
    by_way = {part.dtype, room.dtype} == {torch.float16, torch.bfloat16}
    room.copy_(wide[: part.numel()].copy_(part) if by_way else part)


def unreadable(paths: Iterable[Path], error: Exception) -> ModelError:
    names = ", ".join(str(path) for path in paths)
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return ModelError(f"The model file {names} cannot be read: {reason}.", "Copy or download the file again.")
