"""Watchers of a run: the terminal, TensorBoard; `event_log` has a third. Each is a callable that takes an event."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Never, TextIO

from tqdm import tqdm

from trainer.ground import events
from trainer.ground.events import Emit, Event

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

_PLAIN_SECONDS = 10.0
"""Least time between two progress lines where the output is not a terminal."""

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_BREAKS = re.compile("[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


class TensorBoard:
    """Writes scalars under sd-scripts' names: loss/current, loss/average, loss/epoch_average, lr/*."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def __call__(self, event: Event) -> None:
        """Write one event's numbers."""
        match event:
            case events.Started():
                self._open(event)
            case events.StepDone():
                self._add("loss/current", event.loss, event.step)
                self._add("loss/average", event.average_loss, event.step)
                for component, rate in event.lr.items():
                    self._add(f"lr/{component}", rate, event.step)
                for component, rate in event.acting_lr.items():
                    self._add(f"lr/d*lr/{component}", rate, event.step)
                if event.step_size is not None:
                    self._add("lr/d", event.step_size, event.step)
            case events.EpochDone():
                self._add("loss/epoch_average", event.loss, event.step)
            case events.Validated() if event.of_series:
                self._add("loss/validation", event.loss, event.step)

    def _open(self, started: events.Started) -> None:
        """Begin a file. What was written of later steps than a resumed run begins after holds no longer."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=started.step + 1 if started.resumed else None)

    def _add(self, name: str, value: float, step: int) -> None:
        if self._writer:
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is buffered."""
        if self._writer:
            self._writer.close()


class Console:
    """Progress bars for every phase on a terminal, plain lines elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._bar: tqdm[Never] | None = None
        self._phase = ""
        self._total_steps = 0
        self._last_line = 0.0

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case events.Started():
                self._total_steps = event.total_steps
                self.line(f"Run folder: {event.folder}")
                if event.resumed:
                    self.line(f"Resuming after step {event.step} of {event.total_steps}.")
            case events.Stage():
                self._progress(event.name, event.done, event.total, "")
            case events.StepDone():
                skipped = "  gradient not finite: step skipped" if event.skipped else ""
                note = f"epoch {event.epoch}  loss {event.loss:.4f}  average {event.average_loss:.4f}{skipped}"
                self._progress("training", event.step, self._total_steps, note)
            case events.Saved(kind="lora"):
                self.line(f"Saved {event.path} ({event.bytes / 1e6:.1f} MB)")
            case events.SampleReady():
                self.line(f"Sample {event.path}")
            case events.PromptsChanged():
                self.line(f"From the pictures after step {event.step} on, other prompts are drawn.")
            case events.Warned():
                self.line(f"Note: {event.message}")
            case events.Paused():
                self.line(pause_in_words(event))
            case events.Finished():
                self._finished(event)

    def _progress(self, phase: str, done: int, total: int, note: str) -> None:
        if phase != self._phase:
            self._close_bar()
            self._phase = phase
            self._last_line = 0.0
        name = phase.capitalize()
        if self._live:
            self._show_bar(name, done, total, note)
        elif time.monotonic() - self._last_line > _PLAIN_SECONDS or done == total:
            self._last_line = time.monotonic()
            self._write(f"{name} {done}/{total or '?'}  {note}".rstrip())

    def _show_bar(self, name: str, done: int, total: int, note: str) -> None:
        bar = self._bar or tqdm(total=total or None, desc=name, initial=done, file=self._stream, dynamic_ncols=True)
        bar.set_postfix_str(note, refresh=False)
        bar.n = done
        bar.refresh()
        self._bar = bar

    def _finished(self, event: events.Finished) -> None:
        self._close_bar()
        if not event.path:
            self._write(f"Stopped after step {event.step}, without a finished file.")
        else:
            word = "Stopped" if event.stopped else "Finished"
            self._write(f"{word} after step {event.step} in {event.seconds:.0f} s: {event.path}")

    def line(self, text: str) -> None:
        """Write one line above the bar, or plainly."""
        if self._bar is not None:
            self._bar.write(self._shown(text), file=self._stream)
        else:
            self._write(text)

    def _write(self, text: str) -> None:
        self._stream.write(self._shown(text) + "\n")
        self._stream.flush()

    def _shown(self, text: str) -> str:
        return writable(one_line(text), self._stream)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def close(self) -> None:
        """Leave the terminal tidy."""
        self._close_bar()


def pause_in_words(event: events.Paused) -> str:
    """Return where a run waits, what of it is safe, and whether the device can be used by others."""
    phase = f", while {event.phase}" if event.phase else ""
    saved = "The state is saved" if event.saved else "Nothing was trained yet, so there is nothing to save"
    device = "the device is free" if event.device_free else "the device is still in use"
    return f"Paused after step {event.step}{phase}. {saved}; {device}."


def writable(text: str, stream: TextIO) -> str:
    """Return the text with escapes for what a stream cannot show, and for what would steer a terminal.

    Prompts, names of files and metadata of strangers' files may hold such characters: control characters but the line
    break and the tab, those that turn the direction of writing, and bytes of a file name that are no UTF-8. The escapes
    are also those of JSON, so that what is printed as JSON stays it.
    """
    encoding = stream.encoding or "utf-8"
    return _STEERING.sub(_escape, text).encode(encoding, "backslashreplace").decode(encoding)


def one_line(text: str) -> str:
    """Return the text with escapes for its line breaks."""
    return _BREAKS.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def fan_out(needed: Iterable[Emit], others: Iterable[Emit] = ()) -> Emit:
    """Return one callable that tells every watcher.

    Of `others`, one that fails costs a notice, and is told nothing more.
    """
    needed, left = tuple(needed), list(others)

    def emit(event: Event) -> None:
        for watcher in needed:
            watcher(event)
        for watcher in tuple(left):
            try:
                watcher(event)
            except Exception as error:
                left.remove(watcher)
                logger.debug("a watcher failed", exc_info=True)
                reason = str(error) or type(error).__name__
                emit(
                    events.Warned(
                        message=f"{type(watcher).__name__} failed and gets nothing more of this run: {reason}"
                    )
                )

    return emit
