"""Time of a training step over the floor, both in one process, in turns.

The step is the program's own: `trainer.train` runs, and between two of its steps the rivals take theirs. What lies
between two StepDone events, less the rivals' time, is one step with all that belongs to it.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import ground
from benchmarks.options import Options
from benchmarks.profiling import Profile
from benchmarks.rivals import Floor, Reference
from benchmarks.rows import Row, Target, median_row, ratio_row
from trainer import Start, TrainingConfig, load_config, train
from trainer.ground.events import Event, StepDone
from trainer.training import precision

_WARM = 3
"""First steps that do not count: memory is laid out, kernels are chosen."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting that steps are measured at; `steps` count. The first four say what differs from the base cell."""

    name: str
    model: str = "sd15-quarter"
    resolution: int = 256
    batch: int = 1
    precision: str = "no"
    checkpointing: bool = False
    rank: int = 16
    text: bool = False
    steps: int = 20
    quick_steps: int = 6
    target: Target | None = None
    reference: Target | None = None
    between: Target | None = None

    def config(self, data: Path, output: Path, folder: Path, steps: int) -> TrainingConfig:
        """Return the settings of a run of so many steps."""
        return load_config(
            overrides=ground.settings(
                ground.model(self.model, folder),
                data,
                output,
                resolution=f"{self.resolution},{self.resolution}",
                train_batch_size=self.batch,
                mixed_precision=self.precision,
                gradient_checkpointing=self.checkpointing,
                network_dim=self.rank,
                network_alpha=float(self.rank),
                network_train_unet_only=not self.text,
                text_encoder_lr=1e-4 if self.text else 0.0,
                max_train_steps=steps,
            )
        )


_TINY = Cell("tiny", model="tiny", resolution=64, steps=100, quick_steps=20)
CELLS = (
    Cell("base", target=Target(1.08), reference=Target(1.1, at_most=False)),
    Cell("sdxl", model="sdxl-quarter", target=Target(1.05)),
    Cell("real", model="sd15", resolution=512, steps=4, quick_steps=0, target=Target(1.02), between=Target(1.0)),
    _TINY,
    dataclasses.replace(_TINY, name="tiny-text", text=True, target=Target(1.08), reference=Target(1.1, at_most=False)),
    Cell("batch-4", batch=4, steps=12, quick_steps=3),
    Cell("bf16", precision="bf16"),
    Cell("checkpointing", checkpointing=True),
    Cell("rank-4", rank=4),
    Cell("rank-64", rank=64),
    Cell("rank-128", rank=128),
    Cell("text", text=True),
)
"""The base cell, and one factor changed at a time. Cells with `quick_steps` 0 are left out of a quick run."""


class Turns:
    """An `emit` for `trainer.train` that lets each rival take a step after each of the run's, and times all of them.

    On a GPU `group` steps are taken in a row, so that what runs ahead of it may. `made` builds the rivals, once the
    run has chosen how it computes.
    """

    def __init__(self, made: Callable[[], dict[str, Callable[[], None]]], clock: Callable[[], float]) -> None:
        self.times: dict[str, list[float]] = {"ours": []}
        self.inside: list[float] = []
        self._made, self._clock = made, clock
        self._rivals: dict[str, Callable[[], None]] = {}
        self._group = 10 if torch.cuda.is_available() else 1
        self._steps, self._mark = 0, 0.0

    def __call__(self, event: Event) -> None:
        """Note a step of the run."""
        if not isinstance(event, StepDone):
            return
        self._steps += 1
        if self._steps < _WARM:
            return
        if self._steps == _WARM:
            self._begin()
        else:
            self.inside.append(event.seconds)
            if (self._steps - _WARM) % self._group:
                return
            _wait()
            self.times["ours"].append((self._clock() - self._mark) / self._group)
            for name, rival in self._rivals.items():
                self.times[name].append(self._time(rival))
        _wait()
        self._mark = self._clock()

    def dismiss(self) -> None:
        """Let the rivals and their memory go."""
        self._rivals = {}

    def _begin(self) -> None:
        self._rivals = self._made()
        self.times |= {name: [] for name in self._rivals}
        for rival in self._rivals.values():
            for _ in range(_WARM):
                rival()

    def _time(self, rival: Callable[[], None]) -> float:
        began = self._clock()
        for _ in range(self._group):
            rival()
        _wait()
        return (self._clock() - began) / self._group


def measure(cell: Cell, options: Options) -> Iterator[Row]:
    """Yield the rows of one cell."""
    steps = cell.quick_steps if options.quick else cell.steps
    if torch.cuda.is_available():
        steps *= 10
    with tempfile.TemporaryDirectory() as work:
        side = cell.resolution
        data = ground.pictures(Path(work) / "pictures", 8, (side, side), repeats=100 * cell.batch)
        config = cell.config(data, Path(work) / "output", options.folder, _WARM + steps)

        def rivals() -> dict[str, Callable[[], None]]:
            chosen = precision.resolve(config)
            made = {"floor": Floor(config, chosen.device, chosen.compute_dtype)}
            return made | {"reference": Reference(config, chosen.device, chosen.compute_dtype)}

        turns = Turns(rivals, options.clock)
        train(config, emit=turns, start=Start(overwrite=True))
        turns.dismiss()
        profile = Profile(steps=min(steps, 10))
        if options.profile or torch.cuda.is_available():
            again = cell.config(data, Path(work) / "profiled", options.folder, _WARM + profile.steps)
            profile.run(again)
    times, name = turns.times, f"steps/{cell.name}"
    yield median_row(f"{name}/ours", [1000 * value for value in times["ours"]], "ms")
    yield median_row(f"{name}/floor", [1000 * value for value in times["floor"]], "ms")
    yield ratio_row(f"{name}/ours over floor", times["ours"], times["floor"], cell.target)
    yield ratio_row(f"{name}/reference over floor", times["reference"], times["floor"])
    yield ratio_row(f"{name}/rate against reference", times["reference"], times["ours"], cell.reference)
    if not options.cpu_clock:
        outside = [100 * (whole - part) / whole for whole, part in zip(times["ours"], turns.inside, strict=False)]
        yield median_row(f"{name}/between two steps", outside, "%", cell.between)
    yield from profile.rows(name)
    if options.profile:
        profile.show(name)


def _wait() -> None:
    """Wait for the GPU, whose work the clock would not see otherwise."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
