"""What a run leaves behind on its way: LoRA files, sample pictures, resume states; and how it obeys commands."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

import torch

from trainer.ground import events
from trainer.ground.commands import Command
from trainer.ground.control import ENDINGS, pause
from trainer.ground.errors import RunError, Stopped, TrainerError
from trainer.memory import free_memory
from trainer.planning.timetable import final_name, step_name
from trainer.preview.prompts import SampleRequest, picture_name, settle
from trainer.preview.sampling import sample, save_picture
from trainer.results import export, metadata
from trainer.training import ranks
from trainer.training.state_writer import StateWriter, Written
from trainer.training.training import Training

WAITING_SECONDS = 0.2
"""Time between two looks whether the device is free again."""


class Hooks:
    """Does what the plan and the commands say is due. Only rank 0 writes; the others keep step."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._writes = training.accelerator.is_main_process
        self._states = StateWriter(training.folder.state)
        self._state_begun = time.monotonic()
        self._state_step = training.step

    @contextmanager
    def keeping_state(self) -> Iterator[None]:
        """Where the block fails, save the state of the last finished step before the error goes on."""
        try:
            yield
        except BaseException as error:
            # The frames of a failed step hold what it had computed: where memory ran out, the state needs that room.
            traceback.clear_frames(error.__traceback__)
            free_memory()
            self._rescue()
            raise

    def _rescue(self) -> None:
        """Save what can be saved. Errors are told, not raised: the one that led here matters more."""
        training = self._training
        with suppress(OSError):
            try:
                self._tell_of_state(wait=True)
                if training.updating:
                    message = f"It failed while step {training.step + 1} changed the weights; the state before is kept."
                    training.tell(events.Warned(message=message))
                    return
                # Giving up over gradients that are not finite may be what led here.
                with suppress(RunError):
                    training.metrics.settle()
                self.save_state()
            except TrainerError as error:
                training.tell(events.Warned(message=str(error)))

    def begin(self) -> None:
        """Do what is due before the first step of a run; a resumed run has done it already."""
        if self._training.step == 0 and self._training.timetable.sample_due(0):
            self._sample()

    def after_step(self) -> None:
        """Do what is due after the newest step."""
        training = self._training
        self._tell_of_state(wait=False)
        step, timetable = training.step, training.timetable
        epoch_ended = timetable.ends_epoch(step)
        if epoch_ended:
            self._end_epoch()
        for name in timetable.lora_names(step):
            self._save_lora(name)
        for name in timetable.expired_names(step):
            if self._writes:
                (training.folder.output_dir / name).unlink(missing_ok=True)
        if timetable.sample_due(step):
            self._sample()
        minutes = (time.monotonic() - self._state_begun) / 60
        if epoch_ended or minutes >= training.config.saving.save_state_minutes:
            self._begin_state()

    def obey(self) -> None:
        """Do what was asked for since the last step. Under several ranks rank 0 decides for all."""
        commands = self._agreed()
        for command in commands:
            if command in ENDINGS:
                # Who asks to stop and then to abort has changed their mind.
                self._training.ending = Command.ABORT if Command.ABORT in commands else command
                return
            self._ACTIONS[command](self)

    def finish(self) -> events.Finished:
        """Write the finished file and the last state, unless told to abort, and say how it ended."""
        training = self._training
        training.metrics.settle()
        path = ""
        if training.ending is not Command.ABORT:
            path = self._save_lora(final_name(training.config.saving.output_name))
            self.save_state()
        self._tell_of_state(wait=True)
        finished = events.Finished(
            step=training.step,
            epoch=training.epoch,
            path=path,
            stopped=training.ending is not None,
            seconds=training.seconds,
        )
        training.tell(finished)
        # All end together: half a minute after one has ended, torchrun kills the others, whatever they write.
        ranks.from_first(None)
        return finished

    def save_state(self) -> None:
        """Write the resume state, unless this step's is there. Afterwards it is."""
        training = self._training
        self._tell_of_state(wait=True)
        self._state_begun = time.monotonic()
        if self._writes and self._state_step != training.step:
            self._tell_of(self._states.write(training.state(), training.epoch))

    def _begin_state(self) -> None:
        """Begin to write the resume state. The training goes on meanwhile."""
        training = self._training
        self._tell_of_state(wait=True)
        self._state_begun = time.monotonic()
        if self._writes and self._state_step != training.step:
            self._states.begin(training.state(), training.epoch)

    def _tell_of_state(self, *, wait: bool) -> None:
        if (written := self._states.take(wait=wait)) is not None:
            self._tell_of(written)

    def _tell_of(self, state: Written) -> None:
        self._state_step = state.step
        size = sum(file.stat().st_size for file in state.path.iterdir())
        saved = events.Saved(kind="state", path=str(state.path), step=state.step, epoch=state.epoch, bytes=size)
        self._training.tell(saved)

    def _save_now(self) -> None:
        self._save_lora(step_name(self._training.config.saving.output_name, self._training.step))
        self.save_state()

    def _end_epoch(self) -> None:
        training = self._training
        training.metrics.settle()
        losses = training.metrics.epoch_losses
        mean = sum(losses) / len(losses) if losses else math.nan
        training.tell(events.EpochDone(epoch=training.epoch, step=training.step, loss=mean))
        losses.clear()

    def _save_lora(self, name: str) -> str:
        training = self._training
        path = training.folder.output_dir / name
        training.metrics.settle()
        if self._writes:
            entries = metadata.build(training.facts, step=training.step, epoch=training.epoch, finished=time.time())
            precision_name = training.config.saving.save_precision
            size = export.save(path, training.adapter.tensors(), entries, precision_name)
            training.tell(
                events.Saved(kind="lora", path=str(path), step=training.step, epoch=training.epoch, bytes=size)
            )
        return str(path)

    def _sample(self) -> None:
        """Make the sample pictures. A stop ends it after the denoising step under way and is obeyed by the loop."""
        training = self._training
        training.metrics.settle()
        if not self._writes:
            return
        with suppress(Stopped):
            for index, prompt in enumerate(training.plan.prompts):
                self._sample_one(settle(prompt, training.config, index))

    def _sample_one(self, request: SampleRequest) -> None:
        training = self._training
        step, name = training.step, training.config.saving.output_name
        epoch = training.epoch if training.timetable.samples_epoch(step) else None
        path = training.folder.samples / picture_name(name, request, step=step, epoch=epoch, moment=datetime.now())
        try:
            picture = sample(training.bundle, request, progress=training.progress, texts=training.text_cache)
            save_picture(picture, request, path)
        except OSError as error:
            raise RunError(
                f"The sample picture {str(path)!r} could not be written ({error.strerror or error}).",
                "Free disk space or restore the folder, then resume.",
            ) from error
        ready = events.SampleReady(
            path=str(path), step=step, epoch=training.epoch, index=request.index, prompt=request.prompt
        )
        training.tell(ready)

    def _pause(self) -> None:
        """Save, free the device, wait, take the device back. The numbers are the same as without the pause.

        Where another has the device by then and the run is told to end, it ends without it: a CPU can write files.
        """
        training = self._training
        self.save_state()
        training.inbox.send(Command.PAUSE)
        device = training.device
        training.move(torch.device("cpu"))
        if training.gate:
            training.gate.leave()
        pause(training.tell, training.inbox, training.step)
        if self._takes_device_back():
            training.move(device)

    def _takes_device_back(self) -> bool:
        """Take the device again, and wait while another has it. False where the run is told to end meanwhile."""
        training = self._training
        if training.gate is None or training.gate.try_to_take():
            return True
        waited_for = f"Going on waits: {training.gate.title} is in use by {training.gate.holder()}."
        training.tell(events.Warned(message=waited_for))
        while not training.gate.try_to_take():
            training.tell(events.Stage(name="waiting_for_the_device"))
            if any(command in ENDINGS for command in training.inbox.peek()):
                return False
            time.sleep(WAITING_SECONDS)
        return True

    def _agreed(self) -> list[Command]:
        commands = self._training.inbox.take() if self._writes else []
        return ranks.from_first(commands)

    _ACTIONS = {
        Command.SAVE_NOW: _save_now,
        Command.SAMPLE_NOW: _sample,
        Command.PAUSE: _pause,
        Command.RESUME: lambda self: None,
    }
