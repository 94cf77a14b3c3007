"""Sample prompts that are changed while a run goes on, kept in its folder, so that a resumed run knows all of them.

    prompts.txt     what somebody wants drawn from the next pictures on, as the setting sample_prompts; the run takes it
    prompts.json    what was taken: [{"step": 30, "prompts": "..."}, ...], from which step's pictures on

A run that goes back to an earlier step draws each step's pictures with the prompts that they were drawn with before.
Torch-free.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from trainer.ground.errors import StateError
from trainer.ground.files import write_text
from trainer.ground.paths import MOST_TEXT, read_json, read_text
from trainer.results.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class Change:
    """From the pictures after `step` on, these prompts are drawn."""

    step: int
    prompts: str


def ask(folder: RunFolder, prompts: str) -> None:
    """Want other prompts from the next pictures on.

    Raises:
        StateError: it cannot be written.
    """
    try:
        write_text(folder.wanted_prompts, prompts)
    except OSError as error:
        raise StateError(
            f"The prompts cannot be kept in {str(folder.path)!r} ({error.strerror or error}).", "Free disk space."
        ) from error


def asked(folder: RunFolder) -> str | None:
    """Return the prompts that are wanted and not taken yet."""
    try:
        return read_text(folder.wanted_prompts, MOST_TEXT)
    except (OSError, UnicodeDecodeError):
        return None


def changes(folder: RunFolder) -> list[Change]:
    """Return what was taken, the oldest first."""
    try:
        return [Change(int(each["step"]), str(each["prompts"])) for each in read_json(folder.changed_prompts)]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []


def take(folder: RunFolder, step: int, wanted: str) -> None:
    """Take what is wanted for the pictures after `step`.

    Raises:
        OSError: the folder cannot be written.
    """
    known = changes(folder)
    if not (known and known[-1].prompts == wanted):
        # Somebody wants this now: it also holds where later steps had others before the run went back.
        known = [*(each for each in known if each.step < step), Change(step, wanted)]
        write_text(folder.changed_prompts, json.dumps([asdict(each) for each in known], indent=1))
    folder.wanted_prompts.unlink(missing_ok=True)


def acting(folder: RunFolder, step: int) -> Change | None:
    """Return the change that the pictures after `step` are drawn with, None where it is the settings' prompts."""
    return next((each for each in reversed(changes(folder)) if each.step <= step), None)


def forget(folder: RunFolder) -> None:
    """Remove all of it: the run begins anew, or with other prompts in its settings."""
    for path in (folder.wanted_prompts, folder.changed_prompts):
        path.unlink(missing_ok=True)
