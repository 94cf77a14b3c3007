"""Tensors read one at a time from safetensors files, and such files written anew tensor by tensor.

Neither a whole file nor a copy of it is ever in memory, and nothing is memory-mapped: a file that is replaced while it
is read cannot take the program down.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from trainer.ground.errors import ModelError, RunError
from trainer.ground.files import replacing
from trainer.ground.paths import open_regular
from trainer.ground.safetensors_header import Entry, HeaderError, Table, read_table

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
"""The format's names of number formats -> torch's."""

NAMED = {"fp16": "F16", "bf16": "BF16", "float": "F32"}
"""`save_precision` -> the format's name."""

HASH_ENTRY = "modelspec.hash_sha256"
"""ModelSpec's entry: "0x" and SHA-256 over the tensors' bytes."""

_NO_HASH = "0x" + 64 * "0"
_CHUNK = 1 << 23

Change = Callable[[Tensor], Tensor]
"""From a weight, float32, to what takes its place."""


class TensorFile:
    """An open safetensors file. To be used in a `with` block."""

    def __init__(self, path: Path) -> None:
        """Open it and read its table. Raises ModelError where it cannot be read."""
        self.path = path
        try:
            self._file: BinaryIO = open_regular(path)
            self.table: Table = read_table(self._file, self._file.seek(0, 2))
        except (OSError, HeaderError) as error:
            raise _unreadable(path, error) from error

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def read(self, begin: int, length: int) -> bytearray:
        """Return so many bytes of the data from `begin` on. Raises ModelError where they are not there."""
        content = bytearray(length)
        try:
            self._file.seek(self.table.start + begin)
            got = self._file.readinto(content)  # type: ignore[attr-defined]
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if got != length:
            raise ModelError(f"{self.path.name} was cut short while it was read.", "Copy or download it again.")
        return content

    def tensor(self, name: str) -> Tensor:
        """Return a tensor in its own number format. Raises ModelError where it cannot be read."""
        entry = self.table.entries[name]
        if entry.dtype not in DTYPES:
            raise ModelError(f"{self.path.name}: {name} has numbers of the kind {entry.dtype}, which are not read.")
        content = self.read(entry.begin, entry.end - entry.begin)
        if not content:
            return torch.zeros(entry.shape, dtype=DTYPES[entry.dtype])
        return torch.frombuffer(content, dtype=DTYPES[entry.dtype]).reshape(entry.shape)


def rewrite(
    source: Path,
    target: Path,
    metadata: Mapping[str, str],
    changes: Mapping[str, Change],
    precision: str,
    report: Callable[[int], None],
) -> int:
    """Write a file anew with other metadata and some tensors changed, and return its size in bytes.

    Tensors keep their order and their number format, but for `precision`, where it is not "", for all that are of
    floating point. What was written is read back and compared before it takes the place of `target`. An entry of
    ModelSpec's with the hash of the weights is renewed.

    Args:
        changes: by a tensor's name.
        report: called with the bytes that are done; it may raise to end the writing, which leaves nothing behind.

    Raises:
        ModelError: the source cannot be read.
        RunError: a number gets too large for its format, or the file cannot be written.
    """
    with TensorFile(source) as file:
        entries = _places(file.table, precision)
        said = {**metadata, HASH_ENTRY: _NO_HASH} if HASH_ENTRY in metadata else dict(metadata)
        try:
            with replacing(target) as part:
                with open(part, "wb") as out:
                    out.write(head(said, entries))
                    written = _write(file, out, entries, changes, HASH_ENTRY in metadata, report)
                    if HASH_ENTRY in metadata:
                        out.seek(0)
                        out.write(head({**said, HASH_ENTRY: f"0x{written.digest}"}, entries))
                _compare(part, target, written)
                return part.stat().st_size
        except OSError as error:
            raise RunError(
                f"{target} can't be written: {error.strerror or error}.", "Free some space or choose another folder."
            ) from error


def head(metadata: Mapping[str, str], entries: Mapping[str, Entry]) -> bytes:
    """Return all that stands before a file's data, padded to eight bytes; metadata in the order of their names."""
    table: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    for name, entry in entries.items():
        place = [entry.begin, entry.end]
        table[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": place}
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class _Written:
    """A checksum, a hash where one is wanted, and the count of the data that was written."""

    def __init__(self, hashed: bool) -> None:
        self.size, self.sum = 0, 0
        self._hash = hashlib.sha256() if hashed else None

    def take(self, content: bytes | bytearray | memoryview) -> None:
        self.size += len(content)
        self.sum = zlib.crc32(content, self.sum)
        if self._hash:
            self._hash.update(content)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest() if self._hash else ""


def _places(table: Table, precision: str) -> dict[str, Entry]:
    """Return the tensors in the order of their data, one after the other."""
    found, begin = {}, 0
    for name, entry in sorted(table.entries.items(), key=lambda each: (each[1].begin, each[1].end)):
        dtype, size = entry.dtype, entry.end - entry.begin
        if precision and entry.dtype in DTYPES and DTYPES[entry.dtype].is_floating_point:
            dtype = NAMED[precision]
            size = size // DTYPES[entry.dtype].itemsize * DTYPES[dtype].itemsize
        found[name] = Entry(dtype, entry.shape, begin, begin + size)
        begin += size
    return found


def _write(
    file: TensorFile,
    out: BinaryIO,
    entries: Mapping[str, Entry],
    changes: Mapping[str, Change],
    hashed: bool,
    report: Callable[[int], None],
) -> _Written:
    written = _Written(hashed)

    def put(content: bytes | bytearray | memoryview) -> None:
        out.write(content)
        written.take(content)
        report(written.size)

    report(0)
    for name, entry in entries.items():
        old = file.table.entries[name]
        if name in changes or entry.dtype != old.dtype:
            weight = file.tensor(name).float()
            put(_bytes(name, changes[name](weight) if name in changes else weight, entry.dtype))
            continue
        for begin in range(old.begin, old.end, _CHUNK):
            put(file.read(begin, min(_CHUNK, old.end - begin)))
    return written


def _bytes(name: str, weight: Tensor, dtype: str) -> memoryview:
    """Return a weight's bytes in a number format. Raises RunError where its numbers don't fit."""
    cast = weight.to(DTYPES[dtype]).contiguous()
    largest = _largest(weight)
    if not math.isfinite(largest):
        raise RunError(f"{name} has numbers that are not finite.", "One of the files is of no use; verify finds it.")
    if largest >= _too_large(cast.dtype):
        raise RunError(
            f"{name} gets numbers too large for its format ({dtype}).", "Take less of it, or another save_precision."
        )
    return memoryview(cast.flatten().view(torch.uint8).numpy().data)


def _largest(weight: Tensor) -> float:
    """Return the largest number of a weight without its sign, NaN where one is none; a twelfth of the norm's time."""
    if not weight.numel():
        return 0.0
    least, most = map(float, torch.aminmax(weight))
    return math.nan if math.isnan(least) else max(-least, most)


def _too_large(dtype: torch.dtype) -> float:
    """Return the smallest number that does not round to one of a format; 8-bit formats would take their largest."""
    facts = torch.finfo(dtype)
    return facts.max + facts.eps * 2.0 ** (math.frexp(facts.max)[1] - 2)


def _compare(part: Path, target: Path, written: _Written) -> None:
    """Read a file back. Raises RunError where it holds other data than was written."""
    seen = _Written(hashed=False)
    with TensorFile(part) as file:
        for begin in range(0, written.size, _CHUNK):
            seen.take(file.read(begin, min(_CHUNK, written.size - begin)))
    if seen.sum != written.sum:
        raise RunError(f"{target} reads back differently from what was written.", "Choose another disk.")


def _unreadable(path: Path, error: Exception) -> ModelError:
    reason = getattr(error, "strerror", None) or str(error)
    return ModelError(f"{path.name} can't be read: {reason}.", "Copy or download it again.")
