"""Stable Diffusion 1.x, loaded. Text encoding follows sd-scripts (library/strategy_sd.py)."""

from __future__ import annotations

from trainer.families.sd15.facts import FACTS
from trainer.families.unet.bundle import NormedTextBundle


class Bundle(NormedTextBundle):
    """The models of one Stable Diffusion 1.x checkpoint."""

    facts = FACTS
