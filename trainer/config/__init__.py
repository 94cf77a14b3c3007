"""The configuration of a training: its sections, the rules that cross them, and where it comes from."""

from trainer.config.assembly import Assembled, config_from_layers, problems_of
from trainer.config.datasets import Dataset, Subset, batch_sizes, datasets_of
from trainer.config.files import anchored, load_config, load_layers, parse_set, read_layer, save_config, to_kohya
from trainer.config.pictures import LATENT_STEP
from trainer.config.recipes import Opened, open_recipe
from trainer.config.report import Report
from trainer.config.training_config import (
    TrainingConfig,
    assumed_parts,
    in_labels,
    known_settings,
    rates,
    resolution_size,
    schedule_of,
    to_flat,
)

__all__ = [
    "LATENT_STEP",
    "Assembled",
    "Dataset",
    "Opened",
    "Report",
    "Subset",
    "TrainingConfig",
    "anchored",
    "assumed_parts",
    "batch_sizes",
    "config_from_layers",
    "datasets_of",
    "in_labels",
    "known_settings",
    "load_config",
    "load_layers",
    "open_recipe",
    "parse_set",
    "problems_of",
    "rates",
    "read_layer",
    "resolution_size",
    "save_config",
    "schedule_of",
    "to_flat",
    "to_kohya",
]
