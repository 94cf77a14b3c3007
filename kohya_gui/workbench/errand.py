"""Long work of the workbench on a thread of its own: one at a time, with its progress, a stop, and what came of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from trainer.faststart import libraries
from trainer.ground.control import Progress
from trainer.ground.errors import StateError, Stopped, TrainerError

RUNNING, DONE, ENDED, FAILED = "running", "done", "stopped", "failed"

BROKEN = "It ended by a fault of the program; the terminal has the details."

Result = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Standing:
    """How far an errand has come. `words` are those of its end where it failed; `result` is for the page."""

    number: int = 0
    title: str = ""
    status: str = ""
    phase: str = ""
    done: int = 0
    total: int = 0
    words: str = ""
    result: Result = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Return it in plain values."""
        names = ("number", "title", "status", "phase", "done", "total", "words")
        return {**{name: getattr(self, name) for name in names}, "result": dict(self.result)}


class Errands:
    """Does one errand at a time. Methods may be called from any thread."""

    def __init__(self) -> None:
        self.standing = Standing()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    @property
    def busy(self) -> bool:
        """True while one is under way."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, title: str, work: Callable[[Progress], Result], *, heavy: bool = False) -> Standing:
        """Begin an errand; one that is `heavy` needs PyTorch, which is loaded before.

        Raises:
            StateError: another is under way.
        """
        with self._lock:
            if self.busy:
                raise StateError(f"{self.standing.title} is under way.", "Wait until it ends, or stop it.")
            self._stopping.clear()
            self.standing = Standing(self.standing.number + 1, title, RUNNING)
            self._thread = threading.Thread(target=self._run, args=(work, heavy), name="workbench", daemon=True)
            self._thread.start()
            return self.standing

    def stop(self) -> None:
        """Let it end."""
        self._stopping.set()

    def forget(self, name: str, value: object) -> None:
        """Forget what came of the last errand, where its result has this value."""
        with self._lock:
            if not self.busy and self.standing.result.get(name) == value:
                self.standing = replace(self.standing, result={})

    def join(self, seconds: float | None = None) -> None:
        """Wait until it has ended."""
        if self._thread:
            self._thread.join(seconds)

    def _tell(self, phase: str, done: int, total: int) -> None:
        if self._stopping.is_set():
            raise Stopped(f"Stopped while {phase} ({done} of {total}).")
        self.standing = replace(self.standing, phase=phase, done=done, total=total)

    def _run(self, work: Callable[[Progress], Result], heavy: bool) -> None:
        end: dict[str, object] = {"status": FAILED, "words": BROKEN}
        try:
            if heavy:
                libraries.load()
            end = {"status": DONE, "result": work(self._tell)}
        except Stopped as stopped:
            end = {"status": ENDED, "words": str(stopped)}
        except TrainerError as error:
            end = {"status": FAILED, "words": str(error)}
        finally:
            self.standing = replace(self.standing, **end)  # type: ignore[arg-type]  # status, words and result by name
