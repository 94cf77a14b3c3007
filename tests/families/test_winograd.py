"""Convolutions by tiles against plain ones in float64, and where they are chosen."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.families.unet import slim_blocks, winograd
from trainer.families.unet.slim_blocks import slimmed
from trainer.forecast.ledger import Ledger


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layers(channels: int, out: int, bias: bool = True) -> tuple[nn.GroupNorm, nn.Conv2d]:
    torch.manual_seed(2)
    norm, layer = nn.GroupNorm(2, channels, eps=1e-3), nn.Conv2d(channels, out, 3, padding=1, bias=bias)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm, layer


def exactly(features: Tensor, norm: nn.GroupNorm, layer: nn.Conv2d, beside: Tensor | None) -> Tensor:
    norm, layer = copy.deepcopy(norm).double(), copy.deepcopy(layer).double()
    made: Tensor = layer(F.silu(norm(features.double())))
    return made if beside is None else made + beside.double()


def error(made: Tensor, exact: Tensor) -> float:
    return float((made - exact).norm() / exact.norm())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sum_of_two", [True, False])
@pytest.mark.parametrize("size", [(4, 4), (12, 20), (44, 8), (8, 64)])
@pytest.mark.parametrize("numbers", [1, 600, 2**16])
@torch.no_grad()
def test_tiles_give_what_a_plain_convolution_gives(
    size: tuple[int, int], numbers: int, sum_of_two: bool, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "_NUMBERS", numbers)  # one row of tiles at a time, some, all of them
    monkeypatch.setattr(winograd, "_ROWS", 100)
    norm, layer = layers(6, 10, bias)
    features = (3 + drawn(2, 6, *size)).to(memory_format=torch.channels_last)
    beside = drawn(2, 10, *size, seed=3) if sum_of_two else None
    given = [each for each in (features, beside) if each is not None]
    kept = [each.clone() for each in given]
    made = winograd.convolved(features, norm, layer, beside)
    assert error(made, exactly(features, norm, layer, beside)) < 3e-6
    assert all(torch.equal(one, other) for one, other in zip(given, kept, strict=True)), "what is given stays"
    alone = winograd.convolved(features[1:], norm, layer, None if beside is None else beside[1:])
    assert error(alone, made[1:]) == 0, "the same bits alone and in a batch"
    plain = winograd.convolved(features.contiguous(), norm, layer, beside)
    assert error(plain, made) < 1e-6, "however it lies in memory"


@torch.no_grad()
def test_a_mean_far_from_zero_costs_no_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "_ROWS", 100)
    norm, layer = layers(6, 10)
    features = 200 + drawn(1, 6, 40, 40) + torch.linspace(-3, 3, 40)[:, None]
    exact = exactly(features, norm, layer, None)
    assert error(winograd.convolved(features, norm, layer), exact) < 3 * error(layer(F.silu(norm(features))), exact)


def block(channels: int = 128, out: int = 128, **other: Any) -> ResnetBlock2D:
    torch.manual_seed(4)
    made = ResnetBlock2D(in_channels=channels, out_channels=out, temb_channels=None, eps=1e-6, **other)
    return made.requires_grad_(False)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The maps that were convolved by tiles."""
    theirs, seen = winograd.convolved, []  # type: ignore[var-annotated]

    def convolved(features: Tensor, *others: Any) -> Tensor:
        seen.append(features)
        return theirs(features, *others)

    monkeypatch.setattr(winograd, "convolved", convolved)
    return seen


@pytest.mark.parametrize("out", [128, 160])
@torch.no_grad()
def test_a_residual_block_of_many_channels_and_places_is_computed_by_tiles(out: int, calls: list[Tensor]) -> None:
    plain = block(out=out)
    features = drawn(1, 128, 64, 68)
    exact = copy.deepcopy(plain).double()(features.double(), None)
    assert error(slimmed(plain)(features, None), exact) < 3e-6
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("made", "features"),
    [
        pytest.param({}, {"size": (18, 16)}, id="sides of no multiple of four"),
        pytest.param({}, {"size": (12, 16)}, id="few places"),
        pytest.param({"channels": 32}, {"channels": 32}, id="few channels in"),
        pytest.param({"out": 32}, {}, id="few channels out"),
        pytest.param({}, {"dtype": torch.bfloat16}, id="half precision"),
        pytest.param({}, {"dtype": torch.float64}, id="double precision"),
        pytest.param({}, {"gradient": True}, id="a gradient"),
    ],
)
def test_others_are_computed_as_before(
    made: dict[str, Any], features: dict[str, Any], calls: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "_CHANNELS", 64)
    monkeypatch.setattr(winograd, "_PLACES", 16 * 16)
    dtype = features.get("dtype", torch.float32)
    plain = block(**{"channels": 64, "out": 64} | made).to(dtype)
    given = drawn(1, features.get("channels", 64), *features.get("size", (16, 16))).to(dtype)
    with torch.set_grad_enabled(features.get("gradient", False)):
        assert torch.equal(slimmed(copy.deepcopy(plain))(given, None), plain(given, None))
    assert calls == []


@torch.no_grad()
def test_a_unets_block_and_a_cards_are_computed_as_before(calls: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    with_time = ResnetBlock2D(in_channels=128, out_channels=128, temb_channels=8).requires_grad_(False)
    slimmed(with_time)(drawn(1, 128, 64, 64), drawn(1, 8))
    monkeypatch.setattr(slim_blocks, "meta_means", "cuda")
    with torch.device("meta"):
        slimmed(block())(torch.empty(1, 128, 64, 64), None)
    assert calls == []


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "kernel": {"kernel_size": 5},
    "stride": {"stride": 2},
    "padding": {"padding": 0},
    "dilation": {"dilation": 2},
    "groups": {"groups": 2},
    "in": {"in_channels": 96},
    "out": {"out_channels": 96},
    "type": {"dtype": torch.float64},
    "mode": {"padding_mode": "reflect"},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_of_another_kind_does_not_suit(name: str) -> None:
    plain: dict[str, Any] = {"kernel_size": 3, "padding": 1}
    assert winograd.suits(nn.Conv2d(128, 128, **plain))
    assert not winograd.suits(nn.Conv2d(**{"in_channels": 128, "out_channels": 128} | plain | CONVOLUTIONS[name]))


@torch.no_grad()
def test_a_forecast_counts_the_bytes_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "_NUMBERS", 2**13)  # several strips, of which a forecast goes through one
    theirs, strips = winograd._products, []

    def products(tiles: Tensor, *others: Any) -> Tensor:
        strips.append(tiles.device.type)
        return theirs(tiles, *others)

    monkeypatch.setattr(winograd, "_products", products)
    brief, features, most = slimmed(block(out=160)), drawn(1, 128, 64, 64), []
    for device in ("cpu", "meta"):
        given = features.to(device).to(memory_format=torch.channels_last)
        with Ledger() as ledger:
            brief.to(device)(given, None)
        most.append(ledger.peak)
    assert (strips.count("cpu"), strips.count("meta")) == (10, 2)
    assert most[1] == pytest.approx(most[0], rel=0.01)
