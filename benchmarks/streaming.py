"""A step with all of the UNet's blocks streamed over the same step without, SD 1.5 at its real width, in turns."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks import ground
from benchmarks.options import Options
from benchmarks.rows import Row, Target, median_row, ratio_row
from trainer.config import load_config
from trainer.ground.commands import Inbox
from trainer.ground.control import Control
from trainer.ground.events import Event
from trainer.planning.plan import plan
from trainer.results.run_folder import RunFolder
from trainer.training import build, loop, precision

_SIDE, _STEPS = 512, 5
_TARGET = Target(1.05)


def measure(options: Options) -> Iterator[Row]:
    """Yield the rows: each step of the one is followed by a step of the other; the first of both does not count."""
    with tempfile.TemporaryDirectory() as work:
        steps = {name: _step(Path(work) / name, share, options) for name, share in (("whole", 0.0), ("streamed", 1.0))}
        times: dict[str, list[float]] = {name: [] for name in steps}
        try:
            for _ in range(_STEPS):
                for name, step in steps.items():
                    began = options.clock()
                    step()
                    times[name].append(options.clock() - began)
        finally:
            precision.reset()
    counted = {name: found[1:] for name, found in times.items()}
    for name, found in counted.items():
        yield median_row(f"streaming/sd15, {_SIDE} px, {name}", [1000 * value for value in found], "ms")
    yield ratio_row(f"streaming/sd15, {_SIDE} px, over whole", counted["streamed"], counted["whole"], _TARGET)


def _step(folder: Path, share: float, options: Options) -> Callable[[], None]:
    """Build a run and return its step: gradients and update."""
    settings = ground.settings(
        ground.model("sd15", options.folder),
        ground.pictures(folder / "pictures", 1, (_SIDE, _SIDE)),
        folder / "out",
        resolution=f"{_SIDE},{_SIDE}",
        network_train_unet_only=True,
        cache_text_encoder_outputs=True,
        streamed_weights=share,
    )
    inbox = Inbox()
    control = Control(_unheard, inbox)
    seen = plan(load_config(overrides=settings))
    run = RunFolder(folder / "out", "benchmark")
    models = build.load_models(seen.config, control, seen.recognition)
    training = build.build(seen, models, run, (_unheard, inbox, control), None)
    training.prepare()
    batch = next(iter(training.batches))

    def step() -> None:
        loop.accumulate(training, [batch])
        loop.update(training, torch.ones(()))

    return step


def _unheard(event: Event) -> None:
    """Nobody listens."""
