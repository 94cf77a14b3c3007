"""A base model in few bits: the adapters' gradients still point where the whole model's do."""

from __future__ import annotations

from pathlib import Path

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
from trainer.families.reading.quantised import KINDS, QuantisedLinear
from trainer.families.unet.bundle import StableBundle
from trainer.ground.events import Event, StepDone
from trainer.run import train

CPU = torch.device("cpu")
COSINES = {"int8": 0.99, "fp8": 0.99, "nf4": 0.95}
EACH = {"int8": 0.99, "fp8": 0.93, "nf4": 0.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY["sdxl"].write_file(tmp_path_factory.mktemp("models") / "tiny.safetensors")


def loaded(model: Path, kind: str, dtype: torch.dtype = torch.float32) -> StableBundle:
    config = load_config(overrides={"pretrained_model_name_or_path": str(model), "quantize_base": kind})
    bundle = families.load(config, device=CPU, dtype=dtype)
    assert isinstance(bundle, StableBundle)
    return bundle


def gradients(model: Path, kind: str) -> list[Tensor]:
    """Return the gradient of every matrix of a LoRA on UNet and text encoders, as a vector each."""
    config = load_config(overrides={"network_dim": 4})
    bundle = loaded(model, kind)
    spec = make_spec(config.network, rates(config, families.FAMILIES[bundle.family].parts))
    adapter = spec.build(bundle.components, bundle.targets(conv=False), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    noisy, target = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    text = bundle.encode_text(tokens_of(bundle, "a cat", "red"))
    made = bundle.predict(noisy, torch.tensor([100, 600]), text, {"sizes": torch.tensor([[64, 64, 0, 0, 64, 64]] * 2)})
    nn.functional.mse_loss(made, target).backward()
    return [each.grad.flatten() for each in adapter.parameters() if each.grad is not None]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_gradients_point_where_the_whole_models_do(model: Path, kind: str) -> None:
    pairs = list(zip(gradients(model, "none"), gradients(model, kind), strict=True))
    whole, made = (torch.cat(each) for each in zip(*pairs, strict=True))
    assert nn.functional.cosine_similarity(whole, made, dim=0) >= COSINES[kind]
    assert not torch.equal(whole, made)
    assert min(float(nn.functional.cosine_similarity(*pair, dim=0)) for pair in pairs) >= EACH[kind], "in every layer"


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8), ("fp8", 8), ("nf4", 4)])
@pytest.mark.parametrize("shape", [(48, 80), (33, 70)])
def test_a_layer_keeps_its_weights_in_few_bits(kind: str, bits: int, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    source = nn.Linear(shape[1], shape[0])
    layer = KINDS[kind](source)
    assert layer.weight.nbytes <= -(-source.weight.numel() // 32) * 32 * bits / 8
    worst = (layer.whole(torch.float32) - source.weight).abs().amax(dim=1) / source.weight.abs().amax(dim=1)
    assert worst.max() < {"int8": 0.005, "fp8": 0.04, "nf4": 0.2}[kind]
    inputs = torch.randn(3, shape[1], requires_grad=True)
    expected = torch.randn(3, shape[1], requires_grad=True)
    expected.data.copy_(inputs.data)
    layer(inputs).square().sum().backward()
    nn.functional.linear(expected, layer.whole(torch.float32), source.bias).square().sum().backward()
    torch.testing.assert_close(inputs.grad, expected.grad)


def test_the_unets_linear_layers_are_small_and_half_precision_works(model: Path) -> None:
    bundle = loaded(model, "nf4", torch.bfloat16)
    kinds = [type(part) for part in bundle.unet.modules() if isinstance(part, nn.Linear)]
    assert sum(issubclass(kind, QuantisedLinear) for kind in kinds) > 100
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
