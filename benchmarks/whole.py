"""Whole runs: command to first step, caching, steps, saving, stopping, memory; and the same of sd-scripts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import ground, trials
from benchmarks.options import Options
from benchmarks.rows import Row, Target, median_row, ratio_row
from benchmarks.trials import Trial

_CACHED = {"cache_latents_to_disk": True}


@dataclass(frozen=True, slots=True)
class Cell:
    """A run to compare, with `settings` over those of `ground.settings`.

    `pictures` of `size` pixels are cached and trained with. `rate` is the target of steps a second, `caching` of
    pictures cached a second, `soon` of the time from the command to the first step with everything cached.
    """

    name: str
    model: str
    side: int
    settings: Mapping[str, object] = field(default_factory=dict)
    pictures: int = 24
    size: tuple[int, int] = (800, 800)
    steps: int = 20
    rate: Target = Target(1.0, at_most=False)
    caching: Target = Target(1.5, at_most=False)
    soon: Target | None = None


_OWN_BEST = {"mixed_precision": "bf16", "shuffle_caption": True, "keep_tokens": 1, "vae_batch_size": 4}
CELLS = (
    Cell(
        "tiny",
        "tiny",
        64,
        {"train_batch_size": 4, "network_train_unet_only": False},
        steps=80,
        size=(256, 256),
        rate=Target(1.04, at_most=False),
        soon=Target(2.0, at_most=False),
    ),
    Cell("base", "sd15-quarter", 256, {"network_train_unet_only": True, "vae_batch_size": 4}),
    Cell("text", "sd15-quarter", 256, {"network_train_unet_only": False, "vae_batch_size": 4}),
    Cell(
        "batch-4",
        "sd15-quarter",
        256,
        {"network_train_unet_only": True, "train_batch_size": 4},
        steps=12,
        rate=Target(1.6, at_most=False),
    ),
    Cell(
        "own-best",
        "sd15-quarter",
        256,
        {**_OWN_BEST, "network_train_unet_only": True},
        rate=Target(1.5, at_most=False),
        soon=Target(1.5, at_most=False),
    ),
    Cell(
        "real",
        "sd15",
        512,
        {"network_train_unet_only": True},
        steps=4,
        pictures=4,
        rate=Target(1.12, at_most=False),
        caching=Target(1.6, at_most=False),
    ),
)
_OURS_ALONE = {"own-best": {"cache_text_encoder_outputs_to_disk": True}}
"""What sd-scripts has no equal of for SD 1.5."""


def run(options: Options) -> Iterator[Row]:
    """Yield the rows of whole runs of the demo's model: 200 steps, first with nothing cached, then with everything."""
    steps = 20 if options.quick else 200
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = ground.pictures(work / "pictures", 32, (512, 512), repeats=20, form="jpg")
        settings = ground.settings(
            ground.DEMO, data, work / "output", resolution="64,64", max_train_steps=steps, vae_batch_size=8, **_CACHED
        )
        first = trials.ours(settings, work, options)
        again = [trials.ours(settings, work, options) for _ in range(1 if options.quick else 3)]
        endless = {**settings, "max_train_steps": 100_000, "output_dir": str(work / "stopped")}
        stopped = trials.ours(endless, work, options, stop_after=10)
    yield Row("run/command to first step, nothing cached", first.to_first_step, "s")
    yield median_row("run/command to first step, cached", [each.to_first_step for each in again], "s")
    yield Row("run/caching", first.caching_rate, "pictures/s")
    yield median_row("run/steps a second", [1 / each for trial in again for each in trial.steps], "/s")
    yield median_row("run/save a LoRA", [_save_seconds(each) for each in (first, *again)], "s")
    yield Row("run/stop to file", stopped.at("saved lora", last=True)["wall"] - stopped.began, "s")
    yield median_row(f"run/end to end, {steps} steps", [each.whole for each in again], "s")


def memory(options: Options) -> Iterator[Row]:
    """Yield the peak memory of a run at each size."""
    for name, model, side in (("tiny", "tiny", 64), ("base", "sd15-quarter", 256), ("real", "sd15", 512)):
        if name == "real" and options.quick:
            continue
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            data = ground.pictures(work / "pictures", 4, (side, side))
            settings = ground.settings(ground.model(model, options.folder), data, work / "output", max_train_steps=2)
            trial = trials.ours({**settings, "resolution": f"{side},{side}"}, work, options)
        yield Row(f"memory/{name}", trial.peak / 2**20, "MiB")
        if trial.peak_gpu is not None:
            yield Row(f"memory/{name}, GPU", trial.peak_gpu / 2**20, "MiB")


def against_sd_scripts(cell: Cell, options: Options) -> Iterator[Row]:
    """Yield how this program does against sd-scripts on the same model, pictures and settings, in turns."""
    name = f"sd-scripts/{cell.name}"
    steps = max(4, cell.steps // 5) if options.quick else cell.steps
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = ground.pictures(work / "pictures", cell.pictures, cell.size, repeats=20, form="jpg")
        settings = ground.settings(
            ground.model(cell.model, options.folder),
            data,
            work / "output",
            resolution=f"{cell.side},{cell.side}",
            enable_bucket=True,
            bucket_no_upscale=False,
            min_bucket_reso=64,
            max_train_steps=steps + 4,
            **_CACHED,
            **cell.settings,
        )
        own = {**settings, **_OURS_ALONE.get(cell.name, {})}
        pairs = []
        for _ in range(1 if options.quick or cell.name == "real" else 3):
            pairs.append((trials.ours(own, work, options), trials.theirs(settings, work, options)))
    yield from _compared(name, pairs, cell)


def _compared(name: str, pairs: list[tuple[Trial, Trial]], cell: Cell) -> Iterator[Row]:
    mine, other = zip(*pairs, strict=True)
    yield median_row(f"{name}/steps a second, ours", [1 / each for trial in mine for each in trial.steps], "/s")
    yield median_row(f"{name}/steps a second, sd-scripts", [1 / each for trial in other for each in trial.steps], "/s")
    yield _against(f"{name}/rate", other, mine, lambda each: each.steps, cell.rate)
    yield median_row(f"{name}/caching, ours", [mine[0].caching_rate], "pictures/s")
    yield median_row(f"{name}/caching, sd-scripts", [other[0].caching_rate], "pictures/s")
    yield _against(f"{name}/caching rate", mine[:1], other[:1], lambda each: [each.caching_rate], cell.caching)
    # With several turns, the later ones find everything cached.
    yield from _begun(f"{name}/command to first step, nothing cached", mine[:1], other[:1], None)
    if len(pairs) > 1:
        yield from _begun(f"{name}/command to first step", mine[1:], other[1:], cell.soon)
    yield _against(f"{name}/peak memory over sd-scripts", mine, other, lambda each: [each.memory], Target(0.9))


def _begun(name: str, mine: Sequence[Trial], other: Sequence[Trial], target: Target | None) -> Iterator[Row]:
    """Yield how long both programs take from the command to the end of the first step, and theirs over ours."""
    ours, theirs = ([each.to_first_step for each in side] for side in (mine, other))
    yield median_row(f"{name}, ours", ours, "s")
    yield median_row(f"{name}, sd-scripts", theirs, "s")
    yield ratio_row(f"{name}, sd-scripts over ours", theirs, ours, target)


def _against(
    name: str, above: Sequence[Trial], below: Sequence[Trial], values: Callable[[Trial], list[float]], target: Target
) -> Row:
    """Return the ratio of the values of the trials `above` to those of the trials `below`."""
    numbers = [[value for trial in side for value in values(trial)] for side in (above, below)]
    return ratio_row(name, numbers[0], numbers[1], target)


def _save_seconds(trial: Trial) -> float:
    """Return the seconds from the last step to the finished file."""
    return float(trial.at("saved lora", last=True)["wall"] - trial.at("step", last=True)["wall"])
