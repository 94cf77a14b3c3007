"""A saved file is made the run's final one: the same bytes of numbers, and metadata that say which it is."""

from __future__ import annotations

import json
import os
from pathlib import Path

from trainer.ground import events
from trainer.ground.errors import ModelError, RunError, StateError
from trainer.ground.files import replacing
from trainer.planning.timetable import step_name
from trainer.results import export
from trainer.results.event_log import JsonLines
from trainer.results.run_folder import RunFolder
from trainer.results.run_record import RunReader

KEPT_FROM = "ss_kept_from"
"""The entry that says which saved file the final one is."""


def keep(folder: RunFolder, file: Path) -> Path:
    """Make `file`, one that the run saved, its final file, and return that.

    The final file of before stays, under the name of a file saved at its step. Numbers, their formats and their order
    are the saved file's; so are its metadata, which tell its own step and epoch, with one entry more.

    Raises:
        StateError: the run is under way, or this is no file of it.
        ModelError: the file cannot be read.
        RunError: it cannot be written.
    """
    if file.resolve() not in {path.resolve() for path in folder.lora_files()}:
        raise StateError(f"{file.name!r} is no file that the run {folder.output_name!r} saved.", "Look at its list.")
    if file.resolve() == folder.lora.resolve():
        return folder.lora
    lock = folder.lock()
    try:
        record = RunReader(folder).read()
        saved = {Path(each.path).name: each for each in record.snapshot.saved}
        content = _renamed(file)
        log = JsonLines(folder.events)
        try:
            _put_aside(folder, saved.get(folder.lora.name), log)
            with replacing(folder.lora) as temporary:
                temporary.write_bytes(content)
                if temporary.read_bytes() != content:
                    raise RunError(f"{folder.lora} reads back differently from what was written.", "Use another disk.")
            of = saved.get(file.name)
            step, epoch = (of.step, of.epoch) if of else (record.snapshot.step, record.snapshot.epoch)
            told = {"kind": "lora", "path": str(folder.lora), "step": step, "epoch": epoch, "bytes": len(content)}
            log(events.Saved(**told))  # type: ignore[arg-type]
        finally:
            log.close()
    except OSError as error:
        raise RunError(
            f"{folder.lora} cannot be written ({error.strerror or error}).",
            "See that you may write there and that the disk is not full; the file of before is untouched.",
        ) from error
    finally:
        lock.release()
    return folder.lora


def _put_aside(folder: RunFolder, final: events.Saved | None, log: JsonLines) -> None:
    """Let the final file of before stay as one of its step, which the run may have saved too; the log tells of it."""
    if not folder.lora.exists():
        return
    step = final.step if final else 0
    aside = folder.output_dir / step_name(folder.output_name, step)
    if not aside.exists():
        os.replace(folder.lora, aside)
    size, epoch = aside.stat().st_size, final.epoch if final else 0
    log(events.Saved(kind="lora", path=str(aside), step=step, epoch=epoch, bytes=size))


def _renamed(file: Path) -> bytes:
    """Return a file's content with the entry that says where it is from."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    try:
        entries = json.loads(content[8:start])
        metadata = entries.pop("__metadata__", {})
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{file.name} is damaged: {error}.", "Choose another saved file.") from error
    return export.with_metadata({**metadata, KEPT_FROM: file.name}, entries, memoryview(content)[start:])
