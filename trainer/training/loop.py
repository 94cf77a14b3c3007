"""The training loop, on one screen. It knows no model: `build` wires what it trains.

What changes a run is a line here; what only watches gets events.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.ground import events
from trainer.pictures.loader import Batch
from trainer.results import metadata
from trainer.training import attention
from trainer.training.compilation import compile_where_asked
from trainer.training.hooks import Hooks
from trainer.training.micro_batches import fitted
from trainer.training.training import Training


def train(training: Training) -> events.Finished:
    """Train from the wired position to the plan's end, or until told to end.

    Raises:
        RunError: gradient after gradient is not finite, or a file could not be written.
    """
    hooks = Hooks(training, losses_of)
    with attention.preferring(str(training.environment.get("attention", ""))), hooks.on_the_way():
        with hooks.preparing():
            training.prepare()
            hooks.begin()
            compile_where_asked(training, loss_of)
        hooks.obey()
        # Not before: up to here the processor has enough to do, and whoever is in front of it waits.
        metadata.hash_ahead(training.plan.recognition.source)
        for batches in training.steps():
            if training.ending:
                break
            began = time.perf_counter()
            training.hold_text_encoders()
            loss = fitted(training, accumulate, batches)
            grad_norm = clip(training)
            update(training, grad_norm)
            training.count(loss, grad_norm, time.perf_counter() - began)
            hooks.after_step()
            hooks.obey()
        return hooks.finish()


def accumulate(training: Training, batches: Sequence[Batch]) -> Tensor:
    """Add up the gradients of one step's micro-batches; return the mean loss over them and over all ranks."""
    total = torch.zeros((), device=training.device)
    for batch in batches:
        for part, share in training.parts(batch):
            with training.dropping(batch, part):
                loss = loss_of(training, part) * share / batch.group_size
                if loss.requires_grad:  # else module_dropout has left out every layer
                    training.accelerator.backward(loss)
            total += loss.detach()
    return training.sum_over_ranks(total)


def loss_of(training: Training, batch: Batch) -> Tensor:
    """Return the mean loss of one micro-batch, a scalar with gradient."""
    return losses_of(training, batch).mean()


def losses_of(training: Training, batch: Batch) -> Tensor:
    """Return the loss of each sample of a micro-batch, [b] float32: add noise, predict, compare."""
    noised, texts = training.process.corrupt(training.latents(batch), batch.draws), training.texts(batch)
    prediction = training.bundle.predict(noised.latents, noised.timesteps, texts, batch.conditions)
    noised = training.preserving(batch, noised, texts)
    return training.process.losses(prediction, noised, batch.loss_weights, batch.mask)


def clip(training: Training) -> Tensor:
    """Share gradients between ranks, undo loss scaling, clip to `max_grad_norm` (0 = off); return the norm before.

    As torch.nn.utils.clip_grad_norm_ does, without its bookkeeping for each tensor.
    """
    training.share_gradients()
    training.accelerator.unscale_gradients(training.optimizer)
    gradients = [parameter.grad for parameter in training.parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros((), device=training.device)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    limit = training.config.optimizer.max_grad_norm
    if limit and _may_exceed(norm, limit):
        torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _may_exceed(norm: Tensor, limit: float) -> bool:
    """Say whether gradients are to be scaled down; elsewhere than on a CPU the answer would have to be waited for."""
    return norm.device.type != "cpu" or not bool(norm + 1e-6 <= limit)


def update(training: Training, grad_norm: Tensor) -> None:
    """Step optimizer, limit of norms and schedule; where a gradient was not finite the weights stay as they were.

    The schedule advances either way, so that the step number alone says which rate is in effect.
    """
    training.updating = True
    training.step_optimizer(torch.isfinite(grad_norm))
    training.optimizer.zero_grad(set_to_none=True)
    training.limit_norms()
    training.take_average()
    training.advance_schedule()
