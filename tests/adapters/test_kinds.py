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
from trainer.adapters.lora.starts import pissa
from trainer.adapters.merging import merge
from trainer.config import config_from_layers
from trainer.families.reading.quantised import KINDS as CODES
from trainer.families.reading.quantised import QuantisedLinear
from trainer.ground.errors import ConfigError, ModelError
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


HELD = [
    ("locon", {"dora_wd": True}, "dora_scale.*dora_wd = true and wd_on_output = true"),
    ("loha", {"dora_wd": True, "wd_on_output": False}, "dora_scale.*dora_wd = true and wd_on_output = false"),
    ("locon", {"use_tucker": True}, "lora_mid.*use_tucker = true"),
    ("loha", {"use_tucker": True}, "hada_t1.*use_tucker = true"),
    ("lokr", {"factor": 4, "full_matrix": True}, "lokr_w2 .*full_matrix = true"),
    ("lokr", {"factor": 4, "decompose_both": True}, "lokr_w1_a .*decompose_both = true"),
    ("oft", {"rescaled": True}, "rescale.*rescaled = true"),
    ("oft", {"constraint": 0.5}, "alpha 0.5.*constraint = 0.5"),
]
"""Files with what plain settings of their kind lack, and the settings that make it."""


@pytest.mark.parametrize(("kind", "options", "words"), HELD)
def test_what_a_file_holds_is_never_left_out_without_a_word(
    kind: str, options: dict[str, object], words: str, tmp_path: Path
) -> None:
    network = replace(NETWORK, network_type=kind, network_dim=1, conv_dim=1)
    made_with = make_spec(network, ("unet",), SimpleNamespace(**options))
    path = tmp_path / "file.safetensors"
    export.save(path, made_with.build({"unet": Model()}, TARGETS, seed=1).tensors(), {}, "float")
    plain = make_spec(network, ("unet",), SimpleNamespace(factor=4))
    with pytest.raises(ModelError, match=f"(?s){words}"):
        plain.check(TARGETS, read_header(path))
    made_with.check(TARGETS, read_header(path))
    alone = replace(made_with, exclude_patterns=("square",))
    assert (
        "has 1 layer that these settings leave out, such as lora_unet_square"
        in alone.left_out(TARGETS, read_header(path))[0]
    )
    assert made_with.left_out(TARGETS, read_header(path)) == ()


@pytest.mark.parametrize(("kind", "other"), [("locon", "lora"), ("locon", "locon"), ("loha", "loha"), ("lokr", "lokr")])
@pytest.mark.parametrize("by_output", [True, False])
def test_a_dora_goes_on_from_a_file_without_lengths(kind: str, other: str, by_output: bool) -> None:
    model, adapter = Model(), make_spec(replace(NETWORK, network_type=other), ("unet",)).build
    plain = adapter({"unet": model}, TARGETS, seed=1)
    learn(model, plain, 5)
    options = SimpleNamespace(dora_wd=True, wd_on_output=by_output)
    longer = Model()
    dora = make_spec(replace(NETWORK, network_type=kind), ("unet",), options).build({"unet": longer}, TARGETS, seed=2)
    assert "lacks 3 of" in dora.load(plain.tensors(), strict=False)[0]
    torch.testing.assert_close(run(longer), run(model), rtol=1e-5, atol=1e-5)


def test_norms_are_those_of_what_is_added(kind: str, tmp_path: Path) -> None:
    spec = make_spec(replace(NETWORK, network_type=kind), ("unet",))
    model = Model()
    adapter = spec.build({"unet": model}, TARGETS, seed=1)
    learn(model, adapter, 5)
    path = tmp_path / "file.safetensors"
    export.save(path, adapter.tensors(), {}, "float")
    header = read_header(path)
    module = header.modules["lora_unet_linear"]
    tensors = {entry: adapter.tensors()[f"lora_unet_linear.{entry}"] for entry in module.entries}
    found = KINDS[kind].norm_of(tensors, module.alpha)
    ones = torch.eye(24)
    with torch.no_grad():
        added = (model.linear(ones) - Model().linear(ones)).t()
        base = Model().linear.weight.detach()
        seen = added
    if kind == "ia3":
        seen = (added / base).mean(1)
    elif kind == "oft":
        side = module.rank
        rows = base.view(-1, side, 24)
        seen = added.view(-1, side, 24) @ torch.linalg.pinv(rows)
    assert found == pytest.approx(float(seen.norm()), rel=1e-3)
    assert found > 0


def test_files_are_called_what_they_are(kind: str) -> None:
    modules = [set(spec_of(kind).entries(target)) - {"alpha"} for target in TARGETS]
    assert KINDS[kind].title_of(modules) == ("a LoCon with DoRA" if kind == "locon" else KINDS[kind].title)
    lengths = [{*make_spec(replace(NETWORK, network_type=kind), ("unet",)).entries(TARGETS[0]), "dora_scale"}]
    called = {"locon": "a DoRA", "loha": "a LoHa with DoRA", "lokr": "a LoKr with DoRA"}
    assert KINDS[kind].title_of(lengths) == called.get(kind, KINDS[kind].title)


@pytest.mark.parametrize("strength", [1.0, 0.5, -1.0])
def test_a_file_merged_into_the_model_does_what_the_adapter_does(kind: str, strength: float, tmp_path: Path) -> None:
    model, adapter = made(kind)
    learn(model, adapter, 5)
    path = tmp_path / "file.safetensors"
    export.save(path, adapter.tensors(), {}, "float")
    file, merged = export.read_adapter(path), Model()
    merge({"unet": merged}, TARGETS, file.header, file.tensors, strength)
    with adapter.multiplied(strength):
        torch.testing.assert_close(run(merged), run(model), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(run(merged), run(Model()), atol=1e-2)


def test_a_file_merges_into_layers_of_few_bits(tmp_path: Path) -> None:
    model, adapter = made("lora")
    learn(model, adapter, 5)
    path = tmp_path / "file.safetensors"
    export.save(path, adapter.tensors(), {}, "float")
    file, holder = export.read_adapter(path), nn.Module()
    holder.linear = QuantisedLinear(Model().linear, CODES["int8"])
    before = holder.linear.whole(torch.float32)
    merge({"unet": holder}, TARGETS[:1], file.header, file.tensors, 1.0)
    added = holder.linear.whole(torch.float32) - before
    wanted = adapter.modules[0].up @ adapter.modules[0].down * adapter.modules[0].strength
    assert float(torch.cosine_similarity(added.flatten(), wanted.detach().flatten(), dim=0)) > 0.98


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_from_the_weights_is_written_as_a_lora_of_the_original_model(start: str, tmp_path: Path) -> None:
    """Nil at the start, learns, rank doubled in the file, which a plain LoRA reads; its state goes on to the bit."""
    options = SimpleNamespace(init_lora_weights=start)
    spec = make_spec(NETWORK, ("unet",), options)
    model = Model()
    adapter = spec.build({"unet": model}, TARGETS, seed=1)
    plain = run(Model())
    torch.testing.assert_close(run(model), plain, rtol=1e-4, atol=1e-4)
    assert float(adapter.modules[0].up.abs().max()) > 0
    losses = learn(model, adapter)
    assert losses[-1] < 0.8 * losses[0]
    trained, tensors = run(model), adapter.tensors()
    assert {key: tuple(value.shape) for key, value in tensors.items()} == spec.shapes(TARGETS)
    assert "rank 8 and alpha 4" in spec.notices[0]
    path = tmp_path / "file.safetensors"
    export.save(path, tensors, {}, "float")
    other, as_lora = made("lora", network_dim=8, network_alpha=4.0, conv_dim=6, conv_alpha=3.0)
    as_lora.load(export.read_adapter(path).tensors)
    torch.testing.assert_close(run(other), trained, rtol=1e-4, atol=1e-4)
    for factor in (0.0, 0.5):
        with adapter.multiplied(factor), as_lora.multiplied(factor):
            torch.testing.assert_close(run(model), run(other), rtol=1e-4, atol=1e-4)
    assert torch.equal(run(model), trained)
    again = Model()
    restored = spec.build({"unet": again}, TARGETS, seed=1)
    state = {key: value.clone() for key, value in adapter.state().items()}
    assert {key: tuple(value.shape) for key, value in state.items()} == spec.state_shapes(TARGETS)
    restored.restore(state)
    assert torch.equal(run(again), trained)
    adapter.stack()
    assert torch.equal(torch.cat([each.flatten() for each in adapter.tensors().values()]),
                       torch.cat([each.flatten() for each in tensors.values()]))  # fmt: skip


def test_pissa_takes_the_largest_singular_values() -> None:
    weight = torch.randn(40, 24, generator=torch.Generator().manual_seed(2)) @ torch.diag(0.7 ** torch.arange(24.0))
    first, second = pissa(weight, 4, 0.5, "layer")
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(0.5 * second @ first, left[:, :4] @ torch.diag(values[:4]) @ right[:4])
    torch.testing.assert_close(first.norm(dim=1), second.norm(dim=0))


def test_a_start_is_refused_where_it_cannot_be() -> None:
    for other in ({"network_type": "loha"}, {"quantize_base": "int8"}, {"scale_weight_norms": 1.0}):
        with pytest.raises(ConfigError, match="init_lora_weights: pissa"):
            config_from_layers([{"init_lora_weights": "pissa", **other}])
