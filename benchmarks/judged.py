"""Is the marked file the good one? Runs that overfit and runs that do not, judged by pictures that no run has seen.

Eight of the demo's pictures are trained three times as long as the demo, with 24 further pictures of the concept kept
out; 24 more judge every saved file, by a measure of their own (`demo.build.lora`, with diffusers' loader), and 96
beside them, because 24 pictures differ from others of their kind by about what is asked for. Short runs on all of the
demo's pictures are there to see that nothing is said without need. What was measured is kept in the folder and taken
from there the next time.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from benchmarks.ground import PROJECT
from benchmarks.options import Options
from benchmarks.rows import Row, Target
from demo.build.concept import PICTURES, concept_scene, with_trigger
from demo.build.drawing import BACKGROUNDS, Scene, caption, draw
from demo.build.lora import load_model, loss_at_fixed_noise
from trainer.config import TrainingConfig, load_config
from trainer.ground import events
from trainer.ground.events import Event
from trainer.planning.plan import plan
from trainer.results.event_log import validations
from trainer.run import Start, train
from trainer.validation.judgement import Judgement, Point, judge
from trainer.validation.measuring import PHASE

SEEDS, QUICK_SEEDS = 10, 2
TRAINED, HELD_OUT = 8, 24
AT_LARGE = "judging at large"
JUDGING = {"judging": 24, AT_LARGE: 96}
LONG_EPOCHS, SHORT_EPOCHS, SHORT_TRAINED = 42, 6, 12
EVERY = 3
"""Epochs from one saved file to the next of a long run; of a short one each is saved."""
MOST_AT_ONCE = 8
NAME = "marked"
NEAR = 1.01
"""Loss of the marked file over that of the best one, up to which it is as good."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: what was said after its end, the step of the first warning, and each file's loss on the judging set.

    `at_large` is the same on the larger set.
    """

    said: Judgement
    warned: int | None
    losses: Mapping[int, float]
    at_large: Mapping[int, float]
    last: int

    def over_best(self, losses: Mapping[int, float]) -> float:
        """The marked file's loss over the best file's, of those given."""
        assert self.said.best is not None
        return losses[self.said.best] / min(losses.values())

    @property
    def over_last(self) -> float:
        """The marked file's loss over the last file's."""
        assert self.said.best is not None
        return self.losses[self.said.best] / self.losses[self.last]


def measure(options: Options) -> Iterator[Row]:
    """Yield the rows."""
    count = QUICK_SEEDS if options.quick else SEEDS
    folder = options.folder / "validation"
    runs = [(folder, seed, LONG_EPOCHS, EVERY, TRAINED) for seed in range(count)]
    runs += [(folder, seed, SHORT_EPOCHS, 1, SHORT_TRAINED) for seed in range(count)]
    outcomes = _side_by_side(runs)
    long, short = outcomes[:count], outcomes[count:]
    yield _share("marked below last", [each.over_last < 1 for each in long], 0.9)
    yield _share("marked within 1 % of the best", [each.over_best(each.losses) <= NEAR for each in long], 0.8)
    at_large = [each.over_best(each.at_large) <= NEAR for each in long]
    yield _share(f"marked within 1 % of the best, by {JUDGING[AT_LARGE]} pictures", at_large, 0.8)
    early = [each.warned is not None and each.warned < 0.75 * each.last for each in long]
    yield _share("warned before the last quarter", early, 0.8)
    warned = [each.warned is not None for each in short]
    yield Row("validation/short runs that warn", float(np.mean(warned)), "", None, Target(0.1))
    late = [each.said.best is not None and each.said.best > each.last * 2 / 3 for each in short]
    yield _share("mark in the last third of short runs", late, 1.0)


def _side_by_side(runs: Sequence[tuple[Path, int, int, int, int]]) -> list[Outcome]:
    """Do as many runs at once as there are cores: the demo's model keeps one busy, and gains nothing by a second."""
    workers = min(os.cpu_count() or 1, MOST_AT_ONCE, len(runs))
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin_alone) as pool:
        return list(pool.map(run, *zip(*runs, strict=True)))


def _begin_alone() -> None:
    """Let this process keep to one core, and wait for no other: the device that it would wait for is the CPU."""
    torch.set_num_threads(1)
    os.environ["TRAINER_CACHE"] = tempfile.mkdtemp()


def cost(options: Options) -> Iterator[Row]:
    """Yield how much of the demo's time validation takes; what is judged is a folder of pictures."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        config = _settings(place, 0, 6 if options.quick else 14, 7, 12)
        began, spent, since = options.clock(), 0.0, None

        def watch(event: Event) -> None:
            nonlocal spent, since
            if isinstance(event, events.Stage) and event.name == PHASE and since is None:
                since = options.clock()
            if isinstance(event, events.Validated) and since is not None:
                spent, since = spent + options.clock() - since, None

        train(config, emit=watch, start=Start(by="started by a measurement", wait=True))
        share = spent / (options.clock() - began)
        planned = plan(config).validation.share
        yield Row("validation/share of the run's time", share, "", None, Target(max(0.05, planned)))


def _share(name: str, values: Sequence[bool], least: float) -> Row:
    return Row(f"validation/{name}", float(np.mean(values)), "", None, Target(least, at_most=False))


def run(folder: Path, seed: int, epochs: int, every: int, trained: int) -> Outcome:
    """Train once, unless that was done, and return what came of it."""
    place = folder / f"{epochs}-epochs-{seed}"
    known = place / "losses.json"
    if not known.exists():
        shutil.rmtree(place, ignore_errors=True)
        _train(place, seed, epochs, every, trained)
        known.write_text(json.dumps(_losses_of_files(place, seed)), encoding="utf-8")
    found = json.loads(known.read_text(encoding="utf-8"))
    losses, at_large = ({int(step): loss for step, loss in found[name].items()} for name in JUDGING)
    series = [
        Point(each.step, each.loss, each.pictures)
        for each in validations(place / f"{NAME}.run" / "events.jsonl")
        if each.on == "folder" and not each.base
    ]
    warned = next(
        (series[end - 1].step for end in range(1, len(series) + 1) if judge(series[:end], losses).overfitting), None
    )
    return Outcome(judge(series, losses), warned, losses, at_large, max(losses))


def _train(place: Path, seed: int, epochs: int, every: int, trained: int) -> None:
    config = _settings(place, seed, epochs, every, trained)
    train(config, emit=lambda event: None, start=Start(by="started by a measurement", wait=True))


def _settings(place: Path, seed: int, epochs: int, every: int, trained: int) -> TrainingConfig:
    """Write the pictures of a run, and return its settings."""
    draws = random.Random(f"training {seed}")
    chosen = sorted(draws.sample(sorted(PICTURES.glob("*.png")), trained))
    training = place / "training" / PICTURES.name
    training.mkdir(parents=True)
    for picture in chosen:
        shutil.copy(picture, training)
        shutil.copy(picture.with_suffix(".txt"), training)
    _write(place / "held_out" / "1_sks emblem", further_scenes(f"held out {seed}", HELD_OUT))
    overrides = {
        "train_data_dir": str(place / "training"),
        "val_data_dir": str(place / "held_out"),
        "output_dir": str(place),
        "output_name": NAME,
        "seed": seed,
        "max_train_epochs": epochs,
        "save_every_n_epochs": every,
        "sample_prompts": "",
        "sample_at_first": False,
    }
    return load_config(PROJECT / "presets" / "demo.toml", overrides=overrides)


def further_scenes(name: str, count: int) -> list[tuple[Scene, str]]:
    """Return further pictures of the concept with their captions, on every background in turn."""
    draws, backgrounds = random.Random(name), list(BACKGROUNDS)
    scenes = [
        concept_scene(draws, backgrounds[place % len(backgrounds)], "big" if place % 2 else "")
        for place in range(count)
    ]
    return [(scene, with_trigger(caption(scene))) for scene in scenes]


def _write(folder: Path, scenes: Sequence[tuple[Scene, str]]) -> None:
    folder.mkdir(parents=True)
    for number, (scene, words) in enumerate(scenes, start=1):
        draw(scene).save(folder / f"further_{number:02d}.png", optimize=True)
        (folder / f"further_{number:02d}.txt").write_text(words + "\n", encoding="utf-8")


def _losses_of_files(place: Path, seed: int) -> dict[str, dict[int, float]]:
    """Return the loss of each saved file on each judging set, by the step after which it was saved."""
    sets = {name: further_scenes(f"{name} {seed}", count) for name, count in JUDGING.items()}
    drawn = {
        name: (np.stack([np.asarray(draw(scene)) for scene, _ in scenes]), [text for _, text in scenes])
        for name, scenes in sets.items()
    }
    model = PROJECT / "demo" / "model.safetensors"
    saved = [
        json.loads(line)
        for line in (place / f"{NAME}.run" / "events.jsonl").read_text(encoding="utf-8").splitlines()
        if '"event": "Saved"' in line and '"kind": "lora"' in line
    ]
    found: dict[str, dict[int, float]] = {name: {} for name in sets}
    for each in saved:
        loaded = load_model(model, Path(each["path"]))
        for name, (pictures, words) in drawn.items():
            found[name][int(each["step"])] = loss_at_fixed_noise(loaded, pictures, words)
    return found
