"""Stable Diffusion 2.x, loaded. Text encoding follows sd-scripts (library/strategy_sd.py)."""

from __future__ import annotations

from trainer.families.sd2.facts import FACTS
from trainer.families.unet.bundle import NormedTextBundle


class Bundle(NormedTextBundle):
    """The models of one Stable Diffusion 2.x checkpoint. clip_skip 1 is the last layer the model was trained on."""

    facts = FACTS
