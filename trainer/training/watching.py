"""What only watches a run costs a notice where it fails, and never the run."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from trainer.ground.errors import Stopped, TrainerError
from trainer.ground.events import Emit, Warned
from trainer.memory import free_memory
from trainer.training import failures

logger = logging.getLogger(__name__)


@contextmanager
def only_watching(what: str, tell: Emit) -> Iterator[None]:
    """Let the run go on where the block fails, whatever the error is: it is told, and what it held is freed.

    Args:
        what: what is not there then, as the beginning of a sentence.

    Raises:
        Stopped: the block was told to stop.
    """
    try:
        yield
    except Stopped:
        raise
    except Exception as error:
        if not isinstance(error, TrainerError | OSError | MemoryError) and not failures.is_out_of_memory(error):
            logger.exception("%s failed", what)
        reason = reason_of(error)
        # The frames hold what was computed up to here.
        traceback.clear_frames(error.__traceback__)
    else:
        return
    free_memory()
    tell(Warned(message=f"{what} failed, and the training goes on without: {reason}."))


def reason_of(error: Exception) -> str:
    """Return what an error says, in one line without the stop."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{str(error.filename)!r}: " if error.filename else ""
        return f"{where}{error.strerror}"
    said = failures.reason_of(error) if str(error) else "it says nothing more"
    return said if isinstance(error, TrainerError) else f"{said} ({type(error).__name__})"
