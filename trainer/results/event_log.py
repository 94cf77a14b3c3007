"""The event log of a run: `events.jsonl`, and the full files before it, `events-000001.jsonl` and on. Torch-free.

One object a line. A log that has grown to `LOG_BYTES` is put aside under the next number, so that no file gets too
large to look into; together they hold every event. Lines that cannot be read, as a power cut or a full disk leaves
them, are passed over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from trainer.ground import events
from trainer.ground.events import Event
from trainer.ground.files import replacing
from trainer.ground.paths import open_regular

LOG_BYTES = 8 << 20
MOST_BYTES = 32 * LOG_BYTES
"""Bytes of a log that could not be put aside for long; no other is larger."""

_OF_STEP = (
    events.StepDone,
    events.EpochDone,
    events.Saved,
    events.SampleReady,
    events.Validated,
    events.PromptsChanged,
)
_VALIDATED_LINE = b'{"event": "Validated"'
_UNLOGGED = (events.Stage,)
"""Events that only a live view needs; the log would grow with every picture cached."""


def earlier_files(path: Path) -> list[Path]:
    """Return the files put aside before the log `path`, oldest first."""
    return sorted(path.parent.glob(f"{path.stem}-[0-9][0-9][0-9][0-9][0-9][0-9]{path.suffix}"))


class JsonLines:
    """Appends events to a log; each is on its way to the disk when the call returns."""

    def __init__(self, path: Path, limit: int = LOG_BYTES) -> None:
        self._path = path
        self._limit = limit
        self._torn = False
        self._open()

    def __call__(self, event: Event) -> None:
        """Write one event.

        Raises:
            OSError: the disk is full or gone.
        """
        if isinstance(event, _UNLOGGED):
            return
        if self._size >= self._limit:
            self._put_aside()
        # What a full disk cut off must not swallow the line after it.
        line = (b"\n" if self._torn else b"") + json.dumps(events.to_record(event)).encode() + b"\n"
        self._torn = True
        written = 0
        while written < len(line):
            written += self._file.write(line[written:]) or 0
        self._torn = False
        self._size += written

    def _open(self) -> None:
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115  held until close()
        self._size = self._file.tell()

    def _put_aside(self) -> None:
        self.close()
        earlier = earlier_files(self._path)
        number = int(earlier[-1].stem.rpartition("-")[2]) + 1 if earlier else 1
        # Where a reader holds the file and the system forbids renaming it, it goes on growing until it is let go.
        with suppress(PermissionError):
            self._path.rename(self._path.with_stem(f"{self._path.stem}-{number:06d}"))
        self._open()

    def close(self) -> None:
        """Bring the log to the disk."""
        os.fsync(self._file.fileno())
        self._file.close()


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the whole lines of a log and of the files put aside before it, oldest first, while it may be growing."""
    # Opened first: should it be put aside meanwhile, it is still this one, and is told from the others by its identity.
    current: BinaryIO | None = None
    with suppress(FileNotFoundError):
        current = open_regular(path, MOST_BYTES)
    try:
        own = os.fstat(current.fileno()) if current else None
        for earlier in earlier_files(path):
            with open_regular(earlier, MOST_BYTES) as file:
                if own is None or not os.path.samestat(own, os.fstat(file.fileno())):
                    yield from _whole_lines(file)
        if current:
            yield from _whole_lines(current)
    finally:
        if current:
            current.close()


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    return (line for line in file if line.endswith(b"\n"))


def parsed(line: bytes) -> Event | None:
    """Return the event of a line, or None where there is none that we know."""
    try:
        return events.from_record(json.loads(line))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def read_events(path: Path) -> Iterator[Event]:
    """Yield the events of a log and of the files put aside before it."""
    return (event for line in read_lines(path) if (event := parsed(line)) is not None)


def validations(path: Path) -> list[events.Validated]:
    """Return what a log tells of validations. Steps are many, and their lines are not parsed."""
    found = (parsed(line) for line in read_lines(path) if line.startswith(_VALIDATED_LINE))
    return [event for event in found if isinstance(event, events.Validated)]


def cut_events(path: Path, step: int) -> None:
    """Remove what a log tells of steps after `step`, and lines that cannot be read. Each file is replaced in one go.

    What is cut is always a tail, so that a cut which a power failure interrupts is completed by the next.
    """
    for file in reversed([*earlier_files(path), *([path] if path.exists() else [])]):
        with open_regular(file, MOST_BYTES) as opened:
            lines = list(opened)
        kept = [line for line in lines if _stays(line, step)]
        if not kept:
            file.unlink()
        elif len(kept) < len(lines):
            with replacing(file) as temporary:
                temporary.write_bytes(b"".join(kept))


def _stays(line: bytes, step: int) -> bool:
    event = parsed(line) if line.endswith(b"\n") else None
    return event is not None and (not isinstance(event, _OF_STEP) or event.step <= step)


def remove_log(path: Path) -> None:
    """Remove a log and the files put aside before it."""
    for file in (*earlier_files(path), path):
        file.unlink(missing_ok=True)
