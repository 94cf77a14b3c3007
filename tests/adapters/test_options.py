"""Rates within an adapter, dropouts and limits of norms: numbers of sd-scripts and LyCORIS; resumed to the bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.adapters.test_golden_lycoris import ALGORITHMS, NAME, assert_digest, base_layer, given, target_of
from tests.adapters.test_kinds import NETWORK, TARGETS, Model, run
from tests.helpers.adapters import components, fill, run_unet, tiny_targets
from trainer.adapters import KINDS, AdapterSpec, LoraSpec, make_spec
from trainer.adapters.dropouts import Dropouts
from trainer.adapters.injection import InjectedAdapter
from trainer.adapters.rates import PLUS
from trainer.adapters.table import table
from trainer.config import config_from_layers, known_settings
from trainer.families import FAMILIES
from trainer.ground.errors import ConfigError, ModelError
from trainer.targets import Target

DATA = Path(__file__).parents[1] / "data"
GOLDEN = json.loads((DATA / "golden_networks.json").read_text(encoding="utf-8"))
LYCORIS = json.loads((DATA / "golden_lycoris.json").read_text(encoding="utf-8"))

# --- rates ---

ATTENTION = 2
"""Modules of each attention block of the stand-in model that the numbers are of."""


def stand_in(case: dict[str, Any]) -> tuple[Target, ...]:
    """Return the modules that the case's groups count: two for each attention block of the UNet."""
    named = (
        [f"input_blocks_{n}_1" for n in (4, 5, 7, 8)] + [f"output_blocks_{n}_1" for n in range(6)] + ["middle_block_1"]
        if case["sdxl"]
        else [f"down_blocks_{b}_attentions_{n}" for b in range(3) for n in range(2)]
        + [f"up_blocks_{b}_attentions_{n}" for b in range(1, 4) for n in range(3)]
        + ["mid_block_attentions_0"]
    )
    return tuple(
        Target("unet", "", f"lora_unet_{name}_{layer}", 8, 8) for name in named for layer in ("proj_in", "lin")
    )


CASES = [
    case
    for case in GOLDEN["block_lr_weight"]["cases"]
    if "groups" in case and case["network_args"] != {"mid_lr_weight": ""}
]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_rates_of_blocks_are_those_of_sd_scripts(number: int) -> None:
    case = CASES[number]
    arguments = case["network_args"]
    numbers = {key: float(value) if key.endswith("threshold") else value for key, value in arguments.items()}
    config = config_from_layers([{"network_dim": 4, **numbers}])
    spec = make_spec(config.network, ("unet",), *config.of_adapters)
    targets = stand_in(case)
    layout = 25 if not case["sdxl"] else 23
    selected = spec.select(targets)
    groups: dict[str, list[float]] = {}
    for target in selected:
        for entry in ("lora_down.weight", PLUS):
            rate = spec.rate(target, entry)
            groups.setdefault(rate.name, []).append(rate.of({"unet": 1e-4}))
    assert len(case["weights"]) == layout
    assert 2 * len(selected) == sum(count for *_, count in case["groups"])
    assert {name: (len(rates), pytest.approx(rates[0], rel=1e-6)) for name, rates in groups.items()} == {
        name: (count, rate) for name, rate, count in case["groups"]
    }


@pytest.mark.parametrize("value", ["cos", "1;2", "linear+x", "-1"])
def test_wrong_courses_are_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="reverse_linear"):
        config_from_layers([{"down_lr_weight": value}])


def test_a_list_of_another_length_is_told_of_and_a_model_without_blocks_refused() -> None:
    spec = LoraSpec(4, 2.0, parts=("unet",), down_lr_weight="1,0.5", mid_lr_weight="1,1")
    family = FAMILIES["sd15"]
    first, second = spec.notices_on(family.targets(family.configs, conv=True))
    assert first == "down_lr_weight has 2 numbers for 12 blocks: the last 10 get 1."
    assert second == "mid_lr_weight has 2 numbers for 1 blocks: the last 1 are not used."
    with pytest.raises(ModelError, match="network_reg_lrs"):
        spec.select(TARGETS)


LORAPLUS = [case for case in GOLDEN["loraplus"]["cases"] if "0" not in case["network_args"].values()]


@pytest.mark.parametrize("number", range(len(LORAPLUS)))
def test_loraplus_is_that_of_sd_scripts(number: int) -> None:
    case = LORAPLUS[number]
    ratios = {key: float(value) for key, value in case["network_args"].items()}
    spec = LoraSpec(4, 2.0, **ratios)
    text = Target("text_encoder", "", "lora_te_text_model_encoder_layers_0_mlp_fc1", 8, 8)
    unet = Target("unet", "", "lora_unet_down_blocks_0_attentions_0_proj_in", 8, 8)
    base = case["learning_rate"]
    rates = {"unet": case["unet_lr"] or base, "text_encoder": case["text_encoder_lr"] or base}
    found = {}
    for target in (text, unet):
        for entry in ("lora_down.weight", PLUS):
            rate = spec.rate(target, entry)
            found[rate.name.replace("text_encoder", "textencoder")] = pytest.approx(rate.of(rates))
    expected = {group["group"]: group["lr"] for group in case["groups"]}
    assert {name: rate for name, rate in found.items() if name in expected} == expected
    assert {name.split()[0] for name in found} >= {name.split()[0] for name in expected}


def test_rates_by_name_hold_before_those_of_blocks_and_parts() -> None:
    spec = LoraSpec(
        4, 2.0, parts=("unet",), network_reg_lrs=("attn1=5e-5", "_ff_=0"), down_lr_weight="zeros", loraplus_lr_ratio=2.0
    )
    family = FAMILIES["sd15"]
    selected = spec.select(family.targets(family.configs, conv=False))
    names = [target.name for target in selected]
    assert not any("_ff_" in name or ("_down_" in name and "attn1" not in name) for name in names)
    first = next(target for target in selected if "_down_" in target.name)
    assert spec.rate(first, "lora_down.weight").of({"unet": 1.0}) == 5e-5
    assert spec.rate(first, PLUS).of({"unet": 1.0}) == 1e-4


OPTIONS = {"loraplus_lr_ratio": 4.0, "down_lr_weight": "linear+0.5", "network_reg_lrs": ("to_k=1e-3",)}


@pytest.mark.parametrize("stacked", [True, False])
def test_groups_hold_every_matrix_once_and_states_outlive_stacks(stacked: bool) -> None:
    spec = LoraSpec(4, 2.0, **OPTIONS)
    models = components()
    adapter = spec.build(models, tiny_targets(), seed=1)
    apart = spec.build(components(), tiny_targets(), seed=1)
    if stacked:
        adapter.stack()
    groups = adapter.groups()
    assert [rate for rate, _ in groups] == [rate for rate, _ in apart.groups()]
    assert sum(each.numel() for _, group in groups for each in group) == sum(
        each.numel() for _, group in apart.groups() for each in group
    )
    optimizer = torch.optim.Adam(
        [{"params": group, "lr": rate.of({"unet": 1e-3, "text_encoder": 1e-4}), "name": rate.name}
         for rate, group in groups]
    )  # fmt: skip
    run_unet(models["unet"]).square().mean().backward()
    optimizer.step()
    saved = optimizer.state_dict()
    by_matrix = adapter.state_by_matrix(saved)
    shapes = [tuple(each.shape) for _, group in apart.groups() for each in group]
    assert [tuple(by_matrix["state"][n]["exp_avg"].shape) for n in sorted(by_matrix["state"])] == [
        shape for n, shape in enumerate(shapes) if n in by_matrix["state"]
    ]
    again = adapter.state_by_parameter(by_matrix)
    assert again["param_groups"] == saved["param_groups"]
    assert all(torch.equal(again["state"][n]["exp_avg"], each["exp_avg"]) for n, each in saved["state"].items())


def test_the_table_says_what_each_block_gets() -> None:
    family = FAMILIES["sd15"]
    dims = tuple(range(4, 29))
    spec = LoraSpec(4, 2.0, block_dims=dims, down_lr_weight="linear", loraplus_unet_lr_ratio=2.0)
    targets = family.targets(family.configs, conv=True)
    rows = table(spec, targets, family.parts, {"unet": 1e-4, "text_encoder": 5e-5})
    named = {row.title: row for row in rows}
    assert [row.index for row in rows if row.index is not None] == list(range(1, 25))
    assert (named["Text encoder"].layers, named["Text encoder"].rates) == (72, (5e-5,))
    up = named["UNet, up 4"]
    assert (up.index, up.ranks, up.alphas, up.rates) == (17, (21,), (2.0,), (1e-4, 2e-4))
    down = named["UNet, down 1"]
    assert (down.ranks, down.rates) == ((5,), (pytest.approx(1e-4 / 11), pytest.approx(2e-4 / 11)))
    assert sum(row.layers for row in rows) == len(spec.select(targets))


# --- dropouts ---


class Given(Dropouts):
    """Dropouts with the numbers that a case drew one after another, in place of those of a place."""

    def __init__(self, case: dict[str, Any]) -> None:
        options = case["options"]
        super().__init__(*(options.get(key, 0.0) for key in ("dropout", "rank_dropout", "module_dropout")))
        self._training = "eval" not in case
        torch.manual_seed(case.get("seed", 0))

    @property
    def active(self) -> bool:
        return self._training

    def of_batch(self, shape: tuple[int, ...], name: str, purpose: str) -> Tensor:
        return torch.rand(shape)

    def of_samples(self, shape: tuple[int, ...], name: str, purpose: str) -> Tensor:
        if purpose == "network_dropout":
            return (nn.functional.dropout(torch.ones(shape), self.network) > 0).float()
        return torch.rand(shape)


@pytest.mark.parametrize("number", range(len(GOLDEN["dropout"]["cases"])))
def test_dropouts_at_given_masks_are_those_of_sd_scripts(number: int) -> None:
    case = GOLDEN["dropout"]["cases"][number]
    model = nn.Module()
    model.layer = nn.Linear(3, 2)
    nn.init.zeros_(model.layer.weight)
    nn.init.zeros_(model.layer.bias)
    target = Target("unet", "layer", NAME, 3, 2)
    adapter = LoraSpec(4, 2.0, parts=("unet",)).build({"unet": model}, [target], seed=1)
    down = torch.arange(12).add(1).sin().reshape(4, 3)
    up = torch.arange(8).add(1).cos().reshape(2, 4)
    adapter.load({f"{NAME}.alpha": torch.tensor(2.0), f"{NAME}.lora_down.weight": down, f"{NAME}.lora_up.weight": up})
    model.layer.dropouts = Given(case)
    shape = json.loads(case["x"])
    x = torch.arange(1, 1 + torch.Size(shape).numel()).div(10).reshape(shape)
    output = model.layer(x)
    torch.testing.assert_close(output.flatten(), torch.tensor(case["out"]), rtol=1e-5, atol=1e-6)


SHARES = [{"network_dropout": 0.5}, {"rank_dropout": 0.5}, {"module_dropout": 0.5}]


def made(kind: str, **options: object) -> tuple[Model, InjectedAdapter]:
    model = Model()
    spec = make_spec(replace(NETWORK, network_type=kind), ("unet",), SimpleNamespace(**options))
    adapter = spec.build({"unet": model}, TARGETS, seed=1)
    fill(dict(enumerate(adapter.parameters())))
    return model, adapter


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", SHARES)
def test_what_is_left_out_is_a_function_of_seed_step_and_slot(kind: str, share: dict[str, float]) -> None:
    if not KINDS[kind].without.isdisjoint(share):
        return
    model, adapter = made(kind, **share)
    whole = run(model)
    seen = {}
    for key in [(7, 3, (0, 1), 0), (7, 3, (0, 1), 0), (7, 4, (0, 1), 0), (8, 3, (0, 1), 0), (7, 3, (2, 3), 2)]:
        with adapter.dropping(*key):
            output = run(model)
            loss = output.square().mean()
            learns = loss.requires_grad  # not where every layer is left out
            gradient = torch.autograd.grad(loss, adapter.parameters(), allow_unused=True) if learns else ()
        if key in seen:
            assert torch.equal(output, seen[key][0])
            pairs = zip(gradient, seen[key][1], strict=True)
            assert all(one is two is None or torch.equal(one, two) for one, two in pairs)
        seen[key] = output, gradient
    outputs = [output for output, _ in seen.values()]
    assert not all(torch.equal(outputs[0], other) for other in outputs[1:])
    assert torch.equal(run(model), whole)
    with adapter.dropping(7, 3, (0, 1), 0), torch.no_grad():
        torch.testing.assert_close(run(model), whole)


@pytest.mark.parametrize("share", [{"network_dropout": 0.5}, {"rank_dropout": 0.5}])
def test_a_sample_leaves_out_its_own_wherever_it_is_computed(share: dict[str, float]) -> None:
    model, adapter = made("lora", **share)
    x = torch.randn(4, 24, generator=torch.Generator().manual_seed(3))
    with adapter.dropping(7, 3, (4, 5, 6, 7), 4):
        together = model.linear(x)
    for first in (0, 2):
        with adapter.dropping(7, 3, (4 + first, 5 + first), 4):
            torch.testing.assert_close(model.linear(x[first : first + 2]), together[first : first + 2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_is_left_out_gets_no_gradient_so_that_an_optimizer_leaves_it(kind: str) -> None:
    model, adapter = made(kind, module_dropout=0.5)
    adapter.stack()
    for step in range(20):
        key = (7, step, (0, 1), 0)
        with adapter.dropping(*key):
            left = [adapter.dropouts.leaves_out(module.target.name) for module in adapter.modules]
            loss = run(model).square().mean()
            if loss.requires_grad:
                loss.backward()
        for module, out in zip(adapter.modules, left, strict=True):
            assert all((each.grad is None) == out for each in module.matrices.values())
            for each in module.matrices.values():
                each.grad = None


@pytest.mark.parametrize("kind", ["locon", "loha", "lokr"])
def test_rank_dropout_of_lycoris_leaves_rows_out(kind: str) -> None:
    model, adapter = made(kind, rank_dropout=0.5)
    ones = torch.eye(24)
    base = Model().linear(ones)
    whole = model.linear(ones) - base
    with adapter.dropping(7, 3, (0,), 0):
        thin = model.linear(ones) - base
    rows = thin.abs().amax(0) > 1e-6
    assert 0 < int(rows.sum()) < 40
    torch.testing.assert_close(thin, whole * rows, rtol=1e-4, atol=1e-5)


# --- limits of norms ---


@pytest.mark.parametrize("number", range(len(GOLDEN["scale_weight_norms"]["cases"])))
@pytest.mark.parametrize("stacked", [True, False])
def test_norms_are_limited_as_by_sd_scripts(number: int, stacked: bool) -> None:
    case, modules = GOLDEN["scale_weight_norms"]["cases"][number], GOLDEN["scale_weight_norms"]["modules"]
    model, targets = nn.Module(), []
    for module in modules:
        rank, inputs, *kernel = module["down"]
        outs = module["up"][0]
        layer = nn.Conv2d(inputs, outs, kernel[0]) if kernel else nn.Linear(inputs, outs)
        setattr(model, module["name"], layer)
        targets.append(Target("unet", module["name"], module["name"], inputs, outs, tuple(kernel) or None))
    found = []
    for module, target in zip(modules, targets, strict=True):
        rank = module["down"][0]
        spec = LoraSpec(rank, module["alpha"], rank, module["alpha"], parts=("unet",))
        adapter = spec.build({"unet": model}, [target], seed=1)
        name = module["name"]
        adapter.load(
            {
                f"{name}.alpha": torch.tensor(module["alpha"]),
                f"{name}.lora_down.weight": torch.tensor(module["down_before"]).reshape(module["down"]),
                f"{name}.lora_up.weight": torch.tensor(module["up_before"]).reshape(module["up"]),
            }
        )
        if stacked:
            adapter.stack()
        adapter.limit_norms(case["max_norm"])
        found.append(adapter.tensors())
    for tensors, module, down, up in zip(found, modules, case["down_after"], case["up_after"], strict=True):
        for entry, expected in (("lora_down.weight", down), ("lora_up.weight", up)):
            value = tensors[f"{module['name']}.{entry}"].flatten()
            torch.testing.assert_close(value, torch.tensor(expected), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("number", range(len(LYCORIS["scale_weight_norms"])))
def test_norms_are_limited_as_by_lycoris(number: int) -> None:
    case = LYCORIS["scale_weight_norms"][number]
    model = nn.Module()
    model.layer = base_layer(case["layer"])
    base = model.layer
    kind = KINDS[ALGORITHMS[case["algo"]]]
    alpha = 0.0 if case["algo"] == "diag-oft" else case["alpha"]
    options = {"scale_weight_norms": case["max_norm"], **case["options"]}
    spec: AdapterSpec = kind(case["dim"], case["alpha"], case["dim"], case["alpha"], parts=("unet",), **options)
    adapter = spec.build({"unet": model}, [target_of(base)], seed=1)
    assert alpha in (0.0, spec.alpha(target_of(base))) or spec.rank(target_of(base)) == spec.alpha(target_of(base))
    values = {f"{NAME}.{entry}": given(value) for entry, value in case["params"].items()}
    adapter.restore({**adapter.state(), **values})
    adapter.limit_norms(case["max_norm"])
    x = given(LYCORIS["inputs"][case["layer"]]["x"])
    with torch.no_grad():
        assert_digest(model.layer(x) - base(x), case["output_change_after"])
    tensors = adapter.tensors()
    for entry, expected in case["file_after"].items():
        assert_digest(tensors[f"{NAME}.{entry}"], expected)


@pytest.mark.parametrize("kind", [kind for kind, spec in KINDS.items() if "scale_weight_norms" not in spec.without])
def test_a_limited_adapter_resumes_to_the_bit(kind: str) -> None:
    model, adapter = made(kind, scale_weight_norms=0.25)
    adapter.limit_norms(0.25)
    spec = adapter.spec
    assert {key: tuple(value.shape) for key, value in adapter.state().items()} == spec.state_shapes(TARGETS)
    other, restored = made(kind, scale_weight_norms=0.25)
    restored.restore({key: value.clone() for key, value in adapter.state().items()})
    assert torch.equal(run(other), run(model))
    assert all(
        torch.equal(two, one) for one, two in zip(adapter.tensors().values(), restored.tensors().values(), strict=True)
    )
    loaded, third = made(kind, scale_weight_norms=0.25)
    third.load(adapter.tensors())
    torch.testing.assert_close(run(loaded), run(model), rtol=1e-5, atol=1e-5)


WITHOUT_EFFECT = [
    ("loha", {"network_dropout": 0.1}, "network_dropout"),
    ("lokr", {"loraplus_lr_ratio": 16}, "loraplus_lr_ratio"),
    ("ia3", {"rank_dropout": 0.1}, "rank_dropout"),
    ("ia3", {"scale_weight_norms": 1}, "scale_weight_norms"),
]


@pytest.mark.parametrize(("kind", "values", "key"), WITHOUT_EFFECT)
def test_options_without_effect_on_a_kind_are_refused(kind: str, values: dict[str, float], key: str) -> None:
    with pytest.raises(
        ConfigError, match=f"{key}: .* has no effect with network_type {kind}; set network_type to lora"
    ):
        config_from_layers([{"network_type": kind, **values}])


def test_methods_with_one_rate_refuse_several() -> None:
    with pytest.raises(ConfigError, match="down_lr_weight.*Prodigy has one rate for all"):
        config_from_layers(
            [{"optimizer_type": "Prodigy", "learning_rate": 1, "text_encoder_lr": 1, "down_lr_weight": "cosine"}]
        )
    with pytest.raises(ConfigError, match="stop_text_encoder_training"):
        config_from_layers([{"network_train_text_encoder_only": True, "stop_text_encoder_training": 5}])


def test_the_form_shows_options_where_they_have_an_effect() -> None:
    for key, setting in known_settings().items():
        if setting.section in ("limits", "rates"):
            kinds = tuple(name for name, spec in KINDS.items() if key not in spec.without)
            assert setting.show.when.get("network_type", tuple(KINDS)) == kinds, key
