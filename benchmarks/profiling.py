"""Where the time of a step goes: by phase of the loop, and by class of kernel."""

from __future__ import annotations

import functools
import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch.profiler import ProfilerActivity, profile

from benchmarks.rows import Row
from trainer import Start, TrainingConfig, train
from trainer.ground.events import Event, StepDone
from trainer.training import loop

_WARM = 3

CLASSES = (
    ("attention", ("scaled_dot_product", "flash", "fmha", "attention")),
    ("convolution", ("conv", "cudnn")),
    ("matrix product", ("mm", "linear", "gemm", "matmul", "cutlass", "cublas")),
    ("normalisation", ("norm",)),
    ("optimizer", ("adam", "foreach", "fused")),
    ("copies and casts", ("copy", "_to_copy", "cat", "clone", "contiguous", "memcpy", "fill", "zero", "memset")),
    ("elementwise", ("mul", "add", "sub", "div", "silu", "gelu", "sum", "mean", "elementwise", "reduce", "exp", "pow")),
)
"""Class of kernel, and what the names of its operators or kernels have in them; the first that fits counts."""


class Profile:
    """Runs some steps of the real loop, once with timers at its phases and once under torch's profiler.

    A phase is a public function of `trainer.training.loop`, less what it calls of the others; "backward" is
    accelerate's.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.phases: dict[str, float] = defaultdict(float)
        self.kernels: dict[str, float] = defaultdict(float)
        self.seconds = 0.0
        self.launches = 0
        self.busy = 0.0

    def run(self, config: TrainingConfig) -> None:
        """Train, and take notes. `config` asks for `steps` steps and some to warm up."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        with _timed(self.phases) as phases:
            stopwatch = _Stopwatch(self.steps, phases.clear)
            train(config, emit=stopwatch)
            self.seconds = stopwatch.ended - stopwatch.began
        self._trace(config)

    def _trace(self, config: TrainingConfig) -> None:
        cuda = torch.cuda.is_available()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        tracer = profile(activities=activities)
        watch = _Stopwatch(self.steps, tracer.start, tracer.stop)
        train(config, emit=watch, start=Start(overwrite=True))
        averages = tracer.key_averages()
        kernels = [each for each in averages if each.device_type == torch.autograd.DeviceType.CUDA]
        for each in kernels or averages:
            spent = each.self_device_time_total if kernels else each.self_cpu_time_total
            self.kernels[_class_of(each.key)] += spent / 1e6
        self.launches = sum(each.count for each in kernels)
        self.busy = sum(each.self_device_time_total for each in kernels) / 1e6 / max(watch.ended - watch.began, 1e-9)

    def rows(self, name: str) -> Iterator[Row]:
        """Yield what a GPU run has to tell, as rows."""
        if self.launches:
            yield Row(f"{name}/kernels a step", self.launches / self.steps, "")
            yield Row(f"{name}/GPU busy", 100 * self.busy, "%")
            yield Row(f"{name}/peak VRAM", torch.cuda.max_memory_allocated() / 2**20, "MiB")

    def show(self, name: str) -> None:
        """Print both divisions."""
        self.phases["the rest: loader, events, accounts"] = self.seconds - sum(self.phases.values())
        for title, shares in (("phase", self.phases), ("kernels", self.kernels)):
            whole = sum(shares.values())
            print(f"\n{name}, by {title}")
            for what, spent in sorted(shares.items(), key=lambda share: -share[1]):
                print(f"  {what:<40} {1000 * spent / self.steps:9.2f} ms a step {100 * spent / whole:5.1f} %")


class _Stopwatch:
    """An `emit` that knows when `steps` steps after the first few began and ended, and calls two functions then."""

    def __init__(self, steps: int, at_begin: Callable[[], object], at_end: Callable[[], object] = int) -> None:
        self.began = self.ended = 0.0
        self._last, self._at_begin, self._at_end, self._seen = _WARM + steps, at_begin, at_end, 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self._seen += 1
            if self._seen == _WARM:
                self._at_begin()
                self.began = time.perf_counter()
            if self._seen == self._last:
                self.ended = time.perf_counter()
                self._at_end()


@contextmanager
def _timed(spent: dict[str, float]) -> Iterator[dict[str, float]]:
    """Count the time in each phase, of nested ones the innermost, while the block runs."""
    running: list[str] = []
    mark = [time.perf_counter()]

    def note(name: str | None) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if running:
            spent[running[-1]] += now - mark[0]
        mark[0] = now
        running.append(name) if name else running.pop()

    def wrap(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*given: Any, **named: Any) -> Any:
            note(name)
            try:
                return function(*given, **named)
            finally:
                note(None)

        return timed

    own = inspect.getmembers(loop, lambda each: inspect.isfunction(each) and each.__module__ == loop.__name__)
    places = [(loop, name, made) for name, made in own if name != "train" and not inspect.isgeneratorfunction(made)]
    places.append((Accelerator, "backward", Accelerator.backward))
    try:
        for place, name, function in places:
            setattr(place, name, wrap(name, function))
        yield spent
    finally:
        for place, name, function in places:
            setattr(place, name, function)


def _class_of(name: str) -> str:
    low = name.lower()
    return next((kind for kind, words in CLASSES if any(word in low for word in words)), "other")
