"""What a run does on its way: LoRA files, states and sample pictures when they are due; and how it obeys commands."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from trainer.families import FAMILIES
from trainer.ground import events
from trainer.ground.commands import Command
from trainer.ground.errors import Stopped
from trainer.memory import free_memory
from trainer.planning.dialects import OTHERS
from trainer.planning.timetable import average_name, copy_name, final_name
from trainer.preview.prompts import SampleRequest, picture_name, settle
from trainer.preview.sampling import sample, save_picture
from trainer.training import failures, ranks
from trainer.training.keeper import Keeper
from trainer.training.prompts import Prompts
from trainer.training.training import Training
from trainer.training.validating import LossesOf, Validating
from trainer.training.watchdog import Watchdog
from trainer.training.watching import only_watching

_SMALLEST_SAMPLE = 64
"""Pixels a side below which a picture shows nothing any more."""


class Hooks:
    """Does what the plan and the commands say is due. Only rank 0 writes; the others keep step."""

    def __init__(self, training: Training, losses_of: LossesOf) -> None:
        self._training = training
        self._keeper = training.progress.keeper = Keeper(training)
        self._validating = Validating(training, losses_of, measures=self._keeper.writes)
        self._prompts = Prompts(training)
        self._watchdog = Watchdog(training.tell, training.device)
        self._halvings = 0
        self._ended = time.perf_counter()

    @contextmanager
    def on_the_way(self) -> Iterator[None]:
        """Keep the state where the block fails."""
        with self._keeper.keeping_state():
            yield

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Leave the block early where the run is told to end; `obey` then ends it as it would between two steps."""
        with suppress(Stopped):
            yield

    def begin(self) -> None:
        """Do what is due before the first step, and the rest of what a pause or a kill cut short."""
        training = self._training
        self._validating.begin()
        self._save_files(missing=True)
        if training.sampled is not None:
            self._sample(training.sampled)
        elif training.step == 0 and training.timetable.sample_due(0):
            self._sample()

    def after_step(self) -> None:
        """Do what is due after the newest step."""
        training, keeper = self._training, self._keeper
        waited = time.perf_counter() - self._ended - training.step_seconds
        self._watchdog.step(training.step_seconds, max(0.0, waited))
        keeper.tell_of_state(wait=False)
        step, timetable = training.step, training.timetable
        epoch_ended = timetable.ends_epoch(step)
        if timetable.sample_due(step):
            training.sampled = 0  # a state that is saved before they are drawn says that they are to be
        if epoch_ended:
            self._end_epoch()
        self._validating.after_step()
        self._save_files()
        if training.sampled is not None:
            self._sample()
        if epoch_ended or timetable.keeps_state(step) or keeper.minutes >= training.config.saving.save_state_minutes:
            keeper.begin_state()
        self._ended = time.perf_counter()

    def _save_files(self, *, missing: bool = False) -> None:
        """Write the files of the newest step and remove those that they replace; with `missing` only what is not there.

        A run that was ended while it measured has its state, and not yet its file.
        """
        training, keeper = self._training, self._keeper
        for name in training.timetable.lora_names(training.step) if training.step else ():
            if not (missing and (training.folder.output_dir / name).exists()):
                keeper.save_lora(name)
        for name in training.timetable.expired_names(training.step):
            if keeper.writes:
                copies = (copy_name(each, of) for each in (name, average_name(name)) for of in OTHERS)
                for each in (name, average_name(name), *copies):
                    (training.folder.output_dir / each).unlink(missing_ok=True)

    def obey(self) -> None:
        """Do what was asked for since the last step. Under several ranks rank 0 decides for all."""
        training, keeper = self._training, self._keeper
        while True:
            wishes = ranks.from_first(training.inbox.wishes)
            if wishes.saving:
                keeper.save_now()
                training.inbox.saved()
            if wishes.ending:
                training.ending = wishes.ending
                return
            if wishes.pausing:
                keeper.pause()
            elif wishes.sampling:
                self._sample()
            else:
                self._ended = time.perf_counter()
                return

    def finish(self) -> events.Finished:
        """Write the finished file and the last state, unless told to abort, and say how it ended.

        Raises:
            RunError: all steps are done, and none has changed a weight.
        """
        training = self._training
        training.metrics.settle()
        path = ""
        if training.ending is not Command.ABORT:
            self._validating.finish()
            path = self._finished_file()
            self._keeper.save_state()
        self._keeper.tell_of_state(wait=True)
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

    def _finished_file(self) -> str:
        """Write the file under the final name, which only what was trained may bear."""
        training = self._training
        if training.ending is None and not training.metrics.learned:
            finite, precision = not training.metrics.skipped, training.accelerator.mixed_precision
            raise failures.nothing_learned(training.step, finite=finite, precision=precision)
        return self._keeper.save_lora(final_name(training.config.saving.output_name))

    def _end_epoch(self) -> None:
        training = self._training
        training.metrics.settle()
        losses = training.metrics.epoch_losses
        mean = sum(losses) / len(losses) if losses else math.nan
        training.tell(events.EpochDone(epoch=training.epoch, step=training.step, loss=mean))
        losses.clear()

    def _sample(self, first: int = 0) -> None:
        """Make the sample pictures from number `first` on. A stop ends it, and the loop obeys it; a resume draws on."""
        training, began = self._training, time.perf_counter()
        training.metrics.settle()
        prompts = self._prompts.after(training.step, begun=first > 0) if self._keeper.writes else ()
        with suppress(Stopped):
            for index, prompt in list(enumerate(prompts))[first:]:
                training.sampled = index
                family = FAMILIES[training.bundle.family]
                drawn = training.bundle.latents.step, training.process.name, family.guidance
                self._sample_one(settle(prompt, training.config, index, *drawn))
            self._keeper.finish_samples()
        self._watchdog.sampled(time.perf_counter() - began)
        training.inbox.sampled()

    def _sample_one(self, request: SampleRequest) -> None:
        training = self._training
        step, name = training.step, training.config.saving.output_name
        epoch = training.epoch if training.timetable.samples_epoch(step) else None
        path = training.folder.samples / picture_name(name, request, step=step, epoch=epoch, moment=datetime.now())
        with only_watching(f"Sample picture {request.index + 1} after step {step}", training.tell):
            with training.shown():
                self._draw(request, path)
            ready = events.SampleReady(
                path=str(path), step=step, epoch=training.epoch, index=request.index, prompt=request.prompt
            )
            training.tell(ready)

    def _draw(self, request: SampleRequest, path: Path) -> None:
        """Draw and write one picture. Where memory runs out, it and all after it have sides half as long."""
        training = self._training
        while True:
            fitting = _halved(request, self._halvings)
            try:
                picture = sample(training.bundle, fitting, progress=training.progress, texts=training.text_cache)
                break
            except (MemoryError, RuntimeError, OSError) as error:
                if not failures.is_out_of_memory(error) or max(fitting.width, fitting.height) <= _SMALLEST_SAMPLE:
                    raise
                reason = failures.reason_of(error)
            # Here the error, and with it every tensor that its traceback holds, is gone.
            free_memory()
            self._halvings += 1
            smaller = _halved(request, self._halvings)
            message = f"A sample picture of {fitting.width}x{fitting.height} ran out of memory ({reason}). It is drawn "
            training.tell(events.Warned(message=f"{message}with {smaller.width}x{smaller.height}, as all after it."))
        save_picture(picture, fitting, path)


def _halved(request: SampleRequest, times: int) -> SampleRequest:
    """Return a request whose sides are halved so many times, but for the smallest that makes sense."""
    width, height = (
        max(side >> times, min(side, _SMALLEST_SAMPLE)) // 8 * 8 for side in (request.width, request.height)
    )
    return replace(request, width=width, height=height)
