"""diffusers' attention and residual blocks, without what they do for other models than Stable Diffusion.

diffusers divides what each of them gives by one, forward and backward, and looks the arguments of its attention up at
each call. Without that a step has some fifty passes over its activations less, and the numbers are the same to the last
bit (but where `attended` pads narrow heads or computes in float32, which rounds otherwise). Modules change their class,
nothing else: weights, names and hooks stay what they were. Blocks of a diffusers that has other names for what is
needed here stay as they are.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.families.unet import winograd
from trainer.families.unet.thrift import activated, convolved, gated

ATTENTION = ("diffusers.models.attention_processor", "Attention")
PROCESSOR = ("diffusers.models.attention_processor", "AttnProcessor2_0")
RESIDUAL = ("diffusers.models.resnet", "ResnetBlock2D")
GATE = ("diffusers.models.activations", "GEGLU")
ENCODER = ("diffusers.models.autoencoders.vae", "Encoder")
DOWN = ("diffusers.models.unets.unet_2d_blocks", "DownEncoderBlock2D")
"""The classes of diffusers that are known here."""

_VECTOR = 16
_FEW = 2**23
"""Multiplications of a head's queries by its keys up to which a CPU takes less time for them in float32 than in bf16.

Measured with 10 to 160 features and 64 to 4,096 tokens: a quarter of the time where there are few, as much at this.
"""

meta_means = "cpu"
"""The kind of device whose way of computing is taken for tensors on "meta"; a forecast sets it."""

Model = TypeVar("Model", bound=nn.Module)


class SlimAttention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V over several heads (Vaswani et al. 2017), of what is given or of its own input."""

    heads: int
    to_q: nn.Module
    to_k: nn.Module
    to_v: nn.Module
    to_out: nn.ModuleList

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **other: Any,
    ) -> Tensor:
        """[b, tokens, width] -> the same shape, attending to [b, tokens', context] where it is given."""
        if attention_mask is not None or other or hidden_states.dim() != 3:
            return cast(Tensor, super().forward(hidden_states, encoder_hidden_states, attention_mask, **other))
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            states.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for states in (self.to_q(hidden_states), self.to_k(context), self.to_v(context))
        )
        return cast(Tensor, self.to_out[0](attended(query, key, value).transpose(1, 2).flatten(2)))


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(Q K^T / sqrt(d)) V, [b, heads, tokens, d] in the dtype given.

    PyTorch's kernel for CPUs works in vectors of sixteen: of ten features it takes nearly twice the time. In bf16 each
    of its products is prepared anew by another library, which takes longer than a small one itself.
    """
    if (meta_means if query.is_meta else query.device.type) != "cpu":
        return F.scaled_dot_product_attention(query, key, value)
    dtype, features = query.dtype, query.shape[-1]
    if dtype == torch.bfloat16 and query.shape[-2] * key.shape[-2] * features <= _FEW:
        query, key, value = query.float(), key.float(), value.float()
    missing = _VECTOR - features
    if missing <= 0:
        return F.scaled_dot_product_attention(query, key, value).to(dtype)
    query, key, value = (F.pad(each, (0, missing)) for each in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, scale=features**-0.5)[..., :features].to(dtype)


class SlimResidual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + time))), the residual block of Ho et al. 2020."""

    norm1: nn.GroupNorm
    conv1: nn.Conv2d
    time_emb_proj: nn.Module
    norm2: nn.GroupNorm
    conv2: nn.Conv2d
    conv_shortcut: nn.Module | None

    def forward(self, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        """[b, in, h, w] and the time's embedding [b, time] -> [b, out, h, w]."""
        if temb is None and _is_for_tiles(self, input_tensor):
            hidden = winograd.convolved(input_tensor, self.norm1, self.conv1)
            around = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
            return winograd.convolved(hidden, self.norm2, self.conv2, around)
        hidden = convolved(self.conv1, activated(self.norm1, input_tensor))
        if temb is not None:
            # What a convolution gives is needed by nothing else, so it may be added to in place.
            hidden += self.time_emb_proj(F.silu(temb))[:, :, None, None]
        hidden = activated(self.norm2, hidden)
        hidden = convolved(self.conv2, hidden)
        hidden += input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return hidden


class SlimGate(nn.Module):
    """u * gelu(g), with u and g the halves of one projection. Shazeer 2020."""

    proj: nn.Module

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., width] -> [..., inner]."""
        return gated(self.proj(hidden_states))


class SlimEncoder(nn.Module):
    """The encoder of a VAE, which keeps nothing from one block to the next: two maps of features less at the most."""

    conv_in: nn.Module
    down_blocks: Any
    mid_block: nn.Module
    conv_norm_out: nn.Module
    conv_out: nn.Module
    gradient_checkpointing: bool

    def forward(self, sample: Tensor) -> Tensor:
        """[b, 3, H, W] -> [b, 2 c, H/8, W/8]."""
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return cast(Tensor, super().forward(sample))
        sample = self.conv_in(sample)
        for level in self.down_blocks:
            for residual in level.resnets:
                sample = residual(sample, None)
            for sampler in level.downsamplers or ():
                sample = sampler(sample)
        return cast(Tensor, self.conv_out(activated(self.conv_norm_out, self.mid_block(sample))))


def slimmed(model: Model) -> Model:
    """Let the blocks of a UNet or VAE that are no more than this be computed so, in place; return the model."""
    attention, processor, residual, encoder, gate = (
        _theirs(*name) for name in (ATTENTION, PROCESSOR, RESIDUAL, ENCODER, GATE)
    )
    for module in model.modules():
        kind: Any = type(module)
        if kind is attention and processor and _is_plain_attention(module, processor):
            module.__class__ = _mixed(SlimAttention, kind)
        elif kind is residual and _is_plain_residual(module):
            module.__class__ = _mixed(SlimResidual, kind)
        elif kind is gate and _is_plain_gate(module):
            module.__class__ = _mixed(SlimGate, kind)
        elif kind is encoder and _is_plain_encoder(module):
            module.__class__ = _mixed(SlimEncoder, kind)
    return model


def _theirs(module: str, name: str) -> Any:
    """Return a class of diffusers; None where this version has none of that name."""
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None


@cache
def _mixed(slim: type, theirs: type) -> type:
    """Return diffusers' class with our forward."""
    return type(slim.__name__, (slim, theirs), {})


def _is_plain_attention(block: Any, processor: type) -> bool:
    try:
        return (
            type(block.processor) is processor
            and block.spatial_norm is block.group_norm is block.norm_q is block.norm_k is None
            and not (block.norm_cross or block.residual_connection)
            and block.rescale_output_factor == 1
            and block.to_out[1].p == 0
            and None not in (block.heads, block.to_q, block.to_k, block.to_v)
        )
    except AttributeError:
        return False  # another version's block, which may do what is not known here


def _is_plain_residual(block: Any) -> bool:
    try:
        return (
            block.upsample is block.downsample is None
            and (block.time_embedding_norm == "default" or block.time_emb_proj is None)
            and not block.skip_time_act
            and isinstance(block.nonlinearity, nn.SiLU)
            and block.output_scale_factor == 1
            and block.dropout.p == 0
            and None not in (block.norm1, block.conv1, block.norm2, block.conv2)
            and (block.conv_shortcut is None or isinstance(block.conv_shortcut, nn.Module))
        )
    except AttributeError:
        return False  # as above


def _is_plain_gate(block: Any) -> bool:
    return isinstance(getattr(block, "proj", None), nn.Module)  # another version may name it otherwise


def _is_for_tiles(block: Any, features: Tensor) -> bool:
    """Say whether a residual block of a VAE is computed by tiles here: with a gradient or on a card it is not."""
    cpu = (meta_means if features.is_meta else features.device.type) == "cpu"
    plain = all(type(each) is nn.GroupNorm for each in (block.norm1, block.norm2))
    return cpu and plain and winograd.suits(block.conv1) and winograd.suits(block.conv2) and winograd.pays(features)


def _is_plain_encoder(block: Any) -> bool:
    known = _theirs(*DOWN)
    try:
        return (
            all(type(level) is known and hasattr(level, "resnets") for level in block.down_blocks)
            and all(hasattr(level, "downsamplers") for level in block.down_blocks)
            and isinstance(block.conv_act, nn.SiLU)
            and None not in (block.conv_in, block.mid_block, block.conv_norm_out, block.conv_out)
            and block.gradient_checkpointing in (True, False)
        )
    except AttributeError:
        return False  # as above
