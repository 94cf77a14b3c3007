"""Attention of tensors without numbers, as the device that is forecast would compute it.

PyTorch chooses the kernel by where its inputs lie, and for tensors on "meta" it takes the one that makes the whole
table of tokens by tokens, which no device does any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.families.unet import slim_blocks

_HALF = (torch.float16, torch.bfloat16)


@contextmanager
def of_device(device: str) -> Iterator[None]:
    """Within this context, attention on "meta" is that of a kind of device: "cpu", "cuda" or another.

    PyTorch's function is replaced where everyone calls it: a mode would not reach what is computed on the way back.
    """
    theirs, ours = F.scaled_dot_product_attention, _CHOICES.get(device)

    def attended(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if ours is None or not query.is_meta:
            return theirs(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        return ours(query, key, value, _additive(attn_mask, query), dropout_p, is_causal, scale)

    F.scaled_dot_product_attention, slim_blocks.meta_means = attended, device
    try:
        yield
    finally:
        F.scaled_dot_product_attention, slim_blocks.meta_means = theirs, "cpu"


def _on_cpu(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, causal: bool, scale: float | None
) -> Tensor:
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    made: Tensor = flash(query, key, value, dropout, causal, attn_mask=mask, scale=scale)[0]
    return made


def _on_cuda(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, causal: bool, scale: float | None
) -> Tensor:
    made: Tensor
    if mask is None and query.dtype in _HALF:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        made = flash(query, key, value, dropout, causal, False, scale=scale)[0]
    else:
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention
        mask = None if mask is None else mask.expand(*query.shape[:-1], key.shape[-2])
        made = efficient(query, key, value, mask, True, dropout, causal, scale=scale)[0]
    return made


def _additive(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """Return a mask as kernels take it: what is added to the products."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.empty(mask.shape, dtype=query.dtype, device=mask.device)


_CHOICES: dict[str, Callable[..., Tensor]] = {"cpu": _on_cpu, "cuda": _on_cuda}
"""Kind of device -> attention there."""
