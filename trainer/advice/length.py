"""Advice on how long a run is, and on what its pictures are counted as."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.advice.rule import Advice, Rule, Situation
from trainer.config import TrainingConfig

FEWEST_STEPS, AIM_STEPS, MOST_STEPS = 2000, 2500, 3000
ABSURD_STEPS = 100_000
"""Steps that no LoRA needs: a slip of the keyboard, or another program's way of saying "without end"."""


def formula_steps(known: Situation, config: TrainingConfig) -> float:
    """Return (images x repeats + regularisation images x repeats) x epochs / batch size.

    Where the length is set in steps, these are the answer.
    """
    training = config.training
    if training.max_train_epochs is None:
        return float(training.max_train_steps or 0)
    return (known.samples + known.reg_samples) * training.max_train_epochs / training.train_batch_size


class TotalSteps(Rule):
    name = "total-steps"
    key = "max_train_epochs"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        epochs = config.training.max_train_epochs
        steps = known.exact_steps if known.exact_steps is not None else formula_steps(known, config)
        absurd = steps > ABSURD_STEPS
        if not steps or FEWEST_STEPS <= steps <= MOST_STEPS or (known.trial and not absurd):
            return
        message = f"{steps:,.0f} steps in all; {FEWEST_STEPS:,} to {MOST_STEPS:,} is the aim."
        if steps < FEWEST_STEPS:
            reason = "With few steps the concept is only half learned; for a first look that may do."
        elif absurd:
            reason = "Nobody needs so many: the pictures are learned by heart long before."
        else:
            reason = "With many steps the pictures are learned by heart; the best LoRA may be one saved earlier."
        if epochs is None:
            yield self.advice(message, reason, {"max_train_steps": AIM_STEPS}, key="max_train_steps", serious=absurd)
            return
        wanted = best_epochs(steps / epochs)
        if wanted != epochs:
            landing = f" {wanted} epochs make {steps / epochs * wanted:,.0f}."
            yield self.advice(message, reason + landing, {"max_train_epochs": wanted}, serious=absurd)
        elif steps > MOST_STEPS:
            shorter = "A single epoch has as many: lower the repeats of the folders."
            yield self.advice(message, f"{reason} {shorter}", serious=absurd)


def best_epochs(steps_per_epoch: float) -> int:
    """Return the number of epochs, at least 1, that comes nearest to the aim, and within it nearest to its middle."""

    def distance(epochs: int) -> tuple[float, float]:
        steps = epochs * steps_per_epoch
        return max(FEWEST_STEPS - steps, steps - MOST_STEPS, 0.0), abs(steps - AIM_STEPS)

    middle = int(AIM_STEPS / steps_per_epoch)
    return min((max(1, middle), middle + 1), key=distance)


class RepeatsAlone(Rule):
    name = "repeats-without-regularisation"
    key = "train_data_dir"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        if not known.images or known.reg_images or known.most_repeats <= 1:
            return
        listed = bool(config.dataset.datasets)
        how = "set num_repeats to 1." if listed else "name the folder 1_..."
        yield self.advice(
            f"{known.most_repeats} repeats without regularisation pictures; 1 is enough: {how}",
            "Repeats are there to balance regularisation pictures; alone they only make an epoch longer, and saves "
            "and samples rarer. Raise the epochs instead.",
            key="datasets" if listed else "",
        )


class Regularisation(Rule):
    name = "no-regularisation"
    key = "reg_data_dir"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        if known.images and not known.reg_images and not known.trial:
            yield self.advice(
                "there are no regularisation pictures.",
                "Pictures of the class in general help against overfitting: without them every one of its kind may "
                "come to look like yours.",
                key="datasets" if config.dataset.datasets else "",
            )
