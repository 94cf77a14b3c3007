"""Watches how long steps take, and says why where they take much longer than at the run's beginning.

A step is compared with the early median: without what saving and sampling take, which has a remark of its own. What is
looked at is what a program can see: waiting for pictures, memory that was moved out, other programs at work.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import deque
from dataclasses import dataclass

import psutil
import torch

from trainer.ground.events import Emit, Warned

EARLY, RECENT = 30, 20
"""Steps that the early median is made of, after the first few; and those that it is compared with."""

_WARMING = 5
SLOWER = 1.6
"""Times the early median from which something is wrong."""

_LEAST_SECONDS = 0.02
"""A step that is slower by less is nobody's concern."""

_WAITING, _OTHERS, _SPILLED, _FULL = 0.5, 0.3, 64 << 20, 0.97
"""Of the delay, what is waiting for pictures; of the processor, what others use; bytes and share of memory in use."""

_WATCHING, _SHARE_OF_SAMPLES = 600.0, 0.3
"""Seconds after which the share of time that sample pictures take is judged, and what is much of it."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the machine was doing up to one moment: seconds of the processor, of all programs and of this one's."""

    at: float
    busy: float
    own: float
    swapped: int

    @classmethod
    def now(cls) -> Surroundings:
        """Look."""
        times, own = psutil.cpu_times(), psutil.Process().cpu_times()
        busy = sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
        return cls(time.monotonic(), busy, own.user + own.system, psutil.swap_memory().used)


class Watchdog:
    """Is told of each step; warns once when they have become slow, and again only after they were quick in between."""

    def __init__(self, tell: Emit, device: torch.device) -> None:
        self._tell = tell
        self._device = device
        self._early: list[float] = []
        self._early_waits: list[float] = []
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)
        self._seen: Surroundings | None = None
        self._steps = 0
        self._warned = self._told_of_samples = False
        self._began, self._sampling = time.monotonic(), 0.0

    def step(self, seconds: float, waited: float) -> None:
        """Take note of a step: how long it was computed, and how long its pictures were waited for before."""
        self._steps += 1
        if self._steps <= _WARMING:
            return
        if len(self._early) < EARLY:
            self._early.append(seconds + waited)
            self._early_waits.append(waited)
            if len(self._early) == EARLY:
                self._seen = Surroundings.now()
            return
        self._recent.append((seconds + waited, waited))
        if len(self._recent) == RECENT and self._steps % RECENT == 0:
            self._judge()

    def sampled(self, seconds: float) -> None:
        """Take note of the time that sample pictures took."""
        self._sampling += seconds
        whole = time.monotonic() - self._began
        if whole > _WATCHING and self._sampling > _SHARE_OF_SAMPLES * whole and not self._told_of_samples:
            self._told_of_samples = True
            share = f"Drawing samples takes {self._sampling / whole:.0%} of the time."
            self._tell(Warned(message=f"{share} Draw fewer or smaller ones, or less often: sample_every_n_epochs."))

    def _judge(self) -> None:
        before, now = statistics.median(self._early), statistics.median(whole for whole, _ in self._recent)
        seen, self._seen = self._seen, Surroundings.now()
        slow = now > SLOWER * before and now > before + _LEAST_SECONDS
        if slow and not self._warned and seen is not None:
            reason = self._reason(now - before, seen, self._seen)
            longer = f"Steps take {now:.2g} s, {now / before:.1f} times as long as at the beginning"
            self._tell(Warned(message=f"{longer}: {reason}"))
        self._warned = slow

    def _reason(self, delay: float, seen: Surroundings, now: Surroundings) -> str:
        """Return the likeliest reason with what to do."""
        waiting = statistics.median(wait for _, wait in self._recent) - statistics.median(self._early_waits)
        if waiting > _WAITING * delay:
            return (
                "they wait for pictures from the disk. Keep latents in memory (cache_latents), or move the pictures to "
                "a faster disk."
            )
        if self._device.type == "cuda":
            free, whole = torch.cuda.mem_get_info(self._device)
            if free < (1 - _FULL) * whole:
                return (
                    "the graphics card's memory is full, and its driver moves parts out to main memory. Close other "
                    "programs that use the card, or lower train_batch_size."
                )
        if now.swapped - seen.swapped > _SPILLED:
            return "main memory is full and is moved out to the disk. Close other programs, or lower train_batch_size."
        passed = max(1e-6, now.at - seen.at)
        others = max(0.0, (now.busy - seen.busy) - (now.own - seen.own)) / passed / (os.cpu_count() or 1)
        if others > _OTHERS:
            return f"other programs use {others:.0%} of the processor{_busiest()}. Close them, or let them end first."
        return "nothing here says why; a device that is hot slows itself down. See to its air, or pause for a while."


def _busiest() -> str:
    """Return the name of the other program that has used the processor most, as an insertion, or an empty text."""
    found = []
    for process in psutil.process_iter(["name", "pid", "cpu_times"]):
        times = process.info["cpu_times"]
        if times and process.info["pid"] != os.getpid():
            found.append((times.user + times.system, process.info["name"]))
    return f", most of all {max(found)[1]!r}" if found else ""
