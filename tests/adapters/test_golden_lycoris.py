"""Kinds of LyCORIS against numbers that lycoris-lora 4.1.3 computed: weights, outputs, gradients, files, layers."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.adapters import KINDS, make_spec
from trainer.adapters.coverage import PRESETS, read_coverage
from trainer.adapters.factorization import factorization
from trainer.adapters.injection import InjectedAdapter
from trainer.config import config_from_layers
from trainer.families import FAMILIES
from trainer.ground.errors import ConfigError
from trainer.targets import Target

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden_lycoris.json").read_text(encoding="utf-8"))
NAME, TOLERANCE = "lora_unet_layer", 1e-5
ALGORITHMS = {"lora": "locon", "loha": "loha", "lokr": "lokr", "ia3": "ia3", "diag-oft": "oft"}
"""LyCORIS' name -> our network_type."""
OURS = {"weight_decompose": "dora_wd", "wd_on_out": "wd_on_output"}
CASES = {case["name"]: case for case in GOLDEN["cases"] if case["algo"] in ALGORITHMS}


def given(value: dict[str, Any]) -> Tensor:
    return torch.tensor(value["values"], dtype=torch.float32).reshape(value["shape"])


def base_layer(kind: str) -> nn.Module:
    layer: nn.Module = {
        "linear": lambda: nn.Linear(24, 40),
        "conv1x1": lambda: nn.Conv2d(12, 20, 1),
        "conv3x3": lambda: nn.Conv2d(12, 20, 3, padding=1),
    }[kind]()
    layer.load_state_dict({name: given(GOLDEN["inputs"][kind][name]) for name in ("weight", "bias")})
    return layer


def target_of(layer: nn.Module) -> Target:
    if isinstance(layer, nn.Conv2d):
        height, width = layer.kernel_size
        return Target("unet", "layer", NAME, layer.in_channels, layer.out_channels, (height, width), extra=True)
    assert isinstance(layer, nn.Linear)
    return Target("unet", "layer", NAME, layer.in_features, layer.out_features, extra=True)


def adapted(case: dict[str, Any]) -> tuple[nn.Module, InjectedAdapter, nn.Module]:
    """Return the case's frozen layer, our adapter on it at its start values, and what holds them as `layer`."""
    model = nn.Module()
    model.layer = base_layer(case["layer"])
    dim, alpha = case["dim"], case["alpha"]
    options = {OURS.get(name, name): value for name, value in case["options"].items()}
    spec = KINDS[ALGORITHMS[case["algo"]]](dim, alpha, dim, alpha, parts=("unet",), **options)
    base = model.layer
    return base, spec.build({"unet": model}, [target_of(base)], seed=1), model


@cache
def trained(name: str) -> tuple[nn.Module, nn.Module, InjectedAdapter]:
    """Return the frozen layer, the adapted one, and the adapter with the case's values."""
    case = CASES[name]
    base, adapter, model = adapted(case)
    values = {
        f"{NAME}.{entry.replace('scalar', 'use_scalar')}": given(value) for entry, value in case["params"].items()
    }
    adapter.restore({**adapter.state(), **values})
    return base, model.layer, adapter


def assert_digest(found: Tensor, expected: dict[str, Any]) -> None:
    """Within a hundred-thousandth of the tensor's own size."""
    assert list(found.shape) == expected["shape"]
    flat = found.detach().double().flatten()
    if "values" in expected:
        wanted = torch.tensor(expected["values"], dtype=torch.float64).flatten()
        assert float((flat - wanted).norm()) <= TOLERANCE * float(wanted.norm()) + 1e-9
        return
    norm, last = expected["norm"], len(flat) - 1
    assert float(flat.norm()) == pytest.approx(norm, rel=TOLERANCE)
    waves = torch.arange(len(flat), dtype=torch.float64).cos()
    assert abs(float(flat @ waves) - expected["dot"]) <= TOLERANCE * norm * len(flat) ** 0.5
    at = [float(flat[k * last // 7]) for k in range(8)]
    assert max(abs(one - other) for one, other in zip(at, expected["at"], strict=True)) <= TOLERANCE * norm


def delta_of(base: nn.Module, layer: nn.Module) -> Tensor:
    """Return what the adapter adds to the weight, found by unit impulses."""
    if isinstance(base, nn.Linear):
        ones = torch.eye(base.in_features)
        return (layer(ones) - base(ones)).t()
    side = base.kernel_size[0]
    ones = torch.zeros(base.in_channels, base.in_channels, side, side)
    ones[range(base.in_channels), range(base.in_channels), side // 2, side // 2] = 1
    return (layer(ones) - base(ones)).transpose(0, 1).flip(2, 3)


@pytest.mark.parametrize("name", CASES)
def test_weights_and_outputs(name: str) -> None:
    base, layer, _ = trained(name)
    case = CASES[name]
    with torch.no_grad():
        assert_digest(delta_of(base, layer), case["delta"])
        assert_digest(layer(given(GOLDEN["inputs"][case["layer"]]["x"])), case["output"])


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str) -> None:
    base, layer, adapter = trained(name)
    case = CASES[name]
    x = given(GOLDEN["inputs"][case["layer"]]["x"]).requires_grad_()
    weights = given(GOLDEN["inputs"][case["layer"]]["g"])
    module = adapter.modules[0]
    factors = {entry.replace("use_scalar", "scalar"): factor for entry, factor in module.matrices.items()}
    inner, *found = torch.autograd.grad((layer(x) * weights).sum(), [x, *factors.values()])
    assert factors.keys() == case["grads"].keys()
    for entry, gradient in zip(factors, found, strict=True):
        assert_digest(gradient.reshape(case["grads"][entry]["shape"]), case["grads"][entry])
    with torch.no_grad():
        delta = delta_of(base, layer)
    plain = base_layer(case["layer"])
    plain.weight.data += delta.reshape(plain.weight.shape)
    (expected,) = torch.autograd.grad((plain(x) * weights).sum(), x)
    torch.testing.assert_close(inner, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_the_file_has_lycoris_keys_shapes_and_alpha(name: str) -> None:
    _, _, adapter = trained(name)
    case, tensors = CASES[name], adapter.tensors()
    assert {key.removeprefix(f"{NAME}."): list(value.shape) for key, value in tensors.items()} == case["file"]
    if case["file_alpha"] is not None:
        assert float(tensors[f"{NAME}.alpha"]) == pytest.approx(case["file_alpha"])


@pytest.mark.parametrize("name", CASES)
def test_the_file_gives_the_trained_layer_and_nothing_counts_at_strength_nil(name: str) -> None:
    base, layer, adapter = trained(name)
    _, other, model = adapted(CASES[name])
    other.load(adapter.tensors())
    x = given(GOLDEN["inputs"][CASES[name]["layer"]]["x"])
    with torch.no_grad():
        torch.testing.assert_close(model.layer(x), layer(x), rtol=1e-5, atol=1e-5)
        with adapter.multiplied(0.0):
            assert torch.equal(layer(x), base(x))
        with adapter.multiplied(0.5):
            torch.testing.assert_close(layer(x), (base(x) + 0.5 * (layer_at_full(name)(x) - base(x))))


def layer_at_full(name: str) -> nn.Module:
    _, adapter, model = adapted(CASES[name])
    adapter.restore(trained(name)[2].state())
    return model.layer


@pytest.mark.parametrize("name", CASES)
def test_a_new_adapter_changes_no_more_than_lycoris_does(name: str) -> None:
    base, _, model = adapted(CASES[name])
    x = given(GOLDEN["inputs"][CASES[name]["layer"]]["x"])
    with torch.no_grad():
        difference = float((model.layer(x) - base(x)).abs().max())
    assert difference <= 2 * CASES[name]["effect_at_init"] + 1e-5


@pytest.mark.parametrize("size", GOLDEN["factorization"])
def test_factorization(size: str) -> None:
    for factor, pair in GOLDEN["factorization"][size].items():
        assert list(factorization(int(size), int(factor))) == pair


FILES = {
    "loha": ({}, 1770, "ea713d819fc36b04504fc2d15ad657c740996d8029931662693935f2685c3054"),
    "lokr": ({"factor": 8}, 1416, "ba05faaf6204da6afb04997e3c87ec58d2ebbc1e002c5488979f4f009493e9e1"),
    "locon": ({"dora_wd": True}, 1416, "40ec04e31fd14f7cb83de600ea2fcb4a53ee40717750e2cca0688391890a9125"),
}
"""Kind -> options, number of keys and SHA-256 of the sorted keys and shapes of LyCORIS' file for SD 1.5, rank 8."""


@pytest.mark.parametrize("kind", FILES)
def test_keys_and_shapes_of_real_size_are_those_of_lycoris(kind: str) -> None:
    options, count, expected = FILES[kind]
    family = FAMILIES["sd15"]
    spec = KINDS[kind](8, 4.0, 8, 4.0, lycoris_preset="full", parts=[part.name for part in family.parts], **options)
    shapes = spec.shapes(family.targets(family.configs, conv=True))
    listed = json.dumps(sorted((key, list(shape)) for key, shape in shapes.items()))
    assert (len(shapes), hashlib.sha256(listed.encode()).hexdigest()) == (count, expected)


COUNTS = {
    "full": ((72, 282), (264, 788)),
    "full-lin": ((72, 230), (264, 750)),
    "attn-mlp": ((72, 192), (264, 722)),
    "attn-only": ((48, 128), (176, 560)),
    "unet-only": ((0, 282), (0, 788)),
    "unet-transformer-only": ((0, 192), (0, 722)),
    "unet-convblock-only": ((0, 88), (0, 66)),
    "ia3": ((36, 80), (132, 350)),
}
"""LyCORIS' preset -> modules of the text encoders and of the UNet, for SD 1.5 and SDXL (lycoris-lora 3.2.0.post2)."""


@pytest.mark.parametrize("preset", COUNTS)
def test_presets_adapt_what_they_do_in_lycoris(preset: str) -> None:
    assert COUNTS.keys() == PRESETS.keys()
    for name, expected in zip(("sd15", "sdxl"), COUNTS[preset], strict=True):
        family = FAMILIES[name]
        spec = KINDS["loha"](8, 4.0, 8, 4.0, lycoris_preset=preset, parts=[part.name for part in family.parts])
        selected = spec.select(family.targets(family.configs, conv=True))
        text = sum(target.name.startswith("lora_te") for target in selected)
        assert (text, len(selected) - text) == expected


OWN = {
    "attn-mlp": (
        "enable_conv = false\nunet_target_name = []\nunet_target_module = ['Transformer2DModel']",
        ((72, 192), (264, 722)),
    ),
    "full": ("", ((72, 282), (264, 788))),
    "names": (
        "unet_target_module = []\ntext_encoder_target_module = []\n"
        "unet_target_name = ['.*to_k', '.*to_v', '.*ff\\.net\\.2']\n"
        "text_encoder_target_name = ['.*k_proj', '.*v_proj', '.*mlp\\.fc2']",
        ((36, 80), (132, 350)),
    ),
    "shell": (
        "use_fnmatch = true\nunet_target_module = []\nunet_target_name = ['*attn2.to_?']\n"
        "text_encoder_target_module = []\nexclude_name = ['*attn2.to_q']",
        ((0, 32), (0, 140)),
    ),
    "classes": (
        "unet_target_module = ['CrossAttention']\nunet_target_name = []\n"
        "text_encoder_target_module = ['CLIPAttention']",
        ((48, 128), (176, 560)),
    ),
    "blocks": (
        "unet_target_module = ['ResnetBlock2D', 'Downsample2D', 'Upsample2D']\nunet_target_name = []\n"
        "text_encoder_target_module = []",
        ((0, 86), (0, 66)),
    ),
}
"""Presets of one's own, and what they adapt: as LyCORIS' presets of these lists, or counted by hand."""


@pytest.mark.parametrize("name", OWN)
def test_presets_of_ones_own(name: str, tmp_path: Path) -> None:
    text, counts = OWN[name]
    (tmp_path / "own.toml").write_text(text)
    for family, expected in zip(("sd15", "sdxl"), counts, strict=True):
        known = FAMILIES[family]
        config = config_from_layers(
            [{"network_type": "loha", "conv_dim": 8, "lycoris_preset_file": str(tmp_path / "own.toml")}]
        )
        spec = make_spec(config.network, [part.name for part in known.parts], *config.of_adapters)
        selected = spec.select(known.targets(known.configs, conv=True))
        text_layers = sum(target.name.startswith("lora_te") for target in selected)
        assert (text_layers, len(selected) - text_layers) == expected
    assert spec.network_args()["preset"] == "own.toml"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("unet_target_modul = []", "unet_target_modul, which is none of"),
        ("unet_target_module = 'x'", "must be a list"),
        ("enable_conv = 1", "must be true or false"),
        ("[module_algo_map.FeedForward]\nalgo = 'lokr'", "network_reg_dims"),
        ("unet_target_name = ['(']", "no preset of LyCORIS"),
        ("= 3", "no preset of LyCORIS"),
        (None, "can't be read"),
    ],
)
def test_what_is_no_preset_is_refused_by_name(text: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=rf"(?s)lycoris_preset_file: .*{words}"):
        read_coverage(path)
