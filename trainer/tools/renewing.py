"""A model file written anew with other metadata and true hashes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from trainer.ground.control import Progress
from trainer.results.export import hashes
from trainer.tools.tensor_files import TensorFile, head, rewrite

_MEGABYTE = 1_000_000


def renewed(path: Path, target: Path, metadata: Mapping[str, str], hashed: bool, progress: Progress) -> int:
    """Write a file with other metadata, its weights as they are, and return its size in bytes.

    Args:
        hashed: make the hashes that web UIs know LoRAs by anew.

    Raises:
        ModelError, RunError: it cannot be read or written.
        Stopped: `progress` says so.
    """
    total = max(1, path.stat().st_size // _MEGABYTE)
    said = {**metadata, **_hashes(path, metadata)} if hashed else metadata
    size = rewrite(
        path, target, said, {}, "", lambda done: progress("writing", min(done // _MEGABYTE, total - 1), total)
    )
    progress("writing", total, total)
    return size


def _hashes(path: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    with TensorFile(path) as file:
        entries = file.table.entries
        length = max((entry.end for entry in entries.values()), default=0)
        start = head({}, dict(sorted(entries.items(), key=lambda each: each[1].begin)))
        return hashes(metadata, json.loads(start[8:]), memoryview(file.read(0, length)))
