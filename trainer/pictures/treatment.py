"""What is done to a picture and its caption each time that they are shown, as far as settings say it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.config import TrainingConfig
from trainer.pictures.captions import CaptionRules

ALL_TIMESTEPS = (0, 1000)


@dataclass(frozen=True, slots=True)
class Treatment:
    """The settings of one folder.

    `flip`, `color` and `crop` are the random changes flip_aug, color_aug and random_crop; `alpha_mask` and `masks`, a
    folder or None, say where masks of the loss come from; `timesteps` are the lowest and the one above the highest;
    `interpolation` is resize_interpolation; of what is `preserved` the model is to say what it said before.
    """

    captions: CaptionRules = CaptionRules()
    flip: bool = False
    color: bool = False
    crop: bool = False
    alpha_mask: bool = False
    masks: Path | None = None
    timesteps: tuple[int, int] = ALL_TIMESTEPS
    interpolation: str = ""
    preserved: bool = False

    @classmethod
    def from_config(cls, config: TrainingConfig, *, preserved: bool = False) -> Treatment:
        """Return what a folder's settings ask for."""
        changes, noise = config.augmentation, config.noise
        return cls(
            captions=CaptionRules.from_config(config),
            flip=config.dataset.flip_aug,
            color=changes.color_aug,
            crop=changes.random_crop,
            alpha_mask=changes.alpha_mask,
            masks=Path(changes.conditioning_data_dir) if changes.conditioning_data_dir else None,
            timesteps=(noise.min_timestep, noise.max_timestep),
            interpolation=changes.resize_interpolation,
            preserved=preserved,
        )

    @property
    def masked(self) -> bool:
        """True where the loss is weighted by masks."""
        return self.alpha_mask or self.masks is not None
