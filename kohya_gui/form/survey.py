"""What the form's values would come to: pictures, steps, file size, advice, and what stands in the way."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from trainer.advice import Advice, Situation, advise
from trainer.config import LATENT_STEP, TrainingConfig, assumed_parts, datasets_of, known_settings, rates
from trainer.config.datasets import paths_in
from trainer.families import COMPONENT_SETTINGS, FAMILIES, Recognition, recognise
from trainer.ground.errors import ConfigError, Problem, TrainerError
from trainer.pictures.batches import examples
from trainer.pictures.counts import Counts, count
from trainer.pictures.report import DatasetReport
from trainer.pictures.scan import scan
from trainer.planning.plan import Plan, is_guess, plan
from trainer.planning.timetable import Timetable, make_timetable
from trainer.targets import Part

MODEL = "pretrained_model_name_or_path"
PICTURES = "train_data_dir"

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found. Parts are None where something is missing; `problems` says what."""

    config: TrainingConfig
    report: DatasetReport | None = None
    counts: Counts | None = None
    timetable: Timetable | None = None
    plan: Plan | None = None
    recognition: Recognition | None = None
    problems: tuple[Problem, ...] = ()

    @property
    def notices(self) -> tuple[str, ...]:
        """What there is to know about the pictures and prompts."""
        if self.plan:
            return self.plan.notices
        return (*(self.report.notices if self.report else ()), *(self.counts.notices if self.counts else ()))

    @property
    def process(self) -> str:
        """The name of the model's kind of process; "" while the model is not known."""
        if self.recognition is None or is_guess(self.recognition):
            return ""
        return FAMILIES[self.recognition.family].process.name

    @property
    def unused(self) -> frozenset[str]:
        """The settings that mean nothing for the model; none while it is not known."""
        if self.recognition is None or is_guess(self.recognition):
            return frozenset()
        family = FAMILIES[self.recognition.family]
        return family.unused.union(key for key in COMPONENT_SETTINGS if key not in family.files)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the model that can be trained."""
        return FAMILIES[self.recognition.family].parts if self.recognition else assumed_parts(self.config)

    @property
    def side(self) -> int:
        """Pixels of the side of the square pictures that the model was made for; 0 where it isn't known."""
        return FAMILIES[self.recognition.family].side(self.recognition.configs) if self.recognition else 0

    @property
    def rates(self) -> dict[str, float]:
        """The learning rate of each part that is trained."""
        return rates(self.config, self.parts)

    @property
    def _situation(self) -> Situation:
        seen = self.recognition
        if seen is None:
            return Situation()
        return Situation(
            model_side=self.side,
            model_family=seen.family,
            model_variant=FAMILIES[seen.family].variant(seen.configs),
        )

    @property
    def advice(self) -> tuple[Advice, ...]:
        """What experience says, as far as it can be said."""
        return self.plan.advice if self.plan else advise(self.config, self._situation)


class Surveyor:
    """Makes surveys. Remembers the last scan of the folders, since only their change makes a new one necessary."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: tuple[object, DatasetReport] | None = None

    def forget(self) -> None:
        """Scan anew next time: captions may have been edited in place."""
        self._seen = None

    def survey(self, config: TrainingConfig) -> Survey:
        """Look at the pictures and the model file."""
        model, wrong = _attempt(lambda: recognise(config.model.pretrained_model_name_or_path), MODEL)
        try:
            report = self._report(config)
        except TrainerError as error:
            return Survey(config, recognition=model, problems=(*wrong, *problems_in(error, PICTURES)))
        seen, problems = _attempt(lambda: plan(config, report=report), MODEL)
        if seen is not None:
            return Survey(config, report, seen.counts, seen.timetable, seen, model)
        step = FAMILIES[model.family].latents.step if model else LATENT_STEP
        counted, more = _attempt(lambda: count(report, examples(report, config, step), config), PICTURES)
        if counted is None:
            return Survey(config, report, recognition=model, problems=more)
        timetable = make_timetable(config, micro_batches=counted.batches)
        return Survey(config, report, counted, timetable, recognition=model, problems=problems)

    def _report(self, config: TrainingConfig) -> DatasetReport:
        with self._lock:
            key = _signature(config)
            if self._seen is None or self._seen[0] != key:
                self._seen = (key, scan(config))
            return self._seen[1]


def _attempt(look: Callable[[], Found], key: str) -> tuple[Found | None, tuple[Problem, ...]]:
    """Return what was found, or the problems that kept it from being found; `key` is the setting looked at."""
    try:
        return look(), ()
    except TrainerError as error:
        return None, problems_in(error, key)


def problems_in(error: TrainerError, key: str) -> tuple[Problem, ...]:
    """Return an error as problems of settings; `key` is the setting that it is about where it does not say so."""
    if isinstance(error, ConfigError):
        return error.problems
    named, _, rest = error.message.partition(": ")
    message = rest if named in known_settings() else error.message
    return (Problem(named if named in known_settings() else key, f"{message} {error.remedy}".strip()),)


def _signature(config: TrainingConfig) -> object:
    named = [path for _, path in paths_in(config.dataset.datasets)]
    folders = (config.dataset.train_data_dir, config.dataset.reg_data_dir, *named)
    listed = [
        (
            each.place,
            each.num_repeats,
            each.class_tokens,
            each.is_reg,
            each.config.captions.caption_extension,
            each.config.captions.caption_separator,
            each.config.captions.enable_wildcard,
        )
        for dataset in datasets_of(config)
        for each in dataset.subsets
    ]
    captions = (config.captions.caption_extension, config.captions.enable_wildcard)
    return (folders, listed, captions, tuple(_changed(folder) for folder in folders if folder))


def _changed(folder: str) -> tuple[tuple[str, int], ...]:
    """Return the times at which a folder and those directly in it changed."""
    root = Path(folder)
    try:
        if root.is_file():
            return ((str(root), root.stat().st_mtime_ns),)
        inside = [Path(entry.path) for entry in os.scandir(root) if entry.is_dir()]
        return tuple((str(path), path.stat().st_mtime_ns) for path in (root, *sorted(inside)))
    except OSError:
        return ()
