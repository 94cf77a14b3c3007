"""The training engine. Runs without the window; importing it imports no torch."""

from trainer.config import TrainingConfig, load_config, save_config
from trainer.run import Run, Start, train

__all__ = ["Run", "Start", "TrainingConfig", "load_config", "save_config", "train"]
