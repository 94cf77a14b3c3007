"""Learning rate schedules: how much of a group's learning rate is used at each step. No torch until `build()`.

A new shape is a function and a line in `shapes`.
"""

from __future__ import annotations

from trainer.schedules.schedule import Schedule, steps_of
from trainer.schedules.shapes import SCHEDULES, using
from trainer.schedules.torch_classes import TORCH_CLASSES, class_name

__all__ = ["SCHEDULES", "TORCH_CLASSES", "Schedule", "class_name", "steps_of", "using"]
