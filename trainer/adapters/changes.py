"""What a module of a file makes of a weight, outside of any model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.adapters.adapter import AdapterSpec
from trainer.adapters.factored import FactoredModule
from trainer.adapters.files import Module
from trainer.targets import Target


@torch.no_grad()
def adapted(
    kind: type[AdapterSpec], name: str, module: Module, tensors: Mapping[str, Tensor], weight: Tensor, strength: float
) -> Tensor:
    """Return the weight that the adapted layer computes with at a strength, float32 in the shape of `weight`.

    Args:
        name: the module's name, for errors.
        module: what the file's header says of it.
        tensors: its tensors by entry, without the alpha.
        weight: the layer's own, float32 [out, in] or [out, in, kh, kw]. Where `kind.rests_on_weight` says no, what is
            added to it does not depend on it, and a convolution's may be [out, in * kh * kw].
    """
    outer, inner, *kernel = weight.shape
    base: nn.Module
    if kernel:
        base = nn.Conv2d(inner, outer, (kernel[0], kernel[1]), bias=False, device="meta")
    else:
        base = nn.Linear(inner, outer, bias=False, device="meta")
    base.weight = nn.Parameter(weight, requires_grad=False)
    target = Target("", "", name, inner, outer, (kernel[0], kernel[1]) if kernel else None)
    spec = kind(network_dim=module.rank, network_alpha=module.alpha or 0.0, given={name: module})
    layer = kind.layer_kind()(base, spec, target)
    file = FactoredModule(target, layer, module.rank, module.alpha or 0.0, spec.entries(target))
    file.load({f"{name}.{entry}": tensor for entry, tensor in tensors.items()})
    return layer.whole(strength)
