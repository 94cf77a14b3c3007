"""Frozen operations that keep less for the way back than PyTorch keeps of them, with the same bits.

PyTorch keeps a convolution's input even where its weight gets no gradient, what a norm gave for the SiLU behind it, and
what a GELU gave for the product behind it. Each of them is as large as a map of features; none is needed, or it is made
again from what is kept anyway by one pass over it. Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost",
with single operations where checkpointing has whole blocks.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input


def activated(norm: nn.Module, features: Tensor) -> Tensor:
    """Return silu(norm(features)) of [b, c, h, w]; of a frozen group norm only `features` is kept."""
    if not torch.is_grad_enabled():
        return F.silu(norm(features), inplace=True)
    if type(norm) is nn.GroupNorm and _may_be_thrifty(norm, features):
        return cast(Tensor, _Activated.apply(features, norm))
    return F.silu(norm(features))


def convolved(layer: nn.Module, features: Tensor) -> Tensor:
    """Return a layer's convolution of [b, c, h, w]; of a frozen one nothing is kept."""
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and _may_be_thrifty(layer, features):
        return cast(Tensor, _Convolved.apply(features, layer))
    return cast(Tensor, layer(features))


def gated(projected: Tensor) -> Tensor:
    """Return u * gelu(g) of [..., 2 n] with u and g its halves, [..., n]; only `projected` is kept. Shazeer 2020."""
    if projected.requires_grad and torch.is_grad_enabled():
        return cast(Tensor, _Gated.apply(projected))
    inner, gate = projected.chunk(2, dim=-1)
    return inner * F.gelu(gate)


def _may_be_thrifty(layer: nn.Conv2d | nn.GroupNorm, features: Tensor) -> bool:
    """Say whether a layer is frozen and its input such that PyTorch would take the same kernels."""
    return (
        torch.is_grad_enabled()
        and features.requires_grad
        and features.is_contiguous()
        and not any(each.requires_grad for each in layer.parameters())
        and (features.is_meta or not torch.is_autocast_enabled(features.device.type))
    )


class _Activated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, norm: nn.GroupNorm) -> Tensor:
        made, mean, inverse = torch.native_group_norm(
            features, norm.weight, norm.bias, *_sizes(features, norm), norm.eps
        )
        ctx.norm = norm
        ctx.save_for_backward(features, mean, inverse)
        return F.silu(made, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (features, mean, inverse), norm = ctx.saved_tensors, ctx.norm
        sizes = _sizes(features, norm)
        normed = torch.native_group_norm(features, norm.weight, norm.bias, *sizes, norm.eps)[0]
        inner = torch.ops.aten.silu_backward(gradient, normed)
        del normed
        back = torch.ops.aten.native_group_norm_backward
        return back(inner, features, mean, inverse, norm.weight, *sizes, [True, False, False])[0], None


def _sizes(features: Tensor, norm: nn.GroupNorm) -> tuple[int, int, int, int]:
    return features.shape[0], features.shape[1], features.shape[2:].numel(), norm.num_groups


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, layer: nn.Conv2d) -> Tensor:
        ctx.layer, ctx.shape = layer, features.shape
        return layer(features)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        layer = ctx.layer
        steps = layer.stride, layer.padding, layer.dilation, layer.groups
        return conv2d_input(ctx.shape, layer.weight, gradient, *steps), None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor) -> Tensor:
        ctx.save_for_backward(projected)
        inner, gate = projected.chunk(2, dim=-1)
        return F.gelu(gate).mul_(inner)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (projected,) = ctx.saved_tensors
        inner, gate = projected.chunk(2, dim=-1)
        made = torch.empty_like(projected)
        # No `out=`: the compiler leaves a block in pieces where one names a part of a tensor.
        made[..., : gate.shape[-1]] = gradient * F.gelu(gate)
        made[..., gate.shape[-1] :] = torch.ops.aten.gelu_backward(gradient * inner, gate)
        return made
