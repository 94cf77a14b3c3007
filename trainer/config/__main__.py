"""`python -m trainer.config` writes docs/settings.md anew."""

from trainer.config.datasets import TABLES
from trainer.config.files import PROJECT
from trainer.config.training_config import TrainingConfig
from trainer.ground.files import write_text
from trainer.settings import docs
from trainer.settings.walk import DOCUMENT

if __name__ == "__main__":
    write_text(PROJECT / DOCUMENT, docs.page(TrainingConfig, TABLES))
