"""diffusers' attention and residual blocks, without what they do for other models than Stable Diffusion.

diffusers divides what each of them gives by one, forward and backward, and looks the arguments of its attention up at
each call. Without that a step has some fifty passes over its activations less, and the numbers are the same to the last
bit (but for heads so narrow that `attended` pads them, which rounds otherwise). Modules change their class, nothing
else: weights, names and hooks stay what they were.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

_VECTOR = 16

Model = TypeVar("Model", bound=nn.Module)


class SlimAttention(Attention):
    """softmax(Q K^T / sqrt(d)) V over several heads (Vaswani et al. 2017), of what is given or of its own input."""

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
    """Return softmax(Q K^T / sqrt(d)) V, [b, heads, tokens, d].

    PyTorch's kernel for CPUs works in vectors of sixteen: of ten features it takes nearly twice the time.
    """
    features = query.shape[-1]
    missing = 0 if query.is_cuda else _VECTOR - features
    if missing <= 0:
        return F.scaled_dot_product_attention(query, key, value)
    query, key, value = (F.pad(each, (0, missing)) for each in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, scale=features**-0.5)[..., :features]


class SlimResidual(ResnetBlock2D):
    """x + conv(silu(norm(conv(silu(norm(x))) + time))), the residual block of Ho et al. 2020."""

    def forward(self, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        """[b, in, h, w] and the time's embedding [b, time] -> [b, out, h, w]."""
        hidden = self.conv1(F.silu(self.norm1(input_tensor)))
        if temb is not None:
            # What a convolution gives is needed by nothing else, so it may be added to in place.
            hidden += self.time_emb_proj(F.silu(temb))[:, :, None, None]
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        hidden += input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return cast(Tensor, hidden)


def slimmed(model: Model) -> Model:
    """Let the blocks of a UNet or VAE that are no more than this be computed so, in place; return the model."""
    for module in model.modules():
        if type(module) is Attention and _is_plain_attention(module):
            module.__class__ = SlimAttention
        elif type(module) is ResnetBlock2D and _is_plain_residual(module):
            module.__class__ = SlimResidual
    return model


def _is_plain_attention(block: Attention) -> bool:
    return (
        type(block.processor) is AttnProcessor2_0
        and block.spatial_norm is block.group_norm is block.norm_q is block.norm_k is None
        and not (block.norm_cross or block.residual_connection)
        and block.rescale_output_factor == 1
        and block.to_out[1].p == 0
    )


def _is_plain_residual(block: ResnetBlock2D) -> bool:
    return (
        block.upsample is block.downsample is None
        and (block.time_embedding_norm == "default" or block.time_emb_proj is None)
        and not block.skip_time_act
        and isinstance(block.nonlinearity, nn.SiLU)
        and block.output_scale_factor == 1
        and block.dropout.p == 0
    )
