"""A base model in few bits: the adapters' gradients still point where the whole model's do."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.helpers.families import TINY
from tests.helpers.runs import tiny_config, write_dataset
from tests.helpers.texts import tokens_of
from trainer import families
from trainer.adapters import make_spec
from trainer.config import load_config, rates
from trainer.families.reading.quantised import KINDS, Quantised, QuantisedConv2d, QuantisedLinear, quantised
from trainer.families.unet.bundle import StableBundle
from trainer.ground.events import Event, StepDone
from trainer.run import train

CPU = torch.device("cpu")
COSINES = {"int8": 0.99, "fp8": 0.99, "nf4": 0.95}
EACH = {"int8": 0.99, "fp8": 0.93, "nf4": 0.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY["sdxl"].write_file(tmp_path_factory.mktemp("models") / "tiny.safetensors")


def loaded(model: Path, kind: str, dtype: torch.dtype = torch.float32, **more: object) -> StableBundle:
    given = {"pretrained_model_name_or_path": str(model), "quantize_base": kind, **more}
    bundle = families.load(load_config(overrides=given), device=CPU, dtype=dtype)
    assert isinstance(bundle, StableBundle)
    return bundle


def gradients(bundle: StableBundle) -> list[Tensor]:
    """Return the gradient of every matrix of a LoRA on UNet and text encoders, as a vector each."""
    config = load_config(overrides={"network_dim": 4})
    spec = make_spec(config.network, rates(config, families.FAMILIES[bundle.family].parts))
    adapter = spec.build(bundle.components, bundle.targets(conv=False), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    noisy, target = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    text = bundle.encode_text(tokens_of(bundle, "a cat", "red"))
    sizes = {"sizes": torch.tensor([[64, 64, 0, 0, 64, 64]] * 2)} if bundle.family == "sdxl" else {}
    made = bundle.predict(noisy, torch.tensor([100, 600]), text, sizes)
    nn.functional.mse_loss(made, target).backward()
    return [each.grad.flatten() for each in adapter.parameters() if each.grad is not None]


def cosines(whole: list[Tensor], made: list[Tensor]) -> tuple[float, float]:
    """Return the cosine of two gradients, and the lowest of a layer; but for layers that nothing reaches."""
    norm = torch.cat(whole).norm()
    each = [
        float(nn.functional.cosine_similarity(*pair, dim=0))
        for pair in zip(whole, made, strict=True)
        if pair[0].norm() > 1e-9 * norm
    ]
    return float(nn.functional.cosine_similarity(torch.cat(whole), torch.cat(made), dim=0)), min(each)


@pytest.fixture(scope="module")
def whole(model: Path) -> list[Tensor]:
    return gradients(loaded(model, "none"))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_gradients_point_where_the_whole_models_do(model: Path, whole: list[Tensor], kind: str) -> None:
    made = gradients(loaded(model, kind))
    everywhere, lowest = cosines(whole, made)
    assert everywhere >= COSINES[kind]
    assert lowest >= EACH[kind], "in every layer"
    assert not torch.equal(torch.cat(whole), torch.cat(made))


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8), ("fp8", 8), ("nf4", 4)])
@pytest.mark.parametrize("shape", [(48, 80), (33, 70), (12, 8, 3, 3)])
def test_a_layer_keeps_its_weights_in_few_bits(kind: str, bits: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    source: Any = nn.Conv2d(8, 12, 3, stride=2, padding=1) if len(shape) > 2 else nn.Linear(shape[1], shape[0])
    layer: Any = (QuantisedConv2d if len(shape) > 2 else QuantisedLinear)(source, KINDS[kind])
    assert layer.weight.nbytes <= -(-source.weight.numel() // 32) * 32 * bits / 8
    assert layer.whole(torch.float32).shape == shape
    rows, kept = source.weight.flatten(1), layer.whole(torch.float32).flatten(1)
    assert ((kept - rows).abs().amax(dim=1) / rows.abs().amax(dim=1)).max() < {"int8": 0.005, "fp8": 0.04, "nf4": 0.2}[
        kind
    ]
    inputs = torch.randn(3, *([8, 9, 7] if len(shape) > 2 else [shape[1]]), requires_grad=True)
    expected = inputs.detach().clone().requires_grad_()
    plain = copy.deepcopy(source)
    plain.weight.data.copy_(layer.whole(torch.float32))
    one, other = layer(inputs), plain(expected)
    torch.testing.assert_close(one, other)
    one.square().sum().backward()
    other.square().sum().backward()
    torch.testing.assert_close(inputs.grad, expected.grad)


def test_columns_that_are_small_everywhere_keep_as_many_steps() -> None:
    torch.manual_seed(0)
    source = nn.Linear(64, 64)
    source.weight.data[:, ::8] /= 50
    source.weight.data[:, 63] = 0
    layer: Any = quantised(source, "int8")
    off = (layer.whole(torch.float32) - source.weight).abs().amax(dim=0) / source.weight.abs().amax(dim=0).clamp(
        min=1e-9
    )
    assert off.max() < 0.02
    layer.store(torch.randn(64, 64))
    assert "columns" not in dict(layer.named_buffers()), "it has no small ones any more"


def in_few_bits(bundle: StableBundle) -> dict[str, int]:
    """Return how many layers of each component are kept in few bits."""
    parts = bundle.components.items()
    return {name: sum(isinstance(each, Quantised) for each in part.modules()) for name, part in parts}


@pytest.mark.parametrize(
    ("changed", "encoders"),
    [
        ({"network_train_unet_only": True}, (True, True)),
        ({"text_encoder_lr": [1e-4, 0.0]}, (False, True)),
        ({"text_encoder_lr": 1e-4}, (False, False)),
        ({"network_train_unet_only": True, "cache_text_encoder_outputs": True}, (False, False)),
    ],
)
def test_text_encoders_are_small_that_neither_learn_nor_leave(
    model: Path, changed: Mapping[str, object], encoders: tuple[bool, bool]
) -> None:
    found = in_few_bits(loaded(model, "fp8", **changed))
    assert found["unet"] > 100
    assert (found["text_encoder"] > 0, found["text_encoder_2"] > 0) == encoders


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_half_precision_works_on_a_small_base(model: Path, kind: str) -> None:
    bundle = loaded(model, kind, torch.bfloat16, network_train_unet_only=True)
    assert any(isinstance(part, QuantisedConv2d) for part in bundle.unet.modules()) is (kind == "int8")
    with torch.autocast("cpu", torch.bfloat16):
        text = bundle.encode_text(tokens_of(bundle, "a cat"))
        made = bundle.predict(
            torch.randn(1, 4, 8, 8), torch.tensor([3]), text, {"sizes": torch.tensor([[64, 64, 0, 0, 64, 64]])}
        )
    assert made.dtype == torch.bfloat16
    assert bool(made.isfinite().all())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_gradient_checkpointing_changes_nothing_on_a_small_base(model: Path, tmp_path: Path, kind: str) -> None:
    dataset, files = write_dataset(tmp_path), []
    for output, checkpointing in (("plain", False), ("checkpointing", True)):
        settings = {"quantize_base": kind, "gradient_checkpointing": checkpointing, "max_train_steps": 2, "conv_dim": 2}
        finished = train(tiny_config(model, dataset, tmp_path / output, **settings), emit=lambda _: None)
        files.append(load_file(finished.path))
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


def test_a_run_on_a_small_base_learns_like_one_on_the_whole(model: Path, tmp_path: Path) -> None:
    dataset, losses = write_dataset(tmp_path), []
    for kind in ("none", "int8"):
        told: list[Event] = []
        config = tiny_config(model, dataset, tmp_path / kind, quantize_base=kind, max_train_steps=3)
        train(config, emit=told.append)
        losses.append([event.loss for event in told if isinstance(event, StepDone)])
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert losses[1] != losses[0]
