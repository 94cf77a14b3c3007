"""The difference between two checkpoints, layer by layer, as a LoRA."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from torch import Tensor

from trainer.ground.control import Progress
from trainer.targets import TEXT, Target, names_of
from trainer.tools.effects import Weights
from trainer.tools.extract import ExtractArguments
from trainer.tools.low_rank import Cut
from trainer.tools.merging import Written
from trainer.tools.models import Model


@dataclass
class Extracted(Written):
    """The layers, and whether those of text encoders were left out since both models have nearly the same."""

    alike: bool = False


def extracted(org: Model, tuned: Model, arguments: ExtractArguments, device: str, progress: Progress) -> Extracted:
    """Return the layers of a LoRA that makes `tuned` of `org`; none where both hold the same weights.

    Raises:
        ModelError: a file cannot be read.
        Stopped: `progress` says so.
    """
    written = Extracted()
    with ExitStack() as stack:
        pair = _Pair(org, tuned, stack)
        layers = [target for target in pair.layers if _wanted(target, arguments.conv_dim)]
        text = set(names_of(org.family.parts, TEXT))
        encoders = [target for target in layers if target.component in text]
        written.alike = bool(encoders) and not _differ(pair, encoders, arguments.min_diff, progress)
        if written.alike:
            layers = [target for target in layers if target.component not in text]
        nothing = True
        for done, target in enumerate(layers):
            progress("extracting", done, len(layers))
            difference = pair.difference(target).flatten(1)
            nothing = nothing and not difference.any()
            square = target.kernel not in (None, (1, 1))
            most = min((arguments.conv_dim if square else None) or arguments.dim, target.in_features, *difference.shape)
            dynamic = arguments.dynamic_method, arguments.dynamic_param or 0.0
            factors = Cut(most, *dynamic, quantile=arguments.clamp_quantile)(difference, device)
            written.take(target.name, factors, target.kernel or ())
        progress("extracting", len(layers), len(layers))
    return Extracted() if nothing else written


class _Pair:
    """Two checkpoints with open files."""

    def __init__(self, org: Model, tuned: Model, stack: ExitStack) -> None:
        self._models = org, tuned
        self._weights = Weights(stack)
        self.layers = [each for each in org.targets if each.name in org.weights and each.name in tuned.weights]

    def difference(self, target: Target) -> Tensor:
        """Return what the tuned one has over the original, float32 in the original's shape."""
        org, tuned = (self._weights.of(model.weights[target.name]) for model in self._models)
        return tuned.view_as(org) - org


def _wanted(target: Target, conv_dim: int | None) -> bool:
    """Say whether sd-scripts' networks.lora has a layer."""
    return not target.rim and (conv_dim is not None or not target.extra)


def _differ(pair: _Pair, layers: list[Target], least: float, progress: Progress) -> bool:
    """Say whether a weight of these layers differs by more than `least`."""
    for done, target in enumerate(layers):
        progress("comparing text encoders", done, len(layers))
        if float(pair.difference(target).abs().max()) > least:
            return True
    return False
