"""diffusers' blocks in short against diffusers' own: the same bits, forward and backward."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers.checkpoints import tiny_modules
from trainer.families.unet import slim_blocks as brief_blocks
from trainer.families.unet.slim_blocks import SlimAttention, SlimResidual, attended, slimmed


def kinds(model: nn.Module) -> set[type]:
    return {type(each) for each in model.modules() if isinstance(each, Attention | ResnetBlock2D)}


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_unet_gives_the_same_bits(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brief_blocks, "_VECTOR", 0)  # narrow heads are padded, which rounds otherwise
    unet = tiny_modules()[0]
    brief = slimmed(copy.deepcopy(unet))
    assert kinds(brief) == {SlimAttention, SlimResidual}
    noisy, context, results = drawn(2, 4, 16, 16), drawn(2, 77, 32), []
    for model in (unet, brief):
        if checkpointing:
            model.enable_gradient_checkpointing()
        output = model(noisy, torch.tensor([3, 500]), context).sample
        results.append([output, *torch.autograd.grad(output.square().mean(), (noisy, context, *model.parameters()))])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@torch.no_grad()
def test_a_vae_gives_the_same_bits() -> None:
    vae = tiny_modules()[1]
    brief = slimmed(copy.deepcopy(vae))
    assert kinds(brief) == {Attention, SlimResidual}, "its attention has a norm and a residual of its own"
    pixels = drawn(1, 3, 64, 48)
    assert torch.equal(vae.encode(pixels).latent_dist.mean, brief.encode(pixels).latent_dist.mean)
    latents = drawn(1, 4, 8, 6)
    assert torch.equal(vae.decode(latents).sample, brief.decode(latents).sample)


@pytest.mark.parametrize("features", [5, 10, 16, 40])
def test_narrow_heads_attend_as_wide_ones_do(features: int) -> None:
    parts = [drawn(2, 3, 70, features), drawn(2, 3, 77, features) * 2, drawn(2, 3, 77, features)]
    ours, theirs = attended(*parts), F.scaled_dot_product_attention(*parts)
    assert ours.shape == theirs.shape
    gradients = [torch.autograd.grad(each.square().sum(), parts) for each in (ours, theirs)]
    for mine, other in zip((ours, *gradients[0]), (theirs, *gradients[1]), strict=True):
        assert (mine - other).norm() <= 1e-6 * other.norm()


def test_an_attention_asked_for_more_does_as_diffusers_does() -> None:
    unet = tiny_modules()[0]
    whole = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    brief = slimmed(copy.deepcopy(unet)).mid_block.attentions[0].transformer_blocks[0].attn1
    states, mask = drawn(1, 6, whole.query_dim), torch.tensor([[0.0, 0.0, -1e4, 0.0, -1e4, 0.0]])[:, None]
    assert torch.equal(whole(states, attention_mask=mask), brief(states, attention_mask=mask))
    assert not torch.equal(brief(states, attention_mask=mask), brief(states))


def test_other_blocks_stay_as_they_are() -> None:
    others = nn.ModuleList(
        [
            Attention(32, heads=2, residual_connection=True),
            Attention(32, heads=2, rescale_output_factor=2.0),
            Attention(32, heads=2, dropout=0.1),
            Attention(32, heads=2, norm_num_groups=4),
            ResnetBlock2D(in_channels=32, output_scale_factor=2.0),
            ResnetBlock2D(in_channels=32, time_embedding_norm="scale_shift"),
            ResnetBlock2D(in_channels=32, dropout=0.1),
            ResnetBlock2D(in_channels=32, down=True),
            ResnetBlock2D(in_channels=32, non_linearity="gelu"),
        ]
    )
    assert kinds(slimmed(others)) == {Attention, ResnetBlock2D}
