"""TrainingConfig: all settings of one training, section by section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.config.learning import (
    LossSection,
    NetworkSection,
    NoiseSection,
    OptimizerSection,
    TrainingSection,
)
from trainer.config.pictures import CaptionsSection, DatasetSection, ModelSection
from trainer.config.results import LoggingSection, MetadataSection, SamplingSection, SavingSection
from trainer.settings.section import Section
from trainer.settings.walk import Setting, settings_of


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Everything that one training is told. Read it as `config.network.network_dim`; keys are unique."""

    model: ModelSection = ModelSection()
    dataset: DatasetSection = DatasetSection()
    captions: CaptionsSection = CaptionsSection()
    network: NetworkSection = NetworkSection()
    optimizer: OptimizerSection = OptimizerSection()
    training: TrainingSection = TrainingSection()
    loss: LossSection = LossSection()
    noise: NoiseSection = NoiseSection()
    saving: SavingSection = SavingSection()
    sampling: SamplingSection = SamplingSection()
    logging: LoggingSection = LoggingSection()
    metadata: MetadataSection = MetadataSection()


def known_settings() -> Mapping[str, Setting]:
    """Return {key: Setting} of every setting, in the order of the sections."""
    return settings_of(TrainingConfig)


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
    width, height = config.dataset.resolution.split(",")
    return int(width), int(height)


def rates(config: TrainingConfig) -> dict[str, float]:
    """Return the learning rate of each component that is trained: "unet", "text_encoder".

    A component that is not trained, by its rate of 0 or by a switch, is not in the dict and gets no adapter.
    """
    optimizer, network = config.optimizer, config.network
    text_encoder = optimizer.text_encoder_lr
    found = {
        "unet": optimizer.learning_rate if optimizer.unet_lr is None else optimizer.unet_lr,
        "text_encoder": text_encoder[0] if isinstance(text_encoder, tuple) else text_encoder,
    }
    if network.network_train_unet_only:
        del found["text_encoder"]
    if network.network_train_text_encoder_only:
        del found["unet"]
    return {component: rate for component, rate in found.items() if rate > 0}
