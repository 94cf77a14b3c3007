"""Notes of what happened when, inside a process that is measured. Standard library only: two interpreters use it."""

from __future__ import annotations

import json
import time
from typing import Any

from benchmarks.peak import peak_memory

_NOTED: list[dict[str, object]] = []


def note(what: str, **more: object) -> None:
    """Note that something happens now: "wall" in seconds since 1970, "cpu" in this process's."""
    _NOTED.append({"what": what, "wall": time.time(), "cpu": time.process_time(), **more})


def write(path: str, torch: Any) -> None:
    """Write the notes, with the most memory in bytes that this process and its part of the GPU had in use."""
    peak = {"peak": peak_memory()}
    if torch.cuda.is_available():
        peak["peak_gpu"] = torch.cuda.max_memory_allocated()
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"moments": _NOTED, **peak}, file)
