"""At which timesteps the loss is measured, and what each counts. Torch-free.

The loss wanted is the mean over all timesteps, and most of it comes from few of them: with epsilon prediction those of
little noise. Pictures differ there too, in what they lose and gain by training, so a measurement elsewhere tells little
and costs the same. Importance sampling (Kahn and Marshall 1953) measures where the loss is and weights by how much more
often than evenly that is; a share that stays even (defensive mixture, Hesterberg 1995) keeps every weight bounded.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence

EVEN_SHARE = 0.2
"""Share of the places that lie as if all timesteps counted alike."""

Places = Mapping[float, float]
"""{place: weight}: a share of all timesteps, 0 to below 1, and what the loss there counts."""


def even(count: int) -> dict[float, float]:
    """Return places in the middle of so many even shares, of weight 1."""
    return {(number + 0.5) / count: 1.0 for number in range(count)}


def by_loss(losses: Sequence[float], count: int) -> dict[float, float]:
    """Return places that lie as the loss does, so that each stands for the same part of it.

    Args:
        losses: the mean loss in each of some even shares of all timesteps, from the first to the last.
        count: how many places are wanted.
    """
    total = math.fsum(losses)
    if not losses or not math.isfinite(total) or total <= 0 or min(losses) < 0:
        return even(count)
    chances = [(1 - EVEN_SHARE) * loss / total + EVEN_SHARE / len(losses) for loss in losses]
    ends = [0.0, *itertools.accumulate(chances)]
    found = {}
    for number in range(count):
        wanted = (number + 0.5) / count * ends[-1]
        share = min(bisect.bisect_right(ends, wanted) - 1, len(losses) - 1)
        place = (share + (wanted - ends[share]) / chances[share]) / len(losses)
        found[place] = 1 / (len(losses) * chances[share])
    return found
