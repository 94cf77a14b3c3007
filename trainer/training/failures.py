"""What fails while training, in words that say what to do: memory, disks, numbers that are not finite."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psutil
import torch

from trainer.advice import saving_memory
from trainer.config import TrainingConfig
from trainer.ground.errors import RunError
from trainer.ground.files import FULL_DISK

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)

_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed", "bad_alloc")
"""In a RuntimeError: what PyTorch's CPU allocator, CUDA, cuBLAS and cuDNN say of a lack of memory."""

_ONEDNN = "could not create a primitive"
"""All that oneDNN says of it on a CPU. With another word after it, it means what is not implemented."""

_NAMED = 5
"""Pictures that a message names."""


@contextmanager
def in_words(config: TrainingConfig, *, drawing: bool = False) -> Iterator[None]:
    """Turn a lack of memory and refusals of the file system into RunErrors that say what to do.

    The error that caused it is left behind: its traceback would keep the model in memory. `drawing` says that nothing
    is trained, so that there is nothing to resume.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        told = _told(error, config, drawing)
        if told is None:
            raise
        raise told from None


def _told(error: Exception, config: TrainingConfig, drawing: bool) -> RunError | None:
    if is_out_of_memory(error):
        if drawing:
            return RunError(_lacking(reason_of(error)), "Lower width and height, or end what else takes the memory.")
        return out_of_memory(reason_of(error), config)
    return _of_files(error, "draw again" if drawing else "resume") if isinstance(error, OSError) else None


def is_out_of_memory(error: Exception) -> bool:
    """Say whether an error means that memory ran out, whoever raised it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (text.endswith(_ONEDNN) or any(words in text for words in _MEMORY_WORDS))


def reason_of(error: Exception) -> str:
    """Return what an error says of the lack of memory: its first line, without the stop."""
    return str(error).splitlines()[0].strip().rstrip(".") if str(error) else "the system gave no more"


def out_of_memory(reason: str, config: TrainingConfig, *, least: bool = False) -> RunError:
    """Return the error with what was in use, what was asked for, and the settings that would need less.

    `least` says that one picture at a time and checkpointing were tried already.
    """
    remedies = saving_memory.remedies(config, least=least)
    return RunError(
        _lacking(reason),
        f"To need less: {', '.join(remedies)}. Then resume: it goes on from the last saved state, if there is one.",
    )


def _lacking(reason: str) -> str:
    return f"Out of memory: {reason}. {_memory_used()}"


def _memory_used() -> str:
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        return f"Up to {torch.cuda.max_memory_allocated() / 2**30:.1f} of {total / 2**30:.1f} GiB were in use."
    used = psutil.Process().memory_info().rss
    return f"This process had {used / 2**30:.1f} of {psutil.virtual_memory().total / 2**30:.1f} GiB in use."


def _of_files(error: OSError, go_on: str) -> RunError:
    where = repr(str(error.filename)) if error.filename else "a file of this run"
    if error.errno in FULL_DISK:
        return RunError(f"The disk is full: {where} could not be written.", f"Free some space, then {go_on}.")
    if error.errno in READ_ONLY:
        return RunError(
            f"{where} may not be written ({error.strerror}).", f"Restore the permissions or the drive, then {go_on}."
        )
    return RunError(
        f"The system refused an access to {where}: {error.strerror or error}.",
        f"See that the drive is there and the file is not in use, then {go_on}.",
    )


_WIDER = {"fp16": "set mixed_precision to bf16 or no", "bf16": "set mixed_precision to no"}
"""The way out of numbers that overflow, by the precision in use; nothing is wider than float32."""


def not_finite(step: int, in_a_row: int, suspects: Counter[str], precision: str) -> RunError:
    """Return the error of a run whose gradients have not been finite for `in_a_row` steps up to `step`.

    `precision` is the mixed precision in use: "no", "fp16" or "bf16".
    """
    worst = [f"{name} (in {count})" for name, count in suspects.most_common(_NAMED)]
    if in_a_row == step:
        return nothing_learned(step, finite=False, precision=precision)
    return RunError(
        f"{in_a_row} steps in a row up to step {step} had a gradient that is not a finite number. "
        f"Their most frequent pictures: {', '.join(worst)}.",
        "The weights are those from before. "
        f"{_either('lower learning_rate', _WIDER.get(precision, ''), 'look for a damaged picture among these')}; "
        "then resume from the last state.",
    )


def nothing_learned(steps: int, *, finite: bool, precision: str) -> RunError:
    """Return the error of a run at whose end no weight is other than at its beginning."""
    if finite:
        return RunError(
            f"None of the {steps} steps changed a weight: the learning rate or the gradient was 0 in each of them.",
            "Raise learning_rate, lower lr_warmup_steps or train for longer. No file was written.",
        )
    return RunError(
        f"None of the {steps} steps had a gradient that is a finite number: nothing was learned, and no file written.",
        f"The model file may be damaged. {_either('try another one', _WIDER.get(precision, ''))}, then begin anew.",
    )


def _either(*ways: str) -> str:
    """Return the ways out that there are, as the beginning of a sentence."""
    *others, last = [way for way in ways if way]
    words = f"{', '.join(others)} or {last}" if others else last
    return words[:1].upper() + words[1:]


def skipped_step(step: int, names: Iterable[str]) -> str:
    """Return what to tell of one step whose gradient was not finite."""
    every = list(dict.fromkeys(names))
    listed = ", ".join(every[:_NAMED]) + (f" and {len(every) - _NAMED} more" if len(every) > _NAMED else "")
    return f"Step {step} was skipped: its gradient is not a finite number. Its pictures: {listed}."
