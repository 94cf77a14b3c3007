"""Every kind of adapter keeps the same promises: nil at the start, learns, saved, recognised, loaded, detached."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.adapters import Network
from trainer.adapters import KINDS, AdapterSpec, make_spec, read_header
from trainer.adapters.injection import InjectedAdapter
from trainer.ground.errors import ModelError
from trainer.results import export
from trainer.targets import Target

TARGETS = (
    Target("unet", "linear", "lora_unet_linear", 24, 40),
    Target("unet", "point", "lora_unet_point", 16, 24, (1, 1)),
    Target("unet", "square", "lora_unet_square", 24, 32, (3, 3), extra=True),
)
OPTIONS = {
    "locon": {"use_tucker": True, "use_scalar": True, "dora_wd": True},
    "lokr": {"factor": 4},
    "oft": {"rescaled": True},
}
"""What makes a kind's files its own, its matrices both whole and factored, its outputs other than turned."""
NETWORK = Network(network_dim=4, network_alpha=2.0, conv_dim=3, conv_alpha=1.5)


class Model(nn.Module):
    """A linear layer, and two convolutions one after the other."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.linear, self.point = nn.Linear(24, 40), nn.Conv2d(16, 24, 1)
            self.square = nn.Conv2d(24, 32, 3, stride=2, padding=1, bias=False)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        return torch.cat([self.linear(x).flatten(), self.square(self.point(image)).flatten()])


def run(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    x, image = torch.randn(5, 24, generator=generator), torch.randn(2, 16, 9, 8, generator=generator)
    output: Tensor = model(x.to(model.dtype), image.to(model.dtype)) if hasattr(model, "dtype") else model(x, image)
    return output


def spec_of(kind: str, **settings: object) -> AdapterSpec:
    network = replace(NETWORK, network_type=kind, **settings)
    return make_spec(network, ("unet",), SimpleNamespace(**OPTIONS.get(kind, {})))


def made(kind: str, **settings: object) -> tuple[Model, InjectedAdapter]:
    model, spec = Model(), spec_of(kind, **settings)
    return model, spec.build({"unet": model}, TARGETS, seed=1)


def learn(model: nn.Module, adapter: InjectedAdapter, steps: int = 30) -> list[float]:
    """Train towards twice the output and return the losses."""
    wanted, losses = 2 * run(Model()).detach(), []
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.02)
    for _ in range(steps):
        loss = (run(model) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_it_starts_as_nothing_learns_and_detaches(kind: str) -> None:
    model, adapter = made(kind)
    plain = run(Model())
    torch.testing.assert_close(run(model), plain, rtol=1e-5, atol=1e-5)
    losses = learn(model, adapter)
    assert losses[-1] < 0.8 * losses[0]
    trained = run(model)
    assert not torch.allclose(trained, plain, atol=1e-2)
    with adapter.multiplied(0.0):
        torch.testing.assert_close(run(model), plain, rtol=1e-6, atol=1e-6)
    assert torch.equal(run(model), trained)
    assert all(not each.requires_grad for name, each in model.named_parameters() if "base_layer" in name)


def test_its_file_is_what_was_planned_is_recognised_and_goes_on(kind: str, tmp_path: Path) -> None:
    model, adapter = made(kind)
    learn(model, adapter, 5)
    spec = spec_of(kind)
    assert {key: tuple(value.shape) for key, value in adapter.state().items()} == spec.state_shapes(TARGETS)
    tensors, path = adapter.tensors(), tmp_path / "file.safetensors"
    assert {key: tuple(value.shape) for key, value in tensors.items()} == spec.shapes(TARGETS)
    assert list(tensors) == list(spec.shapes(TARGETS))
    size = export.save(path, tensors, {}, "float")
    assert abs(size - spec.file_bytes(TARGETS, "float")) < 400
    header = read_header(path)
    assert (header.kind, list(header.modules)) == (kind, sorted(target.name for target in TARGETS))
    spec.check(TARGETS, header)
    again = made(kind, network_dim=2, conv_dim=2, network_weights=str(path), dim_from_weights=True)
    for other in (made(kind), again):
        assert other[1].load(export.read_adapter(path).tensors) == ()
        torch.testing.assert_close(run(other[0]), run(model), rtol=1e-5, atol=1e-5)


def test_its_state_is_exact(kind: str) -> None:
    model, adapter = made(kind)
    learn(model, adapter, 5)
    other, restored = made(kind)
    restored.restore({key: value.clone() for key, value in adapter.state().items()})
    assert torch.equal(run(other), run(model))
    assert all(torch.equal(one, two) for one, two in zip(adapter.parameters(), restored.parameters(), strict=True))
    with pytest.raises(ModelError, match="lacks 1 of"):
        restored.restore(dict(list(adapter.state().items())[1:]))


def test_its_start_depends_on_seed_and_name_alone(kind: str) -> None:
    whole = made(kind)[1].tensors()
    spec = spec_of(kind)
    alone = spec.build({"unet": Model()}, TARGETS[1:2], seed=1)
    assert all(torch.equal(whole[key], value) for key, value in alone.tensors().items())


def test_files_of_another_kind_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    export.save(path, made(kind)[1].tensors(), {}, "float")
    for other in KINDS.values():
        if other.name != kind and kind not in other.readable:
            spec = spec_of(other.name)
            with pytest.raises(ModelError, match=f'Set network_type = "{kind}"'):
                spec.check(TARGETS, read_header(path))


def test_a_half_precision_base_computes_in_its_own_dtype(kind: str) -> None:
    model, adapter = made(kind)
    learn(model, adapter, 5)
    half = Model().to(torch.bfloat16)
    half.dtype = torch.bfloat16
    spec = spec_of(kind)
    other = spec.build({"unet": half}, TARGETS, seed=1)
    other.restore(adapter.state())
    output = run(half)
    assert output.dtype == torch.bfloat16
    output.square().mean().backward()
    assert all(each.grad is not None and each.grad.dtype == torch.float32 for each in other.parameters())
    for parameter in adapter.parameters():
        parameter.grad = None
    run(model).square().mean().backward()
    theirs = torch.cat([each.grad.flatten() for each in adapter.parameters()])
    ours = torch.cat([each.grad.flatten() for each in other.parameters()])
    assert float(torch.cosine_similarity(ours, theirs, dim=0)) > 0.99


READ_OTHERWISE = [
    ("lora", {}, ""),
    ("loha", {}, ""),
    ("lokr", {}, ""),
    ("locon", {"use_tucker": True}, ""),
    ("locon", {"dora_wd": True, "wd_on_output": True}, "7 to 22 %"),
    ("loha", {"dora_wd": True, "wd_on_output": False}, "ComfyUI reads it exactly"),
    ("lokr", {"use_tucker": True}, "does not apply"),
    ("ia3", {}, "neither ComfyUI nor diffusers"),
    ("oft", {"constraint": 0.1}, "nearly all of the effect"),
]
"""Forms of files, and what is said of those that programs read otherwise than they were trained."""


@pytest.mark.parametrize(("kind", "options", "words"), READ_OTHERWISE)
def test_forms_that_are_read_otherwise_are_named(kind: str, options: dict[str, object], words: str) -> None:
    spec = make_spec(replace(NETWORK, network_type=kind), ("unet",), SimpleNamespace(**options))
    said = " ".join(spec.notices)
    assert words in said
    assert bool(words) == bool(said)
