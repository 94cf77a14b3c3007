"""The state that a run resumes from: adapter, optimizer, schedule and position. Bit for bit, atomic, verified.

    state/step-00000012/adapter.safetensors   LoRA matrices as trained, kohya's keys
                        optimizer.pt          optimizer, schedule and loss scaler; read with weights_only
                        state.json            position and, written last, the sha256 of the other two

Nothing else is needed: data order, noise, timesteps and captions are functions of (seed, step, slot).
A state is a folder renamed into place when it is complete; the newest `KEPT` are kept.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Container, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from trainer.ground.errors import RunError, StateError
from trainer.ground.files import FULL_DISK, sha256_of, sync_folder
from trainer.ground.paths import MISSING, read_json
from trainer.training.micro_batches import MicroBatchSize

FORMAT = 1
KEPT = 2
_PREFIX = "step-"
_ADAPTER, _OPTIMIZER, _STATE = "adapter.safetensors", "optimizer.pt", "state.json"

_REMEDY = (
    "Name a folder OUTPUT_NAME.run/state/step-..., take --resume auto for the newest, or start again with --overwrite."
)
_REMEDY_OF_NONE = "Begin anew with --overwrite, or from the last LoRA file with network_weights."
_LOADING_ERRORS = (
    pickle.UnpicklingError, SafetensorError, OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError,
    AttributeError, ArithmeticError,
)  # fmt: skip
"""What files that someone else made, with checksums that fit, can raise."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run is: `step` optimizer steps are done; `losses` are the newest step losses, oldest first;
    `epoch_losses` are those of the epoch under way. `settings` is the flat config that the run was started with,
    `environment` what exactness depends on besides it, `contents` has a fingerprint of each model file by its setting.
    `micro_batch_size` is set where memory ran out: how much is computed at once since then. `learned` counts the steps
    that changed a weight (None in states of before: all of them); `sampled` is set where the state was saved while the
    step's sample pictures were being drawn: how many were.
    """

    step: int
    losses: tuple[float, ...]
    epoch_losses: tuple[float, ...]
    settings: Mapping[str, object]
    environment: Mapping[str, object]
    seconds: float = 0.0
    micro_batch_size: MicroBatchSize | None = None
    contents: Mapping[str, str] = field(default_factory=dict)
    learned: int | None = None
    sampled: int | None = None


@dataclass(frozen=True, slots=True)
class State:
    """What a state folder holds: `adapter` by kohya key; `trained` is the optimizer's part."""

    position: Position
    adapter: dict[str, Tensor]
    trained: dict[str, Any]


def save_state(folder: Path, state: State, keep: Container[int] = ()) -> Path:
    """Write a state into `folder`, remove all but the newest `KEPT` and those of the steps in `keep`.

    Returns the new state's folder.

    Raises:
        RunError: the disk is full or the folder cannot be written; earlier states stay as they are.
    """
    target = folder / _name(state.position.step)
    temporary = folder / f".{target.name}.new"
    replaced = folder / f".{target.name}.old"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        # Not its parents: where a drive was unplugged, they would be made anew on another.
        temporary.mkdir()
        _write(temporary, state)
        if target.exists():
            os.replace(target, replaced)
        os.replace(temporary, target)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = "the disk is full" if error.errno in FULL_DISK else error.strerror or error
        raise RunError(
            f"The resume state could not be written to {str(target)!r} ({reason}).",
            "Free disk space or restore the folder, then resume; the earlier state is untouched.",
        ) from error
    kept = {_name(state.position.step), *(path.name for path in _complete(folder)[-KEPT:])}
    for old in (replaced, *_complete(folder)):
        if old.name not in kept and not (old.name.startswith(_PREFIX) and _step_of(old) in keep):
            shutil.rmtree(old, ignore_errors=True)
    return target


def _write(folder: Path, state: State) -> None:
    # Made in memory first: on a full disk neither library raises an OSError when it writes the file itself.
    trained = io.BytesIO()
    torch.save(state.trained, trained)
    _put(folder / _ADAPTER, save(state.adapter))
    _put(folder / _OPTIMIZER, trained.getbuffer())
    record = {
        "format": FORMAT,
        "sha256": {name: sha256_of(folder / name) for name in (_ADAPTER, _OPTIMIZER)},
        **asdict(state.position),
    }
    _put(folder / _STATE, json.dumps(record).encode())
    sync_folder(folder)


def _put(path: Path, content: bytes | memoryview) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def load_newest(folder: Path, warn: Callable[[str], None]) -> State | None:
    """Read the newest state that is whole, None where `folder` has none at all; `warn` is told of each that is not.

    Raises:
        StateError: there are states, and none of them is whole.
    """
    found = list(reversed(_complete(folder)))
    for path in found:
        try:
            return load_state(path)
        except StateError as error:
            warn(str(error))
    if found:
        raise StateError(f"resume: none of the {len(found)} states in {str(folder)!r} is whole.", _REMEDY_OF_NONE)
    return None


def remove_after(folder: Path, step: int) -> None:
    """Remove the states of later steps than `step`: a run that goes on from there makes others in their place."""
    for path in _complete(folder):
        if path.name > _name(step):
            shutil.rmtree(path, ignore_errors=True)


def load_state(path: Path) -> State:
    """Read a state folder, onto the CPU.

    Raises:
        StateError: it is missing, incomplete, damaged, or of another format.
    """
    record = _record(path)
    reduced = record.get("micro_batch_size") or record.get("portion")  # its name before the folders were arranged
    try:
        position = Position(
            step=int(record["step"]),
            losses=tuple(float(loss) for loss in record["losses"]),
            epoch_losses=tuple(float(loss) for loss in record["epoch_losses"]),
            settings=dict(record["settings"]),
            environment=dict(record["environment"]),
            seconds=float(record["seconds"]),
            micro_batch_size=MicroBatchSize(**reduced) if reduced else None,
            contents=dict(record.get("contents") or {}),
            learned=_count(record, "learned"),
            sampled=_count(record, "sampled"),
        )
        adapter = load_file(path / _ADAPTER)
        trained = torch.load(path / _OPTIMIZER, map_location="cpu", weights_only=True)
        if not {"optimizer", "schedule", "scaler"} <= trained.keys():
            raise ValueError("the optimizer's part is something else")
        if trained["schedule"]["last_epoch"] != position.step:
            raise ValueError(f"it is of step {position.step}, and its schedule of {trained['schedule']['last_epoch']}")
    except _LOADING_ERRORS as error:
        raise StateError(f"resume: {str(path)!r} holds no resume state ({_first_line(error)}).", _REMEDY) from error
    return State(position, adapter, trained)


def _count(record: Mapping[str, Any], key: str) -> int | None:
    value = record.get(key)
    return None if value is None else int(value)


def unfit(error: Exception) -> StateError:
    """Return the error of a state that cannot be taken over, for what `error` says."""
    return StateError(f"resume: the state does not fit the optimizer ({_first_line(error)}).", _REMEDY)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _record(path: Path) -> dict[str, Any]:
    try:
        for name in (_ADAPTER, _OPTIMIZER, _STATE):
            if (path / name).is_symlink():
                raise ValueError(f"{name} is a link")
        record = read_json(path / _STATE)
        hashes = {name: sha256_of(path / name) for name in (_ADAPTER, _OPTIMIZER)}
    except MISSING as error:
        missing = f"has no {Path(error.filename).name}" if path.is_dir() else "is not there"
        raise StateError(f"resume: {str(path)!r} {missing}, so there is no state to go on from.", _REMEDY) from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise StateError(f"resume: {str(path)!r} is not a whole resume state: {why}.", _REMEDY) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise StateError(f"resume: {str(path)!r} has a format that this version does not read.", _REMEDY)
    if record.get("sha256") != hashes:
        raise StateError(f"resume: files in {str(path)!r} are damaged (their checksums differ).", _REMEDY)
    return record


def _name(step: int) -> str:
    return f"{_PREFIX}{step:08d}"


def _step_of(path: Path) -> int:
    number = path.name.removeprefix(_PREFIX)
    return int(number) if number.isdecimal() else -1


def _complete(folder: Path) -> list[Path]:
    """State folders by step, oldest first. A link is not followed: it could lead out of the run's folder."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir() and not path.is_symlink())
