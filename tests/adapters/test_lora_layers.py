"""The lean LoRA layers against PEFT's own forward on the same layer: same numbers, and who computes when."""

from __future__ import annotations

import peft
import pytest
import torch
from peft.tuners.lora import layer as peft_layers
from torch import Tensor, nn

from tests.helpers.adapters import Network, components, fill, tiny_targets
from trainer.adapters import make_spec
from trainer.adapters.injection import PEFT_NAME
from trainer.adapters.lora import layers as lora_layers
from trainer.adapters.lora.layers import SlimConv2d, SlimLinear, put_into_stack
from trainer.families.reading.quantised import quantised

Layer = SlimLinear | SlimConv2d
Differences = dict[str, float]

LINEAR = {
    "few rows": ((5, 24), 24, 32, 4),
    "many rows": ((2, 150, 24), 24, 96, 4),
    "high rank": ((150, 24), 24, 32, 40),
}
CONVOLUTIONS = {
    "1x1": ((2, 16, 9, 7), {"kernel_size": 1}, 4),
    "1x1, high rank": ((1, 16, 9, 7), {"kernel_size": 1, "bias": False}, 24),
    "3x3": ((2, 16, 9, 7), {"kernel_size": 3, "padding": 1}, 4),
    "3x3, stride 2": ((1, 16, 8, 8), {"kernel_size": 3, "padding": 1, "stride": 2, "bias": False}, 4),
}


class Holder(nn.Module):
    """Something that PEFT can inject into."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.zeros(1))
        self.layers = nn.ModuleList(layers)


def adapted(*bases: nn.Module, rank: int = 4, alpha: float = 6.0, **options: object) -> list[Layer]:
    """Return lean layers around frozen bases, with matrices as after training."""
    holder = Holder(*bases).requires_grad_(False)
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=[f"layers.{n}" for n in range(len(bases))], **options
    )
    config._register_custom_module({nn.Linear: SlimLinear, nn.Conv2d: SlimConv2d})
    peft.inject_adapter_in_model(config, holder, PEFT_NAME)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in holder.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return list(holder.layers)


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()


def by_peft(layer: Layer, x: Tensor) -> Tensor:
    """Return what PEFT's own forward makes of it."""
    kind = peft_layers.Linear if isinstance(layer, SlimLinear) else peft_layers.Conv2d
    return kind.forward(layer, x)


def results(output: Tensor, x: Tensor, layer: Layer) -> list[Tensor]:
    """Return the output, and the gradients of input and matrices for a loss that weights every output differently."""
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3)).to(output.dtype)
    wanted = (x, layer.lora_A[PEFT_NAME].weight, layer.lora_B[PEFT_NAME].weight)
    return [output.detach(), *torch.autograd.grad(output, wanted, weights)]


def assert_equal(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-6) -> None:
    """Within a millionth of each tensor's own size."""
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert mine.dtype == other.dtype
        difference = float(((mine - other).norm() / other.norm()).detach())
        assert difference <= tolerance


@pytest.mark.parametrize("merging", [False, True])
@pytest.mark.parametrize("case", LINEAR)
def test_a_linear_layer_equals_pefts(case: str, merging: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_layers, "_merging_pays", lambda *_: merging)
    shape, width, outputs, rank = LINEAR[case]
    (layer,) = adapted(nn.Linear(width, outputs), rank=rank)
    x = inputs(shape)
    assert_equal(results(layer(x), x, layer), results(by_peft(layer, x), x, layer))


@pytest.mark.parametrize("merging", [False, True])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_convolution_equals_pefts(case: str, merging: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_layers, "_merging_pays", lambda *_: merging)
    shape, options, rank = CONVOLUTIONS[case]
    (layer,) = adapted(nn.Conv2d(16, 24, **options), rank=rank)
    x = inputs(shape)
    assert_equal(results(layer(x), x, layer), results(by_peft(layer, x), x, layer))


def siblings(count: int = 3, dtype: torch.dtype = torch.float32, alpha: float = 6.0) -> list[SlimLinear]:
    layers = adapted(*(nn.Linear(24, 32, bias=False, dtype=dtype) for _ in range(count)), alpha=alpha)
    put_into_stack([layers])
    return layers


@pytest.mark.parametrize("scale", [1.5, 1.0])
def test_siblings_equal_pefts_layers_and_keep_nothing(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_layers, "_merging_pays", lambda *_: False)
    layers = siblings(alpha=4 * scale)
    for rows in (200, 201):
        x = inputs((rows, 24))
        weights = [torch.randn(rows, 32, generator=torch.Generator().manual_seed(number)) for number in range(3)]
        wanted = [x, *(each.weight for layer in layers for each in (layer.lora_A[PEFT_NAME], layer.lora_B[PEFT_NAME]))]
        ours = [layer(x) for layer in layers]
        theirs = [by_peft(layer, x) for layer in layers]
        assert_equal(
            [*ours, *torch.autograd.grad(ours, wanted, weights)],
            [*theirs, *torch.autograd.grad(theirs, wanted, weights)],
        )
    assert layers[0].siblings._input is None
    assert not layers[0].siblings._inner


def test_siblings_asked_alone_or_out_of_order_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_layers, "_merging_pays", lambda *_: False)
    layers = siblings()
    first, second = inputs((700, 24)), inputs((700, 24)) * 2
    for layer, x in (
        (layers[1], first),
        (layers[2], second),
        (layers[2], first),
        (layers[0], first),
        (layers[0], first),
    ):
        torch.testing.assert_close(layer(x), by_peft(layer, x), rtol=1e-5, atol=1e-5)


def test_the_layers_of_an_attention_share_one_product() -> None:
    models = components()
    make_spec(Network(), ("unet", "text_encoder")).build(models, tiny_targets(conv=False), seed=1)
    unet, text_encoder = models["unet"], models["text_encoder"]
    block = unet.get_submodule("mid_block.attentions.0.transformer_blocks.0")
    own, cross = block.attn1, block.attn2
    assert own.to_q.siblings is own.to_k.siblings is own.to_v.siblings
    assert cross.to_k.siblings is cross.to_v.siblings is not cross.to_q.siblings
    attention = text_encoder.get_submodule("encoder.layers.1.self_attn")
    assert attention.q_proj.siblings is attention.k_proj.siblings is attention.v_proj.siblings
    assert attention.out_proj.siblings is not attention.q_proj.siblings


@pytest.mark.parametrize("base", [nn.Linear(24, 32), nn.Conv2d(24, 32, 1), nn.Conv2d(24, 32, 3, padding=1)])
def test_bf16_without_autocast_is_as_exact_as_peft_with_it(base: nn.Module) -> None:
    (layer,) = adapted(base.bfloat16())
    shape = (700, 24) if isinstance(base, nn.Linear) else (2, 24, 12, 12)
    x = inputs(shape, torch.bfloat16)
    ours = results(layer(x), x, layer)
    with torch.autocast("cpu", torch.bfloat16):
        output = by_peft(layer, x)
    theirs = results(output, x, layer)
    assert [each.dtype for each in ours] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    layer.double()
    exact_x = x.detach().double().requires_grad_()
    exact = results(by_peft(layer, exact_x), exact_x, layer)
    for mine, other, right in zip(ours, theirs, exact, strict=True):
        assert (mine - right).norm() <= 1.1 * (other - right).norm()


def test_a_base_in_few_bits_is_computed_around() -> None:
    layer, plain = adapted(quantised(nn.Linear(64, 32), "int8"))[0], nn.Linear(64, 32)
    plain.weight.data, plain.bias.data = layer.base_layer.whole(torch.float32), layer.base_layer.bias
    (reference,) = adapted(plain)
    x = inputs((700, 64))
    assert_equal(results(layer(x), x, layer), results(by_peft(reference, x), x, reference))


def computed_by_peft(layer: Layer, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Say whether a layer's call goes through PEFT's forward."""
    called = []
    kind = peft_layers.Linear if isinstance(layer, SlimLinear) else peft_layers._ConvNd
    original = kind.forward
    with monkeypatch.context() as patch:
        patch.setattr(
            kind, "forward", lambda self, *args, **kwargs: called.append(1) or original(self, *args, **kwargs)
        )
        layer(x)
    return bool(called)


@pytest.mark.parametrize("base", [nn.Linear(24, 32), nn.Conv2d(24, 32, 1)])
def test_what_is_no_plain_lora_goes_through_peft(base: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs((700, 24) if isinstance(base, nn.Linear) else (2, 24, 12, 12))
    (layer,) = adapted(base)
    assert not computed_by_peft(layer, x, monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        assert computed_by_peft(layer, x, monkeypatch)
    layer.enable_adapters(False)
    assert computed_by_peft(layer, x, monkeypatch)
    layer.enable_adapters(True)
    layer.merge()
    assert computed_by_peft(layer, x, monkeypatch)
    layer.unmerge()
    assert not computed_by_peft(layer, x, monkeypatch)
    assert computed_by_peft(adapted(base, lora_dropout=0.5)[0], x, monkeypatch)
    assert computed_by_peft(adapted(base, use_dora=True)[0], x, monkeypatch)


def test_two_passes_give_the_same_bits() -> None:
    models = components()
    adapter = make_spec(Network(conv_dim=2), ("unet",)).build(models, tiny_targets(), seed=1)
    fill(adapter.tensors())
    generator = torch.Generator().manual_seed(4)
    noisy, context = torch.randn(2, 4, 32, 32, generator=generator), torch.randn(2, 77, 32, generator=generator)
    passes = []
    for _ in range(2):
        output = models["unet"](noisy, torch.tensor([10, 500]), context).sample
        passes.append(torch.autograd.grad(output.square().mean(), adapter.parameters()))
    assert all(torch.equal(one, two) for one, two in zip(*passes, strict=True))
