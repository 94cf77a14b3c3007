"""What a layer keeps between the passes: its input and its factors, and nothing as large as a weight."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.adapters.test_kinds import NETWORK
from trainer.adapters import KINDS, make_spec
from trainer.targets import Target

WIDE, IMAGE = (
    Target("unet", "wide", "lora_unet_wide", 96, 128),
    Target("unet", "image", "lora_unet_image", 24, 32, (3, 3)),
)
KEEPERS: list[tuple[str, dict[str, Any]]] = [
    ("loha", {}),
    ("loha", {"use_tucker": True}),
    ("loha", {"dora_wd": True}),
]


def kept(layer: nn.Module, x: Tensor) -> int:
    """Return how many numbers a layer keeps for the way back, but for its parameters and its input."""
    own = {each.untyped_storage().data_ptr() for each in (*layer.parameters(), *layer.buffers(), x)}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            seen[place] = max(seen.get(place, 0), tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = layer(x)
    output.sum().backward()
    assert x.grad is not None
    return sum(seen.values())


@pytest.mark.parametrize(("kind", "options"), KEEPERS)
@pytest.mark.parametrize("target", [WIDE, IMAGE], ids=["linear", "image"])
def test_nothing_as_large_as_a_weight_is_kept(kind: str, options: dict[str, Any], target: Target) -> None:
    """One position goes through the layer, so that what is kept of it is far smaller than the weight."""
    base = nn.Linear(96, 128) if target.kernel is None else nn.Conv2d(24, 32, 3, padding=1)
    weight = base.weight.numel()
    layer = KINDS[kind].layer_kind()(
        base.requires_grad_(False),
        make_spec(replace(NETWORK, network_type=kind), ("unet",), SimpleNamespace(**options)),
        target,
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.factors.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1 + 1)
    x = torch.randn((1, 96) if target.kernel is None else (1, 24, 1, 1), generator=generator).requires_grad_()
    assert kept(layer, x) < weight / 4
