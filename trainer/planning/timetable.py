"""The numbers of a run that follow from its settings and pictures: steps, epochs, when to save and sample, file names.

Steps and epochs count from 1; step n is the n-th optimizer step. Rules are sd-scripts' (`train_network.py`,
`library/train_util.py`) unless said otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainer.config import TrainingConfig

LORA_SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class Timetable:
    """How long a run is and what is due after which step.

    `micro_batches` is the number of batches in one epoch over all ranks.
    """

    micro_batches: int
    accumulation: int
    ranks: int
    steps_per_epoch: int
    total_steps: int
    total_epochs: int
    config: TrainingConfig

    @property
    def text_encoders_end(self) -> int:
        """How many steps text encoders are trained for; 0 = all."""
        until = self.config.rates.stop_text_encoder_training
        return max(1, int(until * self.total_steps)) if 0 < until < 1 else int(until)

    def epoch(self, step: int) -> int:
        """Return the epoch that step `step` (from 1) belongs to; step 0 is before the first."""
        return math.ceil(step / self.steps_per_epoch)

    def ends_epoch(self, step: int) -> bool:
        """True when `step` is the last of its epoch or of the run."""
        return step % self.steps_per_epoch == 0 or step == self.total_steps

    def lora_names(self, step: int) -> tuple[str, ...]:
        """Return the file names to write after `step`, without the one for the finished run."""
        saving, names = self.config.saving, []
        if saving.save_every_n_steps and step % saving.save_every_n_steps == 0:
            names.append(step_name(saving.output_name, step))
        if self._saves_epoch(step):
            names.append(epoch_name(saving.output_name, self.epoch(step)))
        return tuple(names)

    @property
    def epochs_between_saves(self) -> int:
        """How many epochs lie between two LoRAs saved after epochs; 0 where none is."""
        saving = self.config.saving
        if saving.save_n_epoch_ratio:
            return max(1, self.total_epochs // saving.save_n_epoch_ratio)
        return saving.save_every_n_epochs or 0

    def _saves_epoch(self, step: int) -> bool:
        """The last epoch's file is the finished one."""
        every, epoch = self.epochs_between_saves, self.epoch(step)
        return bool(every) and self.ends_epoch(step) and epoch % every == 0 and epoch < self.total_epochs

    def keeps_state(self, step: int) -> bool:
        """True where the state of `step` is to be kept, with the LoRA that is saved then."""
        return self.config.saving.save_state and bool(self.lora_names(step))

    def kept_states(self, step: int) -> frozenset[int]:
        """Return the steps whose states stay, besides the newest, when `step` steps are done."""
        saving = self.config.saving
        if not saving.save_state:
            return frozenset()
        kept: set[int] = set()
        if every := saving.save_every_n_steps:
            limit = saving.save_last_n_steps_state or saving.save_last_n_steps or step
            newest = step // every * every
            kept |= set(range(max(0, (newest - limit - 1) // every * every) + every, newest + 1, every))
        if between := self.epochs_between_saves:
            newest = min(step // self.steps_per_epoch, self.total_epochs - 1) // between * between
            count = saving.save_last_n_epochs_state or saving.save_last_n_epochs or newest
            first = max(0, newest - between * count)
            kept |= {epoch * self.steps_per_epoch for epoch in range(first + between, newest + 1, between)}
        return frozenset(kept)

    def expired_names(self, step: int) -> tuple[str, ...]:
        """Return the earlier files to remove once those of `step` are written.

        `save_last_n_steps` is a number of steps, not of files: with a file every 5 steps and the last 10 kept,
        three remain, as with sd-scripts.
        """
        saving, names = self.config.saving, []
        every = saving.save_every_n_steps
        if every and saving.save_last_n_steps and step % every == 0:
            last = (step - saving.save_last_n_steps - 1) // every * every
            names += [step_name(saving.output_name, last)] if last > 0 else []
        every = self.epochs_between_saves
        if every and saving.save_last_n_epochs and self._saves_epoch(step):
            last = self.epoch(step) - every * saving.save_last_n_epochs
            names += [epoch_name(saving.output_name, last)] if last > 0 else []
        return tuple(names)

    def sample_due(self, step: int) -> bool:
        """True when sample pictures are wanted after `step`; step 0 is before training."""
        sampling = self.config.sampling
        if step == 0:
            return sampling.sample_at_first
        by_step = bool(sampling.sample_every_n_steps) and step % (sampling.sample_every_n_steps or 1) == 0
        return by_step or self.samples_epoch(step)

    def samples_epoch(self, step: int) -> bool:
        """True when the end of an epoch is why samples are wanted after `step`; their file names then say so."""
        every = self.config.sampling.sample_every_n_epochs
        return bool(every) and step > 0 and self.ends_epoch(step) and self.epoch(step) % (every or 1) == 0


def step_name(output_name: str, step: int) -> str:
    """Return kohya's file name for a LoRA saved after `step`."""
    return f"{output_name}-step{step:08d}{LORA_SUFFIX}"


def epoch_name(output_name: str, epoch: int) -> str:
    """Return kohya's file name for a LoRA saved after `epoch`."""
    return f"{output_name}-{epoch:06d}{LORA_SUFFIX}"


def average_name(name: str) -> str:
    """Return what the average of the LoRA is called that is saved under a name."""
    return f"{name.removesuffix(LORA_SUFFIX)}-ema{LORA_SUFFIX}"


def copy_name(name: str, of: str) -> str:
    """Return what the copy of a LoRA is called that has another program's keys."""
    return f"{name.removesuffix(LORA_SUFFIX)}-{of}{LORA_SUFFIX}"


def final_name(output_name: str) -> str:
    """Return the file name of the finished LoRA."""
    return f"{output_name}{LORA_SUFFIX}"


def make_timetable(config: TrainingConfig, *, micro_batches: int, ranks: int = 1) -> Timetable:
    """Return the plan for `micro_batches` batches an epoch.

    `max_train_epochs` wins over `max_train_steps`; the last epoch may be cut by `max_train_steps`.
    """
    training = config.training
    per_step = training.gradient_accumulation_steps * ranks
    steps_per_epoch = math.ceil(micro_batches / per_step)
    if training.max_train_epochs is not None:
        epochs = training.max_train_epochs
        steps = epochs * steps_per_epoch
    else:
        steps = training.max_train_steps or 0
        epochs = math.ceil(steps / steps_per_epoch)
    return Timetable(
        micro_batches=micro_batches,
        accumulation=training.gradient_accumulation_steps,
        ranks=ranks,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps,
        total_epochs=epochs,
        config=config,
    )
