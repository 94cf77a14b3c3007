"""Advice on the network's size."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.advice.flow import is_flow
from trainer.advice.rule import Advice, Rule, Situation
from trainer.config import TrainingConfig

SMALL_RANK = 8
LOWEST_RANK, HIGHEST_RANK = 16, 128
LOWEST_ALPHA, HIGHEST_ALPHA = 8, 128


class Rank(Rule):
    name = "rank"
    key = "network_dim"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        rank = config.network.network_dim
        # A transformer's layers are so wide that lower ranks hold as much.
        small = SMALL_RANK if not is_flow(known) else LOWEST_RANK
        if rank <= small or LOWEST_RANK <= rank <= HIGHEST_RANK or config.network.dim_from_weights:
            return
        if rank < LOWEST_RANK:
            reason = "Lower ranks hold little; up to 8 is for trials."
        else:
            reason = "Higher ranks also learn what they should not, and make a larger file."
        message = f"rank {rank}; {LOWEST_RANK} to {HIGHEST_RANK} is usual, and 32 is often enough."
        yield self.advice(message, reason, {"network_dim": 32, "network_alpha": 16.0})


class Alpha(Rule):
    name = "alpha"
    key = "network_alpha"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        rank, alpha = config.network.network_dim, config.network.network_alpha
        if config.network.dim_from_weights:
            return
        if alpha > rank:
            message = f"alpha {alpha:g} is above the rank {rank}."
            reason = f"It multiplies the LoRA's output, and so the learning rate, by {alpha / rank:.3g}."
            yield self.advice(message, reason, {"network_alpha": rank / 2})
        elif rank > SMALL_RANK and not LOWEST_ALPHA <= alpha <= HIGHEST_ALPHA:
            message = f"alpha {alpha:g}; {LOWEST_ALPHA} to {HIGHEST_ALPHA} is usual."
            reason = f"With rank {rank} it multiplies the learning rate by {alpha / rank:.3g}."
            yield self.advice(message, reason, {"network_alpha": float(min(rank, HIGHEST_ALPHA)) / 2})
