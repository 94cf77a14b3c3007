"""TrainingConfig: all settings of one training, section by section."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from trainer.config.blocks import BlocksSection
from trainer.config.learning import NetworkSection, OptimizerSection, TrainingSection
from trainer.config.lycoris import LycorisSection
from trainer.config.model import ModelSection
from trainer.config.objective import FlowSection, LossSection, NoiseSection
from trainer.config.pictures import CaptionsSection, DatasetSection, TextSection
from trainer.config.results import LoggingSection, MetadataSection, SamplingSection, SavingSection
from trainer.config.values import size_of
from trainer.settings import wording
from trainer.settings.section import Section
from trainer.settings.walk import Setting, settings_of


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Everything that one training is told. Read it as `config.network.network_dim`; keys are unique."""

    model: ModelSection = ModelSection()
    dataset: DatasetSection = DatasetSection()
    captions: CaptionsSection = CaptionsSection()
    text: TextSection = TextSection()
    network: NetworkSection = NetworkSection()
    lycoris: LycorisSection = LycorisSection()
    blocks: BlocksSection = BlocksSection()
    optimizer: OptimizerSection = OptimizerSection()
    training: TrainingSection = TrainingSection()
    loss: LossSection = LossSection()
    noise: NoiseSection = NoiseSection()
    flow: FlowSection = FlowSection()
    saving: SavingSection = SavingSection()
    sampling: SamplingSection = SamplingSection()
    logging: LoggingSection = LoggingSection()
    metadata: MetadataSection = MetadataSection()


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


TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
"""The components that `text_encoder_lr` is about, in the order of its list. Many models have the first only."""


def rates(config: TrainingConfig, components: Collection[str] = ("unet", "text_encoder")) -> dict[str, float]:
    """Return the learning rate of each component that is trained.

    A component that is not trained, by its rate of 0 or by a switch, is not in the dict and gets no adapter. The last
    of the text encoders' rates holds for all further ones, so a single number is one for all.

    Args:
        components: those that the model has: "unet" and some of `TEXT_ENCODERS`.
    """
    optimizer, network = config.optimizer, config.network
    given = optimizer.text_encoder_lr if isinstance(optimizer.text_encoder_lr, tuple) else (optimizer.text_encoder_lr,)
    found: dict[str, float] = {}
    if not network.network_train_text_encoder_only:
        found["unet"] = optimizer.learning_rate if optimizer.unet_lr is None else optimizer.unet_lr
    if not network.network_train_unet_only:
        found |= {name: given[min(place, len(given) - 1)] for place, name in enumerate(TEXT_ENCODERS)}
    return {component: rate for component, rate in found.items() if rate > 0 and component in components}
