"""What the entries of Stable Diffusion families have in common. No torch until `load`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, ClassVar

from trainer.families.family import ComponentConfigs, Family, Recognition
from trainer.families.reading.headers import Header
from trainer.families.unet.facts import EITHER_QUESTION, FIRST_CONV, StableFacts
from trainer.families.unet.targets import adapter_targets
from trainer.ground.control import Progress
from trainer.targets import Target

if TYPE_CHECKING:
    import torch

    from trainer.config import TrainingConfig
    from trainer.families.bundle import Bundle


class StableFamily(Family):
    """A family with a latent UNet and CLIP text encoders. Its folder has a module `bundle` with a class `Bundle`."""

    facts: ClassVar[StableFacts]

    def targets(self, configs: ComponentConfigs, *, conv: bool) -> tuple[Target, ...]:
        return adapter_targets(self.facts, configs, conv=conv)

    def questions(self, configs: ComponentConfigs) -> tuple[str, ...]:
        unsaid = self.facts.predicts_either and "prediction_type" not in configs["scheduler"]
        return (EITHER_QUESTION,) if unsaid else ()

    def load(
        self,
        recognition: Recognition,
        config: TrainingConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress | None = None,
    ) -> Bundle:
        from trainer.families.unet.bundle import load_bundle

        made = import_module(f"{type(self).__module__}.bundle").Bundle
        return load_bundle(made, recognition, config, device=device, dtype=dtype, progress=progress)


def input_channels(header: Header) -> int:
    """Return how many channels the UNet of a single file takes; 0 where there is none."""
    shape = header.shapes.get(FIRST_CONV, ())
    return shape[1] if len(shape) > 1 else 0
