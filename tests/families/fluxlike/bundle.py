"""The family like FLUX.1, loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from tests.families.fluxlike import CLIP, DOUBLE, LATENTS, LAYERS, SINGLE, T5, T5_LENGTH, WIDTH
from tests.families.patchy.bundle import Bundle, Words
from tests.families.patchy.models import VOCABULARY
from trainer.families.conditions import Conditions
from trainer.families.reading.fused import fuse
from trainer.families.reading.weights import fill, open_weights
from trainer.families.text.clip import PromptTokenizer, clip_tokenizer
from trainer.families.text.tokens import Tokenizers, Tokens
from trainer.process import FLOW

GUIDANCE = 3.5
_CHANNELS = LATENTS.channels * LATENTS.patch**2


def transformer() -> FluxTransformer2DModel:
    """Return the transformer as diffusers has it."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=_CHANNELS,
        num_layers=DOUBLE,
        num_single_layers=SINGLE,
        attention_head_dim=WIDTH // 2,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )


def with_fused_layers(model: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """Make one layer of what is one in FLUX.1's own layout."""
    for block in model.transformer_blocks:
        fuse(block.attn, ("to_q", "to_k", "to_v"), "qkv")
        fuse(block.attn, ("add_q_proj", "add_k_proj", "add_v_proj"), "added_qkv")
    for block in model.single_transformer_blocks:
        fuse(block, ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear1")
    return model


def clip() -> CLIPTextModel:
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
    }
    return CLIPTextModel(CLIPTextConfig(vocab_size=49408, bos_token_id=49406, eos_token_id=49407, **sizes))


def t5() -> T5EncoderModel:
    sizes = {"d_model": WIDTH, "d_kv": WIDTH // 2, "num_heads": 2, "d_ff": 2 * WIDTH, "num_layers": LAYERS}
    return T5EncoderModel(T5Config(vocab_size=VOCABULARY, feed_forward_proj="gated-gelu", **sizes))


def vae() -> AutoencoderKL:
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    return AutoencoderKL(
        latent_channels=LATENTS.channels,
        block_out_channels=(8, 8, 8, 8),
        down_block_types=down,
        up_block_types=up,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def made(name: str) -> Any:
    """Return a component with random weights."""
    if name == "transformer":
        return with_fused_layers(transformer())
    return {"vae": vae, CLIP: clip, T5: t5}[name]()


class Guided(Conditions):
    """The model is told how strongly it was taught to follow the prompt."""

    def of_picture(self, placement: object, flipped: bool) -> Mapping[str, Tensor]:
        return {"guidance": torch.tensor(GUIDANCE)}

    def of_sample(self, size: tuple[int, int], guidance: float) -> Mapping[str, Tensor]:
        return {"guidance": torch.tensor(GUIDANCE)}


class FluxBundle(Bundle):
    """See `trainer.families.bundle.Bundle`."""

    latents = LATENTS
    conditions = Guided()

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        dynamic = {"shift": 3.0, "use_dynamic_shifting": True}
        self.process = FLOW.build(dynamic, given[2], patch=LATENTS.patch)

    def tokenizers(self) -> Tokenizers:
        return Tokenizers({CLIP: PromptTokenizer(clip_tokenizer(), 1), T5: Words(T5_LENGTH, masked=False)})

    def module(self, name: str) -> Any:
        if name not in self.loaded:
            source = self._recognition.source
            with torch.random.fork_rng(devices=[]), open_weights(Path(source)) as weights:
                empty = made(name)
                # A table that two names mean is written once.
                names = {own: f"{name}.{own.replace('encoder.embed_tokens', 'shared')}" for own in empty.state_dict()}
                self.loaded[name] = fill(empty, weights, names, device=self.device, dtype=self.dtype, source=source)
        return self.loaded[name]

    def encode_text(self, tokens: Tokens) -> dict[str, Tensor]:
        ids = {name: each["ids"].to(self.device) for name, each in tokens.items()}
        pooled = self.module(CLIP)(ids[CLIP][:, 0]).pooler_output
        return {"pooled": pooled, "context": self.module(T5)(ids[T5]).last_hidden_state}

    def predict(
        self, noisy: Tensor, timesteps: Tensor, text: Mapping[str, Tensor], conditions: Mapping[str, Tensor]
    ) -> Tensor:
        return flux(self.module("transformer"), noisy, timesteps, text, conditions["guidance"])

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.module("vae").encode(pixels.to(self.device, self.dtype)).latent_dist
        return posterior.mean.float(), posterior.std.float()

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self.module("vae").decode(LATENTS.from_model(latents).to(self.dtype)).sample.float()
        return pixels.clamp(-1, 1)

    def enable_gradient_checkpointing(self) -> None:
        self.module("transformer").enable_gradient_checkpointing()


def flux(model: nn.Module, noisy: Tensor, sigmas: Tensor, text: Mapping[str, Tensor], guidance: Tensor) -> Tensor:
    """Run a FLUX transformer on latents [b, 16, h, w]: pack them, say where each token is, unpack what comes out."""
    height, width = noisy.shape[-2] // 2, noisy.shape[-1] // 2
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).float()
    drawn = model(
        hidden_states=nn.functional.pixel_unshuffle(noisy, 2).flatten(2).transpose(1, 2),
        encoder_hidden_states=text["context"],
        pooled_projections=text["pooled"],
        timestep=sigmas,
        guidance=guidance,
        img_ids=places,
        txt_ids=torch.zeros(text["context"].shape[1], 3),
        return_dict=False,
    )[0]
    unpacked: Tensor = nn.functional.pixel_shuffle(drawn.transpose(1, 2).unflatten(2, (height, width)), 2)
    return unpacked


def write_file(path: Path) -> Path:
    """Write a model with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = {name: made(name) for name in ("transformer", "vae", CLIP, T5)}
    tensors = {
        f"{name}.{key}": value.detach().clone().contiguous()
        for name, module in models.items()
        for key, value in module.state_dict().items()
    }
    save_file(tensors, path)
    return path
