"""Files of adapters, merged into the weights of a loaded model: `base_weights`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.adapters import KINDS
from trainer.adapters.factored import FactoredModule
from trainer.adapters.files import AdapterHeader
from trainer.adapters.injection import under_our_names
from trainer.targets import Target


@torch.no_grad()
def merge(
    components: Mapping[str, nn.Module],
    targets: Sequence[Target],
    header: AdapterHeader,
    tensors: Mapping[str, Tensor],
    multiplier: float,
) -> None:
    """Change the weights of the layers that a file has to what it makes of them at a strength.

    Computed in float32 and rounded once. Layers that only one of the two has stay as they are.

    Raises:
        ModelError: a layer has another shape in the file.
    """
    kind = KINDS[header.kind]
    spec = kind(network_dim=1, network_alpha=1.0, parts=tuple(components), given=header.modules)
    tensors = under_our_names(tensors, targets)
    for target in spec.select(targets):
        base: Any = components[target.component].get_submodule(target.path)
        layer = spec.layer_kind()(base, spec, target)
        module = FactoredModule(target, layer, spec.rank(target), spec.alpha(target), spec.entries(target))
        module.check(tensors, header.path.name)
        for factor in layer.factors.values():
            factor.data = factor.data.to(base.weight.device)
        module.load(tensors)
        whole = layer.whole(multiplier)
        if hasattr(base, "store"):  # a layer that keeps its weight in few bits
            base.store(whole)
        else:
            base.weight.copy_(whole)
