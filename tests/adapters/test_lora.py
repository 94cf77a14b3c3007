"""LoRA inside real modules: what it adds, what it leaves alone, how it starts, and that it loads exactly."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.adapters import Network, components, fill, outputs, run_unet, target_named, tiny_targets
from trainer.adapters import LoraSpec, make_spec
from trainer.adapters.files import Module
from trainer.adapters.lora.adapter import LoraAdapter
from trainer.ground.errors import ModelError

CONV = Network(network_dim=4, network_alpha=1.0, conv_dim=2, conv_alpha=3.0)
BOTH = ("unet", "text_encoder")


def inject(models: dict[str, nn.Module], network: Network = CONV, trained: tuple[str, ...] = BOTH, seed: int = 7):
    return make_spec(network, trained).build(models, tiny_targets(), seed=seed)


@pytest.fixture(scope="module")
def filled() -> tuple[dict[str, nn.Module], LoraAdapter]:
    """Return models with a LoRA as after training, for tests that only look."""
    models = components()
    adapter = inject(models)
    fill(adapter.tensors())
    return models, adapter


def plain_lora(tensors: dict[str, torch.Tensor], name: str, x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """Return up(down(x)) * alpha / rank, written out without PEFT."""
    down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
    scale = tensors[f"{name}.alpha"] / down.shape[0]
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(F.conv2d(x, down, stride=layer.stride, padding=layer.padding), up) * scale
    return x @ down.T @ up.T * scale


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2", (2, 5, 256)),
        ("lora_unet_down_blocks_0_attentions_0_proj_in", (2, 32, 6, 5)),
        ("lora_unet_down_blocks_0_downsamplers_0_conv", (2, 32, 6, 6)),
        ("lora_unet_up_blocks_0_upsamplers_0_conv", (2, 64, 4, 4)),
        ("lora_unet_mid_block_resnets_0_time_emb_proj", (2, 128)),
        ("lora_te_text_model_encoder_layers_1_self_attn_v_proj", (2, 7, 32)),
    ],
)
def test_each_layer_adds_up_of_down_times_alpha_over_rank(
    filled: tuple[dict[str, nn.Module], LoraAdapter], name: str, shape: tuple[int, ...]
) -> None:
    models, adapter = filled
    target = target_named(name)
    layer = models[target.component].get_submodule(target.path)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    base = layer.get_base_layer()
    expected = base(x) + plain_lora(adapter.tensors(), name, x, base)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_the_layers_inside_kohyas_classes_are_adapted_and_no_others(
    filled: tuple[dict[str, nn.Module], LoraAdapter],
) -> None:
    models, _ = filled
    classes = ("CLIPAttention", "CLIPMLP", "Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D")
    for model in models.values():
        holders = [module for module in model.modules() if type(module).__name__ in classes]
        inside = {layer for module in holders for layer in module.modules() if isinstance(layer, LoraLayer)}
        assert inside == {layer for layer in model.modules() if isinstance(layer, LoraLayer)}
        bases = {layer.get_base_layer() for layer in inside}
        own = {part for layer in inside for part in (*layer.lora_A.values(), *layer.lora_B.values())}
        layers = {x for module in holders for x in module.modules() if isinstance(x, nn.Linear | nn.Conv2d)}
        assert layers == bases | own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_adapter_changes_nothing_and_trains_in_float32(dtype: torch.dtype) -> None:
    models = components(dtype)
    before = outputs(models)
    adapter = inject(models)
    after = outputs(models)
    for old, new in zip(before, after, strict=True):
        assert new.dtype == dtype
        assert torch.equal(old, new)
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}
    fill(adapter.tensors())
    sum(output.float().square().mean() for output in outputs(models)).backward()
    for parameter in adapter.parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


def test_a_bf16_base_computes_the_lora_in_bf16_and_rounds_once() -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    models = components(torch.bfloat16)
    adapter = inject(models)
    fill(adapter.tensors())
    layer = models["unet"].get_submodule(target_named(name).path)
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    base = layer.get_base_layer()
    exact = F.linear(x.float(), base.weight.float()) + plain_lora(adapter.tensors(), name, x.float(), base)
    assert layer(x).dtype == torch.bfloat16
    assert (layer(x).float() - exact).norm() < 2**-8 * exact.norm()


def test_only_the_matrices_learn() -> None:
    models = components()
    adapter = inject(models, trained=("unet",))
    trained = {id(parameter) for parameter in adapter.parameters()}
    for model in models.values():
        for parameter in model.parameters():
            assert parameter.requires_grad == (id(parameter) in trained)
    assert adapter.parts == ("unet",)
    assert adapter.parameters("text_encoder") == []
    assert len(trained) == len(adapter.parameters("unet")) > 0


def test_parameters_come_in_file_order(filled: tuple[dict[str, nn.Module], LoraAdapter]) -> None:
    _, adapter = filled
    matrices = [tensor for key, tensor in adapter.tensors().items() if not key.endswith(".alpha")]
    assert [each.data_ptr() for each in adapter.parameters()] == [each.data_ptr() for each in matrices]
    assert adapter.parts == ("text_encoder", "unet")
    assert list(adapter.tensors()) == list(make_spec(CONV, BOTH).shapes(tiny_targets()))


class Draws(TorchDispatchMode):
    """Counts what is drawn into memory."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.uniform_.default and not args[0].is_meta
        return func(*args, **(kwargs or {}))


def test_each_start_is_drawn_and_nothing_beside_it() -> None:
    models = components()
    with Draws() as drawn:
        layers = len(inject(models).modules)
    assert drawn.count == layers > 0


def test_the_start_depends_on_seed_and_module_only() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    both = inject(components()).tensors()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    text = inject(components(torch.bfloat16), CONV, ("text_encoder",)).tensors()
    assert all(torch.equal(both[key], value) for key, value in text.items())
    other = inject(components(), seed=8, trained=("text_encoder",)).tensors()
    assert all(not torch.equal(both[key], value) for key, value in other.items() if key.endswith("down.weight"))
    downs = [key for key in both if key.endswith("lora_down.weight")]
    assert len({float(both[key].flatten()[0]) for key in downs}) == len(downs)


def test_down_starts_uniform_within_one_over_the_root_of_its_inputs_and_up_at_zero() -> None:
    for key, tensor in inject(components()).tensors().items():
        if key.endswith("lora_down.weight"):
            bound = 1 / math.sqrt(tensor[0].numel())
            assert 0.8 * bound < tensor.abs().max() <= bound, key
            assert abs(tensor.std() - bound / math.sqrt(3)) < 0.2 * bound, key
        elif key.endswith("lora_up.weight"):
            assert not tensor.any()


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    models = components()
    adapter = inject(models, trained=("unet",))
    fill(adapter.tensors())
    models["unet"].train()
    for checkpointing in (False, True):
        if checkpointing:
            models["unet"].enable_gradient_checkpointing()
        gradients.append(torch.autograd.grad(run_unet(models["unet"]).square().mean(), adapter.parameters("unet")))
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_autocast_runs_and_leaves_gradients_in_float32() -> None:
    models = components()
    adapter = inject(models)
    fill(adapter.tensors())
    exact = run_unet(models["unet"])
    with torch.autocast("cpu", torch.bfloat16):
        output = run_unet(models["unet"])
    assert output.dtype == torch.bfloat16
    assert (output - exact).abs().mean() < 0.05 * exact.abs().mean()
    output.float().mean().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in adapter.parameters("unet"))


def test_load_restores_every_bit(filled: tuple[dict[str, nn.Module], LoraAdapter]) -> None:
    (models, adapter), again = filled, components()
    saved = {key: tensor.clone() for key, tensor in adapter.tensors().items()}
    other = inject(again, seed=1)
    assert other.load(saved) == ()
    assert all(torch.equal(saved[key], tensor) for key, tensor in other.tensors().items())
    assert all(torch.equal(one, two) for one, two in zip(outputs(models), outputs(again), strict=True))


def test_a_convolutions_matrices_load_from_a_linear_layers_file(
    filled: tuple[dict[str, nn.Module], LoraAdapter],
) -> None:
    _, adapter = filled
    flat = {
        key: tensor.flatten(1) if tensor.shape[2:] == (1, 1) and "proj_in" in key else tensor.clone()
        for key, tensor in adapter.tensors().items()
    }
    other = inject(components(), seed=1)
    other.load(flat)
    found = other.tensors()
    assert all(torch.equal(tensor, found[key]) for key, tensor in adapter.tensors().items())


def test_load_refuses_what_is_missing_unknown_or_of_another_rank() -> None:
    adapter = inject(components())
    whole = {key: tensor + 1 for key, tensor in adapter.tensors().items() if not key.endswith("alpha")}
    whole |= {key: tensor for key, tensor in adapter.tensors().items() if key.endswith("alpha")}
    before = [parameter.clone() for parameter in adapter.parameters()]
    first, last = next(iter(whole)), list(whole)[-1]
    with pytest.raises(ModelError, match=rf"my\.file lacks 1 of \d+ keys, the first is {first}"):
        adapter.load({key: value for key, value in whole.items() if key != first}, source="my.file")
    with pytest.raises(ModelError, match="doesn't have, the first is extra"):
        adapter.load({**whole, "extra": torch.zeros(1)})
    key = "lora_unet_mid_block_attentions_0_proj_out.lora_up.weight"
    with pytest.raises(ModelError, match=r"is \[64, 9, 1, 1\], this LoRA has \[64, 4, 1, 1\] \(rank 4\)"):
        adapter.load({**whole, key: torch.zeros(64, 9, 1, 1)})
    with pytest.raises(ModelError, match="has alpha 5, this LoRA has"):
        adapter.load({**whole, last: torch.tensor(5.0)})
    assert all(torch.equal(one, two) for one, two in zip(before, adapter.parameters(), strict=True))


def test_without_strict_the_rest_keeps_its_start_and_notices_say_so() -> None:
    text_only = inject(components(), trained=("text_encoder",))
    fill(text_only.tensors())
    both = inject(components())
    start = [parameter.clone() for parameter in both.parameters("unet")]
    notices = both.load({**text_only.tensors(), "extra.alpha": torch.ones(())}, strict=False, source="old.safetensors")
    assert len(notices) == 2
    assert notices[0].startswith("old.safetensors lacks")
    assert all(torch.equal(one, two) for one, two in zip(start, both.parameters("unet"), strict=True))
    for one, two in zip(text_only.parameters(), both.parameters("text_encoder"), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(ModelError):
        both.load({"extra.alpha": torch.ones(())}, strict=False)


def test_multiplied_by_zero_shows_the_model_without_the_lora(
    filled: tuple[dict[str, nn.Module], LoraAdapter],
) -> None:
    models, adapter = filled
    plain = run_unet(components()["unet"])
    trained = run_unet(models["unet"])
    with adapter.multiplied(0):
        assert torch.equal(run_unet(models["unet"]), plain)
    assert torch.equal(run_unet(models["unet"]), trained)
    assert not torch.equal(trained, plain)


def test_given_ranks_and_alphas_reach_each_module() -> None:
    names = [target.name for target in tiny_targets(conv=False)]
    given = {name: Module(1 + number % 5, 0.5 + number, {}) for number, name in enumerate(names)}
    adapter = LoraSpec(4, 4, given=given).build(components(), tiny_targets(), seed=1)
    tensors = adapter.tensors()
    for name, module in given.items():
        assert tensors[f"{name}.lora_down.weight"].shape[0] == module.rank
        assert tensors[f"{name}.alpha"] == module.alpha
    fill(tensors)


def test_targets_that_the_model_does_not_have_are_named() -> None:
    target = tiny_targets()[0]
    fields = {name: getattr(target, name) for name in target.__slots__}
    spec = make_spec(CONV, BOTH)
    with pytest.raises(ModelError, match=r"no layer encoder\.layers\.99"):
        spec.build(components(), [type(target)(**{**fields, "path": "encoder.layers.99"})], seed=1)
    with pytest.raises(ModelError, match=r"expected a layer of shape \[32, 33\] at .*k_proj.* Linear \[32, 32\]"):
        LoraAdapter.inject(components(), [type(target)(**{**fields, "in_features": 33})], spec, seed=1)
    with pytest.raises(ModelError, match="no layer .* in its text_encoder"):
        LoraAdapter.inject({"unet": components()["unet"]}, [target], spec, seed=1)
