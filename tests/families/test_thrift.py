"""What frozen operations keep for the way back: less than PyTorch, and the same bits."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from trainer.families.unet import thrift


def drawn(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return made.to(dtype).requires_grad_()


def kept(work: Callable[[], Tensor], *known: Tensor) -> tuple[Tensor, int]:
    """What the work gives, and the bytes that are kept for its gradient beside tensors that are known."""
    places: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        places[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        made = work()
    for tensor in known:
        places.pop(tensor.untyped_storage().data_ptr(), None)
    return made, sum(places.values())


def gradient(made: Tensor, asked: Tensor) -> Tensor:
    weights = drawn(*made.shape, seed=5, dtype=made.dtype).detach()
    return torch.autograd.grad(made, asked, weights)[0]


def same(made: Tensor, plain: Tensor, asked: Tensor) -> None:
    """See that two results and their gradients have the same bits."""
    assert made.dtype == plain.dtype
    assert torch.equal(made, plain)
    assert torch.equal(gradient(made, asked), gradient(plain, asked))


def norm_and_layer(dtype: torch.dtype) -> tuple[nn.GroupNorm, nn.Conv2d]:
    torch.manual_seed(2)
    norm, layer = nn.GroupNorm(4, 16), nn.Conv2d(16, 24, 3, stride=2, padding=1)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm.to(dtype).requires_grad_(False), layer.to(dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_a_norm_and_silu_the_input_is_kept_alone(dtype: torch.dtype) -> None:
    norm, _ = norm_and_layer(dtype)
    features = drawn(2, 16, 10, 12, dtype=dtype)
    known = features, *norm.parameters()
    plain, much = kept(lambda: F.silu(norm(features)), *known)
    made, little = kept(lambda: thrift.activated(norm, features), *known)
    assert much >= features.nbytes
    assert little < 200, "a mean and a deviation for each group"
    same(made, plain, features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_a_frozen_convolution_nothing_is_kept(dtype: torch.dtype) -> None:
    _, layer = norm_and_layer(dtype)
    features = drawn(2, 16, 10, 12, dtype=dtype)
    known = tuple(layer.parameters())
    plain, much = kept(lambda: layer(features), *known)
    made, little = kept(lambda: thrift.convolved(layer, features), *known)
    assert (much, little) == (features.nbytes, 0)
    same(made, plain, features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_a_gate_its_input_is_kept_alone(dtype: torch.dtype) -> None:
    projected = drawn(2, 7, 24, dtype=dtype)

    def plainly() -> Tensor:
        inner, gate = projected.chunk(2, dim=-1)
        return inner * F.gelu(gate)

    plain, much = kept(plainly, projected)
    made, little = kept(lambda: thrift.gated(projected), projected)
    assert (much, little) == (projected.nbytes // 2, 0)
    same(made, plain, projected)
    with torch.no_grad():
        assert torch.equal(thrift.gated(projected), plain)


@pytest.mark.parametrize("of", ["weight", "bias"])
def test_what_learns_gets_its_gradient(of: str) -> None:
    for layer, thrifty in zip(norm_and_layer(torch.float32), (thrift.activated, thrift.convolved), strict=True):
        asked = getattr(layer, of).requires_grad_()
        made = thrifty(layer, drawn(2, 16, 10, 12))  # type: ignore[arg-type]
        assert torch.autograd.grad(made.square().sum(), asked)[0].norm() > 0


class Doubled(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_a_layer_of_another_kind_is_called_as_it_is() -> None:
    norm, layer = norm_and_layer(torch.float32)
    features = drawn(2, 16, 10, 12)
    other = copy.deepcopy(layer)
    other.__class__ = Doubled
    reflected = nn.Conv2d(16, 8, 3, padding=1, padding_mode="reflect").requires_grad_(False)
    same(thrift.convolved(other, features), 2 * layer(features), features)
    same(thrift.convolved(reflected, features), reflected(features), features)
    same(thrift.activated(nn.Identity(), features), F.silu(features), features)
    apart = drawn(2, 10, 12, 16).permute(0, 3, 1, 2)  # a place's channels together
    same(thrift.activated(norm, apart), F.silu(norm(apart)), apart)
    same(thrift.convolved(layer, apart), layer(apart), apart)


def test_autocast_casts_as_it_does() -> None:
    norm, layer = norm_and_layer(torch.float32)
    features = drawn(2, 16, 10, 12)
    with torch.autocast("cpu", torch.bfloat16):
        made, plain = thrift.convolved(layer, features), layer(features)
        normed, plainly = thrift.activated(norm, features), F.silu(norm(features))
    assert made.dtype == torch.bfloat16
    same(made, plain, features)
    same(normed, plainly, features)


def test_without_a_gradient_silu_is_taken_in_place_of_the_norm() -> None:
    norm, _ = norm_and_layer(torch.float32)
    features = drawn(2, 16, 10, 12)
    before = features.detach().clone()
    with torch.no_grad():
        assert torch.equal(thrift.activated(norm, features), F.silu(norm(features)))
    assert torch.equal(features, before)


def test_a_gate_can_be_compiled_in_one_piece() -> None:
    projected = drawn(2, 7, 24)
    compiled = torch.compile(lambda given: thrift.gated(given * 1), backend="aot_eager", fullgraph=True)
    try:
        same(compiled(projected), thrift.gated(projected), projected)
    finally:
        torch._dynamo.reset()
