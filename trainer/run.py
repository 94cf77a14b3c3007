"""One training: `train` in the caller's thread, `Run` on its own, with a board to read and an inbox to fill."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config import TrainingConfig, save_config
from trainer.families import look_up
from trainer.faststart import libraries
from trainer.gate import WAITING
from trainer.ground import events
from trainer.ground.commands import Command, Inbox
from trainer.ground.control import progress_of
from trainer.ground.errors import StateError, Stopped, TrainerError
from trainer.ground.events import Emit, Event
from trainer.ground.files import write_text
from trainer.pictures.scan import PHASE as SCANNING
from trainer.planning.plan import Plan, plan
from trainer.results import contents, event_log, prompt_changes, resumption, sinks
from trainer.results.event_log import JsonLines, cut_events, read_events, remove_log
from trainer.results.run_folder import RunFolder
from trainer.results.snapshot import Board, RunSnapshot

if TYPE_CHECKING:
    from trainer.training.states import State

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Start:
    """How a run begins: anew, over what is there, or from a state ("auto" = the newest one, or a state's path).

    `wait` says that it waits where another has the device; `by` is who starts it, for whoever finds the device taken.
    """

    overwrite: bool = False
    resume: str = ""
    wait: bool = False
    by: str = "started at the terminal"


def train(
    config: TrainingConfig, *, emit: Emit, inbox: Inbox | None = None, start: Start | None = None
) -> events.Finished:
    """Train one LoRA and return how it ended.

    The settings, the pictures and the model file are checked, and the model is loaded, before anything is written.

    Raises:
        TrainerError: any error that a user can act on; before the `Started` event nothing has been written.
    """
    libraries.load()  # torch: seconds that --check and the window do not pay
    from trainer.training import build, device, failures, loop, precision

    inbox, start = inbox or Inbox(), start or Start()
    if not is_first_rank():
        emit = _silent
    folder = RunFolder(Path(config.saving.output_dir), config.saving.output_name)
    progress = progress_of(emit, inbox)
    gate = device.gate_of(precision.own_device(), f"training {folder.output_name!r}", start.by)
    began = False
    state = None
    try:
        with failures.in_words(config):
            look_up(config)
            seen = plan(config, progress, ranks=world_size())
            state = check_start(seen, folder, start, emit)
            waiting = partial(progress, WAITING, 0, 0) if start.wait else None
            gate.take(waiting, otherwise="; at the terminal, --wait waits for it")
            began = True
            progress.on_device = True
            build.try_out(seen)
            models = build.load_models(config, progress, seen.recognition)
            own = goes_on(folder, start)
            with run_folder(folder, seen, state, emit, keep=own) as tell:
                if is_first_rank():
                    inbox.watch(folder.path)
                with failures.in_words(config):
                    training = build.build(seen, models, folder, (tell, inbox, progress), state, gate)
                    training.validated.extend(event_log.validations(folder.events) if is_first_rank() else ())
                    return loop.train(training)
    except Stopped:
        finished = _early_end(RunSnapshot(step=state.position.step if state else 0))
        emit(finished)
        return finished
    finally:
        # Whoever was refused has set nothing, and what is set is the run's that has the device.
        if began:
            precision.reset()
            gate.leave()


def _early_end(seen: RunSnapshot) -> events.Finished:
    """A stop before the model was there: there is nothing new to save."""
    return events.Finished(step=seen.step, epoch=seen.epoch, path="", stopped=True, seconds=0.0)


def _silent(event: Event) -> None:
    """What ranks other than the first tell."""


def is_first_rank() -> bool:
    """True in a process of its own, and in the first of several that train together; only that one tells and writes."""
    return os.environ.get("RANK", "0") == "0"


def world_size() -> int:
    """Return how many processes train together, as torchrun and accelerate launch say it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check(config: TrainingConfig, start: Start, emit: Emit) -> Plan:
    """Look whether `train` would begin, write nothing and load no model; return what would be trained.

    Raises:
        TrainerError: what `train` would raise before it loads the model.
    """
    seen = plan(config)
    check_start(seen, RunFolder(Path(config.saving.output_dir), config.saving.output_name), start, emit)
    return seen


def check_start(seen: Plan, folder: RunFolder, start: Start, emit: Emit) -> State | None:
    """See that a run can begin in its folder, and return the state that it goes on from, or None.

    Raises:
        StateError: nothing can be written there, or something was trained under this name already, or the state that is
            asked for cannot be read or does not fit.
    """
    folder.check()
    state = opening_state(folder, start, emit)
    if state:
        _tell_changes(folder, start, state, seen, emit)
    return state


def opening_state(folder: RunFolder, start: Start, emit: Emit) -> State | None:
    """Return the state to resume from, or None for a run that begins anew.

    Raises:
        StateError: something was trained under this name already, or the state asked for cannot be read.
    """
    state = _state_of(folder, start, emit) if start.resume else None
    own = state is not None and goes_on(folder, start)
    # A run killed before its first state left no more than its log and what it saved since.
    begun = start.resume == "auto" and folder.events.exists()
    # The first rank may have begun already when another looks.
    if folder.exists() and not (own or begun or start.overwrite) and is_first_rank():
        raise StateError(
            f"output_name: {folder.output_name!r} was trained already in {str(folder.output_dir)!r}.",
            "Add --resume auto to go on, --overwrite to begin anew, or choose another output_name.",
        )
    return state


def _state_of(folder: RunFolder, start: Start, emit: Emit) -> State | None:
    """Return the state that is asked for; None where there is none yet."""
    from trainer.training.states import load_newest, load_state

    def warn(text: str) -> None:
        emit(events.Warned(message=text))

    if start.resume == "auto":
        newest = load_newest(folder.state, warn)
        if newest is None:
            warn(f"resume: {str(folder.path)!r} has no state to go on from; the run begins at step 0.")
        return newest
    return load_state(Path(start.resume))


def goes_on(folder: RunFolder, start: Start) -> bool:
    """True where what is to be resumed is this folder's own run, and not one from elsewhere under a new name."""
    return start.resume == "auto" or Path(start.resume).resolve().parent == folder.state.resolve()


def _tell_changes(folder: RunFolder, start: Start, state: State, seen: Plan, emit: Emit) -> None:
    """Say what differs from the run that the state is of, before anything is written.

    Raises:
        StateError: the state does not fit the settings.
    """
    step, settings = state.position.step, state.position.settings
    own = goes_on(folder, start)
    models = state.position.contents
    if own:
        earlier = resumption.read_earlier(folder, step, settings, models)
    else:
        earlier = resumption.Earlier(step, settings, models=models)
    found = resumption.compare(earlier, seen.config, seen.timetable, seen.report, seen.parts)
    found.check()
    saved = {name: tensor.shape for name, tensor in state.adapter.items()}
    resumption.check_layers(saved, seen.spec.state_shapes(seen.targets))
    if not found.exact:
        for line in found.lines():
            emit(events.Warned(message=f"Resuming: {line}"))


@contextmanager
def run_folder(folder: RunFolder, seen: Plan, state: State | None, emit: Emit, *, keep: bool) -> Iterator[Emit]:
    """Make and lock the run's folder, write what belongs there, and yield an emitter that also logs.

    `keep` says that what is there is of the run that `state` is of. Of several ranks only the first writes and tells.
    """
    if not is_first_rank():
        yield emit
        return
    folder.make()
    lock = folder.lock()
    board = Board()
    logs: list[JsonLines | sinks.TensorBoard] = []
    recorder = contents.Recorder(folder.contents, seen.report)
    try:
        if not keep or _prompts_before(folder, state) != seen.config.sampling.sample_prompts:
            prompt_changes.forget(folder)
        _open_books(folder, state if keep else None)
        save_config(seen.config, folder.config)
        write_text(folder.dataset, json.dumps(seen.report.to_json(), indent=1))
        logs.append(JsonLines(folder.events))
        if seen.config.logging.log_with == "tensorboard":
            logs.append(sinks.TensorBoard(_tensorboard_folder(folder, seen.config)))
        tell = sinks.fan_out((board.post, logs[0], emit), logs[1:])
        tell(_started(folder, seen, state))
        recorder.begin()
        yield tell
    except Exception as error:
        stopped = isinstance(error, Stopped)
        for log in logs:
            # A full disk takes no last word either; the error itself is what must arrive.
            with suppress(OSError):
                log(_early_end(board.snapshot) if stopped else failed(error, board.snapshot.step))
        raise
    finally:
        recorder.end()
        for log in logs:
            with suppress(OSError):
                log.close()
        lock.release()


def _tensorboard_folder(folder: RunFolder, config: TrainingConfig) -> Path:
    """Return where TensorBoard finds this run: a folder of its own, so that no run writes into another's curves."""
    chosen = config.logging.logging_dir
    return Path(chosen) / folder.output_name if chosen else folder.path / "logs"


def _prompts_before(folder: RunFolder, state: State | None) -> object:
    """Return the setting of the run that is gone on with: prompts changed on its way hold while that is the same.

    A run that was killed before its first state has left its settings.
    """
    if state is not None:
        return state.position.settings.get("sample_prompts")
    try:
        return folder.read_config().sampling.sample_prompts
    except TrainerError:
        return None


def _open_books(folder: RunFolder, state: State | None) -> None:
    """Leave in the folder only what happened up to the step that the run begins after, and no half-written file."""
    from trainer.training.states import remove_after

    for torn in folder.half_written():
        torn.unlink()
    if state:
        remove_after(folder.state, state.position.step)
        cut_events(folder.events, state.position.step)
        told = {event.path for event in read_events(folder.events) if isinstance(event, events.SampleReady)}
        for picture in folder.samples.glob("*.png"):
            if str(picture) not in told:
                picture.unlink()
        return
    remove_log(folder.events)
    for old in (folder.state, folder.samples):
        shutil.rmtree(old, ignore_errors=True)
        old.mkdir()


def _started(folder: RunFolder, seen: Plan, state: State | None) -> events.Started:
    from trainer.training import precision

    timetable = seen.timetable
    return events.Started(
        folder=str(folder.path),
        step=state.position.step if state else 0,
        total_steps=timetable.total_steps,
        total_epochs=timetable.total_epochs,
        steps_per_epoch=timetable.steps_per_epoch,
        resumed=state is not None,
        device=precision.name_of(precision.own_device()),
    )


class Run:
    """One training on a worker thread. The thread outlives any window; ask `snapshot`, send commands.

    `watch` is told every event too.
    """

    def __init__(self, config: TrainingConfig, start: Start | None = None, watch: Emit | None = None) -> None:
        self.config = config
        self.board = Board()
        self._emit = sinks.fan_out((self.board.post,), (watch,) if watch else ())
        self._inbox = Inbox()
        self._start = start or Start()
        self._thread = threading.Thread(target=self._work, name="training", daemon=True)

    @property
    def snapshot(self) -> RunSnapshot:
        """What is known now."""
        return self.board.snapshot

    @property
    def alive(self) -> bool:
        """True while the thread works."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin; returns at once."""
        self._emit(events.Stage(name=SCANNING))
        self._thread.start()

    def send(self, command: Command) -> None:
        """Tell the run something; it obeys within a step."""
        if self.alive:
            self._inbox.send(command)

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end."""
        self._thread.join(timeout)

    def _work(self) -> None:
        """The run's edge: errors become text here, since a kept exception would keep the model in memory."""
        failure: Event | None = None
        try:
            train(self.config, emit=self._emit, inbox=self._inbox, start=self._start)
        except Exception as error:
            if not isinstance(error, TrainerError):
                logger.exception("training failed")
            failure = failed(error, self.snapshot.step)
        if failure is not None:
            self._emit(failure)


def failed(error: Exception, step: int) -> events.Failed:
    """Return the event of an error that ended a run."""
    if isinstance(error, TrainerError):
        message, remedy = error.message, error.remedy
    else:
        message, remedy = f"{type(error).__name__}: {error}", "This is a fault of the program; the log has the details."
    return events.Failed(kind=type(error).__name__, message=message, remedy=remedy, step=step)
