"""What a run would be, before anything heavy is loaded: pictures, buckets, steps, file size, advice. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trainer import advice as recipe
from trainer.adapters import AdapterHeader, AdapterSpec, make_spec, read_header
from trainer.advice import Advice
from trainer.config import TrainingConfig, datasets_of, rates
from trainer.families import FAMILIES, Recognition, recognise_chosen
from trainer.families.family import HUB
from trainer.families.reading.hub import cached_descriptions
from trainer.ground.errors import ModelError
from trainer.optimizers import kind_of
from trainer.pictures.batches import Example, examples, held_out_examples
from trainer.pictures.counts import Counts, count
from trainer.pictures.report import DatasetReport
from trainer.pictures.scan import scan
from trainer.planning.arithmetic import sum_of_steps
from trainer.planning.fitting import check_process
from trainer.planning.inspection import check_family_of_lora, check_merged
from trainer.planning.timetable import Timetable, make_timetable
from trainer.preview.prompts import SamplePrompt, wanted_prompts
from trainer.targets import TEXT, Part, Target, names_of
from trainer.validation.schedule import Schedule, schedule


@dataclass(frozen=True)
class Plan:
    """Everything about a run that follows from its settings, its pictures and its model file's header."""

    config: TrainingConfig
    report: DatasetReport
    examples: tuple[Example, ...]
    counts: Counts
    timetable: Timetable
    recognition: Recognition
    prompts: tuple[SamplePrompt, ...]
    prompt_notices: tuple[str, ...]
    validation: Schedule

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """The layers of this checkpoint that an adapter may attach to."""
        return FAMILIES[self.recognition.family].targets_of(self.recognition, conv=True)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the model that an adapter may attach to."""
        return FAMILIES[self.recognition.family].parts

    @property
    def model(self) -> str:
        """What kind of model it is, in words, such as "Stable Diffusion XL (v-prediction, fp16)"."""
        return model_in_words(self.recognition)

    @property
    def rates(self) -> dict[str, float]:
        """The learning rate of each part that is trained."""
        return rates(self.config, self.parts)

    @cached_property
    def spec(self) -> AdapterSpec:
        """The adapter's ranks and alphas."""
        return make_spec(self.config.network, self.rates, *self.config.of_adapters)

    @property
    def file_bytes(self) -> int:
        """Size of the LoRA file without its metadata texts."""
        return self.spec.file_bytes(self.targets, self.config.saving.save_precision)

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know about rates, the file, pictures and steps."""
        said = (*self._left_out, *self.report.notices, *self.counts.notices, *self.prompt_notices)
        of_adapter = (*self.spec.notices, *self.spec.notices_on(self.targets))
        optimizer = kind_of(self.config.optimizer.optimizer_type).notice
        return (*self._unused_rates, *([optimizer] if optimizer else []), *of_adapter, *said)

    @property
    def _left_out(self) -> tuple[str, ...]:
        path = self.config.network.network_weights
        return self.spec.left_out(self.targets, read_header(Path(path))) if path else ()

    @property
    def _unused_rates(self) -> tuple[str, ...]:
        given = self.config.optimizer.text_encoder_lr
        encoders = len(names_of(self.parts, TEXT))
        if not isinstance(given, tuple) or len(given) <= encoders:
            return ()
        have = f"{encoders} text encoder" if encoders == 1 else f"{encoders} text encoders"
        return (f"text_encoder_lr has {len(given)} rates and this model {have}: the rest is not used.",)

    @cached_property
    def advice(self) -> tuple[Advice, ...]:
        """What experience says about these settings. Never blocks."""
        counted = recipe.Situation(
            images=self.counts.train_images,
            samples=self.report.train_count,
            reg_images=self.report.reg_images,
            reg_samples=self.report.reg_count,
            most_repeats=max(repeats for folder in self.report.train_folders for repeats in folder.repeated),
            exact_steps=self.timetable.total_steps,
            model_side=FAMILIES[self.recognition.family].side(self.recognition.configs),
            model_family=self.recognition.family,
            model_variant=FAMILIES[self.recognition.family].variant(self.recognition.configs),
            prompts_left_out=bool(self.config.sampling.sample_prompts.strip()) and not self.prompts,
        )
        return recipe.advise(self.config, counted)

    def lines(self) -> list[str]:
        """Return the plan as a person reads it, a line each."""
        counts, timetable = self.counts, self.timetable
        reg = f" + {counts.reg_images} regularisation pictures" if counts.reg_images else ""
        lines = [
            f"Model: {self.model}, {self.recognition.source}",
            *self._in_few_bits(),
            f"Pictures: {counts.train_images}{reg}; {counts.samples} samples an epoch",
            *self._buckets(),
            f"Steps: {timetable.total_steps:,}",
            f"  {sum_of_steps(self.report, counts, timetable)}",
        ]
        lines.append(self.validation.words)
        modules = len(self.spec.select(self.targets))
        lines.append(f"{self.spec.title.split()[-1]}: {modules} modules, about {self.file_bytes / 1e6:.1f} MB")
        lines += [f"Note: {notice}" for notice in self.notices]
        lines += [f"Advice: {each}" for each in self.advice]
        return lines

    def _in_few_bits(self) -> Iterator[str]:
        """Yield what is kept in few bits, where anything is."""
        small = self.config.in_few_bits(self.parts)
        named = [part.title for part in self.parts if part.name in small]
        if named:
            yield f"Weights in {self.config.model.quantize_base}: {', '.join(named)}"

    def _buckets(self) -> Iterator[str]:
        """Yield the buckets in use, a line for each dataset."""
        datasets = datasets_of(self.config)
        for number in range(len(datasets) or 1):
            mine = [each for each in self.counts.buckets if each.dataset == number]
            listed = ", ".join(f"{b.resolution[0]}x{b.resolution[1]} ({b.images})" for b in mine) or "none"
            if not datasets:
                yield f"Buckets: {listed}"
                continue
            own = datasets[number].config
            yield (
                f"{datasets[number].place.capitalize()} at {own.dataset.resolution}, batches of "
                f"{own.training.train_batch_size}: {listed}"
            )


def is_guess(seen: Recognition) -> bool:
    """Say whether a model is on the hub and was never looked at, so that its family is not known."""
    return seen.form == HUB and cached_descriptions(seen.source) is None


def model_in_words(seen: Recognition) -> str:
    """Return what kind of model it is."""
    if is_guess(seen):
        return f"{seen.source} on Hugging Face, looked at when the run begins"
    family = FAMILIES[seen.family]
    said = ", ".join(word for word in (family.variant(seen.configs), seen.precision) if word)
    return f"{family.title} ({said})" if said else family.title


def plan(
    config: TrainingConfig,
    progress: Callable[[str, int, int], None] | None = None,
    ranks: int = 1,
    report: DatasetReport | None = None,
) -> Plan:
    """Look at the pictures and the model file and return what would be trained.

    `report` is a scan of the same settings' pictures where there is one already.

    Raises:
        ConfigError: settings that name folders or contradict the pictures.
        DataError: no pictures, or captions that cannot be read.
        ModelError: the model file cannot be used.
        Stopped: `progress` says so.
    """
    recognition = recognise_chosen(config)
    process = FAMILIES[recognition.family].process
    check_process(config, process)
    prompts, said = wanted_prompts(config, process)
    report = report or scan(config, progress)
    chosen = examples(report, config, FAMILIES[recognition.family].latents.step)
    counts = count(report, chosen, config)
    timetable = make_timetable(config, micro_batches=counts.batches, ranks=ranks)
    judged = held_out_examples(report, config, FAMILIES[recognition.family].latents.step)
    measured = schedule(config, timetable, judged, [each for each in chosen if not each.regularisation])
    seen = Plan(config, report, chosen, counts, timetable, recognition, prompts, said, measured)
    seen.spec.select(seen.targets)
    if config.network.network_weights:
        begun_from = _header_of("network_weights", config.network.network_weights)
        check_family_of_lora(begun_from, recognition)
        seen.spec.check(seen.targets, begun_from)
    for path in config.network.base_weights:
        check_merged(_header_of("base_weights", path), recognition, seen.targets)
    return seen


def _header_of(key: str, path: str) -> AdapterHeader:
    """Return the header of a LoRA that a setting names. Raises ModelError, naming the setting."""
    try:
        return read_header(Path(path))
    except ModelError as error:
        raise ModelError(f"{key}: {error.message}", error.remedy) from error
