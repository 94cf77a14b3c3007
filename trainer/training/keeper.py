"""What keeps a run's work: LoRA files, resume states, and the pause, which saves and frees the device."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from trainer.families import FAMILIES
from trainer.gate import WAITING
from trainer.ground import events
from trainer.ground.control import wait
from trainer.ground.errors import RunError, TrainerError
from trainer.memory import free_memory
from trainer.planning.timetable import average_name, copy_name, step_name
from trainer.results import export, key_names, metadata
from trainer.training import ranks
from trainer.training.state_writer import StateWriter, Written
from trainer.training.training import Training
from trainer.training.validating import summary


class Keeper:
    """Saves what `training` has come to. Only rank 0 writes; the others keep step."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._states = StateWriter(training.folder.state, training.timetable.kept_states)
        self.writes = training.accelerator.is_main_process
        self._begun = time.monotonic()
        self._saved = self._moment if training.resumed else None

    @property
    def _moment(self) -> tuple[int, int | None]:
        """What tells one state from another: the step, and how many sample pictures of it are drawn."""
        return self._training.step, self._training.sampled

    @property
    def minutes(self) -> float:
        """Minutes since a state was last saved, or begun to be."""
        return (time.monotonic() - self._begun) / 60

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
        if training.step == 0:
            return
        with suppress(OSError):
            try:
                self.tell_of_state(wait=True)
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

    def save_state(self) -> None:
        """Write the resume state, unless this moment's is there. Afterwards it is."""
        training = self._training
        self.tell_of_state(wait=True)
        self._begun = time.monotonic()
        if self.writes and self._saved != self._moment:
            state = training.state()
            self._tell_of(self._states.write(state, training.epoch))
            self._saved = self._moment

    def begin_state(self) -> None:
        """Begin to write the resume state. The training goes on meanwhile."""
        training = self._training
        self.tell_of_state(wait=True)
        self._begun = time.monotonic()
        if self.writes and self._saved != self._moment:
            self._states.begin(training.state(), training.epoch)
            self._saved = self._moment

    def finish_samples(self) -> None:
        """Take note that all sample pictures are drawn, also in a state of this step that says otherwise."""
        self._training.sampled = None
        if self._saved is not None and self._saved[0] == self._training.step:
            self.begin_state()

    def tell_of_state(self, *, wait: bool) -> None:
        """Tell of a state that was begun and is written; with `wait` it is waited for.

        Raises:
            RunError: it could not be written.
        """
        try:
            written = self._states.take(wait=wait)
        except RunError:
            self._saved = None
            raise
        if written is not None:
            self._tell_of(written)

    def _tell_of(self, state: Written) -> None:
        size = sum(file.stat().st_size for file in state.path.iterdir())
        saved = events.Saved(kind="state", path=str(state.path), step=state.step, epoch=state.epoch, bytes=size)
        self._training.tell(saved)

    def save_lora(self, name: str) -> str:
        """Write the LoRA as it is now and return its path; where no step has changed a weight, say so and return ""."""
        training = self._training
        path = training.folder.output_dir / name
        training.metrics.settle()
        if not training.metrics.learned:
            training.tell(events.Warned(message=f"{name} is not written: no step has changed a weight yet."))
            return ""
        if self.writes:
            with training.used():
                self._write_lora(path)
            if training.average is not None:
                with training.averaged():
                    self._write_lora(path.with_name(average_name(name)), {"ss_ema_decay": str(training.average.decay)})
        return str(path)

    def _write_lora(self, path: Path, more: Mapping[str, str] | None = None) -> None:
        """Write the LoRA with the weights that the parameters hold."""
        training = self._training
        entries = metadata.build(
            training.facts,
            step=training.step,
            epoch=training.epoch,
            finished=time.time(),
            validation=summary(training),
        )
        said = {**entries, **(more or {})}
        size = export.save(path, training.adapter.tensors(), said, training.config.saving.save_precision)
        if (other := training.config.metadata.save_copy_for) != "none":
            plan = training.plan
            about = FAMILIES[plan.recognition.family], plan.recognition.configs, plan.targets
            copy = key_names.renamed(training.adapter.tensors(), other, *about)
            export.save(path.with_name(copy_name(path.name, other)), copy, said, training.config.saving.save_precision)
        training.tell(events.Saved(kind="lora", path=str(path), step=training.step, epoch=training.epoch, bytes=size))

    def save_now(self) -> None:
        """Write the LoRA and the state as they are now."""
        self.save_lora(step_name(self._training.config.saving.output_name, self._training.step))
        self.save_state()

    def pause(self, phase: str = "") -> None:
        """Save, free the device, wait, take the device back. The numbers are the same as without the pause.

        Where another has the device by then and the run is told to end, it ends without it: a CPU can write files.

        Args:
            phase: what only the first rank is busy with, as its sample pictures; empty where all of them wait.
        """
        training = self._training
        self.save_state()
        device = training.device
        training.move(torch.device("cpu"))
        free_memory()
        if training.gate:
            training.gate.leave()
        if self.writes:
            alone = training.accelerator.num_processes == 1
            paused = events.Paused(step=training.step, phase=phase, saved=True, device_free=alone or not phase)
            wait(training.tell, training.inbox, paused, self.save_now)
        if not phase:
            ranks.from_first(None)
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
            training.tell(events.Stage(name=WAITING))
            if training.inbox.wishes.ending:
                return False
            training.inbox.sleep()
        return True
