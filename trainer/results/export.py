"""Files of adapters: written so that they are whole or not there at all, read back after writing, read from others.

The format is kohya's: NAME.ENTRY, such as NAME.alpha and NAME.lora_up.weight, in a .safetensors file with `ss_*`
metadata and the two hashes that web UIs know files by.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from trainer.adapters import AdapterHeader, read_header
from trainer.adapters.files import ALPHA
from trainer.ground.errors import ModelError, RunError
from trainer.ground.files import FULL_DISK, replacing

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "float": torch.float32}
"""`save_precision` -> dtype of every tensor in the file, alphas included, as sd-scripts does."""

_LEGACY_OFFSET, _LEGACY_LENGTH = 0x100000, 0x10000


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter read from a file. `tensors` has an alpha for each module; where the file had none it is the rank."""

    header: AdapterHeader
    tensors: Mapping[str, Tensor]


def read_adapter(path: Path) -> AdapterFile:
    """Return what an adapter's file holds, with its tensors on the CPU in the file's dtype, alphas in float32.

    Raises ModelError, saying what the file is, if it is anything else, cut short, or has numbers that are not finite.
    """
    header = read_header(path)
    try:
        # Not memory-mapped: the file may be replaced while its tensors are in use.
        loaded = safetensors.torch.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"The LoRA {path} can't be read: {error}.", "Download or copy it again.") from error
    tensors = {key: loaded[key] for key in header.shapes}
    bad = _first_not_finite(tensors)
    if bad:
        raise ModelError(f"{path.name}: {bad} has numbers that are not finite.", "The file is of no use; take another.")
    tensors |= {f"{name}.{ALPHA}": torch.tensor(alpha) for name, alpha in header.alphas.items()}
    return AdapterFile(header, tensors)


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], save_precision: str) -> int:
    """Write a LoRA file and return its size in bytes.

    All tensors are cast to `save_precision` (fp16, bf16, float), but for an alpha that it cannot hold. The `sshs_*`
    hashes are added to the metadata. The file is written beside `path`, read back, compared and only then renamed, so
    that `path` is never half a file. Equal input gives equal bytes: safetensors itself orders the metadata at random.

    Raises RunError if a tensor is not finite, or if the file can't be written.
    """
    cast = {key: tensor.detach().to("cpu", _dtype(key, tensor, save_precision)) for key, tensor in tensors.items()}
    _refuse_not_finite(path, tensors, cast, save_precision)
    plain = safetensors.torch.save(cast)
    start = 8 + int.from_bytes(plain[:8], "little")
    entries, data = json.loads(plain[8:start]), memoryview(plain)[start:]
    content = with_metadata(metadata, entries, data)
    _replace(path, content, cast)
    return len(content)


def with_metadata(metadata: Mapping[str, str], entries: Mapping[str, object], data: memoryview) -> bytes:
    """Return a whole file of the tensors' bytes, with their entries of the header, the metadata and its hashes."""
    return _head({**metadata, **hashes(metadata, entries, data)}, entries) + data


def _dtype(key: str, tensor: Tensor, save_precision: str) -> torch.dtype:
    """Return the dtype that a tensor is saved in: an alpha that would become 0 would be read as the rank."""
    dtype = DTYPES[save_precision]
    if not key.endswith(f".{ALPHA}"):
        return dtype
    limits, alpha = torch.finfo(dtype), abs(float(tensor))
    return dtype if alpha == 0 or limits.tiny <= alpha <= limits.max else torch.float32


def hashes(metadata: Mapping[str, str], entries: Mapping[str, object], data: memoryview) -> dict[str, str]:
    """Return `sshs_model_hash` and `sshs_legacy_hash` as sd-scripts' train_util.precalculate_safetensors_hashes does.

    The first is SHA-256 over the tensors' bytes; the second the first eight digits over 64 KiB at 1 MiB of a file
    that has only the `ss_*` entries for metadata.
    """
    head = _head({key: value for key, value in metadata.items() if key.startswith("ss_")}, entries)
    window = head[_LEGACY_OFFSET : _LEGACY_OFFSET + _LEGACY_LENGTH]
    begin = max(0, _LEGACY_OFFSET - len(head))
    legacy = hashlib.sha256(window + data[begin : begin + _LEGACY_LENGTH - len(window)])
    return {"sshs_model_hash": hashlib.sha256(data).hexdigest(), "sshs_legacy_hash": legacy.hexdigest()[:8]}


def _head(metadata: Mapping[str, str], entries: Mapping[str, object]) -> bytes:
    """Return everything before the tensors' bytes: the header's length and the header, padded to eight bytes."""
    header = {"__metadata__": dict(sorted(metadata.items())), **entries}
    # A file name may hold bytes that are no UTF-8; they become question marks.
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _replace(path: Path, content: bytes, expected: Mapping[str, Tensor]) -> None:
    """Write `content` beside `path`, read it back, compare, and put it in the place of `path`."""
    try:
        with replacing(path) as part:
            part.write_bytes(content)
            if part.read_bytes() != content or not _holds(content, expected):
                raise RunError(f"{path} reads back differently from what was written.", "Choose another disk.")
    except OSError as error:
        raise _cannot_write(path, len(content), error) from error


def _holds(content: bytes, expected: Mapping[str, Tensor]) -> bool:
    """True if a safetensors file with these bytes has exactly the expected keys, dtypes, shapes and numbers."""
    try:
        tensors = safetensors.torch.load(content)
    except safetensors.SafetensorError:
        return False
    return tensors.keys() == expected.keys() and all(
        tensors[key].dtype == value.dtype and torch.equal(tensors[key], value) for key, value in expected.items()
    )


def _cannot_write(path: Path, size: int, error: OSError) -> RunError:
    if error.errno in FULL_DISK:
        return RunError(
            f"The LoRA {path} can't be written: the disk is full, {size / 1e6:,.1f} MB are needed.",
            "Free some space or choose another output_dir.",
        )
    return RunError(
        f"The LoRA {path} can't be written: {error.strerror or error}.",
        "Choose an output_dir that you may write to, and close the file where it is in use.",
    )


def _refuse_not_finite(
    path: Path, tensors: Mapping[str, Tensor], cast: Mapping[str, Tensor], save_precision: str
) -> None:
    bad = _first_not_finite(tensors)
    if bad:
        raise RunError(
            f"{path.name} was not written: {bad} has numbers that are not finite; the training has diverged.",
            "Go on from an earlier state with a lower learning_rate.",
        )
    bad = _first_not_finite(cast)
    if bad:
        raise RunError(
            f"{path.name} was not written: {bad} has numbers too large for {save_precision}.",
            "Set save_precision to bf16 or float; a lower learning_rate keeps the numbers small.",
        )


def _first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    return next((key for key, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()), None)
