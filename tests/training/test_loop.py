"""The wired training against a plain loop written out here: same latents, noise and timesteps, same numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file

from tests.helpers.checkpoints import tiny_modules, tiny_sd15
from tests.helpers.runs import tiny_config, write_dataset
from trainer.config import TrainingConfig
from trainer.families.unet import slim_blocks
from trainer.ground import events
from trainer.ground.commands import Inbox
from trainer.ground.control import progress_of
from trainer.pictures.loader import Batch
from trainer.planning.plan import plan
from trainer.results.run_folder import RunFolder
from trainer.training import build, loop
from trainer.training.training import Training

STEPS = 5


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ground")
    return tiny_sd15(folder), write_dataset(folder)


def wired(config: TrainingConfig, told: list[events.Event]) -> Training:
    """Return what `run.train` would hand to the loop, with the caches filled that the loop would fill."""
    inbox = Inbox()
    progress = progress_of(told.append, inbox)
    folder = RunFolder(Path(config.saving.output_dir), config.saving.output_name)
    folder.make()
    models = build.load_models(config, progress)
    training = build.build(plan(config), models, folder, (told.append, inbox, progress), None)
    training.prepare()
    training.prepare = lambda: None
    return training


@pytest.mark.parametrize(("prediction", "text_learns"), [("epsilon", True), ("v_prediction", True), ("epsilon", False)])
def test_five_steps_equal_a_plain_loop(
    ground: tuple[Path, Path], tmp_path: Path, prediction: str, text_learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slim_blocks, "_VECTOR", 0)  # narrow heads as diffusers has them: filled up they round otherwise
    model, dataset = ground
    config = tiny_config(
        model,
        dataset,
        tmp_path,
        max_train_steps=STEPS,
        v_parameterization=prediction == "v_prediction",
        min_snr_gamma=5.0,
        clip_skip=2,
        network_dim=4,
        network_alpha=2.0,
        gradient_accumulation_steps=2,
        lr_scheduler="linear",
        network_train_unet_only=not text_learns,
    )
    told: list[events.Event] = []
    training = wired(config, told)
    batches = list(training.batches)
    initial = {name: tensor.clone() for name, tensor in training.adapter.tensors().items()}
    training.batches = batches
    loop.train(training)
    losses = [event.loss for event in told if isinstance(event, events.StepDone)]
    assert any(len(batch.captions) > 1 and len(set(batch.captions)) > 1 for batch in batches)
    expected, weights = plain_loop(batches, initial, prediction)
    assert losses == pytest.approx(expected, rel=1e-6)
    written = load_file(tmp_path / "tiny.safetensors")
    assert written.keys() == weights.keys() | {name for name in initial if name.endswith("alpha")}
    for name, weight in weights.items():
        # Adam divides by the gradient's size, so where that is tiny, rounding shows: a fiftieth of a step.
        assert torch.allclose(written[name], weight, rtol=1e-5, atol=2e-5), name
    assert max(float((weights[name] - initial[name]).abs().max()) for name in weights) > 1e-4


def test_what_is_to_stay_is_held_to_what_the_base_model_says(ground: tuple[Path, Path], tmp_path: Path) -> None:
    model, dataset = ground
    reg = {"image_dir": str(dataset / "reg" / "1_class"), "is_reg": True, "diff_output_preservation": True}
    mine = {"image_dir": str(dataset / "train" / "2_tok class")}
    config = tiny_config(
        model,
        dataset,
        tmp_path,
        train_data_dir="",
        train_batch_size=4,
        enable_bucket=False,
        datasets=[{"subsets": [mine, reg]}],
        min_snr_gamma=5.0,
        prior_loss_weight=0.5,
        max_train_steps=4,
    )
    training = wired(config, [])
    batches = list(training.batches)
    assert [each for batch in batches for each in batch.preserved] == [
        name.startswith("1_class") for batch in batches for name in batch.names
    ]
    batch = next(each for each in batches if 0 < sum(each.preserved) < len(each.slots))
    kept = torch.tensor(batch.preserved)
    plain = replace(batch, preserved=())
    begun = loop.losses_of(training, batch)
    assert begun[kept].abs().max() < 1e-10 < begun[~kept].min(), "nothing is learned yet, so nothing has changed"
    with torch.no_grad():
        for parameter in training.parameters:
            parameter.add_(0.02)
    assert torch.equal(loop.losses_of(training, batch)[~kept], loop.losses_of(training, plain)[~kept])
    noised = training.process.corrupt(training.latents(batch), batch.draws)
    texts = training.texts(batch)
    inputs = (noised.latents, noised.timesteps, texts, batch.conditions)
    with torch.no_grad():
        learned = training.bundle.predict(*inputs)
        with training.adapter.multiplied(0.0):
            known = training.bundle.predict(*inputs)
    weights = training.process.timestep_weights(noised.timesteps) * batch.loss_weights
    expected = (learned - known).square().mean(dim=(1, 2, 3)) * weights
    found = loop.losses_of(training, batch)
    torch.testing.assert_close(found[kept], expected[kept], rtol=1e-4, atol=1e-7)
    assert found[kept].min() > 0
    found[kept].sum().backward()
    assert any(float(each.grad.abs().max()) > 0 for each in training.parameters if each.grad is not None)
    torch.testing.assert_close(torch.cat([loop.losses_of(training, part) for part in batch.split(1)]), found)
    assert [part.preserved for part in batch.split(3)] == [batch.preserved[:3], batch.preserved[3:]]


def plain_loop(
    batches: list[Batch], initial: dict[str, torch.Tensor], prediction: str
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train with nothing of the program but the drawn numbers: matrices by name, forward hooks, torch's AdamW."""
    unet, _, text_encoder = tiny_modules()
    weights = {name: tensor.clone().requires_grad_() for name, tensor in initial.items() if "weight" in name}
    attach(unet, "lora_unet", weights, scale=2.0 / 4)
    attach(text_encoder, "lora_te_text_model", weights, scale=2.0 / 4)
    full_rates = {"lora_te": 5e-4, "lora_unet": 1e-3}
    groups = [
        {"params": [each for name, each in weights.items() if name.startswith(prefix)], "lr": rate, "full": rate}
        for prefix, rate in full_rates.items()
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
    alphas = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    losses = []
    for step in range(STEPS):
        micro = [batch for batch in batches if batch.step == step]
        total = 0.0
        for batch in micro:
            loss = plain_loss(unet, text_encoder, batch, alphas, prediction) / len(micro)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = group["full"] * (1 - step / STEPS)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses, {name: weight.detach() for name, weight in weights.items()}


def plain_loss(
    unet: torch.nn.Module, text_encoder: torch.nn.Module, batch: Batch, alphas: torch.Tensor, prediction: str
) -> torch.Tensor:
    """Min-SNR-weighted squared error, with the text of the last layer but one."""
    assert batch.mean is not None and batch.std is not None
    latents = (batch.mean + batch.std * batch.draws.posterior) * 0.18215
    noise, timesteps = batch.draws.noise, batch.draws.timesteps
    alpha = alphas[timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    from trainer.families.text.clip import PromptTokenizer, clip_tokenizer

    ids = torch.cat([PromptTokenizer(clip_tokenizer(), 1)(caption)["ids"] for caption in batch.captions])
    states = text_encoder(ids, output_hidden_states=True).hidden_states[-2]
    context = text_encoder.final_layer_norm(states)
    predicted = unet(noisy, timesteps, context).sample
    snr = alphas[timesteps] / (1 - alphas[timesteps])
    if prediction == "epsilon":
        target, weight = noise, snr.clamp(max=5.0) / snr
    else:
        target, weight = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents, snr.clamp(max=5.0) / (snr + 1)
    return (((predicted - target) ** 2).mean(dim=(1, 2, 3)) * weight).mean()


def attach(module: torch.nn.Module, prefix: str, weights: dict[str, torch.Tensor], scale: float) -> None:
    """Add up(down(x)) * scale to every layer that has matrices."""
    module.requires_grad_(False)
    for path, layer in module.named_modules():
        name = f"{prefix}_{path.replace('.', '_')}"
        if f"{name}.lora_down.weight" in weights:
            down, up = weights[f"{name}.lora_down.weight"], weights[f"{name}.lora_up.weight"]
            layer.register_forward_hook(hook_of(down, up, scale))


def hook_of(down: torch.Tensor, up: torch.Tensor, scale: float):  # type: ignore[no-untyped-def]
    def add(layer: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        apply = torch.nn.functional.conv2d if down.dim() == 4 else torch.nn.functional.linear
        return output + apply(apply(inputs[0], down), up) * scale

    return add


@pytest.mark.parametrize("size", [0.1, 3.0, math.inf, math.nan])
@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_gradients_are_clipped_as_pytorch_does(size: float, limit: float) -> None:
    """Those that are short enough are left as they are, to the last bit."""
    ours, theirs = ([torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(3)] for _ in range(2))
    for number, both in enumerate(zip(ours, theirs, strict=True)):
        for each in both:
            each.grad = torch.full((2, 2), size / (number + 2))
    made: Any = SimpleNamespace(
        parameters=ours,
        optimizer=None,
        device=torch.device("cpu"),
        share_gradients=lambda: None,
        accelerator=SimpleNamespace(unscale_gradients=lambda optimizer: None),
        config=SimpleNamespace(optimizer=SimpleNamespace(max_grad_norm=limit)),
    )
    norm = loop.clip(made)
    expected = torch.nn.utils.clip_grad_norm_(theirs, limit or math.inf)
    assert torch.equal(norm, expected) or (norm.isnan() and expected.isnan())
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.grad is not None and other.grad is not None
        if limit or math.isfinite(size):  # without a limit theirs divides the infinite by itself
            torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=0, equal_nan=True)
