"""TrainingConfig: all settings of one training, section by section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.config.blocks import BlocksSection
from trainer.config.captions import CaptionsSection, TextSection
from trainer.config.learning import NetworkSection, TrainingSection
from trainer.config.limits import LimitsSection
from trainer.config.lycoris import LycorisSection
from trainer.config.model import MemorySection, ModelSection
from trainer.config.objective import FlowSection, LossSection, NoiseSection
from trainer.config.optimizing import OptimizerSection
from trainer.config.pictures import AugmentationSection, DatasetSection
from trainer.config.rates import RatesSection
from trainer.config.results import LoggingSection, MetadataSection, SamplingSection, SavingSection
from trainer.config.transformer import TransformerSection
from trainer.config.validation import ValidationSection
from trainer.config.values import size_of
from trainer.optimizers import kind_of
from trainer.schedules import Schedule
from trainer.settings import wording
from trainer.settings.section import Section
from trainer.settings.walk import Setting, settings_of
from trainer.targets import DENOISER, TEXT, Part, names_of


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Everything that one training is told. Read it as `config.network.network_dim`; keys are unique."""

    model: ModelSection = ModelSection()
    memory: MemorySection = MemorySection()
    dataset: DatasetSection = DatasetSection()
    augmentation: AugmentationSection = AugmentationSection()
    captions: CaptionsSection = CaptionsSection()
    text: TextSection = TextSection()
    network: NetworkSection = NetworkSection()
    lycoris: LycorisSection = LycorisSection()
    blocks: BlocksSection = BlocksSection()
    limits: LimitsSection = LimitsSection()
    rates: RatesSection = RatesSection()
    transformer: TransformerSection = TransformerSection()
    optimizer: OptimizerSection = OptimizerSection()
    training: TrainingSection = TrainingSection()
    loss: LossSection = LossSection()
    noise: NoiseSection = NoiseSection()
    flow: FlowSection = FlowSection()
    saving: SavingSection = SavingSection()
    sampling: SamplingSection = SamplingSection()
    validation: ValidationSection = ValidationSection()
    logging: LoggingSection = LoggingSection()
    metadata: MetadataSection = MetadataSection()

    @property
    def of_adapters(self) -> tuple[Section, ...]:
        """The sections, beside `network`, that have settings of adapters."""
        return self.lycoris, self.blocks, self.transformer, self.limits, self.rates

    def in_few_bits(self, parts: Sequence[Part]) -> frozenset[str]:
        """Return the names of those parts of a model whose weights `quantize_base` keeps in few bits.

        They are the denoiser and the text encoders that do not learn. Text encoders that leave memory before the first
        step stay whole, so that what they make of captions is the whole model's.
        """
        if self.model.quantize_base == "none":
            return frozenset()
        ahead = self.text.cache_text_encoder_outputs or self.text.cache_text_encoder_outputs_to_disk
        encoders = set() if ahead else set(names_of(parts, TEXT)) - rates(self, parts).keys()
        return frozenset({*names_of(parts, DENOISER), *encoders})


def known_settings() -> Mapping[str, Setting]:
    """Return {key: Setting} of every setting, in the order of the sections."""
    return settings_of(TrainingConfig)


def in_labels(text: str, about: str = "") -> str:
    """Return a message as the page says it: labels in place of keys; `about` is the setting that it stands beside."""
    return wording.in_labels(text, known_settings(), about)


def to_flat(config: TrainingConfig) -> dict[str, object]:
    """Return {key: value} of every setting as plain values: lists for tuples, None for what is off or not set."""
    flat: dict[str, object] = {}
    for setting in known_settings().values():
        section: Section = getattr(config, setting.section)
        value = getattr(section, setting.key)
        flat[setting.key] = list(value) if isinstance(value, tuple) else value
    return flat


def resolution_size(config: TrainingConfig) -> tuple[int, int]:
    """Return (width, height) in pixels that training aims at."""
    return size_of(config.dataset.resolution)


def schedule_of(config: TrainingConfig, total_steps: int) -> Schedule:
    """Return the schedule of a run of so many optimizer steps: none for optimizers that are free of one."""
    if kind_of(config.optimizer.optimizer_type).schedule_free:
        return Schedule(total_steps)
    return Schedule.of_settings(config.optimizer, total_steps)


def assumed_parts(config: TrainingConfig) -> tuple[Part, ...]:
    """Return the parts of a model that is not known yet: a denoiser, and a text encoder for each rate that is given."""
    given = config.optimizer.text_encoder_lr
    encoders = len(given) if isinstance(given, tuple) else 1
    titles = ["Text encoder", *(f"Text encoder {number}" for number in range(2, encoders + 1))]
    texts = (Part(title.lower().replace(" ", "_"), TEXT, title) for title in titles)
    return (Part("denoiser", DENOISER, "UNet or transformer"), *texts)


def rates(config: TrainingConfig, parts: Sequence[Part]) -> dict[str, float]:
    """Return the learning rate of each part that is trained, by name.

    A part that is not trained, by its rate of 0 or by a switch, is not in the dict and gets no adapter. The last of
    the text encoders' rates holds for all further ones, so a single number is one for all. A part that is trained only
    with a setting of its own has no rate without it.

    Args:
        parts: those that the model has; `assumed_parts` where it is not known.
    """
    optimizer, network = config.optimizer, config.network
    given = optimizer.text_encoder_lr if isinstance(optimizer.text_encoder_lr, tuple) else (optimizer.text_encoder_lr,)
    found: dict[str, float] = {}
    if not network.network_train_text_encoder_only:
        rate = optimizer.learning_rate if optimizer.unet_lr is None else optimizer.unet_lr
        found |= dict.fromkeys(names_of(parts, DENOISER), rate)
    if not network.network_train_unet_only:
        encoders = enumerate(names_of(parts, TEXT))
        found |= {name: given[min(place, len(given) - 1)] for place, name in encoders}
    values = to_flat(config)
    barred = {part.name for part in parts if part.only_with and not values[part.only_with]}
    return {part: rate for part, rate in found.items() if rate > 0 and part not in barred}
