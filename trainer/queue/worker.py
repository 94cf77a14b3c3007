"""Works through a queue: one run after another, on a thread of its own; a run that fails does not end it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from filelock import FileLock, Timeout

from trainer.config import TrainingConfig
from trainer.ground.commands import Command
from trainer.ground.errors import StateError, TrainerError
from trainer.queue.shelf import FAILED, FINISHED, STOPPED, Entry, Queue, folder_of
from trainer.run import Run, Start

LOCK = "worker.lock"

_LOOK_AGAIN_SECONDS = 0.5

Begin = Callable[[TrainingConfig, Start, Callable[[], None]], Run | None]
"""Begins a run, and calls the third argument just before; None where the program is busy with another one."""


class Worker:
    """Methods may be called from any thread. `trouble` says why it had to stop, if it had to.

    A run that waits for its device, or in a pause, is under way, and the next one waits for it.
    """

    def __init__(self, queue: Queue, begin: Begin, by: str) -> None:
        self.queue = queue
        self.going = False
        self.trouble = ""
        self.current = ""
        self.failures = 0
        self._begin, self._by = begin, by
        self._leaving = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._held: FileLock | None = None
        self._run: Run | None = None

    @property
    def busy(self) -> bool:
        """True while the thread works, or waits for a run."""
        return self._thread is not None and self._thread.is_alive()

    def go(self) -> None:
        """Work through what is to do.

        Raises:
            StateError: another program does it, or the folder cannot be written.
        """
        with self._lock:
            self.trouble = ""
            if self.going and self.busy:
                return
            if not self.busy:
                self._held = self._hold_folder()
                self._thread = threading.Thread(target=self._work, name="queue", daemon=True)
            self.going = True
            if self._thread is not None and not self.busy:
                self._thread.start()

    def hold(self) -> None:
        """Begin nothing more; the run under way goes on."""
        with self._lock:
            self.going = False

    def leave(self, command: Command) -> None:
        """End, with the run under way: it is gone on with when the queue is."""
        self._leaving = True
        self.hold()
        if self._run is not None:
            self._run.send(command)

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _hold_folder(self) -> FileLock:
        lock = FileLock(self.queue.folder / LOCK, thread_local=False)
        try:
            self.queue.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise StateError(
                f"Another program works through the queue {str(self.queue.folder)!r}.",
                "It comes to what was added by itself; stop it there to do it here.",
            ) from None
        except OSError as error:
            raise StateError(
                f"The queue {str(self.queue.folder)!r} cannot be written ({error.strerror or error}).",
                "See that you may write there and that the disk is not full.",
            ) from error
        return lock

    def _work(self) -> None:
        try:
            while (entry := self._next()) is not None:
                if not self._train(entry):
                    time.sleep(_LOOK_AGAIN_SECONDS)
        except (OSError, TrainerError) as error:
            self.trouble = f"The queue stands, since it cannot note how its runs end: {error}"
            with self._lock:
                self._run, self.current = None, ""
                self._end_work()

    def _end_work(self) -> None:
        """Let others work through the queue; from here on `go` begins anew."""
        self.going, self._thread = False, None
        if self._held is not None:
            self._held.release()
            self._held = None

    def _next(self) -> Entry | None:
        """Return what is to be done next. Whoever says `go` after None was returned starts a new thread."""
        with self._lock:
            entry = self.queue.next() if self.going else None
            if entry is None:
                self._end_work()
            return entry

    def _train(self, entry: Entry) -> bool:
        """Train one entry to its end. False where the program is busy with another run."""
        config = entry.config
        if config is None:
            self._end(entry, FAILED, entry.why)
            return True
        if not entry.begun and folder_of(config).exists():
            name, folder = config.saving.output_name, config.saving.output_dir
            words = f"output_name: {name!r} was trained already in {str(folder)!r}. Choose another output_name."
            self._end(entry, FAILED, words)
            return True
        try:
            start = Start(resume="auto" if entry.begun else "", wait=True, by=self._by)
            run = self._begin(config, start, partial(self.queue.begin, entry.key))
        except TrainerError as error:
            self._end(entry, FAILED, str(error))
            return True
        if run is None:
            return False
        self._run, self.current = run, entry.key
        if self._leaving:
            run.send(Command.STOP)
        run.join()
        self._run, self.current = None, ""
        self._note(entry, run)
        return True

    def _note(self, entry: Entry, run: Run) -> None:
        """Note how a run ended; one that the program's end has stopped is gone on with."""
        seen = run.snapshot
        if seen.error is not None:
            self._end(entry, FAILED, f"{seen.error.message} {seen.error.remedy}".strip())
        elif seen.status == "finished":
            self._end(entry, FINISHED)
        elif not self._leaving:
            self._end(entry, STOPPED)

    def _end(self, entry: Entry, state: str, why: str = "") -> None:
        self.failures += state == FAILED
        self.queue.end(entry.key, state, why)
