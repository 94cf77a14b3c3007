"""Matrices of layers of one shape as one parameter: same numbers, same state, and nothing old is used again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.adapters import Network, components, fill, outputs, run_unet, tiny_targets
from trainer.adapters import make_spec
from trainer.adapters.lora import stacks
from trainer.adapters.lora.adapter import LoraAdapter
from trainer.optimizers import OPTIMIZERS

BOTH = ("unet", "text_encoder")
Model = tuple[dict[str, nn.Module], LoraAdapter]


def made(*, stacked: bool, dtype: torch.dtype = torch.float32, network: Network | None = None) -> Model:
    models = components(dtype)
    adapter = make_spec(network or Network(conv_dim=2), BOTH).build(models, tiny_targets(), seed=1)
    fill(adapter.tensors())
    if stacked:
        adapter.stack()
    return models, adapter


def pair(dtype: torch.dtype = torch.float32) -> tuple[Model, Model]:
    """Return the same model and LoRA, with its matrices each for itself and stacked."""
    return made(stacked=False, dtype=dtype), made(stacked=True, dtype=dtype)


def backward(models: dict[str, nn.Module]) -> None:
    sum(output.float().square().mean() for output in outputs(models)).backward()


def gradients(adapter: LoraAdapter) -> list[Tensor]:
    """Return the gradient of each matrix in file order."""
    found = []
    for module in adapter.modules:
        stack, index = module.layer.siblings.stack, module.layer.index
        parameters = stack.parameters
        whole = [each.grad[index] for each in parameters] if stack.stacked else None
        for part, matrix in enumerate((module.down, module.up)):
            found.append(whole[part].view(matrix.shape) if whole else matrix.grad)
    return found


def assert_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-5) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert (mine - other).norm() <= tolerance * other.norm() + 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_joined_matrices_get_the_gradients_that_each_would_get(dtype: torch.dtype) -> None:
    (plain, single), (models, stacked) = pair(dtype)
    for _ in range(2):
        backward(plain)
        backward(models)
    assert len(stacked.parameters()) < len(single.parameters()) / 4
    assert_close(gradients(stacked), gradients(single), 1e-5 if dtype == torch.float32 else 1e-2)


def test_checkpointed_blocks_get_the_same_gradients() -> None:
    (plain, single), (models, stacked) = pair()
    models["unet"].enable_gradient_checkpointing()
    models["text_encoder"].gradient_checkpointing_enable({"use_reentrant": False})
    models["text_encoder"].train()
    for _ in range(2):
        backward(plain)
        backward(models)
    assert_close(gradients(stacked), gradients(single))


def test_weights_too_large_to_be_made_together_are_made_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    models, adapter = made(stacked=True)
    backward(models)
    together = gradients(adapter)
    monkeypatch.setattr(stacks, "_SHARED", 0)
    models, adapter = made(stacked=True)
    backward(models)
    assert_close(gradients(adapter), together)


@pytest.mark.parametrize("stacked", [False, True])
def test_what_was_made_ready_is_not_used_when_the_matrices_have_changed(stacked: bool) -> None:
    models, adapter = made(stacked=stacked)
    run_unet(models["unet"])
    fill(adapter.tensors(), seed=9)
    fresh, other = made(stacked=stacked)
    fill(other.tensors(), seed=9)
    assert torch.equal(run_unet(models["unet"]), run_unet(fresh["unet"]))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.mul_(0)
    assert torch.equal(run_unet(models["unet"]), run_unet(components()["unet"]))


def test_the_files_tensors_are_views_of_what_is_trained() -> None:
    models, adapter = made(stacked=True)
    before = {key: tensor.clone() for key, tensor in adapter.tensors().items()}
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(1)
    for key, tensor in adapter.tensors().items():
        assert torch.equal(tensor, before[key] + (0 if key.endswith(".alpha") else 1))
    adapter.load(before)
    _, other = made(stacked=True)
    assert all(torch.equal(one, two) for one, two in zip(adapter.parameters(), other.parameters(), strict=True))


def test_after_a_move_the_matrices_are_views_again() -> None:
    models, adapter = made(stacked=True)
    kept = adapter.parameters()
    for model in models.values():
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    adapter.to(torch.device("cpu"))
    assert all(one is two for one, two in zip(kept, adapter.parameters(), strict=True))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.zero_()
    assert not any(tensor.any() for key, tensor in adapter.tensors().items() if not key.endswith(".alpha"))
    assert torch.equal(run_unet(models["unet"]), run_unet(components()["unet"]))


def optimizer_for(adapter: LoraAdapter, kind: str) -> torch.optim.Optimizer:
    groups = [{"params": adapter.parameters(name), "lr": 1e-3, "name": name} for name in adapter.parts]
    return OPTIMIZERS[kind].build(groups)


def moment(state: dict[str, Any]) -> torch.Tensor:
    """Return the first tensor that an optimizer keeps of a matrix."""
    return next(each for each in state.values() if torch.is_tensor(each) and each.ndim)


@pytest.mark.parametrize("kind", [name for name, kind in OPTIMIZERS.items() if kind.elementwise])
def test_an_optimizers_state_is_of_each_matrix_and_outlives_the_joining(kind: str) -> None:
    """Three steps stacked; then from its state one more stacked and one more with each matrix for itself."""
    models, adapter = made(stacked=True)
    optimizer = optimizer_for(adapter, kind)
    for _ in range(3):
        backward(models)
        optimizer.step()
        optimizer.zero_grad()
    saved = copy.deepcopy(adapter.state_by_matrix(optimizer.state_dict()))
    tensors = {key: tensor.clone() for key, tensor in adapter.tensors().items()}
    matrices = [tensor for key, tensor in tensors.items() if not key.endswith(".alpha")]
    moments = [moment(state) for _, state in sorted(saved["state"].items())]
    assert [each.shape for each in moments] == [
        matrix.shape for matrix in (part for module in adapter.modules for part in (module.down, module.up))
    ]
    assert len(moments) == len(matrices)
    results = []
    for stacked in (True, False):
        models, adapter = made(stacked=stacked)
        adapter.load(tensors)
        optimizer = optimizer_for(adapter, kind)
        optimizer.load_state_dict(adapter.state_by_parameter(copy.deepcopy(saved)))
        again = adapter.state_by_matrix(optimizer.state_dict())
        for number, state in saved["state"].items():
            assert all(
                torch.equal(torch.as_tensor(value), torch.as_tensor(again["state"][number][name]))
                for name, value in state.items()
            )
        backward(models)
        optimizer.step()
        state = adapter.state_by_matrix(optimizer.state_dict())["state"]
        results.append([moment(state[number]) for number in sorted(state)])
    assert_close(*results)


def test_a_state_of_other_matrices_is_refused() -> None:
    _, adapter = made(stacked=True)
    _, other = made(stacked=False, network=Network(network_dim=2))
    optimizer = optimizer_for(other, "AdamW")
    for parameter in other.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    with pytest.raises((ValueError, LookupError, RuntimeError)):
        adapter.state_by_parameter(optimizer.state_dict())


def test_layers_that_never_get_a_gradient_are_no_part_of_those_that_do() -> None:
    """The last layer of the text encoder where clip skip takes the one before it."""
    models = components()
    targets = tuple(
        target if ".layers.2." not in target.path else type(target)(**{**_fields(target), "idle": True})
        for target in tiny_targets()
    )
    adapter = make_spec(Network(), ("text_encoder",)).build(models, targets, seed=1)
    adapter.stack()
    optimizer = optimizer_for(adapter, "AdamW")
    before = {key: tensor.clone() for key, tensor in adapter.tensors().items()}
    hidden = models["text_encoder"](torch.arange(100, 114).reshape(2, 7), output_hidden_states=True).hidden_states
    hidden[-2].square().mean().backward()
    optimizer.step()
    for key, tensor in adapter.tensors().items():
        if not key.endswith(".alpha"):
            assert torch.equal(tensor, before[key]) == ("layers_2_" in key)


def _fields(target: object) -> dict[str, object]:
    return {name: getattr(target, name) for name in type(target).__slots__}


def test_joined_matrices_never_go_through_pefts_forward_unseen() -> None:
    models, adapter = made(stacked=True)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="stacked"):
        run_unet(models["unet"])
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert run_unet(models["unet"]).isfinite().all()
