"""What the form's values would come to: pictures, steps, file size, advice, and what stands in the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from kohya_gui.form.rate_curve import RateCurve, rate_curve
from trainer.advice import Advice, Situation, advise
from trainer.config import LATENT_STEP, TrainingConfig, assumed_parts, known_settings, rates, schedule_of
from trainer.families import COMPONENT_SETTINGS, FAMILIES, Recognition, recognise
from trainer.faststart import libraries
from trainer.ground.errors import ConfigError, Problem, Stopped, TrainerError
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
    """What was found. Parts are None where something is missing; `problems` says what.

    `advice` is what experience says, as far as it can be said; `counting`: the pictures are still being looked at.
    """

    config: TrainingConfig
    report: DatasetReport | None = None
    counts: Counts | None = None
    timetable: Timetable | None = None
    plan: Plan | None = None
    recognition: Recognition | None = None
    problems: tuple[Problem, ...] = ()
    advice: tuple[Advice, ...] = ()
    curve: RateCurve | None = None
    counting: bool = False

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


def survey(
    config: TrainingConfig,
    report_of: Callable[[TrainingConfig], DatasetReport] = scan,
    recognised: Callable[[Recognition | None], None] = lambda seen: None,
) -> Survey:
    """Look at the model file, which `recognised` is told of first, then at the pictures.

    Raises:
        Stopped: `report_of` says so.
    """
    model, wrong = _attempt(lambda: recognise(config.model.pretrained_model_name_or_path), MODEL)
    recognised(model)
    found = _looked(config, model, wrong, report_of)
    if schedule_of(config, 0).torch_class:
        libraries.load()  # a second thread that imports PyTorch would find halves of it
    advice = found.plan.advice if found.plan else advise(config, _situation(found))
    steps = found.timetable.total_steps if found.timetable else 0
    return replace(found, advice=advice, curve=rate_curve(config, found.rates, steps) if steps else None)


def _looked(
    config: TrainingConfig,
    model: Recognition | None,
    wrong: tuple[Problem, ...],
    report_of: Callable[[TrainingConfig], DatasetReport],
) -> Survey:
    """Return what pictures and model come to, as far as both can be used; `wrong` is what was wrong with the model."""
    try:
        report = report_of(config)
    except Stopped:
        raise
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


def _situation(found: Survey) -> Situation:
    seen = found.recognition
    if seen is None:
        return Situation()
    variant = FAMILIES[seen.family].variant(seen.configs)
    return Situation(model_side=found.side, model_family=seen.family, model_variant=variant)


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
