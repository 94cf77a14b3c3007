"""Factors of layers of one shape as one parameter: the same numbers, the same state, and nothing old is used again."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.adapters.test_kinds import NETWORK
from trainer.adapters import joined as joining
from trainer.adapters import make_spec
from trainer.adapters.factored import FactoredAdapter
from trainer.optimizers import OPTIMIZERS
from trainer.targets import Target

FORMS: list[tuple[str, dict[str, Any]]] = [
    ("locon", {}),
    ("locon", {"dora_wd": True, "wd_on_output": True}),
    ("locon", {"dora_wd": True, "wd_on_output": False}),
    ("loha", {}),
    ("loha", {"use_tucker": True, "use_scalar": True}),
    ("lokr", {"factor": 4}),
    ("lokr", {"factor": 4, "full_matrix": True}),
    ("ia3", {}),
    ("ia3", {"train_on_input": True}),
    ("oft", {"constraint": 0.01}),
    ("oft", {"rescaled": True}),
]
"""Kinds and options whose arithmetic of a pass differs."""
IDS = ["-".join([kind, *options]) for kind, options in FORMS]
TARGETS = (
    *(Target("unet", f"line{number}", f"lora_unet_line{number}", 24, 40) for number in range(3)),
    *(Target("unet", f"point{number}", f"lora_unet_point{number}", 24, 24, (1, 1)) for number in range(2)),
    *(Target("unet", f"square{number}", f"lora_unet_square{number}", 24, 32, (3, 3)) for number in range(2)),
)


class Model(nn.Module):
    """Three linear layers, and twice a convolution after another."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            for number in range(3):
                setattr(self, f"line{number}", nn.Linear(24, 40))
            for number in range(2):
                setattr(self, f"point{number}", nn.Conv2d(24, 24, 1))
                setattr(self, f"square{number}", nn.Conv2d(24, 32, 3, padding=1, bias=bool(number)))
        self.to(dtype)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        found = [getattr(self, f"line{number}")(x).flatten() for number in range(3)]
        for number in range(2):
            found.append(getattr(self, f"square{number}")(getattr(self, f"point{number}")(image)).flatten())
        return torch.cat(found)


@cache
def data(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in ((5, 24), (2, 24, 9, 8)))  # type: ignore[return-value]


def fill(adapter: FactoredAdapter, seed: int = 7) -> None:
    """Move every factor off its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in adapter.modules:
            for factor in module.matrices.values():
                factor.add_(torch.randn(factor.shape, generator=generator) * 0.1)


def made(
    kind: str, options: dict[str, Any], *, stacked: bool, dtype: torch.dtype = torch.float32
) -> tuple[Model, FactoredAdapter]:
    model = Model(dtype)
    spec = make_spec(replace(NETWORK, network_type=kind), ("unet",), SimpleNamespace(**options))
    adapter = spec.build({"unet": model}, TARGETS, seed=1)
    assert isinstance(adapter, FactoredAdapter)
    fill(adapter)
    if stacked:
        adapter.stack()
    return model, adapter


def backward(model: Model, *, again: bool = False) -> Tensor:
    """Go through the model and back; return its output. `again`: what is between is computed again on the way back."""
    inputs = data(model.line0.base_layer.weight.dtype)
    output: Tensor = checkpoint(model, *inputs, use_reentrant=False) if again else model(*inputs)
    output.float().square().mean().backward()
    return output.detach()


def gradients(adapter: FactoredAdapter) -> dict[str, Tensor]:
    """Return the gradient of each factor."""
    found = {}
    for module in adapter.modules:
        for entry, factor in module.matrices.items():
            parameter, index = adapter.place(module, entry)
            assert parameter.grad is not None
            whole = parameter.grad if index is None else parameter.grad[index]
            found[f"{module.target.name}.{entry}"] = whole.reshape(factor.shape)
    return found


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    for key, mine in ours.items():
        assert (mine - theirs[key]).norm() <= tolerance * theirs[key].norm() + 1e-9, key


@pytest.mark.parametrize(("kind", "options"), FORMS, ids=IDS)
def test_stacked_factors_get_the_gradients_that_each_would_get(
    kind: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one piece and in several, with blocks computed again, and where weights are too large to be made together."""
    plain, single = made(kind, options, stacked=False)
    wanted = [backward(plain), backward(plain)][0]
    for name, value, again in (("_PIECE", 1, False), ("_PIECE", 1 << 20, True), ("_LIGHT", 0, True)):
        monkeypatch.setattr(joining, name, value)
        model, stacked = made(kind, options, stacked=True)
        assert len(stacked.parameters()) < len(single.parameters())
        for _ in range(2):
            torch.testing.assert_close(backward(model, again=again), wanted, rtol=1e-5, atol=1e-5)
        assert_close(gradients(stacked), gradients(single))


@pytest.mark.parametrize(("kind", "options"), FORMS, ids=IDS)
def test_stacked_factors_of_a_half_precision_model(kind: str, options: dict[str, Any]) -> None:
    (plain, single), (model, stacked) = (made(kind, options, stacked=each, dtype=torch.bfloat16) for each in (0, 1))
    torch.testing.assert_close(backward(model), backward(plain), rtol=1e-2, atol=1e-2)
    assert_close(gradients(stacked), gradients(single), 1e-2)


@pytest.mark.parametrize(("kind", "options"), FORMS, ids=IDS)
def test_what_was_made_of_factors_is_not_used_when_they_have_changed(kind: str, options: dict[str, Any]) -> None:
    model, adapter = made(kind, options, stacked=True)
    other, changed = made(kind, options, stacked=True)
    before = {key: tensor.clone() for key, tensor in adapter.state().items()}
    fill(changed, seed=9)
    for _ in range(2):  # a pass with gradients, which does not come back
        model(*data())
        adapter.load(changed.tensors())
        adapter.restore(changed.state())
    assert torch.equal(model(*data()), other(*data()))
    with adapter.multiplied(0.5), changed.multiplied(0.5), torch.no_grad():
        half = other(*data())
    with adapter.multiplied(0.5):
        torch.testing.assert_close(model(*data()), half, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(1)
        torch.testing.assert_close(model(*data()), model(*data()))
        alone = model(*data())
    torch.testing.assert_close(model(*data()), alone, rtol=1e-5, atol=1e-5)
    adapter.restore(before)
    assert all(torch.equal(value, before[key]) for key, value in adapter.state().items())


@pytest.mark.parametrize(("kind", "options"), FORMS, ids=IDS)
def test_a_step_and_its_state_are_those_of_single_factors(kind: str, options: dict[str, Any]) -> None:
    """AdamW's state goes from single factors to stacks and back, bit for bit, and learns on."""
    states, factors = [], []
    for layout in ((False, False), (False, True), (True, False), (True, True)):
        saved: Any = None
        for stacked in layout:
            model, adapter = made(kind, options, stacked=stacked)
            groups = [{"params": each, "lr": 0.01, "name": rate.name} for rate, each in adapter.groups()]
            optimizer = OPTIMIZERS["AdamW"].build(groups)
            if saved:
                adapter.restore(saved[0])
                optimizer.load_state_dict(adapter.state_by_parameter(copy.deepcopy(saved[1])))
            generator = torch.Generator().manual_seed(4 if saved else 5)
            for module in adapter.modules:  # gradients of the same bits, which passes of two layouts need not give
                for entry, factor in module.matrices.items():
                    parameter, index = adapter.place(module, entry)
                    gradient = torch.randn(factor.shape, generator=generator)
                    if index is None:
                        parameter.grad = gradient
                        continue
                    parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                    parameter.grad[index] = gradient.view(parameter.shape[1:])
            optimizer.step()
            saved = (
                {key: value.clone() for key, value in adapter.state().items()},
                adapter.state_by_matrix(optimizer.state_dict()),
            )
        factors.append(saved[0])
        states.append(saved[1])
    for state, values in zip(states[1:], factors[1:], strict=True):
        torch.testing.assert_close(values, factors[0])
        assert state["param_groups"] == states[0]["param_groups"]
        for number, each in states[0]["state"].items():
            torch.testing.assert_close(state["state"][number], each)
    model, adapter = made(kind, options, stacked=True)
    optimizer = OPTIMIZERS["AdamW"].build([{"params": each, "name": rate.name} for rate, each in adapter.groups()])
    optimizer.load_state_dict(adapter.state_by_parameter(copy.deepcopy(states[-1])))
    again = adapter.state_by_matrix(optimizer.state_dict())["state"]
    for number, each in states[-1]["state"].items():
        assert all(torch.equal(again[number][name], value) for name, value in each.items())


def test_layers_that_may_be_left_out_are_not_stacked() -> None:
    model = Model(torch.float32)
    spec = make_spec(replace(NETWORK, network_type="loha"), ("unet",), SimpleNamespace(module_dropout=0.5))
    adapter = spec.build({"unet": model}, TARGETS, seed=1)
    adapter.stack()
    assert len(adapter.parameters()) == 4 * len(TARGETS)


def test_a_weight_without_length_has_a_gradient_without_harm() -> None:
    """DoRA divides by norms: where a weight and its difference are nil, nothing but the length's direction is lost."""
    for by_output in (True, False):
        for stacked in (True, False):
            model = Model(torch.float32)
            for number in range(3):
                with torch.no_grad():
                    getattr(model, f"line{number}").weight.zero_()
            options = SimpleNamespace(dora_wd=True, wd_on_output=by_output)
            spec = make_spec(replace(NETWORK, network_type="locon"), ("unet",), options)
            adapter = spec.build({"unet": model}, TARGETS, seed=1)
            if stacked:
                adapter.stack()
            backward(model)
            assert all(bool(each.grad.isfinite().all()) for each in adapter.parameters())


@pytest.mark.parametrize(("kind", "options"), FORMS, ids=IDS)
def test_a_step_is_made_of_shapes_alone(kind: str, options: dict[str, Any]) -> None:
    """As the forecast of memory does it: what is there has no numbers."""
    model = Model(torch.float32).to("meta")
    spec = make_spec(replace(NETWORK, network_type=kind), ("unet",), SimpleNamespace(**options))
    adapter = spec.build({"unet": model}, TARGETS, seed=1)
    adapter.stack()
    for _ in range(2):
        model(*(each.to("meta") for each in data())).square().mean().backward()
    assert all(each.is_meta and each.grad.shape == each.shape for each in adapter.parameters())
