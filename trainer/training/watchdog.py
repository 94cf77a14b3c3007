"""Watches how long steps take, and says why where they take much longer than at the run's beginning.

A step is compared with the early median: without what saving and sampling take, which has a remark of its own. What is
looked at is what a program can see: waiting for pictures, memory that was moved out, other programs at work.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import deque
from collections.abc import Collection, Mapping

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

_LOOKING = 0.3
"""Seconds for which other programs are watched, once steps have become slow."""

_WATCHING, _SHARE_OF_SAMPLES = 600.0, 0.3
"""Seconds after which the share of time that sample pictures take is judged, and what is much of it."""


class Watchdog:
    """Is told of each step; warns once when they have become slow, and again only after they were quick in between."""

    def __init__(self, tell: Emit, device: torch.device) -> None:
        self._tell = tell
        self._device = device
        self._early: list[float] = []
        self._early_waits: list[float] = []
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)
        self._swapped = 0
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
                self._swapped = swapped()
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
        earlier, self._swapped = self._swapped, swapped()
        slow = now > SLOWER * before and now > before + _LEAST_SECONDS
        if slow and not self._warned:
            reason = self._reason(now - before, self._swapped - earlier)
            longer = f"Steps take {now:.2g} s, {now / before:.1f} times as long as at the beginning"
            self._tell(Warned(message=f"{longer}: {reason}"))
        self._warned = slow

    def _reason(self, delay: float, moved: int) -> str:
        """Return the likeliest reason with what to do; `moved` are the bytes that went from main memory to the disk."""
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
        if moved > _SPILLED:
            return "main memory is full and is moved out to the disk. Close other programs, or lower train_batch_size."
        share, busiest = others()
        if share > _OTHERS:
            used = f"{share:.0%} of the processor, most of all {busiest!r}"
            return f"other programs use {used}. Close them, or let them end first."
        return (
            "nothing here says why. Another program may use the device too, or it is hot and slows itself down. Close "
            "what you do not need, see to its air, or pause for a while."
        )


def swapped() -> int:
    """Return how many bytes of main memory are moved out to the disk."""
    return int(psutil.swap_memory().used)


def others() -> tuple[float, str]:
    """Return which share of the processor other programs use at the moment, and the name of the one that uses most."""
    before, began = _used(), time.monotonic()
    time.sleep(_LOOKING)
    starter = psutil.Process(os.getppid() if "WORLD_SIZE" in os.environ else None)  # other ranks are no others
    own = {os.getpid(), *(child.pid for child in starter.children(recursive=True))}
    return share_of_others(before, _used(), own, time.monotonic() - began)


def _used() -> dict[int, tuple[str, float]]:
    """Return the name of each process and the seconds of the processor that it has used."""
    found = psutil.process_iter(["name", "pid", "cpu_times"])
    facts = [each.info for each in found if each.info["cpu_times"]]
    return {each["pid"]: (each["name"] or "", each["cpu_times"].user + each["cpu_times"].system) for each in facts}


def share_of_others(
    before: Mapping[int, tuple[str, float]], now: Mapping[int, tuple[str, float]], own: Collection[int], passed: float
) -> tuple[float, str]:
    """Return what `others` does, of two looks some seconds apart.

    Args:
        own: this program and what it has started, such as the loader's workers, by their numbers.
    """
    used: dict[str, float] = {}
    for number, (name, seconds) in now.items():
        if number in before and number not in own:
            used[name] = used.get(name, 0.0) + max(0.0, seconds - before[number][1])
    busiest = max(used, key=used.__getitem__, default="")
    return sum(used.values()) / passed / (os.cpu_count() or 1), busiest
